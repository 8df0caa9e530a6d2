//! Locks that programs take: flock(2) on whole files, fcntl(2) on ranges.
//!
//! The server decides about all of them, also between programs of this client: so there is one rule
//! and one queue, at the cost of a request for each lock and one to give it back. The two kinds are
//! one here: the kernel's requests do not tell them apart, but each has owners of its own (the open
//! file for flock(2) and open file description locks, else the process).
//!
//! Before ranges go back, what was written is committed; whoever gets them next finds it. So it is
//! before a program waits for one: whoever has the range may have to write to the file, and could
//! not while we keep its write lock for what is not committed. What a
//! closing program has is given back by FLUSH (its process's) and RELEASE (its open file's).

use std::time::Duration;

use dfs_proto::admin::Role;
use dfs_proto::directory::lock::{AskRange, AskRangeReply, CancelWait, DropRange, FindRange};
use dfs_proto::error::FsError;
use dfs_proto::id::FileId;
use dfs_proto::limits::RANGE_ASK_INTERVAL;
use dfs_proto::lock::{LockOwner, RangeAnswer, RangeClaim};
use dfs_proto::range::{Range, RangeKind};
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use super::io::FileHandle;
use super::{Caller, Error, Vfs};
use crate::metrics::Counter;
use crate::session::ranges::{RangeWait, Ranges};

/// Longest wait for ranges that a program of this client gives back as it ends. Why: as long as a
/// close may wait for its commit; who does not want to wait is told EAGAIN then.
const GOING_PATIENCE: Duration = Duration::from_secs(30);

/// A range that a program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockAsk {
    pub owner: LockOwner,
    /// The process, for people on other machines.
    pub pid: u32,
    pub range: Range,
    pub kind: RangeKind,
    /// Whether it waits if somebody has it.
    pub waits: bool,
}

/// A lock that stands against another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundLock {
    pub range: Range,
    pub kind: RangeKind,
    /// 0 if the process is on another machine.
    pub pid: u32,
}

impl Vfs {
    fn ranges(&self) -> &Ranges {
        self.session().ranges()
    }

    /// Takes a range. `stop` ends a wait.
    ///
    /// # Errors
    /// `LockBusy` if somebody has it and the asker does not wait; `LockTimeout` after
    /// `lock_timeout`; `Interrupted`; `Local` with EIO if the owner's earlier locks of the file
    /// were lost; `TooLarge`; no answer.
    pub async fn lock_range(
        &self,
        caller: &Caller,
        handle: u64,
        ask: LockAsk,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let open = self.file_handle(handle)?;
        let fid = open.node().fid;
        self.give_back_owed(fid).await?;
        open.note_owner(ask.owner);
        let wait = ask.waits.then(|| self.ranges().wait());
        let asking = Asking { vfs: self, caller, open: &open, ask, wait: wait.as_ref() };
        let granted = asking.until_granted(stop).await?;
        // What was granted is of no use without the content that goes with it.
        let taken = match &granted.newest {
            Some(newest) => self.take_newest(caller, open.node(), newest).await,
            None => Ok(()),
        };
        if taken.is_err() {
            self.unlock(&open, ask.owner, ask.range).await?;
        }
        taken
    }

    /// The lock that stands against a range, if any.
    ///
    /// # Errors
    /// No answer.
    pub async fn find_lock(
        &self,
        caller: &Caller,
        handle: u64,
        ask: LockAsk,
    ) -> Result<Option<FoundLock>, Error> {
        let fid = self.file_handle(handle)?.node().fid;
        self.give_back_owed(fid).await?;
        let LockAsk { owner, range, kind, .. } = ask;
        let found = self.ask(caller, &FindRange { fid, owner, range, kind }).await?;
        let own = self.session().id();
        Ok(found.map(|RangeClaim { session, pid, range, kind, .. }| {
            let pid = if session == own { pid } else { 0 };
            FoundLock { range, kind, pid }
        }))
    }

