//! File nodes: chunks by (FileId, hash). They know no names.
//!
//! Several file nodes may live behind one address, so every request names the node it is for.
//! Chunk bytes travel as payload, one after another in the order of the request's list.

use serde::{Deserialize, Serialize};

use crate::capability::{ReadCapability, WriteCapability};
use crate::chunk::ChunkHash;
use crate::directory::{Change, CommitReply, rpc};
use crate::id::{FileId, NodeId};
use crate::rpc::{Access, Rpc};

/// A chunk of a payload, or one that is wanted.
///
/// Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    pub hash: ChunkHash,
    pub length: u32,
}

/// Reads chunks; they come as the reply's payload.
///
/// Shape: the lengths add up to at most `PAYLOAD_BYTES_MAX`.
/// Errors: `ChunkMissing`, `ChunkCorrupt` (the first such chunk), `CapabilityRefused`, `TooLarge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fetch {
    pub node: NodeId,
    pub capability: ReadCapability,
    pub chunks: Vec<ChunkRef>,
}
rpc!(Fetch => (), "file.fetch", User);

/// Which nodes took chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReply {
    /// This node first.
    pub held_by: Vec<NodeId>,
}

/// Stores chunks ahead of a commit, here and on the other replicas of the capability.
///
/// Errors: `ChunkCorrupt` (bytes and hash differ), `CapabilityRefused`, `NoSpace`, `Malformed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutChunks {
    pub node: NodeId,
    pub capability: WriteCapability,
    pub chunks: Vec<ChunkRef>,
}
rpc!(PutChunks => PutReply, "file.put", User);

/// Stores the last chunks of a new version, here and on the other replicas, then asks the
/// directory to commit it. For a small file this is all.
///
/// Errors: those of [`PutChunks`] and of `directory.commit`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Store {
    pub node: NodeId,
    pub change: Change,
    /// The chunks in this request's payload.
    pub chunks: Vec<ChunkRef>,
    /// Chunks put ahead for this change; the node checks that it and the replicas hold them.
    pub put_before: Vec<ChunkHash>,
}

impl Rpc for Store {
    const PATH: &'static str = "file.store";
    const ACCESS: Access = Access::User;
    const CHANGES: bool = true;
    type Reply = CommitReply;
}

/// Takes chunks from the node that received them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replicate {
    pub node: NodeId,
    pub fid: FileId,
    pub chunks: Vec<ChunkRef>,
}
rpc!(Replicate => (), "file.replicate", Node);

/// Which of these chunks the node does not hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Missing {
    pub node: NodeId,
    pub fid: FileId,
    pub chunks: Vec<ChunkHash>,
}
rpc!(Missing => Vec<ChunkHash>, "file.missing", Node);

/// Makes chunks survive power loss. Errors: `ChunkMissing`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncChunks {
    pub node: NodeId,
    pub fid: FileId,
    pub chunks: Vec<ChunkHash>,
}
rpc!(SyncChunks => (), "file.sync", Node);
