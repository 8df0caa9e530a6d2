//! Engines that fail, processes that die, power that goes.

use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::clock::ManualClock;
use dfs_proto::directory::{MakeDir, RenameRule, XattrRule};
use dfs_proto::id::FileId;
use futures_util::future::join_all;

use super::cell::{Cell, User, name};
use super::check::check;
use crate::meta::Engine;
use crate::meta::faulty::{Faults, FaultyEngine, Moment};
use crate::meta::memory::MemoryEngine;
use crate::request::Context;

/// A tree `d/f`, `e/` on an engine that fails on command.
struct Faulty {
    cell: Cell,
    faults: Faults,
    ann: User,
    d: FileId,
    e: FileId,
}

impl Faulty {
    async fn new() -> Faulty {
        let (engine, faults) = FaultyEngine::new(Arc::new(MemoryEngine::new()));
        let cell = Cell::open(engine, ManualClock::default()).await;
        let ann = cell.user(1, 1000).await;
        let d = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
        let e = ann.mkdir(cell.root, "e", 0o755).await.unwrap().attr.fid;
        let file = ann.file(d, "f", 0o644).await.unwrap().attr.fid;
        ann.set_xattr(file, "user.kept", b"1", XattrRule::Any).await.unwrap();
        Faulty { cell, faults, ann, d, e }
    }

    /// Runs mutation `which` of those below.
    async fn mutate(&self, which: usize) -> Result<(), FsError> {
        let Faulty { ann, d, e, .. } = self;
        let file = ann.lookup(*d, "f").await?.fid;
        match which {
            0 => ann.mkdir(*e, "x", 0o755).await.map(drop),
            1 => ann.file(*e, "x", 0o644).await.map(drop),
            2 => ann.symlink(*e, "x", "y").await.map(drop),
            3 => ann.link(file, *e, "x").await.map(drop),
            4 => ann.unlink(*d, "f").await.map(drop),
            5 => ann.rmdir(self.cell.root, "e").await.map(drop),
            6 => ann.rename((*d, "f"), (*e, "g"), RenameRule::Replace).await.map(drop),
            7 => ann.chmod(file, 0o600).await.map(drop),
            8 => ann.set_xattr(file, "user.new", b"2", XattrRule::Create).await.map(drop),
            9 => ann.set_xattr(file, "user.kept", b"2", XattrRule::Replace).await.map(drop),
            10 => ann.remove_xattr(file, "user.kept").await.map(drop),
            _ => ann.create(*e, "x", true).await.map(drop),
        }
    }

    async fn picture(&self, cell: &Cell) -> Vec<Option<String>> {
        let ann = self.ann.at(cell).await;
        let mut seen = Vec::new();
        let root = cell.root;
        for (dir, at) in [(root, "d"), (root, "e"), (self.d, "f"), (self.e, "x"), (self.e, "g")] {
            let Ok(attr) = ann.lookup(dir, at).await else {
                seen.push(None);
                continue;
            };
            let kept = ann.xattr(attr.fid, "user.kept").await;
            let names = ann.xattrs(attr.fid).await;
            seen.push(Some(format!("{attr:?} {kept:?} {names:?}")));
        }
        seen
    }
}

const MUTATIONS: usize = 12;

#[tokio::test]
async fn a_mutation_that_the_engine_refuses_leaves_nothing() {
    for which in 0..MUTATIONS {
        let faulty = Faulty::new().await;
        let before = faulty.picture(&faulty.cell).await;
        faulty.faults.fail_commit(1, Moment::BeforeApplied);
        let failed = faulty.mutate(which).await;
        assert!(matches!(failed, Err(FsError::Internal { .. })), "{which}: {failed:?}");
        assert_eq!(faulty.picture(&faulty.cell).await, before, "{which}");
        assert_eq!(faulty.cell.locks.held_count(), 0, "{which}");
        check(&faulty.cell).await;
        faulty.mutate(which).await.unwrap();
        check(&faulty.cell).await;
    }
}

#[tokio::test]
async fn a_mutation_whose_answer_the_engine_lost_is_whole() {
    for which in 0..MUTATIONS {
        let faulty = Faulty::new().await;
        faulty.faults.fail_commit(1, Moment::AfterApplied);
        faulty.mutate(which).await.unwrap();
        check(&faulty.cell).await;
        let before = faulty.picture(&faulty.cell).await;
        let cell = faulty.cell.restart().await;
        assert_eq!(faulty.picture(&cell).await, before, "{which}");
        check(&cell).await;
    }
}

