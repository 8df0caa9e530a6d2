//! Sessions against a cell in memory: leases, tickets, restarts, recalls.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::client::Dial;
use dfs_proto::client::hostile::{HostileDialer, Odds, Weather};
use dfs_proto::clock::{ManualClock, SystemClock};
use dfs_proto::directory::{GetAttr, LockWait, Open, OpenAccess};
use dfs_proto::id::FileId;
use dfs_proto::lock::Recall;
use dfs_proto::promise::{Break, BreakNumber, DirChange};
use dfs_proto::session::SessionEvent;
use dfs_proto::version::Sequence;
use tokio::sync::mpsc;

use super::Session;
use super::connection::Connection;
use super::told::{Seen, Told, What};
use crate::metrics::Counter;
use crate::testing::client::{connect, unknown_fid};
use crate::testing::fake_cell::FakeCell;

async fn open(cell: &FakeCell, clock: &ManualClock) -> (Session, mpsc::Receiver<Recall>) {
    let connection = connect(Arc::new(cell.clone()), Arc::new(clock.clone()));
    open_at(connection).await
}

async fn open_at(connection: Connection) -> (Session, mpsc::Receiver<Recall>) {
    let session = Session::open(connection, "main", "test").await.unwrap();
    let recalls = session.listen().await;
    (session, recalls)
}

fn world() -> (FakeCell, ManualClock) {
    let clock = ManualClock::default();
    (FakeCell::new(Arc::new(clock.clone())), clock)
}

/// Moves time on, a little whenever everybody waits, until something has happened: at most for
/// ten minutes of it.
async fn until_in_time(clock: &ManualClock, has_happened: impl Fn() -> bool) {
    for _ in 0..6000 {
        clock.advance(Duration::from_millis(100));
        tokio::task::yield_now().await;
        if has_happened() {
            return;
        }
    }
    panic!("it did not happen in time");
}

/// A request that changes nothing and needs a ticket.
async fn ping(session: &Session) -> Result<(), FsError> {
    let request = GetAttr { fid: unknown_fid() };
    match session.call(Role::Directory, None, &request).await {
        Err(FsError::Stale) => Ok(()),
        other => other.map(drop),
    }
}

#[tokio::test]
async fn heartbeats_keep_the_lease_and_their_absence_ends_it() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    until_in_time(&clock, || {
        assert!(session.is_leased());
        cell.call_count("session.heartbeat") >= 6
    })
    .await;
    for _ in 0..1000 {
        cell.refuse("session.heartbeat", FsError::unavailable("on purpose"));
    }
    until_in_time(&clock, || !session.is_leased()).await;
}

#[tokio::test]
async fn a_recall_comes_out_of_the_channel() {
    let (cell, clock) = world();
    let (session, mut recalls) = open(&cell, &clock).await;
    cell.until(|cell| cell.call_count("session.events") >= 1).await;
    let fid = create(&session).await;
    let access = OpenAccess::Write { wait: LockWait::No, read: false };
    let open = Open { fid, access, have: None };
    let reply = session.call(Role::Directory, None, &open).await.unwrap();
    cell.recall(fid);
    let recall = recalls.recv().await.unwrap();
    assert_eq!((recall.fid, recall.token), (fid, reply.write.unwrap().token));
}

async fn create(session: &Session) -> FileId {
    use dfs_proto::directory::Create;
    let parent = session.root().fid;
    let name = dfs_proto::name::Name::parse(b"a").unwrap();
    let access = OpenAccess::Write { wait: LockWait::No, read: false };
    let request = Create { parent, name, mode: 0o644, exclusive: true, access };
    session.call(Role::Directory, None, &request).await.unwrap().open.attr.fid
}

#[tokio::test]
async fn a_restarted_server_is_told_the_session_again_by_the_request_that_finds_out() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    let (key, epoch) = (session.key(), session.epoch());
    cell.restart();
    create(&session).await;
    assert_ne!(session.key().key, key.key);
    assert_ne!(session.epoch(), epoch);
    assert_eq!(session.metrics().value(Counter::SessionReopened), 1);
}

#[tokio::test]
async fn many_requests_that_find_a_restart_open_the_session_once() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    cell.restart();
    let requests = (0..8).map(|_| create(&session));
    futures_util::future::join_all(requests).await;
    assert_eq!(cell.call_count("session.open"), 2);
}

#[tokio::test]
async fn the_event_stream_comes_back_after_a_restart() {
    let (cell, clock) = world();
    let (session, mut recalls) = open(&cell, &clock).await;
    cell.until(|cell| cell.call_count("session.events") >= 1).await;
    cell.restart();
    let fid = create(&session).await;
    // Kept by the cell until there is a stream to tell it on.
    cell.recall(fid);
    until_in_time(&clock, || !recalls.is_empty()).await;
    assert_eq!(recalls.recv().await.unwrap().fid, fid);
}

#[tokio::test]
async fn an_expired_ticket_is_renewed_and_the_request_repeated() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    assert_eq!(cell.call_count("auth.renew"), 1);
    cell.expire_tickets();
    ping(&session).await.unwrap();
    assert_eq!(cell.call_count("auth.renew"), 2);
}

#[tokio::test]
async fn a_ticket_is_renewed_before_it_expires() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    clock.advance(Duration::from_secs(2701));
    ping(&session).await.unwrap();
    assert!(cell.call_count("auth.renew") >= 2);
}

