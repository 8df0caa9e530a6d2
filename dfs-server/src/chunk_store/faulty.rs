//! A chunk store that fails when told to, around one that works.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::FileId;

use super::{ChunkError, ChunkStat, ChunkStore, Space};

/// The calls of the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Put,
    Get,
    Stat,
    Touch,
    Link,
    Delete,
    List,
    Sync,
    Space,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    NoSpace,
    Io,
    /// The chunk is not there (of the calls that name one; others meet `Io`).
    Missing,
    /// `get` returns bytes of which one bit changed after they were verified. No error is seen
    /// here: only the next check up the line can tell. Other calls are not harmed.
    FlippedBit,
}

/// Whether a call fails without having had an effect, or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// One thing that is to go wrong.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub operation: Operation,
    /// Which call from now on: 1 is the next.
    pub nth: u64,
    /// Every call from the nth on, not only that one.
    pub is_lasting: bool,
    pub moment: Moment,
    pub mishap: Mishap,
}

impl Fault {
    /// The next such call fails before it did anything.
    pub fn next(operation: Operation, mishap: Mishap) -> Fault {
        Fault { operation, nth: 1, is_lasting: false, moment: Moment::Before, mishap }
    }

    /// Every such call fails before it did anything.
    pub fn always(operation: Operation, mishap: Mishap) -> Fault {
        Fault { is_lasting: true, ..Fault::next(operation, mishap) }
    }
}

/// Fails as its faults say and otherwise does what `inner` does.
#[derive(Debug)]
pub struct FaultyChunkStore {
    inner: Arc<dyn ChunkStore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    counts: HashMap<Operation, u64>,
}

impl FaultyChunkStore {
    pub fn new(inner: Arc<dyn ChunkStore>) -> FaultyChunkStore {
        FaultyChunkStore { inner, state: Mutex::default() }
    }

    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// How often an operation was called, failed or not.
    pub fn count(&self, operation: Operation) -> u64 {
        self.state().counts.get(&operation).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and takes the fault that is due.
    fn due(&self, operation: Operation) -> Option<Fault> {
        let mut state = self.state();
        *state.counts.entry(operation).or_default() += 1;
        let concerned = |fault: &&mut Fault| fault.operation == operation;
        for fault in state.faults.iter_mut().filter(concerned) {
            fault.nth = fault.nth.saturating_sub(1);
        }
        let is_due = |fault: &Fault| fault.operation == operation && fault.nth == 0;
        let index = state.faults.iter().position(is_due)?;
        let fault = state.faults[index];
        if !fault.is_lasting {
            state.faults.remove(index);
        }
        Some(fault)
    }

    fn run<T>(
        &self,
        operation: Operation,
        hash: Option<ChunkHash>,
        call: impl FnOnce(&dyn ChunkStore) -> Result<T, ChunkError>,
    ) -> Result<T, ChunkError> {
        self.run_as(self.due(operation), hash, call)
    }

    fn run_as<T>(
        &self,
        fault: Option<Fault>,
        hash: Option<ChunkHash>,
        call: impl FnOnce(&dyn ChunkStore) -> Result<T, ChunkError>,
    ) -> Result<T, ChunkError> {
        let Some(fault) = fault.filter(|fault| fault.mishap != Mishap::FlippedBit) else {
            return call(&*self.inner);
        };
        if fault.moment == Moment::After {
            call(&*self.inner)?;
        }
        Err(match (fault.mishap, hash) {
            (Mishap::NoSpace, _) => ChunkError::NoSpace(io::ErrorKind::StorageFull.into()),
            (Mishap::Missing, Some(hash)) => ChunkError::Missing(hash),
            _ => ChunkError::io("reach", Path::new("faulty disk"), io::Error::other("injected")),
        })
    }
}

impl ChunkStore for FaultyChunkStore {
    fn put(&self, fid: FileId, hash: ChunkHash, bytes: &[u8]) -> Result<(), ChunkError> {
        self.run(Operation::Put, Some(hash), |inner| inner.put(fid, hash, bytes))
    }

