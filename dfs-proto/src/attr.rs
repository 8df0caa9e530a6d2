//! Attributes of an inode, and what a caller may set of them.

use serde::{Deserialize, Serialize};

use crate::id::FileId;
use crate::version::{DataVersion, DirVersion};

/// What an inode is; fixed at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// A point in wall-clock time.
///
/// Units: seconds since 1970-01-01 UTC (negative before it) and nanoseconds, 0..1_000_000_000,
/// counted forward from the second also before 1970.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Timestamp {
    pub const fn new(secs: i64, nanos: u32) -> Timestamp {
        Timestamp { secs, nanos }
    }

    /// Whether the nanoseconds are less than a second: to be asked of times from outside.
    pub const fn is_valid(self) -> bool {
        self.nanos < 1_000_000_000
    }
}

/// Everything `stat` shows, and the versions that say whether a cached copy is current.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    pub fid: FileId,
    pub kind: FileKind,
    /// Permission bits with set-id and sticky, 0..=0o7777.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes. For a directory: the number of its entries; for a symlink: its target's length.
    pub size: u64,
    /// Bytes that are stored, holes not counted.
    pub stored_bytes: u64,
    pub atime: Timestamp,
    /// Taken on the client when data was written.
    pub mtime: Timestamp,
    /// The directory server's clock.
    pub ctime: Timestamp,
    pub rdev: u32,
    pub data_version: DataVersion,
    pub dir_version: DirVersion,
    /// Bytes of all extended attributes, names and values; 0: there are none.
    pub xattr_bytes: u32,
}

/// What `setattr` changes; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// Whether nothing would change but ctime.
    pub fn is_empty(&self) -> bool {
        *self == SetAttr::default()
    }
}

/// A time to set: the rights needed differ, as in utimensat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The current time (taken on the client): write permission is enough.
    Now(Timestamp),
    /// A chosen time: only for the owner.
    At(Timestamp),
}

impl SetTime {
    pub fn timestamp(self) -> Timestamp {
        match self {
            SetTime::Now(time) | SetTime::At(time) => time,
        }
    }
}

/// Size and free space of a volume, for `statfs`.
///
/// Units: bytes and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpace {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
}
