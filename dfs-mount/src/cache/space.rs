//! Space: promised to files in the making, watched while working copies grow, and made by
//! evicting. Writes go through here, so that a full disk is met with eviction first.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use dfs_proto::id::FileId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};

use crate::metrics::Counter;

use super::evict::{self, Room};
use super::file::next_data;
use super::index::Slot;
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

/// Bytes copied between two looks at the space. Units: bytes.
const COPY_BYTES: u64 = SAMPLE_BYTES;

/// What fallocate(2) is to do with a stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Space, so that writing there later needs none; what is there stays.
    Space { keeps_size: bool },
    /// Zeros, with space.
    Zero { keeps_size: bool },
    /// Zeros without space; the file's size stays.
    Hole,
}

impl Allocate {
    fn flags(self) -> FallocateFlags {
        let size = |keeps_size| match keeps_size {
            true => FallocateFlags::FALLOC_FL_KEEP_SIZE,
            false => FallocateFlags::empty(),
        };
        match self {
            Allocate::Space { keeps_size } => size(keeps_size),
            Allocate::Zero { keeps_size } => {
                FallocateFlags::FALLOC_FL_ZERO_RANGE | size(keeps_size)
            }
            Allocate::Hole => FallocateFlags::FALLOC_FL_PUNCH_HOLE | size(true),
        }
    }
}

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
        self.with_room(file, bytes.len() as u64, |writer| writer.write_all_at(bytes, offset))
    }

    /// Allocates or clears a stretch of a file. Blocking.
    ///
    /// # Errors
    /// `Full`; `Io`, with EOPNOTSUPP where the file system cannot do it.
    pub fn allocate(
        &self,
        file: &CacheFile,
        how: Allocate,
        stretch: Range<u64>,
    ) -> Result<(), CacheError> {
        let flags = how.flags();
        let wanted = self.allocation_bytes(file, how, &stretch);
        if wanted > 0 {
            self.make_room(wanted)?;
        }
        let done = self.with_room(file, wanted, |writer| match allocate(writer, flags, &stretch) {
            Err(Errno::EOPNOTSUPP) if matches!(how, Allocate::Zero { .. }) => {
                clear(writer, how, &stretch)
            }
            done => Ok(done?),
        });
        self.look_at(file);
        done
    }

    /// The most that an allocation can take: what is there already is not taken again.
    fn allocation_bytes(&self, file: &CacheFile, how: Allocate, stretch: &Range<u64>) -> u64 {
        if how == Allocate::Hole {
            return 0;
        }
        let (Ok(size), Ok(disk_bytes)) = (file.size(), file.disk_bytes()) else { return 0 };
        let whole = stretch.end.max(size);
        whole.saturating_sub(disk_bytes).min(stretch.end - stretch.start)
    }

    /// Copies a stretch of a file to `offset` of another, or of the same where the two do not
    /// overlap; holes stay holes. The bytes that were copied: fewer only at the end of `from`.
    /// Blocking.
    ///
    /// # Errors
    /// `Full`, `Io`; some of it may have been copied.
    pub fn copy(
        &self,
        from: (&CacheFile, Range<u64>),
        to: (&CacheFile, u64),
    ) -> Result<u64, CacheError> {
        let ((from, stretch), (to, offset)) = (from, to);
        let failed = |error| CacheError::io("cannot read cache file", from.path(), error);
        let end = stretch.end.min(from.size().map_err(failed)?);
        let mut done = stretch.start;
        while done < end {
            let data = next_data(from.file(), done).map_err(failed)?;
            let (start, data_end) = data.filter(|(start, _)| *start < end).unwrap_or((end, end));
            self.put_hole(to, offset + (done - stretch.start), start - done)?;
            let data_end = data_end.min(end).max(start);
            let place = offset + (start - stretch.start);
            let copied = self.copy_data((from, start..data_end), (to, place))?;
            done = start + copied;
            if done < data_end {
                // Cut meanwhile: its end is where the copy ends.
                break;
            }
        }
        Ok(done - stretch.start)
    }

    /// Makes a stretch of `to` read as zeros, and no shorter than its end.
    fn put_hole(&self, to: &CacheFile, offset: u64, length: u64) -> Result<(), CacheError> {
        let end = offset + length;
        self.with_room(to, 0, |writer| {
            let size = writer.metadata()?.len();
            let inside = offset..end.min(size);
            if !inside.is_empty() {
                allocate(writer, Allocate::Hole.flags(), &inside)?;
            }
            if length > 0 && end > size { writer.set_len(end) } else { Ok(()) }
        })
    }

    /// The bytes that were copied: fewer only at the end of `from`.
    fn copy_data(
        &self,
        (from, stretch): (&CacheFile, Range<u64>),
        (to, offset): (&CacheFile, u64),
    ) -> Result<u64, CacheError> {
        let length = stretch.end - stretch.start;
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(COPY_BYTES);
            self.sample(to, piece)?;
            let (start, place) = (stretch.start + done, offset + done);
            let copied =
                self.with_room(to, piece, |writer| copy(from, (start, piece), (writer, place)))?;
            if copied == 0 {
                break;
            }
            done += copied;
        }
        Ok(done)
    }

    /// Changes a file. On a full disk, evicts so that `wanted` bytes fit and tries once more.
    fn with_room<T>(
        &self,
        file: &CacheFile,
        wanted: u64,
        change: impl Fn(&File) -> io::Result<T>,
    ) -> Result<T, CacheError> {
        let attempt = || {
            let writer = file.writer()?;
            #[cfg(feature = "testing")]
            if self.is_write_refused() {
                return Err(Errno::ENOSPC.into());
            }
            change(&writer)
        };
        match attempt() {
            Err(error) if is_full(&error) => {
                self.make_room(wanted + EVICT_AHEAD_BYTES).or_else(|_| self.make_room(wanted))?;
                attempt()
            }
            changed => changed,
        }
        .map_err(|error| match is_full(&error) {
            true => self.full(wanted, self.books().index.disk_bytes()),
            false => CacheError::io("cannot write cache file", file.path(), error),
        })
    }

    /// Looks at the space of a working copy now and then, so that it cannot grow past the limit
    /// unseen.
    fn sample(&self, file: &CacheFile, written: u64) -> Result<(), CacheError> {
        let step = SAMPLE_BYTES.min(self.inner.limits.size_bytes / 16);
        if self.inner.unsampled.fetch_add(written, Ordering::Relaxed) + written < step {
            return Ok(());
        }
        self.inner.unsampled.store(0, Ordering::Relaxed);
        self.look_at(file);
        self.make_room(step)
    }

    fn look_at(&self, file: &CacheFile) {
        if let Ok(disk_bytes) = file.disk_bytes() {
            self.books().index.resize(file.id(), disk_bytes);
        }
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

    /// Removes every wanted version that the servers have too and nobody has open. Blocking.
    pub fn clear(&self, is_wanted: impl Fn(FileId) -> bool) -> Freed {
        let books = self.books();
        let is_wanted = |slot: &Slot| slot.is_evictable() && is_wanted(slot.entry.fid);
        let evictable = books.index.by_use().filter(|(_, slot)| is_wanted(slot));
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

fn allocate(file: &File, flags: FallocateFlags, stretch: &Range<u64>) -> nix::Result<()> {
    let too_far = |_| Errno::EFBIG;
    let start = i64::try_from(stretch.start).map_err(too_far)?;
    let end = i64::try_from(stretch.end).map_err(too_far)?;
    fallocate(file, flags, start, end - start)
}

/// Clears a stretch where the file system has no call for it.
fn clear(file: &File, how: Allocate, stretch: &Range<u64>) -> io::Result<()> {
    allocate(file, Allocate::Hole.flags(), stretch)?;
    let grows = how == Allocate::Zero { keeps_size: false } && stretch.end > file.metadata()?.len();
    if grows { file.set_len(stretch.end) } else { Ok(()) }
}

/// Copies within the kernel, which may share the blocks. The bytes that were copied.
fn copy(from: &CacheFile, (start, length): (u64, u64), to: (&File, u64)) -> io::Result<u64> {
    let too_far = |_| Errno::EFBIG;
    let mut start = i64::try_from(start).map_err(too_far)?;
    let mut offset = i64::try_from(to.1).map_err(too_far)?;
    let length = usize::try_from(length).map_err(too_far)?;
    let copied = copy_file_range(from.file(), Some(&mut start), to.0, Some(&mut offset), length)?;
    Ok(copied as u64)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
