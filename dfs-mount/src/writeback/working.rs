//! Working copies: files that are being changed here, or whose change is not sent yet.
//!
//! One for each file; every handle of this client that is open on the file shares it. Whether it
//! is dirty is a comparison of marks: a counter of changes made through us, and the file's stamp
//! for those made past us (mappings). A commit takes its mark *before* it reads the file; a change
//! counts *after* it was written: so a change that a commit may have missed always leaves the copy
//! dirty.
//!
//! A store to a mapping moves the stamp only if it is the first to its page since that was brought
//! to the disk. So once a copy was stored to past us, each commit brings its pages there before it
//! takes its mark (`Copy::mark_to_commit`). That costs disk writes, so it is not done for copies
//! that are changed by write(2) only: those are known by a stamp that is always our own.

use std::fs::FileTimes;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{CommitAttr, Durability, Placement, WriteGrant};
use dfs_proto::id::{FileId, OpId};
use dfs_proto::manifest::Manifest;
use dfs_proto::version::DataVersion;
use tokio::sync::Notify;

use crate::cache::record::{Closed, Content, EntryId, Origin};
use crate::cache::{Allocate, Cache, CacheError, CacheFile, Stamp};
use crate::session::ops::OpGuard;

use super::share::Asked;

/// A file that is being changed here. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Working {
    pub(super) copy: Arc<Copy>,
}

/// Keeps the write lock from being given away.
#[derive(Debug)]
pub struct Hold<'a> {
    _is_ours: RwLockReadGuard<'a, bool>,
}

#[derive(Debug)]
pub(super) struct Copy {
    pub file: Arc<CacheFile>,
    pub cache: Cache,
    pub origin: Origin,
    changes: AtomicU64,
    stores: Mutex<Stores>,
    /// A reason to look whether mappings that outlive their handles are still there.
    pub look: Notify,
    /// Held while the end of the file is looked up and moved.
    end: Mutex<()>,
    /// Whether we have the write lock. Read while a change is made, written to let it go.
    is_ours: RwLock<bool>,
    facts: Mutex<Facts>,
    /// Held by whoever commits, and by opens and releases that must not come between.
    pub right: tokio::sync::Mutex<Right>,
}

/// What is known of stores past us.
#[derive(Clone, Copy, Debug)]
enum Stores {
    /// No handle could be mapped without our knowing.
    None,
    /// There may be some; the stamp was this after our last change.
    NotSeen(Option<Stamp>),
    Seen,
}

/// What handles and commits both look at.
#[derive(Debug)]
pub(super) struct Facts {
    pub base: Content,
    /// Made here, and never committed.
    pub is_new: bool,
    /// Handles that may write, and one more while mappings outlive their handles.
    pub writer_count: u32,
    pub is_mapped: bool,
    /// The mark that `base` has.
    pub committed: Mark,
    pub standing: Standing,
    /// Its lock was let go at some time while it was open.
    pub is_shared: bool,
    /// Handles that a program has closed and the kernel keeps, served by the daemon.
    pub closed_count: u32,
    /// A newer version was to be brought in, and only some of it was: nobody may rely on the
    /// content until that is done.
    pub is_torn: bool,
}

/// How a copy stands with the server.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// Nothing is owed, or whoever has it open will see to it.
    Sound,
    /// Closed, and the server does not have it.
    Unsent(Unsent),
    /// Another change came first.
    Conflict(FsError),
    /// The file is gone, and the change with it.
    Vanished,
}

#[derive(Clone, Debug)]
pub(super) struct Unsent {
    pub why: String,
    /// When it was closed.
    pub since: Timestamp,
    /// What was closed: only this is sent later, not what a writer is in the middle of.
    pub mark: Mark,
    pub attr: CommitAttr,
    pub durability: Durability,
    /// On `Clock::boottime`.
    pub next_try: Duration,
    pub delay: Duration,
}

/// A state of a working copy's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    changes: u64,
    stamp: Option<Stamp>,
}

impl Mark {
    /// The mark of content that the file does not have.
    pub const NEVER: Mark = Mark { changes: u64::MAX, stamp: None };

    pub fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }
}

/// What it takes to commit, used by one at a time.
#[derive(Debug, Default)]
pub(super) struct Right {
    /// Absent until asked for again: after a restart.
    pub grant: Option<WriteGrant>,
    pub placement: Option<Placement>,
    /// Set before anything final is sent, and cleared when its outcome is known: whoever commits
    /// next settles it first.
    pub pending: Option<Pending>,
}

/// A commit that was sent, or was about to be.
#[derive(Debug)]
pub(super) struct Pending {
    pub op: OpId,
    /// Absent if an earlier run of the client sent it.
    pub guard: Option<OpGuard>,
    pub manifest: Arc<Manifest>,
    pub mark: Mark,
}

