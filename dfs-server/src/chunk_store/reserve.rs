//! The reserve: free space of the disk that chunks leave to everything else.
//!
//! Metadata lies on the same disk as the chunks of the file nodes beside it, and whatever a full
//! disk is to be helped with (unlink, the log's growth, its checkpoint, a start after a crash) must
//! write there first. So a [`ReservedStore`] refuses new chunks before the disk is full. Chunks
//! that are there already take no more space: they are touched, healed, linked and synced.
//!
//! The disk is not asked for each chunk. A look grants a share of the room above the reserve, and
//! what is written is counted against the grant until it is used up or old. Writes that were
//! admitted and are not done yet count as written at the next look. File nodes of one process share
//! the room, each as if all lay on one disk: so what is between two of their looks never adds up to
//! more than there was. What others write to the disk meanwhile is seen at the next look; the
//! reserve is large enough for that.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use dfs_proto::chunk::ChunkHash;
use dfs_proto::clock::Clock;
use dfs_proto::id::FileId;

use super::{ChunkError, ChunkStat, ChunkStore, Space};

/// One in so many bytes of the disk is reserve, within the bounds below.
const RESERVE_PART: u64 = 32;

/// Units: bytes. Why 32 MiB: the log of the metadata grows to 16 MiB before it is moved, and the
/// metadata file then by as much.
const RESERVE_BYTES_MIN: u64 = 32 << 20;

/// Units: bytes. Why 1 GiB: the rows that deleting needs do not grow with the disk, and a share of
/// terabytes would be wasted.
const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// No more than one in so many bytes is reserve, however small the disk is.
const RESERVE_PART_OF_SMALL_DISK: u64 = 4;

/// Files that chunks leave to be made. Why: the metadata and the keys are some ten files, each
/// replaced by writing another; the rest is for what else lies on the disk.
const RESERVE_FILES: u64 = 256;

/// Most that is written between two looks. Units: bytes.
const GRANT_BYTES_MAX: u64 = 64 << 20;

/// How long a grant is good. Why a second: others may write to the disk, and the fastest write
/// some GiB in it.
const GRANT_LIFE: Duration = Duration::from_secs(1);

/// How long a look that found no room stands for what is asked next. Why so short: whoever freed
/// space tries again at once.
const REFUSAL_LIFE: Duration = Duration::from_millis(100);

/// What a file takes of the disk at least, and what its name takes beyond it. Units: bytes.
const BLOCK_BYTES: u64 = 4096;

/// A store that leaves the reserve of its disk free.
#[derive(Debug)]
pub struct ReservedStore {
    inner: Arc<dyn ChunkStore>,
    clock: Arc<dyn Clock>,
    /// Stores that may have the same disk, this one included.
    sharer_count: u64,
    grant: Mutex<Grant>,
}

/// What may be written without a look.
#[derive(Debug, Default)]
struct Grant {
    left_bytes: u64,
    /// Admitted, and perhaps not on the disk yet.
    pending_bytes: u64,
    /// On `Clock::boottime`; absent before the first look.
    looked_at: Option<Duration>,
    /// The look found too little for what was asked.
    is_refusal: bool,
}

/// A write that was admitted; dropped when it is done.
struct Admission<'a> {
    store: &'a ReservedStore,
    bytes: u64,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.store.grant().pending_bytes -= self.bytes;
    }
}

impl ReservedStore {
    /// `sharer_count`: stores of this process, which may all have the same disk.
    pub fn new(
        inner: Arc<dyn ChunkStore>,
        clock: Arc<dyn Clock>,
        sharer_count: usize,
    ) -> ReservedStore {
        let sharer_count = u64::try_from(sharer_count.max(1)).unwrap_or(u64::MAX);
        ReservedStore { inner, clock, sharer_count, grant: Mutex::default() }
    }

