use std::collections::BTreeSet;
use std::sync::Arc;

use dfs_proto::directory::RenameRule;

use super::support::Cell;
use super::*;

/// Everything a listing shows, `taken` entries at a time.
async fn list(vfs: &Vfs, handle: u64, taken: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let before = names.len();
        vfs.readdir(&root(), handle, cookie, |listed| {
            if names.len() == before + taken {
                return false;
            }
            names.push(String::from_utf8(listed.name.to_vec()).unwrap());
            cookie = listed.cookie;
            true
        })
        .await
        .unwrap();
        if names.len() == before {
            return names;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_shows_every_entry_once_however_it_is_read() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    for number in 0..30 {
        a.vfs.mkdir(&root(), at(ROOT, &format!("d{number:02}")), 0o755).await.unwrap();
    }
    let handle = a.vfs.opendir(ROOT).unwrap();
    for taken in [1, 7, 1000] {
        let names = list(&a.vfs, handle, taken).await;
        assert_eq!(names.len(), 32, "{names:?}");
        assert_eq!(names[..3], [".", "..", "d00"]);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 32);
    }
    a.vfs.releasedir(handle).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_over_removals_and_starts_anew_from_the_beginning() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    for name in ["a", "b", "c", "d"] {
        a.vfs.mkdir(&root(), at(ROOT, name), 0o755).await.unwrap();
    }
    let handle = a.vfs.opendir(ROOT).unwrap();
    let mut seen = Vec::new();
    let mut cookie = 0;
    while seen.last().map(String::as_str) != Some("b") {
        let (mut is_first, from) = (true, cookie);
        let sink = |listed: dfs_mount::vfs::Listed<'_>| {
            if std::mem::take(&mut is_first) {
                seen.push(String::from_utf8(listed.name.to_vec()).unwrap());
                cookie = listed.cookie;
                return true;
            }
            false
        };
        a.vfs.readdir(&root(), handle, from, sink).await.unwrap();
    }
    a.vfs.rmdir(&root(), at(ROOT, "a")).await.unwrap();
    a.vfs.rmdir(&root(), at(ROOT, "b")).await.unwrap();
    let mut rest = Vec::new();
    a.vfs
        .readdir(&root(), handle, cookie, |listed| {
            rest.push(String::from_utf8(listed.name.to_vec()).unwrap());
            true
        })
        .await
        .unwrap();
    assert_eq!(rest, ["c", "d"]);
    assert_eq!(list(&a.vfs, handle, 100).await, [".", "..", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_inodes_leave_the_table() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let made = a.vfs.mkdir(&root(), at(ROOT, "d"), 0o755).await.unwrap();
    a.vfs.lookup(&root(), at(ROOT, "d")).await.unwrap();
    assert_eq!(a.vfs.counts().0, 2);
    a.vfs.forget(made.nodeid, 2);
    assert_eq!(a.vfs.counts().0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rename_over_an_open_file_keeps_the_old_reader_working() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    put(&a.vfs, "target", b"old").await;
    put(&a.vfs, "source", b"new").await;
    let reader = open(&a.vfs, "target", READ).await;
    let (from, to) = (at(ROOT, "source"), at(ROOT, "target"));
    a.vfs.rename(&root(), from, to, RenameRule::Replace).await.unwrap();
    assert_eq!(content(&a.vfs, reader.handle), b"old");
    let attr = a.vfs.getattr(&root(), reader.nodeid, None).await.unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 3));
    assert_eq!(read(&a.vfs, "target").await, b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rename_rules_are_passed_on() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    put(&a.vfs, "x", b"x").await;
    put(&a.vfs, "y", b"y").await;
    let rename = |rule| {
        let vfs = a.vfs.clone();
        async move { vfs.rename(&root(), at(ROOT, "x"), at(ROOT, "y"), rule).await }
    };
    let refused = rename(RenameRule::NoReplace).await;
    assert!(matches!(refused, Err(Error::Fs(FsError::Exists))));
    rename(RenameRule::Exchange).await.unwrap();
    assert_eq!(read(&a.vfs, "x").await, b"y");
    assert_eq!(read(&a.vfs, "y").await, b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_name_one_inode_and_targets_are_asked_for_once() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let file = put(&a.vfs, "file", b"x").await;
    let other = a.vfs.link(&root(), file.nodeid, at(ROOT, "other")).await.unwrap();
    assert_eq!((other.nodeid, other.attr.nlink), (file.nodeid, 2));
    let link = a.vfs.symlink(&root(), at(ROOT, "link"), b"../any where").await.unwrap();
    for _ in 0..2 {
        assert_eq!(&*a.vfs.readlink(&root(), link.nodeid).await.unwrap(), b"../any where");
    }
    assert_eq!(a.rpc_count("directory.readlink"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_none_are_refused_here() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let long = a.vfs.lookup(&root(), at(ROOT, &"x".repeat(256))).await;
    assert!(matches!(long, Err(Error::Name(_))));
    let slash = a.vfs.mkdir(&root(), at(ROOT, "a/b"), 0o755).await;
    assert!(matches!(slash, Err(Error::Name(_))));
    let dot = a.vfs.lookup(&root(), at(ROOT, ".")).await.unwrap();
    assert_eq!(dot.nodeid, ROOT);
    let parent = a.vfs.lookup(&root(), at(ROOT, "..")).await.unwrap();
    assert_eq!(parent.nodeid, ROOT);
}

/// N2: "`O_CREAT | O_EXCL` succeeds for exactly one of all clients that try."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_clients_that_make_a_name_exclusively_exactly_one_succeeds() {
    const NAMES: usize = 64;
    let cell = Cell::start().await;
    let clients = [cell.client(true).await, cell.client(true).await, cell.client(true).await];
    let start = Arc::new(tokio::sync::Barrier::new(clients.len()));
    let racers = clients
        .each_ref()
        .map(|client| tokio::spawn(make_all(client.vfs.clone(), Arc::clone(&start), NAMES)));
    let mut makers = vec![0; NAMES];
    let mut winners = 0;
    for racer in racers {
        let made = racer.await.unwrap();
        winners += usize::from(!made.is_empty());
        made.into_iter().for_each(|number| makers[number] += 1);
    }
    assert_eq!(makers, [1; NAMES]);
    assert!(winners >= 2, "there was no race: one client made every name");
}

/// Tries to make each of `count` names, all at the same time as the other racers, and returns the
/// numbers of those that it made.
async fn make_all(vfs: Vfs, start: Arc<tokio::sync::Barrier>, count: usize) -> Vec<usize> {
    let mut made = Vec::new();
    for number in 0..count {
        start.wait().await;
        let how = CreateHow { mode: 0o644, exclusive: true, open: WRITE };
        match vfs.create(&root(), at(ROOT, &format!("name{number}")), how).await {
            Ok(created) => {
                close(&vfs, created.opened.handle).await;
                made.push(number);
            }
            Err(Error::Fs(FsError::Exists)) => {}
            Err(error) => panic!("name{number}: {error}"),
        }
    }
    made
}
