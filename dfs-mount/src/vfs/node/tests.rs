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
