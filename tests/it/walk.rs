//! Walks to names, question by question as the kernel makes them.
//!
//! The clock of the walking client stands still, so its promises last: what another client changes
//! between two system calls is seen at once because it is told.

use std::sync::Arc;

use dfs_mount::vfs::Change;
use dfs_proto::attr::{FileKind, SetAttr};
use dfs_proto::clock::ManualClock;
use dfs_proto::directory::RenameRule;

use super::support::{Cell, Client};
use super::*;

fn thread(pid: u32) -> Caller {
    Caller { pid, ..root() }
}

fn stranger() -> Caller {
    Caller { identity: Identity { uid: 7, gid: 7, groups: Vec::new() }, pid: 70 }
}

/// One path walk: where it begins is asked for, and each directory on the way.
async fn walk(vfs: &Vfs, who: &Caller, path: &str) -> Result<Entry, Error> {
    let mut entry = vfs.getattr(who, ROOT, None).await?;
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        entry = vfs.lookup(who, at(entry.nodeid, name)).await?;
        if names.peek().is_some() && entry.attr.kind == FileKind::Directory {
            vfs.getattr(who, entry.nodeid, None).await?;
        }
    }
    Ok(entry)
}

fn is_absent(result: &Result<Entry, Error>) -> bool {
    matches!(result, Err(Error::Fs(FsError::NotFound)))
}

async fn make_file(vfs: &Vfs, parent: u64, name: &str) -> Result<Entry, Error> {
    let how = CreateHow { mode: 0o644, exclusive: true, open: WRITE };
    let created = vfs.create(&root(), at(parent, name), how).await?;
    close(vfs, created.opened.handle).await;
    Ok(created.entry)
}

/// A cell with `a/b/f`, and two clients that know its directories.
struct World {
    a: Client,
    b: Client,
    dir_a: u64,
    dir_b: u64,
    _cell: Cell,
}

impl World {
    async fn new() -> World {
        let cell = Cell::start().await;
        let a = cell.client_at(Arc::new(ManualClock::default()), true).await;
        let b = cell.client(true).await;
        let dir_a = b.vfs.mkdir(&root(), at(ROOT, "a"), 0o755).await.unwrap().nodeid;
        let dir_b = b.vfs.mkdir(&root(), at(dir_a, "b"), 0o755).await.unwrap().nodeid;
        make_file(&b.vfs, dir_b, "f").await.unwrap();
        let world = World { a, b, dir_a, dir_b, _cell: cell };
        world.walk(&thread(7), "a/b/f").await.unwrap();
        world
    }

    async fn walk(&self, who: &Caller, path: &str) -> Result<Entry, Error> {
        walk(&self.a.vfs, who, path).await
    }

    /// What the other client does between two system calls of this one.
    async fn rename(&self, from: (u64, &str), to: (u64, &str)) {
        let (from, to) = (at(from.0, from.1), at(to.0, to.1));
        self.b.vfs.rename(&root(), from, to, RenameRule::Replace).await.unwrap();
    }

    async fn chmod(&self, client: &Client, nodeid: u64, mode: u32) {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        let change = Change { set, size: None };
        client.vfs.setattr(&root(), nodeid, None, change).await.unwrap();
    }

    /// Look-ups and questions sent by the first client.
    fn asked(&self) -> u64 {
        ["directory.lookup", "directory.getattr"].map(|path| self.a.rpc_count(path)).iter().sum()
    }
}

/// R4 of SEMANTICS.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_is_held_costs_nothing_whoever_goes_it() {
    let world = World::new().await;
    let before = world.asked();
    for who in [thread(7), thread(8), thread(0), stranger()] {
        world.walk(&who, "a/b/f").await.unwrap();
    }
    assert_eq!(world.asked(), before);
    let absent = world.walk(&thread(7), "a/b/none").await;
    assert!(is_absent(&absent), "{absent:?}");
    assert_eq!(world.asked(), before + 1, "nothing was known of that name");
    let absent = world.walk(&stranger(), "a/b/none").await;
    assert!(is_absent(&absent), "{absent:?}");
    make_file(&world.b.vfs, world.dir_b, "none").await.unwrap();
    world.walk(&stranger(), "a/b/none").await.unwrap();
    assert_eq!(world.asked(), before + 1, "it was told of");
}

