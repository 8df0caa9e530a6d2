//! Fetching from a cell in memory whose replicas fail.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::capability::CapabilityFault;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::clock::SystemClock;
use dfs_proto::directory::OpenAccess;
use dfs_proto::id::FileId;
use futures_util::TryStreamExt;

use super::Piece;
use crate::cache::{CacheError, ContentError, Limits};
use crate::metrics::Counter;
use crate::testing::client::{TEST_LIMITS, TestClient, read_file};
use crate::testing::fake_cell::{FakeCell, NODES};

/// A cell, a client that has written, and one that has not read yet.
struct World {
    cell: FakeCell,
    _dirs: [tempfile::TempDir; 2],
    writer: TestClient,
    reader: TestClient,
}

impl World {
    async fn new() -> World {
        World::with_reader_limits(TEST_LIMITS).await
    }

    async fn with_reader_limits(limits: Limits) -> World {
        let clock = Arc::new(SystemClock);
        let cell = FakeCell::new(clock.clone());
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let dial = Arc::new(cell.clone());
        let writer = TestClient::start(dirs[0].path(), dial.clone(), clock.clone()).await;
        let reader = TestClient::with_limits(dirs[1].path(), dial, clock, limits).await;
        World { cell, _dirs: dirs, writer, reader }
    }

