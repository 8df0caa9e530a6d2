use dfs_proto::id::{InodeNo, VolumeId};
use dfs_proto::range::RANGE_END_MAX;
use dfs_proto::version::Epoch;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

use super::*;

const NOW: Moment =
    Moment { boottime: Duration::from_secs(100), wall: Timestamp { secs: 7, nanos: 0 } };
const SHARED: RangeKind = RangeKind::Shared;
const EXCLUSIVE: RangeKind = RangeKind::Exclusive;

fn fid() -> FileId {
    FileId::new(VolumeId(1), InodeNo(9), Epoch(1))
}

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

/// A claim of owner 1 of a session.
fn claim(number: u8, kind: RangeKind, range: std::ops::Range<u64>) -> RangeClaim {
    RangeClaim {
        session: session(number),
        holder: format!("host{number}"),
        owner: LockOwner(1),
        pid: 10 + u32::from(number),
        range: Range { start: range.start, end: range.end },
        kind,
    }
}

fn ask(table: &mut RangeTable, claim: &RangeClaim, wait: Option<u64>) -> (RangeAnswer, Vec<Ready>) {
    table.ask(fid(), claim, wait.map(WaitNumber), NOW).unwrap()
}

fn granted(table: &mut RangeTable, claim: &RangeClaim) {
    assert_eq!(ask(table, claim, None).0, RangeAnswer::Granted, "{claim:?}");
}

fn queued(table: &mut RangeTable, claim: &RangeClaim, wait: u64) {
    assert!(matches!(ask(table, claim, Some(wait)).0, RangeAnswer::Queued(_)), "{claim:?}");
}

fn unlock(table: &mut RangeTable, claim: &RangeClaim) -> Vec<u64> {
    waits(table.unlock(fid(), (claim.session, claim.owner), claim.range, NOW))
}

fn waits(ready: Vec<Ready>) -> Vec<u64> {
    ready.into_iter().map(|ready| ready.wait.0).collect()
}

#[test]
fn who_does_not_wait_is_told_who_has_it() {
    let mut table = RangeTable::default();
    let (first, second) = (claim(1, EXCLUSIVE, 0..10), claim(2, SHARED, 9..11));
    granted(&mut table, &first);
    assert_eq!(ask(&mut table, &second, None).0, RangeAnswer::Held(first.clone()));
    assert_eq!(table.test(fid(), &second), Some(first.clone()));
    assert_eq!(table.test(fid(), &first), None, "its own does not stand against it");
    granted(&mut table, &claim(2, EXCLUSIVE, 10..11));
}

#[test]
fn who_waits_is_served_in_order_and_readers_together() {
    let mut table = RangeTable::default();
    let first = claim(1, EXCLUSIVE, 0..10);
    granted(&mut table, &first);
    queued(&mut table, &claim(2, SHARED, 0..5), 2);
    queued(&mut table, &claim(3, EXCLUSIVE, 0..5), 3);
    queued(&mut table, &claim(4, SHARED, 0..5), 4);
    queued(&mut table, &claim(5, SHARED, 6..7), 5);
    assert_eq!(unlock(&mut table, &first), [2, 5], "4 is behind 3");
    assert_eq!(ask(&mut table, &claim(2, SHARED, 0..5), Some(2)).0, RangeAnswer::Granted);
    assert_eq!(unlock(&mut table, &claim(2, SHARED, 0..5)), [3]);
    assert_eq!(unlock(&mut table, &claim(3, SHARED, 0..5)), [4]);
}

#[test]
fn a_late_asker_does_not_overtake_but_one_that_does_not_wait_may() {
    let mut table = RangeTable::default();
    granted(&mut table, &claim(1, SHARED, 0..10));
    queued(&mut table, &claim(2, EXCLUSIVE, 0..10), 2);
    queued(&mut table, &claim(3, SHARED, 0..10), 3);
    granted(&mut table, &claim(4, SHARED, 0..10));
}

