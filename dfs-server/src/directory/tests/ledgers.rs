//! How long a session's ledger is kept, and what its client may rely on until then.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::clock::{Clock, ManualClock};
use dfs_proto::directory::{MakeDir, Outcome, OutcomeReply};
use dfs_proto::id::{FileId, SessionId};
use dfs_proto::version::Sequence;

use super::cell::{Cell, User, VOLUME, name};
use crate::directory::rows::{ledger_key, ledgers};
use crate::ledger::{CLOSED_KEPT, LedgerRow, VANISHED_KEPT};
use crate::meta::faulty::{FaultyEngine, Moment};
use crate::meta::memory::MemoryEngine;
use crate::meta::{Durability, Txn};
use crate::request::Context;

const DAY: Duration = Duration::from_secs(86_400);

async fn row(user: &User) -> Option<Arc<LedgerRow>> {
    let key = ledger_key(VOLUME, user.session);
    user.cell.volume.store.read(|txn| txn.get(&key)).await.unwrap()
}

async fn row_count(cell: &Cell) -> usize {
    let (from, to) = ledgers(VOLUME);
    cell.volume.store.scan::<LedgerRow>(from, to, usize::MAX).await.unwrap().len()
}

async fn sweep(cell: &Cell) {
    cell.directory.sweep_ledgers().await.unwrap();
}

/// Makes a directory as op `number`, all below answered.
async fn make(user: &User, number: u64, at: &str) -> Result<FileId, FsError> {
    let request = MakeDir { parent: user.cell.root, name: name(at), mode: 0o755 };
    let made = user.cell.directory.mkdir(user.context_of(number, number), request).await;
    made.map(|reply| reply.attr.fid)
}

/// Asks as the client's next run does.
async fn outcome(user: &User, number: u64) -> OutcomeReply {
    let request = Outcome { volume: VOLUME, op: user.op(number) };
    user.cell.directory.outcome(user.context_of(number, 0), request).await.unwrap()
}

/// Closes the session, all ops below `watermark` settled.
async fn close(user: &User, watermark: u64) {
    let context = Context { op: None, ..user.context_of(0, watermark) };
    user.cell.directory.close_session(context).await.unwrap();
}

#[tokio::test]
async fn the_row_of_a_closed_session_goes_when_its_time_is_over() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let made = make(&ann, 5, "d").await.unwrap();
    close(&ann, 6).await;
    cell.clock.advance(CLOSED_KEPT - DAY);
    sweep(&cell).await;
    assert_eq!(make(&ann, 5, "d").await, Ok(made), "a late copy of the request is not run");
    assert!(matches!(outcome(&ann, 5).await, OutcomeReply::Committed(_)), "a power cut's replay");
    cell.clock.advance(DAY);
    sweep(&cell).await;
    assert_eq!(row(&ann).await, None);
    sweep(&cell).await;
}

#[tokio::test]
async fn an_op_of_a_vanished_session_may_be_asked_for_after_restarts_and_weeks() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 5, "d").await.unwrap();
    let committed = cell.volume.store.read(|txn| Ok(txn.sequence())).await.unwrap();
    cell.clock.advance(VANISHED_KEPT - DAY);
    let cell = cell.restart().await;
    sweep(&cell).await;
    let ann = User { cell: cell.clone(), ..ann };
    assert_eq!(outcome(&ann, 5).await, OutcomeReply::Committed(committed));
    cell.clock.advance(DAY);
    sweep(&cell).await;
    assert_eq!(row(&ann).await, None);
}

#[tokio::test]
async fn the_next_run_of_a_client_closes_what_it_has_settled() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 5, "d").await.unwrap();
    let cell = cell.restart().await;
    cell.clock.advance(10 * DAY);
    let ann = User { cell: cell.clone(), ..ann };
    outcome(&ann, 5).await;
    close(&ann, u64::MAX).await;
    cell.clock.advance(CLOSED_KEPT);
    sweep(&cell).await;
    assert_eq!(row(&ann).await, None);
}

#[tokio::test]
async fn an_unmount_that_leaves_an_op_open_is_no_end_of_its_row() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 5, "d").await.unwrap();
    close(&ann, 5).await;
    cell.clock.advance(VANISHED_KEPT - DAY);
    sweep(&cell).await;
    assert!(matches!(outcome(&ann, 5).await, OutcomeReply::Committed(_)));
    cell.clock.advance(DAY);
    sweep(&cell).await;
    assert_eq!(row(&ann).await, None);
}

#[tokio::test]
async fn a_change_after_the_close_opens_the_row_again() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 5, "d").await.unwrap();
    close(&ann, 6).await;
    make(&ann, 6, "e").await.unwrap();
    cell.clock.advance(CLOSED_KEPT);
    sweep(&cell).await;
    assert!(matches!(outcome(&ann, 6).await, OutcomeReply::Committed(_)));
}

