//! What every chunk store must do, as one suite that each of them runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::{FileId, InodeNo, VolumeId};
use dfs_proto::limits::CHUNK_BYTES_MAX;
use dfs_proto::version::Epoch;

use super::{ChunkError, ChunkStore};

/// Harm that befalls kept bytes behind a store's back.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    FlippedBit,
    CutShort,
    /// What a power cut leaves of a file whose bytes were not written yet.
    Emptied,
}

impl Damage {
    pub fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Damage::FlippedBit => bytes[0] ^= 1,
            Damage::CutShort => bytes.truncate(bytes.len() / 2),
            Damage::Emptied => bytes.clear(),
        }
    }
}

type Harm = Box<dyn Fn(FileId, ChunkHash, Damage)>;

/// An empty store, and a way to damage what it keeps.
pub struct Subject {
    pub store: Arc<dyn ChunkStore>,
    pub damage: Harm,
}

/// Runs every claim on a store of its own.
///
/// # Panics
/// If a claim does not hold.
pub fn run(mut make: impl FnMut() -> Subject) {
    let claims: [fn(&Subject); 9] = [
        a_chunk_comes_back_until_it_is_deleted,
        bytes_that_the_hash_does_not_name_are_refused,
        impossible_lengths_are_refused,
        damage_is_noticed_and_healed_by_the_next_put,
        files_do_not_see_each_other,
        touching_moves_the_time_forward,
        a_link_is_a_chunk_of_its_own,
        a_listing_has_every_chunk_once,
        sync_names_the_chunk_that_is_missing,
    ];
    for claim in claims {
        claim(&make());
    }
    many_threads_put_the_same_chunks(&make());
}

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

fn put(store: &dyn ChunkStore, fid: FileId, bytes: &[u8]) -> ChunkHash {
    let hash = ChunkHash::of(bytes);
    store.put(fid, hash, bytes).expect("put succeeds");
    hash
}

fn is_missing<T>(result: Result<T, ChunkError>, hash: ChunkHash) -> bool {
    matches!(result, Err(ChunkError::Missing(named)) if named == hash)
}

fn is_corrupt<T>(result: Result<T, ChunkError>, hash: ChunkHash) -> bool {
    matches!(result, Err(ChunkError::Corrupt(named)) if named == hash)
}

fn has(store: &dyn ChunkStore, fid: FileId, hash: ChunkHash) -> bool {
    store.stat(fid, hash).expect("stat succeeds").is_some()
}

fn a_chunk_comes_back_until_it_is_deleted(subject: &Subject) {
    let store = &*subject.store;
    for bytes in [&b"x"[..], b"hello", &vec![7; CHUNK_BYTES_MAX as usize]] {
        let length = u32::try_from(bytes.len()).expect("fits");
        let hash = ChunkHash::of(bytes);
        assert!(!has(store, fid(1), hash));
        assert!(is_missing(store.get(fid(1), hash, length), hash));
        put(store, fid(1), bytes);
        put(store, fid(1), bytes);
        assert_eq!(&store.get(fid(1), hash, length).expect("it is there")[..], bytes);
        assert!(is_corrupt(store.get(fid(1), hash, length + 1), hash), "another length");
        let stat = store.stat(fid(1), hash).expect("stat succeeds").expect("it is there");
        assert_eq!(stat.length, length);
        assert!(store.delete(fid(1), hash).expect("delete succeeds"));
        assert!(!store.delete(fid(1), hash).expect("deleting twice is no error"));
        assert!(is_missing(store.get(fid(1), hash, length), hash));
    }
}

fn bytes_that_the_hash_does_not_name_are_refused(subject: &Subject) {
    let (store, hash) = (&*subject.store, ChunkHash::of(b"right"));
    assert!(is_corrupt(store.put(fid(1), hash, b"wrong"), hash));
    assert!(!has(store, fid(1), hash));
    put(store, fid(1), b"right");
    assert!(is_corrupt(store.put(fid(1), hash, b"wrong"), hash));
    assert_eq!(&store.get(fid(1), hash, 5).expect("it is there")[..], b"right");
}

fn impossible_lengths_are_refused(subject: &Subject) {
    for length in [0, CHUNK_BYTES_MAX as usize + 1] {
        let bytes = vec![1; length];
        let result = subject.store.put(fid(1), ChunkHash::of(&bytes), &bytes);
        assert!(matches!(result, Err(ChunkError::BadLength(named)) if named == length));
        assert!(!has(&*subject.store, fid(1), ChunkHash::of(&bytes)));
    }
}

