//! What can be judged of a mount before there is one: configuration, mount point, cache directory,
//! login; and what one question to the server tells of login and volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dfs_proto::admin::Role;
use dfs_proto::session::OpenVolume;
use nix::unistd::geteuid;

use crate::cli::MountArgs;
use crate::cli::cell;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context, Failure};
use crate::cli::mounts;
use crate::cli::runtime;
use crate::config::{
    ConfigError, MountConfig, Place, cache_base, environment_layer, file_layer, process_environment,
};
use crate::control::mountinfo::{MountTable, absolute};
use crate::credential::{Credential, CredentialStore, LoginKind};
use crate::session::connection::Connection;

/// A mount that nothing here speaks against.
#[derive(Debug)]
pub struct Plan {
    pub config: MountConfig,
    pub credential: Credential,
    pub login: LoginKind,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let remedy = match &error {
            ConfigError::Option { .. } => "dfs mount --help lists the options",
            ConfigError::Unreadable { .. } | ConfigError::Broken { .. } => {
                "correct the file, or move it away"
            }
            ConfigError::Environment { .. } => "correct or unset the variable",
            ConfigError::CacheTooSmall { .. } => "raise --cache-size",
        };
        Failure::usage("cannot mount", error).remedy(remedy)
    }
}

/// # Errors
/// A [`Failure`] for the first thing that is not right.
pub fn plan(arguments: &MountArgs) -> Result<Plan, Failure> {
    let typed = environment_layer(&process_environment)?.overlaid_by(arguments.layer()?);
    let store = match &typed.config_dir {
        Some(dir) => CredentialStore::at(dir),
        None => cell::store()?,
    };
    let raw = file_layer(store.dir())?.overlaid_by(typed);
    let table = mounts::table()?;
    let mount_point = check_mount_point(&arguments.dir, &table)?;
    let is_root = geteuid().is_root();
    let credential = cell::credential_in(&store, &arguments.source.url.cell)?;
    let login = cell::mount_login(&credential, is_root);
    if credential.renewal(login).is_none() {
        return Err(cell::not_logged_in(&format!("dfs://{}", arguments.source.url.cell)));
    }
    let place = Place {
        source: arguments.source.clone(),
        mount_point,
        cell_fingerprint: credential.fingerprint.clone(),
        cache_base: cache_base(&process_environment),
        is_root,
    };
    let mut config = MountConfig::mean(raw, place)?;
    config.cache_dir = anchored(&config.cache_dir)?;
    config.log_file = anchored(&config.log_file)?;
    check_cache_dir(&config, &table)?;
    check_flags(&config, is_root)?;
    Ok(Plan { config, credential, login })
}

/// Asks the server for the volume, so that a wrong login, volume or address is known at once.
///
/// # Errors
/// A [`Failure`] if it refuses or does not answer.
pub fn ask_server(plan: &Plan) -> Result<(), Failure> {
    let what = || format!("cannot mount {}", plan.config.url);
    let request = OpenVolume { name: plan.config.url.volume.clone() };
    let caller = cell::own_identity();
    let asked = async {
        Connection::to_cell(&plan.credential, plan.login, cell::policy(), cell::clock())?
            .call(Role::Directory, Some(&caller), &request)
            .await
    };
    let runtime = runtime()?;
    let answered = runtime.block_on(asked);
    runtime.shutdown_background();
    answered.map(drop).about(what)
}

/// What mount(8) calls generic options are root's to choose.
fn check_flags(config: &MountConfig, is_root: bool) -> Result<(), Failure> {
    if is_root || (!config.suid && !config.dev) {
        return Ok(());
    }
    let cause = "only root may mount with suid or dev";
    Err(Failure::usage("cannot mount", cause).remedy("leave these options out"))
}

/// A path that means the same after the daemon has left the working directory.
fn anchored(path: &Path) -> Result<PathBuf, Failure> {
    absolute(path).about(|| format!("cannot use {}", path.display()))
}

/// The mount point without links, if something can be mounted there.
fn check_mount_point(dir: &Path, table: &MountTable) -> Result<PathBuf, Failure> {
    let name = mounts::mount_point_name(dir).map_err(|failure| missing(dir, failure))?;
    check_free(&name, table)?;
    // Nothing is mounted at the name itself, so looking at it cannot hang on a dead mount of ours.
    let real = match fs::symlink_metadata(&name) {
        Ok(found) if found.is_symlink() => {
            name.canonicalize().map_err(|error| not_usable(dir, error))?
        }
        Ok(_) => name,
        Err(error) => return Err(not_usable(dir, error)),
    };
    check_free(&real, table)?;
    if !fs::metadata(&real).map_err(|error| not_usable(dir, error))?.is_dir() {
        return Err(refused(dir, "it is not a directory").remedy("name a directory"));
    }
    Ok(real)
}

/// Whether the mount point is not one already. An automount trap is there to be mounted over.
fn check_free(mount_point: &Path, table: &MountTable) -> Result<(), Failure> {
    match table.at(mount_point) {
        Some(mount) if !mount.is_autofs() => {
            let cause = format!("{} is mounted there", mount.source.to_string_lossy());
            let dir = mount_point.display();
            let remedy = match mount.is_dfs() {
                true => format!("dfs umount {dir}"),
                false => format!("umount {dir}, or mount elsewhere"),
            };
            Err(refused(mount_point, cause).remedy(remedy))
        }
        _ => Ok(()),
    }
}

fn refused(dir: &Path, cause: impl Into<String>) -> Failure {
    let what = format!("cannot mount at {}", dir.display());
    Failure::new(Exit::MountPoint, what, cause.into())
}

fn missing(dir: &Path, failure: Failure) -> Failure {
    refused(dir, failure.causes()).remedy(format!("mkdir -p {}", dir.display()))
}

fn not_usable(dir: &Path, error: io::Error) -> Failure {
    let is_missing = error.kind() == io::ErrorKind::NotFound;
    let failure =
        Failure::new(Exit::MountPoint, format!("cannot mount at {}", dir.display()), error);
    match is_missing {
        true => failure.remedy(format!("mkdir -p {}", dir.display())),
        false => failure,
    }
}

/// A cache on a DFS mount would wait for itself.
fn check_cache_dir(config: &MountConfig, table: &MountTable) -> Result<(), Failure> {
    let dir = real_place_of(&config.cache_dir);
    let refuse = |cause: String| {
        let what = format!("cannot use cache directory {}", config.cache_dir.display());
        let remedy = "name a directory on a local disk with --cache-dir or DFS_CACHE_DIR";
        Err(Failure::usage(what, cause).remedy(remedy))
    };
    if dir.starts_with(&config.mount_point) {
        return refuse("it is below the mount point".to_owned());
    }
    match table.containing(&dir) {
        Some(mount) if mount.is_dfs() => {
            refuse(format!("it is on a DFS mount, {}", mount.mount_point.display()))
        }
        _ => Ok(()),
    }
}

/// `path` with the links of that part of it which exists followed. Stops above a DFS mount, so that
/// none is touched.
fn real_place_of(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
            return real.join(rest);
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests;
