//! Locks that programs take, and what closing a file does with them.
//!
//! flock(2) and fcntl(2) locks come as one kind of request. A wait for one has no permit and no
//! thread, and ends with any signal that its program handles or dies of: programs bound their waits
//! with alarm(2), and go on waiting by themselves if they asked for that (SA_RESTART).

use dfs_proto::error::FsError;
use dfs_proto::lock::LockOwner;
use dfs_proto::range::{RANGE_END_MAX, Range, RangeKind};
use fuser::{FileHandle, INodeNo, ReplyEmpty, ReplyLock};
use tokio_util::sync::CancellationToken;

use super::Fuse;
use super::ask::{Asker, question, unbounded};
use super::interrupt::Wakes;
use super::reply::{self, Request};
use crate::sys;
use crate::vfs::{FoundLock, LockAsk};

/// A lock as the kernel describes it: the last byte is part of it.
#[derive(Clone, Copy)]
pub(super) struct KernelLock {
    pub(super) owner: fuser::LockOwner,
    pub(super) pid: u32,
    pub(super) start: u64,
    pub(super) last: u64,
    pub(super) kind: i32,
}

impl KernelLock {
    fn range(self) -> Result<Range, FsError> {
        let end = self.last.saturating_add(1).min(RANGE_END_MAX);
        Range { start: self.start, end }.parse()
    }

    /// What is asked for; `None` to give it back.
    fn wanted(self) -> Result<Option<RangeKind>, FsError> {
        match self.kind {
            sys::LOCK_SHARED => Ok(Some(RangeKind::Shared)),
            sys::LOCK_EXCLUSIVE => Ok(Some(RangeKind::Exclusive)),
            sys::LOCK_NONE => Ok(None),
            other => Err(FsError::invalid(format!("lock type {other}"))),
        }
    }

    fn owner(self) -> LockOwner {
        LockOwner(self.owner.0)
    }
}

impl Fuse {
    pub(super) fn serve_lock(
        &self,
        (request, asker): (Request, Asker),
        (handle, lock): (FileHandle, KernelLock),
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let (range, kind) = match (lock.range(), lock.wanted()) {
            (Ok(range), Ok(kind)) => (range, kind),
            (Err(error), _) | (_, Err(error)) => {
                return reply::refuse(request, reply, &error.into());
            }
        };
        let (vfs, owner, handle) = (self.vfs.clone(), lock.owner(), handle.0);
        let Some(kind) = kind else {
            let operation = async move { vfs.unlock_range(handle, owner, range).await };
            // Others wait for it, and it must not be left half done.
            let request = Request { wakes: Wakes::Fatal, ..unbounded(request) };
            return self.answer_empty(request, reply, operation);
        };
        let ask = LockAsk { owner, pid: lock.pid, range, kind, waits };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let operation = async move { vfs.lock_range(&asker.caller(), handle, ask, &stopped).await };
        let late = self.vfs.clone();
        let undo = move |()| async move {
            if let Err(error) = late.unlock_range(handle, owner, range).await {
                tracing::debug!(%error, "a lock that nobody waited for goes back");
            }
        };
        let request = Request { wakes: Wakes::Any, ..unbounded(request) };
        let accept = |reply: ReplyEmpty, ()| reply.ok();
        self.server.serve_until(request, reply, operation, (accept, undo, stop));
    }

    pub(super) fn serve_find_lock(
        &self,
        (request, asker): (Request, Asker),
        (handle, lock): (FileHandle, KernelLock),
        reply: ReplyLock,
    ) {
        let wanted = lock
            .wanted()
            .and_then(|kind| kind.ok_or_else(|| FsError::invalid("lock type F_UNLCK of a test")));
        let (range, kind) = match (lock.range(), wanted) {
            (Ok(range), Ok(kind)) => (range, kind),
            (Err(error), _) | (_, Err(error)) => {
                return reply::refuse(request, reply, &error.into());
            }
        };
        let (vfs, owner, pid) = (self.vfs.clone(), lock.owner(), lock.pid);
        let ask = LockAsk { owner, pid, range, kind, waits: false };
        let operation = async move { vfs.find_lock(&asker.caller(), handle.0, ask).await };
        let accept = |reply: ReplyLock, found: Option<FoundLock>| match found {
            None => reply.locked(0, 0, sys::LOCK_NONE, 0),
            Some(FoundLock { range, kind, pid }) => {
                let kind = match kind {
                    RangeKind::Shared => sys::LOCK_SHARED,
                    RangeKind::Exclusive => sys::LOCK_EXCLUSIVE,
                };
                reply.locked(range.start, range.end - 1, kind, pid);
            }
        };
        self.server.answer(unbounded(request), reply, operation, accept);
    }

    /// A program closes a handle: what was written is committed, then its process's locks go back.
    pub(super) fn serve_flush(
        &self,
        request: &fuser::Request,
        (nodeid, handle): (INodeNo, FileHandle),
        owner: fuser::LockOwner,
        reply: ReplyEmpty,
    ) {
        let (handle, owner) = (handle.0, LockOwner(owner.0));
        let is_clean = self.vfs.closes_clean(handle);
        if is_clean && !self.vfs.has_locks(handle, owner) {
            return reply.ok();
        }
        let vfs = self.vfs.clone();
        let operation = async move {
            let flushed = vfs.flush(handle).await;
            flushed.and(vfs.drop_owner(handle, owner).await)
        };
        self.answer_empty(unbounded(question("flush", request, nodeid)), reply, operation);
    }

    /// The last of a handle's descriptors is closed, and with them go its own locks.
    pub(super) fn serve_release(&self, nodeid: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        self.backings.forget_handle(handle.0);
        let vfs = self.vfs.clone();
        let operation = async move { vfs.release(handle.0).await };
        // Nobody waits for a release.
        let (op, nodeid, wakes) = ("release", nodeid.0, Wakes::Fatal);
        let request = Request { op, nodeid, pid: 0, wakes, needs_permit: false };
        self.answer_empty(request, reply, operation);
    }
}
