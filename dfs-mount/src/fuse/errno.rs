//! Errors as errno values: one exhaustive match, so that a new error cannot be forgotten.
//!
//! Programs see nothing but the number. Where several fit, the one whose text tells a person what
//! to do is chosen; the log has the whole error. SEMANTICS.md has a row for each number.

use dfs_proto::error::FsError;
use dfs_proto::name::NameError;
use dfs_proto::xattr::XattrError;
use fuser::Errno;

use crate::vfs::Error;

/// The errno that a program sees.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::Fs(error) => of_fs(error),
        Error::Name(NameError::TooLong(_)) => Errno::ENAMETOOLONG,
        Error::Name(NameError::Empty) => Errno::ENOENT,
        Error::Name(NameError::ForbiddenByte | NameError::Dots) => Errno::EINVAL,
        Error::Xattr(error) => of_xattr(error),
        Error::Local { source, .. } => of_io(source),
        Error::Interrupted => Errno::EINTR,
        Error::BadHandle => Errno::EBADF,
        // Whoever writes asks for the lock; this is for a way that was forgotten.
        Error::Shared => Errno::EIO,
    }
}

/// As the kernel says of what it refuses by itself.
fn of_xattr(error: &XattrError) -> Errno {
    match error {
        XattrError::NameTooLong(_) => Errno::ERANGE,
        XattrError::Malformed => Errno::EINVAL,
        XattrError::Security | XattrError::Namespace(_) => Errno::EOPNOTSUPP,
        XattrError::ValueTooLong(_) => Errno::E2BIG,
    }
}

fn of_io(error: &std::io::Error) -> Errno {
    match (system_code(error), error.kind()) {
        (Some(code), _) => Errno::from_i32(code),
        (None, std::io::ErrorKind::StorageFull) => Errno::ENOSPC,
        (None, std::io::ErrorKind::QuotaExceeded) => Errno::EDQUOT,
        (None, std::io::ErrorKind::FileTooLarge) => Errno::EFBIG,
        (None, _) => Errno::EIO,
    }
}

/// The number of the system call that failed, which may be a cause of the error.
fn system_code(error: &std::io::Error) -> Option<i32> {
    if let Some(code) = error.raw_os_error() {
        return Some(code);
    }
    let mut cause = error.get_ref().and_then(|inner| inner.source());
    while let Some(error) = cause {
        let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if code.is_some() {
            return code;
        }
        cause = error.source();
    }
    None
}

