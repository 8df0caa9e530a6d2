//! Rows as older versions wrote them: read, and never written.

use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::id::{InodeNo, NodeId};
use dfs_proto::name::Name;
use dfs_proto::version::{DataVersion, DirVersion, Epoch, FencingToken};
use serde::{Deserialize, Serialize};

use super::InodeRow;
use crate::meta::Record;

/// An inode of before there were extended attributes.
#[derive(Serialize, Deserialize)]
pub struct InodeRowV1 {
    generation: Epoch,
    kind: FileKind,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    size: u64,
    stored_bytes: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    rdev: u32,
    data_version: DataVersion,
    dir_version: DirVersion,
    entries_version: DirVersion,
    parents: Vec<(InodeNo, Name)>,
    fence: FencingToken,
    has_foreign_writer: bool,
    replicas: Vec<NodeId>,
    lagging: Vec<NodeId>,
    target: Vec<u8>,
}

impl Record for InodeRowV1 {
    const VERSION: u8 = 1;
}

impl From<InodeRowV1> for InodeRow {
    fn from(row: InodeRowV1) -> InodeRow {
        InodeRow {
            generation: row.generation,
            kind: row.kind,
            mode: row.mode,
            nlink: row.nlink,
            uid: row.uid,
            gid: row.gid,
            size: row.size,
            stored_bytes: row.stored_bytes,
            atime: row.atime,
            mtime: row.mtime,
            ctime: row.ctime,
            rdev: row.rdev,
            data_version: row.data_version,
            dir_version: row.dir_version,
            entries_version: row.entries_version,
            parents: row.parents,
            fence: row.fence,
            has_foreign_writer: row.has_foreign_writer,
            replicas: row.replicas,
            lagging: row.lagging,
            target: row.target,
            xattr_bytes: 0,
        }
    }
}
