//! One file of the cache, open.
//!
//! Everybody who uses an entry holds its one `CacheFile`: as long as somebody does, the entry is
//! not evicted, and an entry that was dropped from the index meanwhile stays readable. A file that
//! was never recorded disappears with its last holder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::FileId;
use dfs_proto::manifest::{Extent, Manifest};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::record::EntryId;
use crate::sys;

/// An open file of the cache.
#[derive(Debug)]
pub struct CacheFile {
    id: EntryId,
    fid: FileId,
    path: PathBuf,
    /// Open for reading only: the kernel can tell so whether anybody else may write.
    file: File,
    /// Open for writing while we do.
    writing: Mutex<Option<Arc<File>>>,
    is_recorded: AtomicBool,
}

/// Tells whether a file was touched: changes with every write, and with a first store through a
/// mapping. The change time is there because a modification time can be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl CacheFile {
    pub(super) fn create(id: EntryId, fid: FileId, path: PathBuf) -> io::Result<CacheFile> {
        let writing = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let (file, writing) = (File::open(&path)?, Mutex::new(Some(Arc::new(writing))));
        Ok(CacheFile { id, fid, path, file, writing, is_recorded: AtomicBool::new(false) })
    }

    pub(super) fn open(id: EntryId, fid: FileId, path: PathBuf) -> io::Result<CacheFile> {
        let (file, writing) = (File::open(&path)?, Mutex::default());
        Ok(CacheFile { id, fid, path, file, writing, is_recorded: AtomicBool::new(true) })
    }

    pub(super) fn set_recorded(&self) {
        self.is_recorded.store(true, Ordering::Release);
    }

    pub fn id(&self) -> EntryId {
        self.id
    }

    pub fn fid(&self) -> FileId {
        self.fid
    }

    /// Where the file lies, as long as it is in the cache.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, for writing; opened if it is not. Also one that has left the cache.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn writer(&self) -> io::Result<Arc<File>> {
        let mut writing = self.writing();
        if let Some(writer) = writing.as_ref() {
            return Ok(Arc::clone(writer));
        }
        // By its number: it may have no name any more.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let writer = Arc::new(OpenOptions::new().write(true).open(path)?);
        *writing = Some(Arc::clone(&writer));
        Ok(writer)
    }

    /// Nobody here writes to the file for now.
    pub fn end_writing(&self) {
        *self.writing() = None;
    }

    /// Whether somebody may write to the file whom we do not see: through a mapping that outlives
    /// the handle it was made through. To be asked when no handle that may write is open, and
    /// none is being opened.
    ///
    /// # Errors
    /// The file system knows no leases.
    pub fn is_mapped_for_writing(&self) -> io::Result<bool> {
        let mut writing = self.writing();
        let is_ours = writing.take().is_some_and(|writer| Arc::into_inner(writer).is_none());
        // Held until the answer, so that nobody here opens it for writing meanwhile.
        Ok(is_ours || sys::has_writers(&self.file)?)
    }

    fn writing(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every change of the content moves the stamp, also stores to mappings that were
    /// stored to before. Blocks until what was changed is on the disk.
    ///
    /// # Errors
    /// Those of writing.
    pub fn arm_stamp(&self) -> io::Result<()> {
        sys::write_back(&self.file)
    }

    /// # Errors
    /// Those of pread(2).
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// # Errors
    /// Those of fstat(2).
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Space on disk. Units: bytes.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn disk_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// # Errors
    /// Those of fstat(2).
    pub fn stamp(&self) -> io::Result<Stamp> {
        let metadata = self.file.metadata()?;
        let mtime = (metadata.mtime(), metadata.mtime_nsec());
        let ctime = (metadata.ctime(), metadata.ctime_nsec());
        Ok(Stamp { size: metadata.len(), mtime, ctime })
    }

    /// Whether the file holds exactly this content. Reads all of it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn holds(&self, manifest: &Manifest) -> io::Result<bool> {
        if self.size()? != manifest.size() {
            return Ok(false);
        }
        let mut offset = 0;
        let mut buffer = Vec::new();
        for extent in &manifest.extents {
            let is_right = match *extent {
                Extent::Chunk { hash, length } => {
                    buffer.resize(length as usize, 0);
                    self.file.read_exact_at(&mut buffer, offset)?;
                    ChunkHash::of(&buffer) == hash
                }
                Extent::Hole { length } => is_zero(&self.file, offset, offset + length)?,
            };
            if !is_right {
                return Ok(false);
            }
            offset += extent.length();
        }
        Ok(true)
    }
}

