//! The ranges that programs of this client have locked, and those that wait for some.
//!
//! The server decides; what is here is for taking ranges up again after its restart, for knowing
//! without a request that a closing program has none, and for waking those who wait. An owner
//! whose ranges were lost (the session ended meanwhile, or an administrator broke them) gets no
//! more until it has let go of all it believes to have: what it does under them protects nobody.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::directory::lock::{DropRange, Reclaim};
use dfs_proto::id::FileId;
use dfs_proto::lock::{HeldRange, LockOwner, WaitNumber};
use dfs_proto::range::{Range, RangeKind, Segments};
use tokio::sync::{Notify, watch};

use super::Core;

/// The ranges of one client.
#[derive(Debug, Default)]
pub struct Ranges {
    books: Mutex<Books>,
    next_wait: AtomicU64,
    /// Moves when an owner has let go.
    gone: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Books {
    held: HashMap<FileId, BTreeMap<LockOwner, Own>>,
    lost: HashSet<(FileId, LockOwner)>,
    /// Owners whose last open file is closed, and whose ranges are on their way back.
    going: HashSet<(FileId, LockOwner)>,
    /// What could not be given back when it was due.
    owed: Vec<DropRange>,
    waiting: HashMap<WaitNumber, Arc<Notify>>,
}

#[derive(Debug, Default)]
struct Own {
    pid: u32,
    segments: Segments,
}

/// A wait that is woken; forgotten when it is dropped.
#[derive(Debug)]
pub struct RangeWait<'a> {
    ranges: &'a Ranges,
    pub number: WaitNumber,
    woken: Arc<Notify>,
}

impl RangeWait<'_> {
    /// Returns when there is a reason to ask again.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl Drop for RangeWait<'_> {
    fn drop(&mut self) {
        self.ranges.books().waiting.remove(&self.number);
    }
}

impl Ranges {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a wait.
    pub fn wait(&self) -> RangeWait<'_> {
        let number = WaitNumber(self.next_wait.fetch_add(1, Ordering::Relaxed));
        let woken = Arc::new(Notify::new());
        self.books().waiting.insert(number, Arc::clone(&woken));
        RangeWait { ranges: self, number, woken }
    }

    pub(super) fn wake(&self, wait: WaitNumber) {
        if let Some(woken) = self.books().waiting.get(&wait) {
            woken.notify_one();
        }
    }

    /// Everybody asks again: what waits is not known to the server any more.
    pub(super) fn wake_all(&self) {
        self.books().waiting.values().for_each(|woken| woken.notify_one());
    }

    /// An owner has `range` as `kind` from now on, or not at all.
    pub fn set(
        &self,
        fid: FileId,
        (owner, pid): (LockOwner, u32),
        range: Range,
        kind: Option<RangeKind>,
    ) {
        let mut books = self.books();
        let owners = books.held.entry(fid).or_default();
        let own = owners.entry(owner).or_default();
        own.pid = pid;
        own.segments.set(range, kind);
        if own.segments.is_empty() {
            owners.remove(&owner);
        }
        if owners.is_empty() {
            books.held.remove(&fid);
        }
    }

    /// An owner lets go of a range. Whether the server may believe that it had some of it: also if
    /// it was lost, for it may have been granted again before we heard of that.
    pub fn let_go(&self, fid: FileId, owner: LockOwner, range: Range) -> bool {
        let mut books = self.books();
        let was_lost = range == Range::WHOLE && books.lost.remove(&(fid, owner));
        let own = books.held.get(&fid).and_then(|owners| owners.get(&owner));
        let held = own.map(|own| (own.pid, own.segments.within(range).next().is_some()));
        drop(books);
        let Some((pid, true)) = held else { return was_lost };
        self.set(fid, (owner, pid), range, None);
        true
    }

    /// Whether an owner has, or believes to have, ranges of a file.
    pub fn has_some(&self, fid: FileId, owner: LockOwner) -> bool {
        let books = self.books();
        let is_held = books.held.get(&fid).is_some_and(|owners| owners.contains_key(&owner));
        is_held || books.lost.contains(&(fid, owner))
    }

    pub fn is_lost(&self, fid: FileId, owner: LockOwner) -> bool {
        self.books().lost.contains(&(fid, owner))
    }

    /// The ranges of a file were taken away.
    pub(super) fn lose(&self, fid: FileId) {
        let mut books = self.books();
        let owners = books.held.remove(&fid).unwrap_or_default();
        if !owners.is_empty() {
            tracing::warn!(%fid, owners = owners.len(), "locks were taken away");
        }
        books.lost.extend(owners.into_keys().map(|owner| (fid, owner)));
        books.waiting.values().for_each(|woken| woken.notify_one());
    }

    /// One range could not be taken up again.
    pub(super) fn lose_one(&self, range: &HeldRange) {
        let HeldRange { fid, owner, pid, range, .. } = *range;
        tracing::warn!(%fid, pid, %range, "a lock was lost: others may have it");
        self.let_go(fid, owner, range);
        self.books().lost.insert((fid, owner));
    }

    /// All that is held, to be taken up again.
    pub(super) fn held(&self) -> Vec<HeldRange> {
        let books = self.books();
        let mut held = Vec::new();
        for (fid, owners) in &books.held {
            for (owner, Own { pid, segments }) in owners {
                held.extend(segments.iter().map(|segment| HeldRange {
                    fid: *fid,
                    owner: *owner,
                    pid: *pid,
                    range: segment.range,
                    kind: segment.kind,
                }));
            }
        }
        held
    }

    /// The last open file of an owner is closed: what it has is about to go back.
    pub fn begin_to_go(&self, fid: FileId, owner: LockOwner) {
        self.books().going.insert((fid, owner));
    }

    pub fn has_gone(&self, fid: FileId, owner: LockOwner) {
        self.books().going.remove(&(fid, owner));
        self.gone.send_modify(|count| *count += 1);
    }

    /// Returns when what an owner had is back, if it is on its way; whether it was.
    pub async fn until_gone(&self, fid: FileId, owner: LockOwner) -> bool {
        let mut gone = self.gone.subscribe();
        let is_going = || self.books().going.contains(&(fid, owner));
        if !is_going() {
            return false;
        }
        // The sender is ours: there is no error to see.
        let _ = gone.wait_for(|_| !is_going()).await;
        true
    }

    /// Something is to be given back as soon as the servers answer.
    pub fn owe(&self, range: DropRange) {
        self.books().owed.push(range);
    }

    /// What is owed, of one file or of all; the caller sees to it, or owes it again.
    pub fn take_owed(&self, fid: Option<FileId>) -> Vec<DropRange> {
        let mut books = self.books();
        let (taken, left) = std::mem::take(&mut books.owed)
            .into_iter()
            .partition(|it| fid.is_none_or(|fid| it.fid == fid));
        books.owed = left;
        taken
    }
}

