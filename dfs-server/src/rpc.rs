//! The generic handler: decode, authenticate, authorise, call, encode.
//!
//! A [`Router`] maps paths to handlers; it serves calls of the own process ([`Local`]) and, through
//! `http`, those from the network, with the same frames. It knows no operation: `server` registers
//! them. Every request ends at its deadline.

mod authenticate;
mod body;
pub mod http;
pub mod rest;
mod status;

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::client::{Local, ReplyBody};
use dfs_proto::clock::Clock;
use dfs_proto::limits::DEADLINE_MAX;
use dfs_proto::promise::News;
use dfs_proto::rpc::{
    Access, Envelope, Rpc, StreamRpc, decode_request, encode_reply, encode_reply_with, split_frame,
};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;

use crate::request::{Context, NodeProof, Peer};

pub use authenticate::CheckTicket;
pub use status::http_status;

/// What the connection proves before any ticket.
#[derive(Clone, Debug)]
pub enum Channel {
    Local,
    Network { address: IpAddr, node: Option<NodeProof> },
}

/// A reply on its way out.
pub enum Reply {
    /// Head and payload.
    Whole { status: u16, parts: Vec<Bytes> },
    /// Frames as they come.
    Stream(BoxStream<'static, Bytes>),
}

type Handler =
    Box<dyn Fn(Channel, Bytes, Bytes) -> BoxFuture<'static, Reply> + Send + Sync + 'static>;

struct Route {
    access: Access,
    handler: Handler,
}

/// Paths and their handlers.
pub struct Router {
    routes: HashMap<&'static str, Route>,
    gate: Arc<Gate>,
}

/// What every handler needs to judge a request.
struct Gate {
    tickets: Arc<dyn CheckTicket>,
    clock: Arc<dyn Clock>,
}

impl Router {
    pub fn new(tickets: Arc<dyn CheckTicket>, clock: Arc<dyn Clock>) -> Router {
        Router { routes: HashMap::new(), gate: Arc::new(Gate { tickets, clock }) }
    }

