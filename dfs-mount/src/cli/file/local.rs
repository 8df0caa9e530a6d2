//! Local files that come into being whole or not at all.
//!
//! Content goes to a temporary file in the directory of its destination and gets its name when it
//! is complete; whatever ends the command before leaves nothing under that name. Nothing here
//! follows a symbolic link at the destination.

use std::ffi::OsString;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dfs_proto::attr::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// What happens to a name that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Refused,
    Replaced,
}

/// A file that has no name yet. Dropped unfinished, it is removed.
#[derive(Debug)]
pub struct Partial {
    file: File,
    temporary: PathBuf,
    destination: PathBuf,
    existing: Existing,
    is_named: bool,
}

impl Partial {
    /// # Errors
    /// `AlreadyExists` if the name exists and is not to be replaced; what making the temporary file
    /// reports.
    pub fn begin(destination: &Path, existing: Existing) -> io::Result<Partial> {
        check(destination, existing)?;
        let temporary = temporary_beside(destination)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        let destination = destination.to_owned();
        Ok(Partial { file, temporary, destination, existing, is_named: false })
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Gives the file its length (what was not written is a hole), mode, time and name.
    ///
    /// # Errors
    /// `AlreadyExists` if somebody made the name meanwhile and it is not to be replaced.
    pub fn finish(mut self, size: u64, mode: u32, modified: Timestamp) -> io::Result<()> {
        self.file.set_len(size)?;
        self.file.set_permissions(Permissions::from_mode(mode & 0o777))?;
        if let Some(modified) = system_time(modified) {
            self.file.set_times(FileTimes::new().set_modified(modified))?;
        }
        give_name(&self.temporary, &self.destination, self.existing)?;
        self.is_named = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_named {
            return;
        }
        if let Err(error) = fs::remove_file(&self.temporary) {
            tracing::debug!(path = %self.temporary.display(), %error, "temporary file stays");
        }
    }
}

/// Makes a symbolic link. Its target is text, whatever it says.
///
/// # Errors
/// As [`Partial::begin`].
pub fn make_link(destination: &Path, target: &Path, existing: Existing) -> io::Result<()> {
    check(destination, existing)?;
    let temporary = temporary_beside(destination)?;
    symlink(target, &temporary)?;
    give_name(&temporary, destination, existing).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Makes a directory that only we may enter until it is complete; takes an existing one only if it
/// may be replaced, and never a link to one.
///
/// # Errors
/// `AlreadyExists`, `NotADirectory`.
pub fn make_directory(path: &Path, existing: Existing) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path)?;
            match (found.is_dir(), existing) {
                (true, Existing::Replaced) => Ok(()),
                (true, Existing::Refused) => Err(error),
                (false, _) => Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        made => made,
    }
}

fn check(destination: &Path, existing: Existing) -> io::Result<()> {
    match fs::symlink_metadata(destination) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) if existing == Existing::Refused => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn temporary_beside(destination: &Path) -> io::Result<PathBuf> {
    let random = getrandom::u64().map_err(io::Error::other)?;
    Ok(destination.with_file_name(OsString::from(format!(".dfs-{random:016x}.part"))))
}

fn give_name(temporary: &Path, destination: &Path, existing: Existing) -> io::Result<()> {
    if existing == Existing::Replaced {
        return fs::rename(temporary, destination);
    }
    match renameat2(AT_FDCWD, temporary, AT_FDCWD, destination, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system knows the flag; a hard link never replaces either.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            fs::hard_link(temporary, destination)?;
            fs::remove_file(temporary)
        }
        renamed => Ok(renamed?),
    }
}

/// `None` for times that the system cannot hold.
fn system_time(time: Timestamp) -> Option<SystemTime> {
    let since = Duration::from_secs(time.secs.unsigned_abs());
    let secs = match time.secs >= 0 {
        true => SystemTime::UNIX_EPOCH.checked_add(since),
        false => SystemTime::UNIX_EPOCH.checked_sub(since),
    };
    secs?.checked_add(Duration::from_nanos(u64::from(time.nanos)))
}

/// The last name of a path, if it has one that is no `..`.
pub fn last_name(path: &Path) -> Option<&[u8]> {
    path.file_name().map(|name| name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_with_mode_time_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let partial = Partial::begin(&path, Existing::Refused).unwrap();
        partial.write_at(b"end", 5).unwrap();
        assert!(!path.exists());
        partial.finish(10, 0o6644, Timestamp::new(86_400, 5)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\0\0\0\0\0end\0\0");
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime(), found.mtime_nsec()), (0o644, 86_400, 5));
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_file_that_was_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::begin(&dir.path().join("a"), Existing::Refused).unwrap();
        partial.write_at(b"half", 0).unwrap();
        drop(partial);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn an_existing_name_is_refused_unless_it_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        let refused = Partial::begin(&path, Existing::Refused).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        let partial = Partial::begin(&path, Existing::Replaced).unwrap();
        partial.write_at(b"new", 0).unwrap();
        partial.finish(3, 0o600, Timestamp::default()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_name_that_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let partial = Partial::begin(&path, Existing::Refused).unwrap();
        fs::write(&path, "theirs").unwrap();
        let error = partial.finish(0, 0o600, Timestamp::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_link_at_the_destination_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, outside) = (dir.path().join("a"), dir.path().join("outside"));
        fs::write(&outside, "precious").unwrap();
        symlink(&outside, &path).unwrap();
        assert!(Partial::begin(&path, Existing::Refused).is_err());
        let partial = Partial::begin(&path, Existing::Replaced).unwrap();
        partial.finish(0, 0o600, Timestamp::default()).unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn a_directory_is_never_entered_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        make_directory(&real, Existing::Refused).unwrap();
        symlink(&real, &link).unwrap();
        let error = make_directory(&link, Existing::Replaced).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        let error = make_directory(&real, Existing::Refused).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        make_directory(&real, Existing::Replaced).unwrap();
    }

    #[test]
    fn links_are_made_as_links_whatever_they_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        make_link(&path, Path::new("/etc/passwd"), Existing::Refused).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("/etc/passwd"));
        assert!(make_link(&path, Path::new("x"), Existing::Refused).is_err());
        make_link(&path, Path::new("x"), Existing::Replaced).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("x"));
        assert_eq!(names(dir.path()), ["l"]);
    }

    #[test]
    fn a_file_never_replaces_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let error = Partial::begin(dir.path(), Existing::Replaced).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn times_before_1970_are_kept() {
        let time = system_time(Timestamp::new(-2, 500_000_000)).unwrap();
        let before = SystemTime::UNIX_EPOCH.duration_since(time).unwrap();
        assert_eq!(before, Duration::from_millis(1500));
    }
}
