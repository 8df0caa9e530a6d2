//! The router with calls of the own process and forged ones.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::admin::{CellMap, Map, NewJoinToken};
use dfs_proto::attr::Timestamp;
use dfs_proto::auth::{Keys, KeysReply, WhoAmI};
use dfs_proto::client::{CallError, Client, InProcess};
use dfs_proto::clock::SystemClock;
use dfs_proto::credential::{ActAs, Identity, Ticket, TicketHolder};
use dfs_proto::directory::MakeDir;
use dfs_proto::rpc::{Envelope, Rpc, decode_reply, encode_request, split_frame};
use dfs_proto::session::{Events, SessionEvent};
use futures_util::StreamExt;

use super::{Channel, CheckTicket, Reply, Router, stream_of};

struct OneTicket;

impl CheckTicket for OneTicket {
    fn check(&self, ticket: &Ticket, _now: Timestamp) -> Result<Arc<TicketHolder>, FsError> {
        if ticket.expose() != "good" {
            return Err(FsError::TicketRefused { why: "not good".into() });
        }
        let identity = Identity { uid: 7, gid: 7, groups: vec![] };
        let act_as = ActAs::Personal { identity };
        Ok(Arc::new(TicketHolder { user: "u".into(), act_as, is_admin: false }))
    }
}

fn router() -> Router {
    Router::new(Arc::new(OneTicket), Arc::new(SystemClock))
}

fn network() -> Channel {
    Channel::Network { address: [127, 0, 0, 1].into(), node: None }
}

async fn ask<R: Rpc>(router: &Router, envelope: &Envelope, request: &R) -> Result<(), FsError> {
    let (head, payload) = split_frame(encode_request(envelope, request).unwrap()).unwrap();
    let Reply::Whole { parts, .. } = router.dispatch(network(), R::PATH, head, payload).await
    else {
        panic!("a stream");
    };
    let (head, _) = split_frame(parts[0].clone()).unwrap();
    decode_reply::<R::Reply>(&head).unwrap().1.map(|_| ())
}

#[tokio::test]
async fn access_classes_let_in_whom_they_say() {
    let mut router = router();
    router.unary(|_, _: Map| async { Ok(CellMap::default()) });
    router.unary(|_, _: Keys| async { Ok(KeysReply { ticket_key: [0; 32], revoked: vec![] }) });
    router.unary(|_, _: NewJoinToken| async { Err(FsError::Exists) });
    router.unary(|context, _: WhoAmI| async move {
        assert_eq!(context.identity.uid, 7);
        Err(FsError::Exists)
    });
    let bare = Envelope::default();
    let good = Envelope { ticket: Some(Ticket::new("good")), ..Envelope::default() };
    let bad = Envelope { ticket: Some(Ticket::new("bad")), ..Envelope::default() };
    assert_eq!(ask(&router, &bare, &Map {}).await, Ok(()));
    assert_eq!(ask(&router, &good, &Keys {}).await, Err(FsError::NotPermitted));
    assert_eq!(ask(&router, &bare, &WhoAmI {}).await, Err(FsError::Unauthenticated));
    assert_eq!(ask(&router, &good, &WhoAmI {}).await, Err(FsError::Exists));
    let refused = ask(&router, &bad, &WhoAmI {}).await;
    assert!(matches!(refused, Err(FsError::TicketRefused { .. })));
    let admin = NewJoinToken { roles: vec![] };
    assert_eq!(ask(&router, &good, &admin).await, Err(FsError::NotPermitted));
}

#[tokio::test]
async fn an_unknown_operation_and_a_mutation_without_op_id_are_refused() {
    let router = router();
    let error = ask(&router, &Envelope::default(), &Map {}).await.unwrap_err();
    assert_eq!(error, FsError::UnknownOperation { path: "admin.map".into() });
    let mut router = self::router();
    router.unary(|_, _: MakeDir| async { panic!("must not run") });
    let root = dfs_proto::id::FileId::new(
        dfs_proto::id::VolumeId(1),
        dfs_proto::id::ROOT_INODE,
        dfs_proto::version::Epoch(1),
    );
    let name = dfs_proto::name::Name::parse(b"d").unwrap();
    let request = MakeDir { parent: root, name, mode: 0o755 };
    let error = ask(&router, &Envelope::default(), &request).await.unwrap_err();
    assert!(matches!(error, FsError::Malformed { .. }));
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_answered_for() {
    let mut router = router();
    router.unary(|_, _: Map| async {
        std::future::pending::<()>().await;
        Ok(CellMap::default())
    });
    let envelope = Envelope { deadline_ms: 10, ..Envelope::default() };
    assert!(matches!(ask(&router, &envelope, &Map {}).await, Err(FsError::TimedOut { .. })));
}

#[tokio::test]
async fn own_process_calls_carry_payload_and_streams() {
    let mut router = router();
    router.with_payload(|_, _: Map, payload: Bytes| async move {
        assert_eq!(&payload[..], b"ab");
        Ok((CellMap::default(), vec![Bytes::from_static(b"c"), Bytes::from_static(b"d")]))
    });
    router.stream(|_, _: Events| async {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        sender.send(SessionEvent::Idle).await.unwrap();
        sender.send(SessionEvent::Idle).await.unwrap();
        Ok(stream_of(receiver))
    });
    let transport = InProcess::default();
    transport.bind(Arc::new(router));
    let client = Client::new(Arc::new(transport));
    let payload = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
    let answer = client.call(&Envelope::default(), &Map {}, payload).await.unwrap();
    assert_eq!(&answer.payload[..], b"cd");
    let items = client.open_stream(&Envelope::default(), &Events {}).await.unwrap();
    let items: Vec<Result<SessionEvent, CallError>> = items.collect().await;
    assert_eq!(items.len(), 2);
}
