//! Sessions: this client's standing with a volume's owner.
//!
//! Owns the lease, the session key and the event stream. The lease runs on `Clock::boottime`,
//! counted from the sending of the request that renewed it, less the drift allowance; a heartbeat
//! goes out at a third of it. A server that restarted (or whose lease for us ended) answers
//! `SessionUnknown`: the session opens itself again under its old id, takes the new key and epoch,
//! and the request that found out is repeated once. Recalls of write locks come out of a bounded
//! channel: the single upward edge. Whoever holds a `Session` keeps its tasks alive; the last one
//! to go ends them. Knows nothing of files.

pub mod connection;
mod events;
pub mod ops;
pub mod ranges;
mod route;
pub mod told;
mod yielded;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::Attr;
use dfs_proto::capability::MacKey;
use dfs_proto::client::{Answer, CallError};
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{Outcome, OutcomeReply};
use dfs_proto::id::{FileId, OpId, SessionId};
use dfs_proto::lease::holder_deadline;
use dfs_proto::lock::Recall;
use dfs_proto::rpc::Rpc;
use dfs_proto::session::{CloseSession, OpenSession, SessionReply};
use dfs_proto::version::{Epoch, FencingToken};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::promise::Promises;
use crate::metrics::{Counter, Metrics};

use connection::{Attempt, Connection, Former, PromiseCell, Sending};
use ranges::Ranges;
use yielded::Yielded;

pub use yielded::Creating;

/// A client's standing with the owner of one volume. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session {
    core: Arc<Core>,
    tasks: Arc<Tasks>,
}

/// What the tasks share with the handles.
#[derive(Debug)]
struct Core {
    connection: Connection,
    volume: String,
    host: String,
    root: Attr,
    standing: Mutex<Standing>,
    /// Held while the session is opened again: one at a time.
    reopening: tokio::sync::Mutex<()>,
    yielded: Mutex<Yielded>,
    /// Somebody waits for what the next heartbeat gives back: it leaves at once.
    hurry: Notify,
    /// Held while a heartbeat is under way.
    beating: tokio::sync::Mutex<()>,
    acknowledgements: events::Acknowledgements,
    listeners: told::Listeners,
    ranges: Ranges,
}

/// What the owner last said.
#[derive(Clone, Debug)]
struct Standing {
    key: MacKey,
    epoch: Epoch,
    lease: Duration,
    /// On `Clock::boottime`.
    leased_until: Duration,
    /// Grows with every opening.
    opening: u64,
}

#[derive(Debug)]
struct Tasks {
    stop: CancellationToken,
    running: tokio::sync::Mutex<JoinSet<()>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The session key, and which opening of the session it belongs to.
#[derive(Clone, Debug)]
pub struct SessionKey {
    pub key: MacKey,
    pub opening: u64,
}

/// Recalls that may wait to be taken. Why: more than that many recalls at once means that the
/// taker is stuck; the stream then waits, and the server's lease decides.
const RECALLS_WAITING_MAX: usize = 256;

impl Session {
    /// Opens a session on a volume and keeps it. `host` is what others are told of us.
    ///
    /// # Errors
    /// `UnknownVolume`, `NotPermitted`, those of logging in, `Unavailable` after the policy's end.
    pub async fn open(
        connection: Connection,
        volume: &str,
        host: &str,
    ) -> Result<Session, FsError> {
        connection.name_session();
        let request = OpenSession { volume: volume.to_owned(), host: host.to_owned() };
        let sent_at = connection.clock().boottime();
        let reply = connection.call(Role::Directory, None, &request).await?;
        let standing = Standing::new(&reply, sent_at, 1);
        let core = Arc::new(Core {
            connection,
            volume: request.volume,
            host: request.host,
            root: reply.volume.root,
            standing: Mutex::new(standing),
            reopening: tokio::sync::Mutex::new(()),
            yielded: Mutex::default(),
            hurry: Notify::new(),
            beating: tokio::sync::Mutex::default(),
            acknowledgements: events::Acknowledgements::default(),
            listeners: told::Listeners::default(),
            ranges: Ranges::default(),
        });
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(events::beat(Arc::clone(&core), stop.clone()));
        let tasks = Arc::new(Tasks { stop, running: tokio::sync::Mutex::new(running) });
        Ok(Session { core, tasks })
    }

