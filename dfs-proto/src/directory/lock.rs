//! Ranges that programs lock, as clients ask for them; and what people ask about locks.

use serde::{Deserialize, Serialize};

use crate::id::FileId;
use crate::lock::{HeldRange, LockOwner, LockPage, RangeAnswer, RangeClaim, WaitNumber};
use crate::range::{Range, RangeKind};
use crate::rpc::{Access, Rpc};
use crate::version::DataVersion;

use super::{OpenReply, rpc};

/// Asks for a range of a file; see [`crate::lock::LockRange`]. Permission is that of the open file
/// through which it is asked for, which its client knows.
///
/// Errors: `Stale`, `SessionUnknown`, `InvalidArgument`, `TooLarge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskRange {
    pub fid: FileId,
    pub owner: LockOwner,
    pub pid: u32,
    pub range: Range,
    pub kind: RangeKind,
    pub wait: Option<WaitNumber>,
    /// The version that the client has: if it is granted and this is not the newest, the answer
    /// has that, as of after the grant.
    pub have: Option<DataVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskRangeReply {
    pub answer: RangeAnswer,
    /// As opening for reading would be answered.
    pub newest: Option<Box<OpenReply>>,
}
rpc!(AskRange => AskRangeReply, "directory.lock_range", User);

/// Whose range stands against this one, if any.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FindRange {
    pub fid: FileId,
    pub owner: LockOwner,
    pub range: Range,
    pub kind: RangeKind,
}
rpc!(FindRange => Option<RangeClaim>, "directory.test_range", User);

/// Gives ranges of a file back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropRange {
    pub fid: FileId,
    pub owner: LockOwner,
    pub range: Range,
}
rpc!(DropRange => (), "directory.unlock_range", User);

/// Ends a wait for a range.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelWait {
    pub fid: FileId,
    pub wait: WaitNumber,
}
rpc!(CancelWait => (), "directory.cancel_range", User);

/// Takes the session's ranges up again after a restart of the servers. The reply lists those that
/// are lost.
///
/// Errors: `SessionUnknown`; `TooLarge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reclaim {
    /// Shape: at most `RECLAIM_RANGES_MAX`.
    pub held: Vec<HeldRange>,
}
rpc!(Reclaim => Vec<HeldRange>, "directory.reclaim_ranges", User);

/// Who has and who wants the locks of a file. Errors: `Stale`, `AccessDenied`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocksOf {
    pub fid: FileId,
}
rpc!(LocksOf => LockPage, "directory.locks", User);

/// All files of which somebody has or wants a lock: one page, in order of files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllLocks {
    pub after: Option<FileId>,
}
rpc!(AllLocks => LockPage, "directory.all_locks", Admin);

/// Takes all locks of a file away from those who hold them. How many there were.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakLocksOf {
    pub fid: FileId,
}
rpc!(BreakLocksOf => u64, "directory.break_locks", Admin);
