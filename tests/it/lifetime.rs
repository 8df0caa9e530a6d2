//! How long the kernel may use what it is told, and what is taken back before that.

use std::time::Duration;

use dfs_mount::session::told::{Told, What};
use dfs_mount::vfs::{Lifetimes, Options, TakeBack};
use dfs_proto::clock::ManualClock;
use dfs_proto::directory::RenameRule;
use futures_util::FutureExt;

use super::support::{Cell, options};
use super::*;

/// What a client uses of a lease that begins now. Source: `LEASE_USE_PERCENT` of `SESSION_LEASE`.
const LEASE: Duration = Duration::from_secs(9);

const NONE: Lifetimes = Lifetimes { name: Duration::ZERO, attr: Duration::ZERO };

fn caller(pid: u32) -> Caller {
    Caller { pid, ..root() }
}

/// Looks a name up until its directory is promised: the first questions may come before the stream.
async fn promised(vfs: &Vfs, name: &str) -> Entry {
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let entry = vfs.lookup(&root(), at(ROOT, name)).await.unwrap();
        if entry.lifetimes != NONE {
            return entry;
        }
        assert!(tokio::time::Instant::now() < patience, "nothing is promised");
        tokio::task::yield_now().await;
    }
}

/// The answer to a question that needs no server.
fn at_once<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().expect("it is answered from memory")
}

#[tokio::test]
async fn lifetimes_are_what_is_left_of_the_lease() {
    let cell = Cell::start().await;
    let clock = ManualClock::default();
    let client = cell.client_at(Arc::new(clock.clone()), false).await;
    put(&client.vfs, "f", b"content").await;
    let entry = promised(&client.vfs, "f").await;
    assert_eq!(entry.lifetimes, Lifetimes { name: LEASE, attr: LEASE });
    clock.advance(Duration::from_secs(4));
    let again = at_once(client.vfs.lookup(&root(), at(ROOT, "f"))).unwrap();
    let left = LEASE - Duration::from_secs(4);
    assert_eq!(again.lifetimes, Lifetimes { name: left, attr: left });
    let attr = at_once(client.vfs.getattr(&root(), entry.nodeid, None)).unwrap();
    assert_eq!(attr.lifetimes, Lifetimes { attr: left, ..NONE });
}

#[tokio::test]
async fn where_the_servers_judge_names_have_no_lifetime() {
    let cell = Cell::start().await;
    let how = Options { kernel_judges: false, ..options(false) };
    let client = cell.client_with(Arc::new(ManualClock::default()), how).await;
    put(&client.vfs, "f", b"").await;
    assert_eq!(promised(&client.vfs, "f").await.lifetimes, Lifetimes { attr: LEASE, ..NONE });
}

#[tokio::test]
async fn a_file_that_is_written_here_has_no_lifetimes_and_loses_those_it_had() {
    let cell = Cell::start().await;
    let client = cell.client_at(Arc::new(ManualClock::default()), false).await;
    put(&client.vfs, "f", b"old").await;
    let nodeid = promised(&client.vfs, "f").await.nodeid;
    client.vfs.take_stale_attrs();
    let opened = client.vfs.open(&root(), nodeid, WRITE).await.unwrap();
    assert_eq!(client.vfs.take_stale_attrs(), [nodeid]);
    let entry = client.vfs.lookup(&root(), at(ROOT, "f")).await.unwrap();
    assert_eq!(entry.lifetimes, NONE);
    close(&client.vfs, opened.handle).await;
    assert_eq!(promised(&client.vfs, "f").await.lifetimes.name, LEASE);
}

#[tokio::test]
async fn attributes_of_a_directory_have_a_lifetime_once_the_kernel_has_it() {
    let cell = Cell::start().await;
    let client = cell.client_at(Arc::new(ManualClock::default()), false).await;
    client.vfs.mkdir(&root(), at(ROOT, "d"), 0o755).await.unwrap();
    let entry = promised(&client.vfs, "d").await;
    assert_eq!(entry.lifetimes, Lifetimes { name: LEASE, ..NONE });
    let attr = client.vfs.getattr(&root(), entry.nodeid, None).await.unwrap();
    assert_eq!(attr.lifetimes.attr, LEASE);
}

