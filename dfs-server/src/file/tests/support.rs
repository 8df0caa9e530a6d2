//! Two file nodes and a directory that keeps a record, on a wire that can be cut.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::capability::{Mac, MacKey, ReadCapability, ReadRight, WriteCapability, WriteRight};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::{Call, Client, ReplyBody, Transport, TransportError, TransportFault};
use dfs_proto::clock::{Clock, ManualClock};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{
    Change, Commit, CommitAttr, CommitReply, Durability, NodeHeartbeat, NodeHeartbeatReply,
};
use dfs_proto::file::{ChunkRef, Missing, PutChunks, Replicate, Store, SyncChunks};
use dfs_proto::id::{FileId, InodeNo, NodeId, OpId, SessionId, VolumeId};
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::promise::News;
use dfs_proto::rpc::{Rpc, decode_request, encode_reply, encode_reply_with, split_frame};
use dfs_proto::version::{DataVersion, DirVersion, Epoch, FencingToken, Sequence};

use super::super::{CapabilityKey, FileNode, FileNodes, Parts, Peers};
use crate::chunk_store::ChunkStore;
use crate::chunk_store::faulty::{FaultyChunkStore, Operation};
use crate::chunk_store::memory::MemoryChunkStore;
use crate::request::{Context, NewsCell, Peer};

pub const ONE: NodeId = NodeId(1);
pub const TWO: NodeId = NodeId(2);
pub const KEY: MacKey = MacKey([9; 32]);

/// How long a request of a test may take, on the manual clock.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

/// A node's disk: what is on it, and its faults.
#[derive(Debug)]
pub struct Disk {
    pub memory: Arc<MemoryChunkStore>,
    pub faulty: Arc<FaultyChunkStore>,
}

impl Disk {
    fn new() -> Disk {
        let memory = Arc::new(MemoryChunkStore::default());
        let faulty = Arc::new(FaultyChunkStore::new(Arc::clone(&memory) as _));
        Disk { memory, faulty }
    }

    pub fn has(&self, bytes: &[u8]) -> bool {
        self.memory.stat(fid(1), ChunkHash::of(bytes)).unwrap().is_some()
    }
}

/// What the directory was asked, and what it is to answer.
#[derive(Debug, Default)]
pub struct Record {
    /// What the directory says beside its answers.
    news: News,
    pub commits: Vec<Commit>,
    /// How many syncs each disk had seen when the commit came.
    pub syncs: Vec<[u64; 2]>,
    pub heartbeats: Vec<NodeHeartbeat>,
    /// Given before any success.
    pub refusals: VecDeque<FsError>,
    /// How calls to a node, or (0) to the directory, fail below the protocol.
    pub faults: HashMap<NodeId, TransportFault>,
    /// Calls sent to each, lost ones included.
    pub calls: HashMap<NodeId, u64>,
}

pub const DIRECTORY: NodeId = NodeId(0);

#[derive(Debug)]
pub struct Wire {
    nodes: OnceLock<Arc<FileNodes>>,
    pub disks: [Disk; 2],
    pub record: Mutex<Record>,
    /// Wakes on every call.
    pub is_called: tokio::sync::Notify,
    clock: ManualClock,
}

/// The wire, as one side of a connection.
#[derive(Clone, Debug)]
struct Link {
    wire: Arc<Wire>,
    to: NodeId,
}

#[derive(Debug)]
struct TestPeers(Arc<Wire>);

impl Peers for TestPeers {
    fn file_node(&self, node: NodeId) -> Result<Client, FsError> {
        Ok(Client::new(Arc::new(Link { wire: Arc::clone(&self.0), to: node })))
    }

    fn directory(&self, _volume: VolumeId) -> Result<Client, FsError> {
        self.file_node(DIRECTORY)
    }

    fn directories(&self) -> Result<Vec<Client>, FsError> {
        Ok(vec![self.file_node(DIRECTORY)?])
    }
}

impl Transport for Link {
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let link = self.clone();
        Box::pin(async move {
            let fault = {
                let mut record = link.wire.record.lock().unwrap();
                *record.calls.entry(link.to).or_default() += 1;
                record.faults.get(&link.to).copied()
            };
            link.wire.is_called.notify_one();
            match fault {
                Some(fault) => Err(TransportError::new(fault, link.to.to_string(), "cut")),
                None => Ok(ReplyBody::Whole(link.deliver(call).await)),
            }
        })
    }
}