#[tokio::test]
async fn a_session_that_lives_keeps_its_row_and_its_watermark() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 5, "d").await.unwrap();
    cell.clock.advance(2 * VANISHED_KEPT);
    ann.open_session().await.unwrap();
    sweep(&cell).await;
    assert!(row(&ann).await.is_some());
    assert_eq!(make(&ann, 4, "late").await, Err(FsError::OpSettled));
}

#[tokio::test]
async fn nobody_closes_another_users_session() {
    let cell = Cell::new().await;
    let (ann, eve) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    make(&ann, 5, "d").await.unwrap();
    close(&User { session: ann.session, ..eve }, u64::MAX).await;
    assert!(!row(&ann).await.unwrap().is_closed);
    assert!(cell.directory.sessions.is_live(ann.session));
}

#[tokio::test]
async fn closing_twice_writes_once_and_closing_a_stranger_nothing() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 5, "d").await.unwrap();
    let sequence = async || cell.volume.store.read(|txn| Ok(txn.sequence())).await.unwrap();
    let before: Sequence = sequence().await;
    close(&ann, 6).await;
    close(&ann, 6).await;
    let stranger = User { session: SessionId([77; 16]), ..ann };
    close(&stranger, u64::MAX).await;
    assert_eq!(sequence().await.counter, before.counter + 1);
    assert_eq!(row(&stranger).await, None);
}

#[tokio::test]
async fn a_row_without_an_age_or_with_one_to_come_counts_from_the_first_sweep() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    for changed in [0, i64::MAX] {
        make(&ann, ann.next_number() + 10, &format!("d{changed}")).await.unwrap();
        let (key, old) = (ledger_key(VOLUME, ann.session), row(&ann).await.unwrap());
        let put = move |txn: &mut Txn| {
            txn.put(&key, LedgerRow { changed, ..LedgerRow::clone(&old) });
            Ok(())
        };
        cell.volume.store.write(Durability::Process, put).await.unwrap();
        cell.clock.advance(DAY);
        sweep(&cell).await;
        assert_eq!(row(&ann).await.unwrap().changed, cell.clock.wall().secs);
    }
    cell.clock.advance(VANISHED_KEPT);
    sweep(&cell).await;
    assert_eq!(row(&ann).await, None);
}

/// As many sessions that left a row, and a session that lives.
async fn crowd(cell: &Cell, count: u8) -> User {
    for number in 1..=count {
        make(&cell.user(number, 1000).await, 1, &format!("d{number}")).await.unwrap();
    }
    cell.clock.advance(VANISHED_KEPT);
    let last = cell.user(100, 1000).await;
    make(&last, 1, "last").await.unwrap();
    last
}

#[tokio::test]
async fn many_rows_go_in_steps_that_no_commit_is_long() {
    let cell = Cell::new().await;
    crowd(&cell, 98).await;
    assert_eq!(row_count(&cell).await, 100, "with the one that opened the root directory");
    let before = cell.volume.store.sequence().counter;
    sweep(&cell).await;
    assert_eq!(row_count(&cell).await, 1);
    assert_eq!(cell.volume.store.sequence().counter - before, 2, "64 and 35");
}

#[tokio::test]
async fn a_sweep_that_is_cut_short_anywhere_is_completed_by_the_next() {
    for (commit, moment) in [
        (1, Moment::BeforeApplied),
        (1, Moment::AfterApplied),
        (2, Moment::BeforeApplied),
        (2, Moment::AfterApplied),
    ] {
        let (engine, faults) = FaultyEngine::new(Arc::new(MemoryEngine::new()));
        let cell = Cell::open(engine, ManualClock::default()).await;
        let last = crowd(&cell, 80).await;
        faults.fail_commit(commit, moment);
        let _ = cell.directory.sweep_ledgers().await;
        faults.forget();
        let cell = cell.restart().await;
        sweep(&cell).await;
        assert_eq!(row_count(&cell).await, 1, "commit {commit} {moment:?}");
        let last = User { cell: cell.clone(), ..last };
        assert!(matches!(outcome(&last, 1).await, OutcomeReply::Committed(_)));
    }
}

#[tokio::test]
async fn the_worker_sweeps_after_its_interval_and_ends_when_told() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    make(&ann, 1, "d").await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let worker = tokio::spawn(cell.directory.clone().run_sweep(stop.clone()));
    tokio::task::yield_now().await;
    cell.clock.advance(VANISHED_KEPT);
    let gone = async {
        while row(&ann).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    stop.cancel();
    worker.await.unwrap();
}
