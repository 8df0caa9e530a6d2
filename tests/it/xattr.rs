use dfs_mount::vfs::{Change, NewXattr};
use dfs_proto::attr::SetAttr;
use dfs_proto::directory::XattrRule;
use dfs_proto::xattr::{XattrName, XattrValue};

use super::support::Cell;
use super::*;

fn name(text: &str) -> XattrName {
    XattrName::parse(text.as_bytes()).unwrap()
}

fn new(text: &str, value: &[u8]) -> NewXattr {
    let value = XattrValue::parse(value).unwrap();
    NewXattr { name: name(text), value, rule: XattrRule::Any }
}

async fn get(vfs: &Vfs, caller: &Caller, nodeid: u64, text: &str) -> Result<Vec<u8>, Error> {
    let value = vfs.getxattr(caller, nodeid, name(text)).await?;
    Ok(value.as_bytes().to_vec())
}

async fn list(vfs: &Vfs, nodeid: u64) -> Vec<String> {
    let names = vfs.listxattr(&root(), nodeid).await.unwrap();
    names.iter().map(ToString::to_string).collect()
}

fn is(answer: &Result<impl Sized, Error>, expected: &FsError) -> bool {
    matches!(answer, Err(Error::Fs(error)) if error == expected)
}

fn user(uid: u32) -> Caller {
    Caller { identity: Identity { uid, gid: uid, groups: vec![] }, pid: 0 }
}

/// X1: "What is set, replaced or removed is seen by everybody at return".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extended_attribute_is_seen_by_other_clients_when_it_is_set() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let here = put(&a.vfs, "file", b"abc").await;
    let there = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().nodeid;
    for value in [&b"one"[..], b"", b"three"] {
        a.vfs.setxattr(&root(), here.nodeid, new("user.a", value)).await.unwrap();
        assert_eq!(get(&b.vfs, &root(), there, "user.a").await.unwrap(), value);
        assert_eq!(list(&b.vfs, there).await, ["user.a"]);
    }
    b.vfs.removexattr(&root(), there, name("user.a")).await.unwrap();
    let gone = get(&a.vfs, &root(), here.nodeid, "user.a").await;
    assert!(is(&gone, &FsError::NoAttribute), "{gone:?}");
    assert_eq!(list(&a.vfs, here.nodeid).await, [""; 0]);
    assert_eq!(read(&b.vfs, "file").await, b"abc");
}

