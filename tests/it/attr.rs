use dfs_mount::vfs::{Change, NodeHow};
use dfs_proto::attr::{FileKind, SetAttr, SetTime, Timestamp};

use super::support::Cell;
use super::*;

fn size(size: u64) -> Change {
    Change { size: Some(size), ..Change::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stat_of_a_file_being_written_shows_what_was_written() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    a.vfs.write(handle, WriteTo::Offset(10), b"x", false).unwrap();
    assert_eq!(a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr.size, 11);
    let found = a.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
    assert_eq!((found.nodeid, found.attr.size), (nodeid, 11));
    let b = cell.client(true).await;
    let elsewhere = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
    assert_eq!(elsewhere.attr.size, 0, "not before close");
    close(&a.vfs, handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fstat_of_an_open_file_that_was_removed_has_no_names() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    put(&a.vfs, "file", b"abc").await;
    let reader = open(&a.vfs, "file", READ).await;
    a.vfs.unlink(&root(), at(ROOT, "file")).await.unwrap();
    let gone = a.vfs.lookup(&root(), at(ROOT, "file")).await;
    assert!(matches!(gone, Err(Error::Fs(FsError::NotFound))));
    let attr = a.vfs.getattr(&root(), reader.nodeid, None).await.unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 3));
    assert_eq!(content(&a.vfs, reader.handle), b"abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_file_can_be_written_and_closed() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let created = create(&a.vfs, "file").await;
    let handle = created.opened.handle;
    a.vfs.unlink(&root(), at(ROOT, "file")).await.unwrap();
    a.vfs.write(handle, WriteTo::Offset(0), b"abc", false).unwrap();
    let attr = a.vfs.getattr(&root(), created.entry.nodeid, None).await.unwrap().attr;
    assert_eq!((attr.nlink, attr.size), (0, 3));
    a.vfs.fsync(&root(), handle).await.unwrap();
    close(&a.vfs, handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_by_path_is_committed_when_it_returns() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let entry = put(&a.vfs, "file", b"abcdef").await;
    let cut = a.vfs.setattr(&root(), entry.nodeid, None, size(2)).await.unwrap();
    assert_eq!(cut.attr.size, 2);
    assert_eq!(read(&b.vfs, "file").await, b"ab");
    a.vfs.setattr(&root(), entry.nodeid, None, size(4)).await.unwrap();
    assert_eq!(read(&b.vfs, "file").await, b"ab\0\0");
    a.vfs.setattr(&root(), entry.nodeid, None, size(0)).await.unwrap();
    assert_eq!(read(&b.vfs, "file").await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_through_a_handle_travels_with_the_close() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"abcdef").await;
    let writer = open(&a.vfs, "file", WRITE).await;
    let handle = Some(writer.handle);
    let cut = a.vfs.setattr(&root(), writer.nodeid, handle, size(3)).await.unwrap();
    assert_eq!(cut.attr.size, 3);
    assert_eq!(read(&b.vfs, "file").await, b"abcdef");
    close(&a.vfs, writer.handle).await;
    assert_eq!(read(&b.vfs, "file").await, b"abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_set_while_writing_are_the_files_times_after_close() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    a.vfs.write(handle, WriteTo::Offset(0), b"x", false).unwrap();
    let mtime = Timestamp::new(1_000_000_000, 123_456_789);
    let atime = Timestamp::new(1_100_000_000, 0);
    let set = SetAttr {
        mtime: Some(SetTime::At(mtime)),
        atime: Some(SetTime::At(atime)),
        ..SetAttr::default()
    };
    let change = Change { set, size: None };
    let entry = a.vfs.setattr(&root(), nodeid, Some(handle), change).await.unwrap();
    assert_eq!((entry.attr.mtime, entry.attr.atime), (mtime, atime));
    close(&a.vfs, handle).await;
    let seen = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr;
    assert_eq!((seen.mtime, seen.atime, seen.size), (mtime, atime, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_for_writing_and_closing_changes_nothing() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let before = put(&a.vfs, "file", b"abc").await;
    let writer = open(&a.vfs, "file", WRITE).await;
    let open_attr = a.vfs.getattr(&root(), writer.nodeid, None).await.unwrap().attr;
    assert_eq!(open_attr.mtime, before.attr.mtime);
    close(&a.vfs, writer.handle).await;
    let after = a.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
    assert_eq!(after.attr, before.attr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_by_somebody_unprivileged_clears_set_id_bits() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let entry = put(&a.vfs, "file", b"abc").await;
    let set = SetAttr { mode: Some(0o4755), ..SetAttr::default() };
    a.vfs.setattr(&root(), entry.nodeid, None, Change { set, size: None }).await.unwrap();
    let writer = open(&a.vfs, "file", WRITE).await;
    a.vfs.write(writer.handle, WriteTo::Offset(0), b"X", true).unwrap();
    let shown = a.vfs.getattr(&root(), writer.nodeid, None).await.unwrap().attr.mode;
    assert_eq!(shown, 0o755);
    close(&a.vfs, writer.handle).await;
    let seen = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr.mode;
    assert_eq!(seen, 0o755);
}

/// W7: "The modification time is taken when data is written and does not move when it reaches the
/// server."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_modification_time_is_that_of_the_write_and_not_of_the_commit() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    a.vfs.write(handle, WriteTo::Offset(0), b"x", false).unwrap();
    let written = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr.mtime;
    // A file written now has a later time, so a commit now would show.
    for number in 0.. {
        if put(&a.vfs, &format!("later{number}"), b"x").await.attr.mtime > written {
            break;
        }
        assert!(number < 1000, "time stands still");
    }
    a.vfs.fsync(&root(), handle).await.unwrap();
    let fsynced = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr;
    assert_eq!((fsynced.mtime, fsynced.size), (written, 1));
    close(&a.vfs, handle).await;
    for client in [&a, &b] {
        let closed = client.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr;
        assert_eq!(closed.mtime, written);
    }
}

/// W8: "A file that is removed while it is open on this client can be read and written through its
/// handles until they are closed."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_removed_while_it_is_open_is_read_and_written_until_it_is_closed() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    for (name, remover) in [("removed_here", &a), ("removed_elsewhere", &b)] {
        put(&a.vfs, name, b"old").await;
        let writer = open(&a.vfs, name, WRITE).await;
        let reader = open(&a.vfs, name, READ).await;
        remover.vfs.unlink(&root(), at(ROOT, name)).await.unwrap();
        assert_eq!(content(&a.vfs, reader.handle), b"old", "{name}");
        a.vfs.write(writer.handle, WriteTo::End, b" and new", false).unwrap();
        assert_eq!(content(&a.vfs, reader.handle), b"old and new", "{name}");
        close(&a.vfs, writer.handle).await;
        assert_eq!(content(&a.vfs, reader.handle), b"old and new", "{name}");
        a.vfs.release(reader.handle).await.unwrap();
        let gone = a.vfs.lookup(&root(), at(ROOT, name)).await;
        assert!(matches!(gone, Err(Error::Fs(FsError::NotFound))), "{name}: {gone:?}");
    }
    assert_eq!(a.vfs.counts().1, 0);
}

/// W8: "... and its attributes are changed".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_of_a_removed_file_that_is_open_are_changed_here() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    for (name, how) in [("reader", READ), ("writer", WRITE)] {
        put(&a.vfs, name, b"abc").await;
        let opened = open(&a.vfs, name, how).await;
        b.vfs.unlink(&root(), at(ROOT, name)).await.unwrap();
        let nodeid = opened.nodeid;
        let set = rights(Some(0o6755), Some(7), Some(8));
        a.vfs.setattr(&root(), nodeid, None, set).await.unwrap();
        let owner = Caller { identity: Identity { uid: 7, gid: 7, groups: vec![] }, ..root() };
        let long_ago = Timestamp::new(1_000_000_000, 1);
        let set = SetAttr { mtime: Some(SetTime::At(long_ago)), ..SetAttr::default() };
        a.vfs.setattr(&owner, nodeid, None, Change { set, size: None }).await.unwrap();
        let attr = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr;
        let seen = (attr.mode, attr.uid, attr.gid, attr.nlink, attr.mtime);
        assert_eq!(seen, (0o6755, 7, 8, 0, long_ago), "{name}");
        a.vfs.setattr(&owner, nodeid, None, rights(Some(0o2711), None, None)).await.unwrap();
        let given = a.vfs.setattr(&root(), nodeid, None, rights(None, Some(9), None)).await;
        assert_eq!(given.unwrap().attr.mode, 0o711, "not its group; set-id bits go with the owner");
        a.vfs.release(opened.handle).await.unwrap();
        let gone = a.vfs.setattr(&root(), nodeid, None, rights(Some(0o600), None, None)).await;
        assert!(matches!(gone, Err(Error::Fs(FsError::Stale))), "{name}: {gone:?}");
    }
}

/// What waited for a commit is kept if the commit finds that the file was removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_that_waits_survives_an_fsync_of_the_removed_file() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    a.vfs.write(handle, WriteTo::Offset(0), b"abc", false).unwrap();
    a.vfs.setattr(&root(), nodeid, None, rights(Some(0o755), None, None)).await.unwrap();
    a.vfs.unlink(&root(), at(ROOT, "file")).await.unwrap();
    a.vfs.fsync(&root(), handle).await.unwrap();
    let attr = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr;
    assert_eq!((attr.mode, attr.nlink, attr.size), (0o755, 0, 3));
    close(&a.vfs, handle).await;
}

