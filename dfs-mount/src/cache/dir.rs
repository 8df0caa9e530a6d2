//! The cache directory: who may use it, and what lies in it.
//!
//! Promises that one client at a time uses a directory (flock; the holder's pid is in the lock
//! file), that it belongs to one cell and volume for ever, that nobody else reads it, and that it
//! does not lie on a DFS mount, where filling the cache would need the cache. Backup programs are
//! told to leave it out (CACHEDIR.TAG).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dfs_proto::id::SessionId;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::CacheError;
use super::record::EntryId;
use crate::sys;

/// What a cache is a cache of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belongs {
    /// The fingerprint of the cell's CA.
    pub cell: String,
    pub volume: String,
}

/// A cache directory in use. Dropping it lets others use it.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    _lock: Flock<File>,
}

const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
                   # This directory is a cache of DFS, except for data in its outbox.\n";
const FORMAT: &str = "dfs cache 1\n";
const FUSE_MAGIC: i64 = 0x6573_5546;

impl CacheDir {
    /// Takes a directory into use, made if missing.
    ///
    /// # Errors
    /// `InUse`, `OtherOwner`, `OnDfs`, `OtherFormat`, `Io`.
    pub fn claim(path: &Path, belongs: &Belongs) -> Result<CacheDir, CacheError> {
        let failed = |source| CacheError::io("cannot use cache directory", path, source);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        if is_on_dfs(path).map_err(failed)? {
            return Err(CacheError::OnDfs(path.into()));
        }
        let lock = lock(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
        let dir = CacheDir { path: path.into(), _lock: lock };
        if mark(path, "format", FORMAT).map_err(failed)? != FORMAT {
            return Err(CacheError::OtherFormat(path.into()));
        }
        let ours = format!("cell {}\nvolume {}\n", belongs.cell, belongs.volume);
        let theirs = mark(path, "belongs-to", &ours).map_err(failed)?;
        if theirs != ours {
            let owner = theirs.trim().replace('\n', ", ");
            return Err(CacheError::OtherOwner { path: path.into(), owner });
        }
        mark(path, "CACHEDIR.TAG", TAG).map_err(failed)?;
        dir.make_shelves().map_err(failed)?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file system tells of stores to a mapping, and of the mapping's end: by the
    /// times of the file, and by leases. One in memory does not, for it never writes pages back.
    pub fn tells_of_mappings(&self) -> bool {
        let kind = statfs(&self.path).map(|found| found.filesystem_type());
        let is_in_memory = kind.is_ok_and(|kind| kind == TMPFS_MAGIC);
        // Any file will do. The answer is about the lock file; what counts is that there is one.
        let knows_leases =
            File::open(self.path.join("lock")).and_then(|file| sys::has_writers(&file));
        !is_in_memory && knows_leases.is_ok()
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("index.log")
    }

    pub fn file(&self, id: EntryId) -> PathBuf {
        self.path.join(format!("files/{:02x}/{id}", id.0 & 0xff))
    }

    /// Files of entries that `is_known` does not know: left by a kill between making a file and
    /// recording it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn strays(&self, is_known: impl Fn(EntryId) -> bool) -> io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for shelf in fs::read_dir(self.path.join("files"))? {
            for file in fs::read_dir(shelf?.path())? {
                let file = file?;
                let name = file.file_name();
                let id = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
                if !id.is_some_and(|id| is_known(EntryId(id))) {
                    strays.push(file.path());
                }
            }
        }
        Ok(strays)
    }

    /// Notes the session that uses the directory, and answers with the one that did before.
    ///
    /// A note that is lost costs the wait for a lease, so failures are not reported.
    pub fn replace_session(&self, session: SessionId) -> Option<SessionId> {
        let path = self.path.join("session");
        let before = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        if let Err(error) = fs::write(&path, format!("{session}\n")) {
            tracing::debug!(%error, "session is not noted");
        }
        before
    }

