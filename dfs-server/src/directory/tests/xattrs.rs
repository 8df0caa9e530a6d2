//! Extended attributes: who may keep what beside a file, how much of it, and when it goes.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::FileKind;
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{RenameRule, XattrRule};
use dfs_proto::id::FileId;
use dfs_proto::limits::{XATTR_INODE_BYTES_MAX, XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX};

use super::cell::{Cell, User};
use super::check::check;
use crate::directory::rows;

const ANY: XattrRule = XattrRule::Any;

async fn cell_and_user() -> (Cell, User) {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    (cell, ann)
}

async fn root_of(cell: &Cell) -> User {
    cell.user_as(9, Identity::ROOT).await
}

async fn used_bytes(cell: &Cell) -> u64 {
    let id = cell.volume.id;
    cell.volume.store.read(move |txn| rows::volume(txn, id)).await.unwrap().used_bytes
}

#[tokio::test]
async fn what_is_set_is_read_listed_replaced_and_removed() {
    let (cell, ann) = cell_and_user().await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    assert_eq!(ann.xattr(file, "user.a").await, Err(FsError::NoAttribute));
    assert_eq!(ann.xattrs(file).await.unwrap(), [""; 0]);
    let binary: Vec<u8> = (0..=255).collect();
    ann.set_xattr(file, "user.b", &binary, ANY).await.unwrap();
    ann.set_xattr(file, "user.a", b"", ANY).await.unwrap();
    assert_eq!(ann.xattr(file, "user.b").await.unwrap(), binary);
    assert_eq!(ann.xattr(file, "user.a").await.unwrap(), b"", "an empty value is a value");
    assert_eq!(ann.xattrs(file).await.unwrap(), ["user.a", "user.b"]);
    ann.set_xattr(file, "user.b", b"other", ANY).await.unwrap();
    assert_eq!(ann.xattr(file, "user.b").await.unwrap(), b"other");
    check(&cell).await;
    ann.remove_xattr(file, "user.b").await.unwrap();
    assert_eq!(ann.remove_xattr(file, "user.b").await, Err(FsError::NoAttribute));
    let bare = ann.remove_xattr(file, "user.a").await.unwrap();
    assert_eq!((bare.xattr_bytes, ann.xattrs(file).await.unwrap().len()), (0, 0));
    check(&cell).await;
}

#[tokio::test]
async fn the_rule_says_whether_it_must_be_there() {
    let (cell, ann) = cell_and_user().await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    let set = async |value: &[u8], rule| ann.set_xattr(file, "user.a", value, rule).await.map(drop);
    assert_eq!(set(b"1", XattrRule::Replace).await, Err(FsError::NoAttribute));
    set(b"2", XattrRule::Create).await.unwrap();
    assert_eq!(set(b"3", XattrRule::Create).await, Err(FsError::Exists));
    assert_eq!(ann.xattr(file, "user.a").await.unwrap(), b"2");
    set(b"4", XattrRule::Replace).await.unwrap();
    assert_eq!(ann.xattr(file, "user.a").await.unwrap(), b"4");
    check(&cell).await;
}

#[tokio::test]
async fn a_change_moves_ctime_and_the_version_of_every_directory_that_names_the_inode() {
    let (cell, ann) = cell_and_user().await;
    let one = ann.mkdir(cell.root, "one", 0o755).await.unwrap().attr.fid;
    let two = ann.mkdir(cell.root, "two", 0o755).await.unwrap().attr.fid;
    let file = ann.file(one, "f", 0o644).await.unwrap().attr.fid;
    let before = ann.link(file, two, "g").await.unwrap().attr;
    let versions = async || {
        let dirs = [ann.getattr(one).await.unwrap(), ann.getattr(two).await.unwrap()];
        dirs.map(|dir| dir.dir_version)
    };
    for step in 0..2 {
        let old = versions().await;
        cell.clock.advance(Duration::from_millis(10));
        let after = match step {
            0 => ann.set_xattr(file, "user.a", b"1", ANY).await.unwrap(),
            _ => ann.remove_xattr(file, "user.a").await.unwrap(),
        };
        assert_eq!(after, ann.getattr(file).await.unwrap());
        assert_eq!((after.ctime, after.mtime), (cell.clock.wall(), before.mtime));
        assert_eq!(after.data_version, before.data_version, "the content is the same");
        let new = versions().await;
        assert!(old.iter().zip(&new).all(|(old, new)| old != new), "{old:?} {new:?}");
    }
}

