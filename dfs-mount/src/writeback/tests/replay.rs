//! What a kill of the client leaves, at each step of the journal.

use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::client::Dial;
use dfs_proto::client::hostile::{HostileDialer, Odds, Weather};
use dfs_proto::clock::SystemClock;
use dfs_proto::id::{FileId, SessionId};

use super::{World, start};
use crate::cache::ContentError;
use crate::cache::record::State;
use crate::testing::client::{TestClient, read_file};
use crate::testing::fake_cell::{FakeCell, NODES};
use crate::writeback::failpoint::Point;
use crate::writeback::{OutboxState, Working};

/// What a killed client leaves.
pub(super) struct Killed {
    pub cell: FakeCell,
    pub dir: tempfile::TempDir,
    pub fid: FileId,
    /// Where its working copy is.
    pub file: PathBuf,
    pub session: SessionId,
}

/// Changes a file from `base` to `next`, lets its flush run up to a point, and kills the client
/// there.
pub(super) async fn killed_at(point: Point) -> Killed {
    let world = World::new().await;
    let working = edited(&world, b"next").await;
    let (fid, file) = (working.fid(), working.file().path().to_owned());
    let flushing = world.client.clone();
    reach(point, &world.client, async move { flushing.flush(&working).await.map(drop) }).await;
    let World { cell, dir, client } = world;
    let session = client.session.id();
    client.kill().await;
    Killed { cell, dir, fid, file, session }
}

/// Lets `work` of a client run up to a point, and drops it there.
async fn reach(
    point: Point,
    client: &TestClient,
    work: impl Future<Output = Result<(), ContentError>> + Send + 'static,
) {
    let failpoints = client.writeback.failpoints();
    failpoints.arm(point);
    let work = tokio::spawn(work);
    failpoints.reached().await;
    work.abort();
    assert!(work.await.unwrap_err().is_cancelled());
}

async fn edited(world: &World, content: &[u8]) -> Working {
    let fid = world.client.put("a", b"base").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, content).unwrap();
    working
}

async fn drained(client: &TestClient) -> usize {
    client.writeback.drain(Duration::from_secs(10), |_| {}).await.unsent.len()
}

#[tokio::test]
async fn a_working_copy_without_a_change_is_a_cached_version_after_a_kill() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    drop(world.client.open_write(fid).await.unwrap());
    let World { cell, dir, client } = world;
    client.kill().await;
    let client = start(&dir, &cell).await;
    assert_eq!(client.writeback.outbox(), []);
    assert_eq!(client.cache.clean(fid).await.unwrap().version, cell.version(fid));
}

#[tokio::test]
async fn what_was_never_closed_is_kept_as_interrupted_and_never_sent() {
    let world = World::new().await;
    let working = edited(&world, b"half").await;
    let fid = working.fid();
    drop(working);
    let World { cell, dir, client } = world;
    client.kill().await;
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    let [item] = &client.writeback.outbox()[..] else { panic!("one item") };
    assert_eq!((item.fid, item.state), (fid, OutboxState::Interrupted));
    assert_eq!(read_file(&client.cache.open_entry(item.id).unwrap()), b"half");
    assert_eq!(client.read(fid).await.unwrap(), b"base");
    assert_eq!(cell.commit_count(fid), 1);
}

#[tokio::test]
async fn what_was_closed_and_not_sent_yet_is_sent_by_the_next_run() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterSending).await;
    assert_eq!(cell.commit_count(fid), 1);
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    assert_eq!(cell.content(fid, NODES[0]), b"next");
    assert_eq!(cell.commit_count(fid), 2);
    assert_eq!(client.read(fid).await.unwrap(), b"next");
}

#[tokio::test]
async fn what_was_stored_without_the_answer_being_noted_is_not_sent_twice() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterStore).await;
    assert_eq!(cell.commit_count(fid), 2);
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    assert_eq!(cell.commit_count(fid), 2);
    assert_eq!(client.cache.clean(fid).await.unwrap().version, cell.version(fid));
}

