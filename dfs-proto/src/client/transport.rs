//! The network seam: one call to one peer.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use crate::admin::Role;
use crate::error::FsError;
use crate::id::NodeId;

/// One request, ready to send.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: &'static str,
    /// Prefix and head.
    pub frame: Bytes,
    pub payload: Vec<Bytes>,
    /// How long until the first byte of the reply.
    pub timeout: Duration,
}

/// Carries calls to one peer.
pub trait Transport: Send + Sync + Debug {
    /// Sends a call and waits until the reply begins.
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>>;
}

/// Whom to reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The role the peer must prove by its certificate; `None`: any node of the cell.
    pub role: Option<Role>,
    /// Which node, if it is known: a node of the same process is reached without a socket.
    pub node: Option<NodeId>,
    pub host: String,
    pub port: u16,
}

/// Finds transports. Cheap to ask: implementations keep what they made.
pub trait Dial: Send + Sync + Debug {
    /// # Errors
    /// An error only if no transport can exist (an address that is none); whether the peer lives
    /// shows at the first call.
    fn dial(&self, peer: &Peer) -> Result<Arc<dyn Transport>, TransportError>;
}

/// A reply's body: all of it, or pieces as they come.
pub enum ReplyBody {
    Whole(Bytes),
    Pieces(BoxStream<'static, Result<Bytes, TransportError>>),
}

impl Debug for ReplyBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReplyBody::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            ReplyBody::Pieces(_) => f.write_str("Pieces(..)"),
        }
    }
}

impl ReplyBody {
    /// All of the body.
    ///
    /// # Errors
    /// [`TransportFault::Garbled`] if it is longer than `limit` bytes; whatever the pieces report.
    pub async fn collect(self, limit: usize) -> Result<Bytes, TransportError> {
        let mut pieces = match self {
            ReplyBody::Whole(bytes) => return Ok(bytes),
            ReplyBody::Pieces(pieces) => pieces,
        };
        let Some(first) = pieces.try_next().await? else {
            return Ok(Bytes::new());
        };
        let Some(second) = pieces.try_next().await? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(&first[..]);
        let mut next = Some(second);
        while let Some(piece) = next {
            if whole.len() + piece.len() > limit {
                let what = format!("reply is longer than {limit} bytes");
                return Err(TransportError::new(TransportFault::Garbled, "peer", what));
            }
            whole.extend_from_slice(&piece);
            next = pieces.try_next().await?;
        }
        Ok(whole.freeze())
    }

    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, TransportError>> {
        match self {
            ReplyBody::Whole(bytes) => stream::once(async { Ok(bytes) }).boxed(),
            ReplyBody::Pieces(pieces) => pieces,
        }
    }
}

/// What kind of failure a transport met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportFault {
    /// No connection: the call was not sent.
    Unreachable,
    /// The connection ended before the reply did: the call may have been run.
    Lost,
    /// No reply in time: the call may have been run.
    TimedOut,
    /// The peer's certificate is not one of this cell for the role asked for.
    NotOfCell,
    /// The peer's certificate is not valid at this time: it has ended, or a clock is wrong.
    OutOfDate,
    /// The reply is no DFS reply.
    Garbled,
}

impl TransportFault {
    pub fn is_transient(self) -> bool {
        match self {
            TransportFault::Unreachable | TransportFault::Lost | TransportFault::TimedOut => true,
            TransportFault::NotOfCell | TransportFault::OutOfDate | TransportFault::Garbled => {
                false
            }
        }
    }
}

/// A failure below the protocol.
#[derive(Debug, thiserror::Error)]
#[error("{whom}: {what}")]
pub struct TransportError {
    pub fault: TransportFault,
    /// The peer, as people know it.
    pub whom: String,
    pub what: String,
}

impl TransportError {
    pub fn new(
        fault: TransportFault,
        whom: impl Into<String>,
        what: impl Into<String>,
    ) -> TransportError {
        TransportError { fault, whom: whom.into(), what: what.into() }
    }
}

impl From<TransportError> for FsError {
    fn from(error: TransportError) -> FsError {
        super::CallError::Transport(error).into_fs()
    }
}