#[tokio::test]
async fn they_belong_to_the_inode_and_go_with_its_last_name() {
    let (cell, ann) = cell_and_user().await;
    let bare = used_bytes(&cell).await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    ann.set_xattr(file, "user.a", b"1234", ANY).await.unwrap();
    ann.set_xattr(dir, "user.d", b"56", ANY).await.unwrap();
    assert_eq!(used_bytes(&cell).await, bare + 10 + 8, "names and values");
    ann.link(file, cell.root, "g").await.unwrap();
    ann.rename((cell.root, "f"), (dir, "h"), RenameRule::Replace).await.unwrap();
    ann.unlink(cell.root, "g").await.unwrap();
    assert_eq!(ann.xattr(file, "user.a").await.unwrap(), b"1234");
    check(&cell).await;
    let other = ann.file(cell.root, "other", 0o644).await.unwrap().attr.fid;
    ann.rename((cell.root, "other"), (dir, "h"), RenameRule::Replace).await.unwrap();
    assert_eq!(ann.xattr(file, "user.a").await, Err(FsError::Stale));
    assert_eq!(ann.set_xattr(file, "user.a", b"1", ANY).await.map(drop), Err(FsError::Stale));
    assert_eq!(ann.xattrs(other).await.unwrap(), [""; 0]);
    ann.unlink(dir, "h").await.unwrap();
    ann.rmdir(cell.root, "d").await.unwrap();
    assert_eq!(used_bytes(&cell).await, bare);
    check(&cell).await;
}

#[tokio::test]
async fn permission_bits_judge_what_is_for_programs() {
    let (cell, ann) = cell_and_user().await;
    let eve = cell.user_as(2, Identity { uid: 2000, gid: 200, groups: Vec::new() }).await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    ann.set_xattr(file, "user.a", b"1", ANY).await.unwrap();
    assert_eq!(eve.xattr(file, "user.a").await.unwrap(), b"1");
    let denied = Err(FsError::AccessDenied);
    assert_eq!(eve.set_xattr(file, "user.a", b"2", ANY).await.map(drop), denied);
    assert_eq!(eve.remove_xattr(file, "user.a").await.map(drop), denied);
    ann.chmod(file, 0o600).await.unwrap();
    assert_eq!(eve.xattr(file, "user.a").await.map(drop), denied);
    assert_eq!(eve.xattrs(file).await.unwrap(), ["user.a"], "names are shown as by stat");
    ann.chmod(file, 0o444).await.unwrap();
    assert_eq!(ann.set_xattr(file, "user.a", b"2", ANY).await.map(drop), denied);
    root_of(&cell).await.set_xattr(file, "user.a", b"2", ANY).await.unwrap();
}

#[tokio::test]
async fn in_a_sticky_directory_only_its_owner_may() {
    let (cell, ann) = cell_and_user().await;
    let eve = cell.user(2, 2000).await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    ann.chmod(dir, 0o1777).await.unwrap();
    ann.set_xattr(dir, "user.a", b"1", ANY).await.unwrap();
    let not_hers = Err(FsError::NotPermitted);
    assert_eq!(eve.set_xattr(dir, "user.a", b"2", ANY).await.map(drop), not_hers);
    assert_eq!(eve.remove_xattr(dir, "user.a").await.map(drop), not_hers);
    assert_eq!(eve.xattr(dir, "user.a").await.unwrap(), b"1");
    ann.chmod(dir, 0o777).await.unwrap();
    eve.set_xattr(dir, "user.a", b"2", ANY).await.unwrap();
}

#[tokio::test]
async fn only_files_and_directories_have_what_is_for_programs() {
    let (cell, ann) = cell_and_user().await;
    let link = ann.symlink(cell.root, "s", "t").await.unwrap().attr.fid;
    let fifo = ann.mknod(cell.root, "p", FileKind::Fifo, 0o666).await.unwrap().attr.fid;
    let root = root_of(&cell).await;
    for fid in [link, fifo] {
        for user in [&ann, &root] {
            let set = user.set_xattr(fid, "user.a", b"1", ANY).await;
            assert_eq!(set.map(drop), Err(FsError::NotPermitted));
            assert_eq!(user.xattr(fid, "user.a").await, Err(FsError::NoAttribute));
        }
        root.set_xattr(fid, "trusted.a", b"1", ANY).await.unwrap();
        assert_eq!(root.xattr(fid, "trusted.a").await.unwrap(), b"1");
    }
    check(&cell).await;
}

#[tokio::test]
async fn what_is_trusted_is_seen_by_root_only() {
    let (cell, ann) = cell_and_user().await;
    let root = root_of(&cell).await;
    let file = ann.file(cell.root, "f", 0o666).await.unwrap().attr.fid;
    assert_eq!(
        ann.set_xattr(file, "trusted.a", b"1", ANY).await.map(drop),
        Err(FsError::NotPermitted)
    );
    root.set_xattr(file, "trusted.a", b"1", ANY).await.unwrap();
    ann.set_xattr(file, "user.a", b"2", ANY).await.unwrap();
    assert_eq!(root.xattrs(file).await.unwrap(), ["trusted.a", "user.a"]);
    assert_eq!(ann.xattrs(file).await.unwrap(), ["user.a"]);
    assert_eq!(ann.xattr(file, "trusted.a").await, Err(FsError::NoAttribute));
    assert_eq!(ann.remove_xattr(file, "trusted.a").await.map(drop), Err(FsError::NotPermitted));
    root.remove_xattr(file, "trusted.a").await.unwrap();
}

