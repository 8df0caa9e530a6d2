//! Opening files: permission, version, lock, capabilities. And the commit that ends a store.

use std::collections::HashSet;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::{FileKind, SetAttr};
use dfs_proto::capability::{
    CapabilityFault, CommitIntent, ReadRight, WriteCapability, WriteRight,
};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::codec;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{
    Change, Commit, CommitAttr, CommitReply, Create, CreateReply, FirstAttr, LockWait, Open,
    OpenAccess, OpenReply, RenewWrite, WriteGrant, Yield,
};
use dfs_proto::id::{FileId, NodeId, SessionId};
use dfs_proto::limits::{CAPABILITY_LIFETIME, GROUP_COUNT_MAX, HEAD_BYTES_MAX};
use dfs_proto::lock::{Grant, Release};
use dfs_proto::manifest::Manifest;
use dfs_proto::rpc::Envelope;
use dfs_proto::version::{DataVersion, DirVersion, FencingToken, Sequence};
use serde::{Deserialize, Serialize};

use super::Directory;
use super::commit::{self, NewContent};
use super::create::{self, Details, NewEntry};
use super::permission::{self, READ, WRITE};
use super::rows::{self, InodeRow};
use crate::ledger::{OpTag, Ran, run_once};
use crate::meta::{Abort, Durability, ReadTxn, Txn};
use crate::request::{Context, Origin};

/// Time that the lock service gets beyond the wait it is asked for. Units: milliseconds.
const LOCK_CALL_GRACE_MS: u32 = 5_000;

/// A file as an open finds it.
pub(super) struct Found {
    row: Arc<InodeRow>,
    /// It has no name any more: a change of it goes nowhere.
    is_removed: bool,
    manifest: Option<Manifest>,
    sequence: Sequence,
}

impl Found {
    pub(super) fn is_at(&self, version: DataVersion) -> bool {
        self.row.data_version == version
    }
}

/// A creation as the ledger keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Created {
    fid: FileId,
    is_new: bool,
    before: DirVersion,
    after: DirVersion,
}

/// How often the maker of a file asks for its lock. Why so few: each repetition needs another
/// client to ask for it, and to get it, between two steps of one request.
const LOST_MAX: u32 = 8;

impl Directory {
    pub async fn open(&self, context: Context, request: Open) -> Result<OpenReply, FsError> {
        match request.access {
            OpenAccess::Read => self.open_to_read(&context, request).await,
            OpenAccess::Write { wait, read } => {
                let want = WRITE | if read { READ } else { 0 };
                self.open_to_write(&context, request, wait, want).await
            }
        }
    }

    async fn open_to_read(&self, context: &Context, request: Open) -> Result<OpenReply, FsError> {
        let (who, Open { fid, have, .. }) = (context.identity.clone(), request);
        let store = &self.volume_of(fid)?.store;
        let found = store.read(move |txn| find(txn, fid, have, Some((&who, READ)))).await?;
        self.open_reply(fid, found, None)
    }

    /// Asks for permission before the lock, so that nobody recalls a lock they may not have.
    async fn open_to_write(
        &self,
        context: &Context,
        request: Open,
        wait: LockWait,
        want: u32,
    ) -> Result<OpenReply, FsError> {
        let fid = request.fid;
        let store = &self.volume_of(fid)?.store;
        let who = context.identity.clone();
        let before = store.read(move |txn| find(txn, fid, None, Some((&who, want)))).await?;
        let token = self.lock(context, fid, wait).await?;
        let fenced = self.fence(context, request, token, Some(want)).await;
        // A token that was the fence already is that of another open of this session.
        if fenced.is_err() && before.row.fence != token {
            self.unlock(context.session()?, fid, token).await;
        }
        fenced
    }

    /// Records a granted token in the inode's row, and reads the version it is for.
    ///
    /// A token that is recorded (by the creation, or by another open of the session) costs no
    /// commit.
    async fn fence(
        &self,
        context: &Context,
        request: Open,
        token: FencingToken,
        want: Option<u32>,
    ) -> Result<OpenReply, FsError> {
        let session = context.session()?;
        let (who, Open { fid, have, .. }) = (context.identity.clone(), request);
        let store = &self.volume_of(fid)?.store;
        let found = {
            let who = who.clone();
            let read = move |txn: &mut ReadTxn| {
                let found = find(txn, fid, have, want.map(|want| (&who, want)))?;
                let is_recorded = found.is_removed || fenced(&found.row, token, &who)?.is_none();
                Ok(is_recorded.then_some(found))
            };
            store.read(read).await?
        };
        let found = match found {
            Some(found) => found,
            None => {
                let work = move |txn: &mut Txn| {
                    let found = find(txn, fid, have, want.map(|want| (&who, want)))?;
                    let changed = fenced(&found.row, token, &who)?;
                    if let Some(row) = changed.filter(|_| !found.is_removed) {
                        rows::put_inode(txn, fid, row);
                    }
                    Ok(found)
                };
                store.write(Durability::Process, work).await?
            }
        };
        self.open_reply(fid, found, Some((session, token)))
    }

