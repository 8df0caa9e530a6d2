//! A chunk store in memory, for tests: it can be full, be damaged, and lose power.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use dfs_proto::attr::Timestamp;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::FileId;

use super::{ChunkError, ChunkStat, ChunkStore, Space, check_hash, check_length};

/// Chunks in memory. Its time is a count of what was done.
#[derive(Debug)]
pub struct MemoryChunkStore {
    total_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: BTreeMap<(FileId, ChunkHash), Kept>,
    now: i64,
}

#[derive(Clone, Debug)]
struct Kept {
    bytes: Bytes,
    touched: i64,
    is_stable: bool,
}

impl Default for MemoryChunkStore {
    fn default() -> MemoryChunkStore {
        MemoryChunkStore::with_space(1 << 40)
    }
}

impl MemoryChunkStore {
    /// A store that is full with so many bytes.
    pub fn with_space(total_bytes: u64) -> MemoryChunkStore {
        MemoryChunkStore { total_bytes, state: Mutex::default() }
    }

    /// Replaces what is kept of a chunk behind the store's back; an empty one counts as gone, as
    /// in the local store.
    pub fn tamper(&self, fid: FileId, hash: ChunkHash, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(kept) = self.state().chunks.get_mut(&(fid, hash)) {
            let mut bytes = kept.bytes.to_vec();
            change(&mut bytes);
            kept.bytes = bytes.into();
        }
    }

    /// A power cut: what was not synced is gone.
    pub fn lose_power(&self) {
        self.state().chunks.retain(|_, kept| kept.is_stable);
    }

    /// How many chunks are kept, of all files.
    pub fn count(&self) -> usize {
        self.state().chunks.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> i64 {
        self.now += 1;
        self.now
    }

    fn used_bytes(&self) -> u64 {
        self.chunks.values().map(|kept| kept.bytes.len() as u64).sum()
    }

    fn find(&self, fid: FileId, hash: ChunkHash) -> Option<&Kept> {
        self.chunks.get(&(fid, hash)).filter(|kept| !kept.bytes.is_empty())
    }

    fn touch(&mut self, fid: FileId, hash: ChunkHash) -> Option<ChunkStat> {
        let touched = self.tick();
        let kept = self.chunks.get_mut(&(fid, hash)).filter(|kept| !kept.bytes.is_empty())?;
        kept.touched = touched;
        Some(kept.stat())
    }
}

impl Kept {
    fn stat(&self) -> ChunkStat {
        let length = u32::try_from(self.bytes.len()).expect("checked when it was put");
        ChunkStat { length, touched: Timestamp::new(self.touched, 0) }
    }
}

impl ChunkStore for MemoryChunkStore {
    fn put(&self, fid: FileId, hash: ChunkHash, bytes: &[u8]) -> Result<(), ChunkError> {
        check_length(bytes)?;
        let mut state = self.state();
        if state.find(fid, hash).is_some_and(|kept| kept.bytes == bytes) {
            state.touch(fid, hash);
            return Ok(());
        }
        check_hash(hash, bytes)?;
        if state.used_bytes() + bytes.len() as u64 > self.total_bytes {
            return Err(ChunkError::NoSpace(io::ErrorKind::StorageFull.into()));
        }
        let kept =
            Kept { bytes: Bytes::copy_from_slice(bytes), touched: state.tick(), is_stable: false };
        state.chunks.insert((fid, hash), kept);
        Ok(())
    }

    fn get(&self, fid: FileId, hash: ChunkHash, length: u32) -> Result<Bytes, ChunkError> {
        let kept = self.state().chunks.get(&(fid, hash)).cloned();
        let bytes = kept.ok_or(ChunkError::Missing(hash))?.bytes;
        if bytes.len() != length as usize {
            return Err(ChunkError::Corrupt(hash));
        }
        check_hash(hash, &bytes)?;
        Ok(bytes)
    }

    fn stat(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        Ok(self.state().find(fid, hash).map(Kept::stat))
    }

    fn touch(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        Ok(self.state().touch(fid, hash))
    }

    fn link(&self, from: FileId, to: FileId, hash: ChunkHash) -> Result<(), ChunkError> {
        let mut state = self.state();
        let source = state.find(from, hash).cloned().ok_or(ChunkError::Missing(hash))?;
        if state.touch(to, hash).is_none() {
            let kept = Kept { touched: state.tick(), is_stable: false, ..source };
            state.chunks.insert((to, hash), kept);
        }
        Ok(())
    }

    fn delete(&self, fid: FileId, hash: ChunkHash) -> Result<bool, ChunkError> {
        Ok(self.state().chunks.remove(&(fid, hash)).is_some())
    }

    fn list(&self, fid: FileId) -> Result<Vec<(ChunkHash, u32)>, ChunkError> {
        let state = self.state();
        let of_file = state
            .chunks
            .iter()
            .filter(|((owner, _), kept)| *owner == fid && !kept.bytes.is_empty());
        Ok(of_file.map(|((_, hash), kept)| (*hash, kept.stat().length)).collect())
    }

    fn sync(&self, fid: FileId, hashes: &[ChunkHash]) -> Result<(), ChunkError> {
        let mut state = self.state();
        for &hash in hashes {
            state.find(fid, hash).ok_or(ChunkError::Missing(hash))?;
            state.chunks.entry((fid, hash)).and_modify(|kept| kept.is_stable = true);
        }
        Ok(())
    }

    fn space(&self) -> Result<Space, ChunkError> {
        let free_bytes = self.total_bytes.saturating_sub(self.state().used_bytes());
        Ok(Space { total_bytes: self.total_bytes, free_bytes, free_files: u64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::conformance::{self, Damage, Subject};
    use super::*;
    use dfs_proto::id::{InodeNo, VolumeId};
    use dfs_proto::version::Epoch;

    #[test]
    fn the_memory_store_conforms() {
        conformance::run(|| {
            let store = Arc::new(MemoryChunkStore::default());
            let damaged = Arc::clone(&store);
            let damage = move |fid, hash, damage: Damage| {
                damaged.tamper(fid, hash, |bytes| damage.apply(bytes));
            };
            Subject { store, damage: Box::new(damage) }
        });
    }

    #[test]
    fn a_full_store_takes_nothing_and_power_loss_takes_what_was_not_synced() {
        let fid = FileId::new(VolumeId(1), InodeNo(2), Epoch(3));
        let store = MemoryChunkStore::with_space(10);
        let [one, two] = [b"12345678", b"abcdefgh"];
        store.put(fid, ChunkHash::of(one), one).unwrap();
        let full = store.put(fid, ChunkHash::of(two), two);
        assert!(matches!(full, Err(ChunkError::NoSpace(_))), "{full:?}");
        store.sync(fid, &[ChunkHash::of(one)]).unwrap();
        store.lose_power();
        assert_eq!(store.count(), 1);
    }
}
