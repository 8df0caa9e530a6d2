//! Write-back against a cell in memory. What is said of a kill is in `replay`, of locks in
//! `recall`, of ops whose answer is lost for good in `settle`.

mod join;
mod recall;
mod replay;
mod settle;
mod share;
mod since;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::capability::CapabilityFault;
use dfs_proto::client::Dial;
use dfs_proto::client::hostile::{HostileDialer, Odds, Weather};
use dfs_proto::clock::{Clock, ManualClock, SystemClock};
use dfs_proto::directory::Durability;
use dfs_proto::manifest::Extent;

use super::{Commit, OutboxState};
use crate::cache::{Cache, ContentError};
use crate::testing::client::{TEST_LIMITS, TestClient, attr_at, belongs, read_file};
use crate::testing::fake_cell::{FakeCell, NODES};

/// A cell, a cache directory, and a client on them.
pub(super) struct World {
    pub cell: FakeCell,
    pub dir: tempfile::TempDir,
    pub client: TestClient,
}

impl World {
    pub async fn new() -> World {
        let cell = FakeCell::new(Arc::new(SystemClock));
        let dir = tempfile::tempdir().unwrap();
        let client = start(&dir, &cell).await;
        World { cell, dir, client }
    }
}

pub(super) async fn start(dir: &tempfile::TempDir, cell: &FakeCell) -> TestClient {
    TestClient::start(dir.path(), Arc::new(cell.clone()), Arc::new(SystemClock)).await
}

/// Bytes that do not compress or repeat.
pub(super) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn fs_error(result: Result<Commit, ContentError>) -> FsError {
    match result {
        Err(ContentError::Fs(error)) => error,
        other => panic!("not an error of the servers: {other:?}"),
    }
}

#[tokio::test]
async fn a_closed_file_is_at_both_nodes_and_costs_two_requests() {
    let world = World::new().await;
    let fid = world.client.put("a", b"hello").await.unwrap();
    let calls = world.cell.calls_but_sessions();
    assert_eq!(calls, ["directory.create", "file.store"]);
    assert_eq!(NODES.map(|node| world.cell.content(fid, node)), [b"hello", b"hello"]);
    assert_eq!(world.client.cache.usage().dirty_count, 0);
    assert_eq!(world.client.cache.clean(fid).await.unwrap().version, world.cell.version(fid));
}

#[tokio::test]
async fn a_close_without_a_change_sends_nothing() {
    let world = World::new().await;
    let fid = world.client.put("a", b"hello").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    let calls = world.cell.calls_but_sessions();
    assert_eq!(world.client.close(working).await.unwrap(), Commit::Unchanged);
    assert_eq!(world.cell.calls_but_sessions(), calls);
    assert_eq!(world.client.cache.clean(fid).await.unwrap().version, world.cell.version(fid));
}

