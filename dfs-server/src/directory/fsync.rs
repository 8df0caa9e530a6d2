//! Making files survive power loss, and telling where they are.

use dfs_proto::FsError;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::CallError;
use dfs_proto::directory::{Fsync, NodeAddress, ReplicaState, Where, WhereReply};
use dfs_proto::file::{Missing, SyncChunks};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::CHUNKS_PER_REQUEST_MAX;
use dfs_proto::manifest::Manifest;
use dfs_proto::rpc::Envelope;
use futures_util::future::join_all;

use super::Directory;
use super::permission::{self, READ};
use super::rows;
use crate::request::Context;

/// How long one file node may take to bring a batch of chunks to the disk.
const SYNC_DEADLINE_MS: u32 = 60_000;

impl Directory {
    /// Chunks first, on every replica that is not lagging, then the metadata: so that a power cut
    /// never leaves metadata that names lost chunks.
    pub async fn fsync(&self, request: Fsync) -> Result<(), FsError> {
        let fid = request.fid;
        let volume = self.volume_of(fid)?;
        let (row, manifest, fewest) = volume
            .store
            .read(move |txn| {
                let row = rows::inode(txn, fid)?;
                let manifest = rows::manifest(txn, fid, &row)?;
                Ok((row, manifest, rows::volume(txn, fid.volume)?.min_replicas))
            })
            .await?;
        let hashes = sorted_hashes(&manifest);
        if !hashes.is_empty() {
            let holders = row.replicas.iter().filter(|node| !row.lagging.contains(node)).copied();
            let synced = self.sync_chunks(fid, holders.collect(), hashes).await?;
            if synced < fewest.max(1) as usize {
                let what = format!("{synced} of {fewest} copies are on their disks");
                return Err(FsError::unavailable(what));
            }
        }
        volume.store.stable().await
    }

    /// Has every live replica bring the chunks to its disk. Returns how many there were.
    async fn sync_chunks(
        &self,
        fid: FileId,
        nodes: Vec<NodeId>,
        hashes: Vec<ChunkHash>,
    ) -> Result<usize, FsError> {
        let results = join_all(nodes.iter().map(|node| self.sync_on(*node, fid, &hashes))).await;
        let mut synced = 0;
        for (node, result) in nodes.iter().zip(results) {
            match result {
                Ok(()) => synced += 1,
                Err(error) if error.is_transient() => {
                    tracing::warn!(%node, %fid, %error, "replica is not there for fsync");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(synced)
    }

    async fn sync_on(
        &self,
        node: NodeId,
        fid: FileId,
        hashes: &[ChunkHash],
    ) -> Result<(), FsError> {
        let client = self.peers.file_node(node)?;
        let envelope = Envelope { deadline_ms: SYNC_DEADLINE_MS, ..Envelope::default() };
        for batch in hashes.chunks(CHUNKS_PER_REQUEST_MAX) {
            let request = SyncChunks { node, fid, chunks: batch.to_vec() };
            client.call(&envelope, &request, Vec::new()).await.map_err(CallError::into_fs)?;
        }
        Ok(())
    }

    /// Asks every replica what it holds of the current version.
    pub async fn whereabouts(
        &self,
        context: Context,
        request: Where,
    ) -> Result<WhereReply, FsError> {
        let (fid, who) = (request.fid, context.identity);
        let store = &self.volume_of(fid)?.store;
        let (row, manifest) = store
            .read(move |txn| {
                let row = rows::inode(txn, fid)?;
                permission::check(&row, &who, READ)?;
                let manifest = rows::manifest(txn, fid, &row)?;
                Ok((row, manifest))
            })
            .await?;
        let hashes = sorted_hashes(&manifest);
        let replicas =
            join_all(row.replicas.iter().map(|node| self.replica_state(*node, fid, &hashes))).await;
        Ok(WhereReply {
            attr: row.attr(fid.volume, fid.inode),
            manifest_hash: manifest.hash(),
            chunks_total: hashes.len() as u64,
            replicas,
        })
    }

    async fn replica_state(&self, node: NodeId, fid: FileId, hashes: &[ChunkHash]) -> ReplicaState {
        let unknown = NodeAddress { node, host: None, port: 0 };
        let address = self.file_nodes.address(node).unwrap_or(unknown);
        let missing = self.missing_on(node, fid, hashes).await;
        let chunks_held =
            missing.map(|missing| hashes.len() as u64 - missing).map_err(|error| error.to_string());
        ReplicaState { address, chunks_held }
    }

    async fn missing_on(
        &self,
        node: NodeId,
        fid: FileId,
        hashes: &[ChunkHash],
    ) -> Result<u64, FsError> {
        let client = self.peers.file_node(node)?;
        let mut missing = 0;
        for batch in hashes.chunks(CHUNKS_PER_REQUEST_MAX) {
            let request = Missing { node, fid, chunks: batch.to_vec() };
            let answer = client.call(&Envelope::default(), &request, Vec::new()).await;
            missing += answer.map_err(CallError::into_fs)?.reply.len() as u64;
        }
        Ok(missing)
    }
}

fn sorted_hashes(manifest: &Manifest) -> Vec<ChunkHash> {
    let mut hashes: Vec<ChunkHash> = manifest.hashes().into_iter().collect();
    hashes.sort();
    hashes
}
