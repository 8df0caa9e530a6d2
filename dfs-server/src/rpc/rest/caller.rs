//! Calls of the operations on behalf of whoever sent an HTTP request.
//!
//! The face has no right of its own. Every call carries the requester's ticket and goes through the
//! router with the requester's address, as if it had come over the network: so authentication,
//! permission, limits, op ids and audit are those of the operations themselves. A role or node that
//! is not in this process is called over the network with the same ticket.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::client::{
    Answer, Call, CallError, Client, ReplyBody, Transport, TransportError, TransportFault,
};
use dfs_proto::credential::Ticket;
use dfs_proto::id::{NodeId, OpId, SessionId};
use dfs_proto::rpc::{Envelope, Rpc, split_frame};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::{Channel, Router, body_of};

/// How long an operation may take. Why: as long as mounts wait.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Whom a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Auth,
    Directory,
    Node(NodeId),
}

/// How processes of the cell are reached.
pub trait Peers: Send + Sync + 'static {
    /// The process to ask; `None` if it is this one.
    ///
    /// # Errors
    /// `Unavailable` while nobody is known.
    fn find(&self, to: To) -> Result<Option<Client>, FsError>;
}

/// One requester. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    here: Client,
    peers: Arc<dyn Peers>,
    ticket: Option<Ticket>,
    session: Option<SessionId>,
}

/// A call with what is not usual about it.
#[derive(Clone, Debug)]
pub struct Request<'a, R> {
    pub to: To,
    pub request: &'a R,
    pub op: Option<u64>,
    /// The op number below which the session has no question left.
    pub watermark: u64,
    pub payload: Vec<Bytes>,
    pub timeout: Duration,
}

impl<'a, R: Rpc> Request<'a, R> {
    pub fn new(to: To, request: &'a R) -> Request<'a, R> {
        Request { to, request, op: None, watermark: 0, payload: Vec::new(), timeout: CALL_TIMEOUT }
    }
}

impl Caller {
    /// Whoever is at `address`. A node's certificate counts for nothing here: nodes have their own
    /// way to ask.
    pub fn new(router: Arc<Router>, peers: Arc<dyn Peers>, address: IpAddr) -> Caller {
        let channel = Channel::Network { address, node: None };
        let here = Client::new(Arc::new(Here { router, channel }));
        Caller { here, peers, ticket: None, session: None }
    }

    /// The same requester with a ticket.
    pub fn with_ticket(self, ticket: Ticket) -> Caller {
        Caller { ticket: Some(ticket), ..self }
    }

    /// The same requester in a session.
    pub fn in_session(&self, session: SessionId) -> Caller {
        Caller { session: Some(session), ..self.clone() }
    }

    /// The op with this number of the caller's session.
    ///
    /// # Panics
    /// Without a session: a defect of the face.
    pub fn op(&self, number: u64) -> OpId {
        OpId { session: self.session.expect("who changes something has a session"), number }
    }

    /// # Errors
    /// The operation's.
    pub async fn ask<R: Rpc>(&self, to: To, request: &R) -> Result<R::Reply, FsError> {
        self.send(Request::new(to, request)).await.map_err(CallError::into_fs)
    }

    /// Asks for a change, under an op id.
    ///
    /// # Errors
    /// The operation's.
    pub async fn change<R: Rpc>(&self, number: u64, request: &R) -> Result<R::Reply, FsError> {
        let request = Request { op: Some(number), ..Request::new(To::Directory, request) };
        self.send(request).await.map_err(CallError::into_fs)
    }

    /// # Errors
    /// Those of the operation, and of the way to it.
    pub async fn send<R: Rpc>(&self, request: Request<'_, R>) -> Result<R::Reply, CallError> {
        self.exchange(request).await.map(|answer| answer.reply)
    }

    /// As [`Caller::send`], with the payload of the answer.
    ///
    /// # Errors
    /// Those of the operation, and of the way to it.
    pub async fn exchange<R: Rpc>(
        &self,
        request: Request<'_, R>,
    ) -> Result<Answer<R::Reply>, CallError> {
        let Request { to, request, op, watermark, payload, timeout } = request;
        let envelope = Envelope {
            ticket: self.ticket.clone(),
            session: self.session,
            op: op.map(|number| self.op(number)),
            lowest_unanswered: watermark,
            deadline_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            ..Envelope::default()
        };
        let client = self.peers.find(to)?;
        client.as_ref().unwrap_or(&self.here).call(&envelope, request, payload).await
    }
}

/// The operations of this process, as the requester may use them.
struct Here {
    router: Arc<Router>,
    channel: Channel,
}

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Here({:?})", self.channel)
    }
}

impl Transport for Here {
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let (router, channel) = (Arc::clone(&self.router), self.channel.clone());
        async move {
            let fault = |kind, what: &str| TransportError::new(kind, "own process", what);
            let (head, _) = split_frame(call.frame)
                .map_err(|error| fault(TransportFault::Garbled, &error.to_string()))?;
            let payload = super::super::join(call.payload);
            let answer = router.dispatch(channel, call.path, head, payload);
            let answer = tokio::time::timeout(call.timeout, answer).await;
            answer.map(body_of).map_err(|_| fault(TransportFault::TimedOut, "no answer in time"))
        }
        .boxed()
    }
}