/// What a program holds without a name, and the kernel tells nobody that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_directories_and_fifos_are_changed_and_synced_as_if_they_were_there() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let directory = a.vfs.mkdir(&root(), at(ROOT, "dir"), 0o755).await.unwrap().nodeid;
    let how = NodeHow { kind: FileKind::Fifo, mode: 0o644, rdev: 0 };
    let fifo = a.vfs.mknod(&root(), at(ROOT, "fifo"), how).await.unwrap().nodeid;
    a.vfs.rmdir(&root(), at(ROOT, "dir")).await.unwrap();
    a.vfs.unlink(&root(), at(ROOT, "fifo")).await.unwrap();
    for nodeid in [directory, fifo] {
        a.vfs.setattr(&root(), nodeid, None, rights(Some(0o700), None, None)).await.unwrap();
        let attr = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr;
        assert_eq!((attr.mode, attr.nlink), (0o700, 0));
    }
    a.vfs.fsync_dir(&root(), directory).await.unwrap();
}

/// W11: what is "seen by programs on the same client at once" is also what they are judged by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_that_a_new_file_was_given_may_set_its_times() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let owner = Caller { identity: Identity { uid: 7, gid: 7, groups: vec![] }, ..root() };
    let long_ago = Timestamp::new(1_000_000_000, 1);
    let set = SetAttr { mtime: Some(SetTime::At(long_ago)), ..SetAttr::default() };
    let times = Change { set, size: None };
    let created = create(&a.vfs, "kept").await;
    let nodeid = created.entry.nodeid;
    a.vfs.setattr(&root(), nodeid, None, rights(None, Some(7), None)).await.unwrap();
    let before = a.rpc_count("directory.setattr");
    a.vfs.setattr(&owner, nodeid, None, times.clone()).await.unwrap();
    assert_eq!(a.rpc_count("directory.setattr"), before, "both travel with the commit");
    // Not the maker, so that it has to be asked for; and judged by what waits.
    a.vfs.setattr(&owner, nodeid, None, rights(Some(0o640), None, None)).await.unwrap();
    close(&a.vfs, created.opened.handle).await;
    let attr = a.vfs.lookup(&root(), at(ROOT, "kept")).await.unwrap().attr;
    assert_eq!((attr.uid, attr.mode, attr.mtime), (7, 0o640, long_ago));
}