/// It holds what the one in the queue waits for: behind it, both would wait for ever.
#[test]
fn who_has_ranges_of_the_file_passes_those_who_wait_for_it() {
    let mut table = RangeTable::default();
    granted(&mut table, &claim(1, SHARED, 0..10));
    queued(&mut table, &claim(2, EXCLUSIVE, 0..20), 2);
    let more = claim(1, EXCLUSIVE, 10..20);
    assert_eq!(ask(&mut table, &more, Some(1)).0, RangeAnswer::Granted);
    assert_eq!(unlock(&mut table, &claim(1, SHARED, 0..20)), [2]);
}

#[test]
fn a_downgrade_lets_readers_in() {
    let mut table = RangeTable::default();
    granted(&mut table, &claim(1, EXCLUSIVE, 0..10));
    queued(&mut table, &claim(2, SHARED, 0..10), 2);
    let (answer, ready) = ask(&mut table, &claim(1, SHARED, 0..10), None);
    assert_eq!((answer, waits(ready)), (RangeAnswer::Granted, vec![2]));
}

#[test]
fn a_wait_that_is_cancelled_after_its_grant_leaves_what_was_there_before() {
    let mut table = RangeTable::default();
    granted(&mut table, &claim(1, SHARED, 2..4));
    granted(&mut table, &claim(2, SHARED, 0..10));
    queued(&mut table, &claim(1, EXCLUSIVE, 0..10), 1);
    assert_eq!(unlock(&mut table, &claim(2, SHARED, 0..10)), [1]);
    table.cancel(fid(), session(1), WaitNumber(1), NOW);
    let (held, waiting) = table.list(fid());
    let ranges: Vec<_> = held.iter().map(|it| (it.claim.range, it.claim.kind)).collect();
    assert_eq!(ranges, [(Range { start: 2, end: 4 }, SHARED)]);
    assert!(waiting.is_empty());
}

#[test]
fn a_wait_that_is_cancelled_leaves_the_queue() {
    let mut table = RangeTable::default();
    let first = claim(1, EXCLUSIVE, 0..10);
    granted(&mut table, &first);
    queued(&mut table, &claim(2, EXCLUSIVE, 0..10), 2);
    queued(&mut table, &claim(3, EXCLUSIVE, 0..10), 3);
    assert!(table.cancel(fid(), session(2), WaitNumber(2), NOW).is_empty());
    assert_eq!(unlock(&mut table, &first), [3]);
}

#[test]
fn waits_and_grants_that_nobody_asks_about_are_taken_back() {
    let mut table = RangeTable::default();
    let first = claim(1, EXCLUSIVE, 0..10);
    granted(&mut table, &first);
    queued(&mut table, &claim(2, EXCLUSIVE, 0..10), 2);
    queued(&mut table, &claim(3, EXCLUSIVE, 0..10), 3);
    let later = Moment { boottime: NOW.boottime + RANGE_WAIT_LEASE, ..NOW };
    table.ask(fid(), &claim(3, EXCLUSIVE, 0..10), Some(WaitNumber(3)), later).unwrap();
    assert_eq!(unlock(&mut table, &first), [2]);
    assert_eq!(waits(table.expire(later)), [3], "2 has not asked for its lease");
    assert_eq!(table.expire(later), []);
}

#[test]
fn a_session_that_ends_leaves_nothing_and_lets_others_in() {
    let mut table = RangeTable::default();
    granted(&mut table, &claim(1, EXCLUSIVE, 0..10));
    granted(&mut table, &RangeClaim { owner: LockOwner(2), ..claim(1, SHARED, 20..30) });
    queued(&mut table, &claim(2, EXCLUSIVE, 0..10), 2);
    let third = RangeClaim { owner: LockOwner(3), ..claim(1, EXCLUSIVE, 0..5) };
    queued(&mut table, &third, 1);
    assert_eq!(waits(table.end_session(session(1), NOW)), [2]);
    table.end_session(session(2), NOW);
    assert!(table.files.is_empty() && table.by_session.is_empty(), "{table:?}");
}

