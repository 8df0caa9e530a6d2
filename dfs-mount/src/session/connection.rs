//! Connections: one client's way to a cell.
//!
//! Owns the dialer (pinned to the cell's CA), the cell's map, the ticket, the op ids and the
//! counters. Promises: every request on the wire is counted; transient failures are repeated until
//! the policy ends, a mutation always under its one op id; an expired ticket is renewed and the
//! request repeated once. Knows nothing of leases or recalls: `SessionUnknown` goes to the session
//! above, which opens itself again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::admin::{Map, Role};
use dfs_proto::auth::Renew;
use dfs_proto::client::retry::{RetryPolicy, retry};
use dfs_proto::client::{
    Answer, CallError, Client, Dial, HttpDialer, ItemStream, Peer, TransportError, TransportFault,
};
use dfs_proto::clock::Clock;
use dfs_proto::credential::{Identity, Ticket};
use dfs_proto::directory::NodeAddress;
use dfs_proto::id::SessionId;
use dfs_proto::promise::{News, Promise};
use dfs_proto::rpc::{Access, Envelope, Rpc, StreamRpc};
use tokio::sync::Notify;

use crate::cache::promise::Promises;
use crate::credential::{Credential, LoginKind, TicketSource};
use crate::metrics::{Counter, Metrics};

use super::ops::{OpGuard, OpIds};
use super::route::Route;

/// How to reach a cell.
#[derive(Debug)]
pub struct Way {
    pub host: String,
    pub port: u16,
    pub dial: Arc<dyn Dial>,
    pub tickets: TicketSource,
    pub policy: RetryPolicy,
    pub clock: Arc<dyn Clock>,
}

/// A client's way to a cell. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dial: Arc<dyn Dial>,
    tickets: TicketSource,
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    route: Mutex<Route>,
    id: SessionId,
    ops: OpIds,
    /// Whether requests name the session.
    has_session: AtomicBool,
    /// What the owner has promised this client.
    promises: Promises,
    new_stream: Notify,
}

/// What goes with a request besides itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending<'a> {
    pub caller: Option<&'a Identity>,
    pub op: Option<&'a OpGuard>,
    /// An earlier session of this client, to speak as.
    pub former: Option<Former>,
    /// How long the server itself may wait before it answers; comes on top of the policy.
    pub wait: Duration,
    /// Where what the reply promises goes, also that of a refusal.
    pub promise: Option<&'a PromiseCell>,
}

/// What the last reply promised.
#[derive(Debug, Default)]
pub struct PromiseCell(Mutex<Option<Promise>>);

impl PromiseCell {
    fn set(&self, promise: Option<Promise>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = promise;
    }

    pub fn take(&self) -> Option<Promise> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// An earlier session of this client, and what is said of its ops.
#[derive(Clone, Copy, Debug)]
pub struct Former {
    pub session: SessionId,
    /// Below it all are settled.
    pub watermark: u64,
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug)]
pub enum To<'a> {
    Role(Role),
    Node(&'a NodeAddress),
}

/// One attempt: whom, with what, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub to: To<'a>,
    pub sending: Sending<'a>,
    pub timeout: Duration,
}

/// How long an attempt may take where nothing else says. Why: as the default soft timeout.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

