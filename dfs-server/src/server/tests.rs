//! Whole processes of a cell, with TLS between them, and a clock that tests move.

mod rest;

use std::path::Path;

use super::*;
use crate::cell::bootstrap::Bootstrap;
use crate::cell::ca::ProvenKey;
use crate::cell::testing::{Answer, TestServer};
use bytes::Bytes;
use dfs_proto::admin::{
    CellMap, Join, JoinReply, Map, NewJoinToken, RenewCertificate, RenewCertificateReply,
};
use dfs_proto::auth::Login;
use dfs_proto::client::{Client, Dial, HttpDialer, Peer};
use dfs_proto::clock::{ManualClock, SystemClock};
use dfs_proto::credential::Secret;
use dfs_proto::id::NodeId;
use dfs_proto::rpc::{Envelope, decode_request, encode_reply, split_frame};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::sync::Mutex;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// A clock that is `days` behind: handshakes look at the real one, and certificates that are made
/// now and here must be valid for them as well.
fn clock_behind(days: u32) -> ManualClock {
    let clock = ManualClock::default();
    let ahead = SystemClock.wall().secs - clock.wall().secs;
    clock.advance(Duration::from_secs(ahead.unsigned_abs()) - days * DAY);
    clock
}

async fn start(dir: &Path, roles: &[Role], join: Option<Secret>, clock: &ManualClock) -> Server {
    let config = ServeConfig {
        data_dir: dir.to_owned(),
        listen: "127.0.0.1:0".to_owned(),
        roles: roles.to_vec(),
        file_nodes: 1,
        advertise: None,
        join,
    };
    Server::start(config, Arc::new(clock.clone())).await.unwrap()
}

fn auth_client(founder: &Server) -> Client {
    let ca_pem = std::fs::read_to_string(founder.data_dir().join("cell/ca.pem")).unwrap();
    let (host, port) = ("127.0.0.1".to_owned(), founder.address().port());
    let peer = Peer { role: Some(Role::Auth), node: None, host, port };
    Client::new(HttpDialer::new(ca_pem, None).dial(&peer).unwrap())
}

/// A join token for a file server, asked for as the administrator does.
async fn token(founder: &Server) -> Secret {
    let text = std::fs::read_to_string(founder.data_dir().join("bootstrap.toml")).unwrap();
    let Bootstrap { user, password, .. } = toml::from_str(&text).unwrap();
    let (client, login) = (auth_client(founder), Login { user, password });
    let login = client.call(&Envelope::default(), &login, Vec::new()).await.unwrap().reply;
    let envelope = Envelope { ticket: Some(login.ticket), ..Envelope::default() };
    let request = NewJoinToken { roles: vec![Role::File] };
    client.call(&envelope, &request, Vec::new()).await.unwrap().reply
}

