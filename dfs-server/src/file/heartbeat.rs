//! The file nodes' sign of life: every few seconds, to every directory server. The answer brings
//! the key that capabilities are checked with, so a node serves nothing before the first one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use dfs_proto::FsError;
use dfs_proto::client::{CallError, Client};
use dfs_proto::clock::Clock;
use dfs_proto::directory::{NodeAddress, NodeHeartbeat};
use dfs_proto::id::NodeId;

use super::peer::envelope;
use super::{FileNode, FileNodes};

/// Time between two heartbeats. Why 3 s: several may be lost before a node counts as dead.
const INTERVAL: Duration = Duration::from_secs(3);

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
                () = self.clock.sleep_until(next) => {}
            }
        }
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
        let deadline = self.parts.clock.boottime() + ANSWER_WAIT_MAX;
        let space = self.on_disk(deadline, |store| store.space()).await?;
        let (total_bytes, free_bytes) = (space.total_bytes, space.free_bytes);
        let request = NodeHeartbeat { address, total_bytes, free_bytes };
        let directories = self.parts.peers.directories()?;
        let told = join_all(directories.iter().map(|directory| self.tell(directory, &request)));
        told.await.into_iter().collect()
    }

    async fn tell(&self, directory: &Client, request: &NodeHeartbeat) -> Result<(), FsError> {
        let answer = directory.call(&envelope(ANSWER_WAIT_MAX), request, Vec::new()).await;
        self.parts.key.install(answer.map_err(CallError::into_fs)?.reply.capability_key);
        Ok(())
    }
}
