//! The directory service: names, attributes, versions, placement, and the commit of content.
//!
//! Each mutation is one pure function over a transaction (in the files below); this file gives it
//! what it may not fetch itself (time, identity, reserved numbers) and runs it once per op id.
//! Opening for writing asks the lock service first. Chunks are known by hash only; where they are
//! is `placement`'s business, what they contain nobody's here.

mod attr;
mod changes;
mod commit;
mod create;
mod fsync;
mod lock;
mod lookup;
mod open;
mod permission;
mod remove;
mod rename;
mod rows;
mod session;
#[cfg(test)]
mod tests;
mod volume;
mod xattr;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::FileKind;
use dfs_proto::attr::VolumeSpace;
use dfs_proto::capability::MacKey;
use dfs_proto::client::Client;
use dfs_proto::clock::Clock;
use dfs_proto::directory::{
    AttrReply, ChangeAttr, Durability, EntryReply, GetAttr, Lookup, LookupParent, MakeDir,
    MakeLink, MakeNode, MakeSymlink, Outcome, OutcomeReply, ReadDir, ReadDirReply, ReadLink,
    RemoveDir, Rename, RenameReply, StatFs, Unlink,
};
use dfs_proto::id::{FileId, NodeId, VolumeId};
use dfs_proto::name::Name;
use dfs_proto::version::Sequence;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::RwLock;

use crate::ledger::{self, OpTag, Ran, run_once};
use crate::meta::{Abort, ReadTxn, Txn};
use crate::placement::FileNodes;
use crate::request::{Context, Origin};
use crate::session::grace::Grace;
use crate::session::{Registered, Sessions};
use changes::Watcher;
use create::{Details, NewEntry, NewLink};
use remove::{Expect, OldEntry};
use rows::ledger_key;

pub use volume::Volume;

/// Says beside the reply that what it describes, as of `sequence`, is promised.
fn promise(context: &Context, registered: Option<Registered>, dirs: &[FileId], sequence: Sequence) {
    context.news.write().promise =
        registered.and_then(|registered| registered.into_promise(dirs, sequence));
}

/// How the directory reaches other services.
pub trait Peers: Send + Sync + fmt::Debug + 'static {
    /// # Errors
    /// `Unavailable` while nobody is known to have the role.
    fn lock(&self) -> Result<Client, FsError>;
    /// # Errors
    /// `Unavailable` if the node is not known.
    fn file_node(&self, node: NodeId) -> Result<Client, FsError>;
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    volumes: Arc<HashMap<VolumeId, Volume>>,
    pub sessions: Sessions,
    pub file_nodes: FileNodes,
    peers: Arc<dyn Peers>,
    /// Shared with file nodes: seals read and write capabilities.
    capability_key: MacKey,
    clock: Arc<dyn Clock>,
    /// Changes wait for its end.
    grace: Grace,
    /// Written to while the row of a session goes, read while one is made.
    records: Arc<RwLock<()>>,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Directory")
    }
}

impl Directory {
    pub fn new(
        volumes: Vec<Volume>,
        capability_key: MacKey,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
    ) -> Directory {
        let sessions = Sessions::new(Arc::clone(&clock));
        for Volume { id, store, .. } in &volumes {
            let watcher = Watcher { volume: *id, sessions: sessions.clone() };
            store.set_watch(Arc::new(watcher));
        }
        let listeners = volumes.iter().flat_map(|volume| volume.listeners.iter().copied());
        let grace = Grace::new(listeners.collect(), Arc::clone(&clock));
        Directory {
            grace,
            records: Arc::default(),
            volumes: Arc::new(volumes.into_iter().map(|volume| (volume.id, volume)).collect()),
            sessions,
            file_nodes: FileNodes::new(Arc::clone(&clock)),
            peers,
            capability_key,
            clock,
        }
    }

    fn volume(&self, id: VolumeId) -> Result<&Volume, FsError> {
        self.volumes.get(&id).ok_or_else(|| FsError::UnknownVolume { name: id.0.to_string() })
    }

    fn volume_of(&self, fid: FileId) -> Result<&Volume, FsError> {
        self.volume(fid.volume)
    }

