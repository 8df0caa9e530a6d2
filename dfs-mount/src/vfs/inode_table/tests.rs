use dfs_proto::clock::SystemClock;
use dfs_proto::id::{InodeNo, VolumeId};
use dfs_proto::name::Name;
use dfs_proto::version::Epoch;

use super::*;
use crate::cache::Cache;
use crate::testing::client::{TEST_LIMITS, belongs};
use crate::vfs::node::Place;

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

/// An empty cache file of nobody's.
fn file() -> Arc<CacheFile> {
    let dir = tempfile::tempdir().unwrap();
    let (clock, metrics) = (Arc::new(SystemClock), Arc::default());
    let cache = Cache::open(dir.path(), &belongs(), TEST_LIMITS, clock, metrics).unwrap();
    cache.create(fid(7)).unwrap()
}

fn table() -> InodeTable {
    InodeTable::new(fid(1))
}

#[test]
fn an_inode_is_known_by_its_number_until_every_lookup_is_forgotten() {
    let table = table();
    assert_eq!(table.look_up(fid(7)).nodeid, 7);
    assert_eq!(table.look_up(fid(7)).nodeid, 7);
    table.forget(7, 1);
    assert!(table.get(7).is_some());
    table.forget(7, 1);
    assert!(table.get(7).is_none() && table.find(fid(7)).is_none());
}

#[test]
fn the_root_is_never_forgotten() {
    let table = table();
    table.forget(ROOT_NODEID, u64::MAX);
    assert_eq!(table.get(ROOT_NODEID).unwrap().fid, fid(1));
}

#[test]
fn a_forget_of_more_than_was_looked_up_or_of_nothing_known_is_harmless() {
    let table = table();
    table.look_up(fid(7));
    table.forget(7, 100);
    table.forget(7, 1);
    table.forget(99, 1);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_superseded_node_stays_known_and_lookups_yield_a_fresh_one() {
    let table = table();
    let old = table.look_up(fid(7));
    let _handle = old.open_for_test();
    table.supersede(&old);
    table.supersede(&old);
    let new = table.look_up(fid(7));
    assert_eq!(new.nodeid, FRESH_START, "superseding twice makes one node");
    assert_eq!(table.get(7).unwrap().nodeid, 7);
    assert!(table.if_current(&old, &file(), || ()).is_none());
    assert!(table.if_current(&new, &file(), || ()).is_some());
}

#[test]
fn a_file_returns_to_its_number_when_no_node_of_it_is_open() {
    let table = table();
    let old = table.look_up(fid(7));
    let handle = old.open_for_test();
    table.supersede(&old);
    assert_eq!(table.look_up(fid(7)).nodeid, FRESH_START);
    drop(handle);
    assert_eq!(table.look_up(fid(7)).nodeid, 7);
    table.forget(FRESH_START, 1);
    table.forget(7, 2);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_fresh_node_that_nobody_looked_up_goes_with_the_one_it_follows() {
    let table = table();
    let old = table.look_up(fid(7));
    table.supersede(&old);
    table.forget(7, 1);
    assert_eq!(table.len(), 1);
    assert_eq!(table.look_up(fid(7)).nodeid, 7);
}

#[test]
fn another_generation_of_a_number_the_kernel_still_knows_gets_a_fresh_nodeid() {
    let table = table();
    table.look_up(fid(7));
    let reborn = FileId { generation: Epoch(2), ..fid(7) };
    assert_eq!(table.look_up(reborn).nodeid, FRESH_START);
    table.forget(7, 1);
    assert_eq!(table.find(reborn).unwrap().nodeid, FRESH_START);
}

#[test]
fn inode_numbers_that_reach_the_fresh_range_or_the_root_do_not_collide() {
    let table = table();
    let high = table.look_up(fid(FRESH_START)).nodeid;
    let root_of_another_generation = FileId { generation: Epoch(2), ..fid(1) };
    let low = table.look_up(root_of_another_generation).nodeid;
    assert!(high >= FRESH_START && low >= FRESH_START && high != low);
}

fn see(table: &InodeTable, inode: u64, parent: u64, name: &str) {
    let name = Name::parse(name.as_bytes()).unwrap();
    table.look_up(fid(inode)).state().see_at(Place { parent, name });
}

#[test]
fn a_path_is_whole_as_long_as_the_kernel_knows_its_directories() {
    let table = table();
    see(&table, 7, ROOT_NODEID, "a");
    see(&table, 8, 7, "b");
    see(&table, 9, 8, "file");
    assert_eq!(table.path(9), "/a/b/file");
    assert_eq!(table.path(ROOT_NODEID), "/");
    see(&table, 8, ROOT_NODEID, "moved");
    assert_eq!(table.path(9), "/moved/file");
    table.forget(8, 2);
    assert_eq!(table.path(9), ".../file");
    assert_eq!(table.path(8), "...");
}

#[test]
fn a_path_that_was_seen_to_go_in_a_circle_ends() {
    let table = table();
    see(&table, 7, 8, "a");
    see(&table, 8, 7, "b");
    let path = table.path(7);
    assert!(path.starts_with(".../") && path.ends_with("/b/a"), "{path}");
    assert_eq!(path.matches('/').count(), PATH_NAMES_MAX);
}

#[test]
fn a_superseded_node_that_is_not_open_is_current_again_unless_the_other_shows_its_file() {
    let table = table();
    let (old, file) = (table.look_up(fid(7)), file());
    let open = old.open_for_test();
    table.supersede(&old);
    let fresh = table.look_up(fid(7));
    assert_ne!(fresh.nodeid, old.nodeid);
    drop(open);
    let open = fresh.open_for_test();
    assert_eq!(table.if_current(&old, &file, || ()), Some(()), "the other shows something else");
    assert_eq!(table.look_up(fid(7)).nodeid, old.nodeid);
    assert_eq!(table.if_current(&fresh, &file, || ()), None, "it is open itself");
    drop(open);
}