impl Link {
    async fn deliver(&self, call: Call) -> Bytes {
        let nodes = Arc::clone(self.wire.nodes.get().unwrap());
        let context = &context(&self.wire.clock);
        match call.path {
            Replicate::PATH => {
                serve(call, |request, bytes| nodes.replicate(context, request, bytes)).await
            }
            Missing::PATH => serve(call, |request, _| nodes.missing(context, request)).await,
            SyncChunks::PATH => serve(call, |request, _| nodes.sync(context, request)).await,
            Commit::PATH => {
                let (head, _) = split_frame(call.frame).unwrap();
                let reply = self.wire.commit(decode_request(&head).unwrap().1);
                let news = self.wire.record.lock().unwrap().news.clone();
                encode_reply_with(&news, &reply).unwrap()
            }
            NodeHeartbeat::PATH => {
                serve(call, |request, _| async { self.wire.heartbeat(request) }).await
            }
            path => panic!("nobody serves {path}"),
        }
    }
}

async fn serve<R: Rpc, F>(call: Call, handler: impl FnOnce(R, Bytes) -> F) -> Bytes
where
    F: Future<Output = Result<R::Reply, FsError>>,
{
    let (head, _) = split_frame(call.frame).unwrap();
    let (_, request) = decode_request(&head).unwrap();
    encode_reply(&handler(request, call.payload.concat().into()).await).unwrap()
}

impl Wire {
    fn commit(&self, commit: Commit) -> Result<CommitReply, FsError> {
        let mut record = self.record.lock().unwrap();
        if let Some(refusal) = record.refusals.pop_front() {
            return Err(refusal);
        }
        let syncs = [0, 1].map(|index: usize| self.disks[index].faulty.count(Operation::Sync));
        record.syncs.push(syncs);
        let sequence = Sequence::new(Epoch(1), record.commits.len() as u64);
        let attr = attr(&commit.change.manifest);
        let capability = commit.change.capability.clone();
        record.commits.push(commit);
        Ok(CommitReply { attr, capability, sequence })
    }

    fn heartbeat(&self, heartbeat: NodeHeartbeat) -> Result<NodeHeartbeatReply, FsError> {
        let mut record = self.record.lock().unwrap();
        if let Some(refusal) = record.refusals.pop_front() {
            return Err(refusal);
        }
        record.heartbeats.push(heartbeat);
        Ok(NodeHeartbeatReply { capability_key: KEY })
    }
}

fn attr(manifest: &Manifest) -> Attr {
    Attr {
        fid: fid(1),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: manifest.size(),
        stored_bytes: manifest.stored_bytes(),
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        rdev: 0,
        data_version: DataVersion::default(),
        dir_version: DirVersion::default(),
        xattr_bytes: 0,
    }
}

fn context(clock: &ManualClock) -> Context {
    Context {
        peer: Peer::Local,
        identity: Identity::ROOT,
        session: None,
        op: None,
        lowest_unanswered: 7,
        deadline: clock.boottime() + DEADLINE,
        address: None,
        news: NewsCell::default(),
    }
}

/// Two file nodes, a directory, and a client's view of them.
#[derive(Clone)]
pub struct Cell {
    pub nodes: Arc<FileNodes>,
    pub wire: Arc<Wire>,
    pub clock: ManualClock,
    pub key: CapabilityKey,
}

impl Cell {
    /// A cell whose nodes have had their first heartbeat.
    pub fn new() -> Cell {
        let cell = Cell::unheard();
        cell.key.install(KEY);
        cell
    }

    pub fn unheard() -> Cell {
        let (clock, key) = (ManualClock::default(), CapabilityKey::default());
        let wire = Arc::new(Wire {
            nodes: OnceLock::new(),
            disks: [Disk::new(), Disk::new()],
            record: Mutex::default(),
            is_called: tokio::sync::Notify::new(),
            clock: clock.clone(),
        });
        let node = |(node, disk): (NodeId, &Disk)| {
            let store = Arc::clone(&disk.faulty) as _;
            let peers = Arc::new(TestPeers(Arc::clone(&wire)));
            let (key, clock) = (key.clone(), Arc::new(clock.clone()));
            Arc::new(FileNode::new(Parts { node, store, key, clock, peers }))
        };
        let nodes = Arc::new(FileNodes::new([ONE, TWO].into_iter().zip(&wire.disks).map(node)));
        wire.nodes.set(Arc::clone(&nodes)).unwrap();
        Cell { nodes, wire, clock, key }
    }

