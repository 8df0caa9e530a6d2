//! Reading and writing open files, and sending what was written.
//!
//! Reads and writes go to the cache file and wait for nobody: the FUSE thread does them itself.
//! A commit takes the cache file's modification time as the file's: the local file system keeps
//! it through writes, cuts, stores to mappings and times that callers set.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dfs_proto::directory::{CommitAttr, Durability, FirstAttr, Fsync};
use dfs_proto::error::FsError;
use dfs_proto::lock::LockOwner;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::attr::mtime_of;
use super::node::{First, Node, Pending};
use super::removed;
use super::{Caller, Error, Vfs};
use crate::cache::CacheFile;
use crate::writeback::{Commit, Working};

/// An open file as one open(2) made it.
pub(crate) struct FileHandle {
    node: Arc<Node>,
    file: Arc<CacheFile>,
    /// Present if the handle may write; taken by the release.
    working: Mutex<Option<Working>>,
    /// A program has closed it. It may be open still: duplicated, inherited, or mapped.
    pub(super) was_closed: AtomicBool,
    /// A commit of what was stored since is on its way.
    pub(super) is_commit_due: AtomicBool,
    may_be_kept: bool,
    /// Who has locked ranges through it.
    owners: Mutex<Vec<LockOwner>>,
}

impl FileHandle {
    pub(super) fn reading(node: Arc<Node>, file: Arc<CacheFile>) -> FileHandle {
        FileHandle::new(node, file, None)
    }

    /// `may_be_kept` if a mapping through it goes by the daemon, and so keeps it open.
    pub(super) fn writing(node: Arc<Node>, working: Working, may_be_kept: bool) -> FileHandle {
        let handle = FileHandle::new(node, working.file().clone(), Some(working));
        FileHandle { may_be_kept, ..handle }
    }

    fn new(node: Arc<Node>, file: Arc<CacheFile>, working: Option<Working>) -> FileHandle {
        let (was_closed, is_commit_due) = (AtomicBool::new(false), AtomicBool::new(false));
        let (working, owners) = (Mutex::new(working), Mutex::default());
        let may_be_kept = false;
        FileHandle { node, file, working, was_closed, is_commit_due, owners, may_be_kept }
    }

    fn note_closed(&self) {
        if !self.was_closed.swap(true, Ordering::Relaxed)
            && self.may_be_kept
            && let Some(working) = self.working()
        {
            working.note_closed(true);
        }
    }

