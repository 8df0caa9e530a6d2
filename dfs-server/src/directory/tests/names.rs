//! Making and removing names: what they do to the directory, the inode and the versions.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::clock::Clock;
use dfs_proto::directory::{
    AttrReply, Lookup, LookupParent, MakeLink, MakeSymlink, ReadLink, RenameRule, StatFs,
};
use dfs_proto::id::{FileId, InodeNo, VolumeId};
use dfs_proto::limits::LINK_COUNT_MAX;
use dfs_proto::name::Name;
use dfs_proto::version::Epoch;

use super::cell::{Cell, RDEV, User, name, rename};
use super::check::check;

async fn cell_and_user() -> (Cell, User) {
    let cell = Cell::new().await;
    let user = cell.user(1, 1000).await;
    (cell, user)
}

async fn attr(cell: &Cell, fid: FileId) -> Attr {
    cell.user(98, 0).await.getattr(fid).await.unwrap()
}

#[tokio::test]
async fn a_directory_counts_its_entries_and_its_subdirectories() {
    let (cell, ann) = cell_and_user().await;
    let root = cell.root;
    let made = ann.mkdir(root, "d", 0o755).await.unwrap().attr;
    assert_eq!((made.kind, made.nlink, made.size), (FileKind::Directory, 2, 0));
    assert_eq!((made.uid, made.gid, made.mode), (1000, 100, 0o755));
    ann.file(made.fid, "f", 0o644).await.unwrap();
    ann.symlink(made.fid, "s", "f").await.unwrap();
    ann.mkdir(made.fid, "e", 0o700).await.unwrap();
    let dir = attr(&cell, made.fid).await;
    assert_eq!((dir.nlink, dir.size), (3, 3));
    ann.rmdir(made.fid, "e").await.unwrap();
    ann.unlink(made.fid, "f").await.unwrap();
    let dir = attr(&cell, made.fid).await;
    assert_eq!((dir.nlink, dir.size), (2, 1));
    assert_eq!(attr(&cell, root).await.nlink, 3);
    check(&cell).await;
}

#[tokio::test]
async fn every_change_of_entries_moves_times_and_version_of_the_parent() {
    let (cell, ann) = cell_and_user().await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let file = ann.file(dir, "f", 0o644).await.unwrap().attr.fid;
    let mut before = attr(&cell, dir).await;
    for step in 0..5 {
        cell.clock.advance(Duration::from_millis(10));
        let reply = match step {
            0 => ann.mkdir(dir, "sub", 0o755).await,
            1 => ann.symlink(dir, "s", "f").await,
            2 => ann.link(file, dir, "g").await,
            3 => ann.unlink(dir, "g").await,
            _ => ann.rmdir(dir, "sub").await,
        };
        let reply = reply.unwrap();
        let after = attr(&cell, dir).await;
        assert_eq!((after.mtime, after.ctime), (cell.clock.wall(), cell.clock.wall()), "{step}");
        assert_eq!((reply.before, reply.after), (before.dir_version, after.dir_version), "{step}");
        assert_ne!(reply.before, reply.after);
        before = after;
    }
}

#[tokio::test]
async fn attributes_of_a_child_move_the_version_of_every_directory_that_names_it() {
    let (cell, ann) = cell_and_user().await;
    let one = ann.mkdir(cell.root, "one", 0o755).await.unwrap().attr.fid;
    let two = ann.mkdir(cell.root, "two", 0o755).await.unwrap().attr.fid;
    let file = ann.file(one, "f", 0o644).await.unwrap().attr.fid;
    ann.link(file, two, "g").await.unwrap();
    ann.link(file, two, "h").await.unwrap();
    let before = [attr(&cell, one).await, attr(&cell, two).await];
    cell.clock.advance(Duration::from_millis(10));
    ann.chmod(file, 0o600).await.unwrap();
    let after = [attr(&cell, one).await, attr(&cell, two).await];
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before.dir_version, after.dir_version);
        assert_eq!(before.mtime, after.mtime, "its entries are the same");
    }
    let root = attr(&cell, cell.root).await.dir_version;
    ann.unlink(two, "g").await.unwrap();
    assert_ne!(attr(&cell, one).await.dir_version, after[0].dir_version, "nlink is another");
    assert_ne!(attr(&cell, cell.root).await.dir_version, root, "size of `two` is another");
}