impl Connection {
    /// # Errors
    /// `Unavailable` if there is no randomness to make an id of.
    pub fn new(way: Way) -> Result<Connection, FsError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| FsError::unavailable(format!("random numbers: {error}")))?;
        let id = SessionId(id);
        Ok(Connection {
            inner: Arc::new(Inner {
                dial: way.dial,
                tickets: way.tickets,
                policy: way.policy,
                clock: way.clock,
                metrics: Arc::default(),
                route: Mutex::new(Route::new(way.host, way.port)),
                id,
                ops: OpIds::new(id),
                has_session: AtomicBool::new(false),
                promises: Promises::default(),
                new_stream: Notify::new(),
            }),
        })
    }

    /// A connection over TLS with one of the cell's logins.
    ///
    /// # Errors
    /// `Unauthenticated` if there is no such login.
    pub fn to_cell(
        credential: &Credential,
        kind: LoginKind,
        policy: RetryPolicy,
        clock: Arc<dyn Clock>,
    ) -> Result<Connection, FsError> {
        let renewal = credential.renewal(kind).ok_or(FsError::Unauthenticated)?;
        let tickets = TicketSource::renewing(renewal.clone(), Arc::clone(&clock));
        Connection::new(Way {
            host: credential.host.clone(),
            port: credential.port,
            dial: Arc::new(HttpDialer::new(credential.ca_pem.clone(), None)),
            tickets,
            policy,
            clock,
        })
    }

    /// A connection over TLS for public operations: before a login, or to end one.
    ///
    /// # Errors
    /// As [`Connection::new`].
    pub fn public(
        (host, port): (&str, u16),
        ca_pem: &str,
        policy: RetryPolicy,
        clock: Arc<dyn Clock>,
    ) -> Result<Connection, FsError> {
        Connection::new(Way {
            host: host.to_owned(),
            port,
            dial: Arc::new(HttpDialer::new(ca_pem.to_owned(), None)),
            tickets: TicketSource::anonymous(Arc::clone(&clock)),
            policy,
            clock,
        })
    }

    pub fn id(&self) -> SessionId {
        self.inner.id
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    pub fn policy(&self) -> RetryPolicy {
        self.inner.policy
    }

    /// As whom the servers let a local caller act; `None` if that is not known now.
    pub fn identity(&self, caller: &Identity) -> Option<Identity> {
        self.inner.tickets.identity(caller)
    }

    pub fn begin_op(&self) -> OpGuard {
        self.inner.ops.begin()
    }

    /// Calls a role, again and again until it answers or the policy ends.
    ///
    /// # Errors
    /// The operation's; `Unavailable` or `TimedOut` when nobody answered in time.
    pub async fn call<R: Rpc>(
        &self,
        to: Role,
        caller: Option<&Identity>,
        request: &R,
    ) -> Result<R::Reply, FsError> {
        let op = R::MUTATES.then(|| self.begin_op());
        let sending = Sending { caller, op: op.as_ref(), ..Sending::default() };
        self.call_with(to, sending, request).await.map_err(CallError::into_fs)
    }

    /// As [`Connection::call`], with one attempt (and one more with a fresh ticket).
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn call_once<R: Rpc>(
        &self,
        to: Role,
        caller: Option<&Identity>,
        request: &R,
    ) -> Result<R::Reply, FsError> {
        let op = R::MUTATES.then(|| self.begin_op());
        let sending = Sending { caller, op: op.as_ref(), ..Sending::default() };
        let attempt = Attempt { to: To::Role(to), sending, timeout: ATTEMPT_TIMEOUT };
        let answer = self.attempt(attempt, request, Vec::new()).await;
        answer.map(|answer| answer.reply).map_err(CallError::into_fs)
    }

    /// As [`Connection::call`], with a caller, op id and wait of one's own.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call_with<R: Rpc>(
        &self,
        to: Role,
        sending: Sending<'_>,
        request: &R,
    ) -> Result<R::Reply, CallError> {
        let give_up_after = self.inner.policy.give_up_after.map(|after| after + sending.wait);
        let policy = RetryPolicy { give_up_after, ..self.inner.policy };
        let attempt = |left: Duration| {
            let timeout = left.min(ATTEMPT_TIMEOUT + sending.wait);
            self.attempt(Attempt { to: To::Role(to), sending, timeout }, request, Vec::new())
        };
        retry(&*self.inner.clock, policy, attempt).await.map(|answer| answer.reply)
    }

    /// Sends a request once; once more if the ticket has expired.
    ///
    /// # Errors
    /// The call's; a role's address that does not answer is noted, and the map asked for anew.
    pub async fn attempt<R: Rpc>(
        &self,
        attempt: Attempt<'_>,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<Answer<R::Reply>, CallError> {
        let Attempt { to, sending, timeout } = attempt;
        self.learn_map(to).await;
        let mut refused: Option<Ticket> = None;
        loop {
            let ticket = match R::ACCESS {
                Access::Public => None,
                Access::User | Access::Admin | Access::Node => {
                    self.ticket(refused.as_ref()).await?
                }
            };
            let since = self.inner.promises.moment();
            let envelope = self.envelope(sending, ticket.clone(), timeout);
            let unanswered = Unanswered { connection: R::CHANGES.then_some(self) };
            let (news, result) = self.send(to, &envelope, request, payload.clone()).await;
            unanswered.answered(&result);
            self.inner.promises.changed_here(&news.changes, since);
            if let Some(cell) = sending.promise {
                cell.set(news.promise);
            }
            match result {
                Err(CallError::Fs(FsError::TicketExpired)) if refused.is_none() => {
                    refused = ticket;
                    if refused.is_none() {
                        return Err(FsError::Unauthenticated.into());
                    }
                }
                result => return result,
            }
        }
    }

    /// Opens a stream from a role.
    ///
    /// # Errors
    /// The call's.
    pub async fn open_stream<R: StreamRpc>(
        &self,
        to: Role,
        request: &R,
    ) -> Result<ItemStream<R::Item>, CallError> {
        self.learn_map(To::Role(to)).await;
        let ticket = self.ticket(None).await?;
        let envelope = self.envelope(Sending::default(), ticket, ATTEMPT_TIMEOUT);
        self.inner.metrics.count_rpc(R::PATH);
        let peer = self.route().peer(to);
        let result = self.client(&peer)?.open_stream(&envelope, request).await;
        self.note(To::Role(to), result)
    }

    /// From here on requests name the session.
    pub(super) fn name_session(&self) {
        self.inner.has_session.store(true, Ordering::Release);
    }

    async fn send<R: Rpc>(
        &self,
        to: To<'_>,
        envelope: &Envelope,
        request: &R,
        payload: Vec<Bytes>,
    ) -> (News, Result<Answer<R::Reply>, CallError>) {
        let peer = match to {
            To::Role(role) => self.route().peer(role),
            To::Node(address) => self.route().file_node(address),
        };
        self.inner.metrics.count_rpc(R::PATH);
        let result = match self.client(&peer) {
            Ok(client) => client.call_with_news(envelope, request, payload).await,
            Err(error) => Err(error.into()),
        };
        match result {
            Ok((news, result)) => (news, self.note(to, result)),
            Err(error) => (News::default(), self.note(to, Err(error))),
        }
    }

    /// What the owner has promised this client.
    pub fn promises(&self) -> &Promises {
        &self.inner.promises
    }

    /// What an operation changed, or will change yet, is not known: nothing that was promised is
    /// held any more, and only a stream that begins after it tells of it if it is late.
    fn lost_track(&self) {
        self.inner.promises.forget_all();
        self.inner.new_stream.notify_one();
    }

    pub(super) async fn wants_new_stream(&self) {
        self.inner.new_stream.notified().await;
    }

    fn note<T>(&self, to: To<'_>, result: Result<T, CallError>) -> Result<T, CallError> {
        if let (To::Role(role), Err(CallError::Transport(_))) = (to, &result) {
            self.route().failed(role);
        }
        result
    }

    fn envelope(&self, sending: Sending<'_>, ticket: Option<Ticket>, left: Duration) -> Envelope {
        let has_session = self.inner.has_session.load(Ordering::Acquire);
        let own = has_session.then_some(self.inner.id);
        let former = sending.former.filter(|former| former.session != self.inner.id);
        Envelope {
            ticket,
            caller: sending.caller.cloned(),
            session: former.map(|former| former.session).or(own),
            stream: self.inner.promises.stream(),
            op: sending.op.map(OpGuard::id),
            // Our watermark says nothing about another session's ops.
            lowest_unanswered: former
                .map_or_else(|| self.inner.ops.lowest_unanswered(), |former| former.watermark),
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            ..Envelope::default()
        }
    }

    async fn ticket(&self, refused: Option<&Ticket>) -> Result<Option<Ticket>, CallError> {
        let renew = |renewal| async move {
            self.inner.metrics.count(Counter::TicketRenewed);
            self.learn_map(To::Role(Role::Auth)).await;
            let envelope = self.envelope(Sending::default(), None, ATTEMPT_TIMEOUT);
            let request = Renew { renewal };
            let (_, answer) =
                self.send(To::Role(Role::Auth), &envelope, &request, Vec::new()).await;
            answer.map(|answer| answer.reply)
        };
        self.inner.tickets.current(refused, renew).await
    }

    /// Asks the entry for the cell's map, if it is not known or its addresses have failed. Without
    /// an answer things stay as they are: the call that follows says what is wrong.
    async fn learn_map(&self, to: To<'_>) {
        let To::Role(role) = to else { return };
        if !self.route().takes_map(role) {
            return;
        }
        let entry = self.route().entry();
        let Ok(client) = self.client(&entry) else { return };
        self.inner.metrics.count_rpc(Map::PATH);
        let envelope = Envelope { deadline_ms: MAP_DEADLINE_MS, ..Envelope::default() };
        match client.call(&envelope, &Map {}, Vec::new()).await {
            Ok(answer) => self.route().learn(answer.reply),
            Err(error) => tracing::debug!(%error, "no cell map"),
        }
    }

    fn client(&self, peer: &Peer) -> Result<Client, TransportError> {
        self.inner.dial.dial(peer).map(Client::new)
    }

    fn route(&self) -> MutexGuard<'_, Route> {
        self.inner.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that may change something, and whose answer has not come.
struct Unanswered<'a> {
    connection: Option<&'a Connection>,
}

impl Unanswered<'_> {
    /// Whatever it changed was told, if this is an answer.
    fn answered<T>(mut self, result: &Result<T, CallError>) {
        let is_open = result.as_ref().is_err_and(|error| error.is_transient() && !is_unsent(error));
        if !is_open {
            self.connection = None;
        }
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection {
            connection.lost_track();
        }
    }
}

/// Time the entry gets to tell the map. Units: milliseconds. Why short: without a map the entry
/// stands for every role, which is right in most cells.
const MAP_DEADLINE_MS: u32 = 5_000;

/// Whether the call was certainly not sent.
pub fn is_unsent(error: &CallError) -> bool {
    matches!(error, CallError::Transport(error) if error.fault == TransportFault::Unreachable)
}
