//! The engine in memory: a map, and what of it would survive a power cut.
//!
//! For tests and simulations. It keeps two images: what was committed, and what was stable; a
//! crash of the process keeps the first (the engine itself outlives the store), a power cut the
//! second ([`MemoryEngine::crash_image`]).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dfs_proto::id::NodeId;
use dfs_proto::version::Epoch;

use super::record::Ownership;
use super::{Batch, Durability, Engine, EngineError, KeyBytes, RawRow, Space, key};

/// An engine without a disk.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    images: Mutex<Images>,
}

#[derive(Debug, Default)]
struct Images {
    committed: BTreeMap<Vec<u8>, Vec<u8>>,
    stable: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What `committed` has and `stable` lacks, in the order of commits.
    unstable: Vec<(KeyBytes, Option<Vec<u8>>)>,
}

impl MemoryEngine {
    pub fn new() -> MemoryEngine {
        MemoryEngine::default()
    }

    /// The engine that is found after a power cut now: what was not stable is gone.
    pub fn crash_image(&self) -> MemoryEngine {
        let stable = self.images().stable.clone();
        let images = Images { committed: stable.clone(), stable, unstable: Vec::new() };
        MemoryEngine { images: Mutex::new(images) }
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    fn owner(&self, space: Space) -> Result<Option<Ownership>, EngineError> {
        let key = key::ownership(space);
        Ownership::on_record(space, self.committed.get(&key.bytes()[..]).map(Vec::as_slice))
    }

    fn apply(&mut self, rows: &[(KeyBytes, Option<Vec<u8>>)], durability: Durability) {
        for (key, value) in rows {
            change(&mut self.committed, key, value.clone());
        }
        self.unstable.extend_from_slice(rows);
        if durability == Durability::Stable {
            for (key, value) in self.unstable.drain(..) {
                change(&mut self.stable, &key, value);
            }
        }
    }
}

fn change(image: &mut BTreeMap<Vec<u8>, Vec<u8>>, key: &[u8], value: Option<Vec<u8>>) {
    match value {
        Some(value) => image.insert(key.to_vec(), value),
        None => image.remove(key),
    };
}

impl Engine for MemoryEngine {
    fn load(&self, keys: &[KeyBytes]) -> Result<Vec<Option<Vec<u8>>>, EngineError> {
        let images = self.images();
        Ok(keys.iter().map(|key| images.committed.get(&key[..]).cloned()).collect())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<RawRow>, EngineError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let images = self.images();
        let range = (Bound::Included(from), Bound::Excluded(to));
        let rows = images.committed.range::<[u8], _>(range).take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut images = self.images();
        if images.owner(batch.space)?.map(|owner| owner.epoch) != Some(batch.epoch) {
            return Err(EngineError::NotOwner { space: batch.space, epoch: batch.epoch });
        }
        images.apply(&batch.rows, batch.durability);
        Ok(())
    }

    fn claim(&self, space: Space, holder: NodeId) -> Result<Epoch, EngineError> {
        let mut images = self.images();
        let (epoch, row) = Ownership::next(images.owner(space)?, holder);
        let key = key::ownership(space).bytes().clone();
        images.apply(&[(key, Some(row))], Durability::Stable);
        Ok(epoch)
    }
}
