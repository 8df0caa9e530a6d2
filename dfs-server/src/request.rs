//! What a handler knows of a request beside the request: who asks, as whom, under which op id,
//! until when. Made by `rpc`, read by every service.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::credential::{Identity, NOBODY, TicketHolder};
use dfs_proto::id::{NodeId, OpId, SessionId};
use dfs_proto::promise::{News, StreamNumber};

/// Who is at the other end, as far as it is proven.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A role of this process.
    Local,
    /// A process of the cell, by its certificate.
    Node(NodeProof),
    /// The bearer of a ticket.
    User(Arc<TicketHolder>),
    Anonymous,
}

impl Peer {
    /// The account or machine, for logs and lock holders' names.
    pub fn user(&self) -> &str {
        match self {
            Peer::User(holder) => &holder.user,
            Peer::Local | Peer::Node(_) => "cell",
            Peer::Anonymous => "anonymous",
        }
    }

    /// As whom permission is checked; nobody for nodes and strangers.
    pub fn identity(&self, caller: Option<&Identity>) -> Identity {
        match self {
            Peer::User(holder) => holder.identity(caller),
            _ => Identity { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
        }
    }
}

/// What a node's certificate proves.
#[derive(Clone)]
pub struct NodeProof {
    pub roles: Arc<[Role]>,
    is_node: Arc<dyn Fn(NodeId) -> bool + Send + Sync>,
    /// DER of the certificate itself, for who judges more of it than its names.
    pub certificate: Arc<[u8]>,
}

impl NodeProof {
    pub fn new(
        roles: Arc<[Role]>,
        is_node: impl Fn(NodeId) -> bool + Send + Sync + 'static,
    ) -> NodeProof {
        NodeProof { roles, is_node: Arc::new(is_node), certificate: Arc::default() }
    }

    /// The proof, with the certificate that it comes from.
    pub fn with_certificate(self, der: &[u8]) -> NodeProof {
        NodeProof { certificate: der.into(), ..self }
    }
}

impl fmt::Debug for NodeProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeProof({:?})", self.roles)
    }
}

/// A request's surroundings.
#[derive(Clone, Debug)]
pub struct Context {
    pub peer: Peer,
    /// As whom permission is checked; nobody for nodes and strangers.
    pub identity: Identity,
    pub session: Option<SessionId>,
    pub op: Option<OpId>,
    /// The client's watermark: ops of its session below it are settled.
    pub lowest_unanswered: u64,
    /// When the caller stops waiting, on the server's CLOCK_BOOTTIME.
    pub deadline: Duration,
    /// Where the request came from; absent for calls of the own process.
    pub address: Option<IpAddr>,
    /// What will go beside the reply.
    pub news: NewsCell,
}

/// What goes beside a reply, for all who work on it to write to. Clones are the same cell.
#[derive(Clone, Debug, Default)]
pub struct NewsCell {
    /// The stream that the client has beside it.
    stream: Option<StreamNumber>,
    news: Arc<Mutex<News>>,
}

impl NewsCell {
    pub fn beside(stream: Option<StreamNumber>) -> NewsCell {
        NewsCell { stream, news: Arc::default() }
    }

    /// As [`dfs_proto::rpc::Envelope::stream`].
    pub fn stream(&self) -> Option<StreamNumber> {
        self.stream
    }

    pub fn write(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self) -> News {
        std::mem::take(&mut *self.write())
    }
}

/// Whose mutation something is.
#[derive(Clone, Debug)]
pub struct Origin {
    pub op: OpId,
    /// As [`Context::lowest_unanswered`].
    pub watermark: u64,
    /// Where what its session is to know of the change goes.
    pub news: NewsCell,
}

impl Context {
    /// # Errors
    /// `SessionUnknown` if the request names none.
    pub fn session(&self) -> Result<SessionId, FsError> {
        self.session.ok_or(FsError::SessionUnknown)
    }

    /// # Errors
    /// `NotPermitted` unless the peer is a process with `role`.
    pub fn require_role(&self, role: Role) -> Result<(), FsError> {
        match &self.peer {
            Peer::Local => Ok(()),
            Peer::Node(proof) if proof.roles.contains(&role) => Ok(()),
            _ => Err(FsError::NotPermitted),
        }
    }

    /// # Errors
    /// `NotPermitted` unless the peer is the process that speaks for `node`.
    pub fn require_node(&self, node: NodeId) -> Result<(), FsError> {
        match &self.peer {
            Peer::Local => Ok(()),
            Peer::Node(proof) if (proof.is_node)(node) => Ok(()),
            _ => Err(FsError::NotPermitted),
        }
    }

    /// `None` without an op id.
    pub fn origin(&self) -> Option<Origin> {
        let (watermark, news) = (self.lowest_unanswered, self.news.clone());
        self.op.map(|op| Origin { op, watermark, news })
    }

    /// The account or machine behind the request, for logs and lock holders' names.
    pub fn user(&self) -> &str {
        self.peer.user()
    }
}