fn damage_is_noticed_and_healed_by_the_next_put(subject: &Subject) {
    let store = &*subject.store;
    for damage in [Damage::FlippedBit, Damage::CutShort, Damage::Emptied] {
        let hash = put(store, fid(1), b"precious");
        (subject.damage)(fid(1), hash, damage);
        assert!(is_corrupt(store.get(fid(1), hash, 8), hash), "{damage:?}");
        let is_held = has(store, fid(1), hash);
        assert_eq!(is_held, !matches!(damage, Damage::Emptied), "an empty chunk counts as gone");
        put(store, fid(1), b"precious");
        assert_eq!(&store.get(fid(1), hash, 8).expect("healed")[..], b"precious", "{damage:?}");
    }
}

fn files_do_not_see_each_other(subject: &Subject) {
    let store = &*subject.store;
    let hash = put(store, fid(1), b"mine");
    let others = [
        fid(2),
        FileId::new(VolumeId(2), InodeNo(1), Epoch(1)),
        FileId::new(VolumeId(1), InodeNo(1), Epoch(2)),
        FileId::new(VolumeId(1), InodeNo(0x11), Epoch(1)),
    ];
    for other in others {
        assert!(is_missing(store.get(other, hash, 4), hash), "{other}");
        assert!(store.touch(other, hash).expect("touch succeeds").is_none());
        assert!(store.list(other).expect("list succeeds").is_empty());
        assert!(!store.delete(other, hash).expect("delete succeeds"));
    }
    assert!(has(store, fid(1), hash));
}

fn touching_moves_the_time_forward(subject: &Subject) {
    let store = &*subject.store;
    let hash = put(store, fid(1), b"wanted");
    let time = || store.stat(fid(1), hash).expect("stat succeeds").expect("there").touched;
    let stored = time();
    let stat = store.touch(fid(1), hash).expect("touch succeeds").expect("it is there");
    assert_eq!(stat.length, 6);
    assert!(time() >= stored && stat.touched == time());
    let touched = time();
    put(store, fid(1), b"wanted");
    assert!(time() >= touched);
    assert!(store.touch(fid(1), ChunkHash::of(b"other")).expect("touch succeeds").is_none());
}

fn a_link_is_a_chunk_of_its_own(subject: &Subject) {
    let store = &*subject.store;
    let hash = put(store, fid(1), b"shared");
    store.link(fid(1), fid(2), hash).expect("link succeeds");
    store.link(fid(1), fid(2), hash).expect("linking twice is no error");
    store.sync(fid(2), &[hash]).expect("sync succeeds");
    assert!(store.delete(fid(1), hash).expect("delete succeeds"));
    assert_eq!(&store.get(fid(2), hash, 6).expect("it is there")[..], b"shared");
    assert!(is_missing(store.link(fid(1), fid(3), hash), hash));
    put(store, fid(1), b"shared");
    (subject.damage)(fid(2), hash, Damage::Emptied);
    if has(store, fid(1), hash) {
        store.link(fid(1), fid(2), hash).expect("an empty target is replaced");
        assert_eq!(&store.get(fid(2), hash, 6).expect("healed")[..], b"shared");
    }
}

fn a_listing_has_every_chunk_once(subject: &Subject) {
    let store = &*subject.store;
    let mut expected = BTreeSet::new();
    for length in 1..=50u32 {
        let hash = put(store, fid(1), &vec![1; length as usize]);
        put(store, fid(2), &vec![2; length as usize]);
        expected.insert((hash, length));
    }
    let listed = store.list(fid(1)).expect("list succeeds");
    assert_eq!(listed.len(), expected.len());
    assert_eq!(BTreeSet::from_iter(listed), expected);
}

fn sync_names_the_chunk_that_is_missing(subject: &Subject) {
    let store = &*subject.store;
    let hashes: Vec<_> = (0..40u8).map(|byte| put(store, fid(1), &[byte; 9])).collect();
    store.sync(fid(1), &[]).expect("syncing nothing succeeds");
    store.sync(fid(1), &hashes).expect("sync succeeds");
    store.sync(fid(1), &hashes).expect("syncing again succeeds");
    let missing = ChunkHash::of(b"missing");
    assert!(is_missing(store.sync(fid(1), &[hashes[0], missing]), missing));
    (subject.damage)(fid(1), hashes[1], Damage::Emptied);
    assert!(is_missing(store.sync(fid(1), &hashes[..2]), hashes[1]));
    let space = store.space().expect("space succeeds");
    assert!(space.total_bytes > 0 && space.free_bytes <= space.total_bytes);
}

fn many_threads_put_the_same_chunks(subject: &Subject) {
    let store = &*subject.store;
    let chunks: Vec<Vec<u8>> = (0..50u8).map(|byte| vec![byte; 4096]).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for bytes in &chunks {
                    let hash = put(store, fid(1), bytes);
                    assert_eq!(store.get(fid(1), hash, 4096).expect("there"), bytes);
                }
            });
        }
    });
    assert_eq!(store.list(fid(1)).expect("list succeeds").len(), chunks.len());
}
