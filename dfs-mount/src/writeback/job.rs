//! One change of one file on its way to the servers: the right to make it, and the requests about
//! that right.
//!
//! A change needs a grant (fencing token and capability) and a placement. They are shared by the
//! requests in flight for it, and replaced on the way: a capability that expired is renewed under
//! the same lock; a lock that was lost is asked for again, which is good for anything only if the
//! file is still at the change's base.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::capability::WriteCapability;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{
    CommitAttr, Durability, LockWait, Open, OpenAccess, Placement, RenewWrite, WriteGrant,
};
use dfs_proto::id::FileId;

use crate::cache::CacheFile;
use crate::cache::record::Content;
use crate::session::Session;

/// Where the bytes come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Cached(Arc<CacheFile>),
    Plain(Arc<File>),
}

impl Source {
    pub fn file(&self) -> &File {
        match self {
            Source::Cached(file) => file.file(),
            Source::Plain(file) => file,
        }
    }
}

/// A change to be sent.
#[derive(Debug)]
pub(super) struct Job {
    pub session: Session,
    pub fid: FileId,
    pub caller: Option<Identity>,
    pub source: Source,
    pub base: Content,
    pub attr: CommitAttr,
    pub durability: Durability,
    right: Mutex<Option<(WriteGrant, Placement)>>,
    /// Held while the right is asked for anew: one at a time.
    asking: tokio::sync::Mutex<()>,
}

/// What a job starts from.
pub(super) struct Change {
    pub fid: FileId,
    pub caller: Option<Identity>,
    pub source: Source,
    pub base: Content,
    pub attr: CommitAttr,
    pub durability: Durability,
}

/// How long a lost lock is waited for. Why: longer than the lease of a client that died with it;
/// one that lives and has it is about to change the file, which makes a longer wait pointless.
const RELOCK_WAIT: Duration = Duration::from_secs(15);

impl Job {
    pub fn new(session: Session, change: Change, right: Option<(WriteGrant, Placement)>) -> Job {
        Job {
            session,
            fid: change.fid,
            caller: change.caller,
            source: change.source,
            base: change.base,
            attr: change.attr,
            durability: change.durability,
            right: Mutex::new(right),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The right as it is now.
    pub fn right(&self) -> Option<(WriteGrant, Placement)> {
        self.lock().clone()
    }

    /// The right, asked for if there is none.
    ///
    /// # Errors
    /// As [`Job::relock`].
    pub async fn ensured(&self) -> Result<(WriteGrant, Placement), FsError> {
        if let Some(right) = self.right() {
            return Ok(right);
        }
        self.relock().await?;
        self.right().ok_or(FsError::Fenced)
    }

    pub fn keep_capability(&self, capability: WriteCapability) {
        if let Some((grant, _)) = self.lock().as_mut() {
            grant.capability = capability;
        }
    }

    /// Replaces a capability that was refused, under the same lock. Does nothing if somebody else
    /// did.
    ///
    /// # Errors
    /// `Fenced` if the lock is lost; `Conflict` if the file is not at the base; `Stale`; no
    /// answer.
    pub async fn renew(&self, refused: &WriteCapability) -> Result<(), FsError> {
        let _one = self.asking.lock().await;
        let Some((grant, _)) = self.right().filter(|(grant, _)| grant.capability == *refused)
        else {
            return Ok(());
        };
        let request = RenewWrite { fid: self.fid, token: grant.token };
        let fresh = self.session.call(Role::Directory, self.caller.as_ref(), &request).await?;
        let current = fresh.capability.right.base;
        if current != self.base.version {
            return Err(FsError::Conflict { current });
        }
        if let Some((grant, _)) = self.lock().as_mut() {
            *grant = fresh;
        }
        Ok(())
    }

    /// Takes the write lock again.
    ///
    /// # Errors
    /// `Conflict` if the file is not at the base any more; `LockTimeout`, `Stale`, `AccessDenied`;
    /// no answer.
    pub async fn relock(&self) -> Result<(), FsError> {
        let _one = self.asking.lock().await;
        let wait_ms = u32::try_from(RELOCK_WAIT.as_millis()).unwrap_or(u32::MAX);
        let access = OpenAccess::Write { wait: LockWait::UpTo(wait_ms), read: false };
        let request = Open { fid: self.fid, access, have: Some(self.base.version) };
        let call =
            self.session.call_waiting(Role::Directory, self.caller.as_ref(), &request, RELOCK_WAIT);
        let reply = call.await?;
        let current = reply.attr.data_version;
        if current != self.base.version {
            return Err(FsError::Conflict { current });
        }
        let grant = reply.write.ok_or_else(|| FsError::malformed("open without the lock"))?;
        *self.lock() = Some((grant, reply.placement));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<(WriteGrant, Placement)>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
