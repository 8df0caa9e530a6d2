//! Locks as clients see them: ranges, passed on to the lock service; what people ask about locks;
//! and the service's events on their way to the sessions.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::client::CallError;
use dfs_proto::credential::Identity;
use dfs_proto::directory::OpenReply;
use dfs_proto::directory::lock::{
    AllLocks, AskRange, AskRangeReply, BreakLocksOf, CancelWait, DropRange, FindRange, LocksOf,
    Reclaim,
};
use dfs_proto::id::FileId;
use dfs_proto::lock::{
    BreakLocks, CancelRange, HeldRange, ListLocks, LockEvent, LockEvents, LockPage, LockRange,
    RangeAnswer, RangeClaim, Recall, ReclaimRanges, TestRange, UnlockRange,
};
use dfs_proto::rpc::{Envelope, Rpc};
use dfs_proto::session::SessionEvent;
use dfs_proto::version::{DataVersion, Epoch};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::open::find;
use super::permission::{self, READ, WRITE};
use super::{Directory, rows};
use crate::request::Context;
use crate::session::Told;

/// Pause before the event stream is opened again.
const EVENTS_RETRY: Duration = Duration::from_secs(1);

/// A stream that brings nothing for this long is opened anew, which brings all recalls that are
/// outstanding: so one that met a client without a stream is told to it later.
const EVENTS_REFRESH: Duration = Duration::from_secs(2);

impl Directory {
    async fn ask_lock<R: Rpc>(&self, request: &R) -> Result<R::Reply, FsError> {
        let answer = self.peers.lock()?.call(&Envelope::default(), request, Vec::new()).await;
        Ok(answer.map_err(CallError::into_fs)?.reply)
    }

    /// Asks for a range. In the grace after a start nobody is granted any, so that those who had
    /// some of the owner before can take them up again.
    pub async fn lock_range(
        &self,
        context: Context,
        request: AskRange,
    ) -> Result<AskRangeReply, FsError> {
        let AskRange { fid, owner, pid, range, kind, wait, have } = request;
        let session = context.session()?;
        let holder = self.sessions.describe(session, context.user())?;
        self.may_lock(fid, &context.identity).await?;
        self.grace.wait().await;
        let claim = RangeClaim { session, holder, owner, pid, range, kind };
        let answer = self.ask_lock(&LockRange { fid, claim, wait }).await?;
        let newest = match have {
            Some(have) if answer == RangeAnswer::Granted => self.newer(fid, have).await?,
            _ => None,
        };
        Ok(AskRangeReply { answer, newest })
    }

    /// Whoever may open a file may lock it, and so may its owner. What is gone from here, and still
    /// open at a client, is nobody's secret.
    async fn may_lock(&self, fid: FileId, who: &Identity) -> Result<(), FsError> {
        let (store, who) = (&self.volume_of(fid)?.store, who.clone());
        let judge = move |txn: &mut crate::meta::ReadTxn| {
            let row = rows::inode(txn, fid)?;
            let may = |want| permission::check(&row, &who, want);
            let is_owner = row.uid == who.uid;
            if is_owner { Ok(()) } else { may(READ).or_else(|_| may(WRITE)).map_err(Into::into) }
        };
        match store.read(judge).await {
            Err(FsError::Stale) => Ok(()),
            judged => judged,
        }
    }

    /// The newest version, if it is not `have`.
    async fn newer(
        &self,
        fid: FileId,
        have: DataVersion,
    ) -> Result<Option<Box<OpenReply>>, FsError> {
        let store = &self.volume_of(fid)?.store;
        let found = match store.read(move |txn| find(txn, fid, Some(have), None)).await {
            Err(FsError::Stale) => return Ok(None),
            found => found?,
        };
        if found.is_at(have) {
            return Ok(None);
        }
        Ok(Some(Box::new(self.open_reply(fid, found, None)?)))
    }

    pub async fn test_range(
        &self,
        context: Context,
        request: FindRange,
    ) -> Result<Option<RangeClaim>, FsError> {
        let FindRange { fid, owner, range, kind } = request;
        let session = context.session()?;
        let holder = self.sessions.describe(session, context.user())?;
        self.may_lock(fid, &context.identity).await?;
        let claim = RangeClaim { session, holder, owner, pid: 0, range: range.parse()?, kind };
        self.ask_lock(&TestRange { fid, claim }).await
    }