/// R4 of SEMANTICS.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_that_another_client_changed_are_seen_at_the_next_question() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let entry = put(&a.vfs, "file", b"abc").await;
    let questions = || a.rpc_count("directory.getattr");
    let mode = |mode| rights(Some(mode), None, None);
    for new_mode in [0o600, 0o640] {
        a.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
        let there = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
        b.vfs.setattr(&root(), there.nodeid, None, mode(new_mode)).await.unwrap();
        let before = questions();
        let seen = a.vfs.getattr(&root(), entry.nodeid, None).await.unwrap();
        assert_eq!((seen.attr.mode, questions()), (new_mode, before), "it was told");
    }
}

fn rights(mode: Option<u32>, uid: Option<u32>, gid: Option<u32>) -> Change {
    Change { set: SetAttr { mode, uid, gid, ..SetAttr::default() }, size: None }
}

/// W11 of SEMANTICS.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_and_mode_of_a_new_file_travel_with_its_first_commit() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, Some(created.opened.handle));
    a.vfs.write(created.opened.handle, WriteTo::Offset(0), b"abc", false).unwrap();
    let asked = a.rpc_count("directory.setattr");
    a.vfs.setattr(&root(), nodeid, handle, rights(None, Some(7), Some(8))).await.unwrap();
    let set = a.vfs.setattr(&root(), nodeid, handle, rights(Some(0o4711), None, None)).await;
    let attr = set.unwrap().attr;
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o4711, 7, 8), "seen here at once");
    close(&a.vfs, created.opened.handle).await;
    assert_eq!(a.rpc_count("directory.setattr"), asked);
    let attr = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr;
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (0o4711, 7, 8, 3));
    a.vfs.setattr(&root(), nodeid, None, rights(Some(0o600), None, None)).await.unwrap();
    assert_eq!(a.rpc_count("directory.setattr"), asked + 1, "a stored file is changed at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_the_first_commit_is_known_to_the_servers_before_another_opens_it() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, Some(created.opened.handle));
    a.vfs.setattr(&root(), nodeid, handle, rights(Some(0o600), Some(7), None)).await.unwrap();
    let identity = Identity { uid: 7, gid: 7, groups: vec![] };
    let owner = Caller { identity, pid: 0 };
    let opened = a.vfs.open(&owner, nodeid, READ).await.expect("it is theirs by now");
    a.vfs.release(opened.handle).await.unwrap();
    let identity = Identity { uid: 9, gid: 9, groups: vec![] };
    let refused = a.vfs.open(&Caller { identity, pid: 0 }, nodeid, READ).await;
    assert!(matches!(refused, Err(Error::Fs(FsError::AccessDenied))));
    close(&a.vfs, created.opened.handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_maker_may_not_set_on_a_new_file_is_refused_at_once() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let identity = Identity { uid: 7, gid: 7, groups: vec![8] };
    let maker = Caller { identity, pid: 0 };
    a.vfs.setattr(&root(), ROOT, None, rights(Some(0o777), None, None)).await.unwrap();
    let how = CreateHow { mode: 0o644, exclusive: true, open: WRITE };
    let created = a.vfs.create(&maker, at(ROOT, "file"), how).await.unwrap();
    let (nodeid, handle) = (created.entry.nodeid, Some(created.opened.handle));
    for change in [rights(None, Some(0), None), rights(None, None, Some(9))] {
        let refused = a.vfs.setattr(&maker, nodeid, handle, change).await;
        assert!(matches!(refused, Err(Error::Fs(FsError::NotPermitted))), "{refused:?}");
    }
    a.vfs.setattr(&maker, nodeid, handle, rights(Some(0o640), None, Some(8))).await.unwrap();
    close(&a.vfs, created.opened.handle).await;
    let attr = a.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().attr;
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o640, 7, 8));
}

