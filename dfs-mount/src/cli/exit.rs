//! Exit codes: what a script may rely on. Defined here, listed by `--help`.

use dfs_proto::FsError;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    Usage,
    Unreachable,
    Refused,
    Unsent,
    MountPoint,
}

impl Exit {
    pub const ALL: [Exit; 7] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Unreachable,
        Exit::Refused,
        Exit::Unsent,
        Exit::MountPoint,
    ];

    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Refused => 4,
            Exit::Unsent => 5,
            Exit::MountPoint => 6,
        }
    }

    pub fn from_code(code: u8) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| exit.code() == code)
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Failed => "the operation failed",
            Exit::Usage => "wrong usage or configuration",
            Exit::Unreachable => "the server does not answer",
            Exit::Refused => "not logged in, or not allowed",
            Exit::Unsent => "data that the server does not have is left",
            Exit::MountPoint => "the mount point is missing, busy, or not a DFS mount",
        }
    }
}

/// The codes, as `--help` lists them.
pub fn help() -> String {
    let lines = Exit::ALL.map(|exit| format!("  {}  {}", exit.code(), exit.meaning()));
    format!("Exit codes:\n{}", lines.join("\n"))
}

/// What an operation's error means for the command: its exit code, and what to try.
///
/// Debatable: a permission denied by the server is `Refused`, not `Failed`, because the remedy is
/// the same as for a missing login: act as somebody else.
pub fn judge(error: &FsError) -> (Exit, Option<&'static str>) {
    match error {
        FsError::NotFound => (Exit::Failed, Some("check the path with dfs ls")),
        FsError::Exists => (Exit::Failed, None),
        FsError::NotDirectory => (Exit::Failed, None),
        FsError::IsDirectory => (Exit::Failed, None),
        FsError::NotEmpty | FsError::NoAttribute => (Exit::Failed, None),
        FsError::AccessDenied | FsError::NotPermitted => {
            (Exit::Refused, Some("check who you are with dfs whoami"))
        }
        FsError::InvalidArgument { .. } => (Exit::Failed, None),
        FsError::TooManyLinks | FsError::CrossVolume | FsError::Loop => (Exit::Failed, None),
        FsError::NoSpace { .. } => (Exit::Failed, Some("free space, then repeat the command")),
        FsError::ReadOnly => (Exit::Failed, None),
        FsError::Stale => (Exit::Failed, Some("somebody removed it meanwhile; look again")),
        FsError::Conflict { .. } | FsError::Fenced => {
            (Exit::Failed, Some("somebody else changed it meanwhile; repeat the command"))
        }
        FsError::LockBusy { .. } | FsError::LockTimeout { .. } => {
            (Exit::Failed, Some("wait until the other writer has closed it, then repeat"))
        }
        FsError::NeedChunks(_) => (Exit::Failed, Some("repeat the command")),
        FsError::ChunkMissing(_) | FsError::ChunkCorrupt(_) => {
            (Exit::Failed, Some("see which nodes hold the file with dfs where"))
        }
        FsError::CapabilityRefused(_) => (Exit::Failed, Some("repeat the command")),
        FsError::Unauthenticated | FsError::TicketExpired | FsError::TicketRefused { .. } => {
            (Exit::Refused, Some("log in: dfs login"))
        }
        FsError::LoginRefused => (Exit::Refused, Some("check user and password")),
        FsError::RateLimited { .. } => (Exit::Refused, None),
        FsError::SessionUnknown => (Exit::Failed, Some("repeat the command")),
        FsError::JoinRefused { .. } => {
            (Exit::Refused, Some("make a new token: dfs admin token new"))
        }
        FsError::UnknownVolume { .. } => {
            (Exit::Failed, Some("check the volume in the url; the first one is `main`"))
        }
        FsError::Unavailable { .. } | FsError::TimedOut { .. } => {
            (Exit::Unreachable, Some("check that the server runs and its address is right"))
        }
        FsError::NotOfCell { .. } => (
            Exit::Refused,
            Some(
                "this is not the cell that was logged in to: check the address, or log in to this \
                 one with --fingerprint or --bootstrap",
            ),
        ),
        FsError::TooLarge { .. } => (Exit::Failed, None),
        FsError::Malformed { .. } => (Exit::Failed, Some("is it a DFS server?")),
        FsError::VersionMismatch { .. } => {
            (Exit::Failed, Some("install the same version of dfs and dfs-server"))
        }
        FsError::OpSettled => (Exit::Failed, Some("repeat the command")),
        FsError::UnknownOperation { .. } => {
            (Exit::Failed, Some("the server is older than this program; update it"))
        }
        FsError::Unsupported { .. } => (Exit::Failed, None),
        FsError::Internal { .. } => (Exit::Failed, Some("search the server's log for it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_come_back() {
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
            assert!(help().contains(&format!("  {}  {}", exit.code(), exit.meaning())));
        }
        assert_eq!(Exit::from_code(77), None);
    }

    #[test]
    fn errors_have_the_documented_codes() {
        for (error, code) in [
            (FsError::NotFound, 1),
            (FsError::Exists, 1),
            (FsError::Internal { incident: "x".into() }, 1),
            (FsError::unavailable("x"), 3),
            (FsError::TimedOut { whom: "x".into() }, 3),
            (FsError::Unauthenticated, 4),
            (FsError::TicketExpired, 4),
            (FsError::LoginRefused, 4),
            (FsError::RateLimited { retry_after_secs: 1 }, 4),
            (FsError::AccessDenied, 4),
            (FsError::NotOfCell { whom: "x".into(), what: "y".into() }, 4),
        ] {
            assert_eq!(judge(&error).0.code(), code, "{error}");
        }
    }
}
