use super::*;
use crate::admin::registry::{Registry, RegistryParts};
use crate::cell::testing::{Answer, TestServer};
use crate::meta::memory::MemoryEngine;
use crate::meta::{Space, Store};
use dfs_proto::admin::NewJoinToken;
use dfs_proto::clock::SystemClock;
use dfs_proto::id::NodeId;
use dfs_proto::rpc::{decode_request, encode_reply, split_frame};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const FILE_ONLY: Wanted<'static> = Wanted { roles: &[Role::File], file_nodes: 2 };

/// A cell that answers `admin.join` on loopback.
struct Founder {
    dir: tempfile::TempDir,
    cell: Cell,
    registry: Arc<Registry>,
    server: TestServer,
    answer: Answer,
    /// Calls so far.
    calls: Arc<AtomicU32>,
}

impl Founder {
    /// Answers the first `lost` calls after it has done what they ask, with garbage.
    async fn start(lost: u32) -> Founder {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted { roles: &Role::ALL, file_nodes: 2 };
        let cell = Cell::open(dir.path(), wanted, SystemClock.wall()).unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(engine, Space::CELL, cell.node()).unwrap();
        let clock = Arc::new(SystemClock);
        let parts = RegistryParts { store, cell: &cell, host: "x".into(), port: 1, clock };
        let registry = Arc::new(Registry::open(parts).await.unwrap());
        let calls = Arc::new(AtomicU32::new(0));
        let (joining, counted) = (Arc::clone(&registry), Arc::clone(&calls));
        let answer = move |_, body| -> futures_util::future::BoxFuture<'static, bytes::Bytes> {
            let (registry, calls) = (Arc::clone(&joining), Arc::clone(&counted));
            Box::pin(async move {
                let (head, _) = split_frame(body).unwrap();
                let (_, request) = decode_request::<Join>(&head).unwrap();
                let reply = registry.join(request).await;
                if calls.fetch_add(1, Ordering::Relaxed) < lost {
                    return encode_reply(&Err::<(), _>(FsError::unavailable("lost"))).unwrap();
                }
                encode_reply(&reply).unwrap()
            })
        };
        let config = cell.server_config().unwrap();
        let answer: Answer = Arc::new(answer);
        let ca_pem = cell.ca_pem().to_owned();
        let server = TestServer::start(config, ca_pem, Arc::clone(&answer)).await;
        Founder { dir, cell, registry, server, answer, calls }
    }

    async fn token(&self) -> JoinToken {
        let request = NewJoinToken { roles: vec![Role::File] };
        let text = self.registry.join_token(request).await.unwrap();
        let port = self.server.address.port();
        JoinToken { host: "127.0.0.1".into(), port, ..text.expose().parse().unwrap() }
    }
}

async fn enter_as(
    token: &JoinToken,
    data_dir: &Path,
    wanted: Wanted<'_>,
) -> Result<Cell, JoinError> {
    enter(Entry { token, data_dir, wanted, clock: &SystemClock }).await
}