#[tokio::test]
async fn reads_that_the_engine_refuses_are_errors_and_never_absence() {
    let faulty = Faulty::new().await;
    let cell = faulty.cell.restart().await;
    let ann = faulty.ann.at(&cell).await;
    faulty.faults.fail_reads(true);
    let lookup = ann.lookup(faulty.d, "f").await;
    assert!(matches!(lookup, Err(FsError::Internal { .. })), "{lookup:?}");
    let made = ann.file(faulty.d, "f", 0o644).await;
    assert!(matches!(made, Err(FsError::Internal { .. })), "{made:?}");
    faulty.faults.fail_reads(false);
    ann.lookup(faulty.d, "f").await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn a_request_given_up_midway_is_made_once_at_most() {
    let faulty = Faulty::new().await;
    let (ann, cell) = (&faulty.ann, &faulty.cell);
    let context = ann.context_of(500, 1);
    let ask = |context: Context| {
        let request = MakeDir { parent: cell.root, name: name("x"), mode: 0o755 };
        let directory = cell.directory.clone();
        async move { directory.mkdir(context, request).await.map(|reply| reply.attr.fid) }
    };
    let hold = faulty.faults.hold_commits(Moment::BeforeApplied);
    let given_up = tokio::spawn(ask(context.clone()));
    let held = tokio::task::spawn_blocking(move || {
        hold.wait();
        hold
    });
    let hold = held.await.unwrap();
    given_up.abort();
    let repeated = tokio::spawn(ask(context));
    tokio::task::yield_now().await;
    drop(hold);
    let fid = repeated.await.unwrap().unwrap();
    assert_eq!(ann.lookup(cell.root, "x").await.unwrap().fid, fid);
    check(cell).await;
}

#[tokio::test]
async fn a_killed_server_comes_back_with_everything_it_answered() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let made = ann.create(cell.root, "f", true).await.unwrap().open;
    let capability = made.write.unwrap().capability;
    let stored = ann.store(&capability, &[b"content"]).await.unwrap();
    let dir = ann.mkdir(cell.root, "d", 0o750).await.unwrap().attr.fid;
    let moved = ann.rename((cell.root, "f"), (dir, "g"), RenameRule::Replace).await.unwrap();
    let cell = cell.restart().await;
    let ann = ann.at(&cell).await;
    assert_eq!(ann.lookup(dir, "g").await.unwrap(), moved.attr);
    assert_eq!(moved.attr.data_version, stored.attr.data_version);
    ann.store(&stored.capability, &[b"more"]).await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn after_a_power_cut_the_volume_is_what_the_last_sync_left() {
    let engine = Arc::new(MemoryEngine::new());
    let cell = Cell::open(engine.clone(), ManualClock::default()).await;
    let ann = cell.user(1, 1000).await;
    let kept = ann.mkdir(cell.root, "kept", 0o755).await.unwrap().attr.fid;
    let request = dfs_proto::directory::Fsync { fid: kept };
    cell.directory.fsync(request).await.unwrap();
    let lost = ann.mkdir(cell.root, "lost", 0o755).await.unwrap().attr.fid;
    let image: Arc<dyn Engine> = Arc::new(engine.crash_image());
    let cell = Cell::open(image, cell.clock.clone()).await;
    let ann = ann.at(&cell).await;
    assert_eq!(ann.lookup(cell.root, "kept").await.unwrap().fid, kept);
    assert_eq!(ann.lookup(cell.root, "lost").await, Err(FsError::NotFound));
    let again = ann.mkdir(cell.root, "again", 0o755).await.unwrap().attr.fid;
    assert_eq!(again.inode, lost.inode, "the number was never used");
    assert_eq!(ann.getattr(lost).await, Err(FsError::Stale), "and means another inode");
    check(&cell).await;
}

#[tokio::test]
async fn users_in_each_others_way_leave_a_sound_tree() {
    let cell = Cell::new().await;
    let users: Vec<User> = join_all((1..=8).map(|number| cell.user(number, 1000))).await;
    let dirs = ["a", "b", "c"];
    let mut fids = Vec::new();
    for at in dirs {
        fids.push(users[0].mkdir(cell.root, at, 0o777).await.unwrap().attr.fid);
    }
    let fids = &fids;
    join_all(users.iter().enumerate().map(|(index, user)| async move {
        for step in 0..60 {
            let at = ["x", "y"][(step + index) % 2];
            let (from, to) = (fids[step % 3], fids[(step + index) % 3]);
            let _ = match (step * 7 + index) % 6 {
                0 => user.mkdir(from, at, 0o777).await.map(drop),
                1 => user.create(from, at, true).await.map(drop),
                2 => user.unlink(from, at).await.map(drop),
                3 => user.rmdir(to, at).await.map(drop),
                4 => user.rename((from, at), (to, "x"), RenameRule::Exchange).await.map(drop),
                _ => user.rename((from, at), (to, "y"), RenameRule::Replace).await.map(drop),
            };
        }
    }))
    .await;
    check(&cell).await;
    check(&cell.restart().await).await;
}

#[tokio::test]
async fn on_a_nearly_full_disk_nothing_new_is_made_and_everything_else_goes_on() {
    let Faulty { cell, faults, ann, d, e } = Faulty::new().await;
    let file = ann.lookup(d, "f").await.unwrap().fid;
    faults.set_full(true);
    let refused = |error: FsError| assert!(matches!(error, FsError::NoSpace { .. }), "{error}");
    refused(ann.mkdir(d, "new", 0o755).await.unwrap_err());
    refused(ann.symlink(d, "new", "target").await.unwrap_err());
    refused(ann.link(file, d, "new").await.unwrap_err());
    refused(ann.create(d, "new", true).await.map(drop).unwrap_err());
    assert_eq!(ann.mkdir(d, "f", 0o755).await, Err(FsError::Exists), "as ever");
    assert!(!ann.create(d, "f", false).await.unwrap().created, "what is there can be opened");
    ann.chmod(file, 0o600).await.unwrap();
    refused(ann.set_xattr(file, "user.new", b"2", XattrRule::Any).await.unwrap_err());
    ann.set_xattr(file, "user.kept", b"2", XattrRule::Any).await.unwrap();
    ann.remove_xattr(file, "user.kept").await.unwrap();
    ann.rename((d, "f"), (e, "moved"), RenameRule::Replace).await.unwrap();
    ann.unlink(e, "moved").await.unwrap();
    ann.rmdir(cell.root, "d").await.unwrap();
    faults.set_full(false);
    ann.mkdir(e, "new", 0o755).await.unwrap();
    check(&cell).await;
}
