use std::collections::VecDeque;

use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::id::{InodeNo, VolumeId};
use dfs_proto::permission::{EXECUTE, Rights};
use dfs_proto::version::{DataVersion, DirVersion, Epoch};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::*;

const STREAM: StreamNumber = StreamNumber(1);
const FOR_EVER: Duration = Duration::from_secs(1000);
const NOW: Duration = Duration::from_secs(1);

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

fn at(counter: u64) -> Sequence {
    Sequence::new(Epoch(1), counter)
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

/// Attributes of an inode that are told apart by their size.
fn attr(inode: u64, size: u64) -> Attr {
    let kind = if inode == DIR { FileKind::Directory } else { FileKind::File };
    let (mode, nlink, uid, gid, stored_bytes, rdev, xattr_bytes) = (0o755, 1, 0, 0, 0, 0, 0);
    let time = Timestamp::default();
    let version = DataVersion::default();
    Attr {
        fid: fid(inode),
        kind,
        mode,
        nlink,
        uid,
        gid,
        size,
        stored_bytes,
        atime: time,
        mtime: time,
        ctime: time,
        rdev,
        data_version: version,
        dir_version: DirVersion::default(),
        xattr_bytes,
    }
}

const DIR: u64 = 7;
const THE_DIR: Subject<'_> =
    Subject { fid: FileId::new(VolumeId(1), InodeNo(DIR), Epoch(1)), place: None };

fn promise(after: u64, counter: u64) -> Promise {
    let sequence = at(counter);
    Promise { stream: STREAM, after: BreakNumber(after), sequence, dirs: vec![fid(DIR)] }
}

fn change(counter: u64, names: Vec<(Name, Option<Attr>)>) -> DirChange {
    let attr = Some(attr(DIR, counter));
    DirChange { dir: fid(DIR), attr, names, is_cut: false, is_made: false, sequence: at(counter) }
}

fn told(number: u64, changes: Vec<DirChange>) -> Break {
    Break { number: BreakNumber(number), changes, ended: Vec::new() }
}

fn live() -> Promises {
    let promises = Promises::default();
    promises.stream_began(STREAM);
    promises.renewed(STREAM, FOR_EVER);
    promises
}

fn size_of(promises: &Promises, text: &str) -> Option<Option<u64>> {
    promises.look_up(THE_DIR, &name(text), &|_| true, NOW).map(|known| match known {
        Known::Here(attr, _) => Some(attr.size),
        Known::Absent => None,
    })
}

fn learn(promises: &Promises, promise: &Promise, text: &str, attr: Option<&Attr>) {
    let since = promises.moment();
    let dir = self::attr(DIR, promise.sequence.counter);
    promises.learn(promise, fid(DIR), Learnt::Dir(&dir), since);
    promises.learn(promise, fid(DIR), Learnt::Name(&name(text), attr), since);
}

fn learn_page<'a>(
    promises: &Promises,
    promise: &Promise,
    page: Page<'_, impl Iterator<Item = (&'a Name, &'a Attr)>>,
) {
    let since = promises.moment();
    let dir = attr(DIR, promise.sequence.counter);
    promises.learn(promise, fid(DIR), Learnt::Dir(&dir), since);
    promises.learn_page(promise, fid(DIR), page, since);
}

#[test]
fn what_was_promised_is_known_until_the_lease_or_the_stream_ends() {
    let promises = live();
    learn(&promises, &promise(0, 5), "a", Some(&attr(20, 1)));
    learn(&promises, &promise(0, 5), "b", None);
    assert_eq!(size_of(&promises, "a"), Some(Some(1)));
    assert_eq!(size_of(&promises, "b"), Some(None));
    assert_eq!(size_of(&promises, "c"), None);
    let later = promises.look_up(THE_DIR, &name("a"), &|_| true, FOR_EVER);
    assert_eq!(later, None, "the lease ended");
    promises.stream_ended();
    assert_eq!(size_of(&promises, "a"), None);
    promises.stream_began(StreamNumber(2));
    assert_eq!(size_of(&promises, "a"), None);
    learn(&promises, &promise(0, 6), "a", Some(&attr(20, 1)));
    assert_eq!(size_of(&promises, "a"), None, "promised on the stream before");
}

