//! The cache as its callers see it: what survives, what is refused, what goes when it is full.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dfs_proto::chunk::ChunkHash;
use dfs_proto::clock::SystemClock;
use dfs_proto::id::{FileId, InodeNo, VolumeId};
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::version::{DataVersion, Epoch, FencingToken};

use super::record::{Content, Origin, State};
use super::{Allocate, Belongs, Cache, CacheError, CacheFile, Limits};
use crate::metrics::{Counter, Metrics};

fn open_with(dir: &Path, size_bytes: u64, metrics: &Arc<Metrics>) -> Result<Cache, CacheError> {
    let belongs = Belongs { cell: "cell".into(), volume: "main".into() };
    let limits = Limits { size_bytes, keep_free_bytes: 0, keep_free_percent: 0 };
    Cache::open(dir, &belongs, limits, Arc::new(SystemClock), Arc::clone(metrics))
}

fn open(dir: &Path) -> Cache {
    open_with(dir, 64 << 20, &Arc::default()).unwrap()
}

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

fn version(counter: u64) -> DataVersion {
    DataVersion::new(Epoch(1), counter)
}

fn content(bytes: &[u8], counter: u64) -> Content {
    let length = u32::try_from(bytes.len()).unwrap();
    let extents = vec![Extent::Chunk { hash: ChunkHash::of(bytes), length }];
    Content { version: version(counter), manifest: Arc::new(Manifest { extents }) }
}

/// Makes a clean entry, as a fetch does.
fn add(cache: &Cache, inode: u64, bytes: &[u8]) -> Arc<CacheFile> {
    let file = cache.create(fid(inode)).unwrap();
    cache.write_at(&file, bytes, 0).unwrap();
    let stamp = file.stamp().ok();
    let state = State::Clean(content(bytes, inode));
    cache.record(&file, &Origin::default(), state, stamp).unwrap();
    file
}

fn working(bytes: &[u8]) -> State {
    State::Working { base: content(bytes, 1), token: FencingToken::default() }
}

#[tokio::test]
async fn a_recorded_version_is_there_in_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    drop(add(&open(dir.path()), 5, b"hello"));
    let cache = open(dir.path());
    let clean = cache.clean(fid(5)).await.unwrap();
    assert_eq!(clean.version, version(5));
    let mut buffer = [0; 5];
    clean.file.read_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"hello");
    assert!(cache.clean(fid(6)).await.is_none());
}

#[tokio::test]
async fn damage_under_a_running_client_is_found_though_the_times_were_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let path = add(&cache, 5, b"hello").path().to_owned();
    assert!(cache.clean(fid(5)).await.is_some());
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"jello", 0).unwrap();
    file.set_modified(modified).unwrap();
    assert!(cache.clean(fid(5)).await.is_none());
}

#[tokio::test]
async fn a_version_that_became_a_working_copy_while_it_was_checked_is_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let file = add(&cache, 5, b"hello");
    // Somebody looked the version up, and then another one wrote.
    let candidate = cache.find_clean(fid(5)).unwrap();
    cache.record(&file, &Origin::default(), working(b"hello"), None).unwrap();
    cache.write_at(&file, b"jello", 0).unwrap();
    assert!(!cache.check(&file, &candidate.content, candidate.checked));
    assert_eq!(cache.unclean().len(), 1, "the working copy is where it was");
    assert!(file.path().exists());
}

#[tokio::test]
async fn a_damaged_or_missing_file_is_dropped_at_its_first_use() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let paths = [5, 6, 7].map(|inode| add(&cache, inode, b"hello").path().to_owned());
    drop(cache);
    std::fs::write(&paths[0], b"jello").unwrap();
    std::fs::write(&paths[1], b"hell").unwrap();
    std::fs::remove_file(&paths[2]).unwrap();
    let metrics = Arc::new(Metrics::default());
    let cache = open_with(dir.path(), 64 << 20, &metrics).unwrap();
    for inode in [5, 6, 7] {
        assert!(cache.clean(fid(inode)).await.is_none(), "inode {inode}");
    }
    assert_eq!(metrics.value(Counter::CacheDropCorrupt), 2);
    assert_eq!(metrics.value(Counter::CacheDropMissing), 1);
    assert_eq!(cache.usage().entry_count, 0);
    assert!(paths.iter().all(|path| !path.exists()));
}

#[tokio::test]
async fn a_file_that_was_touched_in_this_run_is_checked_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let path = add(&cache, 5, b"hello").path().to_owned();
    assert!(cache.clean(fid(5)).await.is_some());
    std::fs::write(&path, b"damaged").unwrap();
    assert!(cache.clean(fid(5)).await.is_none());
}

