//! Small files that must survive a power cut: keys, certificates, configuration, marks.
//!
//! Promises: after [`write`] or [`create_new`] returned, the file has all of the new bytes, also
//! after power loss; whenever the machine stops before that, it has all of the old ones or does not
//! exist. Never a part. Used by everybody who keeps such a file; chunks and the metadata engine
//! have their own ways. Writes of one process go one after another: they are rare, and so a
//! temporary file has one name and a crash leaves at most one behind, which the next write reuses.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Who may read a file. Units: permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner only: keys, secrets.
    Private,
    /// Everybody: certificates.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Access::Private => 0o600,
            Access::Public => 0o644,
        }
    }
}

/// One writer at a time, so that two never share a temporary file.
static WRITER: Mutex<()> = Mutex::new(());

/// Makes `bytes` the content of `path`, in place of what was there.
///
/// # Errors
/// Whatever the file system reports. The file then has its old content, or, if only the last fsync
/// of the directory failed, possibly the new one: writing again is always right.
pub fn write(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    let temporary = write_temporary(path, bytes, access)?;
    failpoint::reached()?;
    fs::rename(&temporary, path)?;
    failpoint::reached()?;
    sync_dir(parent(path))
}

/// As [`write`], but never replaces a file.
///
/// # Errors
/// `AlreadyExists` if there is one, which is left as it is; else as [`write`].
pub fn create_new(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    let temporary = write_temporary(path, bytes, access)?;
    failpoint::reached()?;
    // A hard link, unlike rename, fails if the name exists: there is no moment between a check and
    // the act.
    let linked = fs::hard_link(&temporary, path);
    failpoint::reached()?;
    fs::remove_file(&temporary)?;
    linked?;
    sync_dir(parent(path))
}

/// Gives a file another name in the same directory, in place of what has that name.
///
/// # Errors
/// Whatever the file system reports.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    failpoint::reached()?;
    fs::rename(from, to)?;
    failpoint::reached()?;
    sync_dir(parent(to))
}

/// Makes a directory that only its owner may enter, and its missing parents. One that exists is
/// left as it is.
///
/// # Errors
/// Whatever the file system reports.
pub fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    sync_dir(parent(path))
}

/// The content of a small file; `None` if it does not exist.
///
/// # Errors
/// `FileTooLarge` if it has more than `limit` bytes; whatever the file system reports.
pub fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(Some(bytes))
}

fn write_temporary(path: &Path, bytes: &[u8], access: Access) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(".tmp");
    let temporary = path.with_file_name(temporary_name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // `create_new` never opens what somebody else put there, a symbolic link for example.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(&temporary)?;
    failpoint::reached()?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(temporary)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(test))]
mod failpoint {
    pub(super) fn reached() -> std::io::Result<()> {
        Ok(())
    }
}

/// Simulated crashes: after so many steps of this thread every write fails, leaving what it left.
#[cfg(test)]
pub(crate) mod failpoint {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets `steps` more steps pass; `None` lets all pass.
    pub(crate) fn crash_after(steps: Option<u32>) {
        STEPS_LEFT.set(steps);
    }

    pub(super) fn reached() -> io::Result<()> {
        match STEPS_LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("simulated crash")),
            Some(steps) => {
                STEPS_LEFT.set(Some(steps - 1));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_file_is_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b"secret", Access::Private).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path, 64).unwrap().unwrap(), b"secret");
    }

    #[test]
    fn create_new_leaves_an_existing_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        create_new(&path, b"first", Access::Public).unwrap();
        let error = create_new(&path, b"second", Access::Public).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(read(&path, 64).unwrap().unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_crash_at_any_step_leaves_old_or_new_content_and_the_next_write_succeeds() {
        for steps in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("mark");
            write(&path, b"old", Access::Public).unwrap();
            failpoint::crash_after(Some(steps));
            let crashed = write(&path, b"newer", Access::Public).is_err();
            failpoint::crash_after(None);
            assert_eq!(crashed, steps < 3, "step {steps}");
            let content = read(&path, 64).unwrap().unwrap();
            assert!(content == b"old" || content == b"newer", "step {steps}: {content:?}");
            write(&path, b"newest", Access::Public).unwrap();
            assert_eq!(read(&path, 64).unwrap().unwrap(), b"newest");
        }
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_temporary_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, b"precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(".key.tmp")).unwrap();
        write(&dir.path().join("key"), b"secret", Access::Private).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_file_over_the_limit_is_an_error_and_a_missing_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        assert!(read(&path, 3).unwrap().is_none());
        write(&path, b"1234", Access::Public).unwrap();
        assert_eq!(read(&path, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
