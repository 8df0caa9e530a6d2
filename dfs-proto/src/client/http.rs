//! HTTP/1.1 over TLS 1.3: the only file that names reqwest.
//!
//! A peer is reached at an address but known by a role: the name that TLS checks is the role's
//! (`directory.dfs`), signed by the cell's CA. So a node's address may change, and no file node can
//! pass for the auth server. The pinned CA is the only trust root.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::tls::Version;
use reqwest::{Certificate, Identity, Url};

use super::transport::{Call, Dial, Peer, ReplyBody, Transport, TransportError, TransportFault};
use crate::admin::{CELL_TLS_NAME, Role};
use crate::rpc::{CONTENT_TYPE, URL_PREFIX};

/// Idle connections kept for each peer. Why: at least the number of calls in flight, or each burst
/// pays new handshakes (400 to 550 us each).
const IDLE_CONNECTIONS_MAX: usize = 128;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// TCP gives up on unacknowledged data after this: a vanished host is noticed within it.
const TCP_SILENCE_MAX: Duration = Duration::from_secs(20);

/// A certificate and key that prove who we are.
#[derive(Clone)]
pub struct TlsIdentity {
    /// PEM of the certificate chain followed by the private key.
    pub pem: Arc<str>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity(..)")
    }
}

/// Dials peers of one cell.
#[derive(Debug)]
pub struct HttpDialer {
    ca_pem: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    identity: Option<TlsIdentity>,
    /// All made with `identity`.
    known: HashMap<PeerKey, Arc<HttpTransport>>,
}

/// What makes a connection pool: role, host and port.
type PeerKey = (Option<Role>, String, u16);

impl HttpDialer {
    /// `ca_pem` is the cell's CA certificate; nodes also bring their `identity`.
    pub fn new(ca_pem: String, identity: Option<TlsIdentity>) -> HttpDialer {
        let state = State { identity, ..State::default() };
        HttpDialer { ca_pem, state: Mutex::new(state) }
    }

    /// From here on whoever is dialled is shown another certificate. Calls that are under way end
    /// as they began.
    pub fn set_identity(&self, identity: TlsIdentity) {
        *self.state() = State { identity: Some(identity), ..State::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(
        &self,
        identity: Option<&TlsIdentity>,
        peer: &Peer,
    ) -> reqwest::Result<HttpTransport> {
        let mut builder = base_client(&peer.host)
            .tls_certs_only(Certificate::from_pem_bundle(self.ca_pem.as_bytes())?)
            .tls_version_min(Version::TLS_1_3)
            .https_only(true);
        if let Some(identity) = identity {
            builder = builder.identity(Identity::from_pem(identity.pem.as_bytes())?);
        }
        let tls_name = peer.role.map_or(CELL_TLS_NAME, Role::tls_name);
        let url = Url::parse(&format!("https://{tls_name}:{}", peer.port))
            .expect("a fixed name and a port make a URL");
        Ok(HttpTransport { client: builder.build()?, url, whom: whom(peer) })
    }
}

impl Dial for HttpDialer {
    fn dial(&self, peer: &Peer) -> Result<Arc<dyn Transport>, TransportError> {
        let key = (peer.role, peer.host.clone(), peer.port);
        let mut state = self.state();
        if let Some(transport) = state.known.get(&key) {
            return Ok(Arc::clone(transport) as Arc<dyn Transport>);
        }
        let connected = self.connect(state.identity.as_ref(), peer);
        let transport = Arc::new(connected.map_err(|error| {
            TransportError::new(TransportFault::NotOfCell, whom(peer), chain(&error))
        })?);
        state.known.insert(key, Arc::clone(&transport));
        Ok(transport)
    }
}

fn whom(peer: &Peer) -> String {
    match peer.role {
        Some(role) => format!("{} server at {}:{}", role.name(), peer.host, peer.port),
        None => format!("server at {}:{}", peer.host, peer.port),
    }
}

fn base_client(host: &str) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .http1_only()
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_SILENCE_MAX / 2)
        .tcp_user_timeout(TCP_SILENCE_MAX)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(FixedHost(host.to_owned()))
}

/// Resolves every name to one host: the URL's name is for TLS, not for finding the peer.
struct FixedHost(String);

