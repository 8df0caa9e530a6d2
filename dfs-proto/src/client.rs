//! The RPC client: the network seam and what is built on it.
//!
//! [`Transport`] carries one call to one peer; HTTP over TLS, calls inside one process and the
//! hostile double implement it. [`Dial`] finds the transport for a role at an address. [`Client`]
//! turns typed requests into calls; [`retry`] repeats what may be repeated. Nobody here knows what
//! an operation means.

mod cut;
mod http;
mod in_process;
pub mod retry;
mod transport;

#[cfg(feature = "testing")]
pub mod hostile;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::de::DeserializeOwned;

use crate::error::FsError;
use crate::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::promise::News;
use crate::rpc::{self, Envelope, FRAME_PREFIX_BYTES, Rpc, StreamRpc};

pub use cut::cut_window;
pub use http::{HttpDialer, TlsIdentity, fetch_unverified};
pub use in_process::{InProcess, Local};
pub use transport::{Call, Dial, Peer, ReplyBody, Transport, TransportError, TransportFault};

/// Why a call brought no reply of its type.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server answered: no.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// There is no answer, or none that can be read.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl CallError {
    /// Whether the same call may succeed later: nobody answered, or the answer said so.
    pub fn is_transient(&self) -> bool {
        match self {
            CallError::Fs(error) => error.is_transient(),
            CallError::Transport(error) => error.fault.is_transient(),
        }
    }

    /// The error as an operation's caller sees it.
    pub fn into_fs(self) -> FsError {
        match self {
            CallError::Fs(error) => error,
            CallError::Transport(error) => match error.fault {
                TransportFault::TimedOut => FsError::TimedOut { whom: error.whom },
                TransportFault::NotOfCell => {
                    FsError::NotOfCell { whom: error.whom, what: error.what }
                }
                TransportFault::Unreachable
                | TransportFault::Lost
                | TransportFault::OutOfDate
                | TransportFault::Garbled => FsError::unavailable(error.to_string()),
            },
        }
    }
}

/// A unary reply: the typed part, and bytes that did not pass through the codec.
#[derive(Debug)]
pub struct Answer<T> {
    pub reply: T,
    pub payload: Bytes,
}

/// Items of a stream; ends with an error, or when the server ends it.
pub type ItemStream<T> = BoxStream<'static, Result<T, CallError>>;

/// Typed calls to one peer.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Client {
        Client { transport }
    }

    /// Sends a request once and waits for its reply, at most `envelope.deadline_ms`.
    ///
    /// # Errors
    /// [`CallError::Fs`] if the server refused, [`CallError::Transport`] if there is no answer: the
    /// operation may then have been run or not. Cancel-safe in the sense that dropping the future
    /// ends the wait; the server may run the operation all the same.
    pub async fn call<R: Rpc>(
        &self,
        envelope: &Envelope,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<Answer<R::Reply>, CallError> {
        self.call_with_news(envelope, request, payload).await?.1
    }

    /// As [`Client::call`], with what goes beside the reply, also if the server refused.
    ///
    /// # Errors
    /// [`CallError::Transport`], or [`CallError::Fs`] of a request or reply that cannot be read.
    pub async fn call_with_news<R: Rpc>(
        &self,
        envelope: &Envelope,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<(News, Result<Answer<R::Reply>, CallError>), CallError> {
        debug_assert_eq!(R::MUTATES, envelope.op.is_some(), "{} and its op id", R::PATH);
        let body = self.transport.send(make_call(R::PATH, envelope, request, payload)?).await?;
        let whole = body.collect(FRAME_PREFIX_BYTES + HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX).await?;
        let (head, payload) = rpc::split_frame(whole)?;
        let (news, reply) = rpc::decode_reply(&head)?;
        Ok((news, reply.map(|reply| Answer { reply, payload }).map_err(CallError::Fs)))
    }

    /// Opens a stream. The reply's head decides whether it was opened.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn open_stream<R: StreamRpc>(
        &self,
        envelope: &Envelope,
        request: &R,
    ) -> Result<ItemStream<R::Item>, CallError> {
        let call = make_call(R::PATH, envelope, request, Vec::new())?;
        let frames =
            Frames { body: self.transport.send(call).await?.into_stream(), held: Bytes::new() };
        Ok(futures_util::stream::unfold(frames, next_item).boxed())
    }
}

/// Time a peer gets beyond the deadline it was told, to say that it passed.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);

fn make_call<R: serde::Serialize>(
    path: &'static str,
    envelope: &Envelope,
    request: &R,
    payload: Vec<Bytes>,
) -> Result<Call, CallError> {
    let frame = rpc::encode_request(envelope, request).map_err(|error| FsError::TooLarge {
        what: format!("request {path} ({error})"),
        limit: HEAD_BYTES_MAX as u64,
    })?;
    let timeout = Duration::from_millis(u64::from(envelope.deadline_ms)) + DEADLINE_GRACE;
    Ok(Call { path, frame, payload, timeout })
}

fn decode_item<T: DeserializeOwned>(head: &[u8]) -> Result<T, CallError> {
    let (_, item) = rpc::decode_reply(head)?;
    Ok(item?)
}

/// The frames of a stream's body, cut out of the pieces it comes in.
struct Frames {
    body: BoxStream<'static, Result<Bytes, TransportError>>,
    held: Bytes,
}

async fn next_item<T: DeserializeOwned>(
    mut frames: Frames,
) -> Option<(Result<T, CallError>, Frames)> {
    loop {
        match cut_head(&mut frames.held) {
            Err(error) => return Some((Err(error.into()), ended())),
            Ok(Some(head)) => return Some((decode_item(&head), frames)),
            Ok(None) => {}
        }
        match frames.body.next().await? {
            Ok(piece) if frames.held.is_empty() => frames.held = piece,
            Ok(piece) => frames.held = [&frames.held[..], &piece[..]].concat().into(),
            Err(error) => return Some((Err(error.into()), ended())),
        }
    }
}

fn ended() -> Frames {
    Frames { body: futures_util::stream::empty().boxed(), held: Bytes::new() }
}

fn cut_head(held: &mut Bytes) -> Result<Option<Bytes>, FsError> {
    match rpc::head_length(held)? {
        Some(length) if held.len() >= FRAME_PREFIX_BYTES + length => {
            let frame = held.split_to(FRAME_PREFIX_BYTES + length);
            Ok(Some(frame.slice(FRAME_PREFIX_BYTES..)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
