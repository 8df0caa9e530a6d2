//! The cache: versions of files on the local disk, and changes that the server does not have yet.
//!
//! Owns one directory: one file for each entry, and a log that says what each entry is (index and
//! journal at once; see `record`). Promises: what was recorded is there after a kill of this
//! process; a version is handed out only if its bytes have the hashes of its manifest (checked at
//! the first use in each run, and again when the file was touched); changed data is never evicted
//! or overwritten; a log or directory that is not right is refused or cut, never guessed at.
//! Called by vfs, fetch and write-back. Knows nothing of servers: what a state means for them is
//! write-back's business.

mod dir;
mod evict;
mod file;
mod index;
mod list;
mod log;
pub mod promise;
pub mod record;
mod space;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::FsError;
use dfs_proto::clock::Clock;
use dfs_proto::id::{FileId, SessionId};
use dfs_proto::manifest::Manifest;
use dfs_proto::version::DataVersion;

use crate::metrics::{Counter, Metrics};

pub use dir::Belongs;
pub use evict::Limits;
pub use file::{CacheFile, Stamp, next_data};
pub use list::Listed;
pub use space::{Allocate, Freed, Reservation};

use dir::CacheDir;
use index::{Index, Slot};
use log::Log;
use record::{Content, Entry, EntryId, Origin, Record, State};

/// Why the cache cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cache directory {} is in use by process {holder}; choose another with --cache-dir",
        path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("cache directory {} belongs to {owner}; choose another with --cache-dir",
        path.display())]
    OtherOwner { path: PathBuf, owner: String },
    #[error("cache directory {} has another format; choose another with --cache-dir",
        .0.display())]
    OtherFormat(PathBuf),
    #[error("cache directory {} is on a DFS mount; choose one on a local disk", .0.display())]
    OnDfs(PathBuf),
    #[error(
        "cache is full: {kept_bytes} bytes open or unsent of {limit_bytes} allowed, \
        {wanted_bytes} more needed; wait for uploads, free disk space or raise --cache-size"
    )]
    Full { kept_bytes: u64, limit_bytes: u64, wanted_bytes: u64 },
}

impl CacheError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> CacheError {
        CacheError::Io { what, path: path.into(), source }
    }

    /// The error as the file system call that failed would report it.
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            CacheError::Io { source, .. } => source.kind(),
            CacheError::Full { .. } => io::ErrorKind::StorageFull,
            CacheError::InUse { .. } => io::ErrorKind::ResourceBusy,
            CacheError::OtherOwner { .. } | CacheError::OtherFormat(_) | CacheError::OnDfs(_) => {
                io::ErrorKind::InvalidInput
            }
        };
        io::Error::new(kind, self)
    }
}

/// Why a file's content could not be moved: one of the servers, or the local disk.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A cached version, checked and held open.
#[derive(Clone, Debug)]
pub struct CleanFile {
    pub file: Arc<CacheFile>,
    pub version: DataVersion,
    pub manifest: Arc<Manifest>,
}

/// How full the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub disk_bytes: u64,
    pub limit_bytes: u64,
    pub entry_count: usize,
    /// Entries with data that the server does not have.
    pub dirty_count: usize,
}

/// The cache of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: CacheDir,
    limits: Limits,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    state: Mutex<Books>,
    next_id: AtomicU64,
    /// Space promised to files that are not recorded yet. Units: bytes.
    reserved: AtomicU64,
    /// Bytes written since the space of a working copy was last looked at.
    unsampled: AtomicU64,
    #[cfg(feature = "testing")]
    writes_to_refuse: AtomicU64,
}

/// A cached version before its check.
struct Candidate {
    id: EntryId,
    content: Content,
    checked: Option<Stamp>,
    file: Option<Arc<CacheFile>>,
}

/// Index and log change together.
#[derive(Debug)]
struct Books {
    index: Index,
    log: Log,
}

