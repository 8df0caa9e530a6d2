//! What every engine must do: one function for each claim, run against all of them.
//!
//! An engine's tests hand each function an [`Opener`] of storage that nobody used before. Where a
//! claim is about what is kept, the function drops the engine and opens the storage again.

use std::sync::Arc;

use dfs_proto::id::NodeId;
use dfs_proto::version::Epoch;

use super::{Batch, Durability, Engine, EngineError, KeyBytes, Space, key};

/// Opens the same storage at every call. The engine of the call before is gone by then.
pub type Opener<'a> = &'a dyn Fn() -> Arc<dyn Engine>;

const SPACE: Space = Space(7);
const HOLDER: NodeId = NodeId(3);

/// Largest value that every engine takes. Units: bytes.
const VALUE_BYTES: usize = 1 << 20;

type Rows = Vec<(KeyBytes, Option<Vec<u8>>)>;

fn row(name: &[u8]) -> KeyBytes {
    key::prefix(SPACE, 1, &[name])
}

fn batch(epoch: Epoch, rows: Rows) -> Batch {
    Batch { space: SPACE, epoch, rows, durability: Durability::Process }
}

fn stable(epoch: Epoch, rows: Rows) -> Batch {
    Batch { durability: Durability::Stable, ..batch(epoch, rows) }
}

fn claim(engine: &dyn Engine) -> Epoch {
    engine.claim(SPACE, HOLDER).expect("claim")
}

fn commit(engine: &dyn Engine, epoch: Epoch, rows: Rows) {
    engine.commit(&batch(epoch, rows)).expect("commit");
}

fn load(engine: &dyn Engine, keys: &[KeyBytes]) -> Vec<Option<Vec<u8>>> {
    engine.load(keys).expect("load")
}

/// The names of the rows between two names.
fn names(engine: &dyn Engine, from: &[u8], to: &[u8], limit: usize) -> Vec<Vec<u8>> {
    let rows = engine.scan(&row(from), &row(to), limit).expect("scan");
    rows.into_iter().map(|(bytes, _)| key::parts(&bytes).to_vec()).collect()
}

/// Loads answer in the order of the keys, absent and repeated ones included.
pub fn loads_answer_for_every_key(open: Opener<'_>) {
    let engine = open();
    let epoch = claim(&*engine);
    commit(&*engine, epoch, vec![(row(b"a"), Some(vec![1])), (row(b"b"), Some(vec![]))]);
    let keys = [row(b"b"), row(b"x"), row(b"a"), row(b"b")];
    assert_eq!(load(&*engine, &keys), [Some(vec![]), None, Some(vec![1]), Some(vec![])]);
    assert_eq!(load(&*engine, &[]), Vec::<Option<Vec<u8>>>::new());
}

/// Scans go in the order of unsigned bytes, half-open, and stop at the limit.
pub fn scans_are_ordered_and_half_open(open: Opener<'_>) {
    let engine = open();
    let epoch = claim(&*engine);
    let sorted: [&[u8]; 7] = [b"", b"\0", b"a", b"a\0", b"aa", b"b", b"\xff\xff"];
    let rows = [3, 0, 6, 1, 5, 2, 4].map(|index| (row(sorted[index]), Some(vec![1])));
    commit(&*engine, epoch, rows.to_vec());
    assert_eq!(names(&*engine, b"", b"\xff\xff\xff", 100), sorted);
    assert_eq!(names(&*engine, b"a", b"b", 100), sorted[2..5]);
    assert_eq!(names(&*engine, b"a", b"b", 2), sorted[2..4]);
    assert_eq!(names(&*engine, b"a", b"a", 100), Vec::<Vec<u8>>::new());
    assert_eq!(names(&*engine, b"b", b"a", 100), Vec::<Vec<u8>>::new());
    assert_eq!(names(&*engine, b"a", b"b", 0), Vec::<Vec<u8>>::new());
}

/// Scans keep spaces and tags apart.
pub fn scans_end_with_their_space(open: Opener<'_>) {
    let engine = open();
    for space in [Space(6), SPACE, Space(8), Space(0xffff_ffff)] {
        let epoch = engine.claim(space, HOLDER).expect("claim");
        let rows = [1, 2].map(|tag| (key::prefix(space, tag, &[b"n"]), Some(vec![tag])));
        let batch = Batch { space, epoch, rows: rows.to_vec(), durability: Durability::Process };
        engine.commit(&batch).expect("commit");
    }
    let start = key::prefix(SPACE, 1, &[]);
    let rows = engine.scan(&start, &key::prefix_end(&start), 100).expect("scan");
    assert_eq!(rows, [(row(b"n").to_vec(), vec![1])]);
}

/// A batch replaces, adds and deletes in one step; deleting what is not there is fine.
pub fn a_batch_replaces_adds_and_deletes(open: Opener<'_>) {
    let engine = open();
    let epoch = claim(&*engine);
    commit(&*engine, epoch, vec![(row(b"a"), Some(vec![1])), (row(b"b"), Some(vec![2]))]);
    let rows = vec![
        (row(b"a"), None),
        (row(b"b"), Some(vec![3, 3])),
        (row(b"c"), Some(vec![4])),
        (row(b"d"), None),
    ];
    commit(&*engine, epoch, rows);
    let found = load(&*engine, &[row(b"a"), row(b"b"), row(b"c"), row(b"d")]);
    assert_eq!(found, [None, Some(vec![3, 3]), Some(vec![4]), None]);
}