    fn hashes(&self, fid: FileId) -> Vec<ChunkHash> {
        self.cell.cell().files[&fid].manifest.chunks().map(|chunk| chunk.hash).collect()
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 5_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn a_cold_small_file_costs_two_requests_and_a_warm_one_the_open() {
    let world = World::new().await;
    let fid = world.writer.put("a", b"hello").await.unwrap();
    let before = world.cell.calls_but_sessions().len();
    assert_eq!(world.reader.read(fid).await.unwrap(), b"hello");
    assert_eq!(world.cell.calls_but_sessions()[before..], ["directory.open", "file.fetch"]);
    assert_eq!(world.reader.read(fid).await.unwrap(), b"hello");
    assert_eq!(world.cell.calls_but_sessions()[before + 2..], ["directory.open"]);
}

#[tokio::test]
async fn an_empty_file_is_fetched_without_a_request_to_a_node() {
    let world = World::new().await;
    let fid = world.writer.put("a", b"").await.unwrap();
    assert_eq!(world.reader.read(fid).await.unwrap(), b"");
    assert_eq!(world.cell.call_count("file.fetch"), 0);
}

#[tokio::test]
async fn many_opens_at_once_fetch_once() {
    let world = World::new().await;
    let fid = world.writer.put("a", b"hello").await.unwrap();
    let reads = (0..8).map(|_| world.reader.open_read(fid));
    let files = futures_util::future::try_join_all(reads).await.unwrap();
    assert!(files.iter().all(|clean| clean.file.id() == files[0].file.id()));
    assert_eq!(world.cell.call_count("file.fetch"), 1);
}

#[tokio::test]
async fn a_replica_that_is_down_or_lacks_a_chunk_or_has_it_damaged_is_left_for_the_other() {
    for node in NODES {
        for fault in ["down", "missing", "corrupt"] {
            let world = World::new().await;
            let content = noise(3 << 20);
            let fid = world.writer.put("a", &content).await.unwrap();
            for hash in world.hashes(fid) {
                let key = (node, fid, hash);
                let mut cell = world.cell.cell();
                match fault {
                    "down" => drop(cell.down.insert(node)),
                    "missing" => drop(cell.chunks.remove(&key)),
                    _ => {
                        let length = cell.chunks[&key].len();
                        cell.chunks.insert(key, Bytes::from(vec![0; length]));
                    }
                }
            }
            let read = world.reader.read(fid).await.unwrap();
            assert!(read == content, "{node} {fault}");
        }
    }
}

#[tokio::test]
async fn chunks_of_which_each_replica_has_only_some_are_put_together() {
    let world = World::new().await;
    let content = noise(3 << 20);
    let fid = world.writer.put("a", &content).await.unwrap();
    for (index, hash) in world.hashes(fid).into_iter().enumerate() {
        world.cell.cell().chunks.remove(&(NODES[index % 2], fid, hash));
    }
    assert!(world.reader.read(fid).await.unwrap() == content);
}

#[tokio::test]
async fn a_chunk_that_nobody_has_is_an_error_and_nothing_is_recorded() {
    let world = World::new().await;
    let fid = world.writer.put("a", b"hello").await.unwrap();
    let hash = world.hashes(fid)[0];
    world.cell.cell().chunks.remove(&(NODES[0], fid, hash));
    world.cell.cell().chunks.insert((NODES[1], fid, hash), Bytes::from_static(b"jello"));
    let error = world.reader.read(fid).await.unwrap_err();
    assert!(matches!(error, ContentError::Fs(FsError::ChunkCorrupt(_))), "{error}");
    assert_eq!(world.reader.cache.usage().entry_count, 0);
}

#[tokio::test]
async fn a_new_version_takes_what_the_cached_one_has() {
    let world = World::new().await;
    let mut content = noise(16 << 20);
    let fid = world.writer.put("a", &content).await.unwrap();
    assert!(world.reader.read(fid).await.unwrap() == content);
    let old = world.reader.cache.clean(fid).await.unwrap();
    let working = world.writer.open_write(fid).await.unwrap();
    working.write_at(4 << 20, &[1; 4096]).unwrap();
    world.writer.close(working).await.unwrap();
    let metrics = world.reader.session.metrics();
    let before = metrics.value(Counter::FetchedBytes);
    let first = content.clone();
    content[4 << 20..(4 << 20) + 4096].fill(1);
    assert!(world.reader.read(fid).await.unwrap() == content);
    let fetched = metrics.value(Counter::FetchedBytes) - before;
    assert!(fetched <= 1 << 20, "{fetched} bytes");
    assert!(read_file(&old.file) == first, "who has the old version open keeps it");
}

#[tokio::test]
async fn a_damaged_cache_file_is_fetched_again() {
    let world = World::new().await;
    let fid = world.writer.put("a", b"hello").await.unwrap();
    let path = world.reader.open_read(fid).await.unwrap().file.path().to_owned();
    std::fs::write(path, b"jello").unwrap();
    assert_eq!(world.reader.read(fid).await.unwrap(), b"hello");
    assert_eq!(world.reader.session.metrics().value(Counter::CacheDropCorrupt), 1);
}

#[tokio::test]
async fn holes_take_no_space_in_the_cache() {
    let world = World::new().await;
    let working = world.writer.create("sparse").await.unwrap();
    working.set_len(1 << 30).unwrap();
    working.write_at(100 << 20, b"middle").unwrap();
    let fid = working.fid();
    world.writer.close(working).await.unwrap();
    let clean = world.reader.open_read(fid).await.unwrap();
    assert_eq!(clean.file.size().unwrap(), 1 << 30);
    assert!(clean.file.disk_bytes().unwrap() <= 128 << 10);
    let mut buffer = [0; 8];
    clean.file.read_at(&mut buffer, (100 << 20) - 1).unwrap();
    assert_eq!(&buffer, b"\0middle\0");
    assert!(world.reader.cache.clean(fid).await.is_some());
}

#[tokio::test]
async fn an_expired_read_capability_is_renewed_on_the_way() {
    let world = World::new().await;
    let fid = world.writer.put("a", b"hello").await.unwrap();
    world.cell.refuse("file.fetch", FsError::CapabilityRefused(CapabilityFault::Expired));
    assert_eq!(world.reader.read(fid).await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_file_that_does_not_fit_the_cache_is_refused_with_a_remedy() {
    let limits = Limits { size_bytes: 1 << 20, ..TEST_LIMITS };
    let world = World::with_reader_limits(limits).await;
    let fid = world.writer.put("a", &noise(3 << 20)).await.unwrap();
    let error = world.reader.read(fid).await.unwrap_err();
    assert!(matches!(error, ContentError::Cache(CacheError::Full { .. })));
    assert!(error.to_string().contains("--cache-size"), "{error}");
}

#[tokio::test]
async fn pieces_come_in_file_order_with_their_holes() {
    let world = World::new().await;
    let content = noise(6 << 20);
    let working = world.writer.create("a").await.unwrap();
    working.write_at(0, &content).unwrap();
    working.set_len(8 << 20).unwrap();
    let fid = working.fid();
    world.writer.close(working).await.unwrap();
    let reply = world.reader.ask_open(fid, OpenAccess::Read, None).await.unwrap();
    let pieces = world.reader.fetcher.pieces(None, &reply).unwrap();
    let pieces: Vec<Piece> = pieces.try_collect().await.unwrap();
    let mut read = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data { offset, bytes } => {
                assert_eq!(offset, read.len() as u64);
                read.extend_from_slice(&bytes);
            }
            Piece::Hole { offset, length } => {
                assert_eq!((offset, length), (6 << 20, 2 << 20));
            }
        }
    }
    assert!(read == content);
}
