//! Rows, keys and stores for the tests of the layer.

use std::sync::Arc;

use dfs_proto::id::NodeId;
use dfs_proto::version::{Epoch, Sequence};
use serde::{Deserialize, Serialize};

use crate::meta::faulty::{Faults, FaultyEngine};
use crate::meta::memory::MemoryEngine;
use crate::meta::{CacheBound, Durability, Engine, Key, Record, Space, Store, Txn};

pub const SPACE: Space = Space(5);
pub const HOLDER: NodeId = NodeId(1);
pub const PROCESS: Durability = Durability::Process;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count(pub u64);

impl Record for Count {
    const VERSION: u8 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text(pub String);

impl Record for Text {
    const VERSION: u8 = 1;
}

pub fn count(name: &str) -> Key<Count> {
    Key::new(SPACE, 1, &[name.as_bytes()])
}

pub fn text(name: &str) -> Key<Text> {
    Key::new(SPACE, 2, &[name.as_bytes()])
}

pub fn sequence(epoch: u32, counter: u64) -> Sequence {
    Sequence::new(Epoch(epoch), counter)
}

pub fn open(engine: &Arc<impl Engine>) -> Store {
    Store::open(engine.clone(), SPACE, HOLDER).unwrap()
}

/// A store that keeps hardly anything in memory.
pub fn open_tiny(engine: &Arc<impl Engine>) -> Store {
    let bound = CacheBound { rows: 2, bytes: 1 << 20 };
    Store::open_bounded(engine.clone(), SPACE, HOLDER, bound).unwrap()
}

pub fn faulty() -> (Arc<FaultyEngine>, Faults) {
    FaultyEngine::new(Arc::new(MemoryEngine::new()))
}

pub async fn put(store: &Store, name: &str, value: u64) -> Sequence {
    let key = count(name);
    let work = move |txn: &mut Txn<'_>| {
        txn.put(&key, Count(value));
        Ok(txn.sequence())
    };
    store.write(PROCESS, work).await.unwrap()
}

pub async fn get(store: &Store, name: &str) -> Option<u64> {
    let key = count(name);
    store.read(|txn| Ok(txn.get(&key)?.map(|row| row.0))).await.unwrap()
}

/// Raises a counter and returns its new value.
pub async fn raise(store: &Store, name: &str) -> u64 {
    let key = count(name);
    let work = move |txn: &mut Txn<'_>| {
        let value = txn.get(&key)?.map_or(0, |row| row.0) + 1;
        txn.put(&key, Count(value));
        Ok(value)
    };
    store.write(PROCESS, work).await.unwrap()
}
