//! The directory service: names, attributes, versions, placement, and the one commit point.

pub mod lock;
mod xattr;

use serde::{Deserialize, Serialize};

use crate::attr::{Attr, FileKind, SetAttr, Timestamp, VolumeSpace};
use crate::capability::{Mac, MacKey, ReadCapability, WriteCapability};
use crate::chunk::ChunkHash;
use crate::credential::Identity;
use crate::dirent::DirPage;
use crate::id::{FileId, NodeId, OpId, VolumeId};
use crate::manifest::Manifest;
use crate::name::Name;
use crate::rpc::{Access, Rpc};
use crate::version::{DataVersion, DirVersion, FencingToken, Sequence};

macro_rules! rpc {
    ($request:ty => $reply:ty, $path:literal, $access:ident) => {
        impl Rpc for $request {
            const PATH: &'static str = $path;
            const ACCESS: Access = Access::$access;
            type Reply = $reply;
        }
    };
    ($request:ty => $reply:ty, $path:literal, $access:ident, mutates) => {
        impl Rpc for $request {
            const PATH: &'static str = $path;
            const ACCESS: Access = Access::$access;
            const MUTATES: bool = true;
            type Reply = $reply;
        }
    };
}
pub(crate) use rpc;
pub use xattr::{GetXattr, ListXattr, RemoveXattr, SetXattr, XattrRule};

/// Attributes as of a point in the volume's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrReply {
    pub attr: Attr,
    pub sequence: Sequence,
}

/// What a change of a directory's entries did.
///
/// `before` and `after` are the parent's versions around this change: a client that holds
/// `before` may apply the change to its copy and then holds `after`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryReply {
    /// The inode named (or, after a removal, the one that was) with its attributes after it.
    pub attr: Attr,
    pub before: DirVersion,
    pub after: DirVersion,
    pub sequence: Sequence,
}

/// The inode that a name names.
///
/// Errors: `NotFound`, `NotDirectory`, `AccessDenied` (no search permission), `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lookup {
    pub parent: FileId,
    pub name: Name,
}
rpc!(Lookup => AttrReply, "directory.lookup", User);

/// The directory that holds a directory (`..`). The root's parent is the root.
///
/// Errors: `NotDirectory`, `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LookupParent {
    pub fid: FileId,
}
rpc!(LookupParent => AttrReply, "directory.lookup_parent", User);

/// Attributes of an inode. Errors: `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetAttr {
    pub fid: FileId,
}
rpc!(GetAttr => AttrReply, "directory.getattr", User);

/// Changes mode, owner or times.
///
/// Errors: `NotPermitted`, `AccessDenied`, `Stale`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangeAttr {
    pub fid: FileId,
    pub set: SetAttr,
}
rpc!(ChangeAttr => AttrReply, "directory.setattr", User, mutates);

/// Part of a directory: up to `limit` entries after the name `after`.
///
/// Errors: `NotDirectory`, `AccessDenied` (no read permission), `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadDir {
    pub fid: FileId,
    pub after: Option<Name>,
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDirReply {
    pub page: DirPage,
    pub sequence: Sequence,
}
rpc!(ReadDir => ReadDirReply, "directory.readdir", User);

/// Makes a directory. `mode` has the caller's umask applied.
///
/// Errors: `Exists`, `NotDirectory`, `AccessDenied`, `Stale`, `NoSpace`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeDir {
    pub parent: FileId,
    pub name: Name,
    pub mode: u32,
}
rpc!(MakeDir => EntryReply, "directory.mkdir", User, mutates);

/// Makes a symbolic link. Shape: `target` has 1 to `SYMLINK_BYTES_MAX` bytes, no NUL.
///
/// Errors: as [`MakeDir`], `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeSymlink {
    pub parent: FileId,
    pub name: Name,
    pub target: Vec<u8>,
}
rpc!(MakeSymlink => EntryReply, "directory.symlink", User, mutates);

/// A symbolic link's target. Errors: `InvalidArgument` (not a link), `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadLink {
    pub fid: FileId,
}
rpc!(ReadLink => Vec<u8>, "directory.readlink", User);