/// Readers beside a writer see each batch whole: its rows are always equal.
pub fn scans_see_batches_whole(open: Opener<'_>) {
    const ROUNDS: u8 = 100;
    let engine = open();
    let epoch = claim(&*engine);
    let rows = |value: u8| {
        let row = |index: u8| (row(&[index]), Some(vec![value]));
        (0..20).map(row).collect::<Rows>()
    };
    commit(&*engine, epoch, rows(0));
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=ROUNDS).for_each(|value| commit(&*engine, epoch, rows(value))));
        let mut last = 0;
        while last < ROUNDS {
            let found = engine.scan(&row(b""), &row(&[20]), 100).expect("scan");
            assert_eq!(found.len(), 20);
            assert!(found.iter().all(|(_, value)| *value == found[0].1), "half a batch: {found:?}");
            assert!(found[0].1[0] >= last, "went back from {last} to {:?}", found[0].1);
            last = found[0].1[0];
        }
    });
}

/// Epochs begin at 1, and grow by 1 with every claim, across openings, each space on its own.
pub fn a_claim_raises_the_epoch_for_good(open: Opener<'_>) {
    let engine = open();
    assert_eq!(claim(&*engine), Epoch(1));
    assert_eq!(claim(&*engine), Epoch(2));
    assert_eq!(engine.claim(Space(8), HOLDER).expect("claim"), Epoch(1));
    drop(engine);
    assert_eq!(claim(&*open()), Epoch(3));
}

/// A batch of an owner that was succeeded is refused and changes nothing, as is one of nobody.
pub fn an_old_owner_is_fenced(open: Opener<'_>) {
    let engine = open();
    let nobody = engine.commit(&batch(Epoch(1), vec![(row(b"a"), Some(vec![0]))]));
    assert!(matches!(nobody, Err(EngineError::NotOwner { .. })), "{nobody:?}");
    let old = claim(&*engine);
    commit(&*engine, old, vec![(row(b"a"), Some(vec![1]))]);
    let new = claim(&*engine);
    for refused in [
        engine.commit(&batch(old, vec![(row(b"a"), Some(vec![2]))])),
        engine.commit(&stable(old, vec![(row(b"a"), None)])),
        engine.commit(&batch(new.next(), vec![(row(b"a"), Some(vec![2]))])),
    ] {
        assert!(matches!(refused, Err(EngineError::NotOwner { space: SPACE, .. })), "{refused:?}");
    }
    assert_eq!(load(&*engine, &[row(b"a")]), [Some(vec![1])]);
    commit(&*engine, new, vec![(row(b"a"), Some(vec![3]))]);
    assert_eq!(load(&*engine, &[row(b"a")]), [Some(vec![3])]);
}

/// What was committed, stable or not, is there when the storage is opened again.
pub fn rows_outlive_the_engine(open: Opener<'_>) {
    let engine = open();
    let epoch = claim(&*engine);
    engine.commit(&stable(epoch, vec![(row(b"a"), Some(vec![1]))])).expect("commit");
    commit(&*engine, epoch, vec![(row(b"b"), Some(vec![2]))]);
    drop(engine);
    let engine = open();
    assert_eq!(load(&*engine, &[row(b"a"), row(b"b")]), [Some(vec![1]), Some(vec![2])]);
    // The epoch too: who owned the space before still does, until somebody claims it.
    commit(&*engine, epoch, vec![(row(b"c"), Some(vec![3]))]);
}

/// Values of up to 1 MiB come back as they were, in loads and scans, and can shrink.
pub fn large_values_are_kept(open: Opener<'_>) {
    let engine = open();
    let epoch = claim(&*engine);
    let value: Vec<u8> = (0..VALUE_BYTES).map(|index| (index % 251) as u8).collect();
    let rows = vec![(row(b"a"), Some(value.clone())), (row(b"b"), Some(value.clone()))];
    commit(&*engine, epoch, rows);
    assert_eq!(load(&*engine, &[row(b"b")]), [Some(value.clone())]);
    let found = engine.scan(&row(b"a"), &row(b"c"), 2).expect("scan");
    assert!(found.iter().all(|(_, found)| *found == value) && found.len() == 2);
    commit(&*engine, epoch, vec![(row(b"a"), Some(vec![1]))]);
    assert_eq!(load(&*engine, &[row(b"a")]), [Some(vec![1])]);
}

/// Ten thousand rows in a few batches are all found, in order, page by page.
pub fn many_keys_are_scanned_in_pages(open: Opener<'_>) {
    const COUNT: u32 = 10_000;
    const PAGE: usize = 999;
    let engine = open();
    let epoch = claim(&*engine);
    let numbers: Vec<u32> = (0..COUNT).collect();
    for part in numbers.rchunks(2500) {
        let rows = part.iter().map(|number| (row(&number.to_be_bytes()), Some(vec![1])));
        commit(&*engine, epoch, rows.collect());
    }
    let (mut from, end) = (row(b""), key::prefix_end(&row(b"")));
    let mut found = Vec::new();
    loop {
        let page = engine.scan(&from, &end, PAGE).expect("scan");
        let Some((last, _)) = page.last() else { break };
        from = key::after(last);
        let number = |bytes: &[u8]| key::take_u32(key::parts(bytes)).map(|(number, _)| number);
        found.extend(page.iter().filter_map(|(bytes, _)| number(bytes)));
    }
    assert_eq!(found, numbers);
}

/// A batch without rows is taken, and fenced like any other.
pub fn an_empty_batch_is_taken(open: Opener<'_>) {
    let engine = open();
    let epoch = claim(&*engine);
    engine.commit(&batch(epoch, Vec::new())).expect("commit");
    engine.commit(&stable(epoch, Vec::new())).expect("commit");
    claim(&*engine);
    let refused = engine.commit(&stable(epoch, Vec::new()));
    assert!(matches!(refused, Err(EngineError::NotOwner { .. })), "{refused:?}");
}
