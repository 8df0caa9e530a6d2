//! How much the cache may hold, and what goes when that is reached.
//!
//! Two bounds: the size that was asked for, and free space that is left to others. What goes first
//! was used least recently; data that the server does not have and files that somebody has open
//! never go. Decides; the cache acts.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::index::Index;
use super::record::EntryId;

/// The bounds of a cache.
///
/// Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub size_bytes: u64,
    /// Free space that stays free, whatever the size allows.
    pub keep_free_bytes: u64,
    /// As above, in parts of the file system: the smaller one counts.
    pub keep_free_percent: u64,
}

impl Limits {
    pub fn new(size_bytes: u64) -> Limits {
        Limits { size_bytes, keep_free_bytes: 1 << 30, keep_free_percent: 5 }
    }
}

/// Free space of the cache's file system that the cache may still use. Units: bytes.
///
/// # Errors
/// Those of statvfs(3).
pub fn free_bytes(dir: &Path, limits: &Limits) -> io::Result<u64> {
    let space = statvfs(dir)?;
    let fragment = space.fragment_size();
    let total = fragment.saturating_mul(space.blocks());
    let keep = limits.keep_free_bytes.min(total / 100 * limits.keep_free_percent);
    Ok(fragment.saturating_mul(space.blocks_available()).saturating_sub(keep))
}

/// What has to go so that `wanted` more bytes fit.
#[derive(Debug, PartialEq, Eq)]
pub enum Room {
    /// These entries; perhaps none.
    Evict(Vec<EntryId>),
    /// It cannot be made: this much cannot go. Units: bytes.
    No { kept_bytes: u64 },
}

/// Chooses what to evict. `reserved` bytes count as used; `free` is what the file system has.
pub fn choose(index: &Index, limits: &Limits, reserved: u64, wanted: u64, free: u64) -> Room {
    let used = index.disk_bytes().saturating_add(reserved);
    let over_size = used.saturating_add(wanted).saturating_sub(limits.size_bytes);
    let needed = over_size.max(wanted.saturating_sub(free));
    let mut victims = Vec::new();
    let mut freed = 0;
    for (id, slot) in index.by_use() {
        if freed >= needed {
            break;
        }
        if slot.is_evictable() {
            freed += slot.entry.disk_bytes;
            victims.push(id);
        }
    }
    if freed < needed {
        return Room::No { kept_bytes: used - freed };
    }
    Room::Evict(victims)
}