    /// Gives back what an owner has in a range, after what was written is committed.
    ///
    /// # Errors
    /// Of the commit; the range goes back all the same.
    pub async fn unlock_range(
        &self,
        handle: u64,
        owner: LockOwner,
        range: Range,
    ) -> Result<(), Error> {
        let open = self.file_handle(handle)?;
        self.unlock(&open, owner, range).await
    }

    /// A process closes a file: fcntl(2) takes all its locks of it away, whichever handle they
    /// were taken through.
    ///
    /// # Errors
    /// As [`Vfs::unlock_range`].
    pub async fn drop_owner(&self, handle: u64, owner: LockOwner) -> Result<(), Error> {
        self.unlock_range(handle, owner, Range::WHOLE).await
    }

    /// Whether an owner has locks of a handle's file.
    pub fn has_locks(&self, handle: u64, owner: LockOwner) -> bool {
        self.file_handle(handle).is_ok_and(|open| self.ranges().has_some(open.node().fid, owner))
    }

    async fn unlock(&self, open: &FileHandle, owner: LockOwner, range: Range) -> Result<(), Error> {
        let fid = open.node().fid;
        if !self.ranges().has_some(fid, owner) {
            return Ok(());
        }
        let committed = self.commit_written(open).await;
        if self.ranges().let_go(fid, owner, range) {
            self.session().metrics().count(Counter::RangeGivenBack);
            self.give_back(DropRange { fid, owner, range }).await;
        }
        committed
    }

    /// Commits what anybody here has written to the file: others go by the lock that is about to
    /// go, whoever wrote.
    async fn commit_written(&self, open: &FileHandle) -> Result<(), Error> {
        let Some(working) = self.working(open.node()) else { return Ok(()) };
        let durability = dfs_proto::directory::Durability::Process;
        self.commit_working(open.node(), &working, durability).await?;
        self.writeback().share_as_told(open.node().fid).await;
        Ok(())
    }

    /// A handle is released: its owners' ranges go back. The commit is through.
    pub(super) async fn release_ranges(&self, open: &FileHandle) {
        let fid = open.node().fid;
        for owner in open.owners() {
            if self.ranges().let_go(fid, owner, Range::WHOLE) {
                self.session().metrics().count(Counter::RangeGivenBack);
                self.give_back(DropRange { fid, owner, range: Range::WHOLE }).await;
            }
            self.ranges().has_gone(fid, owner);
        }
    }

    /// Says that a handle's ranges are about to go back, for those who ask meanwhile.
    pub(super) fn begin_to_release_ranges(&self, open: &FileHandle) {
        let fid = open.node().fid;
        open.owners().into_iter().for_each(|owner| self.ranges().begin_to_go(fid, owner));
    }

    async fn give_back(&self, range: DropRange) {
        if let Err(error) = self.session().call(Role::Directory, None, &range).await {
            tracing::debug!(fid = %range.fid, %error, "a lock goes back later");
            self.ranges().owe(range);
        }
    }