impl Copy {
    pub fn new(cache: Cache, file: Arc<CacheFile>, origin: Origin, base: Content) -> Copy {
        let mark = Mark { changes: 0, stamp: file.stamp().ok() };
        let facts = Facts {
            base,
            is_new: false,
            writer_count: 0,
            is_mapped: false,
            committed: mark,
            standing: Standing::Sound,
            is_shared: false,
            closed_count: 0,
            is_torn: false,
        };
        Copy {
            file,
            cache,
            origin,
            changes: AtomicU64::new(0),
            stores: Mutex::new(Stores::None),
            look: Notify::new(),
            end: Mutex::default(),
            is_ours: RwLock::new(true),
            facts: Mutex::new(facts),
            right: tokio::sync::Mutex::default(),
        }
    }

    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fid(&self) -> FileId {
        self.file.fid()
    }

    pub fn mark(&self) -> Mark {
        Mark { changes: self.changes.load(Ordering::Acquire), stamp: self.file.stamp().ok() }
    }

    pub fn mark_dirty(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    pub fn is_dirty(&self) -> bool {
        self.mark() != self.facts().committed
    }

    /// The mark that a commit takes: every later change differs from it. Blocks if the file was
    /// stored to past us.
    pub fn mark_to_commit(&self) -> io::Result<Mark> {
        let mark = self.mark();
        if !self.has_seen_stores(mark.stamp) {
            return Ok(mark);
        }
        self.file.arm_stamp()?;
        Ok(self.mark())
    }

    /// Whether the file was changed past us before it had this stamp.
    fn has_seen_stores(&self, stamp: Option<Stamp>) -> bool {
        let mut stores = self.stores();
        if let Stores::NotSeen(own) = *stores
            && own != stamp
        {
            *stores = Stores::Seen;
        }
        matches!(*stores, Stores::Seen)
    }

    /// Whether there may be a mapping that outlives its handle.
    pub fn may_be_mapped(&self) -> bool {
        !matches!(*self.stores(), Stores::None)
    }

    /// Whether a mapping was stored to after a commit that left nothing to be done.
    pub fn has_late_stores(&self) -> bool {
        let is_sound = matches!(self.facts().standing, Standing::Sound);
        is_sound && self.may_be_mapped() && self.is_dirty()
    }

    pub fn has_lock(&self) -> bool {
        *self.is_ours.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_has_lock(&self) {
        *self.is_ours.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Lets the write lock go, if nothing has to be committed under it, and nobody stores past us:
    /// such stores could not be held back until we have it again. Whether it is let go.
    pub fn let_go(&self, asked: Asked) -> bool {
        let mut is_ours = self.is_ours.write().unwrap_or_else(PoisonError::into_inner);
        let is_dirty = self.is_dirty() || self.has_seen_stores(self.file.stamp().ok());
        let mut facts = self.facts();
        let may_be_mapped = facts.closed_count > 0 && asked == Asked::ByOthers;
        let is_sound = matches!(facts.standing, Standing::Sound);
        *is_ours = !is_sound || is_dirty || facts.is_mapped || may_be_mapped;
        facts.is_shared |= !*is_ours;
        !*is_ours
    }

    /// Replaces the content while we do not have the lock. False if it was changed here meanwhile,
    /// past us.
    pub fn replace(
        &self,
        base: Content,
        write: impl FnOnce() -> Result<(), CacheError>,
    ) -> Result<bool, CacheError> {
        let _nobody_writes = self.is_ours.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_dirty() {
            return Ok(false);
        }
        let written = write();
        let mut facts = self.facts();
        facts.committed = self.mark();
        facts.is_torn = written.is_err();
        if written.is_ok() {
            facts.base = base;
        }
        drop(facts);
        let mut stores = self.stores();
        if let Stores::NotSeen(own) = &mut *stores {
            *own = self.file.stamp().ok();
        }
        written.map(|()| true)
    }

    /// Makes a change of ours, which counts also if it fails: some of it may have been made.
    fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        if self.may_be_mapped() {
            self.has_seen_stores(self.file.stamp().ok());
        }
        let result = change();
        self.mark_dirty();
        let mut stores = self.stores();
        if let Stores::NotSeen(own) = &mut *stores {
            *own = self.file.stamp().ok();
        }
        result
    }

    fn stores(&self) -> MutexGuard<'_, Stores> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    pub fn unsent(&self) -> Option<&Unsent> {
        match &self.standing {
            Standing::Unsent(unsent) => Some(unsent),
            _ => None,
        }
    }

    pub fn is_detached(&self) -> bool {
        matches!(self.standing, Standing::Conflict(_))
    }
}

impl Working {
    pub fn fid(&self) -> FileId {
        self.copy.fid()
    }

    pub fn id(&self) -> EntryId {
        self.copy.file.id()
    }

    /// The file that all handles read and write.
    pub fn file(&self) -> &Arc<CacheFile> {
        &self.copy.file
    }

    /// The server's version that the changes are on top of.
    pub fn base(&self) -> DataVersion {
        self.copy.facts().base.version
    }

