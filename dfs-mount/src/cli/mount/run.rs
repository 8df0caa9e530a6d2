//! The daemon: everything a mount needs, put together, served, and taken down in order.
//!
//! Up: cache (a local fault needs no server), connection, session, write-back with what an earlier
//! run left, kernel, control socket; only then is the mount announced. Down, when the kernel has
//! ended the connection: what is still unsent is tried for a while and else stays in the journal,
//! then tasks, session, and last the control socket, whose end tells a waiting `dfs umount` that
//! everything is over.

mod service;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::client::retry::RetryPolicy;
use nix::mount::MsFlags;
use nix::unistd::geteuid;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::daemonise::Announcer;
use super::prepare::Plan;
use crate::cache::{Belongs, Cache, CacheError, Limits};
use crate::cli::cell;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context, Failure};
use crate::cli::mounts;
use crate::cli::output::Output;
use crate::config::{MountConfig, process_environment};
use crate::control::place;
use crate::control::server::{ControlSocket, serve};
use crate::fetch::Fetcher;
use crate::fuse::{self, MountOptions, Mounted};
use crate::session::Session;
use crate::session::connection::Connection;
use crate::vfs::{Options, Parts, Vfs};
use crate::writeback::Writeback;
use service::Service;

/// How long a mount that was given up may still be used.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(5);

/// How long the daemon goes on sending after its mount is gone: `dfs umount` has waited before,
/// and what is left is sent at the next mount.
const LAST_DRAIN: Duration = Duration::from_secs(5);

/// How long the server may take to hear that the session is over; its lease tells it anyway.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);

/// Serves the mount until it is taken away.
///
/// # Errors
/// A [`Failure`] if there is no mount, or if it ended by itself.
pub fn run(plan: Plan, announcer: Announcer, output: &mut Output) -> Result<(), Failure> {
    let runtime = crate::cli::runtime()?;
    let result = runtime.block_on(mount_daemon(plan, &announcer, output));
    // A thread that waits for the kernel must not keep a daemon alive that has given its mount up.
    runtime.shutdown_background();
    result
}

async fn mount_daemon(
    plan: Plan,
    announcer: &Announcer,
    output: &mut Output,
) -> Result<(), Failure> {
    let config = Arc::new(plan.config.clone());
    let connection = connect(&plan)?;
    let parts = assemble(&plan, connection).await?;
    let vfs = Vfs::new(share(&parts), options(&config));
    let give_up = CancellationToken::new();
    let mounted = match mount(&config, vfs.clone()).await {
        Ok(mounted) => mounted,
        Err(failure) => {
            close(&parts).await;
            return Err(failure);
        }
    };
    let service = Service::new(Arc::clone(&config), share(&parts), vfs.clone(), give_up.clone());
    let service = Arc::new(service);
    let control_end = CancellationToken::new();
    let ready = match listen(&config) {
        Ok(socket) => {
            let control = tokio::spawn(serve(socket, service, control_end.clone()));
            announcer.ready(output).map(|()| control)
        }
        Err(failure) => Err(failure),
    };
    let control = match ready {
        Ok(control) => control,
        Err(failure) => {
            give_up_mount(&config.mount_point);
            drop(mounted);
            close(&parts).await;
            return Err(failure);
        }
    };
    tracing::info!(url = %config.url, at = %config.mount_point.display(), "mounted");
    let signals = signals::obey(config.mount_point.clone(), give_up.clone());
    let ended = wait_for_end(tokio::spawn(mounted.ended()), &give_up).await;
    signals.abort();
    vfs.close_all().await;
    last_drain(&parts).await;
    close(&parts).await;
    tracing::info!(at = %config.mount_point.display(), "unmounted");
    control_end.cancel();
    // Its only failure is a panic, which the log has.
    let _ = control.await;
    ended.map_err(|error| Failure::failed(format!("{} ended", config.mount_point.display()), error))
}

/// Another handle on the same parts.
fn share(parts: &Parts) -> Parts {
    Parts {
        session: parts.session.clone(),
        cache: parts.cache.clone(),
        fetcher: parts.fetcher.clone(),
        writeback: parts.writeback.clone(),
    }
}

fn connect(plan: &Plan) -> Result<Connection, Failure> {
    let give_up_after = plan.config.patience.limit();
    let policy = RetryPolicy { give_up_after, ..RetryPolicy::default() };
    Connection::to_cell(&plan.credential, plan.login, policy, cell::clock())
        .about(|| format!("cannot mount {}", plan.config.url))
}

fn options(config: &MountConfig) -> Options {
    Options {
        passthrough: true,
        lock_timeout: config.lock_timeout,
        kernel_judges: config.default_permissions,
        devices: config.dev,
    }
}

/// The lower half: cache, session, fetcher, write-back.
async fn assemble(plan: &Plan, connection: Connection) -> Result<Parts, Failure> {
    let config = &plan.config;
    let cache = open_cache(plan, &connection).await?;
    let host = cell::host_name();
    let session = Session::open(connection, &config.url.volume, &host)
        .await
        .about(|| format!("cannot mount {}", config.url))?;
    let recalls = session.listen().await;
    let fetcher = Fetcher::new(session.clone());
    let writeback = Writeback::start(session.clone(), cache.clone(), recalls)
        .await
        .map_err(|error| cache_failure(config, error))?;
    Ok(Parts { session, cache, fetcher, writeback })
}

