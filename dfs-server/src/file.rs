//! The file service: chunks by (FileId, hash), on the nodes that the directory chose.
//!
//! One [`FileNode`] for each file node of the process; requests name the node they are for. Rights
//! are capabilities: MACed by the directory, checked here with the key that a heartbeat brings, and
//! until then nothing is served. A store is written here and on the other replicas at the same time
//! and then committed at the directory, the only place where content changes; so whatever fails
//! before that leaves chunks that nobody names, and nothing else.
//!
//! Called by the router. Knows no names, no permissions, and of versions only the manifest it is
//! given. Disk work runs on blocking threads, a bounded number at a time; a request holds at most
//! one payload in memory (a copy to a replica that lacks chunks: one more).

mod fetch;
pub mod heartbeat;
mod peer;
mod replicate;
mod store;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use dfs_proto::FsError;
use dfs_proto::capability::MacKey;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::Client;
use dfs_proto::clock::Clock;
use dfs_proto::directory::CommitReply;
use dfs_proto::file::{Fetch, Missing, PutChunks, PutReply, Replicate, Store, SyncChunks};
use dfs_proto::id::{NodeId, VolumeId};

use crate::chunk_store::{ChunkError, ChunkStore};
use crate::request::Context;

use peer::Standing;

/// Ways to the other servers of the cell.
pub trait Peers: Send + Sync + Debug + 'static {
    /// # Errors
    /// `Unavailable` if nobody knows where the node is.
    fn file_node(&self, node: NodeId) -> Result<Client, FsError>;

    /// The directory server that serves a volume.
    ///
    /// # Errors
    /// `Unavailable` if nobody knows where it is.
    fn directory(&self, volume: VolumeId) -> Result<Client, FsError>;

    /// Every directory server: each wants to hear that a file node lives.
    ///
    /// # Errors
    /// `Unavailable` if none is known.
    fn directories(&self) -> Result<Vec<Client>, FsError>;
}

/// The key that capabilities are checked with, once the directory has told it.
#[derive(Clone, Debug, Default)]
pub struct CapabilityKey(Arc<RwLock<Option<MacKey>>>);

impl CapabilityKey {
    /// Sets the key, or replaces it.
    pub fn install(&self, key: MacKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// # Errors
    /// `Unavailable` before the first heartbeat was answered.
    fn current(&self) -> Result<MacKey, FsError> {
        let key = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        key.ok_or_else(|| FsError::unavailable("file node is waiting for the directory server"))
    }
}

/// What a [`FileNode`] is made of. Nodes of one process share the key, the clock and the peers.
#[derive(Debug)]
pub struct Parts {
    pub node: NodeId,
    pub store: Arc<dyn ChunkStore>,
    pub key: CapabilityKey,
    pub clock: Arc<dyn Clock>,
    pub peers: Arc<dyn Peers>,
}

/// One file node.
#[derive(Debug)]
pub struct FileNode {
    parts: Parts,
    disk: Arc<Semaphore>,
    is_full: AtomicBool,
    /// Free space as the last heartbeat told it. Units: bytes.
    told_bytes: AtomicU64,
    standing: Standing,
}

/// Disk tasks of a node that run at the same time.
///
/// Why 16: enough to keep a disk's queue filled, and far below tokio's pool of blocking threads,
/// which the metadata shares.
const DISK_TASKS_MAX: usize = 16;

impl FileNode {
    pub fn new(parts: Parts) -> FileNode {
        FileNode {
            parts,
            disk: Arc::new(Semaphore::new(DISK_TASKS_MAX)),
            is_full: AtomicBool::new(false),
            told_bytes: AtomicU64::new(0),
            standing: Standing::default(),
        }
    }

    pub fn node(&self) -> NodeId {
        self.parts.node
    }