    fn get(&self, fid: FileId, hash: ChunkHash, length: u32) -> Result<Bytes, ChunkError> {
        let fault = self.due(Operation::Get);
        let bytes = self.run_as(fault, Some(hash), |inner| inner.get(fid, hash, length))?;
        match fault {
            Some(Fault { mishap: Mishap::FlippedBit, .. }) => Ok(flip(&bytes)),
            _ => Ok(bytes),
        }
    }

    fn stat(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        self.run(Operation::Stat, Some(hash), |inner| inner.stat(fid, hash))
    }

    fn touch(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        self.run(Operation::Touch, Some(hash), |inner| inner.touch(fid, hash))
    }

    fn link(&self, from: FileId, to: FileId, hash: ChunkHash) -> Result<(), ChunkError> {
        self.run(Operation::Link, Some(hash), |inner| inner.link(from, to, hash))
    }

    fn delete(&self, fid: FileId, hash: ChunkHash) -> Result<bool, ChunkError> {
        self.run(Operation::Delete, Some(hash), |inner| inner.delete(fid, hash))
    }

    fn list(&self, fid: FileId) -> Result<Vec<(ChunkHash, u32)>, ChunkError> {
        self.run(Operation::List, None, |inner| inner.list(fid))
    }

    fn sync(&self, fid: FileId, hashes: &[ChunkHash]) -> Result<(), ChunkError> {
        self.run(Operation::Sync, hashes.first().copied(), |inner| inner.sync(fid, hashes))
    }

    fn space(&self) -> Result<Space, ChunkError> {
        self.run(Operation::Space, None, |inner| inner.space())
    }
}

fn flip(bytes: &Bytes) -> Bytes {
    let mut flipped = bytes.to_vec();
    if let Some(byte) = flipped.last_mut() {
        *byte ^= 1;
    }
    flipped.into()
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Damage, Subject};
    use super::super::memory::MemoryChunkStore;
    use super::*;
    use dfs_proto::id::{InodeNo, VolumeId};
    use dfs_proto::version::Epoch;

    #[test]
    fn without_faults_it_conforms() {
        conformance::run(|| {
            let memory = Arc::new(MemoryChunkStore::default());
            let store = Arc::new(FaultyChunkStore::new(Arc::clone(&memory) as _));
            let damage = move |fid, hash, damage: Damage| {
                memory.tamper(fid, hash, |bytes| damage.apply(bytes));
            };
            Subject { store, damage: Box::new(damage) }
        });
    }

    #[test]
    fn the_nth_call_fails_before_or_after_its_effect() {
        let fid = FileId::new(VolumeId(1), InodeNo(2), Epoch(3));
        let store = FaultyChunkStore::new(Arc::new(MemoryChunkStore::default()));
        let put = |bytes: &[u8]| store.put(fid, ChunkHash::of(bytes), bytes);
        let has = |bytes: &[u8]| store.stat(fid, ChunkHash::of(bytes)).unwrap().is_some();
        let second = Fault { nth: 2, ..Fault::next(Operation::Put, Mishap::NoSpace) };
        store.inject(second);
        put(b"one").unwrap();
        assert!(matches!(put(b"two"), Err(ChunkError::NoSpace(_))));
        assert!(!has(b"two"));
        store.inject(Fault { moment: Moment::After, ..Fault::next(Operation::Put, Mishap::Io) });
        assert!(matches!(put(b"two"), Err(ChunkError::Io { .. })));
        assert!(has(b"two"));
        store.inject(Fault::always(Operation::Get, Mishap::FlippedBit));
        assert_eq!(&store.get(fid, ChunkHash::of(b"two"), 3).unwrap()[..], b"twn");
        store.heal();
        assert_eq!(&store.get(fid, ChunkHash::of(b"two"), 3).unwrap()[..], b"two");
        assert_eq!(store.count(Operation::Put), 3);
    }
}