#[tokio::test]
async fn a_process_enters_the_cell_and_stays_in_it() {
    let founder = Founder::start(0).await;
    let token = founder.token().await;
    let dir = tempfile::tempdir().unwrap();
    let cell = enter_as(&token, dir.path(), FILE_ONLY).await.unwrap();
    assert_eq!((cell.node(), cell.file_nodes()), (NodeId(6), &[NodeId(4), NodeId(5)][..]));
    assert_eq!(cell.id(), founder.cell.id());
    assert!(cell.authority().is_none());
    let map = map::load(cell.dir()).unwrap().unwrap();
    assert_eq!(map.nodes[0].host.as_deref(), Some("127.0.0.1"));
    let mode = std::fs::metadata(cell.dir().node_key()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!cell.dir().ca_key().exists());
    let opened = Cell::open(dir.path(), FILE_ONLY, SystemClock.wall()).unwrap();
    assert_eq!(opened.node(), cell.node());
    let again = enter_as(&token, dir.path(), FILE_ONLY).await.unwrap();
    assert_eq!(again.node(), cell.node());
    assert_eq!(founder.calls.load(Ordering::Relaxed), 1, "who is in does not ask again");
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_and_gives_the_same_place() {
    let founder = Founder::start(2).await;
    let token = founder.token().await;
    let dir = tempfile::tempdir().unwrap();
    let cell = enter_as(&token, dir.path(), FILE_ONLY).await.unwrap();
    assert_eq!(cell.node(), NodeId(6));
    assert_eq!(founder.calls.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_join_that_crashes_anywhere_is_completed_with_the_same_token() {
    use crate::durable_file::failpoint;
    let founder = Founder::start(0).await;
    let mut steps = 0;
    loop {
        let token = founder.token().await;
        let dir = tempfile::tempdir().unwrap();
        failpoint::crash_after(Some(steps));
        let first = enter_as(&token, dir.path(), FILE_ONLY).await;
        failpoint::crash_after(None);
        let cell = enter_as(&token, dir.path(), FILE_ONLY).await.unwrap();
        if let Ok(first) = first {
            assert_eq!(first.node(), cell.node());
            break;
        }
        steps += 1;
    }
    assert!(steps > 12, "only {steps} steps were tried");
}

#[tokio::test]
async fn a_server_of_another_cell_never_sees_the_secret() {
    let (founder, impostor) = (Founder::start(0).await, Founder::start(0).await);
    let token = founder.token().await;
    let misled = JoinToken { port: impostor.server.address.port(), ..token };
    let dir = tempfile::tempdir().unwrap();
    let error = enter_as(&misled, dir.path(), FILE_ONLY).await.unwrap_err();
    assert!(matches!(error, JoinError::WrongCa { .. }), "{error}");
    assert_eq!(impostor.calls.load(Ordering::Relaxed), 0);
    assert!(!CellDir::of(dir.path()).member().exists());
}

#[tokio::test]
async fn a_second_ca_beside_the_right_one_is_refused() {
    let (founder, impostor) = (Founder::start(0).await, Founder::start(0).await);
    let both = format!("{}{}", founder.cell.ca_pem(), impostor.cell.ca_pem());
    let config = impostor.cell.server_config().unwrap();
    let nobody: Answer = Arc::new(|_, _| panic!("the secret was sent"));
    let between = TestServer::start(config, both, nobody).await;
    let token = JoinToken { port: between.address.port(), ..founder.token().await };
    let dir = tempfile::tempdir().unwrap();
    let error = enter_as(&token, dir.path(), FILE_ONLY).await.unwrap_err();
    assert!(matches!(error, JoinError::NoCa { .. }), "{error}");
}

#[tokio::test]
async fn somebody_who_shows_the_right_ca_without_its_key_gets_nothing() {
    let (founder, impostor) = (Founder::start(0).await, Founder::start(0).await);
    let config = impostor.cell.server_config().unwrap();
    let nobody: Answer = Arc::new(|_, _| panic!("the secret was sent"));
    let between = TestServer::start(config, founder.cell.ca_pem().to_owned(), nobody).await;
    let token = JoinToken { port: between.address.port(), ..founder.token().await };
    let dir = tempfile::tempdir().unwrap();
    let error = enter_as(&token, dir.path(), FILE_ONLY).await.unwrap_err();
    let JoinError::Transport(error) = error else { panic!("{error}") };
    assert_eq!(error.fault, dfs_proto::client::TransportFault::NotOfCell);
}

#[tokio::test]
async fn a_used_token_and_a_directory_of_another_cell_are_refused() {
    let (founder, other) = (Founder::start(0).await, Founder::start(0).await);
    let token = founder.token().await;
    let (dir, late) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    enter_as(&token, dir.path(), FILE_ONLY).await.unwrap();
    let refused = enter_as(&token, late.path(), FILE_ONLY).await.unwrap_err();
    assert!(refused.to_string().contains("was used"), "{refused}");
    let moved = enter_as(&other.token().await, dir.path(), FILE_ONLY).await.unwrap_err();
    assert!(matches!(moved, JoinError::OtherCell { .. }), "{moved}");
}

#[tokio::test]
async fn a_founders_directory_that_lost_its_identity_does_not_join() {
    let founder = Founder::start(0).await;
    let token = founder.token().await;
    std::fs::remove_file(founder.cell.dir().member()).unwrap();
    let data_dir = founder.dir.path();
    let error = enter_as(&token, data_dir, FILE_ONLY).await.unwrap_err();
    assert!(error.to_string().contains("has founded a cell"), "{error}");
}

#[tokio::test]
async fn a_cell_that_does_not_answer_yet_is_waited_for() {
    let founder = Founder::start(0).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let token = JoinToken { port, ..founder.token().await };
    let dir = tempfile::tempdir().unwrap();
    let starting = async {
        for _ in 0..2 {
            drop(listener.accept().await.unwrap());
        }
        let config = founder.cell.server_config().unwrap();
        let ca_pem = founder.cell.ca_pem().to_owned();
        TestServer::start_on(listener, config, ca_pem, Arc::clone(&founder.answer))
    };
    let (entered, _server) = tokio::join!(enter_as(&token, dir.path(), FILE_ONLY), starting);
    assert_eq!(entered.unwrap().node(), NodeId(6));
}

#[test]
fn a_token_reads_back_also_when_a_terminal_broke_its_line() {
    for host in ["cell.example", "10.0.0.1", "::1"] {
        let token = JoinToken {
            host: host.into(),
            port: 7400,
            fingerprint: Fingerprint::of_der(b"ca"),
            secret: crate::secret::random_hex::<TOKEN_SECRET_BYTES>(),
        };
        let text = token.to_text().expose().to_owned();
        assert_eq!(text.parse(), Ok(token.clone()), "{host}");
        let (begin, end) = text.split_at(40);
        assert_eq!(format!(" {begin}\r\n  {end}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(token.secret.expose()));
    }
}

#[test]
fn a_broken_token_says_what_is_wrong_with_it_and_shows_nothing_of_it() {
    let (print, secret) = ("ab".repeat(32), "cd".repeat(16));
    for (text, expected) in [
        (String::new(), JoinTokenError::Prefix),
        (format!("dfs2:h:1:{print}:{secret}"), JoinTokenError::Prefix),
        (format!("dfs1:{print}:{secret}"), JoinTokenError::Short),
        (format!("dfs1::1:{print}:{secret}"), JoinTokenError::Host),
        (format!("dfs1:h:0:{print}:{secret}"), JoinTokenError::Port),
        (format!("dfs1:h:99999:{print}:{secret}"), JoinTokenError::Port),
        (format!("dfs1:h:1:{}:{secret}", &print[1..]), JoinTokenError::Fingerprint),
        (format!("dfs1:h:1:{print}:{}", &secret[1..]), JoinTokenError::Secret),
        (format!("dfs1:h:1:{print}:{}", "g".repeat(32)), JoinTokenError::Secret),
    ] {
        let error = text.parse::<JoinToken>().unwrap_err();
        assert_eq!(error, expected, "{text}");
        assert!(!error.to_string().contains(&secret[..8]));
    }
}
