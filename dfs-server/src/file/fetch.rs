//! Reading: a capability and a list of chunks in, verified bytes out.

use bytes::Bytes;

use dfs_proto::FsError;
use dfs_proto::file::{ChunkRef, Fetch};
use dfs_proto::limits::{CHUNK_BYTES_MAX, CHUNKS_PER_REQUEST_MAX, PAYLOAD_BYTES_MAX};

use super::FileNode;
use crate::chunk_store::ChunkError;
use crate::request::Context;

impl FileNode {
    /// The chunks asked for, in their order.
    ///
    /// # Errors
    /// As [`Fetch`] says; the first chunk that is missing or damaged ends the request.
    pub async fn fetch(&self, context: &Context, request: Fetch) -> Result<Vec<Bytes>, FsError> {
        let key = self.parts.key.current()?;
        let right = key.verify_read(&request.capability, self.now_secs());
        let fid = right.map_err(FsError::CapabilityRefused)?.fid;
        payload_length(&request.chunks)?;
        let node = self.node();
        self.on_disk(context.deadline, move |store| {
            let read = |chunk: &ChunkRef| {
                store.get(fid, chunk.hash, chunk.length).inspect_err(|error| {
                    if let ChunkError::Corrupt(hash) = error {
                        tracing::warn!(%node, %fid, %hash, "chunk is damaged on disk");
                    }
                })
            };
            request.chunks.iter().map(read).collect()
        })
        .await
    }
}

/// Bytes that a list of chunks needs in a payload.
///
/// # Errors
/// `Malformed` for a length that no chunk has; `TooLarge` over the limits of one request.
pub(super) fn payload_length(chunks: &[ChunkRef]) -> Result<usize, FsError> {
    check_count(chunks.len(), CHUNKS_PER_REQUEST_MAX)?;
    let is_possible = |chunk: &&ChunkRef| (1..=CHUNK_BYTES_MAX).contains(&chunk.length);
    if let Some(chunk) = chunks.iter().find(|chunk| !is_possible(chunk)) {
        return Err(FsError::malformed(format!("chunk of {} bytes", chunk.length)));
    }
    // Cannot overflow: both factors were just bounded.
    let length = chunks.iter().map(|chunk| chunk.length as usize).sum();
    if length > PAYLOAD_BYTES_MAX {
        let limit = PAYLOAD_BYTES_MAX as u64;
        return Err(FsError::TooLarge { what: "sum of the chunks".into(), limit });
    }
    Ok(length)
}

/// Refuses a list of more than `count_max` chunks.
pub(super) fn check_count(count: usize, count_max: usize) -> Result<(), FsError> {
    if count > count_max {
        let limit = count_max as u64;
        return Err(FsError::TooLarge { what: "number of chunks".into(), limit });
    }
    Ok(())
}