/// Waits until a change now would get a later time than `time`: clocks of files move in ticks.
async fn a_tick_after(vfs: &Vfs, time: Timestamp) {
    for _ in 0..100_000 {
        let probe = tempfile::tempfile().unwrap();
        if mtime(&probe) > time && vfs.now() > time {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("time stands still");
}

fn mtime(file: &std::fs::File) -> Timestamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().unwrap();
    Timestamp::new(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap())
}

/// M1: "Every change of a file moves its time of change, also before it reaches the server."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_open_file_moves_its_time_of_change() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    let created = create(&a.vfs, "file").await;
    let (nodeid, handle) = (created.entry.nodeid, created.opened.handle);
    let mut before = created.entry.attr.ctime;
    let chmod = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let changes = [Some(size(7)), None, Some(Change { set: chmod, size: None }), Some(size(2))];
    for (number, change) in changes.into_iter().enumerate() {
        a_tick_after(&a.vfs, before).await;
        match change {
            Some(change) => {
                a.vfs.setattr(&root(), nodeid, Some(handle), change).await.unwrap();
            }
            None => a.vfs.write(handle, WriteTo::Offset(0), b"x", false).unwrap(),
        }
        let after = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr.ctime;
        assert!(after > before, "change {number}: {before:?}, {after:?}");
        before = after;
    }
    a_tick_after(&a.vfs, before).await;
    close(&a.vfs, handle).await;
    let committed = a.vfs.getattr(&root(), nodeid, None).await.unwrap().attr.ctime;
    assert!(committed >= before, "{before:?}, {committed:?}");
}
