//! A small cell: one volume, a lock service behind the in-process transport, two file nodes that
//! hold only names of chunks, and a clock that stands still. Users call it as the router would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind, SetAttr, Timestamp};
use dfs_proto::capability::{CommitIntent, MacKey, WriteCapability};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::{Client, InProcess};
use dfs_proto::clock::{Clock, ManualClock};
use dfs_proto::codec;
use dfs_proto::credential::{ActAs, Identity, Ticket, TicketHolder};
use dfs_proto::directory::{
    Change, ChangeAttr, Commit, CommitAttr, CommitReply, Create, CreateReply, Durability,
    EntryReply, GetAttr, GetXattr, ListXattr, LockWait, Lookup, MakeDir, MakeLink, MakeNode,
    MakeSymlink, NodeAddress, NodeHeartbeat, Open, OpenAccess, OpenReply, RemoveDir, RemoveXattr,
    Rename, RenameReply, RenameRule, SetXattr, Unlink, WriteGrant, XattrRule, Yield,
};
use dfs_proto::id::{FileId, NodeId, OpId, SessionId, VolumeId};
use dfs_proto::limits::HEAD_BYTES_MAX;
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::name::Name;
use dfs_proto::session::OpenSession;
use dfs_proto::xattr::{XattrName, XattrValue};

use super::nodes::FakeNode;
use crate::directory::{Directory, Peers, Volume, rows};
use crate::lock::LockService;
use crate::meta::memory::MemoryEngine;
use crate::meta::{Engine, Space, Store};
use crate::request::{Context, NewsCell, Peer};
use crate::rpc::{CheckTicket, Router};

pub const VOLUME: VolumeId = VolumeId(1);
pub const ONE: NodeId = NodeId(1);
pub const TWO: NodeId = NodeId(2);
/// What nodes are made with.
pub const RDEV: u32 = 0x0105;
const CAPABILITY_KEY: MacKey = MacKey([7; 32]);

/// Waits for nobody.
pub const NOW: OpenAccess = OpenAccess::Write { wait: LockWait::No, read: false };
/// Waits as long as the clock is not moved.
pub const PATIENT: OpenAccess = OpenAccess::Write { wait: LockWait::UpTo(60_000), read: false };

pub struct NoTickets;

impl CheckTicket for NoTickets {
    fn check(&self, _: &Ticket, _: Timestamp) -> Result<Arc<TicketHolder>, FsError> {
        Err(FsError::Unauthenticated)
    }
}

#[derive(Debug)]
struct Neighbours {
    lock: Client,
    nodes: [FakeNode; 2],
    clock: ManualClock,
}

impl Peers for Neighbours {
    fn lock(&self) -> Result<Client, FsError> {
        Ok(self.lock.clone())
    }

    fn file_node(&self, node: NodeId) -> Result<Client, FsError> {
        let index = [ONE, TWO].iter().position(|known| *known == node);
        let unknown = || FsError::unavailable(node.to_string());
        self.nodes[index.ok_or_else(unknown)?].client(&self.clock)
    }
}

fn lock_client(service: &LockService, clock: &ManualClock) -> Client {
    let mut router = Router::new(Arc::new(NoTickets), Arc::new(clock.clone()));
    crate::server::routes::lock(&mut router, service);
    let transport = InProcess::default();
    transport.bind(Arc::new(router));
    Client::new(Arc::new(transport))
}

async fn root_mode(cell: &Cell) -> u32 {
    let root = cell.root;
    cell.volume.store.read(move |txn| rows::inode(txn, root)).await.unwrap().mode
}

/// The cell. Cheap to clone.
#[derive(Clone)]
pub struct Cell {
    pub engine: Arc<dyn Engine>,
    pub volume: Volume,
    pub directory: Directory,
    pub locks: LockService,
    pub nodes: [FakeNode; 2],
    pub clock: ManualClock,
    pub root: FileId,
}

impl Cell {
    pub async fn new() -> Cell {
        Cell::open(Arc::new(MemoryEngine::new()), ManualClock::default()).await
    }

