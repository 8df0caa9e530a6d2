use super::*;
use crate::cell::Wanted;
use crate::cell::tls::PeerCertificate;
use crate::meta::memory::MemoryEngine;
use crate::meta::{Engine, Space};
use crate::request::Peer;
use dfs_proto::clock::ManualClock;
use dfs_proto::credential::Identity;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::IpAddr;

struct World {
    dir: tempfile::TempDir,
    engine: Arc<dyn Engine>,
    clock: ManualClock,
    registry: Registry,
}

async fn open(
    dir: &tempfile::TempDir,
    engine: &Arc<dyn Engine>,
    clock: &ManualClock,
) -> Result<Registry, RegistryError> {
    let wanted = Wanted { roles: &Role::ALL, file_nodes: 2 };
    let cell = Cell::open(dir.path(), wanted, clock.wall()).unwrap();
    let store = Store::open(engine.clone(), Space::CELL, cell.node()).unwrap();
    let clock = Arc::new(clock.clone());
    let parts =
        RegistryParts { store, cell: &cell, host: "host.example".into(), port: 7400, clock };
    Registry::open(parts).await
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let clock = ManualClock::default();
        let registry = open(&dir, &engine, &clock).await.unwrap();
        World { dir, engine, clock, registry }
    }

    async fn restart(self) -> World {
        self.registry.store.close().await;
        let registry = open(&self.dir, &self.engine, &self.clock).await.unwrap();
        World { registry, ..self }
    }

    async fn token(&self, roles: &[Role]) -> JoinToken {
        let request = NewJoinToken { roles: roles.to_vec() };
        self.registry.join_token(request).await.unwrap().expose().parse().unwrap()
    }
}