    pub fn context(&self) -> Context {
        context(&self.clock)
    }

    pub fn disk(&self, index: usize) -> &Disk {
        &self.wire.disks[index]
    }

    /// Makes every call to a node, or to the directory, fail.
    pub fn cut(&self, node: NodeId, fault: TransportFault) {
        self.wire.record.lock().unwrap().faults.insert(node, fault);
    }

    pub fn mend(&self, node: NodeId) {
        self.wire.record.lock().unwrap().faults.remove(&node);
    }

    pub fn refuse(&self, error: FsError) {
        self.wire.record.lock().unwrap().refusals.push_back(error);
    }

    pub fn tell(&self, news: News) {
        self.wire.record.lock().unwrap().news = news;
    }

    pub fn commits(&self) -> Vec<Commit> {
        self.wire.record.lock().unwrap().commits.clone()
    }

    pub fn calls(&self, node: NodeId) -> u64 {
        self.wire.record.lock().unwrap().calls.get(&node).copied().unwrap_or(0)
    }

    /// A capability that ends a minute from now.
    pub fn write_capability(&self, replicas: &[NodeId]) -> WriteCapability {
        KEY.seal_write(WriteRight {
            fid: fid(1),
            base: DataVersion::default(),
            token: FencingToken::new(Epoch(1), 1),
            session: SessionId([1; 16]),
            replicas: replicas.to_vec(),
            expires_secs: self.clock.wall().secs + 60,
        })
    }

    pub fn read_capability(&self, inode: u64) -> ReadCapability {
        let expires_secs = self.clock.wall().secs + 60;
        KEY.seal_read(ReadRight { fid: fid(inode), expires_secs })
    }

    /// A store at node one of a version with these chunks, of which `sent` travel along.
    pub fn request(&self, chunks: &[&[u8]], sent: &[&[u8]]) -> (Store, Bytes) {
        let extent = |bytes: &&[u8]| {
            let ChunkRef { hash, length } = chunk_ref(bytes);
            Extent::Chunk { hash, length }
        };
        let change = Change {
            op: OpId { session: SessionId([1; 16]), number: 1 },
            manifest: Manifest { extents: chunks.iter().map(extent).collect() },
            attr: CommitAttr::default(),
            durability: Durability::Process,
            capability: self.write_capability(&[ONE, TWO]),
            mac: Mac([0; 32]),
        };
        let before = chunks.iter().filter(|bytes| !sent.contains(bytes));
        let store = Store {
            node: ONE,
            change,
            chunks: sent.iter().map(|bytes| chunk_ref(bytes)).collect(),
            put_before: before.map(|bytes| ChunkHash::of(bytes)).collect(),
        };
        (store, sent.concat().into())
    }

    /// Stores a version, all of it sent along.
    pub async fn store(&self, chunks: &[&[u8]]) -> Result<CommitReply, FsError> {
        let (request, payload) = self.request(chunks, chunks);
        self.send(request, payload).await
    }

    /// Runs a store as the router does: as a task that may move between threads.
    pub async fn send(&self, request: Store, payload: Bytes) -> Result<CommitReply, FsError> {
        let cell = self.clone();
        let run = async move { cell.nodes.store(&cell.context(), request, payload).await };
        tokio::spawn(run).await.unwrap()
    }

    pub async fn put(&self, node: NodeId, chunks: &[&[u8]]) -> Result<Vec<NodeId>, FsError> {
        let capability = self.write_capability(&[ONE, TWO]);
        let refs = chunks.iter().map(|bytes| chunk_ref(bytes)).collect();
        let request = PutChunks { node, capability, chunks: refs };
        let reply = self.nodes.put(&self.context(), request, chunks.concat().into()).await;
        reply.map(|reply| reply.held_by)
    }
}

pub fn chunk_ref(bytes: &[u8]) -> ChunkRef {
    let length = u32::try_from(bytes.len()).unwrap();
    ChunkRef { hash: ChunkHash::of(bytes), length }
}
