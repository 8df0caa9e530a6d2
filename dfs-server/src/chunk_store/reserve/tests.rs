//! The reserve, with a disk whose free space is what a test says.

use super::super::conformance::{self, Damage, Subject};
use super::super::faulty::{Fault, FaultyChunkStore, Mishap, Operation};
use super::super::memory::MemoryChunkStore;
use super::*;
use dfs_proto::clock::ManualClock;
use dfs_proto::id::{InodeNo, VolumeId};
use dfs_proto::version::Epoch;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A disk, and stores that share it.
struct World {
    disk: Arc<MemoryChunkStore>,
    looks: Arc<FaultyChunkStore>,
    clock: ManualClock,
    stores: Vec<ReservedStore>,
}

impl World {
    fn new(total_bytes: u64, sharer_count: usize) -> World {
        let disk = Arc::new(MemoryChunkStore::with_space(total_bytes));
        let looks = Arc::new(FaultyChunkStore::new(Arc::clone(&disk) as _));
        let clock = ManualClock::default();
        let store =
            |_| ReservedStore::new(Arc::clone(&looks) as _, Arc::new(clock.clone()), sharer_count);
        let stores = (0..sharer_count).map(store).collect();
        World { disk, looks, clock, stores }
    }

    /// Puts a chunk of this length that no other has.
    fn put(&self, store: usize, number: u64, length: usize) -> Result<ChunkHash, ChunkError> {
        let (hash, bytes) = chunk(number, length);
        self.stores[store].put(fid(), hash, &bytes).map(|()| hash)
    }

    fn look_count(&self) -> u64 {
        self.looks.count(Operation::Space)
    }

    fn free_bytes(&self) -> u64 {
        self.disk.space().unwrap().free_bytes
    }

    /// Fills from every store in turn until each refuses; the chunks that were taken.
    fn fill(&self, length: usize) -> u64 {
        let mut number = 0;
        let mut refusals = 0;
        while refusals < self.stores.len() {
            refusals = 0;
            for store in 0..self.stores.len() {
                match self.put(store, number, length) {
                    Ok(_) => number += 1,
                    Err(error) => {
                        assert!(matches!(error, ChunkError::NoSpace(_)), "{error}");
                        refusals += 1;
                    }
                }
            }
        }
        number
    }
}

fn fid() -> FileId {
    FileId::new(VolumeId(1), InodeNo(2), Epoch(3))
}

fn chunk(number: u64, length: usize) -> (ChunkHash, Vec<u8>) {
    let mut bytes = vec![0; length];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    (ChunkHash::of(&bytes), bytes)
}

#[test]
fn a_reserved_store_conforms() {
    conformance::run(|| {
        let memory = Arc::new(MemoryChunkStore::default());
        let damaged = Arc::clone(&memory);
        let store = ReservedStore::new(memory, Arc::new(ManualClock::default()), 2);
        let damage = move |fid, hash, damage: Damage| {
            damaged.tamper(fid, hash, |bytes| damage.apply(bytes));
        };
        Subject { store: Arc::new(store), damage: Box::new(damage) }
    });
}

#[test]
fn the_reserve_grows_with_the_disk_between_its_bounds() {
    assert_eq!(reserve_bytes(64 * MIB), 16 * MIB);
    assert_eq!(reserve_bytes(150 * MIB), 32 * MIB);
    assert_eq!(reserve_bytes(16 * GIB), 512 * MIB);
    assert_eq!(reserve_bytes(4096 * GIB), GIB);
}

#[test]
fn stores_that_share_a_disk_fill_it_up_to_the_reserve_and_no_further() {
    for length in [50_000, 300_000, 1 << 20] {
        let world = World::new(150 * MIB, 2);
        world.fill(length);
        let free = world.free_bytes();
        assert!(free >= 32 * MIB, "{free} bytes left of the reserve, chunks of {length}");
        assert!(free <= 32 * MIB + 2 * cost(length), "{free} bytes free, chunks of {length}");
    }
}

