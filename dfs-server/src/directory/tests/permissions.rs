//! Who may do what to names and attributes.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::{SetAttr, SetTime, Timestamp};
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{OpenAccess, ReadDir, RenameRule};

use super::cell::{Cell, NOW};
use super::check::check;

#[tokio::test]
async fn entries_change_only_with_write_and_search_permission() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let dir = ann.mkdir(cell.root, "d", 0o777).await.unwrap().attr.fid;
    let file = ann.file(dir, "f", 0o666).await.unwrap().attr.fid;
    ann.mkdir(dir, "sub", 0o777).await.unwrap();
    for mode in [0o775, 0o772, 0o771, 0o770] {
        let mode = mode & !0o070 | (mode & 7) << 3;
        ann.chmod(dir, mode).await.unwrap();
        let denied = FsError::AccessDenied;
        assert_eq!(bob.mkdir(dir, "x", 0o755).await, Err(denied.clone()), "{mode:o}");
        assert_eq!(bob.file(dir, "x", 0o755).await, Err(denied.clone()), "{mode:o}");
        assert_eq!(bob.symlink(dir, "x", "y").await, Err(denied.clone()), "{mode:o}");
        assert_eq!(bob.link(file, dir, "x").await, Err(denied.clone()), "{mode:o}");
        assert_eq!(bob.unlink(dir, "f").await, Err(denied.clone()), "{mode:o}");
        assert_eq!(bob.rmdir(dir, "sub").await, Err(denied.clone()), "{mode:o}");
        assert_eq!(bob.create(dir, "x", true).await, Err(denied), "{mode:o}");
    }
    ann.chmod(dir, 0o773).await.unwrap();
    ann.chown(dir, None, Some(100)).await.unwrap();
    ann.chmod(dir, 0o737).await.unwrap();
    bob.unlink(dir, "f").await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn search_permission_is_asked_for_before_existence_and_write_permission_after_it() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    ann.file(dir, "f", 0o644).await.unwrap();
    assert_eq!(bob.mkdir(dir, "f", 0o755).await, Err(FsError::Exists));
    assert_eq!(bob.create(dir, "f", true).await, Err(FsError::Exists));
    assert_eq!(bob.unlink(dir, "none").await, Err(FsError::NotFound));
    assert_eq!(bob.rmdir(dir, "f").await, Err(FsError::AccessDenied), "not NotDirectory");
    assert_eq!(bob.link(dir, dir, "x").await, Err(FsError::AccessDenied), "not NotPermitted");
    ann.chmod(dir, 0o744).await.unwrap();
    assert_eq!(bob.lookup(dir, "f").await, Err(FsError::AccessDenied));
    assert_eq!(bob.lookup(dir, "none").await, Err(FsError::AccessDenied));
    assert_eq!(bob.unlink(dir, "none").await, Err(FsError::AccessDenied));
    assert_eq!(bob.mkdir(dir, "f", 0o755).await, Err(FsError::AccessDenied));
}

#[tokio::test]
async fn listing_needs_read_permission_and_nothing_else() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let dir = ann.mkdir(cell.root, "d", 0o744).await.unwrap().attr.fid;
    ann.file(dir, "f", 0o644).await.unwrap();
    let list = async || {
        let request = ReadDir { fid: dir, after: None, limit: 10 };
        let listed = cell.directory.readdir(bob.context(), request).await;
        listed.map(|reply| reply.page.entries.len())
    };
    assert_eq!(list().await, Ok(1));
    ann.chmod(dir, 0o733).await.unwrap();
    assert_eq!(list().await, Err(FsError::AccessDenied));
}