impl Core {
    /// Takes the ranges that programs hold up again.
    pub(super) async fn reclaim(&self) -> Result<(), FsError> {
        let held = self.ranges.held();
        if !held.is_empty() {
            let lost = self.connection.call(Role::Directory, None, &Reclaim { held }).await?;
            lost.iter().for_each(|range| self.ranges.lose_one(range));
        }
        self.ranges.wake_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::id::{InodeNo, VolumeId};
    use dfs_proto::version::Epoch;
    use futures_util::FutureExt;

    use super::*;

    const OWNER: LockOwner = LockOwner(3);
    const FIRST: Range = Range { start: 0, end: 10 };

    fn fid() -> FileId {
        FileId::new(VolumeId(1), InodeNo(2), Epoch(1))
    }

    fn held() -> Ranges {
        let ranges = Ranges::default();
        ranges.set(fid(), (OWNER, 7), FIRST, Some(RangeKind::Shared));
        ranges
    }

    #[test]
    fn what_is_held_is_listed_until_it_is_let_go() {
        let ranges = held();
        let kind = RangeKind::Shared;
        let expected = HeldRange { fid: fid(), owner: OWNER, pid: 7, range: FIRST, kind };
        assert_eq!(ranges.held(), [expected]);
        assert!(!ranges.let_go(fid(), OWNER, Range { start: 20, end: 30 }), "nothing there");
        assert!(ranges.has_some(fid(), OWNER));
        assert!(ranges.let_go(fid(), OWNER, Range::WHOLE) && !ranges.has_some(fid(), OWNER));
        assert!(ranges.books().held.is_empty());
    }

    #[test]
    fn who_lost_its_ranges_stays_so_until_it_lets_go_of_all() {
        let ranges = held();
        ranges.lose(fid());
        assert!(ranges.held().is_empty() && ranges.is_lost(fid(), OWNER));
        assert!(!ranges.let_go(fid(), OWNER, FIRST) && ranges.is_lost(fid(), OWNER));
        assert!(ranges.let_go(fid(), OWNER, Range::WHOLE) && !ranges.is_lost(fid(), OWNER));
        assert!(!ranges.let_go(fid(), OWNER, Range::WHOLE));
    }

    #[test]
    fn a_wait_is_woken_by_its_number_and_forgotten_with_its_end() {
        let ranges = Ranges::default();
        let (first, second) = (ranges.wait(), ranges.wait());
        ranges.wake(second.number);
        assert!(first.woken().now_or_never().is_none());
        assert!(second.woken().now_or_never().is_some());
        drop((first, second));
        assert!(ranges.books().waiting.is_empty());
    }

    #[test]
    fn who_asks_waits_for_an_owner_that_is_going() {
        let ranges = held();
        assert_eq!(ranges.until_gone(fid(), OWNER).now_or_never(), Some(false));
        ranges.begin_to_go(fid(), OWNER);
        let mut waiting = Box::pin(ranges.until_gone(fid(), OWNER));
        assert_eq!((&mut waiting).now_or_never(), None);
        ranges.has_gone(fid(), OWNER);
        assert_eq!(waiting.now_or_never(), Some(true));
    }

    #[test]
    fn what_is_owed_is_taken_by_file_or_all_together() {
        let ranges = Ranges::default();
        let other = FileId::new(VolumeId(1), InodeNo(9), Epoch(1));
        for fid in [fid(), other] {
            ranges.owe(DropRange { fid, owner: OWNER, range: FIRST });
        }
        assert_eq!(ranges.take_owed(Some(other)).len(), 1);
        assert_eq!(ranges.take_owed(None).len(), 1);
        assert!(ranges.take_owed(None).is_empty());
    }
}