#[tokio::test]
async fn a_second_flush_sends_nothing_and_a_later_change_is_sent_by_the_next() {
    let world = World::new().await;
    let working = world.client.create("a").await.unwrap();
    working.write_at(0, b"one").unwrap();
    assert!(matches!(world.client.flush(&working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.client.flush(&working).await.unwrap(), Commit::Unchanged);
    working.write_at(3, b"two").unwrap();
    let fid = working.fid();
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.cell.content(fid, NODES[0]), b"onetwo");
    assert_eq!(world.cell.commit_count(fid), 2);
}

#[tokio::test]
async fn a_change_past_the_daemon_is_noticed_at_close() {
    let world = World::new().await;
    let fid = world.client.put("a", b"hello").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    // As a store through a mapping: nobody marks anything.
    working.file().writer().unwrap().write_all_at(b"J", 0).unwrap();
    let later = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(5);
    working.file().file().set_modified(later).unwrap();
    world.client.close(working).await.unwrap();
    assert_eq!(world.cell.content(fid, NODES[0]), b"Jello");
}

#[tokio::test]
async fn a_store_to_a_mapping_between_the_last_commit_and_the_release_is_not_left_behind() {
    let world = World::new().await;
    let fid = world.client.put("a", b"hello").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.expect_stores();
    assert_eq!(world.client.flush(&working).await.unwrap(), Commit::Unchanged);
    working.file().writer().unwrap().write_all_at(b"J", 0).unwrap();
    let writeback = &world.client.writeback;
    let left = writeback.release(working).await.expect("there is something to commit");
    assert!(writeback.is_mapping_over(&left).await);
    assert!(matches!(world.client.flush(&left).await.unwrap(), Commit::Stored { .. }));
    assert!(writeback.release(left).await.is_none());
    assert_eq!(world.cell.content(fid, NODES[0]), b"Jello");
}

#[tokio::test]
async fn times_alone_are_sent_without_chunks() {
    let world = World::new().await;
    let fid = world.client.put("a", b"hello").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    let sent = world.client.session.metrics().value(crate::metrics::Counter::StoredBytes);
    working.mark_dirty();
    let commit = world.client.writeback.commit(&working, attr_at(99), Durability::Process).await;
    let Commit::Stored { attr: Some(attr), .. } = commit.unwrap() else { panic!("not stored") };
    assert_eq!(attr.mtime.secs, 99);
    assert_eq!(world.client.session.metrics().value(crate::metrics::Counter::StoredBytes), sent);
}

#[tokio::test]
async fn a_large_file_travels_in_batches_and_an_edit_sends_only_what_changed() {
    let world = World::new().await;
    let mut content = noise(20 << 20, 3);
    let fid = world.client.put("big", &content).await.unwrap();
    assert!(world.cell.call_count("file.put") >= 4);
    assert!(world.cell.content(fid, NODES[1]) == content);
    let metrics = world.client.session.metrics();
    let before = metrics.value(crate::metrics::Counter::StoredBytes);
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(9 << 20, &[7; 4096]).unwrap();
    world.client.close(working).await.unwrap();
    let sent = metrics.value(crate::metrics::Counter::StoredBytes) - before;
    assert!(sent <= 1 << 20, "{sent} bytes");
    content[9 << 20..(9 << 20) + 4096].fill(7);
    assert!(world.cell.content(fid, NODES[0]) == content);
}

#[tokio::test]
async fn a_sparse_file_is_sent_as_holes() {
    let world = World::new().await;
    let working = world.client.create("sparse").await.unwrap();
    working.set_len(1 << 30).unwrap();
    working.write_at(512 << 20, b"middle").unwrap();
    let fid = working.fid();
    world.client.close(working).await.unwrap();
    let manifest = world.cell.cell().files[&fid].manifest.clone();
    assert_eq!(manifest.size(), 1 << 30);
    assert!(manifest.stored_bytes() <= 64 << 10, "{} bytes", manifest.stored_bytes());
    assert!(manifest.extents.iter().any(|extent| matches!(extent, Extent::Hole { .. })));
}

#[tokio::test]
async fn two_writers_of_one_client_share_one_working_copy() {
    let world = World::new().await;
    let fid = world.client.put("a", b"....").await.unwrap();
    let first = world.client.open_write(fid).await.unwrap();
    let second = world.client.open_write(fid).await.unwrap();
    first.write_at(0, b"1").unwrap();
    second.write_at(1, b"2").unwrap();
    assert_eq!(world.client.read(fid).await.unwrap(), b"12..");
    world.client.close(first).await.unwrap();
    assert_eq!(second.writer_count(), 1);
    second.write_at(2, b"3").unwrap();
    world.client.close(second).await.unwrap();
    assert_eq!(world.cell.content(fid, NODES[0]), b"123.");
    assert!(world.client.writeback.working(fid).is_none());
}

#[tokio::test]
async fn a_change_while_the_commit_reads_leaves_the_copy_dirty() {
    let world = World::new().await;
    let working = world.client.create("a").await.unwrap();
    working.write_at(0, b"one").unwrap();
    let mark = working.copy.mark();
    working.write_at(0, b"two").unwrap();
    working.copy.facts().committed = mark;
    assert!(working.is_dirty());
}

#[tokio::test]
async fn a_failed_close_reports_the_error_and_keeps_the_data_for_the_next_open() {
    let world = World::new().await;
    let fid = world.client.put("a", b"old").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"new").unwrap();
    world.cell.refuse("file.store", FsError::NoSpace { what: "nodes".into() });
    world.cell.refuse("file.store", FsError::NoSpace { what: "nodes".into() });
    let error = fs_error(world.client.flush(&working).await);
    assert!(matches!(error, FsError::NoSpace { .. }), "{error}");
    let [item] = &world.client.writeback.outbox()[..] else { panic!("one item") };
    assert_eq!((item.fid, item.state, item.size_bytes), (fid, OutboxState::Unsent, 3));
    assert!(item.why.contains("no space"), "{}", item.why);
    world.client.writeback.release(working).await;
    assert_eq!(world.client.read(fid).await.unwrap(), b"new");
    assert_eq!(world.cell.content(fid, NODES[0]), b"new");
    assert_eq!(world.client.writeback.outbox(), []);
}