impl Resolve for FixedHost {
    fn resolve(&self, _name: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[derive(Debug)]
struct HttpTransport {
    client: reqwest::Client,
    /// The peer's address with any path.
    url: Url,
    whom: String,
}

impl Transport for HttpTransport {
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let mut url = self.url.clone();
        url.set_path(&format!("{URL_PREFIX}{}", call.path));
        let request = self.client.post(url).body(body_of(&call));
        let (whom, timeout) = (self.whom.clone(), call.timeout);
        Box::pin(async move {
            let response = match tokio::time::timeout(timeout, request.send()).await {
                Err(_) => return Err(timed_out(&whom, timeout)),
                Ok(sent) => sent.map_err(|error| judge(&whom, &error))?,
            };
            if !is_dfs_reply(&response) {
                let what = format!("answers HTTP {} without a DFS reply", response.status());
                return Err(TransportError::new(TransportFault::Garbled, whom, what));
            }
            let pieces = response.bytes_stream().map_err(move |error| judge(&whom, &error));
            Ok(ReplyBody::Pieces(pieces.boxed()))
        })
    }
}

fn is_dfs_reply(response: &reqwest::Response) -> bool {
    let kind = response.headers().get(reqwest::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes() == CONTENT_TYPE.as_bytes())
}

fn body_of(call: &Call) -> Bytes {
    if call.payload.is_empty() {
        return call.frame.clone();
    }
    let length = call.frame.len() + call.payload.iter().map(Bytes::len).sum::<usize>();
    let mut body = BytesMut::with_capacity(length);
    body.extend_from_slice(&call.frame);
    call.payload.iter().for_each(|piece| body.extend_from_slice(piece));
    body.freeze()
}

fn timed_out(whom: &str, timeout: Duration) -> TransportError {
    let what = format!("no answer within {:.1} s", timeout.as_secs_f32());
    TransportError::new(TransportFault::TimedOut, whom, what)
}

fn judge(whom: &str, error: &reqwest::Error) -> TransportError {
    let text = chain(error);
    if text.contains("invalid peer certificate") {
        return distrust(whom, text);
    }
    let fault = if error.is_timeout() && !error.is_connect() {
        TransportFault::TimedOut
    } else if error.is_connect() {
        TransportFault::Unreachable
    } else {
        TransportFault::Lost
    };
    TransportError::new(fault, whom, text)
}

/// Why a certificate was refused, from the TLS library's text: its error is behind types that
/// only that library's version names.
fn distrust(whom: &str, text: String) -> TransportError {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["UnknownIssuer", "BadSignature"]) {
        let what = "its certificate is from another CA";
        return TransportError::new(TransportFault::NotOfCell, whom, what);
    }
    let fault = match says(&["expired", "not valid yet"]) {
        true => TransportFault::OutOfDate,
        false => TransportFault::NotOfCell,
    };
    TransportError::new(fault, whom, text)
}

/// The causes of an error, without the URL that reqwest puts first.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        source = cause.source();
    }
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}

/// Largest body that [`fetch_unverified`] takes. Units: bytes.
const UNVERIFIED_BYTES_MAX: usize = 64 << 10;

/// Gets a public document from a server that cannot be verified yet: its CA certificate. Nothing
/// secret is sent; the caller compares the document's hash with one it trusts before anything is.
///
/// # Errors
/// [`TransportError`] if there is no such document or it is larger than a certificate can be.
pub async fn fetch_unverified(host: &str, port: u16, path: &str) -> Result<Bytes, TransportError> {
    let whom = format!("server at {host}:{port}");
    let client = base_client(host)
        .tls_danger_accept_invalid_certs(true)
        .tls_version_min(Version::TLS_1_3)
        .https_only(true)
        .build()
        .map_err(|error| judge(&whom, &error))?;
    let send = client.get(format!("https://{CELL_TLS_NAME}:{port}{path}")).send();
    let response = tokio::time::timeout(CONNECT_TIMEOUT * 2, send)
        .await
        .map_err(|_| timed_out(&whom, CONNECT_TIMEOUT * 2))?
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| judge(&whom, &error))?;
    let pieces = response.bytes_stream().map_err(move |error| judge(&whom, &error));
    ReplyBody::Pieces(pieces.boxed()).collect(UNVERIFIED_BYTES_MAX).await
}