    /// Names of the volumes served here.
    pub fn volume_names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.volumes.values().map(|volume| volume.name.to_string()).collect();
        names.sort();
        names
    }

    /// A mutation's place among those of its session, which must not be somebody else's: op ids
    /// would tell, or spoil, what others did.
    fn op_tag(&self, context: &Context, volume: VolumeId) -> Result<OpTag, FsError> {
        let session = context.op.map(|op| op.session);
        if session.is_some_and(|session| self.sessions.is_foreign(session, context.user())) {
            return Err(FsError::NotPermitted);
        }
        OpTag::of(context, |session| ledger_key(volume, session), self.clock.wall())
    }

    /// Runs a mutation once for its op id.
    async fn mutate<T>(
        &self,
        context: &Context,
        volume: VolumeId,
        work: impl Fn(&mut Txn) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, FsError>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let tag = self.op_tag(context, volume)?;
        let store = &self.volume(volume)?.store;
        self.grace.wait().await;
        let work = move |txn: &mut Txn| run_once(txn, &tag, |txn| work(txn).map(Ran::Changed));
        store.write_for(context.origin(), Durability::Process, work).await
    }

    /// That a name is not there is promised as well.
    pub async fn lookup(&self, context: Context, request: Lookup) -> Result<AttrReply, FsError> {
        let Lookup { parent, name } = request;
        let store = &self.volume_of(parent)?.store;
        let registered = self.register(&context, &[parent]);
        let who = &context.identity;
        let work = |txn: &mut ReadTxn| match lookup::lookup(txn, parent, &name, who) {
            Err(Abort::Fail(FsError::NotFound)) => Ok((Err(FsError::NotFound), txn.sequence())),
            found => found.map(|found| (Ok(found), txn.sequence())),
        };
        let (found, sequence) = store.read(work).await?;
        promise(&context, registered, &[parent], sequence);
        found
    }

    pub async fn lookup_parent(&self, request: LookupParent) -> Result<AttrReply, FsError> {
        let store = &self.volume_of(request.fid)?.store;
        store.read(move |txn| lookup::parent(txn, request.fid)).await
    }

    /// Whether it is a directory is known only when it is read; so one that is found to be is
    /// registered, and read again.
    pub async fn getattr(&self, context: Context, request: GetAttr) -> Result<AttrReply, FsError> {
        let fid = request.fid;
        let store = &self.volume_of(fid)?.store;
        let work = move |txn: &mut ReadTxn| lookup::getattr(txn, fid);
        let found = store.read(work).await?;
        if found.attr.kind != FileKind::Directory {
            return Ok(found);
        }
        let Some(registered) = self.register(&context, &[fid]) else { return Ok(found) };
        let found = store.read(work).await?;
        promise(&context, Some(registered), &[fid], found.sequence);
        Ok(found)
    }

    /// Registers promises to the caller, before rows are read. `None` if it can have none.
    fn register(&self, context: &Context, dirs: &[FileId]) -> Option<Registered> {
        if dirs.is_empty() {
            return None;
        }
        self.sessions.promise(context.session?, context.user(), dirs)
    }

    pub async fn readlink(&self, request: ReadLink) -> Result<Vec<u8>, FsError> {
        let store = &self.volume_of(request.fid)?.store;
        store.read(move |txn| lookup::readlink(txn, request.fid)).await
    }

    pub async fn readdir(
        &self,
        context: Context,
        request: ReadDir,
    ) -> Result<ReadDirReply, FsError> {
        let volume = self.volume_of(request.fid)?;
        let registered = self.register(&context, &[request.fid]);
        let (reply, as_of) = lookup::readdir(volume, &request, &context.identity).await?;
        promise(&context, registered, &[request.fid], as_of);
        Ok(reply)
    }

    pub async fn setattr(
        &self,
        context: Context,
        request: ChangeAttr,
    ) -> Result<AttrReply, FsError> {
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let ChangeAttr { fid, set } = request;
        self.mutate(&context, fid.volume, move |txn| attr::change(txn, fid, &set, &who, now)).await
    }

    /// Makes something that has no content to be opened.
    async fn make(
        &self,
        context: &Context,
        parent: FileId,
        name: Name,
        kind: (FileKind, u32, Details),
    ) -> Result<EntryReply, FsError> {
        let volume = self.volume_of(parent)?;
        let (fid, has_room) = (volume.reserve_inode(), volume.store.has_room());
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let (kind, mode, details) = kind;
        let new = NewEntry { parent, name, fid, kind, mode, who, now, details, has_room };
        self.mutate(context, parent.volume, move |txn| create::make(txn, &new)).await
    }

    pub async fn mkdir(&self, context: Context, request: MakeDir) -> Result<EntryReply, FsError> {
        let kind = (FileKind::Directory, request.mode, Details::default());
        self.make(&context, request.parent, request.name, kind).await
    }

    pub async fn symlink(
        &self,
        context: Context,
        request: MakeSymlink,
    ) -> Result<EntryReply, FsError> {
        create::check_target(&request.target)?;
        let details = Details { target: request.target, ..Details::default() };
        let kind = (FileKind::Symlink, 0o777, details);
        self.make(&context, request.parent, request.name, kind).await
    }

    pub async fn mknod(&self, context: Context, request: MakeNode) -> Result<EntryReply, FsError> {
        let MakeNode { parent, name, kind, mode, rdev } = request;
        let details = match kind {
            FileKind::File => {
                let replicas = self.choose_replicas(parent.volume).await?;
                Details { replicas, ..Details::default() }
            }
            FileKind::Fifo | FileKind::Socket => Details::default(),
            // A device is what the machine that opens it has under that number: root's to make.
            FileKind::CharDevice | FileKind::BlockDevice if context.identity.is_root() => {
                Details { rdev, ..Details::default() }
            }
            FileKind::CharDevice | FileKind::BlockDevice => return Err(FsError::NotPermitted),
            FileKind::Directory | FileKind::Symlink => {
                return Err(FsError::invalid("mknod of a directory or a link"));
            }
        };
        self.make(&context, parent, name, (kind, mode, details)).await
    }

    pub async fn link(&self, context: Context, request: MakeLink) -> Result<EntryReply, FsError> {
        let MakeLink { fid, parent, name } = request;
        if fid.volume != parent.volume {
            return Err(FsError::CrossVolume);
        }
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let has_room = self.volume_of(parent)?.store.has_room();
        let new = NewLink { fid, parent, name, who, now, has_room };
        self.mutate(&context, parent.volume, move |txn| create::link(txn, &new)).await
    }

    async fn remove(
        &self,
        context: &Context,
        parent: FileId,
        name: Name,
        expect: Expect,
    ) -> Result<EntryReply, FsError> {
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let old = OldEntry { parent, name, who, now };
        self.mutate(context, parent.volume, move |txn| remove::remove(txn, &old, expect)).await
    }

    pub async fn unlink(&self, context: Context, request: Unlink) -> Result<EntryReply, FsError> {
        self.remove(&context, request.parent, request.name, Expect::NoDirectory).await
    }

    pub async fn rmdir(&self, context: Context, request: RemoveDir) -> Result<EntryReply, FsError> {
        self.remove(&context, request.parent, request.name, Expect::EmptyDirectory).await
    }

    pub async fn rename(&self, context: Context, request: Rename) -> Result<RenameReply, FsError> {
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let volume = request.from_parent.volume;
        self.mutate(&context, volume, move |txn| rename::rename(txn, &request, &who, now)).await
    }

    /// Only the session itself may settle its operations.
    pub async fn outcome(
        &self,
        context: Context,
        request: Outcome,
    ) -> Result<OutcomeReply, FsError> {
        let session = context.session()?;
        let is_own = session == request.op.session;
        if !is_own || self.sessions.is_foreign(session, context.user()) {
            return Err(FsError::NotPermitted);
        }
        let volume = request.volume;
        let watermark = context.lowest_unanswered.min(request.op.number);
        let (row, now) = (ledger_key(volume, session), self.clock.wall());
        let tag = OpTag { row, number: request.op.number, watermark, now };
        let store = &self.volume(volume)?.store;
        let origin = Some(Origin { op: request.op, watermark, news: context.news });
        let work = move |txn: &mut Txn| ledger::outcome(txn, &tag);
        store.write_for(origin, Durability::Process, work).await
    }

    pub async fn statfs(&self, request: StatFs) -> Result<VolumeSpace, FsError> {
        let id = request.fid.volume;
        let store = &self.volume(id)?.store;
        let row = store.read(move |txn| rows::volume(txn, id)).await?;
        Ok(self.file_nodes.space(row.replica_count, row.inode_count))
    }

    async fn choose_replicas(&self, id: VolumeId) -> Result<Vec<NodeId>, FsError> {
        let volume = self.volume(id)?;
        let row = volume.store.read(move |txn| rows::volume(txn, id)).await?;
        let salt = volume.store.sequence().counter;
        self.file_nodes.choose(row.replica_count as usize, salt)
    }
}