#[tokio::test]
async fn a_flush_after_a_failed_one_tries_again() {
    let world = World::new().await;
    let working = world.client.create("a").await.unwrap();
    working.write_at(0, b"new").unwrap();
    world.cell.refuse("file.store", FsError::AccessDenied);
    assert_eq!(fs_error(world.client.flush(&working).await), FsError::AccessDenied);
    assert!(matches!(world.client.flush(&working).await.unwrap(), Commit::Stored { .. }));
}

#[tokio::test]
async fn servers_that_are_away_make_close_fail_in_time_and_the_data_goes_out_later() {
    let world = World::new().await;
    let fid = world.client.put("a", b"old").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"new").unwrap();
    world.cell.cell().down.extend(NODES);
    let error = fs_error(world.client.close(working).await);
    assert!(error.is_transient(), "{error}");
    let drained = world.client.writeback.drain(Duration::from_millis(50), |_| {}).await;
    assert_eq!(drained.unsent[0].fid, fid);
    world.cell.cell().down.clear();
    let drained = world.client.writeback.drain(Duration::from_secs(20), |_| {}).await;
    assert_eq!(drained.unsent, []);
    assert_eq!(world.cell.content(fid, NODES[0]), b"new");
    assert_eq!(world.cell.commit_count(fid), 2);
}

#[tokio::test]
async fn a_dead_primary_makes_way_for_the_other_replica() {
    let world = World::new().await;
    world.cell.cell().down.insert(NODES[0]);
    let fid = world.client.put("a", b"hello").await.unwrap();
    assert_eq!(world.cell.content(fid, NODES[1]), b"hello");
}

#[tokio::test]
async fn a_conflict_keeps_the_bytes_and_new_opens_see_the_other_change() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"ours").unwrap();
    world.cell.write_as_other(fid, b"theirs");
    let error = fs_error(world.client.flush(&working).await);
    assert!(matches!(error, FsError::Conflict { .. }), "{error}");
    assert!(working.is_detached());
    assert_eq!(world.client.read(fid).await.unwrap(), b"theirs");
    let [item] = &world.client.writeback.outbox()[..] else { panic!("one item") };
    assert_eq!(item.state, OutboxState::Conflict);
    assert_eq!(read_file(&world.client.cache.open_entry(item.id).unwrap()), b"ours");
    assert!(matches!(fs_error(world.client.close(working).await), FsError::Conflict { .. }));
    assert_eq!(world.cell.content(fid, NODES[0]), b"theirs");
    let drained = world.client.writeback.drain(Duration::from_secs(5), |_| {}).await;
    assert_eq!((drained.unsent.len(), drained.kept.len()), (0, 1));
}

#[tokio::test]
async fn a_fenced_writer_commits_after_all_if_nobody_changed_the_file() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"ours").unwrap();
    world.cell.steal_lock(fid);
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.cell.content(fid, NODES[0]), b"ours");
}

#[tokio::test]
async fn an_expired_capability_is_renewed_on_the_way() {
    let world = World::new().await;
    let working = world.client.create("a").await.unwrap();
    working.write_at(0, b"new").unwrap();
    world.cell.refuse("file.store", FsError::CapabilityRefused(CapabilityFault::Expired));
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.cell.call_count("directory.renew_write"), 1);
}