#[tokio::test]
async fn in_a_sticky_directory_only_owners_remove_and_rename() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let eve = cell.user(3, 3000).await;
    let dir = ann.mkdir(cell.root, "tmp", 0o1777).await.unwrap().attr.fid;
    bob.file(dir, "bobs", 0o666).await.unwrap();
    bob.mkdir(dir, "bobsdir", 0o777).await.unwrap();
    eve.file(dir, "eves", 0o666).await.unwrap();
    let refused = Err(FsError::NotPermitted);
    assert_eq!(eve.unlink(dir, "bobs").await, refused);
    assert_eq!(eve.rmdir(dir, "bobsdir").await, refused);
    let rename = async |from, to, rule| {
        eve.rename((dir, from), (dir, to), rule).await.map(drop).unwrap_err()
    };
    assert_eq!(rename("bobs", "x", RenameRule::Replace).await, FsError::NotPermitted);
    assert_eq!(rename("eves", "bobs", RenameRule::Replace).await, FsError::NotPermitted);
    assert_eq!(rename("eves", "bobs", RenameRule::Exchange).await, FsError::NotPermitted);
    assert_eq!(rename("eves", "bobsdir", RenameRule::Replace).await, FsError::NotPermitted);
    bob.unlink(dir, "bobs").await.unwrap();
    ann.unlink(dir, "eves").await.unwrap();
    ann.rmdir(dir, "bobsdir").await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn a_set_group_id_directory_hands_its_group_down() {
    let cell = Cell::new().await;
    let root = cell.user(9, 0).await;
    let ann = cell.user(1, 1000).await;
    let dir = root.mkdir(cell.root, "d", 0o777).await.unwrap().attr.fid;
    root.chown(dir, None, Some(50)).await.unwrap();
    root.chmod(dir, 0o2777).await.unwrap();
    let sub = ann.mkdir(dir, "sub", 0o755).await.unwrap().attr;
    assert_eq!((sub.gid, sub.mode), (50, 0o2755));
    let file = ann.file(dir, "f", 0o2755).await.unwrap().attr;
    assert_eq!((file.gid, file.mode), (50, 0o755), "ann is not in the group");
    let made = ann.create(dir, "g", true).await.unwrap().open.attr;
    assert_eq!((made.uid, made.gid, made.mode), (1000, 50, 0o644));
    let plain = ann.mkdir(cell.root, "plain", 0o6755).await.unwrap().attr;
    assert_eq!((plain.gid, plain.mode), (100, 0o755), "mkdir sets no set-id bits");
}

#[tokio::test]
async fn only_the_owner_and_root_change_the_mode() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let root = cell.user(9, 0).await;
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    assert_eq!(bob.chmod(file, 0o777).await, Err(FsError::NotPermitted));
    cell.clock.advance(Duration::from_secs(1));
    let attr = ann.chmod(file, 0o600).await.unwrap();
    assert_eq!((attr.mode, attr.ctime), (0o600, cell.clock.wall()));
    assert_eq!(ann.chmod(file, 0o106755).await.unwrap().mode, 0o6755, "only mode bits count");
    root.chown(file, None, Some(50)).await.unwrap();
    assert_eq!(ann.chmod(file, 0o2755).await.unwrap().mode, 0o755, "not in the file's group");
    assert_eq!(root.chmod(file, 0o2755).await.unwrap().mode, 0o2755);
}

#[tokio::test]
async fn only_root_gives_files_away_and_owners_choose_among_their_groups() {
    let cell = Cell::new().await;
    let identity = Identity { uid: 1000, gid: 100, groups: vec![50] };
    let ann = cell.user_as(1, identity).await;
    let (bob, root) = (cell.user(2, 2000).await, cell.user(9, 0).await);
    let file = ann.file(cell.root, "f", 0o755).await.unwrap().attr.fid;
    let refused = Err(FsError::NotPermitted);
    assert_eq!(ann.chown(file, Some(2000), None).await, refused);
    assert_eq!(ann.chown(file, None, Some(7)).await, refused);
    assert_eq!(bob.chown(file, None, Some(100)).await, refused);
    assert_eq!(bob.chown(file, Some(1000), None).await, refused, "not even to what it is");
    let attr = ann.chown(file, Some(1000), Some(50)).await.unwrap();
    assert_eq!((attr.uid, attr.gid), (1000, 50));
    ann.chmod(file, 0o6755).await.unwrap();
    let attr = root.chown(file, Some(2000), Some(7)).await.unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode), (2000, 7, 0o755), "set-id bits go");
    let both = SetAttr { uid: Some(1000), mode: Some(0o4755), ..SetAttr::default() };
    assert_eq!(root.set(file, both).await.unwrap().mode, 0o4755);
    let nothing = SetAttr { mode: Some(0), uid: Some(2000), ..SetAttr::default() };
    assert_eq!(ann.set(file, nothing).await, refused);
    assert_eq!(ann.getattr(file).await.unwrap().mode, 0o4755, "all of it or nothing");
}