#[tokio::test]
async fn a_lock_that_rides_on_a_heartbeat_is_taken_off_it_when_it_is_wanted_again() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    let fid = create(&session).await;
    let token = cell.cell().files[&fid].lock.unwrap().1;
    session.yield_later(fid, token);
    session.keep_lock(fid).await;
    until_in_time(&clock, || cell.call_count("session.heartbeat") >= 1).await;
    assert!(cell.cell().yields.is_empty());
    session.yield_later(fid, token);
    until_in_time(&clock, || cell.cell().yields == [(fid, token)]).await;
}

#[tokio::test]
async fn a_creation_learns_which_locks_were_on_their_way_back_while_it_was_under_way() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    let before = session.begin_creation();
    let (asked, rode, kept) =
        (create(&session).await, create(&session).await, create(&session).await);
    let token = cell.cell().files[&rode].lock.unwrap().1;
    session.goes_back(asked);
    session.yield_soon(rode, token);
    until_in_time(&clock, || cell.cell().yields == [(rode, token)]).await;
    let during = session.begin_creation();
    session.went_back(asked);
    assert!(before.has_gone_back(asked) && before.has_gone_back(rode));
    assert!(during.has_gone_back(asked), "it was under way when the creation began");
    assert!(!before.has_gone_back(kept));
    drop((before, during));
    assert!(!session.begin_creation().has_gone_back(asked), "that is over");
}

#[tokio::test]
async fn a_recalled_lock_does_not_wait_for_the_next_heartbeat() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    let fid = create(&session).await;
    let token = cell.cell().files[&fid].lock.unwrap().1;
    session.yield_soon(fid, token);
    // The clock stands still: only the hurry can send a heartbeat.
    cell.until(|cell| cell.yields == [(fid, token)]).await;
}

#[tokio::test]
async fn closing_a_session_frees_its_locks() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    let fid = create(&session).await;
    session.close().await;
    assert!(cell.cell().files[&fid].lock.is_none());
}

#[tokio::test]
async fn a_lossy_network_changes_nothing_but_the_time_it_takes() {
    let cell = FakeCell::new(Arc::new(SystemClock));
    let weather = Weather::new(11, Odds { undelivered: 20, reply_lost: 20, delivered_twice: 20 });
    let inner: Arc<dyn Dial> = Arc::new(cell.clone());
    let hostile = Arc::new(HostileDialer { inner, weather: Arc::clone(&weather) });
    let connection = connect(hostile, Arc::new(SystemClock));
    let (session, _recalls) = open_at(connection).await;
    for _ in 0..50 {
        ping(&session).await.unwrap();
    }
    let counted: u64 = session.metrics().rpc_counts().values().sum();
    assert_eq!(counted, weather.call_count(), "every request on the wire is counted");
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_in_time() {
    let cell = FakeCell::new(Arc::new(SystemClock));
    let weather = Weather::new(1, Odds::default());
    let inner: Arc<dyn Dial> = Arc::new(cell.clone());
    let hostile = Arc::new(HostileDialer { inner, weather: Arc::clone(&weather) });
    let connection = connect(hostile, Arc::new(SystemClock));
    let (session, _recalls) = open_at(connection).await;
    weather.partition(true);
    let ended = tokio::time::timeout(Duration::from_secs(5), ping(&session)).await.unwrap();
    assert!(ended.unwrap_err().is_transient());
    weather.partition(false);
    ping(&session).await.unwrap();
}

#[tokio::test]
async fn another_stream_is_asked_for_when_nothing_is_held_by_the_one_that_ended() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    cell.until(|cell| cell.sessions.values().all(|(_, stream)| stream.is_some())).await;
    let mut events = session.keep();
    cell.cell().sessions.get_mut(&session.id()).unwrap().1 = None;
    let told = events.recv().await.unwrap();
    assert!(matches!(told.what, What::Lost));
    let heartbeats = cell.call_count("session.heartbeat");
    until_in_time(&clock, || cell.call_count("session.heartbeat") > heartbeats + 5).await;
    assert_eq!(cell.call_count("session.events"), 1);
    told.done.send(()).unwrap();
    until_in_time(&clock, || cell.call_count("session.events") == 2).await;
}

#[tokio::test]
async fn a_break_is_acknowledged_when_the_keeper_says_so_and_watchers_are_told() {
    let (cell, clock) = world();
    let (session, _recalls) = open(&cell, &clock).await;
    cell.until(|cell| cell.sessions.values().all(|(_, stream)| stream.is_some())).await;
    let (mut events, mut watcher) = (session.keep(), session.watch());
    let dir = session.root().fid;
    let (names, sequence) = (Vec::new(), Sequence::default());
    let change = DirChange { dir, attr: None, names, is_cut: true, is_made: false, sequence };
    let told = Break { number: BreakNumber(1), changes: vec![change.clone()], ended: vec![dir] };
    let send = |cell: &FakeCell| {
        let stream = cell.cell().sessions[&session.id()].1.clone();
        stream.unwrap().send(SessionEvent::Break(told.clone())).unwrap();
    };
    send(&cell);
    let Told { what, done } = events.recv().await.unwrap();
    assert!(matches!(what, What::Break(broken) if *broken == told));
    assert_eq!(watcher.recv().await.unwrap(), Seen::Change(Arc::new(change)));
    assert_eq!(watcher.recv().await.unwrap(), Seen::Ended(dir));
    let heartbeats = cell.call_count("session.heartbeat");
    until_in_time(&clock, || cell.call_count("session.heartbeat") > heartbeats + 5).await;
    assert_eq!(cell.call_count("session.acknowledge"), 0);
    done.send(()).unwrap();
    until_in_time(&clock, || cell.call_count("session.acknowledge") == 1).await;
    // A keeper that is gone holds nothing.
    drop(events);
    send(&cell);
    until_in_time(&clock, || cell.call_count("session.acknowledge") == 2).await;
}