    /// Takes up what the engine holds; the root directory is open to all.
    pub async fn open(engine: Arc<dyn Engine>, clock: ManualClock) -> Cell {
        let store = Store::open(engine.clone(), Space::from(VOLUME), NodeId(3)).unwrap();
        let locks = LockService::new(store.epoch(), Duration::ZERO, Arc::new(clock.clone()));
        let volume = Volume::open(store, VOLUME, "main", clock.wall()).await.unwrap();
        let (lock, nodes) = (lock_client(&locks, &clock), <[FakeNode; 2]>::default());
        let peers = Arc::new(Neighbours { lock, nodes: nodes.clone(), clock: clock.clone() });
        let time = Arc::new(clock.clone());
        let directory = Directory::new(vec![volume.clone()], CAPABILITY_KEY, peers, time);
        let root = volume.root;
        let cell = Cell { engine, volume, directory, locks, nodes, clock, root };
        cell.hear(ONE);
        cell.hear(TWO);
        // Not again after a restart: changes may have to wait.
        if root_mode(&cell).await != 0o777 {
            cell.user(99, 0).await.chmod(root, 0o777).await.unwrap();
        }
        cell
    }

    /// Stops without warning and starts again over the same rows.
    pub async fn restart(&self) -> Cell {
        Cell::open(self.engine.clone(), self.clock.clone()).await
    }

    pub fn hear(&self, node: NodeId) {
        let address = NodeAddress { node, host: None, port: 1 };
        let (total_bytes, free_bytes) = (100 << 30, 50 << 30);
        self.directory.file_nodes.heard(NodeHeartbeat { address, total_bytes, free_bytes });
    }

    /// A client on a host of its own, for one user in group 100.
    pub async fn user(&self, number: u8, uid: u32) -> User {
        self.user_as(number, Identity { uid, gid: 100, groups: Vec::new() }).await
    }

    pub async fn user_as(&self, number: u8, identity: Identity) -> User {
        let session = SessionId([number; 16]);
        let user = User {
            cell: self.clone(),
            session,
            identity,
            key: MacKey([0; 32]),
            next_op: Arc::new(AtomicU64::new(1)),
            news: NewsCell::default(),
        };
        User { key: user.open_session().await.unwrap(), ..user }
    }
}

/// One client and its user. Every mutation gets the next op id.
#[derive(Clone)]
pub struct User {
    pub cell: Cell,
    pub session: SessionId,
    pub identity: Identity,
    pub key: MacKey,
    pub next_op: Arc<AtomicU64>,
    /// What went beside the last replies.
    pub news: NewsCell,
}

pub fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

pub fn xattr(text: &str) -> XattrName {
    XattrName::parse(text.as_bytes()).unwrap()
}

pub fn manifest(chunks: &[&[u8]]) -> Manifest {
    let extent = |bytes: &&[u8]| Extent::Chunk {
        hash: ChunkHash::of(bytes),
        length: u32::try_from(bytes.len()).unwrap(),
    };
    Manifest { extents: chunks.iter().map(extent).collect() }
}

impl User {
    pub fn op(&self, number: u64) -> OpId {
        OpId { session: self.session, number }
    }

    pub fn next_number(&self) -> u64 {
        self.next_op.fetch_add(1, Ordering::Relaxed)
    }

    /// As the router makes it for the op `number`.
    pub fn context_of(&self, number: u64, lowest_unanswered: u64) -> Context {
        let user = format!("user{}", self.identity.uid);
        let act_as = ActAs::Personal { identity: self.identity.clone() };
        let holder = TicketHolder { user, act_as, is_admin: false };
        Context {
            peer: Peer::User(Arc::new(holder)),
            identity: self.identity.clone(),
            session: Some(self.session),
            op: Some(self.op(number)),
            lowest_unanswered,
            deadline: self.cell.clock.boottime() + Duration::from_secs(30),
            address: None,
            news: self.news.clone(),
        }
    }

    /// A context with a fresh op id, all before it answered.
    pub fn context(&self) -> Context {
        let number = self.next_number();
        self.context_of(number, number)
    }

    fn directory(&self) -> &Directory {
        &self.cell.directory
    }

    /// Opens the session, or takes it up again. Returns its key.
    pub async fn open_session(&self) -> Result<MacKey, FsError> {
        let host = format!("host{}", self.session.0[0]);
        let request = OpenSession { volume: "main".into(), host };
        Ok(self.directory().open_session(self.context(), request).await?.key)
    }