/// Gives a file another name.
///
/// Errors: `Exists`, `NotPermitted` (a directory), `TooManyLinks`, `CrossVolume`, `AccessDenied`,
/// `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeLink {
    pub fid: FileId,
    pub parent: FileId,
    pub name: Name,
}
rpc!(MakeLink => EntryReply, "directory.link", User, mutates);

/// Removes a name that is not a directory's.
///
/// Errors: `NotFound`, `IsDirectory`, `AccessDenied`, `NotPermitted` (sticky directory), `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unlink {
    pub parent: FileId,
    pub name: Name,
}
rpc!(Unlink => EntryReply, "directory.unlink", User, mutates);

/// Removes an empty directory.
///
/// Errors: `NotFound`, `NotDirectory`, `NotEmpty`, `AccessDenied`, `NotPermitted`, `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveDir {
    pub parent: FileId,
    pub name: Name,
}
rpc!(RemoveDir => EntryReply, "directory.rmdir", User, mutates);

/// What rename does with the target name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameRule {
    /// An existing target is replaced, if its kind allows.
    #[default]
    Replace,
    /// An existing target is an error.
    NoReplace,
    /// Both names must exist and are exchanged.
    Exchange,
}

/// Moves a name, atomically.
///
/// Errors: `NotFound`, `Exists`, `NotEmpty`, `IsDirectory`, `NotDirectory`, `Loop`, `CrossVolume`,
/// `AccessDenied`, `NotPermitted`, `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rename {
    pub from_parent: FileId,
    pub from_name: Name,
    pub to_parent: FileId,
    pub to_name: Name,
    pub rule: RenameRule,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameReply {
    /// The moved inode after the move.
    pub attr: Attr,
    /// The inode that had the target name, after the move.
    pub replaced: Option<Attr>,
    pub sequence: Sequence,
}
rpc!(Rename => RenameReply, "directory.rename", User, mutates);

/// Where a node listens.
///
/// Shape: `host` is a name or an address without port; `None` means the host by which the asker
/// reached the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeAddress {
    pub node: NodeId,
    pub host: Option<String>,
    pub port: u16,
}

/// Where a file's chunks are: the primary first.
///
/// Shape: 1 to `REPLICA_COUNT_MAX` nodes, none twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub replicas: Vec<NodeAddress>,
}

/// What a client needs to change a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteGrant {
    pub token: FencingToken,
    pub capability: WriteCapability,
}

/// How long an open for writing waits for the write lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockWait {
    /// `LockBusy` at once.
    No,
    /// `LockTimeout` after this long. Units: milliseconds.
    UpTo(u32),
}

/// What an open is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenAccess {
    Read,
    /// With the write lock; `read` says whether read permission is needed too.
    Write {
        wait: LockWait,
        read: bool,
    },
}

/// Opens a file: permission, current version, and for writing the lock.
///
/// Errors: `AccessDenied`, `IsDirectory`, `Stale`, `LockBusy`, `LockTimeout`, `SessionUnknown`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    pub fid: FileId,
    pub access: OpenAccess,
    /// The version the client has in its cache: its manifest is then not sent.
    pub have: Option<DataVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReply {
    pub attr: Attr,
    /// Absent if the client has this version.
    pub manifest: Option<Manifest>,
    pub placement: Placement,
    pub read: ReadCapability,
    pub write: Option<WriteGrant>,
    pub sequence: Sequence,
}
rpc!(Open => OpenReply, "directory.open", User);

/// Makes a file and opens it for writing. `mode` has the caller's umask applied.
///
/// If the name exists: `Exists` if `exclusive`, else it is opened (permission checked as for
/// [`Open`]) and `created` is false.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    pub parent: FileId,
    pub name: Name,
    pub mode: u32,
    pub exclusive: bool,
    pub access: OpenAccess,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateReply {
    pub created: bool,
    pub open: OpenReply,
    pub before: DirVersion,
    pub after: DirVersion,
}
rpc!(Create => CreateReply, "directory.create", User, mutates);

/// Makes an inode without content: fifo, socket, device, or an empty file. `rdev` counts for
/// devices only.
///
/// Errors: as [`MakeDir`]; `NotPermitted` for a device that is not root's wish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeNode {
    pub parent: FileId,
    pub name: Name,
    pub kind: FileKind,
    pub mode: u32,
    pub rdev: u32,
}
rpc!(MakeNode => EntryReply, "directory.mknod", User, mutates);

