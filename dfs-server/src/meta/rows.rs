//! The rows of one space that are in memory, as of its last published commit.
//!
//! Owned by the store; written by its writer (commits) and by loads. Rows decode once and are
//! shared. An absent row is remembered as absent.
//!
//! **Why a load cannot bring in a wrong row.** The cache must hold, for each of its keys, what the
//! last published commit left there. A load reads the engine, which may be older than what is
//! published meanwhile, or one commit ahead of it. Two rules:
//!
//! 1. A key is *pinned* before its load begins, and stays pinned until whoever wanted it is done.
//!    Pinned rows are not evicted. So a row published since the load began is in the cache when
//!    the load ends, and a load never replaces what is there.
//! 2. The writer *announces* the keys of a batch before it hands the batch to the engine, and ends
//!    the announcement in the same step that publishes the batch (or gives it up). A load of an
//!    announced key is dropped; its reader waits for the end of that one commit and looks again.
//!
//! Let a load that is accepted have begun at `t0` and ended at `t1`. A commit that changed the key
//! in the engine between them was announced before `t1`, so by rule 2 it ended before `t1`, so by
//! rule 1 its row is in the cache and the load was not accepted after all. Hence the key did not
//! change in the engine while it was loaded, and is what the last published commit left.
//!
//! **Absent without a look.** A range of keys that a commit began (a new directory's entries) is
//! *whole*: every row of it came through a publication. It stays so until one of its rows is
//! evicted, and a key of it that is not in memory has no row. So looking up a name that is not
//! there, before it is made, costs no read of the engine.
//!
//! Readers therefore wait for the writer in one case only: for the commit in flight, if it changes
//! a row that they want and that is not in memory.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dfs_proto::version::Sequence;
use tokio::sync::watch;

use super::record::{AnyRow, Decode};
use super::txn::{Ended, ReadTxn};
use super::{Abort, Engine, EngineError, KeyBytes, Space, key, moved};

/// A row as memory holds it; `None` is known to be absent.
pub(crate) type Row = Option<Arc<dyn AnyRow>>;

/// New rows by key, in the order of keys.
pub(crate) type Changes = BTreeMap<KeyBytes, Row>;

/// How much of a space is kept in memory.
///
/// Both may be exceeded by an eighth, by one batch, and by the rows that are in use.
#[derive(Clone, Copy, Debug)]
pub struct CacheBound {
    pub rows: usize,
    /// Units: bytes of encoded keys and rows.
    pub bytes: usize,
}

impl Default for CacheBound {
    /// Why these: at about 200 bytes a row and the same again for keys and maps, 100 MiB for
    /// 256 Ki rows, the hot part of a large volume; bytes bound a volume of huge manifests.
    fn default() -> CacheBound {
        CacheBound { rows: 256 << 10, bytes: 128 << 20 }
    }
}

/// Removed rows that are remembered. Why so many: for those who were about to use them, which is
/// over within seconds. Units of the second: bytes of encoded keys and rows.
const REMOVED_ROWS_MAX: usize = 4096;
const REMOVED_BYTES_MAX: usize = 8 << 20;

/// Rows looked at for each row that comes in while the cache is full.
///
/// Why more than one: rows in use are passed over, and the cache must shrink again.
const EVICTION_STEPS: usize = 8;

/// Ranges that are known to be whole; more, and all are forgotten. Why: about 100 bytes each.
const WHOLE_RANGES_MAX: usize = 64 << 10;

/// A row that is missed, and how to read it.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub key: KeyBytes,
    pub decode: Decode,
}

/// A row to be put into the cache. Units of `bytes`: as encoded, with its key.
pub(crate) struct Incoming {
    pub key: KeyBytes,
    pub row: Row,
    pub bytes: usize,
}

/// A commit that the engine was given, and that readers see when it is published.
pub(crate) struct Pending {
    pub rows: Vec<Incoming>,
    /// Ranges that had no row before.
    pub new_ranges: Vec<KeyBytes>,
    pub sequence: Sequence,
}

struct Entry {
    row: Row,
    bytes: usize,
    /// Read since eviction last looked.
    used: AtomicBool,
}

/// Rows that were removed lately, and were in memory then.
#[derive(Default)]
struct Removed {
    rows: HashMap<KeyBytes, (Arc<dyn AnyRow>, usize)>,
    /// Their keys, the oldest first; also some that are not removed any more.
    order: VecDeque<KeyBytes>,
    bytes: usize,
}

impl Removed {
    fn add(&mut self, key: KeyBytes, row: Arc<dyn AnyRow>, bytes: usize) {
        self.forget(&key);
        self.bytes += bytes;
        self.rows.insert(key.clone(), (row, bytes));
        self.order.push_back(key);
        while self.order.len() > REMOVED_ROWS_MAX || self.bytes > REMOVED_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, key: &KeyBytes) {
        if let Some((_, bytes)) = self.rows.remove(key) {
            self.bytes -= bytes;
        }
    }
}

