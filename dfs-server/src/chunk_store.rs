//! The chunk store seam: immutable bytes under (FileId, hash), on one file node.
//!
//! Promises of every implementation: bytes come back whole and with the hash they are named by, or
//! not at all; a chunk appears at once, never in part; what `put` returned for survives the death
//! of the process, and what `sync` returned for survives power loss. Calls block and are made from
//! blocking tasks only; any number may run at once. Called by the file service. Knows no versions,
//! no manifests, no other nodes, and decides nothing about what may be deleted.

mod local;
mod reserve;

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
pub mod faulty;
#[cfg(feature = "testing")]
pub mod memory;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use dfs_proto::attr::Timestamp;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::FileId;
use dfs_proto::limits::CHUNK_BYTES_MAX;

pub use local::LocalChunkStore;
pub use reserve::ReservedStore;

/// What a store says of a chunk without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStat {
    /// Units: bytes.
    pub length: u32,
    /// When it was last stored or touched, by the store's own clock: only for comparing with
    /// other times of the same store.
    pub touched: Timestamp,
}

/// Space of the disk that a store is on.
///
/// Units: bytes. `free_bytes` is what the server may still use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// Files that can still be made, whatever their size; `u64::MAX` where nobody counts.
    pub free_files: u64,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk {0} is not here")]
    Missing(ChunkHash),
    /// Bytes given or kept do not have the hash that names them.
    #[error("chunk {0} is damaged")]
    Corrupt(ChunkHash),
    #[error("a chunk has 1 to {CHUNK_BYTES_MAX} bytes, not {0}")]
    BadLength(usize),
    #[error("no space left for chunks")]
    NoSpace(#[source] io::Error),
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no chunk store this program can use: {why}", path.display())]
    Format { path: PathBuf, why: String },
}

impl ChunkError {
    /// Tells a full disk from any other failure.
    fn io(doing: &'static str, path: &Path, source: io::Error) -> ChunkError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ChunkError::NoSpace(source)
            }
            _ => ChunkError::Io { doing, path: path.to_owned(), source },
        }
    }
}

/// Chunks of one file node.
pub trait ChunkStore: Send + Sync + Debug + 'static {
    /// Stores a chunk, or touches it if these bytes are there already. What is there under the
    /// name but damaged is replaced.
    ///
    /// # Errors
    /// `Corrupt`: `hash` does not name `bytes`, nothing was stored. `BadLength`, `NoSpace`, `Io`.
    fn put(&self, fid: FileId, hash: ChunkHash, bytes: &[u8]) -> Result<(), ChunkError>;

    /// A chunk of `length` bytes, verified against its hash.
    ///
    /// # Errors
    /// `Missing`; `Corrupt`, also if what is there has another length; `Io`.
    fn get(&self, fid: FileId, hash: ChunkHash, length: u32) -> Result<Bytes, ChunkError>;

    /// Whether a chunk is there, without reading it: damage does not show.
    fn stat(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError>;

    /// As [`ChunkStore::stat`], and marks the chunk as wanted: whoever answers "I have it" touches,
    /// so that what is about to be committed is not collected meanwhile.
    fn touch(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError>;

    /// Gives a file's chunk to another file as well. One that the other has is touched.
    ///
    /// # Errors
    /// `Missing`: `from` does not have it. `NoSpace`, `Io`.
    fn link(&self, from: FileId, to: FileId, hash: ChunkHash) -> Result<(), ChunkError>;

    /// Removes a chunk; `false` if it was not there.
    fn delete(&self, fid: FileId, hash: ChunkHash) -> Result<bool, ChunkError>;

    /// A file's chunks with their lengths, in no order.
    fn list(&self, fid: FileId) -> Result<Vec<(ChunkHash, u32)>, ChunkError>;

    /// Makes chunks survive power loss, with their names.
    ///
    /// # Errors
    /// `Missing`: the first that is not there; others may be stable then. `NoSpace`, `Io`.
    fn sync(&self, fid: FileId, hashes: &[ChunkHash]) -> Result<(), ChunkError>;

    fn space(&self) -> Result<Space, ChunkError>;
}

/// Refuses what no chunk can be: an empty one would be taken for what a power cut leaves.
fn check_length(bytes: &[u8]) -> Result<(), ChunkError> {
    match bytes.len() {
        1.. if bytes.len() <= CHUNK_BYTES_MAX as usize => Ok(()),
        length => Err(ChunkError::BadLength(length)),
    }
}

/// Refuses bytes that `hash` does not name.
fn check_hash(hash: ChunkHash, bytes: &[u8]) -> Result<(), ChunkError> {
    if ChunkHash::of(bytes) != hash {
        return Err(ChunkError::Corrupt(hash));
    }
    Ok(())
}
