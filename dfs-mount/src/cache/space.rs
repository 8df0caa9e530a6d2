//! Space: promised to files in the making, watched while working copies grow, and made by
//! evicting. Writes go through here, so that a full disk is met with eviction first.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use crate::metrics::Counter;

use super::evict::{self, Room};
use super::record::{EntryId, Record};
use super::{Books, Cache, CacheError, CacheFile, Inner};

/// Space promised to a file in the making. Dropping it gives the promise back.
#[derive(Debug)]
pub struct Reservation {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    pub file_count: u64,
    pub bytes: u64,
}

/// Writes between two looks at a working copy's space. Units: bytes.
const SAMPLE_BYTES: u64 = 16 << 20;

/// What is evicted beyond the need on a full disk, where there is so much: so that not every write
/// has to evict. Units: bytes.
const EVICT_AHEAD_BYTES: u64 = 16 << 20;

impl Cache {
    /// Makes room for a file in the making.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, CacheError> {
        self.make_room(bytes)?;
        self.inner.reserved.fetch_add(bytes, Ordering::Relaxed);
        Ok(Reservation { inner: Arc::clone(&self.inner), bytes })
    }

    /// Writes to a file of the cache. On a full disk, evicts and tries once more. Blocking.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn write_at(&self, file: &CacheFile, bytes: &[u8], offset: u64) -> Result<(), CacheError> {
        self.sample(file, bytes.len() as u64)?;
        match self.try_write(file, bytes, offset) {
            Err(error) if is_full(&error) => {
                let wanted = bytes.len() as u64;
                self.make_room(wanted + EVICT_AHEAD_BYTES).or_else(|_| self.make_room(wanted))?;
                self.try_write(file, bytes, offset)
            }
            written => written,
        }
        .map_err(|error| match is_full(&error) {
            true => self.full(bytes.len() as u64, self.books().index.disk_bytes()),
            false => CacheError::io("cannot write cache file", file.path(), error),
        })
    }

    fn try_write(&self, file: &CacheFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(feature = "testing")]
        if self.is_write_refused() {
            return Err(nix::errno::Errno::ENOSPC.into());
        }
        file.file().write_all_at(bytes, offset)
    }

    /// Looks at the space of a working copy now and then, so that it cannot grow past the limit
    /// unseen.
    fn sample(&self, file: &CacheFile, written: u64) -> Result<(), CacheError> {
        let step = SAMPLE_BYTES.min(self.inner.limits.size_bytes / 16);
        if self.inner.unsampled.fetch_add(written, Ordering::Relaxed) + written < step {
            return Ok(());
        }
        self.inner.unsampled.store(0, Ordering::Relaxed);
        if let Ok(disk_bytes) = file.disk_bytes() {
            self.books().index.resize(file.id(), disk_bytes);
        }
        self.make_room(step)
    }

    fn make_room(&self, wanted: u64) -> Result<(), CacheError> {
        let inner = &self.inner;
        let free = evict::free_bytes(inner.dir.path(), &inner.limits)
            .map_err(|source| CacheError::io("cannot see free space of", self.dir(), source))?;
        let reserved = inner.reserved.load(Ordering::Relaxed);
        let books = self.books();
        let victims = match evict::choose(&books.index, &inner.limits, reserved, wanted, free) {
            Room::Evict(victims) => victims,
            Room::No { kept_bytes } => return Err(self.full(wanted, kept_bytes)),
        };
        self.evict(books, &victims);
        Ok(())
    }

    /// Removes every version that the servers have too and nobody has open. Blocking.
    pub fn clear(&self) -> Freed {
        let books = self.books();
        let evictable = books.index.by_use().filter(|(_, slot)| slot.is_evictable());
        let (victims, sizes): (Vec<EntryId>, Vec<u64>) =
            evictable.map(|(id, slot)| (id, slot.entry.disk_bytes)).unzip();
        self.evict(books, &victims);
        Freed { file_count: victims.len() as u64, bytes: sizes.iter().sum() }
    }

    fn evict(&self, mut books: MutexGuard<'_, Books>, victims: &[EntryId]) {
        for &id in victims {
            books.index.remove(id);
            if let Err(error) = books.log.append(&Record { id, entry: None }) {
                tracing::warn!(%error, "cache log");
            }
        }
        drop(books);
        for &id in victims {
            self.inner.metrics.count(Counter::CacheEvicted);
            let _ = std::fs::remove_file(self.inner.dir.file(id));
        }
    }

    fn full(&self, wanted_bytes: u64, kept_bytes: u64) -> CacheError {
        CacheError::Full { kept_bytes, limit_bytes: self.inner.limits.size_bytes, wanted_bytes }
    }

    /// Makes the next writes fail as on a full disk.
    #[cfg(feature = "testing")]
    pub fn refuse_writes(&self, count: u64) {
        self.inner.writes_to_refuse.store(count, Ordering::SeqCst);
    }

    #[cfg(feature = "testing")]
    fn is_write_refused(&self) -> bool {
        let left = &self.inner.writes_to_refuse;
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
