//! Opens for writing that meet a working copy of this client.

use dfs_proto::directory::{LockWait, OpenAccess};

use super::World;

#[tokio::test]
async fn an_open_that_waited_for_the_last_close_does_not_join_what_was_closed() {
    let world = World::new().await;
    let fid = world.client.put("a", b"base").await.unwrap();
    let working = world.client.open_write(fid).await.unwrap();
    let intent = world.client.writeback.intend(fid).await;
    let access = OpenAccess::Write { wait: LockWait::No, read: true };
    let reply = world.client.ask_open(fid, access, None).await.unwrap();
    let copy = std::sync::Arc::clone(&working.copy);
    let held = copy.right.lock().await;
    // Both wait for their turn, in this order.
    let release = world.client.writeback.release(working);
    let join = world.client.writeback.join(&intent, &reply);
    let both = async { tokio::join!(biased; release, join).1 };
    tokio::pin!(both);
    assert!(futures_util::poll!(&mut both).is_pending());
    drop(held);
    assert!(both.await.unwrap().is_none(), "the file is a cached version again");
    assert_eq!(world.client.cache.version(fid), Some(world.cell.version(fid)));
}