#[test]
fn a_break_changes_what_is_known_and_says_what_was_used() {
    let promises = live();
    learn(&promises, &promise(0, 5), "a", Some(&attr(20, 1)));
    learn(&promises, &promise(0, 5), "b", Some(&attr(21, 1)));
    let first = told(1, vec![change(6, vec![(name("a"), Some(attr(20, 2))), (name("b"), None)])]);
    assert_eq!(promises.break_came(&first), [fid(DIR)]);
    let second = promises.break_came(&told(2, vec![change(7, vec![])]));
    assert!(second.is_empty(), "nobody asked in between");
    assert_eq!(size_of(&promises, "a"), Some(Some(2)));
    assert_eq!(size_of(&promises, "b"), Some(None));
    assert_eq!(promises.attr(THE_DIR, NOW).unwrap().0.size, 7);
    let third = promises.break_came(&told(3, vec![change(8, vec![])]));
    assert_eq!(third, [fid(DIR)]);
}

#[test]
fn a_reply_that_a_break_has_overtaken_is_not_kept() {
    let promises = live();
    learn(&promises, &promise(0, 5), "a", Some(&attr(20, 1)));
    promises.break_came(&told(1, vec![change(9, vec![(name("a"), None)])]));
    learn(&promises, &promise(0, 8), "a", Some(&attr(20, 1)));
    assert_eq!(size_of(&promises, "a"), Some(None));
    // The same before anything was known of the directory.
    let promises = live();
    promises.break_came(&told(1, vec![change(9, vec![(name("a"), None)])]));
    learn(&promises, &promise(0, 8), "a", Some(&attr(20, 1)));
    assert_eq!(size_of(&promises, "a"), None);
    learn(&promises, &promise(0, 9), "a", None);
    assert_eq!(size_of(&promises, "a"), Some(None));
}

#[test]
fn an_own_change_that_a_missed_break_has_overtaken_is_not_kept() {
    let promises = live();
    promises.break_came(&told(1, vec![change(9, vec![(name("a"), None)])]));
    learn(&promises, &promise(1, 9), "b", None);
    promises.changed_here(&[change(8, vec![(name("a"), Some(attr(20, 1)))])], promises.moment());
    assert_eq!(size_of(&promises, "a"), None);
}

#[test]
fn an_ended_promise_answers_nothing_also_if_its_reply_comes_late() {
    let promises = live();
    learn(&promises, &promise(0, 5), "a", Some(&attr(20, 1)));
    let last = Break { ended: vec![fid(DIR)], ..told(4, vec![change(6, vec![])]) };
    assert!(promises.break_came(&last).is_empty());
    assert_eq!(size_of(&promises, "a"), None);
    learn(&promises, &promise(3, 7), "a", Some(&attr(20, 1)));
    assert_eq!(size_of(&promises, "a"), None, "registered before the promise ended");
    learn(&promises, &promise(4, 7), "a", Some(&attr(20, 1)));
    assert_eq!(size_of(&promises, "a"), Some(Some(1)));
}

#[test]
fn a_whole_directory_knows_what_is_not_there() {
    let promises = live();
    let (a, there) = (name("a"), attr(20, 1));
    let names = [(&a, &there)].into_iter();
    let page = Page { after: None, names, sequence: at(5), is_last: true };
    promises.learn_page(&promise(0, 5), fid(DIR), page, promises.moment());
    assert_eq!(size_of(&promises, "a"), None, "who may search it is not known");
    promises.learn(&promise(0, 5), fid(DIR), Learnt::Dir(&attr(DIR, 1)), promises.moment());
    assert_eq!(size_of(&promises, "zzz"), Some(None));
    let (all, _) = promises.list(THE_DIR, &|_| true, NOW).unwrap();
    assert_eq!(promises.list(THE_DIR, &|_| false, NOW), None);
    assert_eq!(all, [(name("a"), attr(20, 1))]);
    promises.changed_here(&[change(6, vec![(name("b"), Some(attr(21, 1)))])], promises.moment());
    assert_eq!(promises.list(THE_DIR, &|_| true, NOW).unwrap().0.len(), 2);
    assert_eq!(promises.size(), (1, 2));
    // Whether a name that an overtaken change made is still there cannot be known.
    promises.changed_here(&[change(9, vec![])], promises.moment());
    promises.changed_here(&[change(8, vec![(name("c"), Some(attr(22, 1)))])], promises.moment());
    assert_eq!(size_of(&promises, "c"), None);
    assert_eq!(promises.list(THE_DIR, &|_| true, NOW), None);
}