#[test]
fn the_disk_is_not_looked_at_for_each_chunk() {
    let world = World::new(150 * MIB, 2);
    let count = world.fill(32 << 10);
    assert!(count > 3_000, "{count}");
    assert!(world.look_count() < 100, "{} looks for {count} chunks", world.look_count());
    let before = world.look_count();
    for number in 0..1000 {
        world.put(0, count + number, 32 << 10).unwrap_err();
    }
    assert!(world.look_count() <= before + 1);
}

#[test]
fn a_grant_ends_with_its_time_so_that_what_others_write_is_seen() {
    let world = World::new(64 * MIB, 1);
    world.put(0, 1, 4096).unwrap();
    world.put(0, 2, 4096).unwrap();
    assert_eq!(world.look_count(), 1);
    let write_beside = |number, length| {
        world.disk.tamper(fid(), chunk(number, 4096).0, |bytes| bytes.resize(length, 1));
    };
    write_beside(1, 40 << 20);
    world.clock.advance(GRANT_LIFE);
    world.put(0, 3, 1 << 20).unwrap();
    write_beside(2, 9 << 20);
    world.clock.advance(GRANT_LIFE);
    assert!(matches!(world.put(0, 4, 4096), Err(ChunkError::NoSpace(_))));
}

#[test]
fn what_is_there_is_touched_and_healed_read_and_synced_on_a_full_disk() {
    let world = World::new(150 * MIB, 1);
    let kept = world.put(0, 1_000_000, 4096).unwrap();
    world.fill(1 << 20);
    let store = &world.stores[0];
    let touched = || store.stat(fid(), kept).unwrap().unwrap().touched;
    let before = touched();
    world.put(0, 1_000_000, 4096).unwrap();
    assert!(touched() > before);
    world.disk.tamper(fid(), kept, |bytes| bytes[0] ^= 1);
    world.put(0, 1_000_000, 4096).unwrap();
    assert_eq!(store.get(fid(), kept, 4096).unwrap(), chunk(1_000_000, 4096).1);
    store.touch(fid(), kept).unwrap().unwrap();
    store.sync(fid(), &[kept]).unwrap();
    assert!(world.put(0, 2_000_000, 1 << 20).is_err());
}

#[test]
fn chunks_are_taken_again_soon_after_space_was_freed() {
    let world = World::new(150 * MIB, 1);
    world.fill(1 << 20);
    for number in 0..4 {
        assert!(world.disk.delete(fid(), chunk(number, 1 << 20).0).unwrap());
    }
    world.clock.advance(REFUSAL_LIFE);
    world.put(0, 1_000_000, 1 << 20).unwrap();
}

#[test]
fn free_space_is_what_is_above_the_reserve() {
    let world = World::new(150 * MIB, 1);
    let space = |world: &World| world.stores[0].space().unwrap();
    assert_eq!(space(&world).free_bytes, 118 * MIB);
    assert_eq!(space(&world).total_bytes, 150 * MIB);
    world.fill(1 << 20);
    assert!(space(&world).free_bytes < 4 * MIB);
}

#[test]
fn a_disk_that_can_make_no_more_files_is_full() {
    let files = |free_files| Space { total_bytes: GIB, free_bytes: GIB, free_files };
    assert_eq!(room(&files(u64::MAX)), GIB - 32 * MIB);
    assert_eq!(room(&files(RESERVE_FILES + 10)), 10 * cost(1));
    assert_eq!((room(&files(RESERVE_FILES)), net(&files(RESERVE_FILES)).free_bytes), (0, 0));
}

#[test]
fn a_disk_that_cannot_be_looked_at_takes_nothing() {
    let world = World::new(150 * MIB, 1);
    world.looks.inject(Fault::next(Operation::Space, Mishap::Io));
    assert!(matches!(world.put(0, 1, 4096), Err(ChunkError::Io { .. })));
    world.put(0, 1, 4096).unwrap();
}
