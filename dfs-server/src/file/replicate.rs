//! Between file nodes: taking chunks from the node that received them, and giving them.
//!
//! [`FileNode::spread`] is the heart of a store: it makes this node and the other replicas hold a
//! [`Parcel`] and says which of them do. A replica that fails is left out and does not fail the
//! store; repair completes it. What a node is said to hold, it has taken or touched within this
//! request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::capability::WriteRight;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::file::{ChunkRef, Missing, Replicate, SyncChunks};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::{CHUNKS_PER_REQUEST_MAX, PAYLOAD_BYTES_MAX};

use super::FileNode;
use super::fetch::{check_count, payload_length};
use crate::chunk_store::{ChunkError, ChunkStore};
use crate::request::Context;

/// Copies that a store must have made before it is committed; the volume decides once volumes have
/// policies.
pub(super) const MIN_REPLICAS: usize = 1;

/// What a store wants held: chunks that came with it, and others that came before.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub fid: FileId,
    pub chunks: Arc<[ChunkRef]>,
    /// The bytes of `chunks`, one after another.
    pub payload: Bytes,
    pub expected: Arc<[Expected]>,
    /// Whether this node itself must hold it, or any replica will do.
    pub is_own_copy_needed: bool,
    /// On CLOCK_BOOTTIME.
    pub deadline: Duration,
}

/// A chunk that is to be held already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub hash: ChunkHash,
    /// As the manifest says, if it does: another length counts as missing.
    pub length: Option<u32>,
}

impl Parcel {
    /// # Errors
    /// `Malformed` if the payload is not exactly the chunks; `TooLarge`.
    pub fn new(
        context: &Context,
        fid: FileId,
        chunks: Vec<ChunkRef>,
        payload: Bytes,
    ) -> Result<Parcel, FsError> {
        let length = payload_length(&chunks)?;
        if length != payload.len() {
            let found = payload.len();
            return Err(FsError::malformed(format!("{found} bytes for chunks of {length}")));
        }
        Ok(Parcel {
            fid,
            chunks: chunks.into(),
            payload,
            expected: Arc::default(),
            is_own_copy_needed: true,
            deadline: context.deadline,
        })
    }

    /// Every chunk of the parcel.
    pub fn hashes(&self) -> Vec<ChunkHash> {
        let sent = self.chunks.iter().map(|chunk| chunk.hash);
        sent.chain(self.expected.iter().map(|expected| expected.hash)).collect()
    }

    /// Stores what came along; returns what was expected and is not there.
    fn keep(&self, store: &dyn ChunkStore) -> Result<Vec<ChunkHash>, ChunkError> {
        let mut rest = self.payload.clone();
        for chunk in self.chunks.iter() {
            store.put(self.fid, chunk.hash, &rest.split_to(chunk.length as usize))?;
        }
        let mut lacking = Vec::new();
        for expected in self.expected.iter() {
            let stat = store.touch(self.fid, expected.hash)?;
            let is_held = |length| expected.length.is_none_or(|wanted| wanted == length);
            if !stat.is_some_and(|stat| is_held(stat.length)) {
                lacking.push(expected.hash);
            }
        }
        Ok(lacking)
    }
}

/// Taking.
impl FileNode {
    /// Stores chunks that another node received.
    pub async fn replicate(
        &self,
        context: &Context,
        request: Replicate,
        payload: Bytes,
    ) -> Result<(), FsError> {
        context.require_role(Role::File)?;
        let parcel = Parcel::new(context, request.fid, request.chunks, payload)?;
        self.keep(&parcel).await.map(drop)
    }

    /// Touches chunks and returns those that are not here.
    pub async fn missing(
        &self,
        context: &Context,
        request: Missing,
    ) -> Result<Vec<ChunkHash>, FsError> {
        check_count(request.chunks.len(), CHUNKS_PER_REQUEST_MAX)?;
        let expect = |&hash: &ChunkHash| Expected { hash, length: None };
        let parcel = Parcel {
            expected: request.chunks.iter().map(expect).collect(),
            ..Parcel::new(context, request.fid, Vec::new(), Bytes::new())?
        };
        self.keep(&parcel).await
    }

    /// Makes chunks survive power loss.
    pub async fn sync(&self, context: &Context, request: SyncChunks) -> Result<(), FsError> {
        check_count(request.chunks.len(), CHUNKS_PER_REQUEST_MAX)?;
        let SyncChunks { fid, chunks, .. } = request;
        self.on_disk(context.deadline, move |store| store.sync(fid, &chunks)).await
    }

    pub(super) async fn keep(&self, parcel: &Parcel) -> Result<Vec<ChunkHash>, FsError> {
        let kept = parcel.clone();
        let lacking = self.on_disk(parcel.deadline, move |store| kept.keep(store)).await?;
        if !parcel.chunks.is_empty() {
            self.note_space();
        }
        Ok(lacking)
    }
}

/// Giving.
impl FileNode {
    /// Makes this node and the other replicas hold a parcel. Returns those that do, this one first.
    ///
    /// # Errors
    /// `NeedChunks`: what this node was expected to hold and does not. `ChunkCorrupt`: the bytes
    /// are not what they are named. This node's own failure, if its copy is needed or too few
    /// replicas are left.
    pub(super) async fn spread(
        &self,
        right: &WriteRight,
        parcel: &Parcel,
    ) -> Result<Vec<NodeId>, FsError> {
        let others: Vec<NodeId> =
            right.replicas.iter().copied().filter(|node| *node != self.node()).collect();
        let feeds = others.iter().map(|&node| self.feed(node, parcel));
        let (kept, fed) = join(self.keep(parcel), join_all(feeds)).await;
        let own_failure = match kept {
            Ok(lacking) if lacking.is_empty() => None,
            Ok(lacking) => return Err(FsError::NeedChunks(lacking)),
            Err(error @ FsError::ChunkCorrupt(_)) => return Err(error),
            Err(error) if parcel.is_own_copy_needed => return Err(error),
            Err(error) => Some(error),
        };
        let fills = others.iter().zip(fed).map(|(&node, fed)| self.fill(node, parcel, fed));
        let filled: Vec<Option<NodeId>> =
            join_all(fills).await.into_iter().collect::<Result<_, FsError>>()?;
        let own = own_failure.is_none().then_some(self.node());
        let holders: Vec<NodeId> = own.into_iter().chain(filled.into_iter().flatten()).collect();
        enough(holders, own_failure)
    }