    pub(super) fn open_reply(
        &self,
        fid: FileId,
        found: Found,
        lock: Option<(SessionId, FencingToken)>,
    ) -> Result<OpenReply, FsError> {
        let Found { row, manifest, sequence, .. } = found;
        let placement = self.file_nodes.addresses(&row.replicas)?;
        let expires_secs = self.capability_end();
        let write = lock.map(|(session, token)| WriteGrant {
            token,
            capability: self.write_capability(fid, &row, session, token),
        });
        let read = self.capability_key.seal_read(ReadRight { fid, expires_secs });
        let attr = row.attr(fid.volume, fid.inode);
        Ok(OpenReply { attr, manifest, placement, read, write, sequence })
    }

    fn write_capability(
        &self,
        fid: FileId,
        row: &InodeRow,
        session: SessionId,
        token: FencingToken,
    ) -> WriteCapability {
        self.capability_key.seal_write(WriteRight {
            fid,
            base: row.data_version,
            token,
            session,
            replicas: row.replicas.clone(),
            expires_secs: self.capability_end(),
        })
    }

    fn capability_end(&self) -> i64 {
        self.clock.wall().secs + CAPABILITY_LIFETIME.as_secs().cast_signed()
    }

    /// Makes a file with its write lock, or opens the one that is there.
    pub async fn create(&self, context: Context, request: Create) -> Result<CreateReply, FsError> {
        let wait = match request.access {
            OpenAccess::Write { wait, .. } => wait,
            OpenAccess::Read => LockWait::No,
        };
        let volume = request.parent.volume;
        let fid = self.volume(volume)?.reserve_inode();
        let replicas = self.choose_replicas(volume).await?;
        let token = self.lock(&context, fid, wait).await?;
        let details = Details { fence: token, replicas, ..Details::default() };
        let new = NewEntry {
            parent: request.parent,
            name: request.name,
            fid,
            kind: FileKind::File,
            mode: request.mode,
            who: context.identity.clone(),
            now: self.clock.wall(),
            details,
            has_room: self.volume(volume)?.store.has_room(),
        };
        let made = self.make_or_find(&context, new, request.exclusive).await;
        let is_ours = made.as_ref().is_ok_and(|made| made.fid == fid);
        if !is_ours {
            self.unlock(context.session()?, fid, token).await;
        }
        let made = made?;
        let request = Open { fid: made.fid, access: request.access, have: None };
        let open = if made.is_new {
            // If this is not ours, it is the answer to a repeated request: the lock was granted
            // with the first.
            self.open_new(&context, request, (is_ours.then_some(token), wait)).await?
        } else {
            self.open(context, request).await?
        };
        Ok(CreateReply { created: made.is_new, open, before: made.before, after: made.after })
    }

    /// Opens a file for its maker. Others see it while its maker waits for the answer, and may ask
    /// for its lock; the maker's client, which does not know yet what it is for, gives it back.
    /// Then the maker asks for it again, in order of arrival.
    async fn open_new(
        &self,
        context: &Context,
        request: Open,
        (mut token, wait): (Option<FencingToken>, LockWait),
    ) -> Result<OpenReply, FsError> {
        for _ in 0..LOST_MAX {
            let token = match token.take() {
                Some(token) => token,
                None => self.lock(context, request.fid, wait).await?,
            };
            match self.open_made(context, request.clone(), token).await {
                Err(FsError::Fenced) => {}
                other => return other,
            }
        }
        Err(FsError::Fenced)
    }

    /// Opens a file for its maker, whatever its mode says. If it is gone already, so is the lock.
    async fn open_made(
        &self,
        context: &Context,
        request: Open,
        token: FencingToken,
    ) -> Result<OpenReply, FsError> {
        let fid = request.fid;
        let fenced = self.fence(context, request, token, None).await;
        if fenced.is_err() {
            self.unlock(context.session()?, fid, token).await;
        }
        fenced
    }