#[tokio::test]
async fn a_file_lives_until_its_last_name_goes() {
    let (cell, ann) = cell_and_user().await;
    let root = cell.root;
    let file = ann.file(root, "f", 0o644).await.unwrap().attr.fid;
    let linked = ann.link(file, root, "g").await.unwrap();
    assert_eq!((linked.attr.fid, linked.attr.nlink), (file, 2));
    cell.clock.advance(Duration::from_millis(10));
    let left = ann.unlink(root, "f").await.unwrap().attr;
    assert_eq!((left.nlink, left.ctime), (1, cell.clock.wall()));
    assert_eq!(ann.lookup(root, "f").await, Err(FsError::NotFound));
    assert_eq!(ann.lookup(root, "g").await.unwrap().fid, file);
    assert_eq!(ann.unlink(root, "g").await.unwrap().attr.nlink, 0);
    assert_eq!(ann.getattr(file).await, Err(FsError::Stale));
    assert_eq!(ann.link(file, root, "h").await, Err(FsError::Stale));
    check(&cell).await;
}

#[tokio::test]
async fn names_that_exist_or_do_not_are_refused() {
    let (cell, ann) = cell_and_user().await;
    let root = cell.root;
    let dir = ann.mkdir(root, "d", 0o755).await.unwrap().attr.fid;
    let file = ann.file(root, "f", 0o644).await.unwrap().attr.fid;
    for taken in ["d", "f"] {
        assert_eq!(ann.mkdir(root, taken, 0o755).await, Err(FsError::Exists));
        assert_eq!(ann.file(root, taken, 0o755).await, Err(FsError::Exists));
        assert_eq!(ann.symlink(root, taken, "x").await, Err(FsError::Exists));
        assert_eq!(ann.link(file, root, taken).await, Err(FsError::Exists));
        assert_eq!(ann.link(dir, root, taken).await, Err(FsError::Exists));
    }
    assert_eq!(ann.unlink(root, "none").await, Err(FsError::NotFound));
    assert_eq!(ann.rmdir(root, "none").await, Err(FsError::NotFound));
    assert_eq!(ann.unlink(root, "d").await, Err(FsError::IsDirectory));
    assert_eq!(ann.rmdir(root, "f").await, Err(FsError::NotDirectory));
    assert_eq!(ann.mkdir(file, "x", 0o755).await, Err(FsError::NotDirectory));
    assert_eq!(ann.lookup(file, "x").await, Err(FsError::NotDirectory));
    assert_eq!(ann.link(dir, root, "hard").await, Err(FsError::NotPermitted));
    ann.file(dir, "x", 0o644).await.unwrap();
    assert_eq!(ann.rmdir(root, "d").await, Err(FsError::NotEmpty));
    check(&cell).await;
}

#[tokio::test]
async fn nothing_is_made_in_a_directory_that_was_removed() {
    let (cell, ann) = cell_and_user().await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    assert_eq!(ann.rmdir(cell.root, "d").await.unwrap().attr.nlink, 0);
    assert_eq!(ann.mkdir(dir, "x", 0o755).await, Err(FsError::Stale));
    assert_eq!(ann.link(file, dir, "x").await, Err(FsError::Stale));
    assert_eq!(ann.lookup(dir, "x").await, Err(FsError::Stale));
    assert_eq!(ann.getattr(dir).await, Err(FsError::Stale));
    check(&cell).await;
}

#[tokio::test]
async fn a_file_id_of_another_generation_is_stale_everywhere() {
    let (cell, ann) = cell_and_user().await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let other = FileId { generation: Epoch(dir.generation.0 + 1), ..dir };
    let unknown = FileId { inode: InodeNo(1 << 40), ..dir };
    for fid in [other, unknown] {
        assert_eq!(ann.getattr(fid).await, Err(FsError::Stale));
        assert_eq!(ann.chmod(fid, 0).await, Err(FsError::Stale));
        assert_eq!(ann.mkdir(fid, "x", 0o755).await, Err(FsError::Stale));
        assert_eq!(ann.lookup(fid, "x").await, Err(FsError::Stale));
    }
    let elsewhere = FileId { volume: VolumeId(9), ..dir };
    assert!(matches!(ann.getattr(elsewhere).await, Err(FsError::UnknownVolume { .. })));
}

#[tokio::test]
async fn links_and_renames_between_volumes_are_refused() {
    let (cell, ann) = cell_and_user().await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let elsewhere = FileId { volume: VolumeId(9), ..dir };
    let request = MakeLink { fid: elsewhere, parent: dir, name: name("x") };
    assert_eq!(cell.directory.link(ann.context(), request).await, Err(FsError::CrossVolume));
    let request = rename((cell.root, "d"), (elsewhere, "d"), RenameRule::Replace);
    assert_eq!(cell.directory.rename(ann.context(), request).await, Err(FsError::CrossVolume));
}

#[tokio::test]
async fn the_directory_above_is_found_and_the_root_is_above_itself() {
    let (cell, ann) = cell_and_user().await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let sub = ann.mkdir(dir, "sub", 0o755).await.unwrap().attr.fid;
    let file = ann.file(dir, "f", 0o644).await.unwrap().attr.fid;
    let above = async |fid| {
        let reply = cell.directory.lookup_parent(LookupParent { fid }).await;
        reply.map(|AttrReply { attr, .. }| attr.fid)
    };
    assert_eq!(above(sub).await, Ok(dir));
    assert_eq!(above(dir).await, Ok(cell.root));
    assert_eq!(above(cell.root).await, Ok(cell.root));
    assert_eq!(above(file).await, Err(FsError::NotDirectory));
}

