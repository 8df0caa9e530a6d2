//! Space and copies: fallocate(2) and copy_file_range(2) on open files.
//!
//! Both work on cache files, on the local disk. Space that was allocated is space of the cache; the
//! servers learn of holes and data when the file is committed.

use std::ops::Range;
use std::sync::Arc;

use dfs_proto::error::FsError;
use nix::errno::Errno;

use super::open::OVERTAKEN_MAX;
use super::{Caller, Error, Vfs};
use crate::cache::Allocate;

/// Most that one request copies. Units: bytes. Why: so long the copier cannot be interrupted; the
/// kernel asks for the rest.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// One side of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub handle: u64,
    pub offset: u64,
}

impl Vfs {
    /// Allocates or clears a stretch of a file open for writing.
    ///
    /// # Errors
    /// `Shared`; `BadHandle` if it is not; `Local`: EFBIG, EINVAL as fallocate(2) says, ENOSPC of
    /// the cache, EOPNOTSUPP of its disk.
    pub fn allocate(
        &self,
        handle: u64,
        how: Allocate,
        (offset, length): (u64, u64),
    ) -> Result<(), Error> {
        let handle = self.file_handle(handle)?;
        let working = handle.working().ok_or(Error::BadHandle)?;
        let stretch = stretch("allocate space in the cache file", offset, length)?;
        if stretch.is_empty() {
            return Err(refused("allocate nothing", Errno::EINVAL));
        }
        let _hold = working.hold().ok_or(Error::Shared)?;
        Ok(working.allocate(how, stretch)?)
    }

    /// Copies between two open files, which may be one. The bytes that were copied: all up to a
    /// bound, fewer at the end of `from`.
    ///
    /// # Errors
    /// `BadHandle` if `to` is not open for writing; `Local`: EINVAL if the two overlap, EFBIG,
    /// ENOSPC of the cache.
    pub async fn copy_range(
        &self,
        caller: &Caller,
        from: Side,
        to: Side,
        length: u64,
    ) -> Result<u64, Error> {
        let touch = || match self.file_handle(to.handle)?.working() {
            Some(working) => working.hold().map(drop).ok_or(Error::Shared),
            None => Err(Error::BadHandle),
        };
        for _ in 0..OVERTAKEN_MAX {
            match self.copy_once(from, to, length).await {
                Err(Error::Shared) => self.with_lock(caller, to.handle, true, touch).await?,
                copied => return copied,
            }
        }
        Err(FsError::unavailable("file changes too often to be copied to").into())
    }

    async fn copy_once(&self, from: Side, to: Side, length: u64) -> Result<u64, Error> {
        const WHAT: &str = "copy within the cache";
        let source = self.file_handle(from.handle)?;
        let working = self.file_handle(to.handle)?.working().ok_or(Error::BadHandle)?;
        let wanted = stretch(WHAT, from.offset, length)?;
        let place = stretch(WHAT, to.offset, length)?;
        let file = source.file().clone();
        let is_same = Arc::ptr_eq(&file, working.file());
        if is_same && wanted.start < place.end && place.start < wanted.end {
            return Err(refused(WHAT, Errno::EINVAL));
        }
        let wanted = wanted.start..wanted.end.min(wanted.start + COPY_BYTES_MAX);
        let copy = move || {
            let _hold = working.hold().ok_or(Error::Shared)?;
            Ok(working.copy_from(&file, wanted, place.start)?)
        };
        let copied = tokio::task::spawn_blocking(copy).await;
        copied.map_err(|error| Error::local(WHAT)(std::io::Error::other(error)))?
    }
}

/// A stretch of a file, if no file is too short for its end.
fn stretch(what: &'static str, offset: u64, length: u64) -> Result<Range<u64>, Error> {
    let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
    end.map(|end| offset..end).ok_or_else(|| refused(what, Errno::EFBIG))
}

fn refused(what: &'static str, errno: Errno) -> Error {
    Error::local(what)(errno.into())
}
