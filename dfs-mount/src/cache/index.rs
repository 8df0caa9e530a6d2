//! The cache's memory: which entries there are, which stands for a file, which was used last.
//!
//! Plain data under the cache's mutex: no input or output here. One entry at most is *current* for
//! a file: it is what an open finds. Conflicts and interrupted data are entries beside it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use dfs_proto::id::FileId;

use super::file::{CacheFile, Stamp};
use super::record::{Entry, EntryId, Record};

/// The entries of a cache.
#[derive(Debug, Default)]
pub struct Index {
    slots: HashMap<EntryId, Slot>,
    current: HashMap<FileId, EntryId>,
    by_use: BTreeMap<u64, EntryId>,
    next_use: u64,
    disk_bytes: u64,
}

/// An entry and what this run knows of it.
#[derive(Debug)]
pub struct Slot {
    pub entry: Entry,
    used: u64,
    /// The file's stamp when its content was last known to be right.
    pub checked: Option<Stamp>,
    pub file: Weak<CacheFile>,
}

impl Index {
    /// Replays a record of the log.
    pub fn replay(&mut self, record: Record) {
        match record.entry {
            Some(entry) => drop(self.put(record.id, entry)),
            None => drop(self.remove(record.id)),
        }
    }

    /// Sets the state of an entry, used just now. Answers with the entry that was current for the
    /// file so far, if it is another one and only a cached version: it is superseded.
    pub fn put(&mut self, id: EntryId, entry: Entry) -> Option<EntryId> {
        let (fid, is_current) = (entry.fid, entry.state.is_current());
        self.disk_bytes += entry.disk_bytes;
        let (checked, file) = match self.take(id) {
            Some(slot) => (slot.checked, slot.file),
            None => (None, Weak::new()),
        };
        self.next_use += 1;
        self.by_use.insert(self.next_use, id);
        self.slots.insert(id, Slot { entry, used: self.next_use, checked, file });
        if !is_current {
            if self.current.get(&fid) == Some(&id) {
                self.current.remove(&fid);
            }
            return None;
        }
        let before = self.current.insert(fid, id).filter(|before| *before != id)?;
        self.slots.get(&before).is_some_and(|slot| slot.entry.state.is_clean()).then_some(before)
    }

    pub fn remove(&mut self, id: EntryId) -> Option<Slot> {
        let slot = self.take(id)?;
        if self.current.get(&slot.entry.fid) == Some(&id) {
            self.current.remove(&slot.entry.fid);
        }
        Some(slot)
    }

    fn take(&mut self, id: EntryId) -> Option<Slot> {
        let slot = self.slots.remove(&id)?;
        self.by_use.remove(&slot.used);
        self.disk_bytes -= slot.entry.disk_bytes;
        Some(slot)
    }

    pub fn current(&self, fid: FileId) -> Option<EntryId> {
        self.current.get(&fid).copied()
    }

    pub fn slot(&self, id: EntryId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub fn slot_mut(&mut self, id: EntryId) -> Option<&mut Slot> {
        self.slots.get_mut(&id)
    }

    /// Notes that an entry was used just now.
    pub fn touch(&mut self, id: EntryId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            self.by_use.remove(&slot.used);
            self.next_use += 1;
            slot.used = self.next_use;
            self.by_use.insert(slot.used, id);
        }
    }

    /// Notes how much space an entry takes now.
    pub fn resize(&mut self, id: EntryId, disk_bytes: u64) {
        if let Some(slot) = self.slots.get_mut(&id) {
            self.disk_bytes = self.disk_bytes - slot.entry.disk_bytes + disk_bytes;
            slot.entry.disk_bytes = disk_bytes;
        }
    }

    /// Space of all entries. Units: bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The entries, least recently used first.
    pub fn by_use(&self) -> impl Iterator<Item = (EntryId, &Slot)> {
        self.by_use.values().filter_map(|id| self.slots.get(id).map(|slot| (*id, slot)))
    }

    /// All entries as records, least recently used first: so a reader finds the same order.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.by_use().map(|(id, slot)| Record { id, entry: Some(slot.entry.clone()) })
    }
}

impl Slot {
    /// The open file, if somebody holds it.
    pub fn open_file(&self) -> Option<Arc<CacheFile>> {
        self.file.upgrade()
    }

    /// Whether nothing is lost with this entry, and nobody uses it.
    pub fn is_evictable(&self) -> bool {
        self.entry.state.is_clean() && self.file.strong_count() == 0
    }
}