    pub async fn unlock_range(&self, context: Context, request: DropRange) -> Result<(), FsError> {
        let session = context.session()?;
        self.sessions.describe(session, context.user())?;
        let DropRange { fid, owner, range } = request;
        self.ask_lock(&UnlockRange { fid, session, owner, range: range.parse()? }).await
    }

    pub async fn cancel_range(&self, context: Context, request: CancelWait) -> Result<(), FsError> {
        let session = context.session()?;
        self.sessions.describe(session, context.user())?;
        self.ask_lock(&CancelRange { fid: request.fid, session, wait: request.wait }).await
    }

    /// A session comes back with the ranges that it had. It keeps them if it was here before this
    /// owner started and has not come back until now: then nobody else was granted any.
    pub async fn reclaim_ranges(
        &self,
        context: Context,
        request: Reclaim,
    ) -> Result<Vec<HeldRange>, FsError> {
        let session = context.session()?;
        let holder = self.sessions.describe(session, context.user())?;
        let is_grace = self.grace.awaits(session);
        let held = request.held;
        self.ask_lock(&ReclaimRanges { session, holder, held, is_grace }).await
    }

    pub async fn locks_of(&self, context: Context, request: LocksOf) -> Result<LockPage, FsError> {
        let fid = request.fid;
        self.may_lock(fid, &context.identity).await?;
        self.ask_lock(&ListLocks { fid: Some(fid), after: None }).await
    }

    pub async fn all_locks(&self, request: AllLocks) -> Result<LockPage, FsError> {
        self.ask_lock(&ListLocks { fid: None, after: request.after }).await
    }

    pub async fn break_locks(
        &self,
        context: Context,
        request: BreakLocksOf,
    ) -> Result<u64, FsError> {
        let BreakLocksOf { fid } = request;
        let count = self.ask_lock(&BreakLocks { fid }).await?;
        tracing::warn!(%fid, count, by = context.user(), "locks were broken");
        Ok(count)
    }

    /// Passes events of the lock service on to the sessions.
    pub async fn run_lock_events(self, stop: CancellationToken) {
        let (mut was_working, mut epoch) = (true, None);
        loop {
            let passed = tokio::select! {
                () = stop.cancelled() => return,
                passed = self.pass_events(&mut epoch) => passed,
            };
            if let Err(error) = &passed
                && was_working
            {
                tracing::warn!(%error, "waiting for the lock server");
            }
            was_working = passed.is_ok();
            let pause = if was_working { Duration::ZERO } else { EVENTS_RETRY };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(self.clock.boottime() + pause) => {}
            }
        }
    }

    async fn pass_events(&self, epoch: &mut Option<Epoch>) -> Result<(), CallError> {
        let lock = self.peers.lock()?;
        let mut events = lock.open_stream(&Envelope::default(), &LockEvents {}).await?;
        loop {
            match tokio::time::timeout(EVENTS_REFRESH, events.next()).await {
                Ok(Some(event)) => self.pass_event(event?, epoch).await,
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    async fn pass_event(&self, event: LockEvent, epoch: &mut Option<Epoch>) {
        match event {
            LockEvent::Started { epoch: now } => {
                // A service that started while we ran: the sessions know what they hold.
                if epoch.replace(now).is_some_and(|before| before != now) {
                    tracing::warn!(epoch = now.0, "the lock server has restarted");
                    self.sessions.tell_all(&SessionEvent::ReclaimRanges);
                }
            }
            LockEvent::Recall(Recall { fid, session, token }) => {
                let event = SessionEvent::LockRecall { fid, token };
                if self.sessions.tell(session, event) == Told::Unknown {
                    // Nobody can give it back: the session is gone.
                    self.unlock(session, fid, token).await;
                }
            }
            // Whoever is not told asks about its wait before long.
            LockEvent::RangeReady { fid, session, wait } => {
                self.sessions.tell(session, SessionEvent::RangeReady { fid, wait });
            }
            LockEvent::RangesLost { fid, session } => {
                self.sessions.tell(session, SessionEvent::RangesLost { fid });
            }
        }
    }
}
