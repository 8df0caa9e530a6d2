//! Mounting: the connection with the kernel, what is agreed on at its start, and its end.
//!
//! Where it may, the program mounts by itself and hands fuser the open device: so the mount shows
//! as `fuse.dfs` with any source name, and nothing is unmounted that is not ours (fuser 0.18
//! unmounts by path at its end, whoever is mounted there by then). Without that right, fuser asks
//! `fusermount3`, as every unprivileged FUSE program does.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, INodeNo, InitFlags, KernelConfig, MountOption, Session, SessionACL};
use tokio::runtime::Handle;

use super::Fuse;
use super::backing::Backings;
use super::caller::Callers;
use super::notify::{self, Notifier};
use super::reply::Server;
use crate::sys;
use crate::vfs::Vfs;

/// Longest write that the kernel sends in one request. Units: bytes. Why 1 MiB: more gains nothing
/// measurable, and the kernel's own limit is there unless raised.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// Most requests that the kernel sends without a program waiting (read-ahead, releases).
const BACKGROUND_MAX: u16 = 64;

/// How many file systems may be stacked below: a cache on overlayfs needs two.
const STACK_DEPTH: u32 = 2;

/// Fewest and most threads that read requests. Why 2: one may be held up by the local disk. Why no
/// more than 8: they do not wait for servers (FUSE.md section 3 measured no gain).
const THREADS_MIN: usize = 2;
const THREADS_MAX: usize = 8;

/// How a volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What `mount` and `df` show as the source: the volume's URL.
    pub source: String,
    /// Whether other users than the mounting one may use it.
    pub allow_other: bool,
    /// Whether the kernel judges mode bits itself, beside the servers.
    pub default_permissions: bool,
    pub read_only: bool,
    /// Whether programs on it may be run, and whether access times are kept: asked of
    /// `fusermount3`. Root sets them on the mount itself.
    pub exec: bool,
    pub atime: bool,
}

/// What is asked of the kernel when the connection starts; what it does not offer is done without.
pub(super) fn negotiate(config: &mut KernelConfig) {
    let wanted = [
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_PARALLEL_DIROPS,
        // Or every write asks for security.capability first.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        // A link's target never changes.
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_PASSTHROUGH,
        // Without them the kernel would decide about locks, for its own programs only.
        InitFlags::FUSE_POSIX_LOCKS,
        InitFlags::FUSE_FLOCK_LOCKS,
    ];
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "the kernel does not offer this");
        }
    }
    // Errors name the nearest value that is possible, which is then what there is.
    let _ = config.set_max_write(WRITE_BYTES_MAX);
    let _ = config.set_max_background(BACKGROUND_MAX);
    let _ = config.set_max_stack_depth(STACK_DEPTH);
}

/// A mounted volume. Dropping it leaves the mount as it is.
pub struct Mounted {
    directory: PathBuf,
    server: Server,
    vfs: Vfs,
    threads: Option<JoinHandle<io::Result<()>>>,
    /// They drop names.
    droppers: Vec<JoinHandle<()>>,
    listener: tokio::task::JoinHandle<()>,
}

/// Mounts `vfs` on `directory`. Returns when the kernel has agreed, so that the mount is usable.
/// Blocks; operations run on `runtime`.
///
/// # Errors
/// The directory does not exist or is no directory; the device cannot be opened; the kernel or
/// `fusermount3` refuses.
pub fn mount(
    vfs: Vfs,
    directory: &Path,
    options: &MountOptions,
    runtime: &Handle,
) -> io::Result<Mounted> {
    let directory = directory.canonicalize()?;
    let server = Server::new(runtime.clone(), vfs.metrics().clone());
    let fuse = Fuse {
        vfs: vfs.clone(),
        server: server.clone(),
        callers: Arc::new(Callers::new(vfs.clock().clone())),
        backings: Arc::new(Backings::default()),
    };
    let session = connect(fuse, &directory, options)?;
    serve(session, (vfs, server), &directory, runtime).inspect_err(|_| {
        // The error tells why; the mount without a server behind it must not stay.
        let _ = sys::unmount(&directory, true);
    })
}