    async fn make_or_find(
        &self,
        context: &Context,
        new: NewEntry,
        exclusive: bool,
    ) -> Result<Created, FsError> {
        let tag = self.op_tag(context, new.parent.volume)?;
        let store = &self.volume_of(new.parent)?.store;
        self.grace.wait().await;
        store
            .write_for(context.origin(), Durability::Process, move |txn| {
                run_once(txn, &tag, |txn| match create::make(txn, &new) {
                    Ok(entry) => Ok(Ran::Changed(Created {
                        fid: entry.attr.fid,
                        is_new: true,
                        before: entry.before,
                        after: entry.after,
                    })),
                    Err(Abort::Fail(FsError::Exists)) if !exclusive => {
                        let dir = rows::directory(txn, new.parent)?;
                        let (fid, _) = rows::child(txn, new.parent, &new.name)?;
                        let (before, after) = (dir.dir_version, dir.dir_version);
                        Ok(Ran::Unchanged(Created { fid, is_new: false, before, after }))
                    }
                    Err(abort) => Err(abort),
                })
            })
            .await
    }

    async fn lock(
        &self,
        context: &Context,
        fid: FileId,
        wait: LockWait,
    ) -> Result<FencingToken, FsError> {
        let session = context.session()?;
        let holder = self.sessions.describe(session, context.user())?;
        let wait_ms = match wait {
            LockWait::No => 0,
            LockWait::UpTo(wait_ms) => wait_ms,
        };
        let deadline_ms = wait_ms.saturating_add(LOCK_CALL_GRACE_MS);
        let envelope = Envelope { deadline_ms, ..Envelope::default() };
        let request = Grant { fid, session, holder, wait };
        let answer = self.peers.lock()?.call(&envelope, &request, Vec::new()).await;
        Ok(answer.map_err(dfs_proto::client::CallError::into_fs)?.reply)
    }