    /// Runs `work` on a blocking thread. Once begun it runs to its end, even if the request is
    /// given up meanwhile.
    ///
    /// # Errors
    /// What `work` meets, as callers see it; `TimedOut` if no thread came free before `deadline`.
    async fn on_disk<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&dyn ChunkStore) -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, FsError> {
        let permit = tokio::select! {
            biased;
            permit = Arc::clone(&self.disk).acquire_owned() => permit,
            () = self.parts.clock.sleep_until(deadline) => {
                return Err(FsError::TimedOut { whom: format!("the disk of {}", self.node()) });
            }
        };
        let permit = permit.expect("the semaphore is never closed");
        let store = Arc::clone(&self.parts.store);
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&*store);
            drop(permit);
            result
        });
        match task.await {
            Ok(result) => result.map_err(|error| self.fs_error(error)),
            Err(error) => Err(self.incident(&error)),
        }
    }

    /// A store's failure as callers see it, logged if an operator should know.
    fn fs_error(&self, error: ChunkError) -> FsError {
        match error {
            ChunkError::Missing(hash) => FsError::ChunkMissing(hash),
            ChunkError::Corrupt(hash) => FsError::ChunkCorrupt(hash),
            ChunkError::BadLength(_) => FsError::malformed(error.to_string()),
            ChunkError::NoSpace(_) => {
                // Once per full disk, not once per request.
                if !self.is_full.swap(true, Ordering::Relaxed) {
                    let cause = error.source().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(node = %self.node(), cause, "disk is full");
                }
                FsError::NoSpace { what: format!("the disk of {} is full", self.node()) }
            }
            ChunkError::Io { .. } | ChunkError::Format { .. } => self.incident(&error),
        }
    }

    fn incident(&self, error: &(dyn std::error::Error + 'static)) -> FsError {
        let number = getrandom::u32().unwrap_or_default();
        let incident = format!("{}-{number:08x}", self.node());
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%incident, error = %error, cause, "disk operation failed");
        FsError::Internal { incident }
    }

    /// Logs the end of what [`FileNode::fs_error`] logged the beginning of.
    fn note_space(&self) {
        let was_full = self.is_full.load(Ordering::Relaxed);
        if was_full && self.is_full.swap(false, Ordering::Relaxed) {
            tracing::info!(node = %self.node(), "disk takes chunks again");
        }
    }

    fn now_secs(&self) -> i64 {
        self.parts.clock.wall().secs
    }
}

/// The file nodes of a process: gives every request to the one it names.
#[derive(Debug, Default)]
pub struct FileNodes {
    map: BTreeMap<NodeId, Arc<FileNode>>,
}

impl FileNodes {
    pub fn new(nodes: impl IntoIterator<Item = Arc<FileNode>>) -> FileNodes {
        FileNodes { map: nodes.into_iter().map(|node| (node.node(), node)).collect() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<FileNode>> {
        self.map.values()
    }

    fn find(&self, node: NodeId) -> Result<&FileNode, FsError> {
        let found = self.map.get(&node).map(|found| &**found);
        found.ok_or_else(|| FsError::unavailable(format!("{node} does not live in this process")))
    }

    pub async fn fetch(
        &self,
        context: &Context,
        request: Fetch,
    ) -> Result<((), Vec<Bytes>), FsError> {
        Ok(((), self.find(request.node)?.fetch(context, request).await?))
    }

    pub async fn put(
        &self,
        context: &Context,
        request: PutChunks,
        payload: Bytes,
    ) -> Result<PutReply, FsError> {
        self.find(request.node)?.put(context, request, payload).await
    }

    pub async fn store(
        &self,
        context: &Context,
        request: Store,
        payload: Bytes,
    ) -> Result<CommitReply, FsError> {
        self.find(request.node)?.store(context, request, payload).await
    }

    pub async fn replicate(
        &self,
        context: &Context,
        request: Replicate,
        payload: Bytes,
    ) -> Result<(), FsError> {
        self.find(request.node)?.replicate(context, request, payload).await
    }

    pub async fn missing(
        &self,
        context: &Context,
        request: Missing,
    ) -> Result<Vec<ChunkHash>, FsError> {
        self.find(request.node)?.missing(context, request).await
    }

    pub async fn sync(&self, context: &Context, request: SyncChunks) -> Result<(), FsError> {
        self.find(request.node)?.sync(context, request).await
    }
}

#[cfg(test)]
mod tests;
