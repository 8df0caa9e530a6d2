//! Mappings that outlive the last close.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::libc;

use super::*;
use crate::mapper::Mapper;
use crate::support::{eventually, run};

/// Whether the file can be opened for writing at once.
fn try_write(path: &Path) -> bool {
    match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
            false
        }
    }
}

/// W13: "A file stays open for writing as long as a shared mapping of it may be stored to."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_after_the_last_close_are_committed_when_the_mapping_ends() {
    let (_cell, a, b) = two_mounts().await;
    for (writer, other) in [(&a, &b), (&b, &a)] {
        let (write_path, other_path) = (writer.path().join("file"), other.path().join("file"));
        files(move || {
            fs::write(&write_path, [b'-'; 9000]).unwrap();
            let mut mapper = Mapper::of(&write_path);
            mapper.store(0, "first");
            mapper.store(8000, "second");
            assert!(!try_write(&other_path), "the mapping is a writer");
            // To a page that may have been committed since.
            mapper.store(0, "third");
            assert_eq!(&fs::read(&write_path).unwrap()[..6], b"third-", "seen at once here");
            mapper.end();
            eventually("the lock goes back", || try_write(&other_path).then_some(()));
            let bytes = fs::read(&other_path).unwrap();
            assert_eq!((&bytes[..6], &bytes[7999..8007]), (&b"third-"[..], &b"-second-"[..]));
            fs::remove_file(&write_path).unwrap();
        })
        .await;
    }
}

/// W13: "... and every ten seconds or so while it lasts."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_reach_others_while_the_mapping_lasts() {
    let (_cell, a, b) = two_mounts().await;
    for (writer, other) in [(&a, &b), (&b, &a)] {
        let (write_path, other_path) = (writer.path().join("file"), other.path().join("file"));
        files(move || {
            fs::write(&write_path, "..........").unwrap();
            let mut mapper = Mapper::of(&write_path);
            for word in ["one", "two"] {
                // The same page again: its time moves only because the last commit wrote it back.
                mapper.store(0, word);
                // Or the kernel takes half a minute to bring its pages to a daemon that serves.
                run(Command::new("sync").arg("--file-system").arg(write_path.parent().unwrap()));
                eventually(&format!("{word} is committed"), || {
                    fs::read_to_string(&other_path).unwrap().starts_with(word).then_some(())
                });
            }
            mapper.end();
            fs::remove_file(&write_path).unwrap();
        })
        .await;
    }
}

/// W13: "... when one of them asks to write."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_the_lock_of_a_mapped_file_sees_what_is_stored() {
    let (_cell, a, b) = two_mounts().await;
    let (write_path, other_path) = (a.path().join("file"), b.path().join("file"));
    files(move || {
        fs::write(&write_path, "..........").unwrap();
        let mut mapper = Mapper::of(&write_path);
        mapper.store(0, "six");
        assert!(!try_write(&other_path));
        eventually("a request for the lock commits", || {
            fs::read_to_string(&other_path).unwrap().starts_with("six").then_some(())
        });
        mapper.end();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_file_is_opened_written_and_closed_again() {
    let (_cell, a, b) = two_mounts().await;
    for (writer, other) in [(&a, &b), (&b, &a)] {
        let (write_path, other_path) = (writer.path().join("file"), other.path().join("file"));
        files(move || {
            fs::write(&write_path, "..........").unwrap();
            let mut mapper = Mapper::of(&write_path);
            mapper.store(0, "map");
            let again = OpenOptions::new().read(true).write(true).open(&write_path).unwrap();
            again.write_all_at(b"call", 4).unwrap();
            mapper.store(8, "m");
            drop(again);
            assert!(!try_write(&other_path), "the first mapping lives on");
            mapper.store(9, "n");
            let second = Mapper::of(&write_path);
            mapper.end();
            assert!(!try_write(&other_path), "and a second one");
            second.end();
            eventually("the lock goes back", || try_write(&other_path).then_some(()));
            assert_eq!(fs::read_to_string(&other_path).unwrap(), "map.callmn");
            fs::remove_file(&write_path).unwrap();
        })
        .await;
    }
}

/// A store, a commit of it, and another store to the same page before it reached the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_to_a_page_that_fsync_has_sent_is_not_overlooked() {
    let (_cell, a, b) = two_mounts().await;
    for (writer, other) in [(&a, &b), (&b, &a)] {
        writer
            .sh("python3 - <<'END'
import mmap, os
path = os.path.join(os.environ['M'], 'file')
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.write(fd, b'.' * 5000)
with mmap.mmap(fd, 5000) as m:
    for word in [b'one', b'two', b'six']:
        m[0:3] = word
        os.close(os.dup(fd))
    m[0:3] = b'end'
os.close(fd)
END")
            .await;
        assert_eq!(other.sh("head -c 4 $M/file; rm $M/file").await, "end.");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_unmount_commits_what_a_mapping_stored() {
    let cell = Cell::start().await;
    let mut mount = Mount::of(cell.client(true).await).await;
    let path = mount.path().join("file");
    let mut mapper = files(move || {
        fs::write(&path, "..........").unwrap();
        let mut mapper = Mapper::of(&path);
        mapper.store(0, "before");
        mapper
    })
    .await;
    let mounted = mount.mounted.take().unwrap();
    let busy = mounted.unmount(false).unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy, "a mapping uses the mount");
    mounted.unmount(true).unwrap();
    files(move || {
        mapper.store(7, "end");
        mapper.end();
    })
    .await;
    mounted.ended().await.unwrap();
    let later = Mount::of(cell.client(true).await).await;
    assert_eq!(later.sh("cat $M/file").await, "before.end");
    later.unmount().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_file_that_is_removed_goes_with_its_mapping() {
    let (_cell, a, b) = two_mounts().await;
    for mount in [&a, &b] {
        let path = mount.path().join("file");
        files(move || {
            fs::write(&path, "..........").unwrap();
            let mut mapper = Mapper::of(&path);
            fs::remove_file(&path).unwrap();
            mapper.store(0, "gone");
            mapper.end();
            fs::write(&path, "new").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        })
        .await;
    }
    assert_eq!(b.sh("cat $M/file").await, "new");
}