#[tokio::test]
async fn a_newer_version_takes_the_place_of_the_older_whose_holders_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let old = add(&cache, 5, b"old");
    let new = cache.create(fid(5)).unwrap();
    cache.write_at(&new, b"new!", 0).unwrap();
    let state = State::Clean(content(b"new!", 9));
    cache.record(&new, &Origin::default(), state, new.stamp().ok()).unwrap();
    assert_eq!(cache.clean(fid(5)).await.unwrap().version, version(9));
    assert!(!old.path().exists());
    let mut buffer = [0; 3];
    assert_eq!(old.read_at(&mut buffer, 0).unwrap(), 3);
    assert_eq!(cache.usage().entry_count, 1);
}

#[tokio::test]
async fn a_fetched_version_never_takes_the_place_of_changed_data() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let file = add(&cache, 5, b"base");
    cache.record(&file, &Origin::default(), working(b"base"), None).unwrap();
    let fetched = add(&cache, 5, b"other");
    let path = fetched.path().to_owned();
    drop(fetched);
    assert!(!path.exists());
    assert_eq!(cache.unclean()[0].0, file.id());
    assert!(cache.clean(fid(5)).await.is_none());
}

#[tokio::test]
async fn files_that_were_never_recorded_are_gone_in_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let file = cache.create(fid(5)).unwrap();
    let path = file.path().to_owned();
    // As a kill would: nobody drops the file.
    std::mem::forget(file);
    drop(cache);
    assert!(path.exists());
    let cache = open(dir.path());
    assert!(!path.exists());
    assert_eq!(cache.usage().entry_count, 0);
}

#[tokio::test]
async fn files_that_a_damaged_log_lost_are_put_aside_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let file = {
        let cache = open(dir.path());
        let file = add(&cache, 5, b"precious");
        cache.record(&file, &Origin::default(), working(b"precious"), None).unwrap();
        file.path().to_owned()
    };
    let log = dir.path().join("index.log");
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&log, &bytes[..40]).unwrap();
    let _cache = open(dir.path());
    assert!(!file.exists());
    let aside = dir.path().join("lost").join(file.file_name().unwrap());
    assert_eq!(std::fs::read(aside).unwrap(), b"precious");
}

#[tokio::test]
async fn what_was_used_least_recently_is_evicted_and_never_what_is_open_or_changed() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let cache = open_with(dir.path(), 1 << 20, &metrics).unwrap();
    let bytes = vec![7; 200 << 10];
    let changed = add(&cache, 1, &bytes);
    cache.record(&changed, &Origin::default(), working(&bytes), None).unwrap();
    drop(changed);
    let held = add(&cache, 2, &bytes);
    drop(add(&cache, 3, &bytes));
    drop(add(&cache, 4, &bytes));
    assert!(cache.clean(fid(3)).await.is_some());
    let _room = cache.reserve(400 << 10).unwrap();
    assert!(cache.clean(fid(4)).await.is_none());
    assert!(cache.clean(fid(3)).await.is_some());
    assert!(cache.clean(fid(2)).await.is_some());
    assert_eq!(cache.unclean().len(), 1);
    assert_eq!(metrics.value(Counter::CacheEvicted), 1);
    drop(held);
}

#[tokio::test]
async fn a_cache_full_of_changes_says_so_and_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 1 << 20, &Arc::default()).unwrap();
    let file = add(&cache, 1, &vec![7; 900 << 10]);
    cache.record(&file, &Origin::default(), working(b""), None).unwrap();
    let error = cache.reserve(400 << 10).unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }));
    assert!(error.to_string().contains("--cache-size"), "{error}");
    assert_eq!(error.into_io().kind(), std::io::ErrorKind::StorageFull);
    assert!(file.path().exists());
}

#[tokio::test]
async fn a_growing_working_copy_cannot_pass_the_limit_unseen() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_with(dir.path(), 1 << 20, &Arc::default()).unwrap();
    let file = add(&cache, 1, b"x");
    cache.record(&file, &Origin::default(), working(b"x"), None).unwrap();
    let piece = vec![7; 64 << 10];
    let written =
        (0..64).take_while(|index| cache.write_at(&file, &piece, index * (64 << 10)).is_ok());
    let count = written.count();
    assert!((14..=20).contains(&count), "{count} pieces of 64 KiB in 1 MiB");
}

#[tokio::test]
async fn a_full_disk_evicts_and_tries_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let file = cache.create(fid(1)).unwrap();
    cache.refuse_writes(1);
    cache.write_at(&file, b"hello", 0).unwrap();
    cache.refuse_writes(2);
    let error = cache.write_at(&file, b"hello", 0).unwrap_err();
    assert!(matches!(error, CacheError::Full { .. }), "{error}");
}