    pub(super) fn note_owner(&self, owner: LockOwner) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if !owners.contains(&owner) {
            owners.push(owner);
        }
    }

    pub(super) fn owners(&self) -> Vec<LockOwner> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(super) fn file(&self) -> &Arc<CacheFile> {
        &self.file
    }

    pub(super) fn working(&self) -> Option<Working> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take_working(&self) -> Option<Working> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteTo {
    Offset(u64),
    /// The end of the file as this client knows it, which the kernel may not.
    End,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

impl Vfs {
    pub(super) fn file_handle(&self, handle: u64) -> Result<Arc<FileHandle>, Error> {
        self.inner.files.get(handle).ok_or(Error::BadHandle)
    }

    /// Reads into `buffer`; fewer bytes than it holds only at the end of the file.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let handle = self.file_handle(handle)?;
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            match handle.file.read_at(&mut buffer[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::local("read the cache file")(error)),
            }
        }
        Ok(filled)
    }

    /// Writes all of `data`. `clears_set_id` if the writer is somebody unprivileged.
    ///
    /// # Errors
    /// `Shared`; `BadHandle`; `Local`.
    pub fn write(
        &self,
        handle: u64,
        to: WriteTo,
        data: &[u8],
        clears_set_id: bool,
    ) -> Result<(), Error> {
        let handle = self.file_handle(handle)?;
        let working = handle.working().ok_or(Error::BadHandle)?;
        let _hold = working.hold().ok_or(Error::Shared)?;
        if clears_set_id {
            self.note_set_id_cleared(&handle.node);
        }
        match to {
            WriteTo::Offset(offset) => working.write_at(offset, data)?,
            WriteTo::End => working.append(data)?,
        }
        Ok(())
    }

    /// Sets the length of a file open for writing.
    pub(super) fn set_len(&self, handle: u64, size: u64, clears_set_id: bool) -> Result<(), Error> {
        let handle = self.file_handle(handle)?;
        let working = handle.working().ok_or(Error::BadHandle)?;
        let _hold = working.hold().ok_or(Error::Shared)?;
        if clears_set_id {
            self.note_set_id_cleared(&handle.node);
        }
        Ok(working.set_len(size)?)
    }

    /// The next data or hole at or after `offset`.
    ///
    /// # Errors
    /// `Local` with ENXIO if there is none, as lseek(2) says.
    pub fn seek(&self, handle: u64, offset: i64, seek: Seek) -> Result<i64, Error> {
        let handle = self.file_handle(handle)?;
        let whence = match seek {
            Seek::Data => Whence::SeekData,
            Seek::Hole => Whence::SeekHole,
        };
        // The cache file's own offset moves, which nobody uses: all reads and writes name theirs.
        lseek(handle.file.file(), offset, whence)
            .map_err(|errno: Errno| Error::local("search the cache file")(errno.into()))
    }

    /// A program closes a handle. Whether that has nothing to send; then it needs no thread but its
    /// own.
    pub fn closes_clean(&self, handle: u64) -> bool {
        let Ok(handle) = self.file_handle(handle) else { return true };
        handle.note_closed();
        match handle.working() {
            Some(working) => !working.is_dirty(),
            None => true,
        }
    }

    /// What close(2) waits for: everything written through any handle is committed.
    ///
    /// # Errors
    /// Why it could not be. What was written stays in the journal, and is tried again.
    pub async fn flush(&self, handle: u64) -> Result<(), Error> {
        self.commit(handle, Durability::Process).await
    }

    /// What fsync(2) waits for: the file survives the loss of power.
    pub async fn fsync(&self, caller: &Caller, handle: u64) -> Result<(), Error> {
        let open = self.file_handle(handle)?;
        if let Some(working) = self.working(&open.node)
            && self.commit_working(&open.node, &working, Durability::Stable).await? != Done::Nothing
        {
            return Ok(());
        }
        match self.ask(caller, &Fsync { fid: open.node.fid }).await {
            // A file without a name has nothing that could outlive the power.
            Err(Error::Fs(FsError::Stale)) => Ok(()),
            other => other,
        }
    }

    /// Commits what was written, if anything was.
    pub(super) async fn commit(&self, handle: u64, durability: Durability) -> Result<(), Error> {
        let handle = self.file_handle(handle)?;
        let Some(working) = handle.working() else { return Ok(()) };
        self.commit_working(&handle.node, &working, durability).await?;
        Ok(())
    }

    /// Ends a handle. What could not be committed is in the outbox: whoever cared has asked
    /// `flush` before.
    pub async fn release(&self, handle: u64) -> Result<(), Error> {
        let handle = self.inner.files.remove(handle).ok_or(Error::BadHandle)?;
        self.begin_to_release_ranges(&handle);
        let uncount = Uncount(&handle.node);
        if let Some(working) = handle.take_working() {
            if handle.may_be_kept && handle.was_closed.load(Ordering::Relaxed) {
                working.note_closed(false);
            }
            let committed = self.commit_working(&handle.node, &working, Durability::Process).await;
            if let Err(error) = committed {
                let path = self.inner.inodes.path(handle.node.nodeid);
                tracing::warn!(path, fid = %handle.node.fid, %error, "a closed file is not stored");
            }
            self.release_working(&handle.node, working).await;
        }
        self.release_ranges(&handle).await;
        drop(uncount);
        Ok(())
    }

    pub(super) async fn commit_working(
        &self,
        node: &Node,
        working: &Working,
        durability: Durability,
    ) -> Result<Done, Error> {
        if !working.is_dirty() {
            return Ok(Done::Nothing);
        }
        let metadata = working.file().file().metadata();
        let mtime = mtime_of(&metadata.map_err(Error::local("look up a cache file's times"))?);
        let pending = node.state().open().map(|open| open.pending).unwrap_or_default();
        let Pending { atime, clear_set_id, first } = pending;
        let attr = CommitAttr { mtime, atime, clear_set_id, first: first_attr(first, working) };
        let commit = self.writeback().commit(working, attr, durability).await?;
        let mut state = node.state();
        if matches!(commit, Commit::Vanished) {
            removed::settle(&mut state);
        } else if let Some(open) = state.open_mut() {
            if open.pending.atime == atime {
                open.pending.atime = None;
            }
            open.pending.clear_set_id &= !clear_set_id;
            if open.pending.first == first {
                open.pending.first = First::default();
            }
        }
        Ok(match commit {
            Commit::Stored { version, attr } => {
                state.committed(version, attr.as_deref());
                Done::Stored
            }
            Commit::Unchanged => Done::Nothing,
            Commit::Vanished => Done::Vanished,
        })
    }
}

fn first_attr(first: First, working: &Working) -> Option<Box<FirstAttr>> {
    let First { mode, uid, gid } = first;
    let by = working.caller().cloned();
    (!first.is_empty()).then(|| Box::new(FirstAttr { by, mode, uid, gid }))
}

/// What a commit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Nothing,
    Stored,
    /// The inode is gone, and its content with it.
    Vanished,
}

/// Takes a handle off its node when its release ends, or is dropped.
struct Uncount<'a>(&'a Node);

impl Drop for Uncount<'_> {
    fn drop(&mut self) {
        self.0.state().remove_handle();
    }
}
