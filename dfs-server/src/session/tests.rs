//! Sessions, their leases and streams.

use dfs_proto::credential::{ActAs, TicketHolder};

use super::*;
use dfs_proto::clock::ManualClock;

const ID: SessionId = SessionId([1; 16]);

fn sessions() -> (Sessions, ManualClock) {
    let clock = ManualClock::default();
    let sessions = Sessions::new(Arc::new(clock.clone()));
    sessions.open(ID, &bearer("ann"), "host", MacKey([1; 32])).unwrap();
    (sessions, clock)
}

fn started(epoch: u32, number: u64) -> SessionEvent {
    let stream = StreamNumber(u64::from(epoch) << 32 | number);
    SessionEvent::Started { epoch: Epoch(epoch), stream }
}

fn bearer(user: &str) -> Peer {
    let act_as = ActAs::Machine { squash_root: false };
    Peer::User(Arc::new(TicketHolder { user: user.to_owned(), act_as, is_admin: false }))
}

#[test]
fn a_session_ends_with_its_lease_unless_renewed() {
    let (sessions, clock) = sessions();
    clock.advance(SESSION_LEASE - Duration::from_millis(1));
    sessions.renew(ID, "ann").unwrap();
    clock.advance(SESSION_LEASE - Duration::from_millis(1));
    assert!(sessions.key(ID).is_ok());
    assert_eq!(sessions.expire(), []);
    clock.advance(Duration::from_millis(1));
    assert_eq!(sessions.key(ID), Err(FsError::SessionUnknown));
    assert_eq!(sessions.renew(ID, "ann"), Err(FsError::SessionUnknown));
    assert_eq!(sessions.expire(), [ID]);
    assert_eq!(sessions.count(), 0);
}

#[test]
fn nobody_uses_another_users_session() {
    let (sessions, _clock) = sessions();
    let stolen = sessions.open(ID, &bearer("bob"), "host", MacKey([2; 32]));
    assert_eq!(stolen, Err(FsError::NotPermitted));
    assert_eq!(sessions.renew(ID, "bob"), Err(FsError::SessionUnknown));
    assert!(sessions.listen(ID, "bob", Epoch(1)).is_err());
    assert!(!sessions.close(ID, "bob"));
    assert!(sessions.close(ID, "ann"));
}

#[test]
fn opening_again_keeps_the_key() {
    let (sessions, _clock) = sessions();
    let key = sessions.open(ID, &bearer("ann"), "host", MacKey([9; 32])).unwrap();
    assert_eq!(key, MacKey([1; 32]));
}

#[test]
fn a_new_stream_ends_the_one_before_and_begins_with_the_epoch() {
    let (sessions, _clock) = sessions();
    assert_eq!(sessions.tell(ID, SessionEvent::Idle), Told::NotListening);
    let mut first = sessions.listen(ID, "ann", Epoch(4)).unwrap();
    assert_eq!(first.try_recv(), Ok(started(4, 1)));
    let mut second = sessions.listen(ID, "ann", Epoch(4)).unwrap();
    assert_eq!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    assert_eq!(sessions.tell(ID, SessionEvent::Idle), Told::Sent);
    assert_eq!(second.try_recv(), Ok(started(4, 2)));
    assert_eq!(second.try_recv(), Ok(SessionEvent::Idle));
    assert_eq!(sessions.tell(SessionId([7; 16]), SessionEvent::Idle), Told::Unknown);
}

#[test]
fn a_client_that_does_not_read_loses_its_stream_not_the_server_its_memory() {
    let (sessions, _clock) = sessions();
    let stream = sessions.listen(ID, "ann", Epoch(1)).unwrap();
    while sessions.tell(ID, SessionEvent::Idle) == Told::Sent {}
    assert!(stream.len() <= EVENT_QUEUE_MAX);
    assert_eq!(sessions.tell(ID, SessionEvent::Idle), Told::NotListening);
}
