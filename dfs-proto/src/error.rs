//! `FsError`: every way an operation can fail, as one closed set with stable wire codes.
//!
//! The order of variants is the wire format (bincode numbers them): new ones go to the end.
//! `code()` is the number that documents, JSON and logs use. PROTOCOL.md lists them all, and
//! `tests/tidy.rs` checks that it does.

use serde::{Deserialize, Serialize};

use crate::capability::CapabilityFault;
use crate::chunk::ChunkHash;
use crate::version::DataVersion;

/// Why an operation was not done. Each variant carries the one fact its receiver needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("name exists already")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory is not empty")]
    NotEmpty,
    #[error("permission denied")]
    AccessDenied,
    #[error("operation is only for the owner or an administrator")]
    NotPermitted,
    #[error("{what} is not valid")]
    InvalidArgument { what: String },
    #[error("file has as many names as it can have")]
    TooManyLinks,
    #[error("the two names are on different volumes")]
    CrossVolume,
    #[error("a directory cannot become its own descendant")]
    Loop,
    #[error("no space: {what}")]
    NoSpace { what: String },
    #[error("volume is read-only")]
    ReadOnly,
    /// The inode does not exist (any more).
    #[error("file does not exist any more")]
    Stale,
    /// A commit came first; the file is at `current`.
    #[error("another change came first: the file is at version {current}")]
    Conflict { current: DataVersion },
    /// The fencing token is older than the newest one.
    #[error("write lock was lost to another client")]
    Fenced,
    /// Somebody else holds the write lock, or a range, and the caller did not want to wait.
    #[error("file is locked by {holder}")]
    LockBusy { holder: String },
    /// The wait for the write lock, or a range, took longer than the caller wanted.
    #[error("waited too long for a lock of the file; held by {holder}")]
    LockTimeout { holder: String },
    /// A commit names chunks that nobody stored for this file.
    #[error("{} chunks of the new version are not stored", .0.len())]
    NeedChunks(Vec<ChunkHash>),
    /// This node does not have a chunk.
    #[error("chunk {0} is not here")]
    ChunkMissing(ChunkHash),
    /// Bytes do not have the hash they are named by.
    #[error("chunk {0} is damaged")]
    ChunkCorrupt(ChunkHash),
    #[error("{0}")]
    CapabilityRefused(CapabilityFault),
    #[error("no ticket: log in first")]
    Unauthenticated,
    #[error("ticket has expired")]
    TicketExpired,
    #[error("ticket is not valid: {why}")]
    TicketRefused { why: String },
    /// Says nothing about which of the two was wrong.
    #[error("user or password is wrong")]
    LoginRefused,
    #[error("too many attempts; try again in {retry_after_secs} s")]
    RateLimited { retry_after_secs: u32 },
    /// The server does not know this session (it restarted, or the lease ended): open it again.
    #[error("session is not known to the server")]
    SessionUnknown,
    #[error("volume `{name}` does not exist")]
    UnknownVolume { name: String },
    /// The server cannot do it at present; the same request may succeed later.
    #[error("not available: {what}")]
    Unavailable { what: String },
    #[error("no answer in time from {whom}")]
    TimedOut { whom: String },
    #[error("{what} is over the limit of {limit}")]
    TooLarge { what: String, limit: u64 },
    #[error("message is malformed: {what}")]
    Malformed { what: String },
    #[error("server speaks protocol version {server}, this program {client}")]
    VersionMismatch { server: u16, client: u16 },
    /// The op id is below the client's watermark: it was answered and forgotten, or refused.
    #[error("operation was settled before and is not run again")]
    OpSettled,
    #[error("operation `{path}` is not known to this server")]
    UnknownOperation { path: String },
    #[error("operation is not supported: {what}")]
    Unsupported { what: String },
    /// Damage or a broken rule inside a server; its log has the cause under `incident`.
    #[error("internal error on the server; its log has the cause under incident {incident}")]
    Internal { incident: String },
    #[error("join token is not valid: {why}")]
    JoinRefused { why: String },
    /// Made by whoever calls, not by a server: nobody was asked anything.
    #[error("{whom} does not prove that it is of our cell: {what}")]
    NotOfCell { whom: String, what: String },
    #[error("no such extended attribute")]
    NoAttribute,
}

impl FsError {
    pub fn malformed(what: impl Into<String>) -> FsError {
        FsError::Malformed { what: what.into() }
    }

    pub fn invalid(what: impl Into<String>) -> FsError {
        FsError::InvalidArgument { what: what.into() }
    }

    pub fn unavailable(what: impl Into<String>) -> FsError {
        FsError::Unavailable { what: what.into() }
    }

    /// The stable number of this kind of error, as PROTOCOL.md lists it.
    pub fn code(&self) -> u16 {
        match self {
            FsError::NotFound => 1,
            FsError::Exists => 2,
            FsError::NotDirectory => 3,
            FsError::IsDirectory => 4,
            FsError::NotEmpty => 5,
            FsError::AccessDenied => 6,
            FsError::NotPermitted => 7,
            FsError::InvalidArgument { .. } => 8,
            FsError::TooManyLinks => 9,
            FsError::CrossVolume => 10,
            FsError::Loop => 11,
            FsError::NoSpace { .. } => 12,
            FsError::ReadOnly => 13,
            FsError::Stale => 14,
            FsError::NoAttribute => 15,
            FsError::Conflict { .. } => 20,
            FsError::Fenced => 21,
            FsError::LockBusy { .. } => 22,
            FsError::LockTimeout { .. } => 23,
            FsError::NeedChunks(_) => 30,
            FsError::ChunkMissing(_) => 31,
            FsError::ChunkCorrupt(_) => 32,
            FsError::CapabilityRefused(_) => 33,
            FsError::Unauthenticated => 40,
            FsError::TicketExpired => 41,
            FsError::TicketRefused { .. } => 42,
            FsError::LoginRefused => 43,
            FsError::RateLimited { .. } => 44,
            FsError::SessionUnknown => 45,
            FsError::JoinRefused { .. } => 46,
            FsError::NotOfCell { .. } => 47,
            FsError::UnknownVolume { .. } => 50,
            FsError::Unavailable { .. } => 51,
            FsError::TimedOut { .. } => 52,
            FsError::TooLarge { .. } => 60,
            FsError::Malformed { .. } => 61,
            FsError::VersionMismatch { .. } => 62,
            FsError::OpSettled => 63,
            FsError::UnknownOperation { .. } => 64,
            FsError::Unsupported { .. } => 65,
            FsError::Internal { .. } => 70,
        }
    }

    /// Whether the same request may succeed later without anybody changing it.
    ///
    /// `NotOfCell` is: the right server may come back to the address, and a mount then goes on.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            FsError::Unavailable { .. } | FsError::TimedOut { .. } | FsError::NotOfCell { .. }
        )
    }
}