impl AsFd for CacheFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        if !self.is_recorded.load(Ordering::Acquire) {
            // What stays is found and removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The next stretch of data at or after `offset`, as (start, end); `None` if there is only a hole
/// up to the end. Source: lseek(2), SEEK_DATA.
///
/// # Errors
/// Those of lseek(2).
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
    let at = i64::try_from(offset).map_err(io::Error::other)?;
    let start = match lseek(file, at, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        start => start?,
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start.unsigned_abs(), end.unsigned_abs())))
}

/// Piece in which zeros are looked at. Units: bytes.
const ZERO_BYTES: usize = 64 << 10;

fn is_zero(file: &File, start: u64, end: u64) -> io::Result<bool> {
    let mut buffer = vec![0; ZERO_BYTES];
    let mut offset = start;
    while let Some((data, data_end)) = next_data(file, offset)?.filter(|(data, _)| *data < end) {
        offset = data;
        while offset < data_end.min(end) {
            let length = (data_end.min(end) - offset).min(ZERO_BYTES as u64);
            let piece = &mut buffer[..usize::try_from(length).unwrap_or(ZERO_BYTES)];
            file.read_exact_at(piece, offset)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += length;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::id::{InodeNo, VolumeId};
    use dfs_proto::version::Epoch;

    fn file(dir: &Path) -> CacheFile {
        let fid = FileId::new(VolumeId(1), InodeNo(2), Epoch(1));
        CacheFile::create(EntryId(1), fid, dir.join("1")).unwrap()
    }

    #[test]
    fn content_is_told_from_damaged_content_also_in_holes() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        file.writer().unwrap().write_all_at(b"head", 0).unwrap();
        file.writer().unwrap().set_len(4 + (1 << 20)).unwrap();
        let head = Extent::Chunk { hash: ChunkHash::of(b"head"), length: 4 };
        let manifest = Manifest { extents: vec![head, Extent::Hole { length: 1 << 20 }] };
        assert!(file.holds(&manifest).unwrap());
        file.writer().unwrap().write_all_at(b"x", 500_000).unwrap();
        assert!(!file.holds(&manifest).unwrap());
        file.writer().unwrap().write_all_at(b"\0", 500_000).unwrap();
        assert!(file.holds(&manifest).unwrap());
        file.writer().unwrap().write_all_at(b"H", 0).unwrap();
        assert!(!file.holds(&manifest).unwrap());
        file.writer().unwrap().set_len(4).unwrap();
        assert!(!file.holds(&manifest).unwrap());
    }

    #[test]
    fn our_own_writing_is_not_taken_for_somebody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        file.writer().unwrap().write_all_at(b"ours", 0).unwrap();
        assert!(!file.is_mapped_for_writing().unwrap());
        let ours = file.writer().unwrap();
        assert!(file.is_mapped_for_writing().unwrap(), "a write of ours is under way");
        drop(ours);
        assert!(!file.is_mapped_for_writing().unwrap());
        std::fs::remove_file(file.path()).unwrap();
        file.writer().unwrap().write_all_at(b"more", 4).unwrap();
        assert_eq!(file.size().unwrap(), 8);
        file.end_writing();
        let theirs = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", file.file().as_raw_fd()));
        assert!(file.is_mapped_for_writing().unwrap());
        drop(theirs);
        assert!(!file.is_mapped_for_writing().unwrap());
    }

    #[test]
    fn a_file_that_was_never_recorded_goes_with_its_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let unrecorded = file(dir.path());
        let path = unrecorded.path().to_owned();
        assert!(path.exists());
        drop(unrecorded);
        assert!(!path.exists());
    }
}