#[tokio::test]
async fn an_open_by_a_name_whose_promise_has_lapsed_is_stale_once() {
    let cell = Cell::start().await;
    let clock = ManualClock::default();
    let client = cell.client_at(Arc::new(clock.clone()), false).await;
    put(&client.vfs, "f", b"content").await;
    let nodeid = promised(&client.vfs, "f").await.nodeid;
    let opened = client.vfs.open(&caller(7), nodeid, READ).await.unwrap();
    client.vfs.release(opened.handle).await.unwrap();
    // A machine that was suspended: the kernel's own clock for lifetimes stood still.
    clock.advance(LEASE);
    let refused = at_once(client.vfs.open(&caller(7), nodeid, READ));
    assert!(matches!(refused, Err(Error::Fs(FsError::Stale))), "{refused:?}");
    let opened = client.vfs.open(&caller(7), nodeid, READ).await.unwrap();
    client.vfs.release(opened.handle).await.unwrap();
}

/// What `keep` brings: the next break, in which a name of the root is told of.
async fn next_break(events: &mut tokio::sync::mpsc::Receiver<Told>, wanted: &str) -> Told {
    loop {
        let told = events.recv().await.expect("the session lives");
        let What::Break(broken) = &told.what else { continue };
        let mut names = broken.changes.iter().flat_map(|change| &change.names);
        if names.any(|(name, _)| name.as_bytes() == wanted.as_bytes()) {
            return told;
        }
    }
}

#[tokio::test]
async fn a_change_is_answered_when_what_others_hold_is_taken_back() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(false).await, cell.client(false).await);
    put(&a.vfs, "f", b"content").await;
    let nodeid = promised(&b.vfs, "f").await.nodeid;
    let mut events = b.vfs.keep();
    let who = root();
    let change = a.vfs.rename(&who, at(ROOT, "f"), at(ROOT, "g"), RenameRule::Replace);
    tokio::pin!(change);
    let told = tokio::select! {
        told = next_break(&mut events, "f") => told,
        result = &mut change => panic!("it was answered first: {result:?}"),
    };
    b.vfs.take_in(&told.what);
    assert!(b.vfs.take_stale_attrs().contains(&nodeid));
    // Until the name is dropped, an open that came by it is to look again.
    let refused = b.vfs.open(&caller(7), nodeid, READ).await;
    assert!(matches!(refused, Err(Error::Fs(FsError::Stale))), "{refused:?}");
    let names = b.vfs.next_stale_names().unwrap();
    let dropped: Vec<_> = names.names.iter().map(|it| (it.name.as_bytes(), it.way)).collect();
    assert_eq!((names.dir, dropped), (ROOT, vec![(&b"f"[..], TakeBack::Drop)]));
    assert!(b.vfs.taken_back().now_or_never().is_none(), "it is waited for");
    assert!(futures_util::poll!(&mut change).is_pending());
    b.vfs.names_taken_back(&names);
    b.vfs.taken_back().await;
    told.done.send(()).unwrap();
    change.await.unwrap();
}

#[tokio::test]
async fn a_change_of_content_takes_attributes_back_and_leaves_the_name() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(false).await, cell.client(false).await);
    put(&a.vfs, "f", b"content").await;
    let nodeid = promised(&b.vfs, "f").await.nodeid;
    // The kernel has it: it asks for it.
    b.vfs.getattr(&root(), nodeid, None).await.unwrap();
    let mut events = b.vfs.keep();
    let change = rewrite(&a.vfs, "f", b"newer");
    let taken = async {
        let told = next_break(&mut events, "f").await;
        b.vfs.take_in(&told.what);
        assert!(b.vfs.take_stale_attrs().contains(&nodeid));
        b.vfs.taken_back().now_or_never().expect("no name is to be dropped");
    };
    tokio::join!(change, taken);
    assert_eq!(b.vfs.lookup(&root(), at(ROOT, "f")).await.unwrap().attr.size, 5);
}

/// The kernel keeps one size for a node: while a handle shows the older version, the name must lead
/// to another node.
#[tokio::test]
async fn a_name_is_dropped_when_its_file_is_open_in_an_older_version() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(false).await, cell.client(false).await);
    put(&a.vfs, "f", b"content").await;
    let nodeid = promised(&b.vfs, "f").await.nodeid;
    let opened = b.vfs.open(&root(), nodeid, READ).await.unwrap();
    let mut events = b.vfs.keep();
    let change = rewrite(&a.vfs, "f", b"newer");
    let taken = async {
        let told = next_break(&mut events, "f").await;
        b.vfs.take_in(&told.what);
        let names = b.vfs.next_stale_names().unwrap();
        assert_eq!(names.names[0].way, TakeBack::Drop);
        b.vfs.names_taken_back(&names);
    };
    tokio::join!(change, taken);
    let fresh = b.vfs.lookup(&root(), at(ROOT, "f")).await.unwrap();
    assert_eq!((fresh.attr.size, fresh.nodeid == nodeid), (5, false));
    assert_eq!(content(&b.vfs, opened.handle), b"content");
    b.vfs.release(opened.handle).await.unwrap();
}