    /// Writes, then counts the change. Evicts other files if the disk is full. Blocking, at page
    /// cache speed.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), CacheError> {
        let Copy { cache, file, .. } = &*self.copy;
        self.copy.change(|| cache.write_at(file, bytes, offset))
    }

    /// As [`Working::write_at`], at the end of the file, wherever that is by then.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn append(&self, bytes: &[u8]) -> Result<(), CacheError> {
        let _end = self.end();
        let file = &self.copy.file;
        let end = file.size().map_err(|source| CacheError::Io {
            what: "cannot look up the size of cache file",
            path: file.path().to_owned(),
            source,
        })?;
        self.write_at(end, bytes)
    }

    /// # Errors
    /// `Io`.
    pub fn set_len(&self, size: u64) -> Result<(), CacheError> {
        let _end = self.end();
        let file = &self.copy.file;
        let result = self.copy.change(|| file.writer().and_then(|writer| writer.set_len(size)));
        let path = file.path().to_owned();
        result.map_err(|source| CacheError::Io { what: "cannot size cache file", path, source })
    }

    /// Allocates or clears a stretch. Blocking.
    ///
    /// # Errors
    /// As [`Cache::allocate`].
    pub fn allocate(&self, how: Allocate, stretch: Range<u64>) -> Result<(), CacheError> {
        let _end = self.end();
        let Copy { cache, file, .. } = &*self.copy;
        self.copy.change(|| cache.allocate(file, how, stretch))
    }

    /// Copies a stretch of `from` to `offset`. The bytes that were copied. Blocking.
    ///
    /// # Errors
    /// As [`Cache::copy`].
    pub fn copy_from(
        &self,
        from: &CacheFile,
        stretch: Range<u64>,
        offset: u64,
    ) -> Result<u64, CacheError> {
        let _end = self.end();
        let Copy { cache, file, .. } = &*self.copy;
        self.copy.change(|| cache.copy((from, stretch), (file, offset)))
    }

    fn end(&self) -> MutexGuard<'_, ()> {
        self.copy.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the file times, so that the file system under it keeps count of them.
    ///
    /// # Errors
    /// Those of futimens(2).
    pub fn set_times(&self, times: FileTimes) -> io::Result<()> {
        self.copy.change(|| self.copy.file.file().set_times(times))
    }

    /// A handle is about to exist whose mappings go past us.
    pub fn expect_stores(&self) {
        let mut stores = self.copy.stores();
        if matches!(*stores, Stores::None) {
            *stores = Stores::NotSeen(self.copy.file.stamp().ok());
        }
    }

    /// A program has closed a handle through which the daemon is stored to, or the kernel is done
    /// with it.
    pub fn note_closed(&self, is_kept: bool) {
        let mut facts = self.copy.facts();
        facts.closed_count =
            if is_kept { facts.closed_count + 1 } else { facts.closed_count.saturating_sub(1) };
    }

    /// Returns when there is a reason to look whether mappings are still there.
    pub async fn asked_to_look(&self) {
        self.copy.look.notified().await;
    }

    /// Gives a reason to look.
    pub fn ask_to_look(&self) {
        self.copy.look.notify_one();
    }

    /// Something changed that is to travel with the next commit: times, or content that was
    /// changed through the file itself.
    pub fn mark_dirty(&self) {
        self.copy.mark_dirty();
    }

    /// The right to change the file while it is held. `None` if the file is shared and another
    /// client may have its lock: it is to be asked for first.
    pub fn hold(&self) -> Option<Hold<'_>> {
        let is_ours = self.copy.is_ours.read().unwrap_or_else(PoisonError::into_inner);
        is_ours.then_some(Hold { _is_ours: is_ours })
    }

    /// Whether this client has the write lock.
    pub fn has_lock(&self) -> bool {
        self.copy.has_lock()
    }

    /// Whether the next commit has something to do.
    pub fn is_dirty(&self) -> bool {
        let is_unsent = self.copy.facts().unsent().is_some();
        is_unsent || self.copy.is_dirty()
    }

    /// Whether it was made here and never committed.
    pub fn is_new(&self) -> bool {
        self.copy.facts().is_new
    }

    /// The local user who opened it first.
    pub fn caller(&self) -> Option<&Identity> {
        self.copy.origin.caller.as_ref()
    }

    pub fn writer_count(&self) -> u32 {
        self.copy.facts().writer_count
    }

    /// Whether the file was removed everywhere: changes go nowhere, and that is right.
    pub fn is_vanished(&self) -> bool {
        matches!(self.copy.facts().standing, Standing::Vanished)
    }

    /// Whether another change came first: open handles keep this copy, new opens get the server's.
    pub fn is_detached(&self) -> bool {
        self.copy.facts().is_detached()
    }
}

/// What is journalled of a content that was closed.
pub(super) fn closed(
    op: Option<OpId>,
    manifest: &Arc<Manifest>,
    attr: &CommitAttr,
    durability: Durability,
) -> Closed {
    Closed { op, manifest: Arc::clone(manifest), attr: attr.clone(), durability }
}