#[tokio::test]
async fn chunks_that_a_node_lost_are_sent_again() {
    let world = World::new().await;
    let content = noise(9 << 20, 4);
    let working = world.client.create("a").await.unwrap();
    working.write_at(0, &content).unwrap();
    let fid = working.fid();
    world.client.flush(&working).await.unwrap();
    working.write_at(1 << 20, &[1; 10]).unwrap();
    let lost = world.cell.cell().files[&fid].manifest.chunks().next().unwrap().hash;
    world.cell.refuse("file.store", FsError::NeedChunks(vec![lost]));
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
}

#[tokio::test]
async fn a_change_of_a_removed_file_vanishes_with_it() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"ours").unwrap();
    world.cell.cell().files.remove(&fid);
    assert_eq!(world.client.flush(&working).await.unwrap(), Commit::Vanished);
    working.write_at(0, b"more").unwrap();
    assert_eq!(read_file(working.file()), b"more");
    assert_eq!(world.client.close(working).await.unwrap(), Commit::Vanished);
    assert_eq!(world.client.writeback.outbox(), []);
    assert_eq!(world.client.cache.usage().entry_count, 0);
}

#[tokio::test]
async fn a_restarted_server_is_told_the_session_again_and_the_commit_goes_on() {
    let world = World::new().await;
    let working = world.client.create("a").await.unwrap();
    working.write_at(0, b"new").unwrap();
    let fid = working.fid();
    world.cell.restart();
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.cell.content(fid, NODES[0]), b"new");
}

#[tokio::test]
async fn lost_and_doubled_messages_commit_each_close_once() {
    for seed in 0..6 {
        let cell = FakeCell::new(Arc::new(SystemClock));
        let weather = Weather::new(seed, Odds::default());
        let inner: Arc<dyn Dial> = Arc::new(cell.clone());
        let hostile = Arc::new(HostileDialer { inner, weather: Arc::clone(&weather) });
        let dir = tempfile::tempdir().unwrap();
        let client = TestClient::start(dir.path(), hostile, Arc::new(SystemClock)).await;
        let working = client.create("a").await.unwrap();
        let fid = working.fid();
        weather.set_odds(Odds { undelivered: 20, reply_lost: 30, delivered_twice: 20 });
        let mut answered = 0;
        for round in 0..20_u8 {
            working.write_at(0, &[round; 100]).unwrap();
            match client.flush(&working).await {
                Ok(_) => answered += 1,
                Err(error) => assert!(
                    matches!(&error, ContentError::Fs(error) if error.is_transient()),
                    "SEED={seed} {error}"
                ),
            }
        }
        weather.set_odds(Odds::default());
        client.close(working).await.unwrap();
        assert_eq!(cell.content(fid, NODES[0]), [19; 100], "SEED={seed}");
        let commits = cell.commit_count(fid);
        assert!((answered..=20).contains(&commits), "SEED={seed} {answered} {commits}");
        assert_eq!(client.writeback.outbox(), [], "SEED={seed}");
    }
}

#[tokio::test]
async fn a_commit_that_is_dropped_half_way_is_settled_before_the_next() {
    let world = World::new().await;
    let working = world.client.create("a").await.unwrap();
    let fid = working.fid();
    working.write_at(0, b"one").unwrap();
    let failpoints = world.client.writeback.failpoints().clone();
    failpoints.arm(super::failpoint::Point::AfterStore);
    let commit = {
        let (client, working) = (world.client.clone(), working.clone());
        tokio::spawn(async move { client.flush(&working).await })
    };
    failpoints.reached().await;
    commit.abort();
    assert!(commit.await.unwrap_err().is_cancelled());
    failpoints.disarm();
    working.write_at(0, b"two").unwrap();
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.cell.content(fid, NODES[0]), b"two");
    assert_eq!(world.cell.commit_count(fid), 2);
}

