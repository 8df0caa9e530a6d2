//! FsError to HTTP status: for proxies, logs and plain clients. DFS clients read the frame.

use dfs_proto::FsError;

/// The HTTP status that comes nearest to an error. Exhaustive, so that a new error needs a choice.
pub fn http_status(error: &FsError) -> u16 {
    match error {
        FsError::NotFound | FsError::Stale | FsError::UnknownVolume { .. } => 404,
        FsError::NoAttribute => 404,
        FsError::ChunkMissing(_) => 404,
        FsError::UnknownOperation { .. } => 404,
        FsError::Exists
        | FsError::NotEmpty
        | FsError::Conflict { .. }
        | FsError::Fenced
        | FsError::NeedChunks(_)
        | FsError::OpSettled => 409,
        FsError::NotDirectory
        | FsError::IsDirectory
        | FsError::InvalidArgument { .. }
        | FsError::TooManyLinks
        | FsError::CrossVolume
        | FsError::Loop
        | FsError::ChunkCorrupt(_)
        | FsError::Malformed { .. }
        | FsError::VersionMismatch { .. } => 400,
        FsError::AccessDenied
        | FsError::NotPermitted
        | FsError::ReadOnly
        | FsError::CapabilityRefused(_)
        | FsError::JoinRefused { .. } => 403,
        FsError::Unauthenticated
        | FsError::TicketExpired
        | FsError::TicketRefused { .. }
        | FsError::LoginRefused
        | FsError::SessionUnknown => 401,
        FsError::LockBusy { .. } | FsError::LockTimeout { .. } => 423,
        FsError::TooLarge { .. } => 413,
        FsError::RateLimited { .. } => 429,
        FsError::Internal { .. } => 500,
        FsError::Unsupported { .. } => 501,
        FsError::Unavailable { .. } | FsError::NotOfCell { .. } => 503,
        FsError::TimedOut { .. } => 504,
        FsError::NoSpace { .. } => 507,
    }
}