#[tokio::test]
async fn chosen_times_are_the_owners_and_the_present_a_writers() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let eve = cell.user(3, 3000).await;
    let file = ann.file(cell.root, "f", 0o666).await.unwrap().attr.fid;
    let at = |secs| Some(SetTime::At(Timestamp::new(secs, 5)));
    let now = Some(SetTime::Now(Timestamp::new(900, 1)));
    let set = |atime, mtime| SetAttr { atime, mtime, ..SetAttr::default() };
    cell.clock.advance(Duration::from_secs(1));
    let attr = ann.set(file, set(at(-3), at(4))).await.unwrap();
    assert_eq!((attr.atime, attr.mtime), (Timestamp::new(-3, 5), Timestamp::new(4, 5)));
    assert_eq!(attr.ctime, cell.clock.wall());
    assert_eq!(bob.set(file, set(at(1), at(1))).await, Err(FsError::NotPermitted));
    assert_eq!(bob.set(file, set(now, at(1))).await, Err(FsError::NotPermitted));
    assert_eq!(bob.set(file, set(None, now)).await, Err(FsError::NotPermitted));
    assert_eq!(bob.set(file, set(now, now)).await.unwrap().mtime, Timestamp::new(900, 1));
    ann.chmod(file, 0o644).await.unwrap();
    assert_eq!(eve.set(file, set(now, now)).await, Err(FsError::AccessDenied));
    let wrong = Some(SetTime::At(Timestamp::new(1, 1_000_000_000)));
    let refused = ann.set(file, set(None, wrong)).await;
    assert!(matches!(refused, Err(FsError::InvalidArgument { .. })), "{refused:?}");
}

#[tokio::test]
async fn asking_for_no_change_moves_nothing_for_strangers() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let file = ann.file(cell.root, "f", 0o644).await.unwrap().attr;
    cell.clock.advance(Duration::from_secs(1));
    assert_eq!(bob.set(file.fid, SetAttr::default()).await.unwrap(), file);
    let attr = ann.set(file.fid, SetAttr::default()).await.unwrap();
    assert_eq!(attr.ctime, cell.clock.wall());
}

#[tokio::test]
async fn opening_asks_for_the_bits_of_the_access() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let file = ann.file(cell.root, "f", 0o604).await.unwrap().attr.fid;
    ann.chmod(file, 0o640).await.unwrap();
    let both = |access| match access {
        OpenAccess::Write { wait, .. } => OpenAccess::Write { wait, read: true },
        OpenAccess::Read => OpenAccess::Read,
    };
    assert_eq!(bob.open(file, NOW).await.map(drop), Err(FsError::AccessDenied));
    bob.open(file, OpenAccess::Read).await.unwrap();
    ann.chmod(file, 0o620).await.unwrap();
    assert_eq!(bob.open(file, OpenAccess::Read).await.map(drop), Err(FsError::AccessDenied));
    assert_eq!(bob.open(file, both(NOW)).await.map(drop), Err(FsError::AccessDenied));
    let grant = bob.open(file, NOW).await.unwrap().write.unwrap();
    bob.give_back(&grant).await;
    ann.chmod(file, 0o020).await.unwrap();
    assert_eq!(ann.open(file, NOW).await.map(drop), Err(FsError::AccessDenied), "the owner's bits");
    assert_eq!(ann.open(cell.root, NOW).await.map(drop), Err(FsError::IsDirectory));
    let link = ann.symlink(cell.root, "s", "f").await.unwrap().attr.fid;
    let refused = ann.open(link, OpenAccess::Read).await;
    assert!(matches!(refused, Err(FsError::InvalidArgument { .. })));
}