    fn grant(&self) -> MutexGuard<'_, Grant> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `NoSpace`; what the look at the disk meets.
    fn admit(&self, bytes: u64) -> Result<Admission<'_>, ChunkError> {
        let now = self.clock.boottime();
        // Held during the look: those who come meanwhile use what it finds.
        let mut grant = self.grant();
        if grant.is_to_be_renewed(bytes, now) {
            let share_bytes = room(&self.inner.space()?) / self.sharer_count;
            grant.renew(share_bytes, bytes, now);
        }
        if grant.left_bytes < bytes {
            let why = "what is left of the disk is kept for metadata";
            return Err(ChunkError::NoSpace(io::Error::new(io::ErrorKind::StorageFull, why)));
        }
        grant.left_bytes -= bytes;
        grant.pending_bytes += bytes;
        Ok(Admission { store: self, bytes })
    }
}

impl Grant {
    fn is_to_be_renewed(&self, bytes: u64, now: Duration) -> bool {
        let Some(looked_at) = self.looked_at else { return true };
        let age = now.saturating_sub(looked_at);
        if self.left_bytes >= bytes {
            return age >= GRANT_LIFE;
        }
        !self.is_refusal || age >= REFUSAL_LIFE
    }

    fn renew(&mut self, share_bytes: u64, wanted_bytes: u64, now: Duration) {
        self.left_bytes = share_bytes.min(GRANT_BYTES_MAX).saturating_sub(self.pending_bytes);
        self.is_refusal = self.left_bytes < wanted_bytes;
        self.looked_at = Some(now);
    }
}

/// Units: bytes.
fn reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / RESERVE_PART)
        .clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX)
        .min(total_bytes / RESERVE_PART_OF_SMALL_DISK)
}

/// What a chunk takes of the disk, at most. Units: bytes.
fn cost(length: usize) -> u64 {
    (length as u64).next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES
}

/// Space above the reserve.
fn net(space: &Space) -> Space {
    let free_files = space.free_files.saturating_sub(RESERVE_FILES);
    let free_bytes = match free_files {
        0 => 0,
        _ => space.free_bytes.saturating_sub(reserve_bytes(space.total_bytes)),
    };
    Space { total_bytes: space.total_bytes, free_bytes, free_files }
}

/// What chunks may cost together before one of the two ends: bytes, or files. Units: bytes.
fn room(space: &Space) -> u64 {
    let net = net(space);
    net.free_bytes.min(net.free_files.saturating_mul(cost(1)))
}

impl ChunkStore for ReservedStore {
    fn put(&self, fid: FileId, hash: ChunkHash, bytes: &[u8]) -> Result<(), ChunkError> {
        let _admission = match self.admit(cost(bytes.len())) {
            Err(refusal @ ChunkError::NoSpace(_)) => match self.inner.stat(fid, hash)? {
                Some(_) => None,
                None => return Err(refusal),
            },
            admitted => Some(admitted?),
        };
        self.inner.put(fid, hash, bytes)
    }

    fn get(&self, fid: FileId, hash: ChunkHash, length: u32) -> Result<Bytes, ChunkError> {
        self.inner.get(fid, hash, length)
    }

    fn stat(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        self.inner.stat(fid, hash)
    }

    fn touch(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        self.inner.touch(fid, hash)
    }

    fn link(&self, from: FileId, to: FileId, hash: ChunkHash) -> Result<(), ChunkError> {
        self.inner.link(from, to, hash)
    }

    fn delete(&self, fid: FileId, hash: ChunkHash) -> Result<bool, ChunkError> {
        self.inner.delete(fid, hash)
    }

    fn list(&self, fid: FileId) -> Result<Vec<(ChunkHash, u32)>, ChunkError> {
        self.inner.list(fid)
    }

    fn sync(&self, fid: FileId, hashes: &[ChunkHash]) -> Result<(), ChunkError> {
        self.inner.sync(fid, hashes)
    }

    /// Free is what chunks may take: what is above the reserve.
    fn space(&self) -> Result<Space, ChunkError> {
        Ok(net(&self.inner.space()?))
    }
}

#[cfg(test)]
mod tests;
