//! Walks to names, question by question as the kernel makes them.
//!
//! The clock of the walking client stands still: what another client changes between two system
//! calls is seen at once, however little time has passed.

use std::sync::Arc;
use std::time::Duration;

use dfs_mount::vfs::Change;
use dfs_proto::attr::{FileKind, SetAttr};
use dfs_proto::clock::ManualClock;
use dfs_proto::directory::RenameRule;

use super::support::{Cell, Client};
use super::*;

/// Longer than any answer serves a second question.
const LATER: Duration = Duration::from_millis(10);

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
    clock: ManualClock,
    a: Client,
    b: Client,
    dir_a: u64,
    dir_b: u64,
    _cell: Cell,
}

impl World {
    async fn new() -> World {
        let cell = Cell::start().await;
        let clock = ManualClock::default();
        let a = cell.client_at(Arc::new(clock.clone()), true).await;
        let b = cell.client(true).await;
        let dir_a = b.vfs.mkdir(&root(), at(ROOT, "a"), 0o755).await.unwrap().nodeid;
        let dir_b = b.vfs.mkdir(&root(), at(dir_a, "b"), 0o755).await.unwrap().nodeid;
        make_file(&b.vfs, dir_b, "f").await.unwrap();
        let world = World { clock, a, b, dir_a, dir_b, _cell: cell };
        // The first question tells what the root is, the second walk is remembered.
        for who in [thread(7), thread(7), stranger(), stranger()] {
            world.walk(&who, "a/b/f").await.unwrap();
        }
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

    /// Walks, lookups and questions sent by the first client.
    fn counts(&self) -> [u64; 3] {
        ["directory.walk", "directory.lookup", "directory.getattr"]
            .map(|path| self.a.rpc_count(path))
    }

    fn cost_since(&self, before: [u64; 3]) -> [u64; 3] {
        let after = self.counts();
        std::array::from_fn(|index| after[index] - before[index])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_a_thread_goes_again_costs_a_walk_and_one_lookup() {
    let world = World::new().await;
    for _ in 0..3 {
        let before = world.counts();
        world.walk(&thread(7), "a/b/f").await.unwrap();
        assert_eq!(world.cost_since(before), [1, 1, 0]);
        world.clock.advance(LATER);
    }
    let before = world.counts();
    world.walk(&thread(8), "a/b/f").await.unwrap();
    assert_eq!(world.cost_since(before), [0, 3, 1], "another thread knows nothing of it");
    let before = world.counts();
    world.walk(&thread(0), "a/b/f").await.unwrap();
    assert_eq!(world.cost_since(before), [0, 3, 3], "and the kernel itself asks for each");
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
        let before = world.counts();
        world.chmod(&world.b, dir, 0o700).await;
        let refused = world.walk(&stranger(), "a/b/f").await;
        assert!(matches!(refused, Err(Error::Fs(FsError::AccessDenied))), "{refused:?}");
        assert_eq!(world.cost_since(before)[0], 1, "it was asked as a walk");
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

/// The change comes when the walk was answered and the lookups were not asked yet: the call may see
/// the state before it, and what it makes goes into the very directory it found, or nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_moved_during_the_call_is_still_the_one_that_was_found() {
    let world = World::new().await;
    let (a, who) = (&world.a.vfs, thread(7));
    let before = world.counts();
    a.getattr(&who, ROOT, None).await.unwrap();
    world.rename((world.dir_a, "b"), (world.dir_a, "old")).await;
    world.b.vfs.mkdir(&root(), at(world.dir_a, "b"), 0o755).await.unwrap();
    let dir = a.lookup(&who, at(ROOT, "a")).await.unwrap().nodeid;
    a.getattr(&who, dir, None).await.unwrap();
    let dir = a.lookup(&who, at(dir, "b")).await.unwrap().nodeid;
    assert_eq!((dir, world.cost_since(before)), (world.dir_b, [1, 0, 0]));
    make_file(a, dir, "made").await.unwrap();
    let there = world.b.vfs.lookup(&root(), at(world.dir_b, "made")).await;
    assert!(there.is_ok(), "{there:?}");
    // The same with a directory that is removed: the kernel is told to walk again.
    world.b.vfs.unlink(&root(), at(world.dir_b, "made")).await.unwrap();
    world.b.vfs.unlink(&root(), at(world.dir_b, "f")).await.unwrap();
    world.walk(&who, "a/old").await.unwrap();
    a.getattr(&who, ROOT, None).await.unwrap();
    world.b.vfs.rmdir(&root(), at(world.dir_a, "old")).await.unwrap();
    let dir = a.lookup(&who, at(ROOT, "a")).await.unwrap().nodeid;
    a.getattr(&who, dir, None).await.unwrap();
    let dir = a.lookup(&who, at(dir, "old")).await.unwrap().nodeid;
    let refused = make_file(a, dir, "made").await;
    assert!(matches!(refused, Err(Error::Fs(FsError::Stale))), "{refused:?}");
    let again = world.walk(&who, "a/old").await;
    assert!(is_absent(&again), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_client_changes_ends_what_was_asked_ahead_of_it() {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_for_a_directory_answers_the_next_one_of_its_thread() {
    let world = World::new().await;
    let (a, dir) = (&world.a.vfs, world.dir_b);
    let mut asked = world.counts()[2];
    let mut ask = async |who: Caller, cost: u64, why: &str| {
        let entry = a.getattr(&who, dir, None).await.unwrap();
        asked += cost;
        assert_eq!(world.counts()[2], asked, "{why}");
        entry.attr
    };
    // Nothing is left of the walks.
    world.clock.advance(LATER);
    ask(thread(7), 1, "the first").await;
    ask(thread(7), 0, "the same call").await;
    ask(thread(7), 1, "the third is another call").await;
    ask(thread(8), 1, "another thread").await;
    world.clock.advance(LATER);
    ask(thread(8), 1, "too late").await;
    make_file(a, dir, "made").await.unwrap();
    let after = ask(thread(8), 1, "something was made there").await;
    assert_eq!(after.size, 2);
    world.clock.advance(LATER);
    ask(thread(0), 1, "the kernel itself").await;
    ask(thread(0), 1, "is many").await;
}