/// Starts the threads that a connection needs.
fn serve(
    session: Session<Fuse>,
    (vfs, server): (Vfs, Server),
    directory: &Path,
    runtime: &Handle,
) -> io::Result<Mounted> {
    let kernel = session.notifier();
    vfs.set_drop_pages(Box::new(move |nodeid| {
        // All of it. An inode that the kernel has forgotten has no pages.
        let _ = kernel.inval_inode(INodeNo(nodeid), 0, 0);
    }));
    let notifier = Arc::new(Notifier::new(vfs.clone(), &session)?);
    server.tell_by(Arc::clone(&notifier));
    let droppers = notify::start_threads(&notifier)?;
    let listener = runtime.spawn(notify::listen(notifier, vfs.keep()));
    let threads =
        std::thread::Builder::new().name("fuse".to_owned()).spawn(move || session.run())?;
    let directory = directory.to_owned();
    Ok(Mounted { directory, server, vfs, threads: Some(threads), droppers, listener })
}

fn connect(fuse: Fuse, directory: &Path, options: &MountOptions) -> io::Result<Session<Fuse>> {
    let device = match sys::open_fuse_device() {
        Ok(device) => device,
        Err(error) => {
            let what = format!("cannot open /dev/fuse: {error}");
            return Err(io::Error::new(error.kind(), what));
        }
    };
    let data = mount_data(device.as_raw_fd(), directory, options)?;
    match sys::mount_fuse(&options.source, directory, options.read_only, &data) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            drop(device);
            return Session::new(fuse, directory, &config(options));
        }
        Err(error) => return Err(error),
    }
    let acl = config(options).acl;
    let session = Session::from_fd(fuse, device.into(), acl, config(options));
    if session.is_err() {
        // The error tells why; the mount without a server behind it must not stay.
        let _ = sys::unmount(directory, true);
    }
    session
}

/// The options that FUSE itself reads in mount(2).
fn mount_data(device: i32, directory: &Path, options: &MountOptions) -> io::Result<String> {
    let root_mode = std::fs::metadata(directory)?.mode();
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let mut data = format!("fd={device},rootmode={root_mode:o},user_id={uid},group_id={gid}");
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if options.default_permissions {
        data.push_str(",default_permissions");
    }
    Ok(data)
}

fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(
        std::thread::available_parallelism()
            .map_or(THREADS_MIN, usize::from)
            .clamp(THREADS_MIN, THREADS_MAX),
    );
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("dfs".to_owned()),
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    for (is_wanted, option) in [
        (options.default_permissions, MountOption::DefaultPermissions),
        (!options.exec, MountOption::NoExec),
        (!options.atime, MountOption::NoAtime),
    ] {
        config.mount_options.extend(is_wanted.then_some(option));
    }
    config
}

impl Mounted {
    /// Where it is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the mount away.
    ///
    /// # Errors
    /// `ResourceBusy` if somebody uses it and `is_lazy` is not set. If it is, the mount leaves the
    /// tree at once, and the connection ends with its last user.
    pub fn unmount(&self, is_lazy: bool) -> io::Result<()> {
        sys::unmount(&self.directory, is_lazy)
    }

    /// Whether the kernel has ended the connection.
    pub fn is_ended(&self) -> bool {
        self.threads.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the kernel has ended the connection and everything it asked for is done, then
    /// commits what is still open. Called after the mount was taken away, by whomever.
    ///
    /// # Errors
    /// Why the connection ended, if not by an unmount.
    pub async fn ended(mut self) -> io::Result<()> {
        let threads = self.threads.take();
        let joined = tokio::task::spawn_blocking(move || threads.map(JoinHandle::join)).await;
        self.listener.abort();
        self.vfs.kernel_is_gone();
        let droppers = std::mem::take(&mut self.droppers);
        let dropped = || droppers.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(dropped).await;
        self.server.drain().await;
        self.vfs.close_all().await;
        match joined {
            Ok(Some(Ok(result))) => result,
            Ok(None) => Ok(()),
            Ok(Some(Err(_))) | Err(_) => Err(io::Error::other("a FUSE thread panicked")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_are_those_that_fuse_reads() {
        let mut options = MountOptions {
            source: "dfs://host:7400/main".to_owned(),
            allow_other: false,
            default_permissions: false,
            read_only: false,
            exec: true,
            atime: true,
        };
        let directory = std::env::temp_dir();
        let plain = mount_data(7, &directory, &options).unwrap();
        assert!(plain.starts_with("fd=7,rootmode=41") && !plain.contains("allow_other"), "{plain}");
        options.allow_other = true;
        options.default_permissions = true;
        let both = mount_data(7, &directory, &options).unwrap();
        assert!(both.ends_with(",allow_other,default_permissions"), "{both}");
    }
}
