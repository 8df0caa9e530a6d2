//! The file service: two nodes and a directory double, in one process.

mod heartbeat;
mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use dfs_proto::FsError;
use dfs_proto::capability::{CapabilityFault, MacKey};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::TransportFault;
use dfs_proto::clock::Clock;
use dfs_proto::directory::Durability;
use dfs_proto::file::{ChunkRef, Fetch, Missing, PutChunks, Replicate, SyncChunks};
use dfs_proto::id::NodeId;
use dfs_proto::limits::{CHUNK_BYTES_MAX, CHUNKS_PER_REQUEST_MAX, PAYLOAD_BYTES_MAX};
use dfs_proto::manifest::Extent;
use dfs_proto::promise::{DirChange, News};
use dfs_proto::version::DataVersion;

use crate::chunk_store::ChunkStore;
use crate::chunk_store::conformance::Damage;
use crate::chunk_store::faulty::{Fault, Mishap, Operation};
use crate::request::{Context, NodeProof, Peer};
use support::{Cell, DEADLINE, DIRECTORY, ONE, TWO, chunk_ref, fid};

fn hashes(chunks: &[&[u8]]) -> Vec<ChunkHash> {
    chunks.iter().map(|bytes| ChunkHash::of(bytes)).collect()
}

async fn fetch(cell: &Cell, node: NodeId, chunks: Vec<ChunkRef>) -> Result<Bytes, FsError> {
    let request = Fetch { node, capability: cell.read_capability(1), chunks };
    let (_, payload) = cell.nodes.fetch(&cell.context(), request).await?;
    Ok(payload.concat().into())
}

#[tokio::test]
async fn a_small_file_is_stored_on_both_nodes_and_committed_by_one_request() {
    let cell = Cell::new();
    let reply = cell.store(&[b"hello ", b"world"]).await.unwrap();
    assert_eq!(reply.attr.size, 11);
    let [commit] = &cell.commits()[..] else { panic!("one commit") };
    assert_eq!(commit.held_by, [ONE, TWO]);
    assert_eq!(commit.stored, hashes(&[b"hello ", b"world"]));
    assert_eq!(commit.lowest_unanswered, 7);
    for node in [ONE, TWO] {
        let chunks = vec![chunk_ref(b"world"), chunk_ref(b"hello ")];
        assert_eq!(&fetch(&cell, node, chunks).await.unwrap()[..], b"worldhello ");
    }
    assert_eq!(cell.calls(TWO), 1, "one request to the replica");
}

#[tokio::test]
async fn what_the_directory_says_beside_its_answer_goes_to_the_client() {
    let cell = Cell::new();
    let (dir, sequence) = (fid(5), dfs_proto::version::Sequence::default());
    let change =
        DirChange { dir, attr: None, names: Vec::new(), is_cut: true, is_made: false, sequence };
    let news = News { promise: None, changes: vec![change] };
    cell.tell(news.clone());
    let (request, payload) = cell.request(&[b"x"], &[b"x"]);
    for refusal in [None, Some(FsError::Fenced)] {
        let context = cell.context();
        let is_refused = refusal.is_some();
        refusal.into_iter().for_each(|error| cell.refuse(error));
        let stored = cell.nodes.store(&context, request.clone(), payload.clone()).await;
        assert_eq!(stored.is_err(), is_refused);
        assert_eq!(context.news.take(), news);
    }
}

#[tokio::test]
async fn an_empty_version_is_committed_without_chunks() {
    let cell = Cell::new();
    cell.store(&[]).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE, TWO]);
    assert!(cell.commits()[0].stored.is_empty());
}

#[tokio::test]
async fn forged_expired_and_foreign_capabilities_are_refused() {
    let cell = Cell::new();
    let (request, payload) = cell.request(&[b"x"], &[b"x"]);
    let refused = |fault| Err(FsError::CapabilityRefused(fault));
    let mut forged = request.clone();
    forged.change.capability.right.fid = fid(2);
    let result = cell.send(forged, payload.clone()).await;
    assert_eq!(result, refused(CapabilityFault::Forged), "another file");
    let mut forged = request.clone();
    forged.change.capability.mac.0[0] ^= 1;
    assert_eq!(cell.send(forged, payload.clone()).await, refused(CapabilityFault::Forged));
    let mut read = cell.read_capability(1);
    read.right.fid = fid(2);
    let fetch = Fetch { node: ONE, capability: read, chunks: vec![] };
    let result = cell.nodes.fetch(&cell.context(), fetch).await.map(|_| ());
    assert_eq!(result, refused(CapabilityFault::Forged).map(|_| ()));
    cell.clock.advance(Duration::from_secs(60));
    assert_eq!(cell.send(request, payload).await, refused(CapabilityFault::Expired));
    assert!(cell.commits().is_empty());
    assert_eq!(cell.disk(0).memory.count() + cell.disk(1).memory.count(), 0);
}

