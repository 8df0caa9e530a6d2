//! Where control sockets lie: `/run/dfs` for root, `$XDG_RUNTIME_DIR/dfs` or `/tmp/dfs-UID` for
//! others; a directory that only its owner may enter, checked at every use.
//!
//! Several candidates, in order, because a daemon and the command that looks for it may have been
//! started with different environments.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::mountinfo::Device;
use crate::config::Environment;

/// Longest path of a unix socket. Units: bytes. Source: unix(7), `sun_path` less its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a directory is not used for sockets.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("{} cannot be used", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not a directory of user {uid} that nobody else may enter", path.display())]
    Unsafe { path: PathBuf, uid: u32 },
    #[error("no directory for control sockets")]
    None,
}

/// The directories in which daemons of `uid` may have their sockets, best first.
pub fn candidates(uid: u32, environment: Environment<'_>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    match uid {
        0 => places.push(PathBuf::from("/run/dfs")),
        _ => {
            // The variable is the asking user's; for root it says nothing of another's daemons.
            let runtime = environment("XDG_RUNTIME_DIR").map(PathBuf::from);
            let usual = PathBuf::from(format!("/run/user/{uid}"));
            places.extend(runtime.map(|dir| dir.join("dfs")));
            places.push(usual.join("dfs"));
        }
    }
    places.push(PathBuf::from(format!("/tmp/dfs-{uid}")));
    places.dedup();
    places
}

/// The name of a mount's socket in its directory.
pub fn socket_name(device: Device) -> String {
    format!("{device}.sock")
}

/// Makes the first usable candidate and returns it.
///
/// # Errors
/// The last candidate's [`PlaceError`].
pub fn prepare(uid: u32, environment: Environment<'_>) -> Result<PathBuf, PlaceError> {
    let mut last = PlaceError::None;
    for dir in candidates(uid, environment) {
        match prepare_dir(&dir, uid) {
            Ok(()) if fits(&dir) => return Ok(dir),
            Ok(()) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Leaves room for a socket's name.
fn fits(dir: &Path) -> bool {
    dir.as_os_str().len() + "/4095-1048575.sock".len() <= SOCKET_PATH_BYTES_MAX
}

fn prepare_dir(dir: &Path, uid: u32) -> Result<(), PlaceError> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(PlaceError::Io { path: dir.to_owned(), source }),
    }
    check_dir(dir, uid)
}

/// Whether only `uid` can have put something into `dir`: or else a socket in it may be anybody's.
fn check_dir(dir: &Path, uid: u32) -> Result<(), PlaceError> {
    let found = fs::symlink_metadata(dir)
        .map_err(|source| PlaceError::Io { path: dir.to_owned(), source })?;
    let is_private =
        found.is_dir() && found.uid() == uid && found.permissions().mode() & 0o077 == 0;
    match is_private {
        true => Ok(()),
        false => Err(PlaceError::Unsafe { path: dir.to_owned(), uid }),
    }
}

/// Where the search for a socket ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Socket(PathBuf),
    /// There may be one, where only its owner may look.
    Hidden,
    Nothing,
}

/// The socket of a mount's daemon, if one lies in a safe candidate directory.
pub fn find(device: Device, uid: u32, environment: Environment<'_>) -> Found {
    let name = socket_name(device);
    let mut found = Found::Nothing;
    for dir in candidates(uid, environment) {
        let path = dir.join(&name);
        match look(&dir, &path, uid) {
            Ok(()) if is_short_enough(&path) => return Found::Socket(path),
            Err(PlaceError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                found = Found::Hidden;
            }
            _ => {}
        }
    }
    found
}

/// Whether something lies at `path` in a safe directory.
fn look(dir: &Path, path: &Path, uid: u32) -> Result<(), PlaceError> {
    check_dir(dir, uid)?;
    let found = fs::symlink_metadata(path);
    found.map(drop).map_err(|source| PlaceError::Io { path: path.to_owned(), source })
}

fn is_short_enough(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[test]
    fn root_and_users_have_their_own_places() {
        let environment = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| OsString::from("/r"));
        let texts = |uid| -> Vec<String> {
            let places = candidates(uid, &environment);
            places.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(texts(0), ["/run/dfs", "/tmp/dfs-0"]);
        assert_eq!(texts(7), ["/r/dfs", "/run/user/7/dfs", "/tmp/dfs-7"]);
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("dfs");
        prepare_dir(&dir, own_uid()).unwrap();
        prepare_dir(&dir, own_uid()).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(prepare_dir(&dir, own_uid()), Err(PlaceError::Unsafe { .. })));
        assert!(matches!(check_dir(home.path(), own_uid() + 1), Err(PlaceError::Unsafe { .. })));
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let (real, link) = (home.path().join("real"), home.path().join("link"));
        prepare_dir(&real, own_uid()).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(prepare_dir(&link, own_uid()), Err(PlaceError::Unsafe { .. })));
    }

    #[test]
    fn a_directory_too_deep_for_a_socket_is_passed_over() {
        assert!(fits(Path::new("/run/user/4294967294/dfs")));
        assert!(!fits(Path::new(&format!("/{}", "x".repeat(100)))));
    }
}