    /// Serves `R` with a handler that takes and gives no payload.
    pub fn unary<R: Rpc, F>(&mut self, handler: impl Fn(Context, R) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<R::Reply, FsError>> + Send + 'static,
    {
        self.with_payload(move |context, request, _payload| {
            handler(context, request).map(|reply| reply.map(|reply| (reply, Vec::new())))
        });
    }

    /// Serves `R` with a handler that takes a payload and gives one back.
    pub fn with_payload<R: Rpc, F>(
        &mut self,
        handler: impl Fn(Context, R, Bytes) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(R::Reply, Vec<Bytes>), FsError>> + Send + 'static,
    {
        let (gate, handler) = (Arc::clone(&self.gate), Arc::new(handler));
        self.add(R::PATH, R::ACCESS, move |channel, head, payload| {
            let (gate, handler) = (Arc::clone(&gate), Arc::clone(&handler));
            let answer = async move {
                let admitted = decode_request::<R>(&head).and_then(|(envelope, request)| {
                    check_op::<R>(&envelope)?;
                    let wait = wait_of(&envelope);
                    Ok((gate.admit(channel, envelope, R::ACCESS)?, request, wait))
                });
                let (context, request, wait) = match admitted {
                    Ok(admitted) => admitted,
                    Err(error) => return (News::default(), Err(error)),
                };
                let news = context.news.clone();
                let answer = tokio::time::timeout(wait, handler(context, request, payload)).await;
                let late = |_| Err(FsError::TimedOut { whom: "server".into() });
                (news.take(), answer.unwrap_or_else(late))
            };
            answer.map(move |(news, answer)| whole_reply(R::PATH, &news, answer)).boxed()
        });
    }

    /// Serves `R` with a handler that gives a stream of items.
    pub fn stream<R: StreamRpc, F>(
        &mut self,
        handler: impl Fn(Context, R) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<BoxStream<'static, R::Item>, FsError>> + Send + 'static,
    {
        let (gate, handler) = (Arc::clone(&self.gate), Arc::new(handler));
        self.add(R::PATH, R::ACCESS, move |channel, head, _payload| {
            let (gate, handler) = (Arc::clone(&gate), Arc::clone(&handler));
            let opened = async move {
                let (envelope, request) = decode_request::<R>(&head)?;
                let context = gate.admit(channel, envelope, R::ACCESS)?;
                handler(context, request).await
            };
            opened.map(|opened| stream_reply::<R>(opened)).boxed()
        });
    }

    fn add<F>(&mut self, path: &'static str, access: Access, handler: F)
    where
        F: Fn(Channel, Bytes, Bytes) -> BoxFuture<'static, Reply> + Send + Sync + 'static,
    {
        let before = self.routes.insert(path, Route { access, handler: Box::new(handler) });
        assert!(before.is_none(), "two handlers for {path}");
    }

    /// Whether a request with this envelope may send a large body to `path`: never one that anybody
    /// may send.
    pub(super) fn admit_body(
        &self,
        channel: &Channel,
        path: &str,
        envelope: &Envelope,
    ) -> Result<(), FsError> {
        let Some(route) = self.routes.get(path) else {
            return Err(FsError::UnknownOperation { path: path.to_owned() });
        };
        match self.gate.identify(channel.clone(), envelope, route.access)? {
            Peer::Anonymous => Err(FsError::malformed("request of a stranger is too long")),
            _ => Ok(()),
        }
    }

    /// Answers one request.
    pub async fn dispatch(
        &self,
        channel: Channel,
        path: &str,
        head: Bytes,
        payload: Bytes,
    ) -> Reply {
        match self.routes.get(path) {
            Some(route) => (route.handler)(channel, head, payload).await,
            None => refusal(FsError::UnknownOperation { path: path.to_owned() }),
        }
    }
}

fn check_op<R: Rpc>(envelope: &Envelope) -> Result<(), FsError> {
    if R::MUTATES && envelope.op.is_none() {
        return Err(FsError::malformed(format!("{} without an op id", R::PATH)));
    }
    Ok(())
}

fn wait_of(envelope: &Envelope) -> Duration {
    Duration::from_millis(u64::from(envelope.deadline_ms)).min(DEADLINE_MAX)
}

/// A reply that says no.
pub fn refusal(error: FsError) -> Reply {
    whole_reply::<()>("-", &News::default(), Err(error))
}

fn whole_reply<T: Serialize>(
    path: &str,
    news: &News,
    answer: Result<(T, Vec<Bytes>), FsError>,
) -> Reply {
    let (reply, payload) = match answer {
        Ok((reply, payload)) => (Ok(reply), payload),
        Err(error) => (Err(error), Vec::new()),
    };
    let status = reply.as_ref().map_or_else(http_status, |_| 200);
    match encode_reply_with(news, &reply) {
        Ok(frame) => Reply::Whole { status, parts: [vec![frame], payload].concat() },
        Err(error) => {
            tracing::error!(path, %error, "reply does not encode");
            refusal(FsError::Internal { incident: format!("encode-{path}") })
        }
    }
}

fn stream_reply<R: StreamRpc>(opened: Result<BoxStream<'static, R::Item>, FsError>) -> Reply {
    let items = match opened {
        Ok(items) => items,
        Err(error) => return whole_reply::<()>(R::PATH, &News::default(), Err(error)),
    };
    let frames = items.filter_map(|item| async move {
        encode_reply(&Ok(item))
            .inspect_err(|error| tracing::error!(path = R::PATH, %error, "item does not encode"))
            .ok()
    });
    Reply::Stream(frames.boxed())
}

impl Local for Router {
    fn answer(
        &self,
        path: &str,
        frame: Bytes,
        payload: Vec<Bytes>,
    ) -> BoxFuture<'static, ReplyBody> {
        let (head, _) = match split_frame(frame) {
            Ok(parts) => parts,
            Err(error) => return std::future::ready(body_of(refusal(error))).boxed(),
        };
        match self.routes.get(path) {
            Some(route) => {
                (route.handler)(Channel::Local, head, join(payload)).map(body_of).boxed()
            }
            None => {
                let error = FsError::UnknownOperation { path: path.to_owned() };
                std::future::ready(body_of(refusal(error))).boxed()
            }
        }
    }
}

fn join(mut payload: Vec<Bytes>) -> Bytes {
    match payload.len() {
        0 => Bytes::new(),
        1 => payload.remove(0),
        _ => payload.concat().into(),
    }
}

fn body_of(reply: Reply) -> ReplyBody {
    match reply {
        Reply::Whole { parts, .. } => ReplyBody::Whole(join(parts)),
        Reply::Stream(frames) => ReplyBody::Pieces(frames.map(Ok).boxed()),
    }
}

/// A stream that gives what a channel brings, and ends with it.
pub fn stream_of<T: Send + 'static>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
    .boxed()
}

#[cfg(test)]
mod tests;
