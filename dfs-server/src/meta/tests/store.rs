//! The store with its thread: what its callers see.

use std::future::Future;
use std::sync::Arc;

use dfs_proto::FsError;
use futures_util::future::{join_all, try_join_all};
use tokio::task::spawn_blocking;

use super::support::{
    Count, PROCESS, SPACE, Text, count, faulty, get, open, open_tiny, put, raise, sequence,
};
use crate::meta::faulty::{FaultyEngine, Hold, Moment};
use crate::meta::memory::MemoryEngine;
use crate::meta::sqlite::SqliteEngine;
use crate::meta::{Durability, Engine, Key, Store, Txn, key};

/// Polls `future` once and asserts that it has to wait.
async fn starts<F: Future + Unpin>(future: &mut F) {
    tokio::select! {
        biased;
        _ = future => panic!("it did not wait"),
        () = std::future::ready(()) => {}
    }
}

async fn holding(hold: Hold) -> Hold {
    spawn_blocking(|| {
        hold.wait();
        hold
    })
    .await
    .unwrap()
}

async fn scan(store: &Store) -> Vec<(String, u64)> {
    let from = key::prefix(SPACE, 1, &[]);
    let rows = store.scan::<Count>(from.clone(), key::prefix_end(&from), 100).await.unwrap();
    let name = |bytes: &[u8]| String::from_utf8(key::parts(bytes).to_vec()).unwrap();
    rows.into_iter().map(|(bytes, row)| (name(&bytes), row.0)).collect()
}

#[tokio::test]
async fn writers_that_come_together_share_a_commit() {
    let (engine, faults) = faulty();
    let store = open(&engine);
    put(&store, "n", 0).await;
    let hold = faults.hold_commits(Moment::BeforeApplied);
    let mut all = Box::pin(join_all((0..64).map(|_| raise(&store, "n"))));
    starts(&mut all).await;
    drop(holding(hold).await);
    let mut values = all.await;
    values.sort_unstable();
    assert_eq!(values, (1..=64).collect::<Vec<u64>>());
    assert!(faults.commits() <= 3, "{} commits", faults.commits());
}

#[tokio::test]
async fn a_cold_store_loads_what_a_closure_wants_at_once() {
    let (engine, faults) = faulty();
    for name in ["a", "b", "c"] {
        put(&open(&engine), name, 1).await;
    }
    let store = open(&engine);
    let before = faults.loads();
    let keys = ["a", "b", "c", "absent"].map(count);
    let rows = store.read(|txn| txn.get_all(&keys)).await.unwrap();
    assert_eq!(rows.iter().flatten().count(), 3);
    store.read(|txn| txn.get_all(&keys)).await.unwrap();
    assert_eq!(faults.loads() - before, 1, "rows and absence are remembered");
}

#[tokio::test]
async fn a_store_larger_than_memory_loses_nothing() {
    let (engine, _) = faulty();
    let store = open_tiny(&engine);
    let names: Vec<String> = (0..100).map(|index| format!("n{index}")).collect();
    for _ in 0..3 {
        join_all(names.iter().map(|name| raise(&store, name))).await;
    }
    for name in &names {
        assert_eq!(get(&store, name).await, Some(3));
    }
    let keys: Vec<Key<Count>> = names.iter().map(|name| count(name)).collect();
    let sum = store.read(|txn| {
        let mut sum = 0;
        for key in &keys {
            sum += txn.get(key)?.map_or(0, |row| row.0);
        }
        Ok(sum)
    });
    assert_eq!(sum.await, Ok(300), "a closure may need more rows than the cache keeps");
    put(&store, "n0", 1).await;
    assert!(store.rows_in_memory() <= 110, "{} rows", store.rows_in_memory());
    for index in 0..20 {
        put(&store, &format!("n{index}"), 1).await;
    }
    assert!(store.rows_in_memory() <= 3, "{} rows", store.rows_in_memory());
}