#[tokio::test]
async fn a_capability_for_one_file_reads_no_chunk_of_another() {
    let cell = Cell::new();
    cell.store(&[b"secret"]).await.unwrap();
    let capability = cell.read_capability(2);
    let request = Fetch { node: ONE, capability, chunks: vec![chunk_ref(b"secret")] };
    let error = cell.nodes.fetch(&cell.context(), request).await.unwrap_err();
    assert_eq!(error, FsError::ChunkMissing(ChunkHash::of(b"secret")));
}

#[tokio::test]
async fn a_node_that_the_directory_did_not_choose_takes_nothing() {
    let cell = Cell::new();
    let (mut request, payload) = cell.request(&[b"x"], &[b"x"]);
    request.change.capability = cell.write_capability(&[TWO]);
    let error = cell.send(request, payload).await.unwrap_err();
    assert!(matches!(error, FsError::InvalidArgument { .. }), "{error}");
    assert_eq!(cell.disk(0).memory.count(), 0);
}

#[tokio::test]
async fn bytes_that_their_hash_does_not_name_are_refused_and_not_stored() {
    let cell = Cell::new();
    let (request, _) = cell.request(&[b"right"], &[b"right"]);
    let error = cell.send(request, Bytes::from_static(b"wrong")).await.unwrap_err();
    assert_eq!(error, FsError::ChunkCorrupt(ChunkHash::of(b"right")));
    assert!(cell.commits().is_empty());
    assert_eq!(cell.disk(0).memory.count() + cell.disk(1).memory.count(), 0);
    cell.store(&[b"right"]).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE, TWO], "a client's fault is not the replica's");
}

#[tokio::test]
async fn a_dead_replica_is_left_out_and_the_commit_goes_on() {
    let cell = Cell::new();
    cell.cut(TWO, TransportFault::Unreachable);
    cell.store(&[b"x"]).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE]);
    cell.mend(TWO);
    cell.store(&[b"y"]).await.unwrap();
    assert_eq!(cell.commits()[1].held_by, [ONE, TWO]);
}

#[tokio::test]
async fn a_replica_that_hangs_is_not_asked_for_a_while() {
    let cell = Cell::new();
    cell.cut(TWO, TransportFault::TimedOut);
    cell.store(&[b"x"]).await.unwrap();
    cell.mend(TWO);
    cell.store(&[b"y"]).await.unwrap();
    assert_eq!((cell.calls(TWO), &cell.commits()[1].held_by[..]), (1, &[ONE][..]));
    cell.clock.advance(Duration::from_secs(6));
    cell.store(&[b"z"]).await.unwrap();
    assert_eq!(cell.commits()[2].held_by, [ONE, TWO]);
}

#[tokio::test]
async fn one_full_disk_is_left_out_and_two_are_no_space_and_no_commit() {
    let cell = Cell::new();
    cell.disk(0).faulty.inject(Fault::always(Operation::Put, Mishap::NoSpace));
    cell.store(&[b"x"]).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [TWO]);
    cell.disk(1).faulty.inject(Fault::always(Operation::Put, Mishap::NoSpace));
    let error = cell.store(&[b"y"]).await.unwrap_err();
    assert!(matches!(error, FsError::NoSpace { .. }), "{error}");
    assert_eq!(cell.commits().len(), 1);
    cell.disk(0).faulty.heal();
    cell.store(&[b"y"]).await.unwrap();
    assert_eq!(cell.commits()[1].held_by, [ONE]);
}

#[tokio::test]
async fn chunks_put_ahead_are_on_both_nodes_and_a_full_first_node_says_so() {
    let cell = Cell::new();
    assert_eq!(cell.put(TWO, &[b"a", b"bc"]).await, Ok(vec![TWO, ONE]));
    assert!(cell.disk(0).has(b"bc") && cell.disk(1).has(b"a"));
    cell.disk(0).faulty.inject(Fault::always(Operation::Put, Mishap::NoSpace));
    assert!(matches!(cell.put(ONE, &[b"d"]).await, Err(FsError::NoSpace { .. })));
    assert_eq!(cell.put(TWO, &[b"d"]).await, Ok(vec![TWO]));
}

