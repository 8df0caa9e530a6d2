//! File nodes that remember what they were asked, and what fsync and `where` make of them.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use dfs_proto::FsError;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::{Client, InProcess};
use dfs_proto::clock::ManualClock;
use dfs_proto::directory::{Durability, Fsync, Where};
use dfs_proto::file::{Missing, SyncChunks};
use dfs_proto::id::FileId;

use super::cell::{Cell, NoTickets, ONE, TWO, User, VOLUME, manifest};
use crate::directory::rows::{self, VolumeRow};
use crate::rpc::Router;

/// A file node that holds no bytes, only names of chunks. Cheap to clone.
#[derive(Clone, Default)]
pub struct FakeNode {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    held: HashSet<ChunkHash>,
    synced: HashSet<ChunkHash>,
    is_away: bool,
}

impl fmt::Debug for FakeNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeNode")
    }
}

impl FakeNode {
    fn set_away(&self, is_away: bool) {
        self.state.lock().unwrap().is_away = is_away;
    }

    fn hold(&self, chunks: &[&[u8]]) {
        self.state.lock().unwrap().held.extend(chunks.iter().map(|bytes| ChunkHash::of(bytes)));
    }

    fn has_synced(&self, chunk: &[u8]) -> bool {
        self.state.lock().unwrap().synced.contains(&ChunkHash::of(chunk))
    }

    fn sync(&self, chunks: Vec<ChunkHash>) -> Result<(), FsError> {
        let mut state = self.state.lock().unwrap();
        match chunks.iter().find(|chunk| !state.held.contains(chunk)) {
            Some(chunk) => Err(FsError::ChunkMissing(*chunk)),
            None => {
                state.synced.extend(chunks);
                Ok(())
            }
        }
    }

    /// How the directory calls it.
    pub fn client(&self, clock: &ManualClock) -> Result<Client, FsError> {
        if self.state.lock().unwrap().is_away {
            return Err(FsError::unavailable("the node is away"));
        }
        let mut router = Router::new(Arc::new(NoTickets), Arc::new(clock.clone()));
        let node = self.clone();
        router.unary(move |_context, request: SyncChunks| {
            let synced = node.sync(request.chunks);
            async move { synced }
        });
        let node = self.clone();
        router.unary(move |_context, request: Missing| {
            let held = node.state.lock().unwrap().held.clone();
            let missing = request.chunks.into_iter().filter(|chunk| !held.contains(chunk));
            let missing: Vec<ChunkHash> = missing.collect();
            async move { Ok(missing) }
        });
        let transport = InProcess::default();
        transport.bind(Arc::new(router));
        Ok(Client::new(Arc::new(transport)))
    }
}

/// A file of two chunks on both nodes.
async fn stored() -> (Cell, User, FileId) {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let made = ann.create(cell.root, "f", true).await.unwrap().open.write.unwrap();
    ann.store(&made.capability, &[b"a", b"b"]).await.unwrap();
    cell.nodes.iter().for_each(|node| node.hold(&[b"a", b"b"]));
    (cell, ann, made.capability.right.fid)
}

#[tokio::test]
async fn fsync_reaches_every_live_replica() {
    let (cell, _ann, fid) = stored().await;
    cell.directory.fsync(Fsync { fid }).await.unwrap();
    assert!(cell.nodes.iter().all(|node| node.has_synced(b"a") && node.has_synced(b"b")));
}

#[tokio::test]
async fn fsync_goes_on_without_a_dead_replica_but_not_without_the_fewest_copies() {
    let (cell, _ann, fid) = stored().await;
    cell.nodes[0].set_away(true);
    cell.directory.fsync(Fsync { fid }).await.unwrap();
    assert!(cell.nodes[1].has_synced(b"a"));
    let strict = cell.volume.store.write(Durability::Process, |txn| {
        let row = VolumeRow::clone(&*rows::volume(txn, VOLUME)?);
        txn.put(&rows::volume_key(VOLUME), VolumeRow { min_replicas: 2, ..row });
        Ok(())
    });
    strict.await.unwrap();
    let short = cell.directory.fsync(Fsync { fid }).await;
    assert!(matches!(short, Err(FsError::Unavailable { .. })), "{short:?}");
    cell.nodes[0].set_away(false);
    cell.directory.fsync(Fsync { fid }).await.unwrap();
}

#[tokio::test]
async fn fsync_without_a_replica_or_a_chunk_is_an_error() {
    let (cell, _ann, fid) = stored().await;
    cell.nodes.iter().for_each(|node| node.set_away(true));
    let away = cell.directory.fsync(Fsync { fid }).await;
    assert!(matches!(away, Err(FsError::Unavailable { .. })), "{away:?}");
    cell.nodes.iter().for_each(|node| node.set_away(false));
    cell.nodes[0].state.lock().unwrap().held.clear();
    let lost = cell.directory.fsync(Fsync { fid }).await;
    assert!(matches!(lost, Err(FsError::ChunkMissing(_))), "{lost:?}");
}

#[tokio::test]
async fn fsync_asks_nothing_of_a_replica_that_lags_or_for_what_has_no_chunks() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let made = ann.create(cell.root, "f", true).await.unwrap().open.write.unwrap();
    let fid = made.capability.right.fid;
    cell.directory.fsync(Fsync { fid }).await.unwrap();
    cell.directory.fsync(Fsync { fid: cell.root }).await.unwrap();
    let content = manifest(&[b"a"]);
    let stored = content.hashes().into_iter().collect();
    let change = ann.change(&made.capability, content);
    cell.commit(change, stored, &[TWO]).await.unwrap();
    cell.nodes[1].hold(&[b"a"]);
    cell.directory.fsync(Fsync { fid }).await.unwrap();
    assert!(cell.nodes[1].has_synced(b"a") && !cell.nodes[0].has_synced(b"a"));
}

#[tokio::test]
async fn where_tells_what_each_replica_holds_to_those_who_may_read() {
    let (cell, ann, fid) = stored().await;
    cell.nodes[1].state.lock().unwrap().held.remove(&ChunkHash::of(b"b"));
    let reply = cell.directory.whereabouts(ann.context(), Where { fid }).await.unwrap();
    assert_eq!((reply.chunks_total, reply.manifest_hash), (2, manifest(&[b"a", b"b"]).hash()));
    for replica in &reply.replicas {
        let held = if replica.address.node == ONE { 2 } else { 1 };
        assert_eq!(replica.chunks_held, Ok(held));
    }
    cell.nodes[0].set_away(true);
    let reply = cell.directory.whereabouts(ann.context(), Where { fid }).await.unwrap();
    let unknown: Vec<bool> = reply.replicas.iter().map(|it| it.chunks_held.is_err()).collect();
    assert_eq!(unknown.iter().filter(|is_unknown| **is_unknown).count(), 1);
    ann.chmod(fid, 0o600).await.unwrap();
    let bob = cell.user(2, 2000).await;
    let denied = cell.directory.whereabouts(bob.context(), Where { fid }).await;
    assert_eq!(denied, Err(FsError::AccessDenied));
}