/// What is published, under the lock.
pub(crate) struct Published {
    entries: HashMap<KeyBytes, Entry>,
    /// Every key of `entries` once, in the order in which eviction looks at them.
    ring: VecDeque<KeyBytes>,
    bytes: usize,
    /// Ranges (`key::range_of`) of which every row is in `entries`.
    whole: HashSet<KeyBytes>,
    removed: Removed,
    /// How many want each key to stay, whether it is in `entries` yet or not.
    pins: HashMap<KeyBytes, usize>,
    announced: Option<Arc<Changes>>,
    /// Announcements that have ended.
    ended: u64,
    sequence: Sequence,
    is_lost: bool,
}

/// How far the writer is, for those who wait for the end of an announcement.
#[derive(Clone, Copy, Default)]
struct Progress {
    ended: u64,
    /// The announced batch will not end soon: its outcome is unknown, or the writer is gone.
    is_stuck: bool,
}

pub(crate) struct Rows {
    space: Space,
    bound: CacheBound,
    published: RwLock<Published>,
    progress: watch::Sender<Progress>,
}

impl Rows {
    pub fn new(space: Space, bound: CacheBound, sequence: Sequence) -> Rows {
        let published = Published {
            entries: HashMap::new(),
            ring: VecDeque::new(),
            bytes: 0,
            whole: HashSet::new(),
            removed: Removed::default(),
            pins: HashMap::new(),
            announced: None,
            ended: 0,
            sequence,
            is_lost: false,
        };
        let progress = watch::Sender::new(Progress::default());
        Rows { space, bound, published: RwLock::new(published), progress }
    }

    // A panic under the lock is a bug in this file only (closures run under the read lock, which
    // does not poison), and each step below leaves a state that is safe to read.
    fn shared(&self) -> RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Published> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn sequence(&self) -> Sequence {
        self.shared().sequence
    }

    /// The row of `key` if it is in memory.
    pub fn find(&self, key: &[u8]) -> Option<Row> {
        self.shared().find(key)
    }

    pub fn find_removed(&self, key: &[u8]) -> Option<Arc<dyn AnyRow>> {
        self.shared().find_removed(key)
    }

    /// Runs `work` on one published state.
    pub fn read<T>(&self, work: impl FnOnce(&mut ReadTxn<'_>) -> Result<T, Abort>) -> Ended<T> {
        let published = self.shared();
        if published.is_lost {
            return Ended::Failed(moved(self.space));
        }
        let mut txn = ReadTxn::published(self.space, &published, published.sequence);
        let result = work(&mut txn);
        txn.end(result)
    }

    /// Puts loaded rows where nothing is published. Some may have been dropped (rule 2): then the
    /// number of the commit is returned whose end their reader must wait for.
    pub fn fill(&self, loaded: Vec<Incoming>) -> Option<u64> {
        let mut published = self.exclusive();
        let mut wait = None;
        for incoming in loaded {
            let is_announced =
                published.announced.as_ref().is_some_and(|keys| keys.contains_key(&incoming.key));
            if published.entries.contains_key(&incoming.key) {
                continue;
            }
            if is_announced {
                wait = Some(published.ended + 1);
                continue;
            }
            published.insert(incoming);
            published.evict(self.bound);
        }
        wait
    }

    /// The commit in flight that changes a key with `from <= key < to`.
    pub fn commit_in(&self, from: &KeyBytes, to: &KeyBytes) -> Option<u64> {
        let published = self.shared();
        let range = (Bound::Included(from), Bound::Excluded(to));
        let keys = published.announced.as_ref()?;
        // An empty or reversed range makes `BTreeMap::range` panic.
        let is_hit = from < to && keys.range::<KeyBytes, _>(range).next().is_some();
        is_hit.then_some(published.ended + 1)
    }

    /// Waits for the end of a commit that was in flight; false if that will take long.
    /// Cancel-safe.
    pub async fn has_ended(&self, commit: u64) -> bool {
        let mut progress = self.progress.subscribe();
        let is_over = |progress: &Progress| progress.ended >= commit || progress.is_stuck;
        // The sender is ours: there is no error to see.
        progress.wait_for(is_over).await.is_ok_and(|progress| progress.ended >= commit)
    }

    /// The engine is about to be given `changes`.
    pub fn announce(&self, changes: Arc<Changes>) {
        self.exclusive().announced = Some(changes);
    }

    /// The engine took what was announced: readers see it from here on.
    pub fn publish(&self, pending: Pending) {
        let mut published = self.exclusive();
        if published.whole.len() + pending.new_ranges.len() > WHOLE_RANGES_MAX {
            published.whole.clear();
        }
        published.whole.extend(pending.new_ranges);
        for incoming in pending.rows {
            published.insert(incoming);
            published.evict(self.bound);
        }
        published.sequence = pending.sequence;
        self.end_announcement(published);
    }

    /// The engine did not take what was announced.
    pub fn give_up(&self) {
        self.end_announcement(self.exclusive());
    }

    fn end_announcement(&self, mut published: RwLockWriteGuard<'_, Published>) {
        published.announced = None;
        published.ended += 1;
        let progress = Progress { ended: published.ended, is_stuck: false };
        drop(published);
        self.progress.send_replace(progress);
    }

    /// Those who wait for the commit in flight, now or later, are told that it will take long.
    pub fn set_stuck(&self) {
        self.progress.send_modify(|progress| progress.is_stuck = true);
    }

    /// The space has another owner: no row here is worth anything any more.
    pub fn set_lost(&self) {
        self.exclusive().is_lost = true;
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shared().entries.len()
    }
}

impl Published {
    pub fn find(&self, key: &[u8]) -> Option<Row> {
        let Some(entry) = self.entries.get(key) else {
            let is_known = key::range_of(key).is_some_and(|range| self.whole.contains(range));
            return is_known.then_some(None);
        };
        // Look first: a store would make every reader's core fetch the line for itself.
        if !entry.used.load(Relaxed) {
            entry.used.store(true, Relaxed);
        }
        Some(entry.row.clone())
    }