    /// Puts a file aside where a person may look at it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn put_aside(&self, file: &Path) -> io::Result<()> {
        let aside = self.path.join("lost");
        DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        fs::rename(file, aside.join(file.file_name().unwrap_or_default()))
    }

    fn make_shelves(&self) -> io::Result<()> {
        if self.path.join("files/ff").is_dir() {
            return Ok(());
        }
        (0..=0xff_u64).try_for_each(|shelf| {
            let path = self.path.join(format!("files/{shelf:02x}"));
            DirBuilder::new().recursive(true).mode(0o700).create(path)
        })
    }
}

fn lock(path: &Path) -> Result<Flock<File>, CacheError> {
    let failed = |source| CacheError::io("cannot lock cache directory", path, source);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join("lock"))
        .map_err(failed)?;
    let mut holder = String::new();
    // What is in the file matters only for the message.
    let _ = file.read_to_string(&mut holder);
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::Error::EWOULDBLOCK)) => {
            let holder = holder.trim().to_owned();
            return Err(CacheError::InUse { path: path.into(), holder });
        }
        Err((_, errno)) => return Err(failed(errno.into())),
    };
    lock.set_len(0).map_err(failed)?;
    let pid = format!("{}\n", std::process::id());
    std::os::unix::fs::FileExt::write_all_at(&*lock, pid.as_bytes(), 0).map_err(failed)?;
    Ok(lock)
}

/// The content of a mark; written if it is not there.
fn mark(dir: &Path, name: &str, content: &str) -> io::Result<String> {
    let path = dir.join(name);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()?;
    Ok(content.to_owned())
}

fn is_on_dfs(path: &Path) -> io::Result<bool> {
    if statfs(path)?.filesystem_type().0 != FUSE_MAGIC {
        return Ok(false);
    }
    let device = fs::metadata(path)?.dev();
    let id = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| is_dfs_mount(line, &id)))
}

/// Whether a line of mountinfo is about the device `id` and a DFS mount. Source: proc(5).
fn is_dfs_mount(line: &str, id: &str) -> bool {
    let is_device = line.split(' ').nth(2) == Some(id);
    let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
    is_device && kind == Some("fuse.dfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belongs(volume: &str) -> Belongs {
        Belongs { cell: "abc".into(), volume: volume.into() }
    }

    #[test]
    fn a_second_client_is_refused_and_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = CacheDir::claim(dir.path(), &belongs("main")).unwrap();
        let error = CacheDir::claim(dir.path(), &belongs("main")).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(held);
        CacheDir::claim(dir.path(), &belongs("main")).unwrap();
    }

    #[test]
    fn a_cache_of_another_volume_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        drop(CacheDir::claim(dir.path(), &belongs("main")).unwrap());
        let error = CacheDir::claim(dir.path(), &belongs("other")).unwrap_err();
        assert!(matches!(error, CacheError::OtherOwner { .. }));
        assert!(error.to_string().contains("volume main"), "{error}");
    }

    #[test]
    fn another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "dfs cache 2\n").unwrap();
        let error = CacheDir::claim(dir.path(), &belongs("main")).unwrap_err();
        assert!(matches!(error, CacheError::OtherFormat(_)));
    }

    #[test]
    fn nobody_else_can_read_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let _held = CacheDir::claim(dir.path(), &belongs("main")).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_system_in_memory_does_not_tell_of_mappings() {
        let [disk, memory] = [std::env::temp_dir(), "/dev/shm".into()];
        let disk = tempfile::tempdir_in(disk).unwrap();
        assert!(CacheDir::claim(disk.path(), &belongs("main")).unwrap().tells_of_mappings());
        let memory = tempfile::tempdir_in(memory).unwrap();
        assert!(!CacheDir::claim(memory.path(), &belongs("main")).unwrap().tells_of_mappings());
    }

    #[test]
    fn a_dfs_mount_is_known_by_its_line_in_mountinfo() {
        let line = "36 25 0:52 / /mnt rw,nosuid - fuse.dfs dfs://h:1/main rw,user_id=0";
        assert!(is_dfs_mount(line, "0:52"));
        assert!(!is_dfs_mount(line, "0:5"));
        assert!(!is_dfs_mount(&line.replace("fuse.dfs", "fuse.sshfs"), "0:52"));
    }
}
