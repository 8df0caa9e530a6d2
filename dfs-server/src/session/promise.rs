//! The table of promises: which session was promised which directories.
//!
//! Pure data. A promise costs a place in two maps, some hundred bytes; all are bounded, and what is
//! over a bound is not promised. That a promise is not used is known by its breaks: one that tells
//! of the directory is noted here, and forgotten when the session says that it has used it. A
//! promise that a break ends stays until that break is acknowledged: so long its holder goes by
//! it, and whoever changes the directory again waits for the same break.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use dfs_proto::id::{FileId, InodeNo, SessionId, VolumeId};
use dfs_proto::promise::BreakNumber;
use dfs_proto::version::Epoch;

/// Most directories promised to one session.
///
/// Why 65,536: more than a client works with at a time; about 10 MiB here.
pub const DIRS_PER_SESSION_MAX: usize = 64 << 10;

/// Most sessions that one directory is promised to.
///
/// Why 1,024: a commit there tells all of them before it is answered, on the thread of the one
/// writer.
pub const SESSIONS_PER_DIR_MAX: usize = 1024;

/// Most promises of all sessions. Why 1 Mi: about 160 MiB.
pub const PROMISES_MAX: usize = 1 << 20;

/// Who holds promises on which directory.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Ordered, so that an inode is found whatever its generation.
    holders: BTreeMap<FileId, Vec<SessionId>>,
    count: usize,
}

/// What is promised to one session.
#[derive(Debug, Default)]
pub(super) struct Held {
    dirs: HashMap<FileId, Standing>,
    /// Promises that end when a break is acknowledged, in the order of breaks.
    ending: VecDeque<(BreakNumber, FileId)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// The first break that told of the directory since it was used.
    told: Option<BreakNumber>,
    /// The break that ends the promise.
    ends_with: Option<BreakNumber>,
}

impl Promises {
    pub fn count(&self) -> usize {
        self.count
    }

    /// Promises a directory, or counts as a use if it is promised already. False over a bound.
    pub fn promise(&mut self, id: SessionId, held: &mut Held, dir: FileId) -> bool {
        let is_full = held.dirs.len() >= DIRS_PER_SESSION_MAX || self.count >= PROMISES_MAX;
        let vacant = match held.dirs.entry(dir) {
            Entry::Occupied(mut known) => {
                known.insert(Standing::default());
                return true;
            }
            Entry::Vacant(vacant) => vacant,
        };
        if is_full || self.holders(dir).len() >= SESSIONS_PER_DIR_MAX {
            return false;
        }
        vacant.insert(Standing::default());
        self.holders.entry(dir).or_default().push(id);
        self.count += 1;
        true
    }

    pub fn end(&mut self, id: SessionId, held: &mut Held, dir: FileId) {
        if held.dirs.remove(&dir).is_some() {
            self.forget(id, dir);
        }
    }

    pub fn end_all(&mut self, id: SessionId, held: &mut Held) {
        held.ending.clear();
        for dir in std::mem::take(&mut held.dirs).into_keys() {
            self.forget(id, dir);
        }
    }

    /// Ends what breaks up to `number` end, as they are acknowledged.
    pub fn acknowledged(&mut self, id: SessionId, held: &mut Held, number: BreakNumber) {
        while let Some((last, dir)) =
            held.ending.front().copied().filter(|(last, _)| *last <= number)
        {
            held.ending.pop_front();
            // Unless it was promised anew since.
            if held.ends_with(dir) == Some(last) {
                self.end(id, held, dir);
            }
        }
    }

    fn forget(&mut self, id: SessionId, dir: FileId) {
        let holders = self.holders.get_mut(&dir).expect("both maps know of a promise");
        let own = holders.iter().position(|holder| *holder == id);
        holders.swap_remove(own.expect("both maps know of a promise"));
        if holders.is_empty() {
            self.holders.remove(&dir);
        }
        self.count -= 1;
    }

    pub fn holders(&self, dir: FileId) -> &[SessionId] {
        self.holders.get(&dir).map(Vec::as_slice).unwrap_or_default()
    }

    /// The promised directories of an inode number, whatever their generation.
    pub fn promised(&self, volume: VolumeId, inode: InodeNo) -> Vec<FileId> {
        let first = FileId::new(volume, inode, Epoch(0));
        let last = FileId::new(volume, inode, Epoch(u32::MAX));
        self.holders.range(first..=last).map(|(dir, _)| *dir).collect()
    }
}

impl Held {
    /// Whether the break `number`, which tells of `dir`, is to end its promise: an earlier one told
    /// of it, and the session has acknowledged that one without a word of use.
    pub fn is_idle(&mut self, dir: FileId, number: BreakNumber, acknowledged: BreakNumber) -> bool {
        let Some(standing) = self.dirs.get_mut(&dir) else { return false };
        let first = *standing.told.get_or_insert(number);
        first < number && first <= acknowledged
    }

    /// The promise of `dir` ends with the break `number`.
    pub fn end_with(&mut self, dir: FileId, number: BreakNumber) {
        if let Some(standing) = self.dirs.get_mut(&dir) {
            standing.ends_with = Some(number);
            self.ending.push_back((number, dir));
        }
    }

    /// The break that ends the promise of `dir` and is not acknowledged.
    pub fn ends_with(&self, dir: FileId) -> Option<BreakNumber> {
        self.dirs.get(&dir)?.ends_with
    }