#[test]
fn a_directory_is_whole_after_its_last_page_if_it_was_held_since_the_first() {
    let names: Vec<Name> = ["a", "b", "c", "d"].map(name).into();
    let there = attr(20, 1);
    let pages = |promises: &Promises, between: &dyn Fn()| {
        let one = names[..2].iter().map(|name| (name, &there));
        let first = Page { after: None, names: one, sequence: at(5), is_last: false };
        learn_page(promises, &promise(0, 5), first);
        between();
        let two = names[2..].iter().map(|name| (name, &there));
        let last = Page { after: Some(&names[1]), names: two, sequence: at(7), is_last: true };
        learn_page(promises, &promise(1, 7), last);
        promises.list(THE_DIR, &|_| true, NOW).map(|(all, _)| all.len())
    };
    let promises = live();
    assert_eq!(pages(&promises, &|| {}), Some(4));
    let promises = live();
    let added = || {
        promises.break_came(&told(1, vec![change(6, vec![(name("aa"), Some(attr(21, 1)))])]));
    };
    assert_eq!(pages(&promises, &added), Some(5), "a break told of the name");
    let promises = live();
    assert_eq!(pages(&promises, &|| promises.forget(fid(DIR))), None, "a break may have been lost");
    let promises = live();
    let late = || {
        promises.break_came(&told(1, vec![change(8, vec![(name("cc"), Some(attr(21, 1)))])]));
    };
    assert_eq!(pages(&promises, &late), None, "the page was older than what is known");
}

#[test]
fn a_directory_that_this_client_made_is_held_and_empty() {
    let made = |counter| DirChange { is_made: true, ..change(counter, vec![]) };
    let promises = live();
    promises.changed_here(&[made(6)], promises.moment());
    assert_eq!(size_of(&promises, "a"), Some(None));
    promises.changed_here(&[change(7, vec![(name("a"), Some(attr(20, 1)))])], promises.moment());
    assert_eq!(size_of(&promises, "a"), Some(Some(1)));
    // Somebody else was faster there than the reply.
    let promises = live();
    promises.break_came(&told(1, vec![change(7, vec![(name("a"), Some(attr(20, 1)))])]));
    promises.changed_here(&[made(6)], promises.moment());
    assert_eq!(size_of(&promises, "a"), None);
    // All was forgotten while the reply was on its way.
    let promises = live();
    let since = promises.moment();
    promises.forget_all();
    promises.changed_here(&[made(6)], since);
    assert_eq!(size_of(&promises, "a"), None);
}

#[test]
fn whether_a_caller_may_search_is_decided_by_the_newest_rights() {
    let promises = live();
    learn(&promises, &promise(0, 5), "a", Some(&attr(20, 1)));
    let asks = |uid| {
        let who = Identity { uid, gid: 9, groups: vec![] };
        let may = move |attr: &Attr| Rights::from(attr).allow(&who, EXECUTE);
        promises.look_up(THE_DIR, &name("a"), &may, NOW).is_some()
    };
    assert!(asks(0) && asks(5));
    let closed = Attr { mode: 0o700, ..attr(DIR, 1) };
    promises.break_came(&told(1, vec![DirChange { attr: Some(closed), ..change(6, vec![]) }]));
    assert!(asks(0) && !asks(5));
}

#[test]
fn the_rights_of_a_directory_may_be_known_from_the_one_above() {
    let promises = live();
    let above = Subject { fid: fid(3), place: None };
    let dir_name = name("d");
    let both = Promise { dirs: vec![fid(3), fid(DIR)], ..promise(0, 5) };
    let dir = attr(DIR, 1);
    promises.learn(&both, fid(3), Learnt::Name(&dir_name, Some(&dir)), promises.moment());
    promises.learn(&both, fid(DIR), Learnt::Name(&name("a"), None), promises.moment());
    let from_above = Subject { place: Some((above.fid, &dir_name)), ..THE_DIR };
    let may = |attr: &Attr| attr.size == 1;
    assert_eq!(promises.look_up(from_above, &name("a"), &may, NOW), Some(Known::Absent));
    assert_eq!(promises.look_up(THE_DIR, &name("a"), &may, NOW), None);
    let other = Subject { fid: fid(8), ..from_above };
    assert_eq!(promises.attr(other, NOW), None, "the name names another inode");
}

#[test]
fn what_is_forgotten_is_not_brought_back_by_a_reply_on_its_way() {
    let promises = live();
    let since = promises.moment();
    promises.forget(fid(DIR));
    let a = name("a");
    promises.learn(&promise(0, 5), fid(DIR), Learnt::Name(&a, None), since);
    assert_eq!(size_of(&promises, "a"), None);
}

