//! Files that two clients have open for writing.

use super::{World, start};
use crate::cache::CleanFile;
use crate::testing::client::read_file;
use crate::writeback::Working;

/// One client has the file open and unchanged, at the version before another one's.
struct Shared {
    world: World,
    working: Working,
    newest: CleanFile,
    _other_dir: tempfile::TempDir,
}

impl Shared {
    async fn new() -> Shared {
        let world = World::new().await;
        let fid = world.client.put("a", b"one").await.unwrap();
        let working = world.client.open_write(fid).await.unwrap();
        let other_dir = tempfile::tempdir().unwrap();
        let other = start(&other_dir, &world.cell).await;
        let theirs = other.open_write(fid).await.unwrap();
        theirs.write_at(3, b", two").unwrap();
        other.close(theirs).await.unwrap();
        let newest = other.cache.clean(fid).await.unwrap();
        Shared { world, working, newest, _other_dir: other_dir }
    }
}

#[tokio::test]
async fn a_clean_copy_gives_its_lock_away_while_it_is_open_and_is_renewed_in_place() {
    let Shared { world, working, newest, .. } = Shared::new().await;
    assert!(!working.has_lock() && working.hold().is_none());
    assert_eq!(read_file(working.file()), b"one");
    let version = newest.version;
    assert!(world.client.writeback.refresh(&working, newest).await.unwrap());
    assert_eq!((working.base(), working.is_dirty()), (version, false));
    assert_eq!(read_file(working.file()), b"one, two");
    let fid = working.fid();
    world.client.close(working).await.unwrap();
    assert_eq!(world.client.cache.clean(fid).await.unwrap().version, version);
}

#[tokio::test]
async fn a_renewal_that_breaks_off_is_made_whole_by_the_next() {
    let Shared { world, working, newest, .. } = Shared::new().await;
    let writeback = &world.client.writeback;
    let before = working.base();
    // Once more after making room.
    world.client.cache.refuse_writes(2);
    assert!(writeback.refresh(&working, newest.clone()).await.is_err());
    assert_eq!((working.base(), working.is_dirty()), (before, false));
    assert!(writeback.refresh(&working, newest).await.unwrap());
    assert_eq!(read_file(working.file()), b"one, two");
}

#[tokio::test]
async fn what_a_renewal_left_half_done_is_never_taken_for_a_version() {
    let Shared { world, working, newest, .. } = Shared::new().await;
    world.client.cache.refuse_writes(2);
    assert!(world.client.writeback.refresh(&working, newest).await.is_err());
    let fid = working.fid();
    world.client.close(working).await.unwrap();
    assert!(world.client.cache.clean(fid).await.is_none());
    assert!(world.client.writeback.working(fid).is_none());
}

/// As a store to a mapping.
#[tokio::test]
async fn what_was_stored_past_us_without_the_lock_is_a_conflict() {
    let Shared { world, working, newest, .. } = Shared::new().await;
    working.mark_dirty();
    assert!(!world.client.writeback.refresh(&working, newest).await.unwrap());
    assert!(working.is_detached());
    assert_eq!(read_file(working.file()), b"one", "nothing is mixed in");
}
