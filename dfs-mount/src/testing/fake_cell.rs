//! A cell in memory: a directory with one flat volume, a lock for each file, two file nodes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::FsError;
use dfs_proto::admin::{CellMap, Map};
use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::auth::{Renew, RenewReply};
use dfs_proto::capability::MacKey;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::{Call, Dial, Peer, ReplyBody, Transport, TransportError, TransportFault};
use dfs_proto::clock::Clock;
use dfs_proto::credential::{ActAs, Ticket, TicketHolder};
use dfs_proto::directory::{
    AttrReply, CommitReply, Create, CreateReply, Fsync, GetAttr, Open, Outcome, RenewWrite, Yield,
};
use dfs_proto::file::{Fetch, PutChunks, Store};
use dfs_proto::id::{FileId, InodeNo, NodeId, OpId, ROOT_INODE, SessionId, VolumeId};
use dfs_proto::manifest::Manifest;
use dfs_proto::promise::StreamNumber;
use dfs_proto::rpc::{Access, Envelope, Rpc, StreamRpc, decode_request, encode_reply, split_frame};
use dfs_proto::session::{
    Acknowledge, CloseSession, Events, Heartbeat, HeartbeatReply, OpenSession, SessionEvent,
    SessionReply, VolumeReply,
};
use dfs_proto::version::{DataVersion, Epoch, FencingToken, Sequence};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};

pub const VOLUME: VolumeId = VolumeId(1);
pub const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// A file as the directory has it.
#[derive(Clone, Debug)]
pub struct FakeFile {
    pub attr: Attr,
    pub manifest: Manifest,
    pub fence: FencingToken,
    pub lock: Option<(SessionId, FencingToken)>,
    pub commit_count: u64,
}

/// Everything the cell knows; tests may change it.
#[derive(Debug)]
pub struct Cell {
    pub epoch: Epoch,
    pub counter: u64,
    pub files: HashMap<FileId, FakeFile>,
    pub chunks: HashMap<(NodeId, FileId, ChunkHash), Bytes>,
    pub down: HashSet<NodeId>,
    pub sessions: HashMap<SessionId, (MacKey, Option<mpsc::UnboundedSender<SessionEvent>>)>,
    pub ledger: HashMap<OpId, Option<CommitReply>>,
    pub ticket_number: u64,
    /// Tickets up to this number have expired.
    pub expired_number: u64,
    pub ticket_lifetime_secs: u32,
    /// Errors to answer with, by operation, before it is run.
    pub refusals: HashMap<&'static str, VecDeque<FsError>>,
    pub yields: Vec<(FileId, FencingToken)>,
    /// Sessions that were closed, and below which op theirs were said to be settled.
    pub closed: Vec<(SessionId, u64)>,
    /// Recalls of sessions without a stream: told when it opens, as the directory does.
    unheard: Vec<(SessionId, FileId, FencingToken)>,
    pub calls: Vec<String>,
}

/// A cell. Cheap to clone; dials reach it.
#[derive(Clone, Debug)]
pub struct FakeCell {
    pub(super) clock: Arc<dyn Clock>,
    state: Arc<Mutex<Cell>>,
    pub(super) lock_freed: Arc<Notify>,
    /// A request has come or was answered.
    stirred: Arc<Notify>,
}

pub(super) const CAPABILITY_KEY: MacKey = MacKey([9; 32]);

impl FakeCell {
    pub fn new(clock: Arc<dyn Clock>) -> FakeCell {
        let cell = Cell {
            epoch: Epoch(1),
            counter: 1,
            files: HashMap::new(),
            chunks: HashMap::new(),
            down: HashSet::new(),
            sessions: HashMap::new(),
            ledger: HashMap::new(),
            ticket_number: 0,
            expired_number: 0,
            ticket_lifetime_secs: 3600,
            refusals: HashMap::new(),
            yields: Vec::new(),
            closed: Vec::new(),
            unheard: Vec::new(),
            calls: Vec::new(),
        };
        let state = Arc::new(Mutex::new(cell));
        FakeCell { clock, state, lock_freed: Arc::default(), stirred: Arc::default() }
    }

    pub fn cell(&self) -> MutexGuard<'_, Cell> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server starts anew: it knows no sessions, and makes versions of a new epoch.
    pub fn restart(&self) {
        let mut cell = self.cell();
        cell.epoch = cell.epoch.next();
        cell.sessions.clear();
    }

    /// Every ticket handed out so far expires.
    pub fn expire_tickets(&self) {
        let mut cell = self.cell();
        cell.expired_number = cell.ticket_number;
    }