/// What happens, in any order that the network allows.
#[derive(Clone, Debug)]
enum Step {
    /// Somebody changes a name: this client or another.
    Change {
        here: bool,
        name: usize,
        makes: bool,
    },
    /// This client asks for a name, or for all.
    Ask {
        name: usize,
    },
    AskAll,
    /// The oldest break arrives.
    Break,
    /// Some reply arrives.
    Reply(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        prop_oneof![
            (any::<bool>(), 0..3_usize, any::<bool>())
                .prop_map(|(here, name, makes)| Step::Change { here, name, makes }),
            (0..3_usize).prop_map(|name| Step::Ask { name }),
            Just(Step::AskAll),
            Just(Step::Break),
            Just(Step::Break),
            (0..4_usize).prop_map(Step::Reply),
            (0..4_usize).prop_map(Step::Reply),
        ];
    proptest::collection::vec(step, 1..80)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

enum Reply {
    Name(Promise, usize, Option<Attr>, Since),
    All(Promise, Vec<(Name, Attr)>, Since),
    Changed(DirChange, usize),
}

/// The owner's side, with everything that is on its way.
struct World {
    promises: Promises,
    /// For each name: what it named from which commit on.
    history: [Vec<(u64, Option<Attr>)>; 3],
    counter: u64,
    breaks_sent: u64,
    breaks: VecDeque<(Break, usize)>,
    replies: Vec<Reply>,
    /// For each name: the last commit that its committer was told of.
    returned: [u64; 3],
}

impl World {
    fn new() -> World {
        World {
            promises: live(),
            history: std::array::from_fn(|_| vec![(0, None)]),
            counter: 0,
            breaks_sent: 0,
            breaks: VecDeque::new(),
            replies: Vec::new(),
            returned: [0; 3],
        }
    }

    fn current(&self, index: usize) -> Option<Attr> {
        self.history[index].last().unwrap().1.clone()
    }

    fn promise(&self) -> Promise {
        promise(self.breaks_sent, self.counter)
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Change { here, name: index, makes } => {
                self.counter += 1;
                let value = makes.then(|| attr(20 + index as u64, self.counter));
                self.history[index].push((self.counter, value.clone()));
                let change = change(self.counter, vec![(name(NAMES[index]), value)]);
                if here {
                    self.replies.push(Reply::Changed(change, index));
                } else {
                    self.breaks_sent += 1;
                    self.breaks.push_back((told(self.breaks_sent, vec![change]), index));
                }
            }
            Step::Ask { name } => {
                let (promise, since) = (self.promise(), self.promises.moment());
                self.replies.push(Reply::Name(promise, name, self.current(name), since));
            }
            Step::AskAll => {
                let all = (0..3)
                    .filter_map(|index| self.current(index).map(|attr| (name(NAMES[index]), attr)));
                let all = all.collect();
                self.replies.push(Reply::All(self.promise(), all, self.promises.moment()));
            }
            Step::Break => {
                if let Some((told, index)) = self.breaks.pop_front() {
                    self.promises.break_came(&told);
                    self.return_to_caller(index, told.changes[0].sequence.counter);
                }
            }
            Step::Reply(which) if which < self.replies.len() => {
                let reply = self.replies.remove(which);
                self.arrive(reply);
            }
            Step::Reply(_) => {}
        }
    }

    fn arrive(&mut self, reply: Reply) {
        match reply {
            Reply::Name(promise, index, attr, since) => {
                let name = name(NAMES[index]);
                self.learn_dir(&promise, since);
                let learnt = Learnt::Name(&name, attr.as_ref());
                self.promises.learn(&promise, fid(DIR), learnt, since);
            }
            Reply::All(promise, all, since) => {
                self.learn_dir(&promise, since);
                let names = all.iter().map(|(name, attr)| (name, attr));
                let page = Page { after: None, names, sequence: promise.sequence, is_last: true };
                self.promises.learn_page(&promise, fid(DIR), page, since);
            }
            Reply::Changed(change, index) => {
                let since = self.promises.moment();
                self.promises.changed_here(std::slice::from_ref(&change), since);
                self.return_to_caller(index, change.sequence.counter);
            }
        }
    }

    fn learn_dir(&self, promise: &Promise, since: Since) {
        let dir = attr(DIR, promise.sequence.counter);
        self.promises.learn(promise, fid(DIR), Learnt::Dir(&dir), since);
    }

    fn return_to_caller(&mut self, index: usize, counter: u64) {
        self.returned[index] = self.returned[index].max(counter);
    }

    /// What is answered must be what the name was at some time since the last change of it that
    /// anybody was told is done.
    fn check(&self) {
        for (index, text) in NAMES.iter().enumerate() {
            let Some(answer) = size_of(&self.promises, text) else { continue };
            let history = &self.history[index];
            let oldest = history.iter().rposition(|(since, _)| *since <= self.returned[index]);
            let mut allowed = history[oldest.unwrap()..].iter().map(|(_, attr)| attr);
            assert!(
                allowed.any(|attr| attr.as_ref().map(|attr| attr.size) == answer),
                "{text} is {answer:?}, after {:?} of {history:?}",
                self.returned[index]
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn no_answer_is_older_than_a_change_that_somebody_was_told_is_done(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            world.check();
        }
    }
}