#[tokio::test]
async fn an_earlier_session_is_closed_once_its_ops_are_settled_and_says_so() {
    let Killed { cell, dir, session: former, .. } = killed_at(Point::AfterStore).await;
    cell.refuse("directory.outcome", FsError::unavailable("for a while"));
    cell.refuse("directory.outcome", FsError::NotPermitted);
    start(&dir, &cell).await.kill().await;
    assert_eq!(cell.cell().closed, [], "what became of its store is not known yet");
    start(&dir, &cell).await.kill().await;
    assert!(cell.cell().closed.contains(&(former, u64::MAX)), "{:?}", cell.cell().closed);
}

#[tokio::test]
async fn an_unmount_with_an_outcome_open_does_not_say_that_all_is_settled() {
    let cell = FakeCell::new(Arc::new(SystemClock));
    let weather = Weather::new(1, Odds::default());
    let inner: Arc<dyn Dial> = Arc::new(cell.clone());
    let dial = Arc::new(HostileDialer { inner, weather: Arc::clone(&weather) });
    let dir = tempfile::tempdir().unwrap();
    let client = TestClient::start(dir.path(), dial, Arc::new(SystemClock)).await;
    let working = client.create("a").await.unwrap();
    let fid = working.fid();
    working.write_at(0, b"next").unwrap();
    weather.set_odds(Odds { reply_lost: 100, ..Odds::default() });
    assert!(client.close(working).await.is_err());
    assert_eq!(cell.commit_count(fid), 1, "it was stored, only nobody knows");
    let store = cell.cell().ledger.keys().map(|op| op.number).max().unwrap();
    let session = client.session.id();
    client.writeback.stop().await;
    weather.set_odds(Odds::default());
    client.session.close().await;
    let closed = cell.cell().closed.clone();
    let [(id, watermark)] = closed[..] else { panic!("{closed:?}") };
    assert_eq!(id, session);
    assert!(watermark <= store, "{watermark} and {store}");
    drop(client);
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    assert_eq!((cell.commit_count(fid), client.writeback.outbox()), (1, vec![]));
}

#[tokio::test]
async fn what_was_stored_and_noted_is_a_cached_version_after_a_kill() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterRecord).await;
    let client = start(&dir, &cell).await;
    assert_eq!(client.writeback.outbox(), []);
    assert_eq!(client.cache.clean(fid).await.unwrap().version, cell.version(fid));
    assert_eq!(cell.commit_count(fid), 2);
}

#[tokio::test]
async fn a_kill_before_the_open_is_answered_leaves_the_cached_version() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let opening = world.client.clone();
    let open = async move { opening.open_write(fid).await.map(drop) };
    reach(Point::AfterWorking, &world.client, open).await;
    let World { cell, dir, client } = world;
    client.kill().await;
    let client = start(&dir, &cell).await;
    assert_eq!(client.writeback.outbox(), []);
    assert_eq!(client.cache.clean(fid).await.unwrap().version, cell.version(fid));
}

#[tokio::test]
async fn content_that_does_not_fit_the_journal_any_more_is_kept_and_not_sent() {
    let Killed { cell, dir, fid, file, .. } = killed_at(Point::AfterSending).await;
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(b"X", 0).unwrap();
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    assert_eq!(client.writeback.outbox()[0].state, OutboxState::Interrupted);
    assert_eq!(cell.commit_count(fid), 1);
}

#[tokio::test]
async fn a_replay_onto_another_clients_change_is_a_conflict() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterSending).await;
    cell.write_as_other(fid, b"theirs");
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    let [item] = &client.writeback.outbox()[..] else { panic!("one item") };
    assert_eq!(item.state, OutboxState::Conflict);
    assert_eq!(read_file(&client.cache.open_entry(item.id).unwrap()), b"next");
    assert_eq!(client.read(fid).await.unwrap(), b"theirs");
}

#[tokio::test]
async fn an_open_right_after_the_start_sees_what_was_closed_before_the_kill() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterSending).await;
    let client = start(&dir, &cell).await;
    assert_eq!(client.read(fid).await.unwrap(), b"next");
}

