use dfs_mount::vfs::Way;

use super::support::Cell;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_client_closed_another_reads() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"hello").await;
    assert_eq!(read(&b.vfs, "file").await, b"hello");
    rewrite(&b.vfs, "file", b"other").await;
    assert_eq!(read(&a.vfs, "file").await, b"other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_handles_of_a_client_share_one_working_copy() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    put(&a.vfs, "file", b"0000").await;
    let reader = open(&a.vfs, "file", READ).await;
    let writer = open(&a.vfs, "file", WRITE).await;
    let other = open(&a.vfs, "file", WRITE).await;
    a.vfs.write(writer.handle, WriteTo::Offset(0), b"11", false).unwrap();
    a.vfs.write(other.handle, WriteTo::Offset(2), b"22", false).unwrap();
    assert_eq!(content(&a.vfs, reader.handle), b"1122");
    let late = open(&a.vfs, "file", READ).await;
    assert_eq!(content(&a.vfs, late.handle), b"1122");
    assert_eq!((reader.nodeid, late.nodeid), (writer.nodeid, writer.nodeid));
    assert_eq!((reader.way, writer.way), (Way::Passthrough, Way::Beside));
    close(&a.vfs, writer.handle).await;
    a.vfs.write(other.handle, WriteTo::Offset(0), b"3", false).unwrap();
    close(&a.vfs, other.handle).await;
    assert_eq!(read(&cell.client(true).await.vfs, "file").await, b"3122");
}

/// R3: "A handle that was opened for reading goes on reading the version it opened when another
/// client replaces the content."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_reader_keeps_its_version_and_a_new_open_gets_the_newest() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    let before = put(&a.vfs, "file", b"old").await;
    let reader = open(&b.vfs, "file", READ).await;
    rewrite(&a.vfs, "file", b"newer").await;
    let late = open(&b.vfs, "file", READ).await;
    assert_eq!(content(&b.vfs, reader.handle), b"old");
    assert_eq!(content(&b.vfs, late.handle), b"newer");
    assert_ne!(late.nodeid, reader.nodeid);
    let old = b.vfs.getattr(&root(), reader.nodeid, Some(reader.handle)).await.unwrap();
    assert_eq!((old.attr.size, old.attr.mtime), (3, before.attr.mtime));
    assert_eq!(b.vfs.getattr(&root(), late.nodeid, None).await.unwrap().attr.size, 5);
    b.vfs.release(reader.handle).await.unwrap();
    b.vfs.release(late.handle).await.unwrap();
    let settled = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
    assert_eq!(settled.nodeid, reader.nodeid, "the number returns when nobody has it open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_that_skipped_the_lookup_is_stale_once() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"old").await;
    let reader = open(&b.vfs, "file", READ).await;
    rewrite(&a.vfs, "file", b"newer").await;
    let skipped = b.vfs.open(&root(), reader.nodeid, READ).await;
    assert!(matches!(skipped, Err(Error::Fs(FsError::Stale))), "{skipped:?}");
    let found = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap();
    let opened = b.vfs.open(&root(), found.nodeid, READ).await.unwrap();
    assert_eq!(content(&b.vfs, opened.handle), b"newer");
    assert_eq!(content(&b.vfs, reader.handle), b"old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_beside_an_old_reader_writes_the_newest_version() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"old").await;
    let reader = open(&b.vfs, "file", READ).await;
    rewrite(&a.vfs, "file", b"newer").await;
    let writer = open(&b.vfs, "file", WRITE).await;
    b.vfs.write(writer.handle, WriteTo::Offset(0), b"N", false).unwrap();
    close(&b.vfs, writer.handle).await;
    assert_eq!(content(&b.vfs, reader.handle), b"old");
    assert_eq!(read(&a.vfs, "file").await, b"Newer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_go_to_the_end_that_this_client_knows() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    put(&a.vfs, "log", b"a").await;
    let (one, two) = (open(&a.vfs, "log", WRITE).await, open(&a.vfs, "log", WRITE).await);
    let vfs = a.vfs.clone();
    let write = move |handle: u64, line: &'static [u8]| {
        let vfs = vfs.clone();
        tokio::task::spawn_blocking(move || {
            (0..200).for_each(|_| vfs.write(handle, WriteTo::End, line, false).unwrap());
        })
    };
    let (first, second) = (write(one.handle, b"one\n"), write(two.handle, b"two\n"));
    first.await.unwrap();
    second.await.unwrap();
    let text = content(&a.vfs, one.handle);
    assert_eq!(text.len(), 1 + 400 * 4, "no append overwrote another");
    close(&a.vfs, one.handle).await;
    close(&a.vfs, two.handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_client_waits_for_a_writer_or_is_told_at_once() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", b"0").await;
    let writer = open(&a.vfs, "file", WRITE).await;
    a.vfs.write(writer.handle, WriteTo::Offset(0), b"1", false).unwrap();
    let nodeid = b.vfs.lookup(&root(), at(ROOT, "file")).await.unwrap().nodeid;
    let busy = b.vfs.open(&root(), nodeid, OpenHow { nonblock: true, ..WRITE }).await;
    assert!(matches!(busy, Err(Error::Fs(FsError::LockBusy { .. }))), "{busy:?}");
    let vfs = b.vfs.clone();
    let waiter = tokio::spawn(async move { open(&vfs, "file", WRITE).await });
    close(&a.vfs, writer.handle).await;
    let opened = waiter.await.unwrap();
    assert_eq!(content(&b.vfs, opened.handle), b"1");
    close(&b.vfs, opened.handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_that_are_not_open_are_refused() {
    let cell = Cell::start().await;
    let a = cell.client(true).await;
    put(&a.vfs, "file", b"x").await;
    let reader = open(&a.vfs, "file", READ).await;
    let write = a.vfs.write(reader.handle, WriteTo::Offset(0), b"y", false);
    assert!(matches!(write, Err(Error::BadHandle)));
    a.vfs.release(reader.handle).await.unwrap();
    assert!(matches!(a.vfs.read(reader.handle, 0, &mut [0]), Err(Error::BadHandle)));
    assert!(matches!(a.vfs.release(reader.handle).await, Err(Error::BadHandle)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_opens_of_one_file_at_once_agree() {
    let cell = Cell::start().await;
    let (a, b) = (cell.client(true).await, cell.client(true).await);
    put(&a.vfs, "file", &[b'x'; 100_000]).await;
    let opens = (0..40).map(|number| {
        let vfs = b.vfs.clone();
        let how = if number % 4 == 0 { WRITE } else { READ };
        tokio::spawn(async move {
            let opened = open(&vfs, "file", how).await;
            assert_eq!(content(&vfs, opened.handle).len(), 100_000);
            close(&vfs, opened.handle).await;
        })
    });
    for open in opens.collect::<Vec<_>>() {
        open.await.unwrap();
    }
    assert_eq!(b.vfs.counts().1, 0);
}