/// X5: "That an inode has none is one of its attributes".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_answers_that_an_inode_has_no_extended_attributes() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let entry = put(&a.vfs, "file", b"abc").await;
    let thread = Caller { pid: 7, ..root() };
    let asked = || a.rpc_count("directory.list_xattr") + a.rpc_count("directory.get_xattr");
    // A look-up answers for a few milliseconds, which on a busy machine may be over.
    let mut is_answered_by_lookup = false;
    for _ in 0..1000 {
        let before = asked();
        a.vfs.lookup(&thread, at(ROOT, "file")).await.unwrap();
        assert!(a.vfs.listxattr(&thread, entry.nodeid).await.unwrap().is_empty());
        a.vfs.lookup(&thread, at(ROOT, "file")).await.unwrap();
        let absent = get(&a.vfs, &thread, entry.nodeid, "user.a").await;
        assert!(is(&absent, &FsError::NoAttribute));
        is_answered_by_lookup |= asked() == before;
        if is_answered_by_lookup {
            break;
        }
    }
    assert!(is_answered_by_lookup);
    let before = asked();
    a.vfs.lookup(&thread, at(ROOT, "file")).await.unwrap();
    let there = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().nodeid;
    b.vfs.setxattr(&root(), there, new("user.a", b"1")).await.unwrap();
    let other = Caller { pid: 8, ..root() };
    assert_eq!(get(&a.vfs, &other, entry.nodeid, "user.a").await.unwrap(), b"1");
    assert_eq!(asked(), before + 1, "another thread asks");
    a.vfs.lookup(&thread, at(ROOT, "file")).await.unwrap();
    assert_eq!(get(&a.vfs, &thread, entry.nodeid, "user.a").await.unwrap(), b"1");
    assert_eq!(asked(), before + 2, "what there is must be asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_attributes_of_a_file_being_made_are_those_of_the_file() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    a.vfs.write(handle, WriteTo::Offset(0), b"abc", false).unwrap();
    let set = SetAttr { mode: Some(0o640), uid: Some(7), ..SetAttr::default() };
    let change = Change { set, size: None };
    let before = a.vfs.setattr(&root(), nodeid, Some(handle), change).await.unwrap().attr;
    let asked = a.rpc_count("directory.setattr");
    a.vfs.setxattr(&root(), nodeid, new("user.a", b"1")).await.unwrap();
    assert_eq!(a.rpc_count("directory.setattr"), asked, "root's rights do not depend on a mode");
    let attr = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr;
    assert_eq!((attr.mode, attr.uid, attr.size), (0o640, 7, 3), "what waits is still seen here");
    assert_eq!(attr.mtime, before.mtime);
    let there = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().nodeid;
    assert_eq!(get(&b.vfs, &root(), there, "user.a").await.unwrap(), b"1", "before the close");
    close(&a.vfs, handle).await;
    let closed = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr;
    assert_eq!((closed.mode, closed.uid, closed.mtime), (0o640, 7, before.mtime));
    assert_eq!(get(&b.vfs, &root(), there, "user.a").await.unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_that_waits_for_the_first_commit_judges_extended_attributes() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let mode = |mode| {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        Change { set, size: None }
    };
    a.vfs.setattr(&root(), ROOT, None, mode(0o777)).await.unwrap();
    let how = CreateHow { mode: 0o644, exclusive: true, open: WRITE };
    let maker = user(7);
    let created = a.vfs.create(&maker, at(ROOT, "file"), how).await.unwrap();
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    a.vfs.setxattr(&maker, nodeid, new("user.a", b"1")).await.unwrap();
    a.vfs.setattr(&maker, nodeid, Some(handle), mode(0o400)).await.unwrap();
    let refused = get(&a.vfs, &user(8), nodeid, "user.a").await;
    assert!(is(&refused, &FsError::AccessDenied), "{refused:?}");
    let refused = a.vfs.setxattr(&maker, nodeid, new("user.a", b"2")).await;
    assert!(is(&refused, &FsError::AccessDenied), "{refused:?}");
    assert_eq!(get(&a.vfs, &maker, nodeid, "user.a").await.unwrap(), b"1");
    close(&a.vfs, handle).await;
}

/// X6: "A removed file that is still open has none, and none can be set on it".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_file_that_is_open_has_no_extended_attributes_and_is_never_stale() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let nodeid = put(&a.vfs, "file", b"abc").await.nodeid;
    a.vfs.setxattr(&root(), nodeid, new("user.a", b"1")).await.unwrap();
    let reader = open(&a.vfs, "file", READ).await;
    b.vfs.unlink(&root(), at(ROOT, "file")).await.unwrap();
    let absent = get(&a.vfs, &root(), nodeid, "user.a").await;
    assert!(is(&absent, &FsError::NoAttribute), "{absent:?}");
    assert_eq!(list(&a.vfs, nodeid).await, [""; 0]);
    for refused in [
        a.vfs.setxattr(&root(), nodeid, new("user.a", b"2")).await,
        a.vfs.removexattr(&root(), nodeid, name("user.a")).await,
    ] {
        assert!(is(&refused, &FsError::NotFound), "{refused:?}");
    }
    a.vfs.release(reader.handle).await.unwrap();
    let stale = get(&a.vfs, &root(), nodeid, "user.a").await;
    assert!(is(&stale, &FsError::Stale), "the kernel looks the path up again: {stale:?}");
}
