//! Sessions: one client's standing with a volume's owner. Served by the directory service.

use serde::{Deserialize, Serialize};

use crate::attr::{Attr, Timestamp};
use crate::capability::MacKey;
use crate::directory::rpc;
use crate::id::FileId;
use crate::lock::WaitNumber;
use crate::promise::{Break, BreakNumber, StreamNumber};
use crate::rpc::{Access, Rpc, StreamRpc};
use crate::version::{Epoch, FencingToken};

/// A volume by its name. Needs no session. Errors: `UnknownVolume`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenVolume {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReply {
    /// Attributes of the root directory; its file id names the volume.
    pub root: Attr,
    /// The server's wall clock, so that a client far off can say so.
    pub wall: Timestamp,
}
rpc!(OpenVolume => VolumeReply, "session.volume", User);

/// Opens the session that the envelope names, or takes it up again after a server's restart.
///
/// Errors: `UnknownVolume`, `NotPermitted` (the session belongs to another user), `TooLarge`
/// (too many sessions).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenSession {
    pub volume: String,
    /// What others are told of this client; 1 to `WORD_BYTES_MAX` bytes.
    pub host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReply {
    pub volume: VolumeReply,
    /// For the client's MACs over its commits.
    pub key: MacKey,
    /// Units: milliseconds. Counted by the client from the sending of its request.
    pub lease_ms: u32,
    /// The owner's epoch: another one than before means that it restarted.
    pub epoch: Epoch,
}
rpc!(OpenSession => SessionReply, "session.open", User);

/// Renews the session's lease, and gives locks back on the way.
///
/// Errors: `SessionUnknown`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    pub yielded: Vec<(FileId, FencingToken)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// Units: milliseconds.
    pub lease_ms: u32,
    pub epoch: Epoch,
    /// The event stream whose promises are renewed for the same time; none while a break on it is
    /// not acknowledged, or after they were given up.
    pub promised: Option<StreamNumber>,
}
rpc!(Heartbeat => HeartbeatReply, "session.heartbeat", User);

/// Ends the session: its locks and lease go at once. An unknown session is no error.
///
/// The envelope's watermark is a promise: the client will not ask what became of an op below it.
/// The run that follows a crash gives `u64::MAX` for the session it has settled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloseSession {}
rpc!(CloseSession => (), "session.close", User);

/// What the owner tells a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionEvent {
    /// First item of every stream: events from here on are not lost while it lives.
    ///
    /// What was promised on an earlier stream is not promised any more.
    Started { epoch: Epoch, stream: StreamNumber },
    /// Somebody else wants to write: give the lock back as soon as possible.
    LockRecall { fid: FileId, token: FencingToken },
    /// The stream lives. Sent when nothing else was for a while.
    Idle,
    /// Something changed. To be acknowledged by [`Acknowledge`].
    Break(Break),
    /// A wait for a range was granted, or lost its place: ask again.
    RangeReady { fid: FileId, wait: WaitNumber },
    /// The session's ranges on a file were taken away.
    RangesLost { fid: FileId },
    /// The lock service knows nothing of before: take the session's ranges up again.
    ReclaimRanges,
}

/// Everything that the session holds is as all breaks up to `number` say: those who wait for it may
/// go on.
///
/// Errors: `SessionUnknown`; `InvalidArgument` (no such break yet); `TooLarge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Acknowledge {
    pub number: BreakNumber,
    /// Of the directories in breaks up to `number`, those that were used since the break before
    /// that told of them: their promises stay. Shape: at most `USED_DIRS_MAX`.
    pub used: Vec<FileId>,
}
rpc!(Acknowledge => (), "session.acknowledge", User);

/// The session's event stream. A new one ends the one before, and with it all that was promised:
/// who asks for one holds to no promise of before any more. Errors: `SessionUnknown`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Events {}

impl StreamRpc for Events {
    const PATH: &'static str = "session.events";
    const ACCESS: Access = Access::User;
    type Item = SessionEvent;
}
