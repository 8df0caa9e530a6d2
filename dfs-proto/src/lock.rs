//! The lock service: one writer at a time, first come first served. Called by directory nodes.

use serde::{Deserialize, Serialize};

use crate::directory::{LockWait, rpc};
use crate::id::{FileId, SessionId};
use crate::rpc::{Access, Rpc, StreamRpc};
use crate::version::FencingToken;

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

/// The recalls for all sessions, as they happen. Those outstanding at the start come first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recalls {}

impl StreamRpc for Recalls {
    const PATH: &'static str = "lock.recalls";
    const ACCESS: Access = Access::Node;
    type Item = Recall;
}
