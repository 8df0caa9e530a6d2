//! Rename: what moves, what is replaced, and what is refused first.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::FileKind;
use dfs_proto::clock::Clock;
use dfs_proto::directory::RenameRule::{Exchange, NoReplace, Replace};
use dfs_proto::directory::{LookupParent, RenameReply};
use dfs_proto::id::FileId;

use super::cell::{Cell, User};
use super::check::check;

/// Directories `a` and `b` of one user, in a volume's root.
struct Two {
    cell: Cell,
    ann: User,
    a: FileId,
    b: FileId,
}

impl Two {
    async fn new() -> Two {
        let cell = Cell::new().await;
        let ann = cell.user(1, 1000).await;
        let a = ann.mkdir(cell.root, "a", 0o755).await.unwrap().attr.fid;
        let b = ann.mkdir(cell.root, "b", 0o755).await.unwrap().attr.fid;
        Two { cell, ann, a, b }
    }

    async fn file(&self, dir: FileId, at: &str) -> FileId {
        self.ann.file(dir, at, 0o644).await.unwrap().attr.fid
    }

    async fn dir(&self, dir: FileId, at: &str) -> FileId {
        self.ann.mkdir(dir, at, 0o755).await.unwrap().attr.fid
    }

    async fn at(&self, dir: FileId, at: &str) -> Option<FileId> {
        self.ann.lookup(dir, at).await.ok().map(|attr| attr.fid)
    }

    /// Links and entries of `a` and `b`.
    async fn counts(&self) -> [(u32, u64); 2] {
        let attr = async |fid| self.ann.getattr(fid).await.unwrap();
        let (a, b) = (attr(self.a).await, attr(self.b).await);
        [(a.nlink, a.size), (b.nlink, b.size)]
    }

    async fn replace(
        &self,
        from: (FileId, &str),
        to: (FileId, &str),
    ) -> Result<RenameReply, FsError> {
        self.ann.rename(from, to, Replace).await
    }
}

#[tokio::test]
async fn a_moved_file_leaves_one_directory_and_appears_in_the_other() {
    let two = Two::new().await;
    let file = two.file(two.a, "f").await;
    let before = [two.ann.getattr(two.a).await.unwrap(), two.ann.getattr(two.b).await.unwrap()];
    two.cell.clock.advance(Duration::from_millis(10));
    let reply = two.replace((two.a, "f"), (two.b, "g")).await.unwrap();
    assert_eq!((reply.attr.fid, reply.replaced), (file, None));
    assert_eq!(reply.attr.ctime, two.cell.clock.wall());
    assert_eq!((two.at(two.a, "f").await, two.at(two.b, "g").await), (None, Some(file)));
    assert_eq!(two.counts().await, [(2, 0), (2, 1)]);
    for (fid, before) in [two.a, two.b].into_iter().zip(before) {
        let after = two.ann.getattr(fid).await.unwrap();
        assert_ne!(after.dir_version, before.dir_version);
        assert_eq!((after.mtime, after.ctime), (two.cell.clock.wall(), two.cell.clock.wall()));
    }
    check(&two.cell).await;
}

#[tokio::test]
async fn a_replaced_file_loses_one_name_and_goes_with_the_last() {
    let two = Two::new().await;
    two.file(two.a, "f").await;
    let target = two.file(two.b, "g").await;
    two.ann.link(target, two.a, "other").await.unwrap();
    let reply = two.replace((two.a, "f"), (two.b, "g")).await.unwrap();
    let replaced = reply.replaced.unwrap();
    assert_eq!((replaced.fid, replaced.nlink), (target, 1));
    let reply = two.replace((two.b, "g"), (two.a, "other")).await.unwrap();
    assert_eq!(reply.replaced.unwrap().nlink, 0);
    assert_eq!(two.ann.getattr(target).await, Err(FsError::Stale));
    assert_eq!(two.counts().await, [(2, 1), (2, 0)]);
    check(&two.cell).await;
}

