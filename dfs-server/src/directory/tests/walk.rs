//! Walks: the same as a question and lookups, at one moment.

use dfs_proto::FsError;
use dfs_proto::attr::Attr;
use dfs_proto::directory::{RenameRule, Walk, WalkReply};
use dfs_proto::id::FileId;
use dfs_proto::limits::WALK_NAMES_MAX;

use super::cell::{Cell, User, name};

async fn walk(user: &User, fid: FileId, names: &[&str]) -> Result<WalkReply, FsError> {
    let names = names.iter().map(|text| name(text)).collect();
    user.cell.directory.walk(user.context(), Walk { fid, names }).await
}

/// What the same person is told who asks name by name.
async fn step_by_step(user: &User, fid: FileId, names: &[&str]) -> (Attr, Vec<Attr>) {
    let attr = user.getattr(fid).await.unwrap();
    let (mut at, mut found) = (fid, Vec::new());
    for text in names {
        let Ok(attr) = user.lookup(at, text).await else { break };
        at = attr.fid;
        found.push(attr);
    }
    (attr, found)
}

/// `a/b/c/f` and `a/link`, open to all.
async fn tree() -> (Cell, User, [FileId; 3]) {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let mut dirs = [cell.root; 3];
    let mut parent = cell.root;
    for (dir, text) in dirs.iter_mut().zip(["a", "b", "c"]) {
        parent = ann.mkdir(parent, text, 0o755).await.unwrap().attr.fid;
        *dir = parent;
    }
    ann.file(parent, "f", 0o600).await.unwrap();
    ann.symlink(dirs[0], "link", "b").await.unwrap();
    (cell, ann, dirs)
}

#[tokio::test]
async fn a_walk_finds_what_lookups_find_and_ends_where_they_end() {
    let (cell, ann, _) = tree().await;
    let paths: [(&[&str], usize); 7] = [
        (&[], 0),
        (&["a", "b", "c"], 3),
        (&["a", "b", "c", "f"], 4),
        (&["a", "b", "c", "f", "below a file"], 4),
        (&["a", "link", "c"], 2),
        (&["a", "none", "c"], 1),
        (&["none"], 0),
    ];
    for (names, count) in paths {
        let reply = walk(&ann, cell.root, names).await.unwrap();
        assert_eq!(reply.found.len(), count, "{names:?}");
        assert_eq!((reply.attr, reply.found), step_by_step(&ann, cell.root, names).await);
        assert_eq!(reply.sequence, cell.volume.store.sequence());
    }
}

#[tokio::test]
async fn a_walk_of_a_foreign_user_ends_at_a_directory_that_he_may_not_search() {
    let (cell, ann, [a, b, c]) = tree().await;
    let bob = cell.user(2, 2000).await;
    let names = &["a", "b", "c", "f"];
    for (closed, count) in [(c, 3), (b, 2), (a, 1), (cell.root, 0)] {
        let owner = if closed == cell.root { cell.user(3, 0).await } else { ann.clone() };
        owner.chmod(closed, 0o700).await.unwrap();
        let reply = walk(&bob, cell.root, names).await.unwrap();
        assert_eq!(reply.found.len(), count, "{closed}");
        assert_eq!((reply.attr, reply.found), step_by_step(&bob, cell.root, names).await);
        owner.chmod(closed, 0o711).await.unwrap();
        let reply = walk(&bob, cell.root, names).await.unwrap();
        assert_eq!(reply.found.len(), names.len(), "to search is enough: {closed}");
    }
}

#[tokio::test]
async fn a_walk_ends_at_a_directory_that_is_gone_and_begins_at_none() {
    let (cell, ann, [a, b, c]) = tree().await;
    ann.rename((b, "c"), (cell.root, "c"), RenameRule::Replace).await.unwrap();
    assert_eq!(walk(&ann, cell.root, &["a", "b", "c"]).await.unwrap().found.len(), 2);
    ann.rmdir(a, "b").await.unwrap();
    assert_eq!(walk(&ann, cell.root, &["a", "b", "c"]).await.unwrap().found.len(), 1);
    assert_eq!(walk(&ann, cell.root, &["c", "f"]).await.unwrap().found[0].fid, c);
    assert_eq!(walk(&ann, b, &["c"]).await, Err(FsError::Stale));
    assert_eq!(walk(&ann, b, &[]).await, Err(FsError::Stale));
    let file = ann.lookup(c, "f").await.unwrap().fid;
    assert!(walk(&ann, file, &["x"]).await.unwrap().found.is_empty(), "no directory");
}

#[tokio::test]
async fn a_walk_has_only_so_many_names() {
    let (cell, ann, _) = tree().await;
    let mut names = vec!["a"; WALK_NAMES_MAX];
    assert_eq!(walk(&ann, cell.root, &names).await.unwrap().found.len(), 1);
    names.push("a");
    let refused = walk(&ann, cell.root, &names).await;
    assert!(matches!(refused, Err(FsError::TooLarge { limit: 16, .. })), "{refused:?}");
}

#[tokio::test]
async fn rows_that_are_not_in_memory_are_loaded_for_a_walk() {
    let (cell, ann, _) = tree().await;
    let names = &["a", "b", "c", "f"];
    let before = walk(&ann, cell.root, names).await.unwrap();
    let cell = cell.restart().await;
    let after = walk(&ann.at(&cell).await, cell.root, names).await.unwrap();
    assert_eq!(after.found, before.found);
}
