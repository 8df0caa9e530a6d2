//! Write locks between two clients.

use std::sync::Arc;

use dfs_proto::directory::{LockWait, OpenAccess};

use super::{World, start, until};
use crate::testing::fake_cell::NODES;

#[tokio::test]
async fn a_lock_that_is_merely_kept_goes_to_the_next_writer_at_once() {
    let world = World::new().await;
    let fid = world.client.put("a", b"one").await.unwrap();
    assert!(world.cell.cell().yields.is_empty());
    let other_dir = tempfile::tempdir().unwrap();
    let other = start(&other_dir, &world.cell).await;
    let working = other.open_write(fid).await.unwrap();
    working.write_at(0, b"two").unwrap();
    other.close(working).await.unwrap();
    assert_eq!(world.client.read(fid).await.unwrap(), b"two");
    assert_eq!(world.cell.cell().yields.len(), 1);
}

#[tokio::test]
async fn a_lock_in_use_goes_to_the_next_writer_after_the_last_close() {
    let world = World::new().await;
    let fid = world.client.put("a", b"one").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"two").unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let other = Arc::new(start(&other_dir, &world.cell).await);
    let opening = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.open_write(fid).await.map(|working| working.base()) }
    });
    until(|| world.cell.call_count("directory.open") >= 2).await;
    assert!(world.cell.cell().yields.is_empty());
    world.client.close(working).await.unwrap();
    assert_eq!(opening.await.unwrap().unwrap(), world.cell.version(fid));
    assert_eq!(other.read(fid).await.unwrap(), b"two");
}

#[tokio::test]
async fn a_recall_during_an_open_for_writing_waits_for_its_close() {
    let world = World::new().await;
    let fid = world.client.put("a", b"one").await.unwrap();
    let intent = world.client.writeback.intend(fid).await;
    world.cell.recall(fid);
    let access = OpenAccess::Write { wait: LockWait::No, read: true };
    world.client.ask_open(fid, access, None).await.unwrap();
    // The recall came before the open was answered: were it obeyed, it would be by now or soon.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(world.cell.cell().yields.is_empty());
    drop(intent);
    assert!(world.client.writeback.working(fid).is_none());
}

#[tokio::test]
async fn a_change_that_cannot_be_sent_for_good_does_not_keep_the_lock_from_others() {
    let world = World::new().await;
    let fid = world.client.put("a", b"one").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    working.write_at(0, b"two").unwrap();
    world.cell.refuse("file.store", dfs_proto::FsError::AccessDenied);
    assert!(world.client.close(working).await.is_err());
    let other_dir = tempfile::tempdir().unwrap();
    let other = start(&other_dir, &world.cell).await;
    let working = other.open_write(fid).await.unwrap();
    other.close(working).await.unwrap();
    let drained = world.client.writeback.drain(std::time::Duration::from_secs(10), |_| {}).await;
    assert_eq!(drained.unsent, []);
    assert_eq!(world.cell.content(fid, NODES[0]), b"two");
}