    /// From here on the session is told of recalls, which come out of what is returned, and of
    /// changes in what it was promised. To be called once.
    ///
    /// A command that is done in a moment does without: the server need not remember it, and nobody
    /// waits for it when it is killed.
    pub async fn listen(&self) -> mpsc::Receiver<Recall> {
        let (recall_sender, recalls) = mpsc::channel(RECALLS_WAITING_MAX);
        let stop = &self.tasks.stop;
        let mut running = self.tasks.running.lock().await;
        running.spawn(events::acknowledge(Arc::clone(&self.core), stop.clone()));
        running.spawn(events::listen(Arc::clone(&self.core), recall_sender, stop.clone()));
        recalls
    }

    /// Calls a role for a local caller: with retries, a fresh ticket and a fresh session if need
    /// be.
    ///
    /// # Errors
    /// The operation's; `Unavailable` or `TimedOut` when nobody answered in time.
    pub async fn call<R: Rpc>(
        &self,
        to: Role,
        caller: Option<&Identity>,
        request: &R,
    ) -> Result<R::Reply, FsError> {
        self.call_waiting(to, caller, request, Duration::ZERO).await
    }

    /// As [`Session::call`], for a request that lets the server wait up to `wait`.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub async fn call_waiting<R: Rpc>(
        &self,
        to: Role,
        caller: Option<&Identity>,
        request: &R,
        wait: Duration,
    ) -> Result<R::Reply, FsError> {
        self.send(to, Sending { caller, wait, ..Sending::default() }, request).await
    }

