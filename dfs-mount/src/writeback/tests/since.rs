//! Since when a change waits.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::clock::{Clock, ManualClock};

use super::fs_error;
use crate::testing::client::TestClient;
use crate::testing::fake_cell::FakeCell;
use crate::writeback::OutboxState;

async fn start(dir: &tempfile::TempDir, cell: &FakeCell, clock: &ManualClock) -> TestClient {
    TestClient::start(dir.path(), Arc::new(cell.clone()), Arc::new(clock.clone())).await
}

/// Lets the background try again, in vain.
async fn retry(client: &TestClient, cell: &FakeCell, clock: &ManualClock) {
    let tried = cell.call_count("file.store");
    clock.advance(Duration::from_secs(600));
    let has_tried = async {
        while cell.call_count("file.store") == tried || !is_unsent(client) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), has_tried).await.unwrap();
}

fn is_unsent(client: &TestClient) -> bool {
    client.writeback.outbox().first().is_some_and(|item| item.state == OutboxState::Unsent)
}

fn since(client: &TestClient) -> Timestamp {
    let [item] = &client.writeback.outbox()[..] else { panic!("one item") };
    item.since
}

#[tokio::test]
async fn a_change_waits_since_it_was_closed_however_often_it_was_tried() {
    let clock = ManualClock::default();
    let cell = FakeCell::new(Arc::new(clock.clone()));
    let dir = tempfile::tempdir().unwrap();
    let client = start(&dir, &cell, &clock).await;
    let working = client.create("a").await.unwrap();
    let fid = working.fid();
    working.write_at(0, b"new").unwrap();
    (0..100).for_each(|_| cell.refuse("file.store", FsError::AccessDenied));
    clock.advance(Duration::from_secs(100));
    let closed = clock.wall();
    assert_eq!(fs_error(client.close(working).await), FsError::AccessDenied);
    assert_eq!(since(&client), closed);
    retry(&client, &cell, &clock).await;
    retry(&client, &cell, &clock).await;
    assert_eq!(since(&client), closed);

    client.kill().await;
    let client = start(&dir, &cell, &clock).await;
    retry(&client, &cell, &clock).await;
    assert_eq!(since(&client), closed, "after a restart");

    let working = client.open_write(fid).await.unwrap();
    working.write_at(0, b"newer").unwrap();
    clock.advance(Duration::from_secs(100));
    let closed_again = clock.wall();
    fs_error(client.close(working).await);
    assert_eq!(since(&client), closed_again, "another change");
}
