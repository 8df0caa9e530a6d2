use super::*;
use crate::cell::testing::TestServer;
use crate::cell::{Cell, Wanted};
use dfs_proto::admin::{Map, NodeEntry};
use dfs_proto::attr::Timestamp;
use dfs_proto::client::{CallError, Client, Dial, HttpDialer, Peer, TransportFault};
use dfs_proto::clock::{Clock, SystemClock};
use dfs_proto::rpc::{Envelope, encode_reply};

fn found(roles: &[Role]) -> (tempfile::TempDir, Cell) {
    found_at(SystemClock.wall(), roles)
}

fn found_at(now: Timestamp, roles: &[Role]) -> (tempfile::TempDir, Cell) {
    let dir = tempfile::tempdir().unwrap();
    let wanted = Wanted { roles, file_nodes: 2 };
    let cell = Cell::open(dir.path(), wanted, now).unwrap();
    (dir, cell)
}

/// A server of `cell` that answers with the roles and nodes it reads from the client's certificate.
async fn serve(cell: &Cell) -> TestServer {
    let answer = |peer: Option<PeerCertificate>, _body| -> futures_util::future::BoxFuture<_> {
        let nodes = peer.map(|peer| NodeEntry {
            node: NodeId(0),
            roles: peer.roles().to_vec(),
            host: None,
            port: 1,
            file_nodes: (0..9).map(NodeId).filter(|node| peer.is_node(*node)).collect(),
            silent_ms: 0,
        });
        let map = dfs_proto::admin::CellMap { nodes: nodes.into_iter().collect() };
        Box::pin(async move { encode_reply(&Ok(map)).unwrap() })
    };
    let config = cell.server_config().unwrap();
    TestServer::start(config, cell.ca_pem().to_owned(), Arc::new(answer)).await
}

async fn ask(
    server: &TestServer,
    dialer: &HttpDialer,
    role: Option<Role>,
) -> Result<Vec<NodeEntry>, TransportFault> {
    let peer = Peer { role, node: None, host: "127.0.0.1".into(), port: server.address.port() };
    let client = Client::new(dialer.dial(&peer).unwrap());
    match client.call(&Envelope::default(), &Map {}, Vec::new()).await {
        Ok(answer) => Ok(answer.reply.nodes),
        Err(CallError::Transport(error)) => Err(error.fault),
        Err(CallError::Fs(error)) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_client_that_pins_the_ca_reaches_the_roles_of_the_server_and_no_others() {
    let (_dir, cell) = found(&[Role::Auth, Role::Directory]);
    let server = serve(&cell).await;
    let dialer = HttpDialer::new(cell.ca_pem().to_owned(), None);
    for role in [None, Some(Role::Auth), Some(Role::Directory)] {
        assert_eq!(ask(&server, &dialer, role).await, Ok(Vec::new()), "{role:?}");
    }
    for role in [Role::File, Role::Lock] {
        let refused = ask(&server, &dialer, Some(role)).await;
        assert_eq!(refused, Err(TransportFault::NotOfCell), "{role:?}");
    }
}

#[tokio::test]
async fn a_server_of_another_cell_is_refused_by_clients() {
    let (_dir, cell) = found(&Role::ALL);
    let (_other_dir, other) = found(&Role::ALL);
    let server = serve(&cell).await;
    let dialer = HttpDialer::new(other.ca_pem().to_owned(), None);
    let refused = ask(&server, &dialer, Some(Role::Auth)).await;
    assert_eq!(refused, Err(TransportFault::NotOfCell));
}

#[tokio::test]
async fn a_certificate_that_a_clock_is_wrong_for_is_not_taken_for_one_of_another_cell() {
    const FIVE_YEARS_SECS: i64 = 5 * 365 * 86_400;
    for years in [-FIVE_YEARS_SECS, FIVE_YEARS_SECS] {
        let now = SystemClock.wall();
        let (_dir, cell) = found_at(Timestamp::new(now.secs + years, 0), &Role::ALL);
        let server = serve(&cell).await;
        let dialer = HttpDialer::new(cell.ca_pem().to_owned(), None);
        let refused = ask(&server, &dialer, Some(Role::Auth)).await;
        assert_eq!(refused, Err(TransportFault::OutOfDate), "{years}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_read_back_as_roles_and_nodes() {
    let (_dir, cell) = found(&Role::ALL);
    let server = serve(&cell).await;
    let dialer = HttpDialer::new(cell.ca_pem().to_owned(), Some(cell.tls_identity()));
    let seen = ask(&server, &dialer, Some(Role::Lock)).await.unwrap();
    assert_eq!(seen[0].roles, Role::ALL);
    assert_eq!(seen[0].file_nodes, [NodeId(1), NodeId(2), NodeId(3)]);
}

#[tokio::test]
async fn a_client_certificate_of_another_cell_ends_the_connection() {
    let (_dir, cell) = found(&Role::ALL);
    let (_other_dir, other) = found(&Role::ALL);
    let server = serve(&cell).await;
    let dialer = HttpDialer::new(cell.ca_pem().to_owned(), Some(other.tls_identity()));
    assert!(ask(&server, &dialer, Some(Role::Auth)).await.is_err());
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (_dir, cell) = found(&Role::ALL);
    let server = serve(&cell).await;
    let mut roots = RootCertStore::empty();
    roots.add(cell.credentials.ca.clone()).unwrap();
    for (version, is_spoken) in [(&rustls::version::TLS12, false), (&rustls::version::TLS13, true)]
    {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("cell.dfs").unwrap();
        let shaken = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        assert_eq!(shaken.is_ok(), is_spoken, "{version:?}");
    }
}

#[tokio::test]
async fn the_ca_certificate_is_part_of_the_chain_that_servers_show() {
    let (_dir, cell) = found(&Role::ALL);
    let server = serve(&cell).await;
    let mut roots = RootCertStore::empty();
    roots.add(cell.credentials.ca.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("auth.dfs").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    assert_eq!(Fingerprint::of_der(&chain[1]), cell.ca_fingerprint());
}

#[test]
fn bytes_that_are_no_certificate_have_no_role_and_are_no_node() {
    let peer = PeerCertificate::new(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]));
    assert!(peer.roles().is_empty() && !peer.is_node(NodeId(1)));
}
