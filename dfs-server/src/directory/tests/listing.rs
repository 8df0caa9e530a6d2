//! Listings in pages, while the directory changes and while it does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dfs_proto::attr::SetAttr;
use dfs_proto::directory::{ChangeAttr, MakeSymlink, ReadDir, ReadDirReply};
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use futures_util::future::join_all;

use super::cell::{Cell, User, name};

const ENTRIES: usize = 5000;

async fn page(user: &User, fid: FileId, after: Option<Name>, limit: u32) -> ReadDirReply {
    let request = ReadDir { fid, after, limit };
    user.cell.directory.readdir(user.context(), request).await.unwrap()
}

/// A directory of files `f0000`, `f0001`...
async fn full(user: &User) -> FileId {
    let dir = user.mkdir(user.cell.root, "d", 0o755).await.unwrap().attr.fid;
    let first = user.next_number();
    let made = join_all((0..ENTRIES).map(|number| {
        let name = name(&format!("f{number:04}"));
        let request = MakeSymlink { parent: dir, name, target: b"x".to_vec() };
        user.cell.directory.symlink(user.context_of(user.next_number(), first), request)
    }));
    assert!(made.await.iter().all(Result::is_ok));
    dir
}

#[tokio::test]
async fn pages_of_any_size_give_every_entry_once_and_in_order() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let dir = full(&ann).await;
    for limit in [0, 7, 1000, 4096, 5000, u32::MAX] {
        let mut names: Vec<Name> = Vec::new();
        loop {
            let reply = page(&ann, dir, names.last().cloned(), limit).await;
            assert!(reply.page.entries.len() <= limit.clamp(1, 4096) as usize);
            names.extend(reply.page.entries.into_iter().map(|entry| entry.name));
            if reply.page.is_last || names.len() > 20 && limit == 0 {
                break;
            }
        }
        assert!(limit == 0 || names.len() == ENTRIES);
        assert!(names.is_sorted() && names.windows(2).all(|pair| pair[0] != pair[1]));
    }
    let last = page(&ann, dir, Some(name("f4999")), 10).await.page;
    assert!(last.is_last && last.entries.is_empty());
    let exact = page(&ann, dir, Some(name("f4989")), 10).await.page;
    assert!(exact.is_last && exact.entries.len() == 10);
}

#[tokio::test]
async fn entries_that_stay_are_listed_once_while_others_come_and_go() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let dir = full(&ann).await;
    for limit in [3, 64, 999] {
        let mut seen: BTreeMap<Name, u32> = BTreeMap::new();
        let mut after = None;
        for round in 0.. {
            let reply = page(&ann, dir, after, limit).await.page;
            after = reply.entries.last().map(|entry| entry.name.clone());
            for entry in reply.entries {
                *seen.entry(entry.name).or_default() += 1;
            }
            if reply.is_last {
                break;
            }
            // One before and one behind the place where the listing is, and that place itself.
            let place = after.clone().unwrap().to_string();
            let place = &place[..place.len().min(5)];
            let end = format!("{limit}-{round}");
            for at in [format!("a{end}"), format!("{place}+{end}"), format!("z{end}")] {
                ann.symlink(dir, &at, "x").await.unwrap();
                if round % 2 == 0 {
                    ann.unlink(dir, &at).await.unwrap();
                }
            }
        }
        let stayed = (0..ENTRIES).map(|number| name(&format!("f{number:04}")));
        assert!(stayed.into_iter().all(|name| seen[&name] == 1));
        assert!(seen.values().all(|times| *times == 1));
    }
}

#[tokio::test]
async fn a_page_carries_attributes_and_the_version_they_belong_to() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let file = ann.file(dir, "f", 0o644).await.unwrap().attr.fid;
    let before = page(&ann, dir, None, 10).await;
    assert_eq!(before.page.entries[0].attr, ann.getattr(file).await.unwrap());
    assert_eq!(before.page.version, ann.getattr(dir).await.unwrap().dir_version);
    ann.chmod(file, 0o600).await.unwrap();
    let after = page(&ann, dir, None, 10).await;
    assert_ne!(after.page.version, before.page.version);
    assert_eq!(after.page.entries[0].attr.mode, 0o600);
}

#[tokio::test]
async fn names_in_other_directories_are_not_listed() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let one = ann.mkdir(cell.root, "one", 0o755).await.unwrap().attr.fid;
    let two = ann.mkdir(cell.root, "two", 0o755).await.unwrap().attr.fid;
    ann.file(two, "\u{1}", 0o644).await.unwrap();
    ann.file(cell.root, "\u{7f}", 0o644).await.unwrap();
    assert!(page(&ann, one, None, 10).await.page.entries.is_empty());
    assert_eq!(page(&ann, two, None, 10).await.page.entries.len(), 1);
    assert_eq!(page(&ann, cell.root, None, 10).await.page.entries.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_never_rests_is_listed_all_the_same() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let dir = full(&ann).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let busy = tokio::spawn({
        let (ann, is_done) = (ann.clone(), is_done.clone());
        async move {
            let mut rounds = 0;
            while !is_done.load(Ordering::Relaxed) {
                ann.symlink(dir, "busy", "x").await.unwrap();
                ann.unlink(dir, "busy").await.unwrap();
                rounds += 1;
            }
            rounds
        }
    });
    let reader = cell.user(2, 1000).await;
    let mut after = None;
    let mut count = 0;
    loop {
        let reply = page(&reader, dir, after, 4096).await.page;
        count += reply.entries.iter().filter(|entry| entry.name != name("busy")).count();
        after = reply.entries.last().map(|entry| entry.name.clone());
        if reply.is_last {
            break;
        }
    }
    is_done.store(true, Ordering::Relaxed);
    assert!(busy.await.unwrap() > 0);
    assert_eq!(count, ENTRIES);
}

#[tokio::test]
async fn changed_attributes_alone_do_not_restart_a_listing() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let dir = ann.mkdir(cell.root, "d", 0o755).await.unwrap().attr.fid;
    let file = ann.file(dir, "f", 0o644).await.unwrap().attr.fid;
    let row = |cell: &Cell| {
        let store = cell.volume.store.clone();
        async move { store.read(move |txn| crate::directory::rows::inode(txn, dir)).await.unwrap() }
    };
    let before = row(&cell).await.entries_version;
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    cell.directory.setattr(ann.context(), ChangeAttr { fid: file, set }).await.unwrap();
    assert_eq!(row(&cell).await.entries_version, before);
}