#[tokio::test]
async fn a_symbolic_link_keeps_its_target() {
    let (cell, ann) = cell_and_user().await;
    let root = cell.root;
    let link = ann.symlink(root, "s", "../else/where").await.unwrap().attr;
    assert_eq!((link.kind, link.mode, link.size), (FileKind::Symlink, 0o777, 13));
    let target = cell.directory.readlink(ReadLink { fid: link.fid }).await;
    assert_eq!(target.unwrap(), b"../else/where");
    let no_link = cell.directory.readlink(ReadLink { fid: root }).await;
    assert!(matches!(no_link, Err(FsError::InvalidArgument { .. })));
    assert_eq!(ann.symlink(root, "t", "").await, Err(FsError::NotFound));
    for target in [b"a\0b".to_vec(), vec![b'x'; 4096]] {
        let request = MakeSymlink { parent: root, name: name("t"), target };
        let refused = cell.directory.symlink(ann.context(), request).await;
        assert!(matches!(refused, Err(FsError::InvalidArgument { .. })));
    }
    check(&cell).await;
}

#[tokio::test]
async fn nodes_without_content_are_made_and_devices_by_root_only() {
    let (cell, ann) = cell_and_user().await;
    for (at, kind) in [("p", FileKind::Fifo), ("s", FileKind::Socket)] {
        let made = ann.mknod(cell.root, at, kind, 0o640).await.unwrap().attr;
        assert_eq!((made.kind, made.nlink, made.mode, made.rdev), (kind, 1, 0o640, 0));
    }
    let root = cell.user(2, 0).await;
    for kind in [FileKind::CharDevice, FileKind::BlockDevice] {
        let refused = ann.mknod(cell.root, "dev", kind, 0o600).await;
        assert_eq!(refused, Err(FsError::NotPermitted));
        let made = root.mknod(cell.root, &format!("{kind:?}"), kind, 0o600).await.unwrap().attr;
        assert_eq!((made.kind, made.rdev), (kind, RDEV));
    }
    let refused = ann.mknod(cell.root, "x", FileKind::Directory, 0o600).await;
    assert!(matches!(refused, Err(FsError::InvalidArgument { .. })));
    check(&cell).await;
}

#[tokio::test]
async fn names_are_bytes_up_to_255_of_them() {
    let (cell, ann) = cell_and_user().await;
    let long = "x".repeat(255);
    let file = ann.file(cell.root, &long, 0o644).await.unwrap().attr.fid;
    assert_eq!(ann.lookup(cell.root, &long).await.unwrap().fid, file);
    assert_eq!(ann.lookup(cell.root, &"x".repeat(254)).await, Err(FsError::NotFound));
    let odd = Name::parse(b"\xff\xfe \n\x01").unwrap();
    let request = MakeLink { fid: file, parent: cell.root, name: odd.clone() };
    cell.directory.link(ann.context(), request).await.unwrap();
    let request = Lookup { parent: cell.root, name: odd };
    assert_eq!(cell.directory.lookup(ann.context(), request).await.unwrap().attr.fid, file);
    check(&cell).await;
}

#[tokio::test]
async fn an_inode_has_only_so_many_names() {
    let (cell, ann) = cell_and_user().await;
    let file = ann.file(cell.root, "0", 0o644).await.unwrap().attr.fid;
    for number in 1..LINK_COUNT_MAX {
        ann.link(file, cell.root, &number.to_string()).await.unwrap();
    }
    assert_eq!(ann.link(file, cell.root, "more").await, Err(FsError::TooManyLinks));
    ann.unlink(cell.root, "0").await.unwrap();
    ann.link(file, cell.root, "more").await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn an_inode_number_is_not_used_again_after_a_restart() {
    let (cell, ann) = cell_and_user().await;
    let first = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    ann.unlink(cell.root, "f").await.unwrap();
    let cell = cell.restart().await;
    let second = ann.at(&cell).await.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    assert!(second.inode > first.inode && second.generation > first.generation);
    check(&cell).await;
}

#[tokio::test]
async fn space_counts_every_copy_and_inodes_in_use() {
    let (cell, ann) = cell_and_user().await;
    ann.file(cell.root, "f", 0o644).await.unwrap();
    let space = cell.directory.statfs(StatFs { fid: cell.root }).await.unwrap();
    assert_eq!((space.total_bytes, space.free_bytes), (100 << 30, 50 << 30));
    assert_eq!(space.total_inodes - space.free_inodes, 2);
}