    /// The session has used `dir` before the break `number`.
    pub fn note_use(&mut self, dir: FileId, number: BreakNumber) {
        if let Some(Standing { told, .. }) = self.dirs.get_mut(&dir) {
            *told = told.filter(|first| *first > number);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: SessionId = SessionId([1; 16]);
    const BOB: SessionId = SessionId([2; 16]);

    fn dir(inode: u64) -> FileId {
        FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
    }

    #[test]
    fn a_promise_is_in_both_maps_once_and_goes_from_both() {
        let (mut promises, mut ann, mut bob) =
            (Promises::default(), Held::default(), Held::default());
        for _ in 0..2 {
            assert!(promises.promise(ANN, &mut ann, dir(1)));
        }
        assert!(promises.promise(BOB, &mut bob, dir(1)));
        assert!(promises.promise(BOB, &mut bob, dir(2)));
        assert_eq!(promises.holders(dir(1)), [ANN, BOB]);
        assert_eq!(promises.count(), 3);
        promises.end(ANN, &mut ann, dir(1));
        promises.end(ANN, &mut ann, dir(1));
        assert_eq!((promises.holders(dir(1)), promises.count()), (&[BOB][..], 2));
        promises.end_all(BOB, &mut bob);
        assert_eq!((promises.count(), promises.holders.len()), (0, 0));
        assert!(ann.is_empty() && bob.is_empty());
    }

    #[test]
    fn an_inode_is_found_whatever_its_generation() {
        let (mut promises, mut held) = (Promises::default(), Held::default());
        let older = FileId { generation: Epoch(7), ..dir(5) };
        for fid in [dir(4), dir(5), older, dir(6)] {
            promises.promise(ANN, &mut held, fid);
        }
        assert_eq!(promises.promised(VolumeId(1), InodeNo(5)), [dir(5), older]);
        assert_eq!(promises.promised(VolumeId(2), InodeNo(5)), []);
    }

    #[test]
    fn over_a_bound_nothing_is_promised_and_what_is_stays() {
        let (mut promises, mut held) = (Promises::default(), Held::default());
        let most = DIRS_PER_SESSION_MAX as u64;
        assert!((0..most).all(|inode| promises.promise(ANN, &mut held, dir(inode))));
        assert!(!promises.promise(ANN, &mut held, dir(most)));
        assert!(promises.promise(ANN, &mut held, dir(0)), "it is promised already");
        let mut others = Held::default();
        let fill = |number: usize| {
            let id = SessionId((number as u128 + 10).to_be_bytes());
            promises.promise(id, &mut Held::default(), dir(7))
        };
        assert_eq!((0..SESSIONS_PER_DIR_MAX).map(fill).filter(|is_held| *is_held).count(), 1023);
        assert!(!promises.promise(BOB, &mut others, dir(7)));
        promises.end(ANN, &mut held, dir(7));
        assert!(promises.promise(BOB, &mut others, dir(7)));
    }

    #[test]
    fn a_promise_costs_less_than_a_kilobyte() {
        // Twice for maps that have just grown, and the ordered map's nodes are half full.
        let held = 2 * size_of::<(FileId, Standing, u64)>();
        let holders = 2 * size_of::<(FileId, Vec<SessionId>)>() + 4 * size_of::<SessionId>();
        assert!(held + holders < 1024, "{held} and {holders} bytes");
    }

    #[test]
    fn a_promise_that_ends_is_there_until_its_last_break_is_acknowledged() {
        let (mut promises, mut held) = (Promises::default(), Held::default());
        for inode in [1, 2, 3] {
            promises.promise(ANN, &mut held, dir(inode));
            held.end_with(dir(inode), BreakNumber(inode));
        }
        assert_eq!(held.ends_with(dir(2)), Some(BreakNumber(2)));
        promises.acknowledged(ANN, &mut held, BreakNumber(1));
        assert_eq!((promises.holders(dir(1)), promises.holders(dir(2))), (&[][..], &[ANN][..]));
        promises.promise(ANN, &mut held, dir(2));
        assert_eq!(held.ends_with(dir(2)), None);
        promises.acknowledged(ANN, &mut held, BreakNumber(3));
        assert_eq!(promises.holders(dir(2)), [ANN], "it was promised anew");
        assert_eq!((promises.count(), held.ending.len()), (1, 0));
    }

    #[test]
    fn only_an_acknowledged_break_without_a_use_makes_the_next_one_the_last() {
        let (mut promises, mut held) = (Promises::default(), Held::default());
        let (d, number) = (dir(1), BreakNumber);
        promises.promise(ANN, &mut held, d);
        assert!(!held.is_idle(d, number(1), number(0)));
        assert!(!held.is_idle(d, number(2), number(0)), "nothing is known of a use yet");
        held.note_use(d, number(1));
        assert!(!held.is_idle(d, number(3), number(2)), "it was used before the first");
        held.note_use(d, number(2));
        assert!(held.is_idle(d, number(4), number(3)), "and not before the third");
        promises.promise(ANN, &mut held, d);
        assert!(!held.is_idle(d, number(5), number(4)), "to ask again is to use");
        assert!(!held.is_idle(dir(9), number(6), number(5)), "it is not promised");
    }
}