    /// Gives a replica what came along, and asks which of the rest it lacks.
    async fn feed(&self, node: NodeId, parcel: &Parcel) -> Result<Vec<ChunkHash>, FsError> {
        if !parcel.chunks.is_empty() {
            let (fid, chunks) = (parcel.fid, parcel.chunks.to_vec());
            let request = Replicate { node, fid, chunks };
            self.ask(parcel.deadline, node, &request, Some(parcel.payload.clone())).await?;
        }
        let mut lacking = Vec::new();
        for expected in parcel.expected.chunks(CHUNKS_PER_REQUEST_MAX) {
            let chunks = expected.iter().map(|expected| expected.hash).collect();
            let request = Missing { node, fid: parcel.fid, chunks };
            lacking.extend(self.ask(parcel.deadline, node, &request, None).await?);
        }
        Ok(lacking)
    }

    /// Copies to a replica what it lacks. `None` if it failed, in this or before.
    ///
    /// # Errors
    /// `NeedChunks` if this node's own copy turns out to be damaged: the client sends it again,
    /// and that heals it.
    async fn fill(
        &self,
        node: NodeId,
        parcel: &Parcel,
        fed: Result<Vec<ChunkHash>, FsError>,
    ) -> Result<Option<NodeId>, FsError> {
        let Ok(lacking) = fed else { return Ok(None) };
        let mut rest = &lacking[..];
        while !rest.is_empty() {
            let batch: Vec<ChunkHash> = rest.iter().copied().take(CHUNKS_PER_REQUEST_MAX).collect();
            let fid = parcel.fid;
            let read = self.on_disk(parcel.deadline, move |store| read_batch(store, fid, &batch));
            let (chunks, bytes) = match read.await {
                Ok(batch) => batch,
                Err(FsError::ChunkMissing(hash) | FsError::ChunkCorrupt(hash)) => {
                    return Err(FsError::NeedChunks(vec![hash]));
                }
                Err(error) => return Err(error),
            };
            rest = &rest[chunks.len()..];
            let request = Replicate { node, fid, chunks };
            if self.ask(parcel.deadline, node, &request, Some(bytes)).await.is_err() {
                return Ok(None);
            }
        }
        Ok(Some(node))
    }

    /// Makes a parcel survive power loss on its holders. Returns those on which it does.
    ///
    /// # Errors
    /// `NeedChunks` if this node lost a chunk meanwhile; this node's own failure if too few
    /// holders are left.
    pub(super) async fn make_stable(
        &self,
        holders: Vec<NodeId>,
        parcel: &Parcel,
    ) -> Result<Vec<NodeId>, FsError> {
        let hashes = parcel.hashes();
        let syncs = holders.iter().map(|&node| self.sync_on(node, parcel, &hashes));
        let mut failure = None;
        let mut stable = Vec::new();
        for (node, synced) in holders.iter().zip(join_all(syncs).await) {
            match synced {
                Ok(()) => stable.push(*node),
                Err(FsError::ChunkMissing(hash)) if *node == self.node() => {
                    return Err(FsError::NeedChunks(vec![hash]));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        enough(stable, failure)
    }

    async fn sync_on(
        &self,
        node: NodeId,
        parcel: &Parcel,
        hashes: &[ChunkHash],
    ) -> Result<(), FsError> {
        let (fid, deadline) = (parcel.fid, parcel.deadline);
        for chunks in hashes.chunks(CHUNKS_PER_REQUEST_MAX).map(<[ChunkHash]>::to_vec) {
            if node == self.node() {
                self.on_disk(deadline, move |store| store.sync(fid, &chunks)).await?;
            } else {
                self.ask(deadline, node, &SyncChunks { node, fid, chunks }, None).await?;
            }
        }
        Ok(())
    }
}

/// The holders, if they are enough; else why they are not.
fn enough(holders: Vec<NodeId>, failure: Option<FsError>) -> Result<Vec<NodeId>, FsError> {
    if holders.len() >= MIN_REPLICAS {
        return Ok(holders);
    }
    let too_few = || FsError::unavailable(format!("fewer than {MIN_REPLICAS} replicas took it"));
    Err(failure.unwrap_or_else(too_few))
}

/// As many of the chunks as one payload holds, and at least one.
fn read_batch(
    store: &dyn ChunkStore,
    fid: FileId,
    hashes: &[ChunkHash],
) -> Result<(Vec<ChunkRef>, Bytes), ChunkError> {
    let mut chunks = Vec::new();
    let mut bytes = Vec::new();
    for &hash in hashes {
        let length = store.stat(fid, hash)?.ok_or(ChunkError::Missing(hash))?.length;
        if !chunks.is_empty() && bytes.len() + length as usize > PAYLOAD_BYTES_MAX {
            break;
        }
        bytes.extend_from_slice(&store.get(fid, hash, length)?);
        chunks.push(ChunkRef { hash, length });
    }
    Ok((chunks, bytes.into()))
}
