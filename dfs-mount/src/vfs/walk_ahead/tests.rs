use dfs_proto::attr::Timestamp;
use dfs_proto::id::{InodeNo, VolumeId};
use dfs_proto::version::{DataVersion, DirVersion, Epoch};

use super::*;

const NOW: Duration = Duration::from_secs(1);
const ROOT: u64 = 1;

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn caller(pid: u32) -> Caller {
    Caller { identity: Identity { uid: 1000, gid: 100, groups: Vec::new() }, pid }
}

fn attr(inode: u64, kind: FileKind) -> Attr {
    Attr {
        fid: fid(inode),
        kind,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        size: 0,
        stored_bytes: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        rdev: 0,
        xattr_bytes: 0,
        data_version: DataVersion::default(),
        dir_version: DirVersion::default(),
    }
}

fn reply(found: &[u64]) -> WalkReply {
    let found = found.iter().map(|inode| attr(*inode, FileKind::Directory)).collect();
    let sequence = Sequence::new(Epoch(1), 7);
    WalkReply { attr: attr(ROOT, FileKind::Directory), found, sequence }
}

/// Thread 7, whose last walk was from the root to `a` (inode 2) and `b` in it (inode 3).
fn walked() -> WalksAhead {
    let walks = WalksAhead::default();
    assert_eq!(walks.question(7, fid(ROOT), NOW), None);
    for (parent, text, found) in [(ROOT, "a", 2), (2, "b", 3)] {
        let answer = walks.answer(&caller(7), fid(parent), &name(text), NOW);
        assert_eq!(answer, None, "nothing was asked ahead");
        walks.looked_up(7, (fid(parent), &name(text)), Some(fid(found)), NOW);
        assert_eq!(walks.question(7, fid(found), NOW), None);
    }
    walks
}

/// The same thread, on the same way once more, when the server has answered.
fn answered() -> WalksAhead {
    let walks = walked();
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    walks.answered(&caller(7), &ahead, &reply(&[2, 3]), NOW);
    walks
}

/// A lookup as `vfs` makes it: whether it was answered ahead.
fn look_up(walks: &WalksAhead, (parent, text, found): (u64, &str, u64), now: Duration) -> bool {
    let answer = walks.answer(&caller(7), fid(parent), &name(text), now);
    if let Some(answer) = &answer {
        assert_eq!((answer.attr.fid, answer.answered_at), (fid(found), NOW));
    }
    walks.looked_up(7, (fid(parent), &name(text)), Some(fid(found)), now);
    answer.is_some()
}

const A: (u64, &str, u64) = (ROOT, "a", 2);
const B: (u64, &str, u64) = (2, "b", 3);

#[test]
fn a_thread_that_goes_its_way_again_is_answered_ahead_each_time() {
    let walks = walked();
    for _ in 0..3 {
        let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
        assert_eq!(ahead.names, [name("a"), name("b")]);
        walks.answered(&caller(7), &ahead, &reply(&[2, 3]), NOW);
        assert!(look_up(&walks, A, NOW));
        assert_eq!(walks.question(7, fid(2), NOW), None);
        assert!(look_up(&walks, B, NOW));
        assert_eq!(walks.question(7, fid(3), NOW), None);
        let file = (fid(3), &name("f"));
        assert_eq!(walks.answer(&caller(7), file.0, file.1, NOW), None);
        walks.looked_up(7, file, None, NOW);
    }
}

#[test]
fn what_a_call_makes_or_removes_at_the_end_of_its_way_leaves_the_way_remembered() {
    let walks = walked();
    walks.looked_up(7, (fid(3), &name("f")), None, NOW);
    assert_eq!(walks.question(7, fid(3), NOW), None, "whether it may be made");
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    assert_eq!(ahead.names, [name("a"), name("b")]);
}

#[test]
fn only_the_thread_itself_is_answered_and_only_as_whom_it_asked() {
    let (next, who) = ((fid(ROOT), name("a")), caller(7));
    let answer = |who: &Caller| answered().answer(who, next.0, &next.1, NOW);
    assert!(answer(&who).is_some());
    assert_eq!(answer(&caller(8)), None);
    let other = Caller { identity: Identity::ROOT, ..who };
    assert_eq!(answer(&other), None);
    let walks = WalksAhead::default();
    assert_eq!(walks.question(0, fid(ROOT), NOW), None);
    walks.looked_up(0, (fid(ROOT), &name("a")), Some(fid(2)), NOW);
    assert_eq!(walks.question(0, fid(ROOT), NOW), None, "the kernel itself is many");
}