    fn insert(&mut self, incoming: Incoming) {
        let Incoming { key, row, bytes } = incoming;
        self.bytes += bytes;
        let is_removal = row.is_none();
        if !is_removal {
            self.removed.forget(&key);
        }
        let entry = Entry { row, bytes, used: AtomicBool::new(false) };
        match self.entries.insert(key.clone(), entry) {
            Some(old) => {
                self.bytes -= old.bytes;
                if let Some(row) = old.row.filter(|_| is_removal) {
                    self.removed.add(key, row, old.bytes);
                }
            }
            None => self.ring.push_back(key),
        }
    }

    /// The row that a key had before it was removed, if memory still has it.
    pub fn find_removed(&self, key: &[u8]) -> Option<Arc<dyn AnyRow>> {
        self.removed.rows.get(key).map(|(row, _)| row.clone())
    }

    /// Second chance: drops rows that nobody read since the last look and nobody has pinned.
    fn evict(&mut self, bound: CacheBound) {
        for _ in 0..EVICTION_STEPS {
            if self.entries.len() <= bound.rows && self.bytes <= bound.bytes {
                return;
            }
            let Some(key) = self.ring.pop_front() else { return };
            // Readers may touch rows as fast as they are passed over; far above the bound that
            // counts no more.
            let is_far = self.entries.len() > bound.rows + bound.rows / 8
                || self.bytes > bound.bytes + bound.bytes / 8;
            let used = self.entries.get(&key).is_some_and(|row| row.used.swap(false, Relaxed));
            if self.pins.contains_key(&key) || (used && !is_far) {
                self.ring.push_back(key);
            } else if let Some(entry) = self.entries.remove(&key) {
                self.bytes -= entry.bytes;
                if let Some(range) = key::range_of(&key).filter(|_| entry.row.is_some()) {
                    self.whole.remove(range);
                }
            }
        }
    }
}

/// Keys that stay in the cache (rule 1) until this is dropped.
pub(crate) struct Pins {
    rows: Arc<Rows>,
    keys: Vec<KeyBytes>,
}

impl Pins {
    pub fn new(rows: Arc<Rows>) -> Pins {
        Pins { rows, keys: Vec::new() }
    }

    /// Pins what is wanted, and returns those of it that must be loaded.
    pub fn add(&mut self, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let mut published = self.rows.exclusive();
        self.keys.reserve(wanted.len());
        for want in &wanted {
            *published.pins.entry(want.key.clone()).or_default() += 1;
            self.keys.push(want.key.clone());
        }
        wanted.into_iter().filter(|want| !published.entries.contains_key(&want.key)).collect()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut published = self.rows.exclusive();
        for key in &self.keys {
            if let Some(count) = published.pins.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    published.pins.remove(key);
                }
            }
        }
    }
}

/// Reads the rows of `wanted` from the engine. Blocks.
pub(crate) fn load(engine: &dyn Engine, wanted: Vec<Wanted>) -> Result<Vec<Incoming>, EngineError> {
    let keys: Vec<KeyBytes> = wanted.iter().map(|want| want.key.clone()).collect();
    let values = engine.load(&keys)?;
    assert_eq!(values.len(), keys.len(), "an engine answers for every key it was asked for");
    wanted.into_iter().zip(values).map(|(want, value)| incoming(want, value.as_deref())).collect()
}

fn incoming(want: Wanted, value: Option<&[u8]>) -> Result<Incoming, EngineError> {
    let bytes = want.key.len() + value.map_or(0, <[u8]>::len);
    let row = value
        .map(want.decode)
        .transpose()
        .map_err(|cause| EngineError::Record { key: key::hex(&want.key), cause })?;
    Ok(Incoming { key: want.key, row, bytes })
}