impl Cache {
    /// Opens the cache in `path`, made if missing, for one cell and volume. Blocking.
    ///
    /// # Errors
    /// `InUse`, `OtherOwner`, `OtherFormat`, `OnDfs`, `Io`.
    pub fn open(
        path: &Path,
        belongs: &Belongs,
        limits: Limits,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Cache, CacheError> {
        let dir = CacheDir::claim(path, belongs)?;
        let failed = |source| CacheError::io("cannot read cache log", &dir.log(), source);
        let (log, loaded) = Log::open(&dir.log()).map_err(failed)?;
        let last_id = loaded.records.iter().map(|record| record.id.0).max().unwrap_or(0);
        let mut index = Index::default();
        loaded.records.into_iter().for_each(|record| index.replay(record));
        let failed = |source| CacheError::io("cannot clean cache directory", path, source);
        clear_strays(&dir, &index, loaded.cut_bytes).map_err(failed)?;
        // Ids of entries that compaction forgot must not come again: time only grows.
        let by_time = u64::try_from(clock.wall().secs).unwrap_or(0) << 20;
        let inner = Inner {
            dir,
            limits,
            clock,
            metrics,
            state: Mutex::new(Books { index, log }),
            next_id: AtomicU64::new(by_time.max(last_id + 1)),
            reserved: AtomicU64::new(0),
            unsampled: AtomicU64::new(0),
            #[cfg(feature = "testing")]
            writes_to_refuse: AtomicU64::new(0),
        };
        Ok(Cache { inner: Arc::new(inner) })
    }

    pub fn dir(&self) -> &Path {
        self.inner.dir.path()
    }

    /// Whether changes through mappings of its files can be noticed ([`CacheFile::arm_stamp`],
    /// [`CacheFile::is_mapped_for_writing`]).
    pub fn tells_of_mappings(&self) -> bool {
        self.inner.dir.tells_of_mappings()
    }

    /// Notes the session that uses the cache, and answers with the one that did before.
    pub fn replace_session(&self, session: SessionId) -> Option<SessionId> {
        self.inner.dir.replace_session(session)
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub fn usage(&self) -> Usage {
        let books = self.books();
        let (mut entry_count, mut dirty_count) = (0, 0);
        for (_, slot) in books.index.by_use() {
            entry_count += 1;
            dirty_count += usize::from(!slot.entry.state.is_clean());
        }
        let limit_bytes = self.inner.limits.size_bytes;
        Usage { disk_bytes: books.index.disk_bytes(), limit_bytes, entry_count, dirty_count }
    }

    /// The cached version of a file, if there is one and its bytes are right. The first use in
    /// this run reads all of it; one that is missing or damaged is dropped.
    pub async fn clean(&self, fid: FileId) -> Option<CleanFile> {
        let Candidate { id, content, checked, file } = self.find_clean(fid)?;
        let cache = self.clone();
        let check = move || {
            let file = match file {
                Some(file) => file,
                None => cache.open_entry(id).ok()?,
            };
            cache.check(&file, &content, checked).then_some(CleanFile {
                file,
                version: content.version,
                manifest: content.manifest,
            })
        };
        // An error means that the check panicked: then nothing is known to be right.
        tokio::task::spawn_blocking(check).await.ok()?
    }

    /// The version of a file that is cached, unchecked.
    pub fn version(&self, fid: FileId) -> Option<DataVersion> {
        let books = self.books();
        let slot = books.index.current(fid).and_then(|id| books.index.slot(id))?;
        match &slot.entry.state {
            State::Clean(content) => Some(content.version),
            _ => None,
        }
    }

    fn find_clean(&self, fid: FileId) -> Option<Candidate> {
        let mut books = self.books();
        let id = books.index.current(fid)?;
        books.index.touch(id);
        let slot = books.index.slot(id)?;
        match &slot.entry.state {
            State::Clean(content) => Some(Candidate {
                id,
                content: content.clone(),
                checked: slot.checked,
                file: slot.open_file(),
            }),
            _ => None,
        }
    }

    fn check(&self, file: &CacheFile, content: &Content, checked: Option<Stamp>) -> bool {
        let stamp = file.stamp().ok();
        if stamp.is_some() && stamp == checked {
            return true;
        }
        match file.holds(&content.manifest) {
            Ok(true) => {
                if let Some(slot) = self.books().index.slot_mut(file.id()) {
                    slot.checked = stamp;
                }
                true
            }
            wrong => {
                if self.is_still(file.id(), content) {
                    let fid = file.fid();
                    tracing::warn!(%fid, result = ?wrong, "damaged cache file dropped");
                    self.drop_entry(file.id(), Counter::CacheDropCorrupt);
                }
                false
            }
        }
    }

    /// Whether an entry is still the version that it was. If not, somebody writes to its file.
    fn is_still(&self, id: EntryId, content: &Content) -> bool {
        let books = self.books();
        let state = books.index.slot(id).map(|slot| &slot.entry.state);
        matches!(state, Some(State::Clean(now)) if now.version == content.version)
    }

    /// A new empty file. It becomes an entry when it is recorded; unrecorded, it goes with its
    /// last holder.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(&self, fid: FileId) -> Result<Arc<CacheFile>, CacheError> {
        let id = EntryId(self.inner.next_id.fetch_add(1, Ordering::Relaxed));
        let path = self.inner.dir.file(id);
        let file = CacheFile::create(id, fid, path.clone())
            .map_err(|source| CacheError::io("cannot make cache file", &path, source))?;
        Ok(Arc::new(file))
    }

    /// Opens the file of an entry.
    ///
    /// # Errors
    /// `Io`; an entry whose file is missing is dropped if nothing is lost with it.
    pub fn open_entry(&self, id: EntryId) -> Result<Arc<CacheFile>, CacheError> {
        let path = self.inner.dir.file(id);
        let failed = |source| CacheError::io("cannot open cache file", &path, source);
        let mut books = self.books();
        let gone = || failed(io::ErrorKind::NotFound.into());
        let slot = books.index.slot_mut(id).ok_or_else(gone)?;
        if let Some(file) = slot.open_file() {
            return Ok(file);
        }
        match CacheFile::open(id, slot.entry.fid, path.clone()) {
            Ok(file) => {
                let file = Arc::new(file);
                slot.file = Arc::downgrade(&file);
                Ok(file)
            }
            Err(error) => {
                let is_clean = slot.entry.state.is_clean();
                drop(books);
                if is_clean && error.kind() == io::ErrorKind::NotFound {
                    self.drop_entry(id, Counter::CacheDropMissing);
                }
                Err(failed(error))
            }
        }
    }

    /// Records the state of a file's entry, before anybody relies on it. `trusted` says that the
    /// file is known to hold the state's content, as of this stamp.
    ///
    /// A clean version never takes the place of changed data: the file then stays unrecorded.
    ///
    /// # Errors
    /// `Io`, `Full`; the entry is then as before.
    pub fn record(
        &self,
        file: &Arc<CacheFile>,
        origin: &Origin,
        state: State,
        trusted: Option<Stamp>,
    ) -> Result<(), CacheError> {
        let (now, disk_bytes) = (self.inner.clock.wall(), file.disk_bytes().unwrap_or(0));
        let mut books = self.books();
        if state.is_clean() && books.has_changes_beside(file) {
            return Ok(());
        }
        let before = books.index.slot(file.id()).map(|slot| &slot.entry);
        let since = before.map_or(now, |before| before.since_of(&state, now));
        let entry = Entry { fid: file.fid(), origin: origin.clone(), since, disk_bytes, state };
        let record = Record { id: file.id(), entry: Some(entry) };
        self.append(&mut books, &record)?;
        let Record { id, entry: Some(entry) } = record else { return Ok(()) };
        let superseded = books.index.put(id, entry);
        if let Some(slot) = books.index.slot_mut(id) {
            (slot.checked, slot.file) = (trusted, Arc::downgrade(file));
        }
        file.set_recorded();
        drop(books);
        if let Some(superseded) = superseded {
            self.remove(superseded);
        }
        Ok(())
    }

    /// Forgets an entry and its file. Holders of the file keep it until they are done.
    pub fn remove(&self, id: EntryId) {
        let mut books = self.books();
        if books.index.remove(id).is_none() {
            return;
        }
        if let Err(error) = self.append(&mut books, &Record { id, entry: None }) {
            // At the next start the entry has no file, and is dropped then.
            tracing::warn!(%error, "cache log");
        }
        drop(books);
        let _ = std::fs::remove_file(self.inner.dir.file(id));
    }

    fn drop_entry(&self, id: EntryId, reason: Counter) {
        self.inner.metrics.count(reason);
        self.remove(id);
    }

    /// Every entry that is not clean, least recently used first.
    pub fn unclean(&self) -> Vec<(EntryId, Entry)> {
        let books = self.books();
        let unclean = books.index.by_use().filter(|(_, slot)| !slot.entry.state.is_clean());
        unclean.map(|(id, slot)| (id, slot.entry.clone())).collect()
    }

    fn append(&self, books: &mut Books, record: &Record) -> Result<(), CacheError> {
        let failed = |source| CacheError::io("cannot write", &self.inner.dir.log(), source);
        books.log.append(record).map_err(failed)?;
        if books.log.is_mostly_dead() {
            let Books { index, log } = books;
            // The record just appended is not in the index yet: it must outlive the others.
            let rest = index.records().filter(|other| other.id != record.id);
            log.compact(rest.chain([record.clone()])).map_err(failed)?;
        }
        Ok(())
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn has_changes_beside(&self, file: &CacheFile) -> bool {
        let current = self.index.current(file.fid()).filter(|id| *id != file.id());
        let slot = current.and_then(|id| self.index.slot(id));
        slot.is_some_and(|slot: &Slot| !slot.entry.state.is_clean())
    }
}

/// Removes files that no entry names. If the log was damaged they may be somebody's only copy, so
/// then they are put aside instead.
fn clear_strays(dir: &CacheDir, index: &Index, cut_bytes: u64) -> io::Result<()> {
    let strays = dir.strays(|id| index.slot(id).is_some())?;
    if cut_bytes > 0 {
        let count = strays.len();
        tracing::warn!(cut_bytes, count, "cache log was torn; files it lost are in lost/");
        return strays.iter().try_for_each(|stray| dir.put_aside(stray));
    }
    strays.iter().try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests;
