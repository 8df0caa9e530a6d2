//! Stores: chunks from a client, and the commit that makes them a version of the file.
//!
//! Every step may be repeated: chunks that are there are touched, and the directory runs a commit
//! once for its op id. So a client whose answer was lost sends the same again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use dfs_proto::FsError;
use dfs_proto::capability::{WriteCapability, WriteRight};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::retry::{RetryPolicy, retry};
use dfs_proto::directory::{Change, Commit, CommitReply, Durability};
use dfs_proto::file::{PutChunks, PutReply, Store};
use dfs_proto::limits::MANIFEST_EXTENTS_MAX;
use dfs_proto::manifest::Manifest;

use super::FileNode;
use super::fetch::check_count;
use super::peer::envelope_for;
use super::replicate::{Expected, Parcel};
use crate::request::Context;

impl FileNode {
    /// Stores chunks ahead of a commit.
    pub async fn put(
        &self,
        context: &Context,
        request: PutChunks,
        payload: Bytes,
    ) -> Result<PutReply, FsError> {
        let right = self.write_right(&request.capability)?;
        let parcel = Parcel::new(context, right.fid, request.chunks, payload)?;
        Ok(PutReply { held_by: self.spread(right, &parcel).await? })
    }

    /// Stores the last chunks of a version and commits it.
    pub async fn store(
        &self,
        context: &Context,
        request: Store,
        payload: Bytes,
    ) -> Result<CommitReply, FsError> {
        let Store { change, chunks, put_before, .. } = request;
        let change = Change { manifest: change.manifest.parse()?, ..change };
        let right = self.write_right(&change.capability)?;
        check_count(put_before.len(), MANIFEST_EXTENTS_MAX)?;
        let mut parcel = Parcel::new(context, right.fid, chunks, payload)?;
        parcel.expected = expected(&parcel, &change, &put_before)?.into();
        // What came before is looked for here: that only others hold it would have the client send
        // it again and again to a node that cannot take it. What came along, any replica may hold.
        parcel.is_own_copy_needed = !parcel.expected.is_empty();
        let mut held_by = self.spread(right, &parcel).await?;
        if change.durability == Durability::Stable {
            held_by = self.make_stable(held_by, &parcel).await?;
        }
        let sent = parcel.chunks.iter().map(|chunk| chunk.hash);
        let stored = sent.chain(put_before).collect();
        let lowest_unanswered = context.lowest_unanswered;
        self.commit(context, &Commit { change, lowest_unanswered, stored, held_by }).await
    }

    /// The right that a capability proves, if it is for this node.
    fn write_right<'a>(&self, capability: &'a WriteCapability) -> Result<&'a WriteRight, FsError> {
        let verified = self.parts.key.current()?.verify_write(capability, self.now_secs());
        let right = verified.map_err(FsError::CapabilityRefused)?;
        if !right.replicas.contains(&self.node()) {
            let what = format!("{}: no place of file {}", self.node(), right.fid);
            return Err(FsError::invalid(what));
        }
        Ok(right)
    }

    /// Asks the directory, again while it is away, until the request's time is over. What it says
    /// beside its answer is for the client.
    async fn commit(&self, context: &Context, commit: &Commit) -> Result<CommitReply, FsError> {
        let left = context.deadline.saturating_sub(self.parts.clock.boottime());
        let policy = RetryPolicy { give_up_after: Some(left), ..RetryPolicy::default() };
        let volume = commit.change.capability.right.fid.volume;
        let attempt = |wait: Duration| async move {
            let client = self.parts.peers.directory(volume)?;
            let envelope = envelope_for(context.news.stream(), wait);
            let (news, answer) = client.call_with_news(&envelope, commit, Vec::new()).await?;
            *context.news.write() = news;
            Ok(answer?.reply)
        };
        let committed = retry(&*self.parts.clock, policy, attempt).await;
        committed.map_err(dfs_proto::client::CallError::into_fs)
    }
}

/// What is to be held beside the chunks of this request.
///
/// A stable commit answers for the whole version, and chunks of earlier commits may not be stable
/// yet: then it is every other chunk of the manifest, too.
///
/// # Errors
/// `Malformed` if a chunk sent has another length than the manifest says: committed like that, the
/// file could not be read.
fn expected(
    parcel: &Parcel,
    change: &Change,
    put_before: &[ChunkHash],
) -> Result<Vec<Expected>, FsError> {
    let lengths: HashMap<ChunkHash, u32> =
        change.manifest.chunks().map(|chunk| (chunk.hash, chunk.length)).collect();
    let differs = |length: u32, hash| lengths.get(hash).is_some_and(|wanted| *wanted != length);
    if let Some(chunk) = parcel.chunks.iter().find(|chunk| differs(chunk.length, &chunk.hash)) {
        let what = format!("manifest gives chunk {} another length", chunk.hash);
        return Err(FsError::malformed(what));
    }
    let mut seen: HashSet<ChunkHash> = parcel.chunks.iter().map(|chunk| chunk.hash).collect();
    let whole: &Manifest = match change.durability {
        Durability::Process => &Manifest::default(),
        Durability::Stable => &change.manifest,
    };
    let named = put_before.iter().copied().chain(whole.chunks().map(|chunk| chunk.hash));
    let rest = named.filter(|hash| seen.insert(*hash));
    Ok(rest.map(|hash| Expected { hash, length: lengths.get(&hash).copied() }).collect())
}