#[tokio::test]
async fn names_that_dfs_keeps_for_itself_are_refused_by_name_and_reason() {
    let (cell, ann) = cell_and_user().await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    for refused in [
        ann.set_xattr(file, "user.dfs.state", b"1", ANY).await.unwrap_err(),
        ann.remove_xattr(file, "user.dfs.state").await.unwrap_err(),
        root_of(&cell).await.set_xattr(file, "user.dfs.state", b"1", ANY).await.unwrap_err(),
    ] {
        assert!(matches!(refused, FsError::Unsupported { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("user.dfs.state") && text.contains("user.dfs."), "{text}");
    }
    assert_eq!(ann.xattr(file, "user.dfs.state").await, Err(FsError::NoAttribute));
    ann.set_xattr(file, "user.dfs", b"1", ANY).await.unwrap();
}

/// Sets `user.0`, `user.1`... until one is refused.
async fn fill(user: &User, fid: FileId, name_length: usize, value: &[u8]) -> (usize, FsError) {
    for count in 0.. {
        let name = format!("user.{count:0>width$}", width = name_length - 5);
        if let Err(error) = user.set_xattr(fid, &name, value, ANY).await {
            return (count, error);
        }
    }
    unreachable!("some attribute is one too many");
}

#[tokio::test]
async fn values_and_names_of_one_inode_are_bounded() {
    let (cell, ann) = cell_and_user().await;
    let large = ann.file(cell.root, "large", 0o644).await.unwrap().attr.fid;
    let value = vec![7; XATTR_VALUE_BYTES_MAX];
    let (count, refused) = fill(&ann, large, 10, &value).await;
    assert_eq!(count, XATTR_INODE_BYTES_MAX / (XATTR_VALUE_BYTES_MAX + 10));
    assert!(matches!(refused, FsError::NoSpace { .. }), "{refused}");
    assert_eq!(ann.xattr(large, "user.00000").await.unwrap(), value);
    assert_eq!(ann.xattrs(large).await.unwrap().len(), count, "and nothing is changed");
    check(&cell).await;

    let many = ann.file(cell.root, "many", 0o644).await.unwrap().attr.fid;
    let (count, refused) = fill(&ann, many, 255, b"").await;
    assert_eq!(count, XATTR_LIST_BYTES_MAX / 256);
    assert!(matches!(refused, FsError::NoSpace { .. }), "{refused}");
    let listed: usize = ann.xattrs(many).await.unwrap().iter().map(|name| name.len() + 1).sum();
    assert!(listed <= XATTR_LIST_BYTES_MAX);
    check(&cell).await;
}

#[tokio::test]
async fn they_survive_a_restart() {
    let (cell, ann) = cell_and_user().await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    ann.set_xattr(file, "user.a", b"1", ANY).await.unwrap();
    let removed = ann.file(cell.root, "g", 0o644).await.unwrap().attr.fid;
    ann.set_xattr(removed, "user.a", b"1", ANY).await.unwrap();
    ann.unlink(cell.root, "g").await.unwrap();
    let cell = cell.restart().await;
    let ann = ann.at(&cell).await;
    assert_eq!(ann.xattr(file, "user.a").await.unwrap(), b"1");
    ann.set_xattr(file, "user.b", b"2", ANY).await.unwrap();
    assert_eq!(ann.xattrs(file).await.unwrap(), ["user.a", "user.b"]);
    check(&cell).await;
    ann.unlink(cell.root, "f").await.unwrap();
    check(&cell.restart().await).await;
}

#[tokio::test]
async fn a_commit_of_content_leaves_them_as_they_are() {
    let (cell, ann) = cell_and_user().await;
    let made = ann.create(cell.root, "f", true).await.unwrap().open;
    let fid = made.attr.fid;
    ann.set_xattr(fid, "user.a", b"1", ANY).await.unwrap();
    let capability = made.write.unwrap().capability;
    let stored = ann.store(&capability, &[b"content"]).await.unwrap();
    assert_eq!(stored.attr.xattr_bytes, 7);
    assert_eq!(ann.xattr(fid, "user.a").await.unwrap(), b"1");
    check(&cell).await;
    ann.unlink(cell.root, "f").await.unwrap();
    check(&cell).await;
}
