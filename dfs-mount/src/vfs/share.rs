//! Handles of files that other clients write too (`writeback::share`): the newest content for those
//! who open or lock, and the lock for those who write.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::admin::Role;
use dfs_proto::directory::{LockWait, Open, OpenAccess, OpenReply};
use dfs_proto::error::FsError;

use super::node::Node;
use super::open::OVERTAKEN_MAX;
use super::{Caller, Error, Vfs};
use crate::writeback::{Working, WriteIntent};

/// Tells the kernel to drop the pages it holds of a node.
pub type DropPages = Box<dyn Fn(u64) + Send + Sync>;

impl Vfs {
    /// From now on the kernel can be told that its pages are old.
    pub fn set_drop_pages(&self, drop_pages: DropPages) {
        // A mount has one kernel.
        let _ = self.inner.drop_pages.set(drop_pages);
    }

    /// Makes a change of a file that is open for writing, with the lock that it needs. `wait` is
    /// for another client's lock; `None` if the caller will not wait.
    ///
    /// # Errors
    /// Those of the change; `LockBusy`, `LockTimeout`; as opening for writing.
    pub async fn with_lock<T>(
        &self,
        caller: &Caller,
        handle: u64,
        waits: bool,
        mut change: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let open = self.file_handle(handle)?;
        let working = open.working().ok_or(Error::BadHandle)?;
        for _ in 0..OVERTAKEN_MAX {
            let intent = self.take_lock(caller, open.node(), &working, waits).await?;
            match change() {
                Err(Error::Shared) => drop(intent),
                result => return result,
            }
        }
        Err(overtaken().into())
    }

    /// Takes the write lock for a working copy, and brings it up to the newest version. While the
    /// answer is held the lock is not given away.
    async fn take_lock(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        working: &Working,
        waits: bool,
    ) -> Result<Option<WriteIntent>, Error> {
        let patience = if waits { self.inner.options.lock_timeout } else { Duration::ZERO };
        let wait_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let wait = if waits { LockWait::UpTo(wait_ms) } else { LockWait::No };
        let access = OpenAccess::Write { wait, read: false };
        for _ in 0..OVERTAKEN_MAX {
            let intent = self.writeback().intend(node.fid).await;
            if working.is_detached() || working.is_vanished() {
                return Err(FsError::Fenced.into());
            }
            let request = Open { fid: node.fid, access, have: Some(working.base()) };
            let identity = working.caller().or(Some(&caller.identity));
            let session = self.session();
            let reply = session.call_waiting(Role::Directory, identity, &request, patience).await;
            let reply = match reply {
                // Nobody else can see it: what is done with it is this client's own affair.
                Err(FsError::Stale) => {
                    self.writeback().give_up_removed(working).await;
                    return Ok(None);
                }
                reply => reply?,
            };
            let is_fresh = {
                let _gate = node.gate.lock().await;
                self.freshen(caller, node, working, &reply).await?
            };
            if is_fresh && self.writeback().take_up(&intent, working, &reply).await? {
                return Ok(Some(intent));
            }
        }
        Err(overtaken().into())
    }

    /// Brings a working copy whose lock another client may have up to the version that an answer
    /// names. The gate is held. False if the answer is out of date, or the copy does not stand for
    /// its file any more.
    pub(super) async fn freshen(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        working: &Working,
        reply: &OpenReply,
    ) -> Result<bool, Error> {
        if working.has_lock() || reply.attr.data_version <= working.base() {
            return Ok(true);
        }
        if reply.manifest.is_none() {
            return Ok(false);
        }
        let (base, identity) = (working.base_file(), Some(&caller.identity));
        let newest = self.fetcher().fetch(self.cache(), identity, reply, Some(&base)).await?;
        let version = newest.version;
        if !self.writeback().refresh(working, newest).await? {
            return Ok(false);
        }
        if working.base() == version {
            node.state().refreshed(version, &reply.attr, reply.sequence);
            self.drop_pages(node.nodeid);
        }
        Ok(true)
    }

    /// The kernel drops its pages of a node; nobody waits for it, since it waits for pages that it
    /// is about to send here.
    fn drop_pages(&self, nodeid: u64) {
        let vfs = self.clone();
        self.inner.mapped.spawn_blocking(move || vfs.drop_pages_now(nodeid));
    }

    fn drop_pages_now(&self, nodeid: u64) {
        if let Some(drop_pages) = self.inner.drop_pages.get() {
            drop_pages(nodeid);
        }
    }

    /// After a lock was granted: the handle's file is brought up to the newest version, and the
    /// kernel shows nothing older. A handle that only reads keeps the version it opened.
    pub(super) async fn take_newest(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        newest: &OpenReply,
    ) -> Result<(), Error> {
        let Some(working) = self.live_working(node) else { return Ok(()) };
        let before = working.base();
        {
            let _gate = node.gate.lock().await;
            if !self.freshen(caller, node, &working, newest).await? {
                return Err(FsError::Conflict { current: newest.attr.data_version }.into());
            }
        }
        if working.base() != before {
            let (vfs, nodeid) = (self.clone(), node.nodeid);
            let dropping = self.inner.mapped.spawn_blocking(move || vfs.drop_pages_now(nodeid));
            // An error means that it panicked, which was logged.
            let _ = dropping.await;
        }
        Ok(())
    }
}

fn overtaken() -> FsError {
    FsError::unavailable("file changes too often to be written to")
}
