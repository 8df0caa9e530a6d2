use std::sync::Arc;

use dfs_proto::attr::FileKind;
use dfs_proto::id::{InodeNo, VolumeId};
use dfs_proto::version::{DirVersion, Epoch};

use super::*;

/// Keeps a node open.
pub(crate) struct OpenForTest(Arc<Node>);

impl Node {
    pub(crate) fn open_for_test(self: &Arc<Node>) -> OpenForTest {
        self.state().mode.open(DataVersion::default(), false, true);
        OpenForTest(self.clone())
    }
}

impl Drop for OpenForTest {
    fn drop(&mut self) {
        self.0.state().remove_handle();
    }
}

fn sequence(counter: u64) -> Sequence {
    Sequence::new(Epoch(1), counter)
}

fn attr(size: u64, version: u64) -> Attr {
    let time = Timestamp::new(1, 0);
    Attr {
        fid: FileId::new(VolumeId(1), InodeNo(5), Epoch(1)),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size,
        stored_bytes: size,
        atime: time,
        mtime: time,
        ctime: time,
        rdev: 0,
        data_version: DataVersion::new(Epoch(1), version),
        dir_version: DirVersion::default(),
        xattr_bytes: 0,
    }
}

#[test]
fn an_answer_that_was_overtaken_does_not_replace_what_is_known() {
    let mut state = State::default();
    assert_eq!(state.learn(attr(1, 1), sequence(10)).size, 1);
    assert_eq!(state.learn(attr(2, 2), sequence(9)).size, 1);
    assert_eq!(state.attr().unwrap().size, 1);
    assert_eq!(state.learn(attr(3, 3), sequence(10)).size, 3);
}

#[test]
fn a_node_that_is_not_open_shows_no_other_version_than_any() {
    let mut state = State::default();
    state.learn(attr(1, 1), sequence(1));
    assert!(!state.shows_other_than(&attr(2, 2), sequence(2)));
}

#[test]
fn a_lookup_answers_the_next_question_of_its_own_thread_and_soon() {
    let now = Duration::from_secs(1);
    let mut state = State::default();
    state.learn(attr(1, 1), sequence(1));
    assert!(state.attr_of_lookup(7, now).is_none());
    state.looked_up(7, now);
    assert_eq!(state.attr_of_lookup(7, now).unwrap().size, 1);
    assert!(state.attr_of_lookup(7, now).is_none(), "once");
    state.looked_up(7, now);
    assert!(state.attr_of_lookup(8, now).is_none(), "another thread");
    state.looked_up(7, now);
    assert!(state.attr_of_lookup(7, now + LOOKUP_ANSWERS).is_none(), "too late");
    state.looked_up(0, now);
    assert!(state.attr_of_lookup(0, now).is_none(), "the kernel itself is many");
}

#[test]
fn a_lookup_of_a_directory_answers_the_questions_of_one_walk_until_it_is_changed() {
    let now = Duration::from_secs(1);
    let mut state = State::default();
    state.learn(Attr { kind: FileKind::Directory, ..attr(1, 1) }, sequence(1));
    state.looked_up(7, now);
    assert!(state.attr_of_lookup(7, now).is_some());
    assert!(state.attr_of_lookup(7, now).is_some(), "to walk through, and to make a name there");
    state.looked_up(7, now);
    assert!(state.attr_of_lookup(7, now + DIRECTORY_LOOKUP_ANSWERS).is_none(), "too late");
    state.looked_up(7, now);
    state.end_lookup();
    assert!(state.attr_of_lookup(7, now).is_none(), "something was made in it");
}