#[test]
fn answers_are_given_once_in_order_and_soon() {
    let walks = answered();
    assert!(look_up(&walks, A, NOW + DIRECTORY_LOOKUP_ANSWERS - Duration::from_nanos(1)));
    assert!(!look_up(&walks, A, NOW), "once");
    assert!(!look_up(&answered(), A, NOW + DIRECTORY_LOOKUP_ANSWERS), "too late");
    let walks = answered();
    assert!(!look_up(&walks, B, NOW), "another directory");
    assert!(!look_up(&walks, A, NOW), "it went another way");
    let walks = answered();
    assert!(!look_up(&walks, (ROOT, "other", 9), NOW));
    assert!(!look_up(&walks, A, NOW));
}

#[test]
fn between_two_lookups_of_one_call_the_kernel_asks_exactly_once() {
    let walks = answered();
    assert!(look_up(&walks, A, NOW));
    assert!(!look_up(&walks, B, NOW), "no call walks through what it has not asked for");
    let walks = answered();
    assert!(look_up(&walks, A, NOW));
    assert_eq!(walks.question(7, fid(2), NOW), None);
    assert_eq!(walks.question(7, fid(2), NOW), None);
    assert!(!look_up(&walks, B, NOW), "the second question was another call's");
}

#[test]
fn a_question_for_the_beginning_begins_anew() {
    let walks = answered();
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    assert!(!look_up(&walks, A, NOW), "what is to be asked has no answer yet");
    walks.answered(&caller(7), &ahead, &reply(&[2, 3]), NOW);
    assert!(!look_up(&walks, A, NOW), "the lookup did not wait for it");
}

#[test]
fn the_answer_to_an_interrupted_call_is_no_answer_to_the_next() {
    let walks = walked();
    let interrupted = walks.question(7, fid(ROOT), NOW).unwrap();
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    walks.answered(&caller(7), &interrupted, &reply(&[8, 9]), NOW);
    assert!(walks.memory().thread(7).unwrap().answers.is_none());
    walks.answered(&caller(7), &ahead, &reply(&[2, 3]), NOW);
    assert!(look_up(&walks, A, NOW));
}

#[test]
fn what_is_changed_from_here_ends_answers_also_those_on_their_way() {
    for changed in [ROOT, 2, 3] {
        let walks = answered();
        walks.end_answers_about(fid(changed));
        assert!(!look_up(&walks, A, NOW), "{changed}");
        let walks = walked();
        let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
        walks.end_answers_about(fid(changed));
        walks.answered(&caller(7), &ahead, &reply(&[2, 3]), NOW);
        assert!(!look_up(&walks, A, NOW), "{changed}, on its way");
    }
    let walks = answered();
    walks.end_answers_about(fid(9));
    assert!(look_up(&walks, A, NOW), "something else");
}

#[test]
fn what_was_found_in_another_place_leads_on_from_there() {
    let walks = walked();
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    walks.answered(&caller(7), &ahead, &reply(&[12, 13]), NOW);
    assert!(look_up(&walks, (ROOT, "a", 12), NOW));
    assert_eq!(walks.question(7, fid(12), NOW), None);
    assert!(look_up(&walks, (12, "b", 13), NOW));
}

#[test]
fn what_is_no_directory_any_more_is_neither_answered_nor_asked_for_again() {
    let walks = walked();
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    let found = vec![attr(9, FileKind::Symlink)];
    walks.answered(&caller(7), &ahead, &WalkReply { found, ..reply(&[]) }, NOW);
    assert_eq!(walks.answer(&caller(7), fid(ROOT), &name("a"), NOW), None);
    walks.looked_up(7, (fid(ROOT), &name("a")), None, NOW);
    assert_eq!(walks.question(7, fid(ROOT), NOW), None);
    let walks = walked();
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    walks.answered(&caller(7), &ahead, &reply(&[2]), NOW);
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    assert_eq!(ahead.names, [name("a")], "`b` was not there");
}

#[test]
fn another_beginning_or_a_long_time_ago_is_no_way_to_go_again() {
    let walks = walked();
    assert_eq!(walks.question(7, fid(ROOT), NOW + REMEMBERED), None);
    let walks = walked();
    assert_eq!(walks.question(7, fid(5), NOW), None);
    assert_eq!(walks.question(7, fid(ROOT), NOW), None, "the last walk began elsewhere");
}

#[test]
fn the_memory_is_bounded_in_threads_and_names() {
    let walks = walked();
    for pid in 8..8 + THREADS_MAX as u32 {
        walks.question(pid, fid(ROOT), NOW);
    }
    assert_eq!(walks.memory().threads.len(), THREADS_MAX);
    assert_eq!(walks.question(7, fid(ROOT), NOW), None, "it was the oldest");
    for depth in 0..2 * WALK_NAMES_MAX as u64 {
        walks.looked_up(7, (fid(ROOT + depth), &name("d")), Some(fid(ROOT + depth + 1)), NOW);
    }
    let ahead = walks.question(7, fid(ROOT), NOW).unwrap();
    assert_eq!(ahead.names.len(), WALK_NAMES_MAX);
}
