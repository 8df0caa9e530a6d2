//! The lock service's part for ranges, and for people who look at locks.

use std::collections::BTreeSet;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::id::FileId;
use dfs_proto::limits::{LOCK_PAGE_FILES_MAX, RECLAIM_RANGES_MAX};
use dfs_proto::lock::{
    BreakLocks, CancelRange, FileLocks, HeldRange, ListLocks, LockEvent, LockPage, LockRange,
    RangeAnswer, RangeClaim, ReclaimRanges, TestRange, UnlockRange,
};
use tokio_util::sync::CancellationToken;

use super::range::{Moment, Ready};
use super::{LockService, State};

/// How often waits that nobody asks about are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

impl State {
    pub(super) fn wake(&mut self, ready: Vec<Ready>) {
        for Ready { fid, session, wait } in ready {
            self.tell(&LockEvent::RangeReady { fid, session, wait });
        }
    }

    fn list(&self, fid: FileId) -> FileLocks {
        let (writer, waiting_writers) = self.table.list(fid);
        let (ranges, waiting_ranges) = self.ranges.list(fid);
        FileLocks { fid, writer, waiting_writers, ranges, waiting_ranges }
    }
}

impl LockService {
    pub(super) fn moment(&self) -> Moment {
        let clock = &self.shared.clock;
        Moment { boottime: clock.boottime(), wall: clock.wall() }
    }

    fn is_grace(&self) -> bool {
        self.shared.clock.boottime() < self.shared.grace_ends_at
    }

    /// Grants a range, queues the asker, or says who has it. Waits for nothing but the end of the
    /// grace after a start.
    ///
    /// # Errors
    /// `InvalidArgument`, `TooLarge`.
    pub async fn lock_range(&self, request: LockRange) -> Result<RangeAnswer, FsError> {
        if self.is_grace() {
            self.shared.clock.sleep_until(self.shared.grace_ends_at).await;
        }
        let LockRange { fid, claim, wait } = request;
        let mut state = self.state();
        let (answer, ready) = state.ranges.ask(fid, &claim, wait, self.moment())?;
        state.wake(ready);
        Ok(answer)
    }

    /// Whose range stands against one.
    pub fn test_range(&self, request: &TestRange) -> Option<RangeClaim> {
        self.state().ranges.test(request.fid, &request.claim)
    }

    /// An owner gives back what it has in a range.
    pub fn unlock_range(&self, request: &UnlockRange) {
        let UnlockRange { fid, session, owner, range } = *request;
        let mut state = self.state();
        let ready = state.ranges.unlock(fid, (session, owner), range, self.moment());
        state.wake(ready);
    }

    /// A wait is over.
    pub fn cancel_range(&self, request: &CancelRange) {
        let CancelRange { fid, session, wait } = *request;
        let mut state = self.state();
        let ready = state.ranges.cancel(fid, session, wait, self.moment());
        state.wake(ready);
    }

    /// Takes a session's ranges up again; those that are lost.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn reclaim_ranges(&self, request: &ReclaimRanges) -> Result<Vec<HeldRange>, FsError> {
        let ReclaimRanges { session, holder, held, is_grace } = request;
        if held.len() > RECLAIM_RANGES_MAX {
            let what = "number of ranges to take up again".to_owned();
            return Err(FsError::TooLarge { what, limit: RECLAIM_RANGES_MAX as u64 });
        }
        if !is_grace && !self.is_grace() {
            return Ok(held.clone());
        }
        let mut state = self.state();
        let mut lost = Vec::new();
        for it in held {
            let HeldRange { fid, owner, pid, range, kind } = *it;
            let claim =
                RangeClaim { session: *session, holder: holder.clone(), owner, pid, range, kind };
            if state.ranges.reclaim(fid, &claim, self.moment()).is_err() {
                lost.push(it.clone());
            }
        }
        Ok(lost)
    }

    /// A page of the locks of files.
    pub fn list(&self, request: &ListLocks) -> LockPage {
        let state = self.state();
        if let Some(fid) = request.fid {
            return LockPage { files: vec![state.list(fid)], is_last: true };
        }
        let is_after = |fid: &FileId| request.after.is_none_or(|after| *fid > after);
        let mut fids: BTreeSet<FileId> = state.table.files().filter(is_after).collect();
        fids.extend(state.ranges.files_after(request.after).take(LOCK_PAGE_FILES_MAX + 1));
        let is_last = fids.len() <= LOCK_PAGE_FILES_MAX;
        let files = fids.into_iter().take(LOCK_PAGE_FILES_MAX).map(|fid| state.list(fid));
        LockPage { files: files.collect(), is_last }
    }

    /// Takes all locks of a file from those who hold them; how many there were.
    pub fn break_locks(&self, request: &BreakLocks) -> u64 {
        let fid = request.fid;
        let mut state = self.state();
        let (was_held, actions) = state.table.break_lock(fid);
        state.apply(actions);
        let (sessions, count, ready) = state.ranges.break_all(fid, self.moment());
        for session in sessions {
            state.tell(&LockEvent::RangesLost { fid, session });
        }
        state.wake(ready);
        count + u64::from(was_held)
    }

    /// Takes back waits, and grants, that nobody asks about.
    pub async fn run_expiry(self, stop: CancellationToken) {
        loop {
            let next = self.shared.clock.boottime() + EXPIRY_INTERVAL;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.clock.sleep_until(next) => {}
            }
            let mut state = self.state();
            let ready = state.ranges.expire(self.moment());
            state.wake(ready);
        }
    }
}