fn of_fs(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::AccessDenied => Errno::EACCES,
        FsError::NotPermitted => Errno::EPERM,
        // POSIX: EINVAL for a directory moved below itself, which is what the server calls a loop;
        // ELOOP is about symbolic links.
        FsError::InvalidArgument { .. } | FsError::Loop => Errno::EINVAL,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::CrossVolume => Errno::EXDEV,
        FsError::NoSpace { .. } => Errno::ENOSPC,
        FsError::ReadOnly => Errno::EROFS,
        // The kernel looks the path up again, once.
        FsError::Stale => Errno::ESTALE,
        // As open(2) with O_NONBLOCK says of a lease, and flock(2) of a lock.
        FsError::LockBusy { .. } | FsError::LockTimeout { .. } => Errno::EAGAIN,
        // "Host is down" and "connection timed out" say it best.
        FsError::Unavailable { .. } | FsError::NotOfCell { .. } => Errno::EHOSTDOWN,
        FsError::TimedOut { .. } => Errno::ETIMEDOUT,
        FsError::TooLarge { .. } => Errno::EFBIG,
        // "Required key not available", "key has expired", "key was rejected by service": the
        // texts point at the login, which EACCES would not.
        FsError::Unauthenticated => Errno::from_i32(libc::ENOKEY),
        FsError::TicketExpired => Errno::from_i32(libc::EKEYEXPIRED),
        FsError::TicketRefused { .. } | FsError::LoginRefused | FsError::JoinRefused { .. } => {
            Errno::from_i32(libc::EKEYREJECTED)
        }
        FsError::RateLimited { .. } => Errno::EBUSY,
        FsError::UnknownVolume { .. } => Errno::ENODEV,
        FsError::VersionMismatch { .. } => Errno::EPROTONOSUPPORT,
        FsError::Unsupported { .. } | FsError::UnknownOperation { .. } => Errno::EOPNOTSUPP,
        FsError::Malformed { .. } => Errno::EPROTO,
        // A lost change or lost bytes: what close(2) reports as EIO. ESTALE would make the kernel
        // try again, and the program believe the file was removed.
        FsError::Conflict { .. }
        | FsError::Fenced
        | FsError::NeedChunks(_)
        | FsError::ChunkMissing(_)
        | FsError::ChunkCorrupt(_)
        | FsError::CapabilityRefused(_)
        | FsError::SessionUnknown
        | FsError::OpSettled
        | FsError::Internal { .. } => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: Error) -> i32 {
        errno(&error).into()
    }

    #[test]
    fn what_programs_test_for_has_its_own_number() {
        assert_eq!(code(FsError::NotFound.into()), libc::ENOENT);
        assert_eq!(code(FsError::Exists.into()), libc::EEXIST);
        assert_eq!(code(FsError::NotEmpty.into()), libc::ENOTEMPTY);
        assert_eq!(code(FsError::Stale.into()), libc::ESTALE);
        let busy = FsError::LockBusy { holder: "h".into() };
        assert_eq!(code(busy.into()), libc::EAGAIN);
        assert_eq!(code(Error::Interrupted), libc::EINTR);
        assert_eq!(code(Error::Name(NameError::TooLong(300))), libc::ENAMETOOLONG);
        assert_eq!(code(FsError::NoAttribute.into()), libc::ENODATA);
        let foreign = XattrError::Namespace("system.posix_acl_access".into());
        assert_eq!(code(foreign.into()), libc::EOPNOTSUPP);
    }

    #[test]
    fn what_a_person_must_mend_has_a_number_that_says_so() {
        let (what, whom) = (String::new, String::new);
        let login = [
            (FsError::Unauthenticated, libc::ENOKEY),
            (FsError::TicketExpired, libc::EKEYEXPIRED),
            (FsError::TicketRefused { why: what() }, libc::EKEYREJECTED),
            (FsError::RateLimited { retry_after_secs: 1 }, libc::EBUSY),
        ];
        let servers = [
            (FsError::unavailable("all"), libc::EHOSTDOWN),
            (FsError::NotOfCell { whom: whom(), what: what() }, libc::EHOSTDOWN),
            (FsError::TimedOut { whom: whom() }, libc::ETIMEDOUT),
            (FsError::UnknownVolume { name: what() }, libc::ENODEV),
            (FsError::VersionMismatch { server: 2, client: 1 }, libc::EPROTONOSUPPORT),
            (FsError::malformed("reply"), libc::EPROTO),
            (FsError::Unsupported { what: what() }, libc::EOPNOTSUPP),
        ];
        for (error, number) in login.into_iter().chain(servers) {
            assert_eq!(code(error.clone().into()), number, "{error}");
        }
    }

    #[test]
    fn lost_changes_and_lost_bytes_are_input_output_errors() {
        let current = dfs_proto::version::DataVersion::default();
        let lost = [
            FsError::Conflict { current },
            FsError::Fenced,
            FsError::OpSettled,
            FsError::Internal { incident: "i".into() },
        ];
        for error in lost {
            assert_eq!(code(error.clone().into()), libc::EIO, "{error}");
        }
        let limit = FsError::TooLarge { what: "manifest".into(), limit: 1 };
        assert_eq!(code(limit.into()), libc::EFBIG);
    }

    #[test]
    fn a_local_error_keeps_its_number_and_a_full_cache_is_no_space() {
        let local = |source| Error::Local { what: "write the cache file".into(), source };
        let denied = std::io::Error::from_raw_os_error(libc::EDQUOT);
        assert_eq!(code(local(denied)), libc::EDQUOT);
        let full = std::io::Error::new(std::io::ErrorKind::StorageFull, "cache is full");
        assert_eq!(code(local(full)), libc::ENOSPC);
        let refused = crate::cache::CacheError::Io {
            what: "cannot write cache file",
            path: "f".into(),
            source: std::io::Error::from_raw_os_error(libc::EOPNOTSUPP),
        };
        assert_eq!(code(refused.into()), libc::EOPNOTSUPP, "also of an error with its context");
        let long = std::io::Error::new(std::io::ErrorKind::FileTooLarge, "beyond the disk's limit");
        assert_eq!(code(local(long)), libc::EFBIG);
    }
}
