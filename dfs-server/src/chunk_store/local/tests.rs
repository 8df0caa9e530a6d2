//! The local store: conformance, layout, and what a crash leaves.

use std::sync::Arc;

use proptest::{prop_assert, prop_assert_eq, proptest};

use super::super::conformance::{self, Damage, Subject};
use super::*;

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(2))
}

fn damage_file(path: &Path, damage: Damage) {
    let mut bytes = fs::read(path).unwrap();
    damage.apply(&mut bytes);
    // A mark may make it read-only, for those who are not root.
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_local_store_conforms() {
    let root = tempfile::tempdir().unwrap();
    let mut number = 0;
    conformance::run(|| {
        number += 1;
        let store = LocalChunkStore::open(&root.path().join(number.to_string())).unwrap();
        let store = Arc::new(store);
        let damaged = Arc::clone(&store);
        let damage = move |fid, hash, damage| damage_file(&damaged.path(fid, hash), damage);
        Subject { store, damage: Box::new(damage) }
    });
}

#[test]
fn chunks_are_there_after_reopening_and_half_written_files_are_not() {
    let root = tempfile::tempdir().unwrap();
    let hash = ChunkHash::of(b"kept");
    let store = LocalChunkStore::open(root.path()).unwrap();
    store.put(fid(7), hash, b"kept").unwrap();
    store.write_temp(b"half").unwrap();
    drop(store);
    let store = LocalChunkStore::open(root.path()).unwrap();
    assert_eq!(&store.get(fid(7), hash, 4).unwrap()[..], b"kept");
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn the_layout_does_not_move() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalChunkStore::open(root.path()).unwrap();
    let fid = FileId::new(VolumeId(1), InodeNo(0xabc), Epoch(16));
    let hash = ChunkHash::of(b"");
    let expected = "chunks/SHARD/1-abc-10-\
                    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let path = store.path(fid, hash);
    let path = path.strip_prefix(root.path()).unwrap();
    assert_eq!(path.to_str().unwrap(), expected.replace("SHARD", "109"));
    assert_eq!(fs::read_to_string(root.path().join("format")).unwrap(), FORMAT);
}

#[test]
fn runs_of_inodes_share_a_shard_and_are_spread_over_all_of_them() {
    assert!((256..512).all(|inode| shard_of(fid(inode)) == shard_of(fid(256))));
    let mut counts = vec![0; 4096];
    let runs = (0..40_960).map(|run| shard_of(fid(run << SHARD_RUN_BITS)));
    runs.for_each(|shard| counts[usize::try_from(shard).unwrap()] += 1);
    assert!(counts.iter().all(|count| (5..=20).contains(count)));
}

#[test]
fn a_store_of_another_version_or_without_its_marker_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(LocalChunkStore::open(root.path()).unwrap());
    fs::write(root.path().join("format"), "dfs chunk store, version 9\n").unwrap();
    let error = LocalChunkStore::open(root.path()).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
    fs::remove_file(root.path().join("format")).unwrap();
    let error = LocalChunkStore::open(root.path()).unwrap_err();
    assert!(error.to_string().contains("no marker"), "{error}");
}

#[test]
fn an_interrupted_first_start_is_completed() {
    let root = tempfile::tempdir().unwrap();
    drop(LocalChunkStore::open(root.path()).unwrap());
    fs::remove_dir(root.path().join("chunks")).unwrap();
    let store = LocalChunkStore::open(root.path()).unwrap();
    store.put(fid(1), ChunkHash::of(b"x"), b"x").unwrap();
}

#[test]
fn a_new_shard_is_synced_with_the_first_chunk_that_is() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalChunkStore::open(root.path()).unwrap();
    let hash = ChunkHash::of(b"x");
    let are_shards_stable = || *store.lock_shards();
    store.put(fid(1), hash, b"x").unwrap();
    store.sync(fid(1), &[hash]).unwrap();
    assert!(are_shards_stable());
    store.put(fid(1), ChunkHash::of(b"y"), b"y").unwrap();
    assert!(are_shards_stable(), "no new shard");
    store.put(fid(256), hash, b"x").unwrap();
    assert!(!are_shards_stable());
    store.sync(fid(256), &[hash]).unwrap();
    assert!(are_shards_stable());
}