#[tokio::test]
async fn a_directory_replaces_an_empty_one_and_knows_its_new_parent() {
    let two = Two::new().await;
    let moved = two.dir(two.a, "d").await;
    two.file(moved, "inside").await;
    let target = two.dir(two.b, "e").await;
    let reply = two.replace((two.a, "d"), (two.b, "e")).await.unwrap();
    assert_eq!(reply.replaced.map(|attr| (attr.fid, attr.nlink)), Some((target, 0)));
    assert_eq!(two.counts().await, [(2, 0), (3, 1)]);
    let parent = two.cell.directory.lookup_parent(LookupParent { fid: moved }).await;
    assert_eq!(parent.unwrap().attr.fid, two.b);
    check(&two.cell).await;
}

#[tokio::test]
async fn kinds_must_fit_and_a_replaced_directory_must_be_empty() {
    let two = Two::new().await;
    two.file(two.a, "file").await;
    two.dir(two.a, "dir").await;
    let full = two.dir(two.b, "full").await;
    two.file(full, "x").await;
    let file_over_dir = two.replace((two.a, "file"), (two.b, "full")).await;
    assert_eq!(file_over_dir, Err(FsError::IsDirectory));
    two.file(two.b, "file").await;
    let dir_over_file = two.replace((two.a, "dir"), (two.b, "file")).await;
    assert_eq!(dir_over_file, Err(FsError::NotDirectory));
    let dir_over_full = two.replace((two.a, "dir"), (two.b, "full")).await;
    assert_eq!(dir_over_full, Err(FsError::NotEmpty));
    let from_nothing = two.replace((two.a, "none"), (two.b, "full")).await;
    assert_eq!(from_nothing, Err(FsError::NotFound));
    check(&two.cell).await;
}

#[tokio::test]
async fn noreplace_refuses_every_name_that_exists() {
    let two = Two::new().await;
    let file = two.file(two.a, "f").await;
    two.ann.link(file, two.b, "same").await.unwrap();
    for to in [(two.a, "f"), (two.b, "same"), (two.cell.root, "b")] {
        let refused = two.ann.rename((two.a, "f"), to, NoReplace).await;
        assert_eq!(refused, Err(FsError::Exists));
    }
    two.ann.rename((two.a, "f"), (two.b, "new"), NoReplace).await.unwrap();
    assert_eq!(two.at(two.b, "new").await, Some(file));
    check(&two.cell).await;
}

#[tokio::test]
async fn names_of_one_inode_are_both_left_alone() {
    let two = Two::new().await;
    let file = two.file(two.a, "f").await;
    two.ann.link(file, two.b, "g").await.unwrap();
    for rule in [Replace, Exchange] {
        let reply = two.ann.rename((two.a, "f"), (two.b, "g"), rule).await.unwrap();
        assert_eq!((reply.attr.nlink, reply.replaced), (2, None));
        two.ann.rename((two.a, "f"), (two.a, "f"), rule).await.unwrap();
        two.ann.rename((two.cell.root, "a"), (two.cell.root, "a"), rule).await.unwrap();
    }
    assert_eq!((two.at(two.a, "f").await, two.at(two.b, "g").await), (Some(file), Some(file)));
    check(&two.cell).await;
}

#[tokio::test]
async fn one_of_two_names_moves_and_the_other_stays() {
    let two = Two::new().await;
    let file = two.file(two.a, "f").await;
    two.ann.link(file, two.a, "g").await.unwrap();
    two.replace((two.a, "f"), (two.b, "f")).await.unwrap();
    assert_eq!(two.at(two.a, "g").await, Some(file));
    assert_eq!(two.at(two.b, "f").await, Some(file));
    assert_eq!(two.ann.getattr(file).await.unwrap().nlink, 2);
    check(&two.cell).await;
}

