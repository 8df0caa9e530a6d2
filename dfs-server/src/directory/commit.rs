//! The one place where a file's content changes.
//!
//! A commit says: on top of `base`, written under `token`, the content is now `manifest`. It is
//! done only if the file is still at `base` and `token` is still the newest granted, both read in
//! the transaction that changes it. So two writers cannot both win, and one that lost its lock
//! while others wrote is told so instead of overwriting them.

use std::collections::HashSet;

use dfs_proto::FsError;
use dfs_proto::attr::{SetAttr, Timestamp};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::credential::Identity;
use dfs_proto::directory::CommitAttr;
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::CHUNKS_PER_REQUEST_MAX;
use dfs_proto::manifest::Manifest;
use dfs_proto::version::{DataVersion, FencingToken, Sequence};
use serde::{Deserialize, Serialize};

use super::attr;
use super::permission;
use super::rows::{self, InodeRow, ManifestRow, manifest_key};
use crate::meta::{Abort, Txn};

/// A proven change: MACs and session are checked before.
#[derive(Clone, Debug)]
pub struct NewContent {
    pub fid: FileId,
    pub base: DataVersion,
    pub token: FencingToken,
    pub manifest: Manifest,
    pub attr: CommitAttr,
    /// What `attr.first` asks for, and who asks.
    pub first: Option<(SetAttr, Identity)>,
    /// Chunks that every node in `held_by` has stored for this file.
    pub stored: HashSet<ChunkHash>,
    pub held_by: Vec<NodeId>,
    pub now: Timestamp,
}

/// What a commit did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    pub attr: dfs_proto::attr::Attr,
    pub replicas: Vec<NodeId>,
    pub sequence: Sequence,
}

/// Makes `new` the content of its file.
///
/// # Errors
/// `Stale` (no such inode), `Fenced`, `Conflict`, `NeedChunks`, `InvalidArgument` (no file).
pub fn commit(txn: &mut Txn, new: &NewContent) -> Result<Committed, Abort> {
    let row = rows::inode(txn, new.fid)?;
    if row.fence != new.token {
        return Err(FsError::Fenced.into());
    }
    if row.data_version != new.base {
        return Err(FsError::Conflict { current: row.data_version }.into());
    }
    check_chunks(new, &rows::manifest(txn, new.fid, &row)?)?;
    let mut changed = InodeRow::clone(&row);
    changed.data_version = txn.sequence().into();
    changed.size = new.manifest.size();
    changed.stored_bytes = new.manifest.stored_bytes();
    changed.mtime = new.attr.mtime;
    changed.atime = new.attr.atime.unwrap_or(row.atime);
    changed.ctime = new.now;
    if new.attr.clear_set_id || row.has_foreign_writer {
        changed.mode = permission::without_set_id(&row);
    }
    if let Some((set, who)) = &new.first {
        attr::change_first(&mut changed, set, who);
    }
    changed.lagging = lagging(&row, new);
    rows::touch_parents(txn, new.fid.volume, &changed)?;
    let grown = i128::from(changed.stored_bytes) - i128::from(row.stored_bytes);
    rows::count(txn, new.fid.volume, 0, i64::try_from(grown).unwrap_or(0))?;
    let attr = changed.attr(new.fid.volume, new.fid.inode);
    let replicas = changed.replicas.clone();
    rows::put_inode(txn, new.fid, changed);
    txn.put(
        &manifest_key(new.fid.volume, new.fid.inode),
        ManifestRow { manifest: new.manifest.clone() },
    );
    Ok(Committed { attr, replicas, sequence: txn.sequence() })
}

/// Replicas that lack a chunk of the new version: those that did not take part in storing what is
/// new, and those that lagged before, as long as something of before is used. Holding the new
/// chunks says nothing about older ones.
fn lagging(before: &InodeRow, new: &NewContent) -> Vec<NodeId> {
    let is_new = |hash: &ChunkHash| new.stored.contains(hash);
    let uses_new = new.manifest.chunks().any(|chunk| is_new(&chunk.hash));
    let uses_old = !new.manifest.chunks().all(|chunk| is_new(&chunk.hash));
    let lags = |node: &NodeId| {
        let lacks_new = uses_new && !new.held_by.contains(node);
        let lacks_old = uses_old && before.lagging.contains(node);
        lacks_new || lacks_old
    };
    before.replicas.iter().filter(|node| lags(node)).copied().collect()
}

/// Every chunk must be in the version before or in what was stored just now.
fn check_chunks(new: &NewContent, before: &Manifest) -> Result<(), FsError> {
    let known: HashSet<ChunkHash> = before.hashes();
    let is_known = |hash: &ChunkHash| new.stored.contains(hash) || known.contains(hash);
    let mut unknown: Vec<ChunkHash> =
        new.manifest.hashes().into_iter().filter(|hash| !is_known(hash)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    unknown.sort();
    unknown.truncate(CHUNKS_PER_REQUEST_MAX);
    Err(FsError::NeedChunks(unknown))
}