/// A process that wants to enter as a file server with two file nodes.
fn wish(token: &JoinToken, key: &KeyPair) -> Join {
    let request = CertificateParams::default().serialize_request(key).unwrap();
    Join {
        secret: token.secret.clone(),
        request_pem: request.pem().unwrap(),
        roles: vec![Role::File],
        file_nodes: 2,
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn why<T: std::fmt::Debug>(result: Result<T, FsError>) -> String {
    match result {
        Err(FsError::JoinRefused { why }) => why,
        other => panic!("{other:?}"),
    }
}

fn context(peer: Peer, address: Option<[u8; 4]>) -> Context {
    Context {
        peer,
        identity: Identity { uid: 65534, gid: 65534, groups: vec![] },
        session: None,
        op: None,
        lowest_unanswered: 0,
        deadline: Duration::MAX,
        address: address.map(IpAddr::from),
        news: crate::request::NewsCell::default(),
    }
}

fn node(reply: &JoinReply, address: [u8; 4]) -> Context {
    let der = CertificateDer::from_pem_slice(reply.certificate_pem.as_bytes()).unwrap();
    context(Peer::Node(PeerCertificate::new(&der).into_proof()), Some(address))
}

fn entry(reply: &JoinReply) -> Announce {
    Announce {
        entry: NodeEntry {
            node: reply.node,
            roles: vec![Role::File],
            host: None,
            port: 7401,
            file_nodes: reply.file_nodes.clone(),
            silent_ms: 0,
        },
    }
}

#[tokio::test]
async fn a_token_names_the_cell_and_lets_one_process_in_with_new_ids() {
    let world = World::new().await;
    let token = world.token(&[Role::File]).await;
    assert_eq!((token.host.as_str(), token.port), ("host.example", 7400));
    assert_eq!(token.fingerprint, world.registry.authority.fingerprint());
    let reply = world.registry.join(wish(&token, &new_key())).await.unwrap();
    assert_eq!(reply.file_nodes, [NodeId(4), NodeId(5)]);
    assert_eq!(reply.node, NodeId(6));
    let context = node(&reply, [10, 0, 0, 1]);
    context.require_role(Role::File).unwrap();
    context.require_node(NodeId(5)).unwrap();
    assert!(context.require_role(Role::Auth).is_err());
    assert!(context.require_node(NodeId(1)).is_err());
    assert_eq!(reply.map.nodes.len(), 1, "the founder; who joins is there once it announces");
}

#[tokio::test]
async fn a_token_works_once_but_a_repeated_request_gets_the_same_ids() {
    let world = World::new().await;
    let token = world.token(&[Role::File]).await;
    let key = new_key();
    let first = world.registry.join(wish(&token, &key)).await.unwrap();
    let world = world.restart().await;
    let again = world.registry.join(wish(&token, &key)).await.unwrap();
    assert_eq!((first.node, first.file_nodes), (again.node, again.file_nodes));
    let other = world.registry.join(wish(&token, &new_key())).await;
    assert!(why(other).contains("was used"));
    let more = Join { file_nodes: 3, ..wish(&token, &key) };
    assert!(why(world.registry.join(more).await).contains("other roles or file nodes"));
    let next = world.token(&[Role::File]).await;
    let next = world.registry.join(wish(&next, &new_key())).await.unwrap();
    assert_eq!(next.node, NodeId(9));
}

#[tokio::test]
async fn an_expired_an_invented_and_another_roles_token_are_told_apart() {
    let world = World::new().await;
    let token = world.token(&[Role::Lock, Role::Directory]).await;
    let refused = why(world.registry.join(wish(&token, &new_key())).await);
    assert!(refused.contains("does not allow the role file"), "{refused}");
    let invented = JoinToken { secret: secret::random_hex::<16>(), ..token.clone() };
    assert!(why(world.registry.join(wish(&invented, &new_key())).await).contains("not one of"));
    let nothing = Join { roles: vec![], file_nodes: 0, ..wish(&token, &new_key()) };
    assert!(why(world.registry.join(nothing).await).contains("no role"));
    world.clock.advance(Duration::from_secs(24 * 3600));
    assert!(why(world.registry.join(wish(&token, &new_key())).await).contains("expired"));
    let key = new_key();
    let fresh = world.token(&[Role::File]).await;
    world.registry.join(wish(&fresh, &key)).await.unwrap();
    let gone = why(world.registry.join(wish(&token, &new_key())).await);
    assert!(gone.contains("not one of"), "making a token removes those that are over: {gone}");
}

#[tokio::test]
async fn a_refused_process_does_not_use_the_token_up() {
    let world = World::new().await;
    let token = world.token(&[Role::File]).await;
    let garbage = Join { request_pem: "garbage".into(), ..wish(&token, &new_key()) };
    let malformed = world.registry.join(garbage).await;
    assert!(matches!(malformed, Err(FsError::Malformed { .. })), "{malformed:?}");
    let greedy = Join { roles: vec![Role::File, Role::Lock], ..wish(&token, &new_key()) };
    assert!(why(world.registry.join(greedy).await).contains("role lock"));
    let many = Join { file_nodes: FILE_NODES_MAX + 1, ..wish(&token, &new_key()) };
    assert!(matches!(world.registry.join(many).await, Err(FsError::TooLarge { .. })));
    world.registry.join(wish(&token, &new_key())).await.unwrap();
}

#[tokio::test]
async fn tokens_for_nothing_or_for_the_auth_role_are_not_made() {
    let world = World::new().await;
    for roles in [vec![], vec![Role::File, Role::Auth]] {
        let refused = world.registry.join_token(NewJoinToken { roles }).await;
        assert!(matches!(refused, Err(FsError::InvalidArgument { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_node_is_on_the_map_once_it_says_where_it_is() {
    let world = World::new().await;
    let token = world.token(&[Role::File]).await;
    let reply = world.registry.join(wish(&token, &new_key())).await.unwrap();
    let map = world.registry.announce(&node(&reply, [10, 0, 0, 9]), entry(&reply)).await.unwrap();
    assert_eq!(map.nodes.len(), 2);
    assert_eq!(map.nodes[1].host.as_deref(), Some("10.0.0.9"));
    world.clock.advance(Duration::from_secs(7));
    let map = world.registry.map(&Map {});
    assert_eq!((map.nodes[0].silent_ms, map.nodes[1].silent_ms), (0, 7000));
    let world = world.restart().await;
    let map = world.registry.map(&Map {});
    assert_eq!((map.nodes[1].node, map.nodes[1].port), (reply.node, 7401));
    let near = world.registry.announce(&node(&reply, [127, 0, 0, 1]), entry(&reply)).await;
    assert_eq!(near.unwrap().nodes[1].host, None, "it is where the auth service is");
}

#[tokio::test]
async fn a_node_speaks_for_nobody_but_itself() {
    let world = World::new().await;
    let token = world.token(&[Role::File]).await;
    let reply = world.registry.join(wish(&token, &new_key())).await.unwrap();
    let (own, asking) = (entry(&reply).entry, node(&reply, [10, 0, 0, 9]));
    for lie in [
        NodeEntry { node: NodeId(3), ..own.clone() },
        NodeEntry { roles: vec![Role::File, Role::Directory], ..own.clone() },
        NodeEntry { file_nodes: vec![NodeId(1)], ..own.clone() },
    ] {
        let refused = world.registry.announce(&asking, Announce { entry: lie });
        assert_eq!(refused.await, Err(FsError::NotPermitted));
    }
    let stranger = context(Peer::Anonymous, Some([10, 0, 0, 9]));
    let refused = world.registry.announce(&stranger, entry(&reply)).await;
    assert_eq!(refused, Err(FsError::NotPermitted));
    for wrong in [
        NodeEntry { port: 0, ..own.clone() },
        NodeEntry { host: Some("a b".into()), ..own.clone() },
        NodeEntry { host: Some(String::new()), ..own },
    ] {
        let refused = world.registry.announce(&asking, Announce { entry: wrong });
        assert!(matches!(refused.await, Err(FsError::InvalidArgument { .. })));
    }
}

fn renewal(node: NodeId, key: &KeyPair) -> RenewCertificate {
    let request = CertificateParams::default().serialize_request(key).unwrap();
    RenewCertificate { node, request_pem: request.pem().unwrap() }
}

/// A process with a key that has joined and announced itself.
async fn member(world: &World) -> (JoinReply, KeyPair) {
    let (token, key) = (world.token(&[Role::File]).await, new_key());
    let reply = world.registry.join(wish(&token, &key)).await.unwrap();
    world.registry.announce(&node(&reply, [10, 0, 0, 9]), entry(&reply)).await.unwrap();
    (reply, key)
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_process_of_the_cell_gets_a_fresh_certificate_with_its_own_names() {
    let world = World::new().await;
    let (reply, key) = member(&world).await;
    world.clock.advance(300 * DAY);
    let request = renewal(reply.node, &key);
    let context = node(&reply, [10, 0, 0, 9]);
    let fresh = world.registry.renew_certificate(&context, &request).unwrap().certificate_pem;
    assert_ne!(fresh, reply.certificate_pem);
    let fresh = JoinReply { certificate_pem: fresh, ..reply };
    let context = node(&fresh, [10, 0, 0, 9]);
    world.registry.announce(&context, entry(&fresh)).await.unwrap();
    assert!(context.require_role(Role::Directory).is_err());
    assert!(context.require_node(NodeId(1)).is_err());
    world.clock.advance(300 * DAY);
    world.registry.renew_certificate(&context, &request).unwrap();
}

#[tokio::test]
async fn the_founder_renews_its_own_certificate_in_its_process() {
    let world = World::new().await;
    let key = KeyPair::from_pem(
        &std::fs::read_to_string(world.dir.path().join("cell/node.key")).unwrap(),
    );
    let request = renewal(NodeId(3), &key.unwrap());
    let pem = world.registry.renew_certificate(&context(Peer::Local, None), &request);
    let der = CertificateDer::from_pem_slice(pem.unwrap().certificate_pem.as_bytes()).unwrap();
    assert_eq!(PeerCertificate::new(&der).roles(), Role::ALL);
}

#[tokio::test]
async fn nobody_gets_a_certificate_for_more_than_the_one_it_shows() {
    let world = World::new().await;
    let (reply, key) = member(&world).await;
    let (other, _) = member(&world).await;
    let own = node(&reply, [10, 0, 0, 9]);
    let renew = |context: &Context, request: &RenewCertificate| {
        world.registry.renew_certificate(context, request).map(drop)
    };
    let refused = Err(FsError::NotPermitted);
    let request = renewal(reply.node, &key);
    assert_eq!(renew(&own, &request), Ok(()));
    assert_eq!(renew(&own, &renewal(NodeId(3), &key)), refused, "as the founder");
    assert_eq!(renew(&own, &renewal(other.node, &key)), refused, "as another process");
    assert_eq!(renew(&own, &renewal(reply.file_nodes[0], &key)), refused, "as a file node");
    assert_eq!(renew(&own, &renewal(reply.node, &new_key())), refused, "for another key");
    let stranger = context(Peer::Anonymous, Some([10, 0, 0, 9]));
    assert_eq!(renew(&stranger, &request), refused);
    let garbage = RenewCertificate { request_pem: "garbage".into(), ..request.clone() };
    assert!(matches!(renew(&own, &garbage), Err(FsError::Malformed { .. })));
    // Its row came to say more than its certificate does.
    let roles = vec![Role::Directory, Role::File];
    let more = NodeRow { roles, ..world.registry.known().nodes[&reply.node].clone() };
    world.registry.put_node(more).await.unwrap();
    assert_eq!(renew(&own, &request), refused);
}

#[tokio::test]
async fn a_certificate_that_has_ended_or_is_not_on_the_list_is_not_renewed() {
    let world = World::new().await;
    let (reply, key) = member(&world).await;
    let request = renewal(reply.node, &key);
    let own = node(&reply, [10, 0, 0, 9]);
    world.clock.advance(364 * DAY);
    world.registry.renew_certificate(&own, &request).unwrap();
    world.clock.advance(2 * DAY);
    let ended = world.registry.renew_certificate(&own, &request);
    assert_eq!(ended, Err(FsError::NotPermitted), "its connection outlasted it");
    let (token, key) = (world.token(&[Role::File]).await, new_key());
    let silent = world.registry.join(wish(&token, &key)).await.unwrap();
    let unlisted = renewal(silent.node, &key);
    let refused = world.registry.renew_certificate(&node(&silent, [10, 0, 0, 9]), &unlisted);
    assert_eq!(refused, Err(FsError::NotPermitted));
}

#[tokio::test]
async fn ids_that_an_older_backup_does_not_know_are_not_handed_out_again() {
    let world = World::new().await;
    let token = world.token(&[Role::File]).await;
    let reply = world.registry.join(wish(&token, &new_key())).await.unwrap();
    // The metadata of before the join, as from a backup.
    let empty: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let restored = open(&world.dir, &empty, &world.clock).await.unwrap();
    restored.announce(&node(&reply, [10, 0, 0, 9]), entry(&reply)).await.unwrap();
    let request = NewJoinToken { roles: vec![Role::File] };
    let token: JoinToken = restored.join_token(request).await.unwrap().expose().parse().unwrap();
    let next = restored.join(wish(&token, &new_key())).await.unwrap();
    assert!(next.file_nodes[0] > reply.node, "{next:?}");
}

#[tokio::test]
async fn metadata_of_another_cell_is_refused() {
    let world = World::new().await;
    let other = tempfile::tempdir().unwrap();
    world.registry.store.close().await;
    let error = open(&other, &world.engine, &world.clock).await.unwrap_err();
    assert!(matches!(error, RegistryError::OtherCell { .. }), "{error}");
}