    /// As [`Session::call`] of the directory; what the reply, or the refusal, promises goes to
    /// `promise`.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub async fn ask<R: Rpc>(
        &self,
        caller: &Identity,
        request: &R,
        promise: &PromiseCell,
    ) -> Result<R::Reply, FsError> {
        let (caller, promise) = (Some(caller), Some(promise));
        self.send(Role::Directory, Sending { caller, promise, ..Sending::default() }, request).await
    }

    async fn send<R: Rpc>(
        &self,
        to: Role,
        sending: Sending<'_>,
        request: &R,
    ) -> Result<R::Reply, FsError> {
        let connection = &self.core.connection;
        let op = R::MUTATES.then(|| connection.begin_op());
        let sending = Sending { op: op.as_ref(), ..sending };
        let seen = self.core.standing().opening;
        match connection.call_with(to, sending, request).await {
            Err(CallError::Fs(FsError::SessionUnknown)) => {
                self.reopen(seen).await?;
                connection.call_with(to, sending, request).await.map_err(CallError::into_fs)
            }
            result => result.map_err(CallError::into_fs),
        }
    }

    /// What became of an op of this session or of an earlier one of this client.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub async fn outcome(&self, op: OpId) -> Result<OutcomeReply, FsError> {
        self.metrics().count(Counter::OutcomeAsked);
        let request = Outcome { volume: self.core.root.fid.volume, op };
        // All of them may be asked about.
        let former = Some(Former { session: op.session, watermark: 0 });
        let sending = Sending { former, ..Sending::default() };
        let reply = self.core.connection.call_with(Role::Directory, sending, &request).await;
        reply.map_err(CallError::into_fs)
    }

    /// Ends an earlier session of this client that can have no use for its locks any more, and
    /// whose ops are all settled: what became of them will not be asked again.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub async fn close_former(&self, session: SessionId) -> Result<(), FsError> {
        let former = Some(Former { session, watermark: u64::MAX });
        let sending = Sending { former, ..Sending::default() };
        let reply = self.core.connection.call_with(Role::Directory, sending, &CloseSession {});
        reply.await.map_err(CallError::into_fs)
    }

    /// Sends a request once; once more after opening the session again if that was what was
    /// missing.
    ///
    /// # Errors
    /// As [`Connection::attempt`].
    pub async fn attempt<R: Rpc>(
        &self,
        attempt: Attempt<'_>,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<Answer<R::Reply>, CallError> {
        let seen = self.core.standing().opening;
        let connection = &self.core.connection;
        match connection.attempt(attempt, request, payload.clone()).await {
            Err(CallError::Fs(FsError::SessionUnknown)) => {
                self.reopen(seen).await?;
                connection.attempt(attempt, request, payload).await
            }
            result => result,
        }
    }

    /// Opens the session again, unless that happened since the opening `seen`.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn reopen(&self, seen: u64) -> Result<(), FsError> {
        self.core.reopen(seen).await
    }

    /// What commits are sealed with.
    pub fn key(&self) -> SessionKey {
        let standing = self.core.standing();
        SessionKey { key: standing.key.clone(), opening: standing.opening }
    }

    /// Gives a lock back with the next heartbeat: for when the owner could not be told at once.
    pub fn yield_later(&self, fid: FileId, token: FencingToken) {
        self.core.yielded().waiting.push((fid, token));
    }

    /// Gives a recalled lock back with a heartbeat that is sent at once.
    pub fn yield_soon(&self, fid: FileId, token: FencingToken) {
        self.yield_later(fid, token);
        self.core.hurry.notify_one();
    }

    /// Notes that a lock is about to go back by a request of its own; [`Session::went_back`]
    /// ends that.
    pub fn goes_back(&self, fid: FileId) {
        let mut yielded = self.core.yielded();
        yielded.returning.insert(fid);
        yielded.note(fid);
    }

    pub fn went_back(&self, fid: FileId) {
        self.core.yielded().returning.remove(&fid);
    }

    /// Takes a lock out of those that go back with the next heartbeat; waits for a heartbeat that
    /// carries it already. To be called before the lock is asked for again.
    pub async fn keep_lock(&self, fid: FileId) {
        let is_travelling = {
            let mut yielded = self.core.yielded();
            yielded.waiting.retain(|(other, _)| *other != fid);
            yielded.travelling.contains(&fid)
        };
        if is_travelling {
            drop(self.core.beating.lock().await);
        }
    }

    /// Whether the owner still keeps our locks, as far as we can know.
    pub fn is_leased(&self) -> bool {
        self.clock().boottime() < self.core.standing().leased_until
    }

    pub fn epoch(&self) -> Epoch {
        self.core.standing().epoch
    }

    pub fn id(&self) -> SessionId {
        self.core.connection.id()
    }

    /// The root directory as it was when the session was opened; its id names the volume.
    pub fn root(&self) -> Attr {
        self.core.root.clone()
    }

    pub fn volume_name(&self) -> &str {
        &self.core.volume
    }

    /// What others are told of us.
    pub fn host(&self) -> &str {
        &self.core.host
    }

    pub fn connection(&self) -> &Connection {
        &self.core.connection
    }

    /// As [`Connection::identity`].
    pub fn identity(&self, caller: &Identity) -> Option<Identity> {
        self.core.connection.identity(caller)
    }

    /// What programs of this client have locked.
    pub fn ranges(&self) -> &Ranges {
        &self.core.ranges
    }

    /// What the owner has promised this client.
    pub fn promises(&self) -> &Promises {
        self.core.connection.promises()
    }

    /// Makes the caller the one who is waited for before a break is acknowledged, and before
    /// promises that were lost are asked for again.
    pub fn keep(&self) -> mpsc::Receiver<told::Told> {
        self.core.listeners.keep()
    }

    /// What others change from here on in directories that are promised to this client.
    pub fn watch(&self) -> broadcast::Receiver<told::Seen> {
        self.core.listeners.watch()
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        self.core.connection.clock()
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        self.core.connection.metrics()
    }

    /// Ends the session: tasks first, then its standing with the owner, so that its locks go to
    /// others at once. An owner that does not answer finds out by the lease. The watermark that
    /// goes with it says whether an op is still open: the next run will ask what became of it.
    pub async fn close(&self) {
        self.tasks.stop.cancel();
        let mut running = self.tasks.running.lock().await;
        while running.join_next().await.is_some() {}
        let closed = self.core.connection.call_once(Role::Directory, None, &CloseSession {}).await;
        if let Err(error) = closed {
            tracing::debug!(%error, session = %self.id(), "session was not closed");
        }
    }
}

impl Standing {
    fn new(reply: &SessionReply, sent_at: Duration, opening: u64) -> Standing {
        let lease = Duration::from_millis(reply.lease_ms.into());
        Standing {
            key: reply.key.clone(),
            epoch: reply.epoch,
            lease,
            leased_until: holder_deadline(sent_at, lease),
            opening,
        }
    }
}

impl Core {
    async fn reopen(&self, seen: u64) -> Result<(), FsError> {
        let _one = self.reopening.lock().await;
        if self.standing().opening != seen {
            return Ok(());
        }
        let request = OpenSession { volume: self.volume.clone(), host: self.host.clone() };
        let sent_at = self.connection.clock().boottime();
        let reply = self.connection.call(Role::Directory, None, &request).await?;
        self.connection.metrics().count(Counter::SessionReopened);
        // Before anybody can ask for the event stream, with which the owner stops waiting for us.
        self.reclaim().await?;
        let fresh = Standing::new(&reply, sent_at, seen + 1);
        tracing::info!(epoch = fresh.epoch.0, "session opened again");
        *self.standing() = fresh;
        Ok(())
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn yielded(&self) -> MutexGuard<'_, Yielded> {
        self.yielded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