/// R4 of SEMANTICS.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_on_the_way_that_another_client_moved_is_seen_at_once() {
    let world = World::new().await;
    let file = world.walk(&thread(7), "a/b/f").await.unwrap();
    world.rename((world.dir_a, "b"), (world.dir_a, "c")).await;
    let gone = world.walk(&thread(7), "a/b/f").await;
    assert!(is_absent(&gone), "{gone:?}");
    assert_eq!(world.walk(&thread(7), "a/c/f").await.unwrap().nodeid, file.nodeid);
    assert_eq!(world.walk(&thread(7), "a/c/f").await.unwrap().nodeid, file.nodeid);
    world.rename((ROOT, "a"), (ROOT, "old")).await;
    let gone = world.walk(&thread(7), "a/c/f").await;
    assert!(is_absent(&gone), "{gone:?}");
    let new = world.b.vfs.mkdir(&root(), at(ROOT, "a"), 0o755).await.unwrap().nodeid;
    world.rename((world.dir_a, "c"), (new, "c")).await;
    let found = world.walk(&thread(7), "a/c/f").await.unwrap();
    assert_eq!(found.nodeid, file.nodeid, "by another way of the same names");
    let seen = world.walk(&thread(7), "a").await.unwrap();
    assert_eq!(seen.nodeid, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_on_the_way_that_another_client_closed_is_closed_at_once() {
    let world = World::new().await;
    for dir in [world.dir_b, world.dir_a] {
        world.walk(&stranger(), "a/b/f").await.unwrap();
        world.chmod(&world.b, dir, 0o700).await;
        let refused = world.walk(&stranger(), "a/b/f").await;
        assert!(matches!(refused, Err(Error::Fs(FsError::AccessDenied))), "{refused:?}");
        world.chmod(&world.b, dir, 0o711).await;
        world.walk(&stranger(), "a/b/f").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_made_where_the_way_leads_and_not_where_it_led() {
    let world = World::new().await;
    world.rename((world.dir_a, "b"), (world.dir_a, "old")).await;
    let new = world.b.vfs.mkdir(&root(), at(world.dir_a, "b"), 0o755).await.unwrap().nodeid;
    let found = world.walk(&thread(7), "a/b").await.unwrap();
    assert_eq!(found.nodeid, new);
    make_file(&world.a.vfs, found.nodeid, "made").await.unwrap();
    let there = world.b.vfs.lookup(&root(), at(new, "made")).await;
    assert!(there.is_ok(), "{there:?}");
    let elsewhere = world.b.vfs.lookup(&root(), at(world.dir_b, "made")).await;
    assert!(is_absent(&elsewhere), "{elsewhere:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_was_removed_after_it_was_found_takes_nothing() {
    let world = World::new().await;
    let (a, who) = (&world.a.vfs, thread(7));
    world.b.vfs.unlink(&root(), at(world.dir_b, "f")).await.unwrap();
    let dir = world.walk(&who, "a/b").await.unwrap().nodeid;
    world.b.vfs.rmdir(&root(), at(world.dir_a, "b")).await.unwrap();
    let refused = make_file(a, dir, "made").await;
    assert!(matches!(refused, Err(Error::Fs(FsError::Stale))), "{refused:?}");
    let again = world.walk(&who, "a/b").await;
    assert!(is_absent(&again), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_client_changes_is_seen_by_its_next_question() {
    let world = World::new().await;
    let (a, who) = (&world.a.vfs, thread(7));
    a.getattr(&who, ROOT, None).await.unwrap();
    let (from, to) = (at(world.dir_a, "b"), at(world.dir_a, "c"));
    a.rename(&root(), from, to, RenameRule::Replace).await.unwrap();
    let dir = a.lookup(&who, at(ROOT, "a")).await.unwrap().nodeid;
    a.getattr(&who, dir, None).await.unwrap();
    let gone = a.lookup(&who, at(dir, "b")).await;
    assert!(is_absent(&gone), "{gone:?}");
    world.walk(&stranger(), "a/c/f").await.unwrap();
    a.getattr(&stranger(), ROOT, None).await.unwrap();
    world.chmod(&world.a, world.dir_a, 0o700).await;
    a.lookup(&stranger(), at(ROOT, "a")).await.unwrap();
    let refused = a.lookup(&stranger(), at(world.dir_a, "c")).await;
    assert!(matches!(refused, Err(Error::Fs(FsError::AccessDenied))), "{refused:?}");
}