#[tokio::test]
async fn a_file_and_a_directory_are_exchanged_across_directories() {
    let two = Two::new().await;
    let file = two.file(two.a, "x").await;
    let dir = two.dir(two.b, "y").await;
    two.file(dir, "inside").await;
    let reply = two.ann.rename((two.a, "x"), (two.b, "y"), Exchange).await.unwrap();
    assert_eq!(reply.attr.fid, file);
    assert_eq!(reply.replaced.map(|attr| attr.fid), Some(dir));
    assert_eq!((two.at(two.a, "x").await, two.at(two.b, "y").await), (Some(dir), Some(file)));
    assert_eq!(two.counts().await, [(3, 1), (2, 1)]);
    assert_eq!(two.ann.lookup(two.a, "x").await.unwrap().kind, FileKind::Directory);
    check(&two.cell).await;
    two.ann.rename((two.a, "x"), (two.b, "y"), Exchange).await.unwrap();
    assert_eq!((two.at(two.a, "x").await, two.at(two.b, "y").await), (Some(file), Some(dir)));
    assert_eq!(two.counts().await, [(2, 1), (3, 1)]);
    check(&two.cell).await;
}

#[tokio::test]
async fn two_names_of_one_directory_are_exchanged() {
    let two = Two::new().await;
    let (file, dir) = (two.file(two.a, "x").await, two.dir(two.a, "y").await);
    two.ann.rename((two.a, "x"), (two.a, "y"), Exchange).await.unwrap();
    assert_eq!((two.at(two.a, "x").await, two.at(two.a, "y").await), (Some(dir), Some(file)));
    assert_eq!(two.counts().await, [(3, 2), (2, 0)]);
    let refused = two.ann.rename((two.a, "x"), (two.a, "none"), Exchange).await;
    assert_eq!(refused, Err(FsError::NotFound));
    check(&two.cell).await;
}

#[tokio::test]
async fn no_directory_moves_below_itself_or_over_what_it_is_in() {
    let two = Two::new().await;
    let (root, a) = (two.cell.root, two.a);
    let sub = two.dir(a, "sub").await;
    let deep = two.dir(sub, "deep").await;
    two.file(deep, "f").await;
    for to in [(a, "x"), (sub, "x"), (deep, "x"), (deep, "f")] {
        assert_eq!(two.replace((root, "a"), to).await, Err(FsError::Loop));
    }
    assert_eq!(two.replace((deep, "f"), (root, "a")).await, Err(FsError::NotEmpty));
    assert_eq!(two.replace((sub, "deep"), (root, "a")).await, Err(FsError::NotEmpty));
    for (from, to) in [((sub, "deep"), (root, "a")), ((root, "a"), (deep, "f"))] {
        assert_eq!(two.ann.rename(from, to, Exchange).await, Err(FsError::Loop));
    }
    two.replace((root, "a"), (two.b, "a")).await.unwrap();
    check(&two.cell).await;
}

#[tokio::test]
async fn what_exists_is_said_before_what_is_permitted() {
    let two = Two::new().await;
    let bob = two.cell.user(2, 2000).await;
    two.file(two.a, "f").await;
    two.dir(two.b, "d").await;
    let (a, b) = (two.a, two.b);
    let refused = async |from, to, rule| bob.rename(from, to, rule).await.unwrap_err();
    assert_eq!(refused((a, "none"), (b, "x"), Replace).await, FsError::NotFound);
    assert_eq!(refused((a, "f"), (b, "d"), NoReplace).await, FsError::Exists);
    assert_eq!(refused((a, "f"), (b, "x"), Exchange).await, FsError::NotFound);
    assert_eq!(refused((a, "f"), (b, "d"), Replace).await, FsError::AccessDenied);
    two.ann.chmod(a, 0o644).await.unwrap();
    assert_eq!(refused((a, "none"), (b, "x"), Replace).await, FsError::AccessDenied);
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_renamed_in_place_but_not_moved() {
    let two = Two::new().await;
    let bob = two.cell.user(2, 2000).await;
    two.ann.chmod(two.a, 0o777).await.unwrap();
    two.ann.chmod(two.b, 0o777).await.unwrap();
    two.dir(two.a, "d").await;
    bob.rename((two.a, "d"), (two.a, "e"), Replace).await.unwrap();
    let moved = bob.rename((two.a, "e"), (two.b, "e"), Replace).await;
    assert_eq!(moved, Err(FsError::AccessDenied), "`..` of the directory would change");
    bob.file(two.b, "own", 0o644).await.unwrap();
    let exchanged = bob.rename((two.b, "own"), (two.a, "e"), Exchange).await;
    assert_eq!(exchanged, Err(FsError::AccessDenied));
}
