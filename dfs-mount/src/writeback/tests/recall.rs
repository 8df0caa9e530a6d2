//! Write locks between two clients.

use std::sync::Arc;

use dfs_proto::directory::{LockWait, OpenAccess};
use dfs_proto::id::FileId;

use super::{World, start};
use crate::testing::fake_cell::NODES;

/// Waits until the client has judged every recall that was sent so far. It judges them in order,
/// so one of a lock that nobody uses, the answer, comes back after all that went back before it.
async fn recalls_are_judged(world: &World) -> FileId {
    let idle = world.client.put("idle", b"x").await.unwrap();
    world.cell.recall(idle);
    world.cell.until(|cell| cell.yields.iter().any(|(fid, _)| *fid == idle)).await;
    idle
}

fn yielded(world: &World) -> Vec<FileId> {
    world.cell.cell().yields.iter().map(|(fid, _)| *fid).collect()
}

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
    world.cell.until(|cell| cell.call_count("directory.open") >= 2).await;
    let idle = recalls_are_judged(&world).await;
    assert_eq!(yielded(&world), [idle]);
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
    let idle = recalls_are_judged(&world).await;
    assert_eq!(yielded(&world), [idle]);
    drop(intent);
    world.cell.until(|cell| cell.yields.len() == 2).await;
    assert_eq!(yielded(&world), [idle, fid]);
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