#[tokio::test]
async fn a_broken_disk_is_an_incident_not_an_answer_about_chunks() {
    let cell = Cell::new();
    cell.store(&[b"x"]).await.unwrap();
    cell.disk(0).faulty.inject(Fault::next(Operation::Get, Mishap::Io));
    let error = fetch(&cell, ONE, vec![chunk_ref(b"x")]).await.unwrap_err();
    assert!(matches!(error, FsError::Internal { .. }), "{error}");
}

#[tokio::test]
async fn chunks_put_before_are_copied_to_a_replica_that_lacks_them() {
    let cell = Cell::new();
    cell.cut(TWO, TransportFault::Unreachable);
    assert_eq!(cell.put(ONE, &[b"early", b"bird"]).await, Ok(vec![ONE]));
    cell.mend(TWO);
    let (request, payload) = cell.request(&[b"early", b"bird", b"late"], &[b"late"]);
    cell.send(request, payload).await.unwrap();
    let commit = &cell.commits()[0];
    assert_eq!(commit.held_by, [ONE, TWO]);
    assert_eq!(commit.stored, hashes(&[b"late", b"early", b"bird"]));
    assert!(cell.disk(1).has(b"early") && cell.disk(1).has(b"bird"));
}

#[tokio::test]
async fn more_than_one_payload_is_copied_in_batches() {
    let cell = Cell::new();
    let chunks: Vec<Vec<u8>> = (0..10).map(|n| vec![n; CHUNK_BYTES_MAX as usize]).collect();
    let chunks: Vec<&[u8]> = chunks.iter().map(|bytes| &bytes[..]).collect();
    cell.cut(TWO, TransportFault::Unreachable);
    cell.put(ONE, &chunks[..5]).await.unwrap();
    cell.put(ONE, &chunks[5..]).await.unwrap();
    cell.mend(TWO);
    let before = cell.calls(TWO);
    let (request, payload) = cell.request(&chunks, &[]);
    cell.send(request, payload).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE, TWO]);
    assert_eq!(cell.disk(1).memory.count(), chunks.len());
    assert_eq!(cell.calls(TWO) - before, 3, "one question and two batches");
}

#[tokio::test]
async fn a_replica_that_fails_while_it_is_given_chunks_is_left_out() {
    let cell = Cell::new();
    cell.cut(TWO, TransportFault::Unreachable);
    cell.put(ONE, &[b"early"]).await.unwrap();
    cell.mend(TWO);
    cell.disk(1).faulty.inject(Fault::next(Operation::Put, Mishap::Io));
    let (request, payload) = cell.request(&[b"early"], &[]);
    cell.send(request, payload).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE]);
}

#[tokio::test]
async fn what_this_node_lacks_is_asked_for_and_nothing_is_committed() {
    let cell = Cell::new();
    cell.put(ONE, &[b"there"]).await.unwrap();
    let (request, payload) = cell.request(&[b"there", b"lost", b"late"], &[b"late"]);
    let error = cell.send(request.clone(), payload.clone()).await.unwrap_err();
    assert_eq!(error, FsError::NeedChunks(hashes(&[b"lost"])));
    assert!(cell.commits().is_empty());
    cell.put(ONE, &[b"lost"]).await.unwrap();
    cell.send(request, payload).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE, TWO]);
}

#[tokio::test]
async fn a_damaged_chunk_put_before_is_asked_for_again_and_healed() {
    for damage in [Damage::FlippedBit, Damage::CutShort, Damage::Emptied] {
        let cell = Cell::new();
        cell.cut(TWO, TransportFault::Unreachable);
        cell.put(ONE, &[b"early"]).await.unwrap();
        cell.mend(TWO);
        let hash = ChunkHash::of(b"early");
        cell.disk(0).memory.tamper(fid(1), hash, |bytes| damage.apply(bytes));
        let (request, payload) = cell.request(&[b"early"], &[]);
        let error = cell.send(request.clone(), payload.clone()).await.unwrap_err();
        assert_eq!(error, FsError::NeedChunks(vec![hash]), "{damage:?}");
        cell.put(ONE, &[b"early"]).await.unwrap();
        cell.send(request, payload).await.unwrap();
        assert_eq!(fetch(&cell, ONE, vec![chunk_ref(b"early")]).await.unwrap(), "early");
    }
}

#[tokio::test]
async fn a_stable_store_syncs_both_nodes_before_the_commit() {
    let cell = Cell::new();
    cell.put(ONE, &[b"early"]).await.unwrap();
    let (mut request, payload) = cell.request(&[b"early", b"late"], &[b"late"]);
    request.change.durability = Durability::Stable;
    cell.send(request, payload).await.unwrap();
    assert_eq!(cell.wire.record.lock().unwrap().syncs, [[1, 1]]);
    for disk in [0, 1] {
        cell.disk(disk).memory.lose_power();
        assert!(cell.disk(disk).has(b"early") && cell.disk(disk).has(b"late"));
    }
}

