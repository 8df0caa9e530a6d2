//! Files that stay mapped after their last close.
//!
//! On the passthrough path a mapping is over the cache file itself. It may outlive every handle,
//! and neither stores to it nor its end are told to us. Such a file goes on as if a handle were
//! open: its working copy stays, and so does its write lock. We look whether the mapping is still
//! there, soon at first, since many end a moment after the close, then less often; and at once
//! when there is a reason: another client wants the lock, the file is opened here, the mount ends.
//! What was stored is committed when the mapping is over, when another client asks, and from time
//! to time, so that a mapping that lasts for days does not keep all its changes to itself.
//!
//! The lock is not given away while the mapping lasts, also when another client asks for it: stores
//! cannot be refused any more, so each of them would become a conflict that nobody is told of.
//!
//! On the served path the kernel keeps the handle open for the mapping, and its last pages are
//! written before the release. There only the commits from time to time are ours to see to.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::directory::Durability;

use super::node::Node;
use super::{Inner, Vfs};
use crate::metrics::Counter;
use crate::writeback::Working;

/// Delays between two looks. Why so soon at first: the kernel lets go of the file a moment after it
/// has told us of the close, and whoever opens next should not wait. Why no later than a second:
/// that long nobody minds waiting for a lock, and a look costs two system calls.
const LOOK_DELAY_FIRST: Duration = Duration::from_millis(1);
const LOOK_DELAY_MAX: Duration = Duration::from_secs(1);

/// How long stores may wait for a commit while the mapping lasts. Why 10 s: what a crash of this
/// machine can take stays small, and reading a large file again that often does not weigh.
const COMMIT_DELAY: Duration = Duration::from_secs(10);

/// A commit that took long is not repeated before this many times as long has passed, so that
/// reading a very large file again and again takes no more than a tenth of the time.
const COMMIT_PAUSE_FACTOR: u32 = 10;

/// When to look, and when to commit. Times are on `Clock::boottime`.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    delay: Duration,
    look_at: Duration,
    commit_at: Duration,
}

impl Schedule {
    fn new(now: Duration) -> Schedule {
        let delay = LOOK_DELAY_FIRST;
        Schedule { delay, look_at: now + delay, commit_at: now + COMMIT_DELAY }
    }

    /// The mapping is still there.
    fn looked(&mut self, now: Duration) {
        self.delay = (self.delay * 2).min(LOOK_DELAY_MAX);
        self.look_at = now + self.delay;
    }

    fn committed(&mut self, began: Duration, now: Duration) {
        let pause = now.saturating_sub(began) * COMMIT_PAUSE_FACTOR;
        self.commit_at = now + pause.max(COMMIT_DELAY);
    }
}

impl Vfs {
    /// Ends a handle's share of a working copy. If mappings outlive the last handle, they are
    /// looked after from now on.
    pub(super) async fn release_working(&self, node: &Arc<Node>, working: Working) {
        let Some(mapped) = self.writeback().release(working).await else { return };
        let (inner, node) = (Arc::downgrade(&self.inner), node.clone());
        let tending = Tending { inner, clock: self.clock().clone(), node, working: mapped };
        let stop = self.inner.mapped_stop.clone();
        self.inner.mapped.spawn(async move {
            let until_over = tending.until_over();
            if stop.run_until_cancelled(until_over).await.is_none() {
                tending.end().await;
            }
        });
    }