/// How much a commit survives once it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Durability {
    /// kill -9 of any server.
    #[default]
    Process,
    /// Power loss.
    Stable,
}

/// Attributes that travel with a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitAttr {
    /// When the data was written, by the client's clock.
    pub mtime: Timestamp,
    pub atime: Option<Timestamp>,
    /// Clears set-user-id and set-group-id, as a write by somebody unprivileged does.
    pub clear_set_id: bool,
    /// What the file's maker set before its first commit.
    pub first: Option<Box<FirstAttr>>,
}

/// Owner and mode that were set on a new file before its first commit, applied after
/// `CommitAttr::clear_set_id`.
///
/// As `directory.setattr` by the caller `by` would; what that may not set (any more) stays as it
/// is, and the commit is done all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstAttr {
    /// Believed as the caller of a request in this session is.
    pub by: Option<Identity>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A new content for a file, as the client wants it. Sent to a file node, which stores the chunks
/// and passes it on; the directory checks both MACs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub op: OpId,
    pub manifest: Manifest,
    pub attr: CommitAttr,
    pub durability: Durability,
    pub capability: WriteCapability,
    /// The client's MAC over [`crate::capability::CommitIntent`].
    pub mac: Mac,
}

/// Makes `change` the content of its file, if the file is still at its base. The only place where
/// content changes.
///
/// Called by file nodes. `change.op` is the op id: repeated, it gets the first answer.
///
/// Errors: `Conflict`, `Fenced`, `NeedChunks`, `Stale`, `CapabilityRefused`, `SessionUnknown`,
/// `NoSpace`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Commit {
    pub change: Change,
    /// The client's watermark, passed on.
    pub lowest_unanswered: u64,
    /// The chunks that the nodes in `held_by` have stored for this file in this store.
    pub stored: Vec<ChunkHash>,
    pub held_by: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReply {
    pub attr: Attr,
    /// For the next change on top of this one.
    pub capability: WriteCapability,
    pub sequence: Sequence,
}
rpc!(Commit => CommitReply, "directory.commit", Node);

/// What became of a mutation whose answer was lost. What is not committed is recorded as refused:
/// it will never run. Only the session that made the op may ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub volume: VolumeId,
    pub op: OpId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutcomeReply {
    /// It was run, with this commit sequence (or an earlier one, if it was long ago).
    Committed(Sequence),
    /// It changed nothing and never will.
    Refused,
}
rpc!(Outcome => OutcomeReply, "directory.outcome", User);

/// A fresh write capability for a lock that the session still holds.
///
/// Errors: `Fenced`, `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewWrite {
    pub fid: FileId,
    pub token: FencingToken,
}
rpc!(RenewWrite => WriteGrant, "directory.renew_write", User);

/// Gives a write lock back. Gone or foreign locks are no error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Yield {
    pub fid: FileId,
    pub token: FencingToken,
}
rpc!(Yield => (), "directory.yield", User);

/// Makes a committed file or directory survive power loss: its chunks on every live replica, then
/// the metadata.
///
/// Errors: `Stale`, `Unavailable`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fsync {
    pub fid: FileId,
}
rpc!(Fsync => (), "directory.fsync", User);

/// Space of a file's volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatFs {
    pub fid: FileId,
}
rpc!(StatFs => VolumeSpace, "directory.statfs", User);

/// Where a file's bytes are, looked up on the nodes themselves.
///
/// Errors: `Stale`, `AccessDenied`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Where {
    pub fid: FileId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    pub address: NodeAddress,
    /// Chunks of the current version that the node holds, of `chunks_total`; an error text if the
    /// node did not say.
    pub chunks_held: Result<u64, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereReply {
    pub attr: Attr,
    /// Names the content of the current version.
    pub manifest_hash: ChunkHash,
    pub chunks_total: u64,
    pub replicas: Vec<ReplicaState>,
}
rpc!(Where => WhereReply, "directory.where", User);

/// A file node tells that it lives. Answered with what it needs to check capabilities.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeHeartbeat {
    pub address: NodeAddress,
    pub total_bytes: u64,
    pub free_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHeartbeatReply {
    pub capability_key: MacKey,
}
rpc!(NodeHeartbeat => NodeHeartbeatReply, "directory.node_heartbeat", Node);
