//! File nodes: which there are, which live, and which get a new file.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::FileNodeState;
use dfs_proto::attr::VolumeSpace;
use dfs_proto::clock::Clock;
use dfs_proto::directory::{NodeAddress, NodeHeartbeat, Placement};
use dfs_proto::id::NodeId;

/// A node that was silent for longer gets no new files while others are there.
const LIVE_FOR: Duration = Duration::from_secs(15);

/// Bytes that one inode is reckoned to take, for the number of inodes `df -i` shows.
const BYTES_PER_INODE: u64 = 16 << 10;

/// The file nodes a directory node knows. Cheap to clone.
#[derive(Clone)]
pub struct FileNodes {
    nodes: Arc<Mutex<BTreeMap<NodeId, FileNode>>>,
    clock: Arc<dyn Clock>,
}

struct FileNode {
    address: NodeAddress,
    total_bytes: u64,
    free_bytes: u64,
    heard_at: Duration,
}

impl fmt::Debug for FileNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileNodes")
    }
}

impl FileNodes {
    pub fn new(clock: Arc<dyn Clock>) -> FileNodes {
        FileNodes { nodes: Arc::default(), clock }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, FileNode>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node lives.
    pub fn heard(&self, heartbeat: NodeHeartbeat) {
        let node = FileNode {
            total_bytes: heartbeat.total_bytes,
            free_bytes: heartbeat.free_bytes,
            heard_at: self.clock.boottime(),
            address: heartbeat.address,
        };
        let id = node.address.node;
        if self.nodes().insert(id, node).is_none() {
            tracing::info!(node = %id, "file node is here");
        }
    }

    fn is_live(&self, node: &FileNode) -> bool {
        self.clock.boottime().saturating_sub(node.heard_at) <= LIVE_FOR
    }

    /// Nodes for a new file, the primary first: live ones before silent ones, then by free space.
    ///
    /// Among nodes whose free space is alike (within a sixteenth) `salt` decides, so that they
    /// share the work of being primary.
    ///
    /// # Errors
    /// `Unavailable` while no node lives.
    pub fn choose(&self, count: usize, salt: u64) -> Result<Vec<NodeId>, FsError> {
        let nodes = self.nodes();
        let mut ranked: Vec<(bool, u32, u64, NodeId)> = nodes
            .iter()
            .map(|(id, node)| {
                let rank = (salt ^ u64::from(id.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (!self.is_live(node), size_class(node.free_bytes), rank, *id)
            })
            .collect();
        ranked.sort_by_key(|(is_silent, class, rank, id)| {
            (*is_silent, std::cmp::Reverse(*class), *rank, *id)
        });
        match ranked.first() {
            Some((false, ..)) => Ok(ranked.iter().take(count).map(|(.., id)| *id).collect()),
            _ => Err(FsError::unavailable("no file server is up")),
        }
    }

    /// Addresses of a file's replicas. Nodes nobody has heard of since the start are left out,
    /// those that are silent come last.
    ///
    /// # Errors
    /// `Unavailable` if none is left.
    pub fn addresses(&self, replicas: &[NodeId]) -> Result<Placement, FsError> {
        let nodes = self.nodes();
        let known: Vec<&FileNode> = replicas.iter().filter_map(|id| nodes.get(id)).collect();
        let (live, silent): (Vec<&FileNode>, Vec<&FileNode>) =
            known.into_iter().partition(|node| self.is_live(node));
        let replicas: Vec<NodeAddress> =
            live.iter().chain(&silent).map(|node| node.address.clone()).collect();
        if replicas.is_empty() {
            return Err(FsError::unavailable("no file server of this file is up"));
        }
        Ok(Placement { replicas })
    }

    /// The address of one node.
    pub fn address(&self, node: NodeId) -> Option<NodeAddress> {
        self.nodes().get(&node).map(|node| node.address.clone())
    }

    /// Space for content when every file has `replica_count` copies.
    pub fn space(&self, replica_count: u32, used_inodes: u64) -> VolumeSpace {
        let nodes = self.nodes();
        let copies = u64::from(replica_count.max(1));
        let sum = |bytes: fn(&FileNode) -> u64| nodes.values().map(bytes).sum::<u64>() / copies;
        let free_bytes = sum(|node| node.free_bytes);
        let free_inodes = free_bytes / BYTES_PER_INODE;
        VolumeSpace {
            total_bytes: sum(|node| node.total_bytes),
            free_bytes,
            total_inodes: used_inodes + free_inodes,
            free_inodes,
        }
    }

    /// All nodes, for status.
    pub fn states(&self) -> Vec<FileNodeState> {
        let nodes = self.nodes();
        let state = |(id, node): (&NodeId, &FileNode)| FileNodeState {
            node: *id,
            is_live: self.is_live(node),
            total_bytes: node.total_bytes,
            free_bytes: node.free_bytes,
        };
        nodes.iter().map(state).collect()
    }
}

/// Free space in classes a sixteenth apart.
fn size_class(bytes: u64) -> u32 {
    let log = bytes.checked_ilog2().unwrap_or(0);
    let below = if log >= 4 { (bytes >> (log - 4)) & 15 } else { 0 };
    log * 16 + u32::try_from(below).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::clock::ManualClock;

    fn heartbeat(node: u32, free_bytes: u64) -> NodeHeartbeat {
        let address = NodeAddress { node: NodeId(node), host: None, port: 1 };
        NodeHeartbeat { address, total_bytes: 100 << 30, free_bytes }
    }

    fn nodes() -> (FileNodes, ManualClock) {
        let clock = ManualClock::default();
        (FileNodes::new(Arc::new(clock.clone())), clock)
    }

    #[test]
    fn no_node_no_placement() {
        let (nodes, clock) = nodes();
        assert!(matches!(nodes.choose(2, 0), Err(FsError::Unavailable { .. })));
        nodes.heard(heartbeat(1, 1 << 30));
        clock.advance(LIVE_FOR + Duration::from_secs(1));
        assert!(matches!(nodes.choose(2, 0), Err(FsError::Unavailable { .. })));
    }

    #[test]
    fn like_nodes_share_the_work_of_being_primary() {
        let (nodes, _clock) = nodes();
        nodes.heard(heartbeat(1, 50 << 30));
        nodes.heard(heartbeat(2, 50 << 30));
        let primaries: Vec<NodeId> =
            (0..100).map(|salt| nodes.choose(2, salt).unwrap()[0]).collect();
        let ones = primaries.iter().filter(|node| node.0 == 1).count();
        assert!((20..=80).contains(&ones), "{ones} of 100");
    }

    #[test]
    fn live_and_roomy_nodes_come_first() {
        let (nodes, clock) = nodes();
        nodes.heard(heartbeat(1, 90 << 30));
        clock.advance(LIVE_FOR + Duration::from_secs(1));
        nodes.heard(heartbeat(2, 10 << 30));
        nodes.heard(heartbeat(3, 40 << 30));
        let ids: Vec<u32> = nodes.choose(3, 7).unwrap().iter().map(|node| node.0).collect();
        assert_eq!(ids, [3, 2, 1]);
        let order = nodes.addresses(&[NodeId(1), NodeId(2), NodeId(9)]).unwrap();
        let ids: Vec<u32> = order.replicas.iter().map(|address| address.node.0).collect();
        assert_eq!(ids, [2, 1]);
    }
}