async fn open_cache(plan: &Plan, connection: &Connection) -> Result<Cache, Failure> {
    let dir = plan.config.cache_dir.clone();
    let belongs = Belongs {
        cell: plan.credential.fingerprint.clone(),
        volume: plan.config.url.volume.clone(),
    };
    let limits = Limits::new(plan.config.cache_bytes_max);
    let (clock, metrics) = (Arc::clone(connection.clock()), Arc::clone(connection.metrics()));
    let opening =
        tokio::task::spawn_blocking(move || Cache::open(&dir, &belongs, limits, clock, metrics));
    match opening.await {
        Ok(opened) => opened.map_err(|error| cache_failure(&plan.config, error)),
        Err(error) => Err(Failure::failed("cannot open the cache", error)),
    }
}

fn cache_failure(config: &MountConfig, error: CacheError) -> Failure {
    let what = format!("cannot use cache directory {}", config.cache_dir.display());
    let remedy = match &error {
        CacheError::InUse { .. } | CacheError::OtherOwner { .. } | CacheError::OnDfs(_) => {
            "name another directory with --cache-dir"
        }
        CacheError::OtherFormat(_) => {
            "name another directory with --cache-dir, or use the version of dfs that made it"
        }
        CacheError::Full { .. } => "raise --cache-size, or free disk space",
        CacheError::Io { .. } => "check its file system, or name another with --cache-dir",
    };
    Failure::new(Exit::Failed, what, error).remedy(remedy)
}

/// Asks the kernel; on a thread of its own, because it may take its time.
async fn mount(config: &MountConfig, vfs: Vfs) -> Result<Mounted, Failure> {
    let options = MountOptions {
        source: config.source.clone(),
        allow_other: config.allow_other,
        default_permissions: config.default_permissions,
        read_only: config.read_only,
        exec: config.exec,
        atime: config.atime,
    };
    let (directory, runtime) = (config.mount_point.clone(), tokio::runtime::Handle::current());
    let mounting =
        tokio::task::spawn_blocking(move || fuse::mount(vfs, &directory, &options, &runtime));
    let what = || format!("cannot mount at {}", config.mount_point.display());
    let mounted = match mounting.await {
        Ok(mounted) => mounted.map_err(|error| kernel_failure(what(), error))?,
        Err(error) => return Err(Failure::failed(what(), error)),
    };
    if let Err(error) = set_flags(config) {
        give_up_mount(&config.mount_point);
        return Err(Failure::failed(what(), error));
    }
    Ok(mounted)
}

fn kernel_failure(what: String, error: io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "install fuse3, and load its module: modprobe fuse",
        io::ErrorKind::PermissionDenied => {
            "mount as root, or install fuse3 and own the mount point (allow_other needs \
             user_allow_other in /etc/fuse.conf)"
        }
        _ => "look into the log, and at dmesg",
    };
    Failure::new(Exit::MountPoint, what, error).remedy(remedy)
}

/// Applies what mount(8) calls generic options. They belong to the mount, not to FUSE. For other
/// users `fusermount3` has set them; their mounts always have `nosuid,nodev`, which `plan` has
/// checked to be what is wanted.
fn set_flags(config: &MountConfig) -> nix::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    for (is_set, flag) in [
        (config.read_only, MsFlags::MS_RDONLY),
        (!config.suid, MsFlags::MS_NOSUID),
        (!config.dev, MsFlags::MS_NODEV),
        (!config.exec, MsFlags::MS_NOEXEC),
        (!config.atime, MsFlags::MS_NOATIME),
    ] {
        flags.set(flag, is_set);
    }
    nix::mount::mount(None::<&str>, &config.mount_point, None::<&str>, flags, None::<&str>)
}

/// The socket by which commands reach this daemon: named after the device the kernel gave us.
fn listen(config: &MountConfig) -> Result<ControlSocket, Failure> {
    let what = || "cannot make the control socket".to_owned();
    let mount = mounts::mount_at(&config.mount_point)?;
    let dir = place::prepare(geteuid().as_raw(), &process_environment)
        .map_err(|error| Failure::failed(what(), error))?;
    ControlSocket::bind(&dir.join(place::socket_name(mount.device))).about(what)
}

fn give_up_mount(mount_point: &Path) {
    if let Err(error) = crate::sys::unmount(mount_point, true) {
        tracing::warn!(%error, at = %mount_point.display(), "could not unmount");
    }
}

/// Waits for the kernel; not for ever once the mount was given up.
async fn wait_for_end(
    mut ended: JoinHandle<io::Result<()>>,
    give_up: &CancellationToken,
) -> io::Result<()> {
    let joined = tokio::select! {
        joined = &mut ended => joined,
        () = give_up.cancelled() => {
            match tokio::time::timeout(GIVE_UP_PATIENCE, &mut ended).await {
                Ok(joined) => joined,
                Err(_) => {
                    tracing::warn!("given up while in use; users of the mount get errors");
                    ended.abort();
                    return Ok(());
                }
            }
        }
    };
    joined.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn last_drain(parts: &Parts) {
    let left = parts.writeback.drain(LAST_DRAIN, |_| {}).await;
    for item in left.unsent {
        tracing::warn!(path = %item.hint, why = %item.why, "unsent; sent at the next mount");
    }
}

async fn close(parts: &Parts) {
    parts.writeback.stop().await;
    if tokio::time::timeout(FAREWELL_PATIENCE, parts.session.close()).await.is_err() {
        tracing::info!("the server did not hear that the session is over");
    }
}
