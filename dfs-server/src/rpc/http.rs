//! The network side of the router: HTTP/1.1 over TLS.
//!
//! A connection costs a task; a request costs memory for its body (`body`). Everything here has a
//! bound in time: handshake, header, body, handler.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::rpc::{CONTENT_TYPE, URL_PREFIX, split_frame};
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::body::BodyBudget;
use super::rest::Rest;
use super::rest::respond::{ResponseBody, build, full};
use super::{Channel, Reply, Router, refusal};
use crate::request::NodeProof;

/// Most connections at a time. Further ones wait to be accepted.
const CONNECTION_COUNT_MAX: usize = 16_384;

/// How long a peer may take nothing of what is sent to it. Why: a reply holds memory.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be idle, or take for a header. Why: longer than clients keep idle
/// connections (90 s), so that it is they who end them.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

/// How long connections may finish what they are doing when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept, such as one for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Reads the rights in a client's certificate.
pub type ReadProof = Arc<dyn Fn(&CertificateDer<'_>) -> NodeProof + Send + Sync>;

/// One listening address.
pub struct HttpServer {
    pub router: Arc<Router>,
    pub rest: Arc<Rest>,
    pub tls: Arc<ServerConfig>,
    pub read_proof: ReadProof,
    /// PEM of the cell's CA certificate, for those who pin it by fingerprint.
    pub ca_pem: Bytes,
}

struct Shared {
    server: HttpServer,
    acceptor: TlsAcceptor,
    bodies: BodyBudget,
}

impl HttpServer {
    /// Serves until `stop`, then lets connections finish. Joins all its tasks.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(Arc::clone(&self.tls)),
            bodies: BodyBudget::default(),
            server: self,
        });
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTION_COUNT_MAX {
                connections.join_next().await;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        connections.spawn(serve(Arc::clone(&shared), socket, peer, stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        let drain = async { while connections.join_next().await.is_some() {} };
        let drain = tokio::time::timeout(DRAIN_TIMEOUT, drain);
        let ((), drained) = tokio::join!(shared.server.rest.drain(DRAIN_TIMEOUT), drain);
        if drained.is_err() {
            connections.shutdown().await;
        }
    }
}

async fn serve(shared: Arc<Shared>, socket: TcpStream, peer: SocketAddr, stop: CancellationToken) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, %peer, "connection without TCP_NODELAY");
    }
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, shared.acceptor.accept(socket)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%error, %peer, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let certificates = tls.get_ref().1.peer_certificates();
    let node = certificates.and_then(<[_]>::first).map(|der| (shared.server.read_proof)(der));
    let address = peer.ip().to_canonical();
    let service = service_fn(|request| {
        let channel = Channel::Network { address, node: node.clone() };
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(&shared, channel, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(impatient(tls)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "connection ended");
    }
}

/// A stream that fails when its peer takes nothing for too long.
fn impatient<S: AsyncRead + AsyncWrite>(stream: S) -> Pin<Box<TimeoutStream<S>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_TIMEOUT));
    Box::pin(stream)
}

async fn respond(
    shared: &Shared,
    channel: Channel,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    if let Channel::Network { address, .. } = &channel
        && Rest::serves(request.uri().path())
    {
        return shared.server.rest.answer(*address, request).await;
    }
    if request.method() == Method::GET {
        return page(shared, request.uri().path());
    }
    response_of(answer(shared, channel, request).await)
}

/// The documents that anybody may get without speaking the protocol.
fn page(shared: &Shared, path: &str) -> Response<ResponseBody> {
    match path {
        "/ca.pem" => build(200, "application/x-pem-file", full(shared.server.ca_pem.clone())),
        _ => build(404, "text/plain", full("a DFS server; see PROTOCOL.md\n")),
    }
}

async fn answer(shared: &Shared, channel: Channel, request: Request<Incoming>) -> Reply {
    let Some(path) = request.uri().path().strip_prefix(URL_PREFIX).map(str::to_owned) else {
        return refusal(FsError::UnknownOperation { path: request.uri().path().to_owned() });
    };
    let body = request.into_body();
    let body = match shared.bodies.receive(&shared.server.router, &channel, &path, body).await {
        Ok(body) => body,
        Err(error) => return refusal(error),
    };
    match split_frame(body.bytes.clone()) {
        Ok((head, payload)) => shared.server.router.dispatch(channel, &path, head, payload).await,
        Err(error) => refusal(error),
    }
}

fn response_of(reply: Reply) -> Response<ResponseBody> {
    match reply {
        Reply::Whole { status, mut parts } if parts.len() == 1 => {
            build(status, CONTENT_TYPE, full(parts.remove(0)))
        }
        Reply::Whole { status, parts } => {
            let frames = futures_util::stream::iter(parts).map(|part| Ok(Frame::data(part)));
            build(status, CONTENT_TYPE, BodyExt::boxed_unsync(StreamBody::new(frames)))
        }
        Reply::Stream(frames) => {
            let frames = frames.map(|frame| Ok(Frame::data(frame)));
            build(200, CONTENT_TYPE, BodyExt::boxed_unsync(StreamBody::new(frames)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = impatient(ours);
        let (sent, ()) = tokio::join!(ours.write_all(&[7; 64]), async {
            let mut taken = [0; 16];
            for _ in 0..3 {
                tokio::time::sleep(STALL_TIMEOUT / 2).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
        });
        sent.unwrap();
        let error = ours.write_all(&[7; 64]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
