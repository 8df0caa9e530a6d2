//! Tests of the directory service through its public face, over rows in memory, a real lock
//! service, and file nodes without bytes. The cell they share is in `cell`; what must hold of all
//! rows at any time is in `check`.

mod cell;
mod check;
mod content;
mod faults;
mod grace;
mod ledgers;
mod listing;
mod locking;
mod model;
mod names;
mod nodes;
mod ops;
mod permissions;
mod promises;
mod ranges;
mod records;
mod rename;
mod xattrs;

use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::version::{DataVersion, DirVersion, Epoch, FencingToken};

use super::rows::InodeRow;

/// An inode with nothing special about it.
pub fn inode_row(kind: FileKind) -> InodeRow {
    InodeRow {
        generation: Epoch(1),
        kind,
        mode: 0o644,
        nlink: 1,
        uid: 1000,
        gid: 1000,
        size: 0,
        stored_bytes: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        rdev: 0,
        data_version: DataVersion::default(),
        dir_version: DirVersion::default(),
        entries_version: DirVersion::default(),
        parents: Vec::new(),
        fence: FencingToken::default(),
        has_foreign_writer: false,
        replicas: Vec::new(),
        lagging: Vec::new(),
        target: Vec::new(),
        xattr_bytes: 0,
    }
}
