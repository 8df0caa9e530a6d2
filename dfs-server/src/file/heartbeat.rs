//! The file nodes' sign of life: every few seconds, to every directory server, and sooner if the
//! free space it tells is no longer true. The answer brings the key that capabilities are checked
//! with, so a node serves nothing before the first one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use dfs_proto::FsError;
use dfs_proto::client::{CallError, Client};
use dfs_proto::clock::Clock;
use dfs_proto::directory::{NodeAddress, NodeHeartbeat};
use dfs_proto::id::NodeId;

use crate::chunk_store::Space;

use super::peer::envelope;
use super::{FileNode, FileNodes};

/// Time between two heartbeats. Why 3 s: several may be lost before a node counts as dead.
const INTERVAL: Duration = Duration::from_secs(3);

/// Time between two looks at the disks. Why a second: people who make room watch `df`.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A change of free space that is told at the next look. Units: bytes. Why 1 MiB: what metadata
/// and its log take and give back all the time is no news.
const NEWS_BYTES: u64 = 1 << 20;

/// First and longest delay after a failure. Why so short: a cell that starts is waiting for it.
const RETRY_DELAY: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// How long one heartbeat waits for its answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Sends heartbeats for the file nodes of this process.
#[derive(Debug)]
pub struct Heartbeat {
    /// For whom.
    pub nodes: Arc<FileNodes>,
    /// Where this process listens; `host` as in [`NodeAddress`].
    pub host: Option<String>,
    pub port: u16,
    pub clock: Arc<dyn Clock>,
}

impl Heartbeat {
    /// Runs until `shutdown`. Cancel-safe.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut delay = RETRY_DELAY;
        let mut failures = BTreeMap::new();
        loop {
            let is_heard = tokio::select! {
                () = shutdown.cancelled() => return,
                is_heard = self.beat(&mut failures) => is_heard,
            };
            let wait = if is_heard { INTERVAL } else { delay };
            delay = if is_heard { RETRY_DELAY } else { (delay * 2).min(RETRY_DELAY_MAX) };
            let next = self.clock.boottime() + wait;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.until_news(next) => {}
            }
        }
    }

    /// Waits until `next`, or until a disk has other free space than was told.
    async fn until_news(&self, next: Duration) {
        loop {
            let look = self.clock.boottime() + LOOK_INTERVAL;
            self.clock.sleep_until(look.min(next)).await;
            if look >= next || self.has_news().await {
                return;
            }
        }
    }

    async fn has_news(&self) -> bool {
        let looks = self.nodes.iter().map(|node| node.has_news());
        join_all(looks).await.contains(&true)
    }

    /// One heartbeat of every node; whether all were heard.
    async fn beat(&self, failures: &mut BTreeMap<NodeId, FsError>) -> bool {
        let beats = self.nodes.iter().map(|node| async move {
            let address =
                NodeAddress { node: node.node(), host: self.host.clone(), port: self.port };
            (node.node(), node.beat(address).await)
        });
        for (node, result) in join_all(beats).await {
            note(failures, node, result);
        }
        failures.is_empty()
    }
}

/// Keeps the failures that last, and logs where one begins, changes or ends.
fn note(failures: &mut BTreeMap<NodeId, FsError>, node: NodeId, result: Result<(), FsError>) {
    match result {
        Ok(()) => {
            if failures.remove(&node).is_some() {
                tracing::info!(%node, "directory server answers");
            }
        }
        Err(error) => {
            let is_known = failures.get(&node).is_some_and(|known| known.code() == error.code());
            if !is_known && error.is_transient() {
                tracing::warn!(%node, %error, "waiting for the directory server");
            } else if !is_known {
                tracing::error!(%node, %error, "file node cannot tell that it lives");
            }
            failures.insert(node, error);
        }
    }
}

impl FileNode {
    /// Tells every directory server that this node lives.
    ///
    /// # Errors
    /// The first failure: of the disk (then nothing is sent: a node without disk is not alive), or
    /// of a directory server (the others were told).
    async fn beat(&self, address: NodeAddress) -> Result<(), FsError> {
        let Space { total_bytes, free_bytes, .. } = self.space().await?;
        self.told_bytes.store(free_bytes, Ordering::Relaxed);
        let request = NodeHeartbeat { address, total_bytes, free_bytes };
        let directories = self.parts.peers.directories()?;
        let told = join_all(directories.iter().map(|directory| self.tell(directory, &request)));
        told.await.into_iter().collect()
    }

    /// Whether the disk has other free space than was told. One that does not answer is what the
    /// next beat is about.
    async fn has_news(&self) -> bool {
        let told_bytes = self.told_bytes.load(Ordering::Relaxed);
        self.space().await.is_ok_and(|space| space.free_bytes.abs_diff(told_bytes) >= NEWS_BYTES)
    }

    async fn space(&self) -> Result<Space, FsError> {
        let deadline = self.parts.clock.boottime() + ANSWER_WAIT_MAX;
        self.on_disk(deadline, |store| store.space()).await
    }

    async fn tell(&self, directory: &Client, request: &NodeHeartbeat) -> Result<(), FsError> {
        let answer = directory.call(&envelope(ANSWER_WAIT_MAX), request, Vec::new()).await;
        self.parts.key.install(answer.map_err(CallError::into_fs)?.reply.capability_key);
        Ok(())
    }
}
