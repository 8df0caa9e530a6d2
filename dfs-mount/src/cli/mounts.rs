//! The DFS mounts of this machine, and how commands reach their daemons.

use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::failure::{Context, Failure};
use crate::config::process_environment;
use crate::control::client::{ControlClient, ControlError};
use crate::control::mountinfo::{Mount, MountTable, absolute};

/// # Errors
/// A [`Failure`] if the kernel's table cannot be read.
pub fn table() -> Result<MountTable, Failure> {
    MountTable::of_this_process().about(|| "cannot read the table of mounts".to_owned())
}

/// `dir` as the kernel's table names it, without touching what is mounted there: links are followed
/// in the directories above it only.
///
/// # Errors
/// A [`Failure`] if a directory above it does not exist.
pub fn mount_point_name(dir: &Path) -> Result<PathBuf, Failure> {
    let what = || format!("cannot find {}", dir.display());
    let plain = absolute(dir).about(what)?;
    let (Some(parent), Some(name)) = (plain.parent(), plain.file_name()) else {
        // The root, or a path that ends in `..`.
        return plain.canonicalize().about(what);
    };
    Ok(parent.canonicalize().about(what)?.join(name))
}

/// The DFS mount at `dir`.
///
/// # Errors
/// A [`Failure`] if nothing or something else is mounted there.
pub fn mount_at(dir: &Path) -> Result<Mount, Failure> {
    let table = table()?;
    let plain = absolute(dir).about(|| format!("cannot find {}", dir.display()))?;
    let found = match table.at(&plain) {
        Some(mount) => Some(mount),
        None => table.at(&mount_point_name(dir)?),
    };
    let what = format!("{} is not a DFS mount", dir.display());
    match found {
        Some(mount) if mount.is_dfs() => Ok(mount.clone()),
        Some(mount) => Err(not_dfs(what, &format!("a file system of type {} is", mount.kind))),
        None => Err(not_dfs(what, "nothing is mounted there")),
    }
}

fn not_dfs(what: String, cause: &str) -> Failure {
    Failure::new(Exit::MountPoint, what, cause.to_owned()).remedy("see all mounts: dfs status")
}

/// The mount at `dir`, or every mount of this machine.
///
/// # Errors
/// As [`mount_at`].
pub fn chosen(dir: Option<&Path>) -> Result<Vec<Mount>, Failure> {
    match dir {
        Some(dir) => Ok(vec![mount_at(dir)?]),
        None => Ok(table()?.dfs().cloned().collect()),
    }
}

/// The daemon of a mount.
///
/// # Errors
/// [`ControlError::NoSocket`], [`ControlError::NotOwn`].
pub fn daemon(mount: &Mount) -> Result<ControlClient, ControlError> {
    ControlClient::of_mount(mount, &process_environment)
}

/// Says what a daemon could not be asked.
pub fn unanswered(mount: &Mount, error: ControlError) -> Failure {
    let what = format!("cannot ask the daemon of {}", mount.mount_point.display());
    let remedy = match &error {
        ControlError::Dead => format!("dfs umount {}", mount.mount_point.display()),
        ControlError::Refused(_) | ControlError::NoSocket | ControlError::NotOwn { .. } => {
            "run the command as the user who mounted it".to_owned()
        }
        ControlError::Line(_) | ControlError::Unexpected => {
            "unmount and mount again with this version of dfs".to_owned()
        }
        ControlError::Silent(_) | ControlError::Ended | ControlError::Io { .. } => {
            "look into the mount's log, see dfs status".to_owned()
        }
    };
    let exit = match &error {
        ControlError::NotOwn { .. } => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, what, error).remedy(remedy)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::control::mountinfo::Device;

    /// A mount as the kernel's table has it.
    pub fn mount() -> Mount {
        Mount {
            device: Device { major: 0, minor: 1 },
            root: "/".into(),
            mount_point: "/mnt".into(),
            kind: "fuse.dfs".into(),
            source: "dfs://h/main".into(),
            super_options: "user_id=0".into(),
        }
    }

    #[test]
    fn a_mount_points_name_follows_links_above_it_only() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        let through = |path: &str| mount_point_name(&root.join(path)).unwrap();
        assert_eq!(through("link/not-there"), root.join("real/not-there"));
        assert_eq!(through("real/"), root.join("real"));
        assert_eq!(through("link"), root.join("link"));
    }

    #[test]
    fn what_is_no_dfs_mount_is_named_with_what_it_is() {
        let proc = mount_at(Path::new("/proc")).unwrap_err();
        assert_eq!(proc.exit, Exit::MountPoint);
        assert!(proc.causes().contains("proc"), "{}", proc.causes());
        let home = tempfile::tempdir().unwrap();
        let none = mount_at(home.path()).unwrap_err();
        assert!(none.causes().contains("nothing is mounted"), "{}", none.causes());
    }
}
