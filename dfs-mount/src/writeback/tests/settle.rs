//! Ops whose answer the server itself has forgotten: it knows that they were done, not as what.

use dfs_proto::version::Sequence;

use super::replay::{Killed, killed_at};
use super::start;
use crate::testing::fake_cell::{FakeCell, NODES};
use crate::writeback::failpoint::Point;

fn forget_answers(cell: &FakeCell) {
    let mut cell = cell.cell();
    cell.ledger.values_mut().flatten().for_each(|reply| reply.sequence = Sequence::default());
}

#[tokio::test]
async fn a_store_whose_version_is_forgotten_is_the_base_of_the_next_change() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterStore).await;
    forget_answers(&cell);
    let client = start(&dir, &cell).await;
    assert_eq!(client.writeback.outbox(), []);
    assert_eq!(client.cache.clean(fid).await.unwrap().version, cell.version(fid));
    let working = client.open_write(fid).await.unwrap();
    working.write_at(0, b"last").unwrap();
    client.close(working).await.unwrap();
    assert_eq!(cell.content(fid, NODES[0]), b"last");
}

#[tokio::test]
async fn a_store_whose_version_is_forgotten_gives_way_to_a_change_that_came_after() {
    let Killed { cell, dir, fid, .. } = killed_at(Point::AfterStore).await;
    forget_answers(&cell);
    cell.write_as_other(fid, b"other");
    let client = start(&dir, &cell).await;
    assert_eq!(client.writeback.outbox(), [], "it was stored: nothing is owed");
    assert_eq!(client.read(fid).await.unwrap(), b"other");
}
