//! Calls to other file nodes, and what is remembered of those that failed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use dfs_proto::FsError;
use dfs_proto::id::NodeId;
use dfs_proto::promise::StreamNumber;
use dfs_proto::rpc::{Envelope, Rpc};

use super::FileNode;

/// Longest wait for one answer of another file node. Half of what is left to the request is the
/// other bound: so a node that hangs leaves time for the commit.
const PEER_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a node that did not answer in time is not asked. Why: else every store of every file
/// that it has a copy of waits for it anew. Nodes that fail at once are asked every time.
const AVOID_AFTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which other nodes failed lately. Bounded by the nodes of the cell: capabilities name no others.
#[derive(Debug, Default)]
pub(super) struct Standing {
    failed: Mutex<HashMap<NodeId, Failed>>,
}

#[derive(Debug)]
struct Failed {
    /// On CLOCK_BOOTTIME.
    avoid_until: Duration,
}

impl Standing {
    fn failed(&self) -> MutexGuard<'_, HashMap<NodeId, Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_avoided(&self, node: NodeId, now: Duration) -> bool {
        self.failed().get(&node).is_some_and(|failed| now < failed.avoid_until)
    }

    /// Remembers how a call ended, and logs if that is not how the one before did.
    fn note<T>(&self, node: NodeId, result: &Result<T, FsError>, now: Duration) {
        if matches!(result, Err(FsError::ChunkCorrupt(_) | FsError::ChunkMissing(_))) {
            // About a chunk, perhaps by a client's fault: it says nothing of the node.
            return;
        }
        let Err(error) = result else {
            if self.failed().remove(&node).is_some() {
                tracing::info!(%node, "file node answers again");
            }
            return;
        };
        let is_timeout = matches!(error, FsError::TimedOut { .. });
        let avoid_until = if is_timeout { now + AVOID_AFTER_TIMEOUT } else { now };
        if self.failed().insert(node, Failed { avoid_until }).is_none() {
            tracing::warn!(%node, %error, "file node failed; going on without it");
        }
    }
}

impl FileNode {
    /// Sends a request to another file node, once.
    ///
    /// # Errors
    /// What the node answered; `Unavailable` or `TimedOut` if it did not.
    pub(super) async fn ask<R: Rpc>(
        &self,
        deadline: Duration,
        node: NodeId,
        request: &R,
        payload: Option<Bytes>,
    ) -> Result<R::Reply, FsError> {
        let now = self.parts.clock.boottime();
        if self.standing.is_avoided(node, now) {
            return Err(FsError::unavailable(format!("{node} did not answer lately")));
        }
        let wait = (deadline.saturating_sub(now) / 2).min(PEER_WAIT_MAX);
        let result = self.call(node, wait, request, payload).await;
        self.standing.note(node, &result, self.parts.clock.boottime());
        result
    }

    async fn call<R: Rpc>(
        &self,
        node: NodeId,
        wait: Duration,
        request: &R,
        payload: Option<Bytes>,
    ) -> Result<R::Reply, FsError> {
        let client = self.parts.peers.file_node(node)?;
        let payload = payload.into_iter().collect();
        let answer = client.call(&envelope(wait), request, payload).await;
        Ok(answer.map_err(dfs_proto::client::CallError::into_fs)?.reply)
    }
}

/// The envelope of a call for a client, whose event stream is `stream`.
pub(super) fn envelope_for(stream: Option<StreamNumber>, wait: Duration) -> Envelope {
    Envelope { stream, ..envelope(wait) }
}

/// The envelope of a call to another server: who calls is proven by certificate.
pub(super) fn envelope(wait: Duration) -> Envelope {
    let deadline_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    Envelope { deadline_ms, ..Envelope::default() }
}