    /// The same client at a cell that was started again.
    pub async fn at(&self, cell: &Cell) -> User {
        let user = User { cell: cell.clone(), ..self.clone() };
        let key = user.open_session().await.unwrap();
        User { key, ..user }
    }

    pub async fn mkdir(&self, parent: FileId, at: &str, mode: u32) -> Result<EntryReply, FsError> {
        let request = MakeDir { parent, name: name(at), mode };
        self.directory().mkdir(self.context(), request).await
    }

    /// An empty file.
    pub async fn file(&self, parent: FileId, at: &str, mode: u32) -> Result<EntryReply, FsError> {
        self.mknod(parent, at, FileKind::File, mode).await
    }

    pub async fn mknod(
        &self,
        parent: FileId,
        at: &str,
        kind: FileKind,
        mode: u32,
    ) -> Result<EntryReply, FsError> {
        let request = MakeNode { parent, name: name(at), kind, mode, rdev: RDEV };
        self.directory().mknod(self.context(), request).await
    }

    pub async fn symlink(
        &self,
        parent: FileId,
        at: &str,
        target: &str,
    ) -> Result<EntryReply, FsError> {
        let request = MakeSymlink { parent, name: name(at), target: target.into() };
        self.directory().symlink(self.context(), request).await
    }

    pub async fn link(&self, fid: FileId, to: FileId, at: &str) -> Result<EntryReply, FsError> {
        let request = MakeLink { fid, parent: to, name: name(at) };
        self.directory().link(self.context(), request).await
    }

    pub async fn unlink(&self, parent: FileId, at: &str) -> Result<EntryReply, FsError> {
        let request = Unlink { parent, name: name(at) };
        self.directory().unlink(self.context(), request).await
    }

    pub async fn rmdir(&self, parent: FileId, at: &str) -> Result<EntryReply, FsError> {
        let request = RemoveDir { parent, name: name(at) };
        self.directory().rmdir(self.context(), request).await
    }

    pub async fn rename(
        &self,
        from: (FileId, &str),
        to: (FileId, &str),
        rule: RenameRule,
    ) -> Result<RenameReply, FsError> {
        let request = rename(from, to, rule);
        self.directory().rename(self.context(), request).await
    }

    pub async fn set(&self, fid: FileId, set: SetAttr) -> Result<Attr, FsError> {
        let request = ChangeAttr { fid, set };
        Ok(self.directory().setattr(self.context(), request).await?.attr)
    }

    pub async fn chmod(&self, fid: FileId, mode: u32) -> Result<Attr, FsError> {
        self.set(fid, SetAttr { mode: Some(mode), ..SetAttr::default() }).await
    }