    /// Makes the next calls of an operation fail.
    pub fn refuse(&self, path: &'static str, error: FsError) {
        self.cell().refusals.entry(path).or_default().push_back(error);
    }

    pub fn call_count(&self, path: &str) -> usize {
        self.cell().call_count(path)
    }

    /// Waits, at most ten seconds, until requests have made the cell such that `is_so`.
    pub async fn until(&self, is_so: impl Fn(&Cell) -> bool) {
        let wait = async {
            loop {
                let stirred = self.stirred.notified();
                if is_so(&self.cell()) {
                    return;
                }
                stirred.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it is so within 10 s");
    }

    /// What a client asked for on behalf of programs, in order.
    pub fn calls_but_sessions(&self) -> Vec<String> {
        let is_upkeep = |call: &String| {
            call.starts_with("session.") || call == Map::PATH || call == Renew::PATH
        };
        self.cell().calls.iter().filter(|call| !is_upkeep(call)).cloned().collect()
    }

    /// Another client takes the lock, with or without having changed anything.
    pub fn steal_lock(&self, fid: FileId) {
        let mut cell = self.cell();
        let token = cell.next_token();
        let file = cell.files.get_mut(&fid).expect("file exists");
        (file.fence, file.lock) = (token, None);
    }

    /// Another client changes the content.
    pub fn write_as_other(&self, fid: FileId, content: &[u8]) {
        self.steal_lock(fid);
        let hash = ChunkHash::of(content);
        let length = u32::try_from(content.len()).expect("small content");
        let extent = dfs_proto::manifest::Extent::Chunk { hash, length };
        let mut cell = self.cell();
        for node in NODES {
            cell.chunks.insert((node, fid, hash), Bytes::copy_from_slice(content));
        }
        let version = DataVersion::from(cell.next_sequence());
        let file = cell.files.get_mut(&fid).expect("file exists");
        file.manifest = Manifest { extents: vec![extent] };
        (file.attr.size, file.attr.data_version) = (content.len() as u64, version);
    }

    /// Asks a file's holder for its lock.
    pub fn recall(&self, fid: FileId) {
        self.cell().recall(fid);
    }

    /// The content as the directory would serve it, from one node.
    pub fn content(&self, fid: FileId, node: NodeId) -> Vec<u8> {
        let cell = self.cell();
        let manifest = &cell.files[&fid].manifest;
        let mut content = vec![0; usize::try_from(manifest.size()).expect("small file")];
        for chunk in manifest.chunks() {
            let start = usize::try_from(chunk.offset).expect("small file");
            let bytes = &cell.chunks[&(node, fid, chunk.hash)];
            content[start..start + bytes.len()].copy_from_slice(bytes);
        }
        content
    }

    pub fn version(&self, fid: FileId) -> DataVersion {
        self.cell().files[&fid].attr.data_version
    }

    pub fn commit_count(&self, fid: FileId) -> u64 {
        self.cell().files[&fid].commit_count
    }

    async fn answer(&self, call: Call) -> Result<ReplyBody, TransportError> {
        self.cell().calls.push(call.path.to_owned());
        self.stirred.notify_waiters();
        let answer = self.work_out(call).await;
        self.stirred.notify_waiters();
        answer
    }

    async fn work_out(&self, call: Call) -> Result<ReplyBody, TransportError> {
        let whole = call.payload.iter().fold(BytesMut::from(&call.frame[..]), |mut all, part| {
            all.extend_from_slice(part);
            all
        });
        let (head, payload) = split_frame(whole.freeze()).expect("the client frames well");
        let refusal = self.cell().refusals.get_mut(call.path).and_then(VecDeque::pop_front);
        if let Some(error) = refusal {
            return Ok(ReplyBody::Whole(encode_reply(&Err::<(), _>(error)).expect("small")));
        }
        let request = Request { head, payload };
        Ok(match call.path {
            Map::PATH => self.run(&request, |_, _: Map| Ok(CellMap::default())),
            Renew::PATH => self.run(&request, |_, _: Renew| Ok(self.renew())),
            OpenSession::PATH => self.run(&request, |who, _: OpenSession| self.open_session(who)),
            Heartbeat::PATH => self.run(&request, |who, it| self.heartbeat(who, it)),
            CloseSession::PATH => self.run(&request, |who, _: CloseSession| self.close(who)),
            Events::PATH => return self.events(&request),
            Acknowledge::PATH => self.run(&request, |_, _: Acknowledge| Ok(())),
            GetAttr::PATH => self.run(&request, |_, it: GetAttr| self.getattr(it.fid)),
            Create::PATH => self.run(&request, |who, it| self.create(who, it)),
            Open::PATH => return self.open(&request).await,
            RenewWrite::PATH => self.run(&request, |who, it| self.renew_write(who, it)),
            Yield::PATH => self.run(&request, |_, it: Yield| self.take_back(it.fid, it.token)),
            Outcome::PATH => self.run(&request, |who, it| self.outcome(who, it)),
            Fsync::PATH => self.run(&request, |_, _: Fsync| Ok(())),
            Fetch::PATH => self.fetch(&request),
            PutChunks::PATH => self.put(&request),
            Store::PATH => self.store(&request),
            path => panic!("the fake cell does not know {path}"),
        })
    }

    pub(super) fn run<R: Rpc>(
        &self,
        request: &Request,
        work: impl FnOnce(&Envelope, R) -> Result<R::Reply, FsError>,
    ) -> ReplyBody {
        let result = self.admit::<R>(request).and_then(|(envelope, it)| work(&envelope, it));
        ReplyBody::Whole(encode_reply(&result).expect("replies of tests are small"))
    }

    pub(super) fn admit<R: Rpc>(&self, request: &Request) -> Result<(Envelope, R), FsError> {
        let (envelope, it): (Envelope, R) = decode_request(&request.head)?;
        if R::ACCESS != Access::Public {
            self.check_ticket(&envelope)?;
        }
        Ok((envelope, it))
    }

    fn check_ticket(&self, envelope: &Envelope) -> Result<(), FsError> {
        let ticket = envelope.ticket.as_ref().ok_or(FsError::Unauthenticated)?;
        let number: u64 = ticket.expose().parse().expect("the client sends what it got");
        let is_expired = number <= self.cell().expired_number;
        if is_expired { Err(FsError::TicketExpired) } else { Ok(()) }
    }

    fn renew(&self) -> RenewReply {
        let mut cell = self.cell();
        cell.ticket_number += 1;
        let act_as = ActAs::Machine { squash_root: false };
        RenewReply {
            ticket: Ticket::new(cell.ticket_number.to_string()),
            holder: TicketHolder { user: "tester".into(), act_as, is_admin: false },
            lifetime_secs: cell.ticket_lifetime_secs,
        }
    }

    fn open_session(&self, who: &Envelope) -> Result<SessionReply, FsError> {
        let mut cell = self.cell();
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("random numbers");
        cell.sessions.insert(session(who)?, (MacKey(key), None));
        let root = attr(FileId::new(VOLUME, ROOT_INODE, Epoch(1)), FileKind::Directory);
        let volume = VolumeReply { root, wall: self.clock.wall() };
        Ok(SessionReply { volume, key: MacKey(key), lease_ms: 10_000, epoch: cell.epoch })
    }

    fn heartbeat(&self, who: &Envelope, request: Heartbeat) -> Result<HeartbeatReply, FsError> {
        self.known(who)?;
        for (fid, token) in request.yielded {
            self.take_back(fid, token)?;
        }
        Ok(HeartbeatReply { lease_ms: 10_000, epoch: self.cell().epoch, promised: None })
    }

    fn close(&self, who: &Envelope) -> Result<(), FsError> {
        let session = session(who)?;
        let mut cell = self.cell();
        cell.sessions.remove(&session);
        cell.closed.push((session, who.lowest_unanswered));
        let held = cell.files.values_mut().filter(|file| holds(file, session));
        held.for_each(|file| file.lock = None);
        self.lock_freed.notify_waiters();
        Ok(())
    }

    fn events(&self, request: &Request) -> Result<ReplyBody, TransportError> {
        let (who, _): (Envelope, Events) =
            decode_request(&request.head).expect("the client frames well");
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let mut cell = self.cell();
        let epoch = cell.epoch;
        let unheard = std::mem::take(&mut cell.unheard);
        let (own, others): (Vec<_>, Vec<_>) =
            unheard.into_iter().partition(|(id, ..)| Some(*id) == who.session);
        cell.unheard = others;
        let Some((_, stream)) = who.session.and_then(|id| cell.sessions.get_mut(&id)) else {
            let error = encode_reply(&Err::<SessionEvent, _>(FsError::SessionUnknown));
            return Ok(ReplyBody::Whole(error.expect("small")));
        };
        let _ = sender.send(SessionEvent::Started { epoch, stream: StreamNumber(1) });
        for (_, fid, token) in own {
            let _ = sender.send(SessionEvent::LockRecall { fid, token });
        }
        *stream = Some(sender);
        let items = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let frames = items.map(|item| Ok(encode_reply(&Ok(item)).expect("small")));
        Ok(ReplyBody::Pieces(frames.boxed()))
    }

    fn getattr(&self, fid: FileId) -> Result<AttrReply, FsError> {
        let cell = self.cell();
        let attr = cell.files.get(&fid).ok_or(FsError::Stale)?.attr.clone();
        Ok(AttrReply { attr, sequence: cell.sequence() })
    }

    fn create(&self, who: &Envelope, _: Create) -> Result<CreateReply, FsError> {
        self.known(who)?;
        let fid = {
            let mut cell = self.cell();
            let sequence = cell.next_sequence();
            let fid = FileId::new(VOLUME, InodeNo(sequence.counter + 100), cell.epoch);
            let mut attr = attr(fid, FileKind::File);
            attr.data_version = sequence.into();
            let fence = FencingToken::default();
            let manifest = Manifest::default();
            let file = FakeFile { attr, manifest, fence, lock: None, commit_count: 0 };
            cell.files.insert(fid, file);
            fid
        };
        let open = self.opened(session(who)?, fid, None, true)?;
        let sequence = open.sequence.into();
        Ok(CreateReply { created: true, open, before: sequence, after: sequence })
    }

    pub(super) fn known(&self, who: &Envelope) -> Result<(), FsError> {
        let is_known = self.cell().sessions.contains_key(&session(who)?);
        if is_known { Ok(()) } else { Err(FsError::SessionUnknown) }
    }
}

impl Cell {
    pub fn call_count(&self, path: &str) -> usize {
        self.calls.iter().filter(|call| *call == path).count()
    }

    pub fn sequence(&self) -> Sequence {
        Sequence::new(self.epoch, self.counter)
    }

    pub fn next_sequence(&mut self) -> Sequence {
        self.counter += 1;
        self.sequence()
    }

    pub(super) fn next_token(&mut self) -> FencingToken {
        let sequence = self.next_sequence();
        FencingToken::new(sequence.epoch, sequence.counter)
    }

    pub(super) fn recall(&mut self, fid: FileId) {
        let Some((holder, token)) = self.files[&fid].lock else { return };
        let stream = self.sessions.get(&holder).and_then(|(_, stream)| stream.as_ref());
        let recall = SessionEvent::LockRecall { fid, token };
        if stream.is_none_or(|stream| stream.send(recall).is_err()) {
            self.unheard.push((holder, fid, token));
        }
    }
}

/// A request before its envelope is read.
pub(super) struct Request {
    pub head: Bytes,
    pub payload: Bytes,
}

pub(super) fn session(who: &Envelope) -> Result<SessionId, FsError> {
    who.session.ok_or(FsError::SessionUnknown)
}

fn holds(file: &FakeFile, session: SessionId) -> bool {
    file.lock.is_some_and(|(holder, _)| holder == session)
}

pub(super) fn attr(fid: FileId, kind: FileKind) -> Attr {
    let time = Timestamp::default();
    Attr {
        fid,
        kind,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: 0,
        stored_bytes: 0,
        atime: time,
        mtime: time,
        ctime: time,
        rdev: 0,
        data_version: DataVersion::default(),
        dir_version: dfs_proto::version::DirVersion::default(),
        xattr_bytes: 0,
    }
}

impl Dial for FakeCell {
    fn dial(&self, peer: &Peer) -> Result<Arc<dyn Transport>, TransportError> {
        Ok(Arc::new(ToFake { cell: self.clone(), node: peer.node }))
    }
}

#[derive(Debug)]
struct ToFake {
    cell: FakeCell,
    node: Option<NodeId>,
}

impl Transport for ToFake {
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let (cell, node) = (self.cell.clone(), self.node);
        Box::pin(async move {
            if node.is_some_and(|node| cell.cell().down.contains(&node)) {
                let what = "node is down on purpose";
                return Err(TransportError::new(TransportFault::Unreachable, "node", what));
            }
            // As on a wire, whoever asks can be gone before the request comes, or the answer.
            tokio::task::yield_now().await;
            let timeout = call.timeout;
            let answer = tokio::time::timeout(timeout, cell.answer(call)).await;
            tokio::task::yield_now().await;
            match answer {
                Ok(answer) => answer,
                Err(_) => {
                    Err(TransportError::new(TransportFault::TimedOut, "fake cell", "too slow"))
                }
            }
        })
    }
}