/// Two rows that every mutation keeps equal, read while they change and are evicted.
async fn pairs_stay_equal(engine: Arc<impl Engine>) {
    const ROUNDS: u64 = 300;
    let store = open_tiny(&engine);
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for round in 1..=ROUNDS {
                let work = move |txn: &mut Txn<'_>| {
                    txn.put(&count("left"), Count(round));
                    txn.put(&count("right"), Count(round));
                    txn.put(&count(&format!("other{}", round % 7)), Count(round));
                    Ok(())
                };
                store.write(PROCESS, work).await.unwrap();
            }
        }
    });
    let reader = |turned: bool| {
        let store = store.clone();
        async move {
            let names = if turned { ["left", "right"] } else { ["right", "left"] };
            let mut last = 0;
            while last < ROUNDS {
                let pair = store.read(|txn| {
                    let first = txn.get(&count(names[0]))?.map_or(0, |row| row.0);
                    Ok((first, txn.get(&count(names[1]))?.map_or(0, |row| row.0)))
                });
                let (first, second) = pair.await?;
                assert_eq!(first, second, "half a batch");
                assert!(first >= last, "went back from {last} to {first}");
                last = first;
                get(&store, &format!("other{}", last % 5)).await;
                // What is in memory needs no wait; a worker's other tasks need their turn.
                tokio::task::yield_now().await;
            }
            Ok::<_, FsError>(())
        }
    };
    let readers = try_join_all([true, false].map(|turned| tokio::spawn(reader(turned))));
    for result in readers.await.unwrap() {
        result.unwrap();
    }
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_never_see_half_a_batch_of_memory() {
    pairs_stay_equal(Arc::new(MemoryEngine::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn readers_never_see_half_a_batch_of_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    pairs_stay_equal(Arc::new(SqliteEngine::open(dir.path().join("meta.db")).unwrap())).await;
}

#[tokio::test]
async fn readers_do_not_wait_for_a_commit_in_flight() {
    for moment in [Moment::BeforeApplied, Moment::AfterApplied] {
        let (engine, faults) = faulty();
        put(&open(&engine), "cold", 5).await;
        let store = open(&engine);
        put(&store, "warm", 1).await;
        let hold = faults.hold_commits(moment);
        let mut write = Box::pin(put(&store, "warm", 2));
        starts(&mut write).await;
        let hold = holding(hold).await;
        assert_eq!(get(&store, "warm").await, Some(1));
        assert_eq!(get(&store, "cold").await, Some(5));
        assert_eq!(store.sequence(), sequence(2, 2));
        drop(hold);
        write.await;
        assert_eq!(get(&store, "warm").await, Some(2));
    }
}

#[tokio::test]
async fn a_row_that_is_not_in_memory_is_not_seen_before_its_commit_is_published() {
    let (engine, faults) = faulty();
    put(&open(&engine), "a", 1).await;
    let store = open(&engine);
    let hold = faults.hold_commits(Moment::AfterApplied);
    let mut write = Box::pin(put(&store, "a", 2));
    starts(&mut write).await;
    let hold = holding(hold).await;
    // The engine has the new row; shown now, it would stand beside rows of the state before.
    let reader = store.clone();
    let read = tokio::spawn(async move { (get(&reader, "a").await, reader.sequence()) });
    let scanner = store.clone();
    let scan = tokio::spawn(async move { (scan(&scanner).await, scanner.sequence()) });
    tokio::task::yield_now().await;
    drop(hold);
    assert_eq!(read.await.unwrap(), (Some(2), sequence(2, 2)));
    assert_eq!(scan.await.unwrap(), (vec![("a".to_owned(), 2)], sequence(2, 2)));
    write.await;
}

#[tokio::test]
async fn a_cold_row_of_a_commit_of_unknown_outcome_waits_for_the_engine_only() {
    let (engine, faults) = faulty();
    put(&open(&engine), "a", 1).await;
    let store = open(&engine);
    get(&store, "warm").await;
    let hold = faults.hold_commits(Moment::AfterApplied);
    faults.fail_commit(1, Moment::AfterApplied);
    let writer = store.clone();
    let write = tokio::spawn(async move {
        let work = |txn: &mut Txn<'_>| {
            txn.put(&count("a"), Count(2));
            txn.put(&count("warm"), Count(2));
            Ok(())
        };
        writer.write(PROCESS, work).await
    });
    let hold = holding(hold).await;
    let reader = store.clone();
    let cold = tokio::spawn(async move { reader.read(|txn| txn.get(&count("a"))).await });
    while faults.loads() < 4 {
        tokio::task::yield_now().await;
    }
    faults.fail_reads(true);
    drop(hold);
    assert!(matches!(write.await.unwrap(), Err(FsError::Internal { .. })));
    let cold = cold.await.unwrap();
    assert!(matches!(cold, Err(FsError::Unavailable { .. })), "{cold:?}");
    assert_eq!(get(&store, "warm").await, None, "as last published");
    faults.fail_reads(false);
    // Nobody writes; the reader itself has the writer find out.
    assert_eq!((get(&store, "a").await, get(&store, "warm").await), (Some(2), Some(2)));
}

#[tokio::test]
async fn a_scan_is_ordered_and_bounded() {
    let store = open(&faulty().0);
    for (name, value) in [("b", 2), ("a", 1), ("c", 3)] {
        put(&store, name, value).await;
    }
    let rows = [("a", 1), ("b", 2), ("c", 3)].map(|(name, value)| (name.to_owned(), value));
    assert_eq!(scan(&store).await, rows);
    let (from, to) = (count("a"), count("z"));
    let after = key::after(from.bytes());
    let page = store.scan::<Count>(after, to.bytes().clone(), 1).await.unwrap();
    assert_eq!(page, [(count("b").bytes().to_vec(), Arc::new(Count(2)))]);
    let wrong = store.scan::<Text>(from.bytes().clone(), to.bytes().clone(), 1).await;
    assert!(matches!(wrong, Err(FsError::Internal { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_power_cut_takes_what_was_not_stable_and_nothing_else() {
    let engine = Arc::new(MemoryEngine::new());
    let store = open(&engine);
    put(&store, "a", 1).await;
    put(&store, "b", 1).await;
    store.stable().await.unwrap();
    put(&store, "a", 2).await;
    let store = open(&Arc::new(engine.crash_image()));
    assert_eq!((get(&store, "a").await, get(&store, "b").await), (Some(1), Some(1)));
    // The lost commit was 1.3: its number may come again, but in an epoch of its own.
    assert_eq!((store.sequence(), put(&store, "a", 3).await), (sequence(1, 2), sequence(2, 3)));
    let work = |txn: &mut Txn<'_>| {
        txn.put(&count("b"), Count(4));
        Ok(())
    };
    store.write(Durability::Stable, work).await.unwrap();
}

#[tokio::test]
async fn rows_and_sequence_are_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    for epoch in 1..=3 {
        let store = open(&Arc::new(SqliteEngine::open(&path).unwrap()));
        assert_eq!(store.epoch().0, epoch);
        assert_eq!(raise(&store, "n").await, u64::from(epoch));
        assert_eq!(store.sequence(), sequence(epoch, epoch.into()));
    }
}

#[tokio::test]
async fn a_closed_store_has_done_what_was_queued_and_takes_no_more() {
    let (engine, faults) = faulty();
    let store = open(&engine);
    let hold = faults.hold_commits(Moment::BeforeApplied);
    let mut queued = Box::pin(join_all((0..10).map(|_| raise(&store, "n"))));
    starts(&mut queued).await;
    drop(hold);
    store.close().await;
    let refused = store.stable().await;
    assert!(matches!(refused, Err(FsError::Unavailable { .. })), "{refused:?}");
    assert_eq!(queued.await.into_iter().max(), Some(10));
    assert_eq!(get(&store, "n").await, Some(10));
    store.close().await;
}

#[tokio::test]
async fn a_mutation_whose_caller_is_gone_is_made_all_the_same() {
    let (engine, faults) = faulty();
    let store = open(&engine);
    let hold = faults.hold_commits(Moment::BeforeApplied);
    let mut write = Box::pin(put(&store, "a", 1));
    starts(&mut write).await;
    drop(write);
    drop(hold);
    drop(store);
    assert_eq!(get(&open(&engine), "a").await, Some(1));
}

#[tokio::test]
async fn the_last_handle_may_be_dropped_by_the_writer_itself() {
    let (engine, _): (Arc<FaultyEngine>, _) = faulty();
    let store = open(&engine);
    let inner = store.clone();
    // The work is held up until nobody else has a handle: the writer may be faster than we are.
    let (others, are_gone) = std::sync::mpsc::channel::<()>();
    let mut write = Box::pin(store.write(PROCESS, move |_| {
        let _ = are_gone.recv();
        Ok(inner.epoch())
    }));
    starts(&mut write).await;
    drop(write);
    drop(store);
    drop(others);
    assert_eq!(open(&engine).epoch().0, 2);
}

#[tokio::test]
async fn a_store_that_lost_its_space_answers_nothing() {
    let engine = Arc::new(MemoryEngine::new());
    let old = open(&engine);
    put(&old, "a", 1).await;
    let new = open(&engine);
    let delete = |txn: &mut Txn<'_>| {
        txn.delete(&count("a"));
        Ok(())
    };
    let write = old.write(PROCESS, delete).await;
    assert!(matches!(write, Err(FsError::Unavailable { .. })), "{write:?}");
    let read = old.read(|txn| Ok(txn.get(&count("a"))?.is_some())).await;
    assert!(matches!(read, Err(FsError::Unavailable { .. })), "{read:?}");
    assert_eq!(get(&new, "a").await, Some(1));
}

#[tokio::test]
async fn what_is_not_in_a_range_that_was_just_begun_is_known_without_a_look() {
    let (engine, faults) = faulty();
    let store = open(&engine);
    let range = key::prefix(SPACE, 1, &[&9u64.to_be_bytes()]);
    let name = |name: &str| Key::<Count>::new(SPACE, 1, &[&9u64.to_be_bytes(), name.as_bytes()]);
    let (begun, first) = (range.clone(), name("first"));
    let begin = move |txn: &mut Txn<'_>| {
        txn.begin_range(begun.clone());
        txn.put(&first, Count(1));
        Ok(())
    };
    store.write(PROCESS, begin).await.unwrap();
    let before = faults.loads();
    let keys = [name("first"), name("second"), name("third")];
    let rows = store.read(|txn| txn.get_all(&keys)).await.unwrap();
    assert_eq!(rows.iter().flatten().count(), 1);
    assert_eq!(faults.loads(), before);
    let elsewhere = Key::<Count>::new(SPACE, 1, &[&10u64.to_be_bytes(), b"second"]);
    store.read(|txn| txn.get(&elsewhere)).await.unwrap();
    assert_eq!(faults.loads(), before + 1, "another range is looked at");
}
