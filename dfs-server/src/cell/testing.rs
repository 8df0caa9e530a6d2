//! A server small enough for tests: TLS as the cell's servers speak it, and one answer.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use dfs_proto::rpc::CONTENT_TYPE;

use super::tls::PeerCertificate;

/// Answers a request's body, given who asks.
pub(crate) type Answer =
    Arc<dyn Fn(Option<PeerCertificate>, Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;

pub(crate) struct TestServer {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    /// Serves `ca_pem` at `/ca.pem` and `answer` everywhere else.
    pub async fn start(
        config: Arc<rustls::ServerConfig>,
        ca_pem: String,
        answer: Answer,
    ) -> TestServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        TestServer::start_on(listener, config, ca_pem, answer)
    }

    pub fn start_on(
        listener: TcpListener,
        config: Arc<rustls::ServerConfig>,
        ca_pem: String,
        answer: Answer,
    ) -> TestServer {
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(config);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, ca_pem.clone(), answer.clone()));
            }
        });
        TestServer { address, task }
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, ca_pem: String, answer: Answer) {
    // Refused handshakes are what some tests are about.
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let peer = PeerCertificate::of_connection(stream.get_ref().1);
    let service = service_fn(move |request: Request<Incoming>| {
        let (ca_pem, answer, peer) = (ca_pem.clone(), answer.clone(), peer.clone());
        async move {
            if request.uri().path() == super::join::CA_PATH {
                return Ok(Response::new(Full::<Bytes>::from(ca_pem)));
            }
            let body = request.into_body().collect().await?.to_bytes();
            let reply = answer(peer, body).await;
            let response = Response::builder().header("content-type", CONTENT_TYPE);
            Ok::<_, hyper::Error>(response.body(Full::from(reply)).unwrap())
        }
    });
    // The connection's end, however it comes, is the client's business.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