#[tokio::test]
async fn a_stable_store_covers_chunks_of_earlier_versions_that_were_only_closed() {
    let cell = Cell::new();
    cell.store(&[b"old"]).await.unwrap();
    let (mut request, payload) = cell.request(&[b"old", b"new"], &[b"new"]);
    request.put_before.clear();
    request.change.durability = Durability::Stable;
    cell.send(request, payload).await.unwrap();
    assert_eq!(cell.commits()[1].stored, hashes(&[b"new"]));
    cell.disk(0).memory.lose_power();
    cell.disk(1).memory.lose_power();
    assert!(cell.disk(0).has(b"old") && cell.disk(1).has(b"old"));
}

#[tokio::test]
async fn a_node_that_cannot_sync_is_left_out_and_none_that_can_is_an_error() {
    let cell = Cell::new();
    let (mut request, payload) = cell.request(&[b"x"], &[b"x"]);
    request.change.durability = Durability::Stable;
    cell.disk(1).faulty.inject(Fault::always(Operation::Sync, Mishap::Io));
    cell.send(request.clone(), payload.clone()).await.unwrap();
    assert_eq!(cell.commits()[0].held_by, [ONE]);
    cell.disk(0).faulty.inject(Fault::always(Operation::Sync, Mishap::Io));
    let error = cell.send(request, payload).await.unwrap_err();
    assert!(matches!(error, FsError::Internal { .. }), "{error}");
    assert_eq!(cell.commits().len(), 1);
}

#[tokio::test]
async fn the_directory_s_refusal_reaches_the_client() {
    let cell = Cell::new();
    let refusal = FsError::Conflict { current: DataVersion::default() };
    cell.refuse(refusal.clone());
    assert_eq!(cell.store(&[b"x"]).await, Err(refusal));
    assert_eq!(cell.calls(DIRECTORY), 1);
}

#[tokio::test]
async fn a_commit_waits_for_a_directory_that_comes_back() {
    let cell = Cell::new();
    cell.cut(DIRECTORY, TransportFault::Unreachable);
    let store = tokio::spawn({
        let cell = cell.clone();
        async move { cell.store(&[b"x"]).await }
    });
    while cell.calls(DIRECTORY) == 0 {
        cell.wire.is_called.notified().await;
    }
    cell.mend(DIRECTORY);
    advance_until(&cell, || store.is_finished()).await;
    store.await.unwrap().unwrap();
    assert_eq!(cell.commits().len(), 1);
}

#[tokio::test]
async fn a_commit_gives_up_at_the_request_s_deadline() {
    let cell = Cell::new();
    cell.cut(DIRECTORY, TransportFault::Unreachable);
    let started = cell.clock.boottime();
    let store = tokio::spawn({
        let cell = cell.clone();
        async move { cell.store(&[b"x"]).await }
    });
    while cell.calls(DIRECTORY) == 0 {
        cell.wire.is_called.notified().await;
    }
    advance_until(&cell, || store.is_finished()).await;
    let error = store.await.unwrap().unwrap_err();
    assert!(matches!(error, FsError::Unavailable { .. }), "{error}");
    assert!(cell.clock.boottime() - started >= DEADLINE - Duration::from_secs(4));
}