    /// The kernel has brought pages that were stored to. If a program has closed the handle, they
    /// are committed after a while, unless its release comes first.
    pub fn commit_late_stores(&self, number: u64) {
        let Ok(handle) = self.file_handle(number) else { return };
        let is_late = handle.was_closed.load(Ordering::Relaxed);
        if !is_late || handle.is_commit_due.swap(true, Ordering::Relaxed) {
            return;
        }
        let (weak, clock) = (Arc::downgrade(&self.inner), self.clock().clone());
        let stop = self.inner.mapped_stop.clone();
        self.inner.mapped.spawn(async move {
            let wait = clock.sleep_until(clock.boottime() + COMMIT_DELAY);
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
            let Some(inner) = weak.upgrade() else { return };
            let vfs = Vfs { inner };
            let Ok(handle) = vfs.file_handle(number) else { return };
            // First: pages that come while it commits are committed by the next.
            handle.is_commit_due.store(false, Ordering::Relaxed);
            if let Err(error) = vfs.commit(number, Durability::Process).await {
                tracing::warn!(fid = %handle.node().fid, %error, "stores to a mapping wait");
            }
        });
    }

    /// Commits what is stored in files that are mapped still, and leaves them.
    pub(super) async fn leave_mapped(&self) {
        self.inner.mapped_stop.cancel();
        self.inner.mapped.close();
        self.inner.mapped.wait().await;
    }
}

/// A file that is looked after.
struct Tending {
    /// The mount may end without a word, in tests: its files do not keep it.
    inner: Weak<Inner>,
    clock: Arc<dyn dfs_proto::clock::Clock>,
    node: Arc<Node>,
    working: Working,
}

impl Tending {
    async fn until_over(&self) {
        let mut schedule = Schedule::new(self.clock.boottime());
        let mut is_counted = false;
        loop {
            let is_asked = tokio::select! {
                () = self.clock.sleep_until(schedule.look_at) => false,
                () = self.working.asked_to_look() => true,
            };
            let Some(inner) = self.inner.upgrade() else { return };
            let vfs = Vfs { inner };
            if vfs.writeback().is_mapping_over(&self.working).await {
                self.commit(&vfs).await;
                if vfs.writeback().release(self.working.clone()).await.is_none() {
                    return;
                }
                schedule = Schedule::new(self.clock.boottime());
                continue;
            }
            if !is_counted {
                is_counted = true;
                vfs.session().metrics().count(Counter::MappingLeft);
            }
            let now = self.clock.boottime();
            if is_asked || schedule.commit_at <= now {
                self.commit(&vfs).await;
                schedule.committed(now, self.clock.boottime());
            }
            schedule.looked(self.clock.boottime());
        }
    }

    async fn commit(&self, vfs: &Vfs) {
        let Tending { node, working, .. } = self;
        if let Err(error) = vfs.commit_working(node, working, Durability::Process).await {
            let path = vfs.inner.inodes.path(node.nodeid);
            tracing::warn!(path, fid = %node.fid, %error, "stores to a mapping are not stored");
        }
    }

    /// The mount ends.
    async fn end(&self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let vfs = Vfs { inner };
        let is_over = vfs.writeback().is_mapping_over(&self.working).await;
        self.commit(&vfs).await;
        if is_over && vfs.writeback().release(self.working.clone()).await.is_none() {
            return;
        }
        let path = vfs.inner.inodes.path(self.node.nodeid);
        tracing::warn!(path, "the mount ends while the file is mapped; later stores stay here");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_at_first_and_then_once_a_second() {
        let mut schedule = Schedule::new(Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut delays = Vec::new();
        for _ in 0..14 {
            delays.push(schedule.look_at - now);
            now = schedule.look_at;
            schedule.looked(now);
        }
        assert_eq!(delays[0], LOOK_DELAY_FIRST);
        assert!(delays.is_sorted() && delays[1] > delays[0]);
        assert_eq!(delays[13], LOOK_DELAY_MAX);
    }

    #[test]
    fn a_commit_that_took_long_is_not_repeated_soon() {
        let mut schedule = Schedule::new(Duration::ZERO);
        assert_eq!(schedule.commit_at, COMMIT_DELAY);
        schedule.committed(Duration::from_secs(10), Duration::from_secs(10));
        assert_eq!(schedule.commit_at, Duration::from_secs(20));
        schedule.committed(Duration::from_secs(20), Duration::from_secs(50));
        assert_eq!(schedule.commit_at, Duration::from_secs(50 + 300));
    }
}