    /// An unlock that is owed must not come after the lock that is asked for.
    async fn give_back_owed(&self, fid: FileId) -> Result<(), Error> {
        let mut owed = self.ranges().take_owed(Some(fid)).into_iter();
        while let Some(range) = owed.next() {
            if let Err(error) = self.session().call(Role::Directory, None, &range).await {
                self.ranges().owe(range);
                owed.for_each(|rest| self.ranges().owe(rest));
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// One range that is being asked for.
struct Asking<'a> {
    vfs: &'a Vfs,
    caller: &'a Caller,
    open: &'a FileHandle,
    ask: LockAsk,
    wait: Option<&'a RangeWait<'a>>,
}

/// How a wait goes on.
enum Next {
    Ask,
    Stop,
    Late,
}

impl Asking<'_> {
    async fn until_granted(&self, stop: &CancellationToken) -> Result<AskRangeReply, Error> {
        let clock = self.vfs.clock();
        let late_at = clock.boottime() + self.vfs.inner.options.lock_timeout;
        let mut has_committed = false;
        loop {
            if self.vfs.ranges().is_lost(self.open.node().fid, self.ask.owner) {
                self.cancel().await;
                return Err(lost());
            }
            let opening = self.vfs.session().key().opening;
            let reply = self.send().await?;
            let other = match &reply.answer {
                RangeAnswer::Granted if self.is_kept(opening) => return Ok(reply),
                // The session was opened again meanwhile: the grant may be of before.
                RangeAnswer::Granted => continue,
                RangeAnswer::Held(other) if self.is_leaving(other).await => continue,
                RangeAnswer::Held(other) => {
                    return Err(FsError::LockBusy { holder: other.holder.clone() }.into());
                }
                RangeAnswer::Queued(other) => other,
            };
            if !std::mem::replace(&mut has_committed, true)
                && let Err(error) = self.vfs.commit_written(self.open).await
            {
                self.cancel().await;
                return Err(error);
            }
            match self.pause(stop, late_at).await {
                Next::Ask => {}
                Next::Stop => {
                    self.cancel().await;
                    return Err(Error::Interrupted);
                }
                Next::Late => {
                    self.cancel().await;
                    return Err(FsError::LockTimeout { holder: other.holder.clone() }.into());
                }
            }
        }
    }

    async fn send(&self) -> Result<AskRangeReply, Error> {
        let LockAsk { owner, pid, range, kind, .. } = self.ask;
        let fid = self.open.node().fid;
        let wait = self.wait.map(|wait| wait.number);
        let have = self.vfs.live_working(self.open.node()).map(|working| working.base());
        let request = AskRange { fid, owner, pid, range, kind, wait, have };
        self.vfs.ask(self.caller, &request).await
    }

    /// Notes a grant, unless the session it was made to is gone.
    fn is_kept(&self, opening: u64) -> bool {
        let LockAsk { owner, pid, range, kind, .. } = self.ask;
        let (fid, session) = (self.open.node().fid, self.vfs.session());
        session.ranges().set(fid, (owner, pid), range, Some(kind));
        if session.key().opening == opening {
            return true;
        }
        session.ranges().let_go(fid, owner, range);
        false
    }

    /// Whether another program of this client that has the range has closed its file; then the
    /// kernel has told its closer that it is done, and it must not stand in anybody's way.
    async fn is_leaving(&self, other: &RangeClaim) -> bool {
        if other.session != self.vfs.session().id() {
            return false;
        }
        let gone = self.vfs.ranges().until_gone(self.open.node().fid, other.owner);
        let clock = self.vfs.clock();
        tokio::select! {
            was_going = gone => was_going,
            () = clock.sleep_until(clock.boottime() + GOING_PATIENCE) => false,
        }
    }

    async fn pause(&self, stop: &CancellationToken, late_at: Duration) -> Next {
        let clock = self.vfs.clock();
        let woken = async {
            match self.wait {
                Some(wait) => wait.woken().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = woken => Next::Ask,
            () = stop.cancelled() => Next::Stop,
            () = clock.sleep_until(late_at) => Next::Late,
            () = clock.sleep_until(clock.boottime() + RANGE_ASK_INTERVAL) => Next::Ask,
        }
    }

    /// Gives the place up. If that does not get through, the server forgets it by itself.
    async fn cancel(&self) {
        let Some(wait) = self.wait else { return };
        let request = CancelWait { fid: self.open.node().fid, wait: wait.number };
        if let Err(error) = self.vfs.session().call(Role::Directory, None, &request).await {
            tracing::debug!(fid = %request.fid, %error, "a wait for a lock ends later");
        }
    }
}

fn lost() -> Error {
    const WHAT: &str = "lock a file whose earlier locks were lost; close it and begin again";
    Error::local(WHAT)(Errno::EIO.into())
}