    pub async fn chown(
        &self,
        fid: FileId,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Attr, FsError> {
        self.set(fid, SetAttr { uid, gid, ..SetAttr::default() }).await
    }

    pub async fn set_xattr(
        &self,
        fid: FileId,
        at: &str,
        value: &[u8],
        rule: XattrRule,
    ) -> Result<Attr, FsError> {
        let value = XattrValue::parse(value).unwrap();
        let request = SetXattr { fid, name: xattr(at), value, rule };
        Ok(self.directory().set_xattr(self.context(), request).await?.attr)
    }

    pub async fn remove_xattr(&self, fid: FileId, at: &str) -> Result<Attr, FsError> {
        let request = RemoveXattr { fid, name: xattr(at) };
        Ok(self.directory().remove_xattr(self.context(), request).await?.attr)
    }

    pub async fn xattr(&self, fid: FileId, at: &str) -> Result<Vec<u8>, FsError> {
        let request = GetXattr { fid, name: xattr(at) };
        let value = self.directory().get_xattr(self.context(), request).await?;
        Ok(value.as_bytes().to_vec())
    }

    pub async fn xattrs(&self, fid: FileId) -> Result<Vec<String>, FsError> {
        let names = self.directory().list_xattr(self.context(), ListXattr { fid }).await?;
        Ok(names.iter().map(ToString::to_string).collect())
    }

    pub async fn lookup(&self, parent: FileId, at: &str) -> Result<Attr, FsError> {
        let request = Lookup { parent, name: name(at) };
        Ok(self.directory().lookup(self.context(), request).await?.attr)
    }

    pub async fn getattr(&self, fid: FileId) -> Result<Attr, FsError> {
        Ok(self.directory().getattr(self.context(), GetAttr { fid }).await?.attr)
    }

    pub async fn open(&self, fid: FileId, access: OpenAccess) -> Result<OpenReply, FsError> {
        self.directory().open(self.context(), Open { fid, access, have: None }).await
    }

    pub async fn open_to_write(&self, fid: FileId) -> Result<WriteGrant, FsError> {
        Ok(self.open(fid, NOW).await?.write.unwrap())
    }

    pub async fn create(
        &self,
        parent: FileId,
        at: &str,
        exclusive: bool,
    ) -> Result<CreateReply, FsError> {
        let request = create(parent, at, exclusive);
        self.directory().create(self.context(), request).await
    }

    pub async fn give_back(&self, grant: &WriteGrant) {
        let request = Yield { fid: grant.capability.right.fid, token: grant.token };
        self.directory().yield_lock(self.context(), request).await.unwrap();
    }

    /// What the client sends to the primary: `manifest` on top of what `capability` is for.
    pub fn change(&self, capability: &WriteCapability, manifest: Manifest) -> Change {
        let attr = CommitAttr { mtime: Timestamp::new(77, 7), ..CommitAttr::default() };
        let op = self.op(self.next_number());
        let mut change = Change {
            op,
            manifest,
            attr,
            durability: Durability::Process,
            capability: capability.clone(),
            mac: MacKey([0; 32]).seal_commit(&intent(capability, op)),
        };
        self.seal(&mut change);
        change
    }

    /// Puts the client's MAC on a change.
    pub fn seal(&self, change: &mut Change) {
        let attributes = codec::encode(&change.attr, HEAD_BYTES_MAX).unwrap();
        let intent = CommitIntent {
            manifest: change.manifest.hash(),
            attributes: ChunkHash::of(&attributes),
            ..intent(&change.capability, change.op)
        };
        change.mac = self.key.seal_commit(&intent);
    }

    /// Stores and commits `chunks`, all of them new, on both nodes.
    pub async fn store(
        &self,
        capability: &WriteCapability,
        chunks: &[&[u8]],
    ) -> Result<CommitReply, FsError> {
        let manifest = manifest(chunks);
        let stored = manifest.hashes().into_iter().collect();
        let change = self.change(capability, manifest);
        let context = Context { news: self.news.clone(), ..self.cell.node_context() };
        self.cell.commit_in(context, change, stored, &[ONE, TWO]).await
    }
}

fn intent(capability: &WriteCapability, op: OpId) -> CommitIntent {
    let right = &capability.right;
    CommitIntent {
        fid: right.fid,
        base: right.base,
        token: right.token,
        op,
        manifest: ChunkHash([0; 32]),
        attributes: ChunkHash([0; 32]),
    }
}

pub fn rename(from: (FileId, &str), to: (FileId, &str), rule: RenameRule) -> Rename {
    Rename {
        from_parent: from.0,
        from_name: name(from.1),
        to_parent: to.0,
        to_name: name(to.1),
        rule,
    }
}

pub fn create(parent: FileId, at: &str, exclusive: bool) -> Create {
    Create { parent, name: name(at), mode: 0o644, exclusive, access: NOW }
}

impl Cell {
    /// Asks for a commit as a file node of this process does.
    pub async fn commit(
        &self,
        change: Change,
        stored: Vec<ChunkHash>,
        held_by: &[NodeId],
    ) -> Result<CommitReply, FsError> {
        self.commit_in(self.node_context(), change, stored, held_by).await
    }

    async fn commit_in(
        &self,
        context: Context,
        change: Change,
        stored: Vec<ChunkHash>,
        held_by: &[NodeId],
    ) -> Result<CommitReply, FsError> {
        let held_by = held_by.to_vec();
        let lowest_unanswered = change.op.number;
        let request = Commit { change, lowest_unanswered, stored, held_by };
        self.directory.commit(context, request).await
    }

    pub fn node_context(&self) -> Context {
        Context {
            peer: Peer::Local,
            identity: Identity { uid: 65534, gid: 65534, groups: Vec::new() },
            session: None,
            op: None,
            lowest_unanswered: 0,
            deadline: self.clock.boottime() + Duration::from_secs(30),
            address: None,
            news: NewsCell::default(),
        }
    }
}
