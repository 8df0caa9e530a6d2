//! Signs of life: when they come, and what they tell.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use dfs_proto::client::TransportFault;
use dfs_proto::clock::Clock;
use dfs_proto::id::NodeId;

use super::super::heartbeat::Heartbeat;
use super::support::{Cell, DIRECTORY, ONE, TWO};
use super::{advance_until, fetch};
use crate::chunk_store::faulty::{Fault, Mishap, Operation};

fn heartbeat(cell: &Cell) -> Heartbeat {
    Heartbeat {
        nodes: Arc::clone(&cell.nodes),
        host: Some("files.example".into()),
        port: 7400,
        clock: Arc::new(cell.clock.clone()),
    }
}

#[tokio::test]
async fn a_heartbeat_is_repeated_until_it_brings_the_key_and_then_goes_on() {
    let cell = Cell::unheard();
    cell.cut(DIRECTORY, TransportFault::Unreachable);
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(heartbeat(&cell).run(shutdown.clone()));
    advance_until(&cell, || cell.calls(DIRECTORY) >= 6).await;
    assert!(fetch(&cell, ONE, vec![]).await.is_err());
    cell.mend(DIRECTORY);
    let heard = || cell.wire.record.lock().unwrap().heartbeats.len();
    advance_until(&cell, || heard() >= 2).await;
    fetch(&cell, ONE, vec![]).await.unwrap();
    advance_until(&cell, || heard() >= 6).await;
    shutdown.cancel();
    worker.await.unwrap();
    let record = cell.wire.record.lock().unwrap();
    let nodes: Vec<NodeId> = record.heartbeats.iter().map(|beat| beat.address.node).collect();
    assert_eq!(nodes.iter().filter(|node| **node == ONE).count(), nodes.len() / 2);
    let beat = &record.heartbeats[0];
    assert_eq!((beat.address.host.as_deref(), beat.address.port), (Some("files.example"), 7400));
    assert!(beat.total_bytes > 0 && beat.free_bytes <= beat.total_bytes);
}

#[tokio::test]
async fn a_node_whose_disk_is_broken_sends_no_sign_of_life() {
    let cell = Cell::unheard();
    cell.disk(0).faulty.inject(Fault::always(Operation::Space, Mishap::Io));
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(heartbeat(&cell).run(shutdown.clone()));
    advance_until(&cell, || cell.wire.record.lock().unwrap().heartbeats.len() >= 3).await;
    shutdown.cancel();
    worker.await.unwrap();
    let record = cell.wire.record.lock().unwrap();
    assert!(record.heartbeats.iter().all(|beat| beat.address.node == TWO));
}

/// Returns when the worker has done what there was to do, and waits for its next look.
async fn next_look(cell: &Cell) {
    cell.clock.sleeper_until(cell.clock.boottime() + Duration::from_secs(1)).await;
}

#[tokio::test]
async fn free_space_that_changed_is_told_within_a_second_and_otherwise_nothing_is() {
    let cell = Cell::unheard();
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(heartbeat(&cell).run(shutdown.clone()));
    let told = || {
        let record = cell.wire.record.lock().unwrap();
        let of_one = record.heartbeats.iter().filter(|beat| beat.address.node == ONE);
        of_one.map(|beat| beat.free_bytes).collect::<Vec<u64>>()
    };
    next_look(&cell).await;
    let [before] = told()[..] else { panic!("one heartbeat at once") };
    cell.put(ONE, &[b"a few bytes are no news"]).await.unwrap();
    cell.clock.advance(Duration::from_secs(1));
    next_look(&cell).await;
    assert_eq!(told(), [before]);
    let chunks = [vec![1; 1 << 20], vec![2; 1 << 20]];
    cell.put(ONE, &[&chunks[0], &chunks[1]]).await.unwrap();
    cell.clock.advance(Duration::from_secs(1));
    next_look(&cell).await;
    let [_, after] = told()[..] else { panic!("{:?}", told()) };
    assert!(after <= before - (2 << 20), "{before}, then {after}");
    cell.clock.advance(Duration::from_secs(2));
    next_look(&cell).await;
    assert_eq!(told().len(), 2);
    cell.clock.advance(Duration::from_secs(1));
    next_look(&cell).await;
    assert_eq!(told().len(), 3, "the ordinary one");
    shutdown.cancel();
    worker.await.unwrap();
}