#[tokio::test]
async fn a_background_retry_waits_for_its_time_and_then_sends() {
    let clock = ManualClock::default();
    let cell = FakeCell::new(Arc::new(clock.clone()));
    let dir = tempfile::tempdir().unwrap();
    let dial = Arc::new(cell.clone());
    let client = TestClient::start(dir.path(), dial, Arc::new(clock.clone())).await;
    let working = client.create("a").await.unwrap();
    let copy = Arc::clone(&working.copy);
    working.write_at(0, b"new").unwrap();
    cell.refuse("file.store", FsError::AccessDenied);
    assert_eq!(fs_error(client.close(working).await), FsError::AccessDenied);
    let next_try = copy.facts().unsent().unwrap().next_try;
    let wait = next_try - clock.boottime();
    assert_eq!(wait, super::commit::RETRY_DELAY_FIRST);
    clock.sleeper_until(next_try).await;
    assert_eq!(cell.call_count("file.store"), 1);
    clock.advance(wait);
    cell.until(|cell| cell.call_count("file.store") == 2).await;
    drop(copy.right.lock().await);
    assert_eq!(client.writeback.outbox(), []);
    assert_eq!(cell.content(copy.fid(), NODES[0]), b"new");
}

#[tokio::test]
async fn a_file_is_sent_without_a_mount_and_a_cache() {
    use dfs_proto::directory::OpenAccess;

    let world = World::new().await;
    let fid = world.client.put("a", b"old").await.unwrap();
    let access = OpenAccess::Write { wait: dfs_proto::directory::LockWait::No, read: false };
    let opened = world.client.ask_open(fid, access, None).await.unwrap();
    let content = noise(9 << 20, 8);
    let source = tempfile::tempfile().unwrap();
    source.write_all_at(&content, 0).unwrap();
    let send = super::SendFile {
        caller: None,
        source,
        opened: &opened,
        base_manifest: opened.manifest.clone().unwrap(),
        attr: attr_at(5),
        durability: Durability::Process,
    };
    let attr = super::send_file(&world.client.session, send).await.unwrap().unwrap();
    assert_eq!((attr.size, attr.mtime.secs), (9 << 20, 5));
    assert!(world.cell.content(fid, NODES[1]) == content);
}

#[tokio::test]
async fn a_session_that_ended_while_a_copy_was_open_does_not_lose_its_change() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"ours").unwrap();
    // The lease ended: the lock is free, the session unknown; nobody has taken either.
    world.cell.steal_lock(fid);
    world.cell.restart();
    assert!(matches!(world.client.close(working).await.unwrap(), Commit::Stored { .. }));
    assert_eq!(world.cell.content(fid, NODES[0]), b"ours");
}

#[tokio::test]
async fn a_writer_that_finds_another_version_at_its_open_leaves_the_old_copy_to_its_handles() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let old = world.client.open_write(fid).await.unwrap();
    world.cell.write_as_other(fid, b"theirs");
    let new = world.client.open_write(fid).await.unwrap();
    assert_eq!(read_file(old.file()), b"base");
    assert_eq!(read_file(new.file()), b"theirs");
    assert_eq!(world.client.close(old).await.unwrap(), Commit::Unchanged);
    new.write_at(0, b"T").unwrap();
    world.client.close(new).await.unwrap();
    assert_eq!(world.cell.content(fid, NODES[0]), b"Theirs");
    assert_eq!(world.client.writeback.outbox(), []);
    assert_eq!(world.client.cache.clean(fid).await.unwrap().version, world.cell.version(fid));
}

#[tokio::test]
async fn a_dropped_write_back_ends_its_tasks_and_frees_the_cache_directory() {
    let World { cell, dir, client } = World::new().await;
    client.put("a", b"hello").await.unwrap();
    drop(client);
    let running = tokio::runtime::Handle::current().metrics();
    let ended = async {
        while running.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    let metrics = Arc::default();
    let clock = Arc::new(SystemClock);
    let cache = Cache::open(dir.path(), &belongs(), TEST_LIMITS, clock, metrics).unwrap();
    assert_eq!(cache.usage().entry_count, 1);
    drop(cell);
}