/// The certificate that a server shows to who connects.
async fn shown(server: &Server) -> Vec<u8> {
    let ca = CertificateDer::from_pem_file(server.data_dir().join("cell/ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let name = ServerName::try_from("cell.dfs").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn stored(server: &Server) -> Vec<u8> {
    CertificateDer::from_pem_file(server.data_dir().join("cell/node.pem")).unwrap().to_vec()
}

#[tokio::test]
async fn a_founder_and_a_joined_process_renew_their_certificates_while_they_run() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = clock_behind(300);
    let founder = start(one.path(), &[Role::Auth, Role::Directory, Role::Lock], None, &clock).await;
    let token = token(&founder).await;
    let joined = start(two.path(), &[Role::File], Some(token), &clock).await;
    let before = (stored(&founder), stored(&joined));
    assert_eq!((shown(&founder).await, shown(&joined).await), before);
    clock.advance(299 * DAY);
    let renewed = async {
        while shown(&founder).await == before.0 || shown(&joined).await == before.1 {
            // For those who wait to try again.
            clock.advance(Duration::from_secs(10));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    assert_eq!((stored(&founder), stored(&joined)), (shown(&founder).await, shown(&joined).await));
    joined.stop().await;
    let joined = start(two.path(), &[Role::File], None, &clock).await;
    assert_eq!(shown(&joined).await, stored(&joined));
    joined.stop().await;
    founder.stop().await;
}

/// An auth server that lets everybody in as a lock server, renews, and notes which certificate each
/// caller shows.
async fn noting_auth(founder: &Cell, clock: &ManualClock) -> (TestServer, Callers) {
    let callers = Callers::default();
    let (noted, clock) = (Arc::clone(&callers), clock.clone());
    let authority = founder.authority().unwrap();
    let answer = move |peer: Option<PeerCertificate>, body: Bytes| {
        let der = peer.map(|peer| peer.into_proof().certificate.to_vec());
        noted.lock().unwrap().push(der);
        let (head, _) = split_frame(body).unwrap();
        let certify = |request_pem: &str| {
            let key = ProvenKey::from_request(request_pem).unwrap();
            let names = ["cell.dfs", "lock.dfs", "node-9.dfs"].map(str::to_owned);
            authority.certify(&names, &key, clock.wall()).unwrap()
        };
        let reply = if let Ok((_, join)) = decode_request::<Join>(&head) {
            let certificate_pem = certify(&join.request_pem);
            let (node, file_nodes, map) = (NodeId(9), Vec::new(), CellMap::default());
            encode_reply(&Ok(JoinReply { node, file_nodes, certificate_pem, map }))
        } else if let Ok((_, renew)) = decode_request::<RenewCertificate>(&head) {
            let certificate_pem = certify(&renew.request_pem);
            encode_reply(&Ok(RenewCertificateReply { certificate_pem }))
        } else {
            encode_reply(&Ok(CellMap::default()))
        };
        let reply: futures_util::future::BoxFuture<'static, Bytes> =
            Box::pin(async { reply.unwrap() });
        reply
    };
    let answer: Answer = Arc::new(answer);
    let (config, ca_pem) = (founder.server_config().unwrap(), founder.ca_pem().to_owned());
    (TestServer::start(config, ca_pem, answer).await, callers)
}

type Callers = Arc<Mutex<Vec<Option<Vec<u8>>>>>;

#[tokio::test]
async fn a_joined_process_asks_over_its_old_certificate_and_calls_with_the_fresh_one() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = clock_behind(300);
    let wanted = Wanted { roles: &Role::ALL, file_nodes: 1 };
    let founder = Cell::open(one.path(), wanted, clock.wall()).unwrap();
    let (server, callers) = noting_auth(&founder, &clock).await;
    let (host, port) = ("127.0.0.1".to_owned(), server.address.port());
    let (fingerprint, secret) = (founder.ca_fingerprint(), Secret::new("any"));
    let token = JoinToken { host: host.clone(), port, fingerprint, secret };
    let wanted = Wanted { roles: &[Role::Lock], file_nodes: 0 };
    let entry = join::Entry { token: &token, data_dir: two.path(), wanted, clock: &clock };
    let cell = join::enter(entry).await.unwrap();
    let auth = NodeEntry {
        node: founder.node(),
        roles: vec![Role::Auth],
        host: Some(host),
        port,
        file_nodes: Vec::new(),
        silent_ms: 0,
    };
    let network = Network::new(&cell, CellMap { nodes: vec![auth] });
    let time = Arc::new(clock.clone());
    let renewer = Renewer { renewal: cell.renewal(), network: network.clone(), clock: time };
    let disk = || CertificateDer::from_pem_file(two.path().join("cell/node.pem")).unwrap().to_vec();
    let old = disk();
    assert!(renewer.look().await, "fresh enough");
    clock.advance(300 * DAY);
    assert!(renewer.look().await);
    let fresh = disk();
    let client = network.role(Role::Auth).unwrap();
    client.call(&Envelope::default(), &Map {}, Vec::new()).await.unwrap();
    let callers = callers.lock().unwrap().clone();
    assert_eq!(callers, [None, Some(old.clone()), Some(fresh.clone())]);
    assert_ne!(old, fresh);
}

#[tokio::test]
async fn a_cell_that_does_not_answer_leaves_the_certificate_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock_behind(300);
    let wanted = Wanted { roles: &Role::ALL, file_nodes: 1 };
    let cell = Cell::open(dir.path(), wanted, clock.wall()).unwrap();
    let before = std::fs::read(cell.dir().node_certificate()).unwrap();
    // Nothing is bound to its network: the auth role is not there.
    let network = Network::new(&cell, CellMap::default());
    let time = Arc::new(clock.clone());
    let renewer = Renewer { renewal: cell.renewal(), network, clock: time };
    clock.advance(300 * DAY);
    assert!(!renewer.look().await);
    assert_eq!(std::fs::read(cell.dir().node_certificate()).unwrap(), before);
}