    /// Gives a lock back. A failure is logged only: the lock then ends with its session.
    pub(super) async fn unlock(&self, session: SessionId, fid: FileId, token: FencingToken) {
        let request = Release { fid, session, token };
        let released = match self.peers.lock() {
            Ok(client) => client.call(&Envelope::default(), &request, Vec::new()).await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = released {
            tracing::warn!(%fid, %session, %error, "lock was not given back");
        }
    }

    /// A lock the client gives back.
    pub async fn yield_lock(&self, context: Context, request: Yield) -> Result<(), FsError> {
        let session = context.session()?;
        self.sessions.describe(session, context.user())?;
        self.unlock(session, request.fid, request.token).await;
        Ok(())
    }

    pub async fn renew_write(
        &self,
        context: Context,
        request: RenewWrite,
    ) -> Result<WriteGrant, FsError> {
        let session = context.session()?;
        self.sessions.describe(session, context.user())?;
        let RenewWrite { fid, token } = request;
        let store = &self.volume_of(fid)?.store;
        let row = store.read(move |txn| rows::inode(txn, fid)).await?;
        if row.fence != token {
            return Err(FsError::Fenced);
        }
        Ok(WriteGrant { token, capability: self.write_capability(fid, &row, session, token) })
    }

    /// Makes a change that a file node has stored the content of a file.
    pub async fn commit(&self, context: Context, request: Commit) -> Result<CommitReply, FsError> {
        context.require_role(dfs_proto::admin::Role::File)?;
        let Commit { change, lowest_unanswered, stored, held_by } = request;
        let right = self.check_change(&change, &held_by)?;
        let durability = change.durability;
        let origin = Origin { op: change.op, watermark: lowest_unanswered, news: context.news };
        let volume = self.volume_of(right.fid)?;
        let id = volume.id;
        let min_replicas = volume.store.read(move |txn| rows::volume(txn, id)).await?.min_replicas;
        let copies = held_by.iter().collect::<HashSet<_>>().len();
        if copies < min_replicas as usize && !stored.is_empty() {
            return Err(FsError::unavailable(format!("{copies} of {min_replicas} copies stored")));
        }
        let (session, token, fid) = (right.session, right.token, right.fid);
        let row = rows::ledger_key(id, session);
        let (number, now) = (change.op.number, self.clock.wall());
        let tag = OpTag { row, number, watermark: lowest_unanswered, now };
        let new = NewContent {
            fid,
            base: right.base,
            token,
            manifest: change.manifest.parse()?,
            first: self.first(session, &change.attr)?,
            attr: change.attr,
            stored: stored.into_iter().collect::<HashSet<ChunkHash>>(),
            held_by,
            now,
        };
        let work = move |txn: &mut Txn| {
            run_once(txn, &tag, |txn| commit::commit(txn, &new).map(Ran::Changed))
        };
        self.grace.wait().await;
        let done = volume.store.write_for(Some(origin), durability, work).await?;
        let right = WriteRight {
            fid,
            base: done.attr.data_version,
            token,
            session,
            replicas: done.replicas,
            expires_secs: self.capability_end(),
        };
        let capability = self.capability_key.seal_write(right);
        Ok(CommitReply { attr: done.attr, capability, sequence: done.sequence })
    }

    /// What a change asks for beside content and times, and as whom.
    fn first(
        &self,
        session: SessionId,
        attr: &CommitAttr,
    ) -> Result<Option<(SetAttr, Identity)>, FsError> {
        let Some(first) = attr.first.as_deref() else { return Ok(None) };
        let FirstAttr { by, mode, uid, gid } = first;
        if by.as_ref().is_some_and(|by| by.groups.len() > GROUP_COUNT_MAX) {
            return Err(FsError::invalid("number of the caller's groups"));
        }
        let set = SetAttr { mode: *mode, uid: *uid, gid: *gid, ..SetAttr::default() };
        Ok(Some((set, self.sessions.identity(session, by.as_ref())?)))
    }

    /// Checks that the directory granted the right and the client wants the change.
    fn check_change(&self, change: &Change, held_by: &[NodeId]) -> Result<WriteRight, FsError> {
        let now = self.clock.wall().secs;
        let right = self
            .capability_key
            .verify_write(&change.capability, now)
            .map_err(FsError::CapabilityRefused)?;
        if change.op.session != right.session {
            return Err(FsError::malformed("op id of another session than the capability's"));
        }
        if held_by.iter().any(|node| !right.replicas.contains(node)) {
            return Err(FsError::malformed("a node that is no replica of the file"));
        }
        let times = [Some(change.attr.mtime), change.attr.atime];
        if times.into_iter().flatten().any(|time| !time.is_valid()) {
            return Err(FsError::invalid("nanoseconds of a time"));
        }
        let attributes = codec::encode(&change.attr, HEAD_BYTES_MAX)
            .map_err(|error| FsError::malformed(error.to_string()))?;
        let intent = CommitIntent {
            fid: right.fid,
            base: right.base,
            token: right.token,
            op: change.op,
            manifest: change.manifest.hash(),
            attributes: ChunkHash::of(&attributes),
        };
        let key = self.sessions.key(right.session)?;
        if !key.is_sealed_commit(&intent, &change.mac) {
            return Err(FsError::CapabilityRefused(CapabilityFault::Forged));
        }
        Ok(right.clone())
    }
}

/// The row with `token` granted to `who`; `None` if it says so already.
fn fenced(
    row: &InodeRow,
    token: FencingToken,
    who: &Identity,
) -> Result<Option<InodeRow>, FsError> {
    if row.fence > token {
        return Err(FsError::Fenced);
    }
    let is_first = row.fence < token;
    let is_foreign = !who.is_root() && who.uid != row.uid;
    let has_foreign_writer = is_foreign || !is_first && row.has_foreign_writer;
    if !is_first && has_foreign_writer == row.has_foreign_writer {
        return Ok(None);
    }
    Ok(Some(InodeRow { fence: token, has_foreign_writer, ..row.clone() }))
}

pub(super) fn find(
    txn: &mut ReadTxn,
    fid: FileId,
    have: Option<DataVersion>,
    check: Option<(&Identity, u32)>,
) -> Result<Found, Abort> {
    let (row, is_removed) = rows::openable(txn, fid)?;
    match row.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(FsError::IsDirectory.into()),
        _ => return Err(FsError::invalid("open of what has no content").into()),
    }
    if let Some((who, want)) = check {
        permission::check(&row, who, want)?;
    }
    let manifest = match have == Some(row.data_version) {
        true => None,
        false if is_removed => Some(rows::removed_manifest(txn, fid, &row)?),
        false => Some(rows::manifest(txn, fid, &row)?),
    };
    Ok(Found { row, is_removed, manifest, sequence: txn.sequence() })
}