/// Moves time on, a little whenever everybody waits for it.
async fn advance_until(cell: &Cell, is_done: impl Fn() -> bool) {
    while !is_done() {
        cell.clock.advance(Duration::from_millis(10));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn missing_and_damaged_chunks_are_told_apart() {
    let cell = Cell::new();
    cell.store(&[b"one", b"two"]).await.unwrap();
    let (one, two) = (ChunkHash::of(b"one"), ChunkHash::of(b"two"));
    let wanted = || vec![chunk_ref(b"one"), chunk_ref(b"two")];
    cell.disk(0).memory.tamper(fid(1), two, |bytes| Damage::FlippedBit.apply(bytes));
    assert_eq!(fetch(&cell, ONE, wanted()).await, Err(FsError::ChunkCorrupt(two)));
    cell.disk(0).memory.delete(fid(1), one).unwrap();
    assert_eq!(fetch(&cell, ONE, wanted()).await, Err(FsError::ChunkMissing(one)));
    assert_eq!(fetch(&cell, TWO, wanted()).await.unwrap(), "onetwo");
}

#[tokio::test]
async fn requests_beyond_the_limits_are_refused() {
    let cell = Cell::new();
    let of_length = |length| ChunkRef { hash: ChunkHash::of(b""), length };
    for length in [0, CHUNK_BYTES_MAX + 1, u32::MAX] {
        let error = fetch(&cell, ONE, vec![of_length(length)]).await.unwrap_err();
        assert!(matches!(error, FsError::Malformed { .. }), "{error}");
    }
    let many = CHUNKS_PER_REQUEST_MAX + 1;
    let large = PAYLOAD_BYTES_MAX / CHUNK_BYTES_MAX as usize + 1;
    for chunks in [vec![of_length(1); many], vec![of_length(CHUNK_BYTES_MAX); large]] {
        let error = fetch(&cell, ONE, chunks).await.unwrap_err();
        assert!(matches!(error, FsError::TooLarge { .. }), "{error}");
    }
    let (node, chunks) = (ONE, vec![ChunkHash::of(b""); many]);
    let missing = Missing { node, fid: fid(1), chunks: chunks.clone() };
    let error = cell.nodes.missing(&cell.context(), missing).await.unwrap_err();
    assert!(matches!(error, FsError::TooLarge { .. }), "{error}");
    let sync = SyncChunks { node, fid: fid(1), chunks };
    let error = cell.nodes.sync(&cell.context(), sync).await.unwrap_err();
    assert!(matches!(error, FsError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_payload_that_is_not_exactly_its_chunks_is_refused() {
    let cell = Cell::new();
    let put = |payload: &'static [u8]| {
        let capability = cell.write_capability(&[ONE, TWO]);
        let request = PutChunks { node: ONE, capability, chunks: vec![chunk_ref(b"abc")] };
        let context = cell.context();
        let nodes = Arc::clone(&cell.nodes);
        async move { nodes.put(&context, request, Bytes::from_static(payload)).await }
    };
    for payload in [&b""[..], b"ab", b"abcd"] {
        let error = put(payload).await.unwrap_err();
        assert!(matches!(error, FsError::Malformed { .. }), "{error}");
    }
    put(b"abc").await.unwrap();
}

#[tokio::test]
async fn a_manifest_that_lies_about_its_chunks_is_refused() {
    let cell = Cell::new();
    let (mut request, payload) = cell.request(&[b"abc"], &[b"abc"]);
    let hash = ChunkHash::of(b"abc");
    request.change.manifest.extents = vec![Extent::Chunk { hash, length: 4 }];
    let error = cell.send(request.clone(), payload.clone()).await.unwrap_err();
    assert!(matches!(error, FsError::Malformed { .. }), "another length: {error}");
    request.change.manifest.extents = vec![Extent::Chunk { hash, length: 0 }];
    let error = cell.send(request, payload).await.unwrap_err();
    assert!(matches!(error, FsError::Malformed { .. }), "impossible: {error}");
    let (mut request, payload) = cell.request(&[b"abc"], &[]);
    cell.put(ONE, &[b"abc"]).await.unwrap();
    request.change.manifest.extents = vec![Extent::Chunk { hash, length: 4 }];
    let error = cell.send(request, payload).await.unwrap_err();
    assert_eq!(error, FsError::NeedChunks(vec![hash]));
    assert!(cell.commits().is_empty());
}

#[tokio::test]
async fn a_node_of_another_process_is_not_available_here() {
    let cell = Cell::new();
    let error = fetch(&cell, NodeId(9), vec![]).await.unwrap_err();
    assert!(matches!(&error, FsError::Unavailable { what } if what.contains("node-9")), "{error}");
}

#[tokio::test]
async fn only_file_nodes_may_replicate() {
    let cell = Cell::new();
    let context =
        Context { peer: Peer::Node(NodeProof::new([].into(), |_| true)), ..cell.context() };
    let chunks = vec![chunk_ref(b"x")];
    let request = Replicate { node: ONE, fid: fid(1), chunks };
    let result = cell.nodes.replicate(&context, request, Bytes::from_static(b"x")).await;
    assert_eq!(result, Err(FsError::NotPermitted));
}

#[tokio::test]
async fn before_the_first_heartbeat_requests_wait_for_the_directory() {
    let cell = Cell::unheard();
    let error = fetch(&cell, ONE, vec![]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("directory server"), "{error}");
    assert!(cell.store(&[b"x"]).await.unwrap_err().is_transient());
}

#[test]
fn a_new_key_replaces_the_old_one_and_is_not_shown() {
    let key = super::CapabilityKey::default();
    assert!(key.current().is_err());
    key.install(MacKey([1; 32]));
    key.install(MacKey([2; 32]));
    assert_eq!(key.current(), Ok(MacKey([2; 32])));
    assert!(!format!("{key:?}").contains('2'));
}