#[tokio::test]
async fn an_unsent_change_survives_a_kill_with_its_times() {
    let world = World::new().await;
    let working = edited(&world, b"next").await;
    let fid = working.fid();
    world.cell.cell().down.extend(NODES);
    assert!(world.client.close(working).await.is_err());
    let World { cell, dir, client } = world;
    client.kill().await;
    cell.cell().down.clear();
    let client = start(&dir, &cell).await;
    assert_eq!(drained(&client).await, 0);
    assert_eq!(cell.cell().files[&fid].attr.mtime.secs, 7);
    assert_eq!(cell.content(fid, NODES[1]), b"next");
}

#[tokio::test]
async fn a_torn_journal_loses_at_most_the_last_step() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let World { cell, dir, client } = world;
    client.kill().await;
    let log = dir.path().join("index.log");
    let length = std::fs::metadata(&log).unwrap().len();
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    file.set_len(length - 3).unwrap();
    let client = start(&dir, &cell).await;
    // The step lost is `Working` -> `Clean`; the content decides.
    assert_eq!(client.cache.clean(fid).await.unwrap().version, cell.version(fid));
    assert!(
        client
            .cache
            .unclean()
            .iter()
            .all(|(_, entry)| !matches!(entry.state, State::Sending { .. }))
    );
}

/// Lets `work` go on until it waits for the `waits`th time, and drops it there.
async fn killed_after<T>(waits: u64, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = waits;
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left <= 1 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// One life of a client on a bad network.
struct Life {
    /// The last round that was answered.
    answered: u8,
    /// The last round that was asked for.
    asked: u8,
    /// Whether the kill came before the last flush was through.
    is_cut_short: bool,
}

/// Lives until the last of `rounds` flushes, and is killed when that waits for the `waits`th time.
async fn live_and_die(client: TestClient, working: Working, rounds: u8, waits: u64) -> Life {
    let mut life = Life { answered: 0, asked: rounds, is_cut_short: false };
    for round in 1..rounds {
        working.write_at(0, &[round; 1000]).unwrap();
        if client.flush(&working).await.is_ok() {
            life.answered = round;
        }
    }
    working.write_at(0, &[rounds; 1000]).unwrap();
    match killed_after(waits, client.flush(&working)).await {
        Some(Ok(_)) => life.answered = rounds,
        Some(Err(_)) => {}
        None => life.is_cut_short = true,
    }
    client.kill().await;
    life
}

#[tokio::test]
async fn a_kill_at_any_step_on_a_bad_network_loses_and_doubles_nothing() {
    let mut cut_short_count = 0;
    for seed in 0..48_u64 {
        let cell = FakeCell::new(Arc::new(SystemClock));
        let weather = Weather::new(seed, Odds::default());
        let inner: Arc<dyn Dial> = Arc::new(cell.clone());
        let dial = Arc::new(HostileDialer { inner, weather: Arc::clone(&weather) });
        let dir = tempfile::tempdir().unwrap();
        let client = TestClient::start(dir.path(), dial, Arc::new(SystemClock)).await;
        let working = client.create("a").await.unwrap();
        let fid = working.fid();
        weather.set_odds(Odds { undelivered: 10, reply_lost: 25, delivered_twice: 15 });
        let rounds = u8::try_from(1 + seed % 4).unwrap();
        let life = live_and_die(client, working, rounds, 1 + seed / 4 % 6).await;
        cut_short_count += u64::from(life.is_cut_short);
        let client = start(&dir, &cell).await;
        let left = drained(&client).await;
        assert_eq!(left, 0, "SEED={seed} {:?}", client.writeback.outbox());
        let content = cell.content(fid, NODES[0]);
        let round = content.first().copied().unwrap_or(0);
        assert!(content.iter().all(|byte| *byte == round), "SEED={seed}: torn");
        let Life { answered, asked, .. } = life;
        assert!((answered..=asked).contains(&round), "SEED={seed}: {answered} {round} {asked}");
        assert!(cell.commit_count(fid) <= u64::from(asked), "SEED={seed}: doubled");
        let outbox = client.writeback.outbox();
        let is_kept = |state| state == OutboxState::Interrupted;
        assert!(outbox.iter().all(|item| is_kept(item.state)), "SEED={seed}: {outbox:?}");
        client.kill().await;
    }
    assert!(cut_short_count >= 16, "only {cut_short_count} kills during a flush");
}