#[test]
fn what_is_reclaimed_is_held_unless_somebody_has_it() {
    let mut table = RangeTable::default();
    table.reclaim(fid(), &claim(1, EXCLUSIVE, 0..10), NOW).unwrap();
    let busy = Err(FsError::LockBusy { holder: "host1".into() });
    assert_eq!(table.reclaim(fid(), &claim(2, SHARED, 5..6), NOW), busy);
}

#[test]
fn broken_locks_go_to_those_who_wait() {
    let mut table = RangeTable::default();
    granted(&mut table, &claim(1, EXCLUSIVE, 0..10));
    granted(&mut table, &claim(1, EXCLUSIVE, 20..30));
    queued(&mut table, &claim(2, EXCLUSIVE, 0..10), 2);
    let (sessions, count, ready) = table.break_all(fid(), NOW);
    assert_eq!((sessions, count, waits(ready)), (vec![session(1)], 2, vec![2]));
}

#[test]
fn ranges_of_a_session_are_bounded() {
    let mut table = RangeTable::default();
    for index in 0..FILE_RANGES_MAX as u64 {
        granted(&mut table, &claim(1, SHARED, index * 2..index * 2 + 1));
    }
    let one_more = claim(1, SHARED, 1_000_000..1_000_001);
    let error = table.ask(fid(), &one_more, None, NOW).unwrap_err();
    assert!(matches!(error, FsError::TooLarge { limit: 4096, .. }), "{error}");
    granted(&mut table, &claim(2, SHARED, 0..1));
}

const BYTES: usize = 12;

#[derive(Clone, Debug)]
enum Step {
    Lock { who: u8, kind: RangeKind, range: Range, waits: bool },
    Unlock { who: u8, range: Range },
    Cancel { who: u8 },
    End { session: u8 },
}

/// Owners: two of each of three sessions.
fn owner(who: u8) -> Who {
    (session(who / 2), LockOwner(u64::from(who % 2)))
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..6u8;
    let range = (0..BYTES as u64, 1..=BYTES as u64).prop_map(|(start, length)| {
        let end = if start + length >= BYTES as u64 { RANGE_END_MAX } else { start + length };
        Range { start, end }
    });
    let kind = prop::sample::select(vec![SHARED, EXCLUSIVE]);
    prop_oneof![
        6 => (who.clone(), kind, range.clone(), any::<bool>())
            .prop_map(|(who, kind, range, waits)| Step::Lock { who, kind, range, waits }),
        4 => (who.clone(), range).prop_map(|(who, range)| Step::Unlock { who, range }),
        1 => who.prop_map(|who| Step::Cancel { who }),
        1 => (0..3u8).prop_map(|session| Step::End { session }),
    ]
}

/// What each owner has of each byte, naively.
#[derive(Default)]
struct Model {
    bytes: HashMap<Who, [Option<RangeKind>; BYTES]>,
    /// The waits of owners, one at a time, as they came.
    queue: Vec<(Who, RangeKind, Range)>,
}

impl Model {
    fn stands_against(&self, who: Who, kind: RangeKind, range: Range) -> bool {
        let others = self.bytes.iter().filter(|(other, _)| **other != who);
        let mut held = others.flat_map(|(_, bytes)| &bytes[span(range)]);
        held.any(|held| held.is_some_and(|held| held.excludes(kind)))
    }

    fn set(&mut self, who: Who, range: Range, kind: Option<RangeKind>) {
        self.bytes.entry(who).or_default()[span(range)].fill(kind);
    }

    fn has_some(&self, who: Who) -> bool {
        self.bytes.get(&who).is_some_and(|bytes| bytes.iter().any(Option::is_some))
    }

