use super::*;
use crate::cell::Wanted;
use crate::cell::ca::ProvenKey;
use crate::cell::testing::TestServer;
use crate::cell::tls::PeerCertificate;
use crate::durable_file::failpoint;
use dfs_proto::FsError;
use dfs_proto::admin::{Map, Role};
use dfs_proto::client::{CallError, Client, Dial, HttpDialer, Peer};
use dfs_proto::clock::{Clock, SystemClock};
use dfs_proto::rpc::{Envelope, encode_reply};
use std::path::Path;

const NOW: Timestamp = Timestamp::new(1_750_000_000, 0);
const DAY: i64 = 86_400;

fn later(from: Timestamp, days: i64) -> Timestamp {
    Timestamp::new(from.secs + days * DAY, 0)
}

fn found(now: Timestamp) -> (tempfile::TempDir, Cell) {
    let dir = tempfile::tempdir().unwrap();
    let cell = open(dir.path(), now);
    (dir, cell)
}

fn open(dir: &Path, now: Timestamp) -> Cell {
    Cell::open(dir, Wanted { roles: &Role::ALL, file_nodes: 2 }, now).unwrap()
}

/// What the cell answers, with these names.
fn certify(cell: &Cell, request: &RenewCertificate, names: &[String], now: Timestamp) -> String {
    let key = ProvenKey::from_request(&request.request_pem).unwrap();
    cell.authority().unwrap().certify(names, &key, now).unwrap()
}

fn stored(cell: &Cell) -> String {
    std::fs::read_to_string(cell.dir().node_certificate()).unwrap()
}

#[test]
fn a_certificate_is_due_when_a_third_of_its_life_is_left() {
    let (_dir, cell) = found(NOW);
    let renewal = cell.renewal();
    for (day, expected) in [
        (0, Standing::Fresh),
        (244, Standing::Fresh),
        (246, Standing::Due),
        (364, Standing::Due),
        (366, Standing::Ended),
    ] {
        assert_eq!(renewal.standing(later(NOW, day)), expected, "day {day}");
    }
}

#[test]
fn a_fresh_certificate_is_stored_for_the_same_key_and_found_by_the_next_start() {
    let (dir, cell) = found(NOW);
    let (renewal, now) = (cell.renewal(), later(NOW, 300));
    let key = std::fs::read(cell.dir().node_key()).unwrap();
    let request = renewal.request().unwrap();
    assert_eq!(request.node, cell.node());
    let pem = certify(&cell, &request, &cell.member.names(), now);
    let identity = renewal.install(pem.clone(), now).unwrap();
    assert!(identity.pem.contains(&pem));
    assert_eq!(renewal.standing(now), Standing::Fresh);
    assert_eq!(stored(&cell), pem);
    assert_eq!(std::fs::read(cell.dir().node_key()).unwrap(), key);
    assert_eq!(open(dir.path(), later(now, 200)).tls_identity().pem, identity.pem);
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_changes_nothing() {
    let (_dir, cell) = found(NOW);
    let (_other_dir, other) = found(NOW);
    let (renewal, now) = (cell.renewal(), later(NOW, 300));
    let (request, names) = (renewal.request().unwrap(), cell.member.names());
    let foreign_key = other.renewal().request().unwrap();
    for (why, pem) in [
        ("of another CA", certify(&other, &request, &names, now)),
        ("for another key", certify(&cell, &foreign_key, &names, now)),
        ("without a name", certify(&cell, &request, &names[1..], now)),
        ("no fresher", stored(&cell)),
        ("not valid yet", certify(&cell, &request, &names, later(now, 2))),
        ("none", "garbage".to_owned()),
    ] {
        let before = stored(&cell);
        let refused = renewal.install(pem, now);
        assert!(matches!(refused, Err(CellError::CertificateUnfit(_))), "{why}: {refused:?}");
        assert_eq!(stored(&cell), before, "{why}");
        assert_eq!(renewal.standing(now), Standing::Due, "{why}");
    }
}

#[test]
fn a_renewal_that_crashes_anywhere_leaves_a_certificate_that_serves() {
    let mut steps = 0;
    loop {
        let (dir, cell) = found(NOW);
        let (renewal, now) = (cell.renewal(), later(NOW, 300));
        let request = renewal.request().unwrap();
        let pem = certify(&cell, &request, &cell.member.names(), now);
        failpoint::crash_after(Some(steps));
        let installed = renewal.install(pem.clone(), now);
        failpoint::crash_after(None);
        let credentials = Credentials::load(cell.dir()).unwrap();
        credentials.check(&cell.member.names(), now).unwrap();
        drop(open(dir.path(), now));
        if installed.is_ok() {
            break;
        }
        renewal.install(pem.clone(), now).unwrap();
        assert_eq!(stored(&cell), pem, "step {steps}");
        steps += 1;
    }
    assert!(steps >= 3, "only {steps} steps were tried");
}

/// Answers with the certificate that the caller shows.
async fn serve(cell: &Cell) -> TestServer {
    let answer = |peer: Option<PeerCertificate>, _body| -> futures_util::future::BoxFuture<_> {
        let shown = peer.map(|peer| peer.into_proof().certificate.to_vec());
        let told = Err::<(), _>(FsError::invalid(format!("{shown:?}")));
        Box::pin(async move { encode_reply(&told).unwrap() })
    };
    let config = cell.server_config().unwrap();
    TestServer::start(config, cell.ca_pem().to_owned(), Arc::new(answer)).await
}

async fn called_with(server: &TestServer, dialer: &HttpDialer) -> FsError {
    let port = server.address.port();
    let peer = Peer { role: Some(Role::Auth), node: None, host: "127.0.0.1".into(), port };
    let client = Client::new(dialer.dial(&peer).unwrap());
    match client.call(&Envelope::default(), &Map {}, Vec::new()).await {
        Err(CallError::Fs(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_dialer_shows_another_certificate_from_one_call_to_the_next() {
    let (_dir, cell) = found(SystemClock.wall());
    let server = serve(&cell).await;
    let dialer = HttpDialer::new(cell.ca_pem().to_owned(), Some(cell.tls_identity()));
    let before = called_with(&server, &dialer).await;
    assert_eq!(called_with(&server, &dialer).await, before);
    let (renewal, now) = (cell.renewal(), SystemClock.wall());
    let pem = certify(&cell, &renewal.request().unwrap(), &cell.member.names(), now);
    dialer.set_identity(renewal.install(pem, now).unwrap());
    let after = called_with(&server, &dialer).await;
    assert_ne!(after, before);
    assert_eq!(called_with(&server, &dialer).await, after);
}