#[tokio::test]
async fn the_log_is_compacted_and_says_the_same_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let files: Vec<_> = (1..=3).map(|inode| add(&cache, inode, b"hello")).collect();
    for _ in 0..10_000 {
        cache.record(&files[0], &Origin::default(), working(b"hello"), None).unwrap();
    }
    let log_bytes = std::fs::metadata(dir.path().join("index.log")).unwrap().len();
    assert!(log_bytes < 1 << 20, "{log_bytes} bytes");
    files[0].writer().unwrap().write_all_at(b"J", 0).unwrap();
    drop((files, cache));
    let cache = open(dir.path());
    assert_eq!(cache.usage().entry_count, 3);
    assert_eq!(cache.unclean().len(), 1);
    assert!(cache.clean(fid(2)).await.is_some() && cache.clean(fid(3)).await.is_some());
}

const MIB: u64 = 1 << 20;

fn disk_mib(file: &CacheFile) -> u64 {
    file.disk_bytes().unwrap() / MIB
}

#[test]
fn allocating_takes_room_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::default();
    let cache = open_with(dir.path(), 16 * MIB, &metrics).unwrap();
    drop(add(&cache, 1, &[1; 4 << 20]));
    let file = cache.create(fid(2)).unwrap();
    cache.record(&file, &Origin::default(), working(b""), None).unwrap();
    let space = |keeps_size| Allocate::Space { keeps_size };
    cache.allocate(&file, space(false), 0..8 * MIB).unwrap();
    assert_eq!((file.size().unwrap(), disk_mib(&file)), (8 * MIB, 8));
    assert_eq!(metrics.value(Counter::CacheEvicted), 0);
    cache.allocate(&file, space(false), 0..8 * MIB).unwrap();
    cache.allocate(&file, space(true), 8 * MIB..14 * MIB).unwrap();
    assert_eq!((file.size().unwrap(), disk_mib(&file)), (8 * MIB, 14));
    assert_eq!(metrics.value(Counter::CacheEvicted), 1, "room was made");
    let full = cache.allocate(&file, space(false), 0..20 * MIB);
    assert!(matches!(full, Err(CacheError::Full { .. })), "{full:?}");
    assert_eq!(file.size().unwrap(), 8 * MIB);
    cache.allocate(&file, Allocate::Hole, 0..20 * MIB).unwrap();
    assert_eq!(file.size().unwrap(), 8 * MIB);
    assert!(disk_mib(&file) <= 6, "what is beyond the end may stay");
}

#[test]
fn clearing_works_also_where_the_file_system_has_no_call_for_it() {
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let dir = tempfile::tempdir_in(place).unwrap();
        let cache = open(dir.path());
        let file = cache.create(fid(1)).unwrap();
        cache.write_at(&file, &[7; 3 << 20], 0).unwrap();
        let zero = |keeps_size| Allocate::Zero { keeps_size };
        cache.allocate(&file, zero(true), MIB..9 * MIB).unwrap();
        assert_eq!(file.size().unwrap(), 3 * MIB);
        cache.allocate(&file, zero(false), MIB..4 * MIB).unwrap();
        assert_eq!(file.size().unwrap(), 4 * MIB);
        let bytes = std::fs::read(file.path()).unwrap();
        let is_right = |at: usize, byte: u8| (byte == 7) == (at < 1 << 20);
        assert!(bytes.iter().enumerate().all(|(at, byte)| is_right(at, *byte)));
    }
}

#[test]
fn copies_keep_holes_and_make_them() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let [from, to] = [1, 2].map(|inode| cache.create(fid(inode)).unwrap());
    cache.write_at(&from, &[1; 1 << 20], 20 * MIB).unwrap();
    cache.allocate(&from, Allocate::Zero { keeps_size: false }, 21 * MIB..40 * MIB).unwrap();
    cache.write_at(&to, &[2; 5 << 20], 0).unwrap();
    assert_eq!(cache.copy((&from, 0..u64::MAX >> 1), (&to, MIB)).unwrap(), 40 * MIB);
    assert_eq!(to.size().unwrap(), 41 * MIB);
    assert_eq!(disk_mib(&to), 2);
    let bytes = std::fs::read(to.path()).unwrap();
    let mib_of = |at: usize| &bytes[at << 20..(at + 1) << 20];
    assert!(mib_of(0).iter().all(|byte| *byte == 2) && mib_of(21).iter().all(|byte| *byte == 1));
    assert!((1..21).chain(22..41).all(|at| mib_of(at).iter().all(|byte| *byte == 0)));
    assert_eq!(cache.copy((&from, 50 * MIB..60 * MIB), (&to, 0)).unwrap(), 0, "past the end");
    assert_eq!(cache.copy((&to, 21 * MIB..22 * MIB), (&to, 0)).unwrap(), MIB);
    assert_eq!(std::fs::read(to.path()).unwrap()[..3], [1, 1, 1]);
}