    fn is_behind(&self, who: Who, kind: RangeKind, range: Range, before: usize) -> bool {
        self.queue[..before].iter().any(|(other, theirs, place)| {
            *other != who && place.overlaps(range) && theirs.excludes(kind)
        })
    }

    fn can_have(&self, (who, kind, range): (Who, RangeKind, Range), before: usize) -> bool {
        let is_behind = !self.has_some(who) && self.is_behind(who, kind, range, before);
        !is_behind && !self.stands_against(who, kind, range)
    }

    fn serve(&mut self) {
        let mut index = 0;
        while let Some(first) = self.queue.get(index).copied() {
            if self.can_have(first, index) {
                self.queue.remove(index);
                self.set(first.0, first.2, Some(first.1));
            } else {
                index += 1;
            }
        }
    }
}

fn span(range: Range) -> std::ops::Range<usize> {
    range.start as usize..range.end.min(BYTES as u64) as usize
}

fn run(table: &mut RangeTable, model: &mut Model, number: u64, step: &Step) {
    match *step {
        Step::Lock { who, kind, range, waits } => {
            let (session, owner) = owner(who);
            let who = (session, owner);
            if model.queue.iter().any(|(other, ..)| *other == who) {
                return;
            }
            let claim = RangeClaim { session, owner, range, kind, ..claim(9, kind, 0..1) };
            let (answer, _) = ask(table, &claim, waits.then_some(number));
            let can = if waits {
                model.can_have((who, kind, range), model.queue.len())
            } else {
                !model.stands_against(who, kind, range)
            };
            assert_eq!(answer == RangeAnswer::Granted, can, "{step:?}: {answer:?}");
            match (can, waits) {
                (true, _) => model.set(who, range, Some(kind)),
                (false, true) => model.queue.push((who, kind, range)),
                (false, false) => {}
            }
        }
        Step::Unlock { who, range } => {
            table.unlock(fid(), owner(who), range, NOW);
            model.set(owner(who), range, None);
        }
        Step::Cancel { who } => {
            let who = owner(who);
            let waits: Vec<WaitNumber> = table
                .files
                .get(&fid())
                .into_iter()
                .flat_map(|file| &file.queue)
                .filter(|it| (it.claim.session, it.claim.owner) == who)
                .map(|it| it.wait)
                .collect();
            for wait in waits {
                table.cancel(fid(), who.0, wait, NOW);
            }
            model.queue.retain(|(other, ..)| *other != who);
        }
        Step::End { session: number } => {
            table.end_session(session(number), NOW);
            model.bytes.retain(|(other, _), _| *other != session(number));
            model.queue.retain(|((other, _), ..)| *other != session(number));
        }
    }
    model.serve();
}

proptest! {
    /// Both kinds, several owners of several sessions, waits and ends, byte by byte.
    #[test]
    fn the_table_is_what_a_kind_for_each_byte_and_owner_would_be(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let (mut table, mut model) = (RangeTable::default(), Model::default());
        for (number, step) in (0..).zip(&steps) {
            run(&mut table, &mut model, number, step);
            for who in (0..6).map(owner) {
                let held = table.files.get(&fid()).and_then(|file| file.held.get(&who));
                for byte in 0..BYTES {
                    let place = Range { start: byte as u64, end: byte as u64 + 1 };
                    let kind = held.and_then(|held| held.segments.within(place).next());
                    let expected = model.bytes.get(&who).and_then(|bytes| bytes[byte]);
                    prop_assert_eq!(kind.map(|it| it.kind), expected, "{:?} of {:?}", byte, who);
                }
            }
            let waiting = table.files.get(&fid()).map_or(0, |file| file.queue.len());
            prop_assert_eq!(waiting, model.queue.len());
            let total: usize = table.by_session.values().map(|share| share.total).sum();
            let real: usize = table.files.values().flat_map(|it| it.held.values())
                .map(|held| held.segments.len()).sum();
            prop_assert_eq!(total, real);
        }
    }
}
