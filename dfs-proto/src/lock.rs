//! The lock service: one writer of a file at a time, and ranges that programs lock, first come
//! first served. Called by directory nodes.

use serde::{Deserialize, Serialize};

use crate::attr::Timestamp;
use crate::directory::{LockWait, rpc};
use crate::id::{FileId, SessionId};
use crate::range::{Range, RangeKind};
use crate::rpc::{Access, Rpc, StreamRpc};
use crate::version::{Epoch, FencingToken};

/// Asks for a file's write lock for a session. A session that holds it gets the same token again.
///
/// While somebody else holds it, the holder is recalled and the asker waits in the file's queue;
/// the wait ends with the connection of the asker.
///
/// Errors: `LockBusy`, `LockTimeout`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Grant {
    pub fid: FileId,
    pub session: SessionId,
    /// What others are told of the holder: the client's host and user.
    pub holder: String,
    pub wait: LockWait,
}
rpc!(Grant => FencingToken, "lock.grant", Node);

/// Gives a lock back. A lock that is gone, or was granted anew since, is left alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Release {
    pub fid: FileId,
    pub session: SessionId,
    pub token: FencingToken,
}
rpc!(Release => (), "lock.release", Node);

/// A session has ended: its locks go to those who wait.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndSession {
    pub session: SessionId,
}
rpc!(EndSession => (), "lock.end_session", Node);

/// A holder is asked to give its lock back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    pub fid: FileId,
    pub session: SessionId,
    pub token: FencingToken,
}

/// Who locks ranges: one process, or one open file, of a session's client. The client's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner(pub u64);

/// Which of a session's waits for ranges. The client's to choose, none twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WaitNumber(pub u64);

/// A range that somebody has, or wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeClaim {
    pub session: SessionId,
    /// What others are told of it: the client's host and user.
    pub holder: String,
    pub owner: LockOwner,
    /// The process that asked, on its client's machine: for people.
    pub pid: u32,
    pub range: Range,
    pub kind: RangeKind,
}

/// Asks for a range, whatever its owner has there. With `wait` it is queued if it cannot be had;
/// asked again with the same number it keeps its place, and a grant that came meanwhile. A wait
/// that is not asked about for `RANGE_WAIT_LEASE` is over, and so is its grant.
///
/// Errors: `InvalidArgument`; `TooLarge` (the session's ranges of the file).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LockRange {
    pub fid: FileId,
    pub claim: RangeClaim,
    pub wait: Option<WaitNumber>,
}
rpc!(LockRange => RangeAnswer, "lock.lock_range", Node);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeAnswer {
    Granted,
    /// In the queue, behind this one. `RangeReady` tells when to ask again.
    Queued(RangeClaim),
    /// Somebody has it, and the asker does not wait.
    Held(RangeClaim),
}

/// Whose range stands against this one, if any.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestRange {
    pub fid: FileId,
    pub claim: RangeClaim,
}
rpc!(TestRange => Option<RangeClaim>, "lock.test_range", Node);

/// Gives ranges of a file back. What is not held is no error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnlockRange {
    pub fid: FileId,
    pub session: SessionId,
    pub owner: LockOwner,
    pub range: Range,
}
rpc!(UnlockRange => (), "lock.unlock_range", Node);

/// Ends a wait; if it was granted, what its owner had there before is as it was. Unknown ones are
/// no error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelRange {
    pub fid: FileId,
    pub session: SessionId,
    pub wait: WaitNumber,
}
rpc!(CancelRange => (), "lock.cancel_range", Node);

/// A range that a session held of a service or owner before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRange {
    pub fid: FileId,
    pub owner: LockOwner,
    pub pid: u32,
    pub range: Range,
    pub kind: RangeKind,
}

/// Takes up ranges again. `is_grace` says that nobody else can have been granted any since.
///
/// The reply lists those that are lost: all, if somebody may have been.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReclaimRanges {
    pub session: SessionId,
    pub holder: String,
    /// Shape: at most `RECLAIM_RANGES_MAX`.
    pub held: Vec<HeldRange>,
    pub is_grace: bool,
}
rpc!(ReclaimRanges => Vec<HeldRange>, "lock.reclaim_ranges", Node);

/// The write lock of a file, or somebody's place in its queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteClaim {
    pub session: SessionId,
    pub holder: String,
    /// Absent for those who wait.
    pub token: Option<FencingToken>,
    pub since: Timestamp,
}

/// A range and since when it is held, or wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeSince {
    pub claim: RangeClaim,
    pub since: Timestamp,
}

/// Who has and who wants what of a file. Shape: those who wait in the order of the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLocks {
    pub fid: FileId,
    pub writer: Option<WriteClaim>,
    pub waiting_writers: Vec<WriteClaim>,
    pub ranges: Vec<RangeSince>,
    pub waiting_ranges: Vec<RangeSince>,
}

/// The locks of files, in order of files: one page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListLocks {
    /// This file only, also if it has none.
    pub fid: Option<FileId>,
    pub after: Option<FileId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockPage {
    /// Shape: at most `LOCK_PAGE_FILES_MAX`.
    pub files: Vec<FileLocks>,
    pub is_last: bool,
}
rpc!(ListLocks => LockPage, "lock.list", Node);

/// Takes all locks of a file away from those who hold them. How many there were.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakLocks {
    pub fid: FileId,
}
rpc!(BreakLocks => u64, "lock.break", Node);

/// What the service tells the directory nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockEvent {
    /// First item of every stream: another epoch than before means that the service knows of no
    /// ranges that were held before.
    Started {
        epoch: Epoch,
    },
    Recall(Recall),
    /// A wait was granted, or lost its place: ask again.
    RangeReady {
        fid: FileId,
        session: SessionId,
        wait: WaitNumber,
    },
    /// The ranges of a session on a file were taken away.
    RangesLost {
        fid: FileId,
        session: SessionId,
    },
}

/// The events for all sessions, as they happen. Recalls outstanding at the start come first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LockEvents {}

impl StreamRpc for LockEvents {
    const PATH: &'static str = "lock.events";
    const ACCESS: Access = Access::Node;
    type Item = LockEvent;
}