#[test]
fn foreign_files_in_a_shard_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalChunkStore::open(root.path()).unwrap();
    let hash = ChunkHash::of(b"mine");
    store.put(fid(1), hash, b"mine").unwrap();
    let name = file_name(fid(1), hash);
    for foreign in ["README", "1-1-2-", &name.to_uppercase(), &format!("0{name}")] {
        fs::write(store.shard(fid(1)).join(foreign), "x").unwrap();
    }
    assert_eq!(store.list(fid(1)).unwrap(), [(hash, 4)]);
}

#[test]
fn a_synced_chunk_is_marked_and_a_replaced_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalChunkStore::open(root.path()).unwrap();
    let hash = ChunkHash::of(b"12345678");
    let path = store.path(fid(1), hash);
    let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
    store.put(fid(1), hash, b"12345678").unwrap();
    assert_eq!(mode(), MODE_WRITTEN);
    store.sync(fid(1), &[hash]).unwrap();
    assert_eq!(mode(), MODE_STABLE);
    store.touch(fid(1), hash).unwrap().unwrap();
    assert_eq!(mode(), MODE_STABLE);
    damage_file(&path, Damage::FlippedBit);
    store.put(fid(1), hash, b"12345678").unwrap();
    assert_eq!(mode(), MODE_WRITTEN);
}

#[test]
fn after_a_failed_sync_chunks_are_written_anew_and_damaged_ones_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalChunkStore::open(root.path()).unwrap();
    let [good, bad] = [b"good", b"bad!"].map(|bytes| {
        store.put(fid(1), ChunkHash::of(bytes), bytes).unwrap();
        ChunkHash::of(bytes)
    });
    let inode = || fs::metadata(store.path(fid(1), good)).unwrap().ino();
    let before = inode();
    store.distrust(&store.path(fid(1), good), &io::Error::other("test"));
    store.sync(fid(1), &[good]).unwrap();
    assert_ne!(inode(), before);
    assert_eq!(fs::metadata(store.path(fid(1), good)).unwrap().mode() & 0o777, MODE_STABLE);
    damage_file(&store.path(fid(1), bad), Damage::FlippedBit);
    assert!(matches!(store.sync(fid(1), &[bad]), Err(ChunkError::Corrupt(hash)) if hash == bad));
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let path = Path::new("/x");
    let full = ChunkError::io("write", path, ErrorKind::StorageFull.into());
    assert!(matches!(full, ChunkError::NoSpace(_)));
    let quota = ChunkError::io("write", path, ErrorKind::QuotaExceeded.into());
    assert!(matches!(quota, ChunkError::NoSpace(_)));
    let other = ChunkError::io("write", path, ErrorKind::PermissionDenied.into());
    assert!(matches!(other, ChunkError::Io { .. }));
}

proptest! {
    #[test]
    fn file_names_round_trip_and_stay_in_their_directory(
        volume: u32, inode: u64, generation: u32, hash: [u8; 32],
    ) {
        let fid = FileId::new(VolumeId(volume), InodeNo(inode), Epoch(generation));
        let name = file_name(fid, ChunkHash(hash));
        prop_assert!(name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'), "{name}");
        prop_assert!(name.len() <= 255 && shard_of(fid) < SHARD_COUNT);
        prop_assert_eq!(parse_file_name(&name), Some((fid, ChunkHash(hash))));
    }

    #[test]
    fn what_is_no_chunk_name_is_not_taken_for_one(name in "[0-9a-fA-F+-]{0,90}|\\PC{0,40}") {
        if let Some((fid, hash)) = parse_file_name(&name) {
            prop_assert_eq!(file_name(fid, hash), name);
        }
    }
}
