//! The data path on both kinds of mount, as others see it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use super::*;

/// F1: "What programs do to files works alike on every kind of mount."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_operations_work_on_both_kinds_of_mount() {
    let (_cell, a, b) = two_mounts().await;
    for (mount, passes) in [(&a, true), (&b, false)] {
        let path = mount.path().to_owned();
        files(move || operations::run_all(&path)).await;
        assert_eq!(mount.client.vfs.passes_through(), passes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_and_allocated_space_arrive_as_holes() {
    const MIB: i64 = 1 << 20;
    let (_cell, a, b) = two_mounts().await;
    for (writer, reader) in [(&a, &b), (&b, &a)] {
        let (write_path, read_path) = (writer.path().join("file"), reader.path().join("file"));
        files(move || {
            let file = File::create(&write_path).unwrap();
            file.write_all_at(&[b'x'; 8 << 20], 0).unwrap();
            let kept = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | kept, MIB, 6 * MIB).unwrap();
            fallocate(&file, FallocateFlags::empty(), 8 * MIB, 8 * MIB).unwrap();
            fallocate(&file, kept, 16 * MIB, 16 * MIB).unwrap();
            drop(file);
            let bytes = fs::read(&read_path).unwrap();
            assert_eq!(bytes.len(), 16 << 20);
            let is_kept = |at: usize| at < 1 << 20 || (7 << 20..8 << 20).contains(&at);
            let wrong =
                bytes.iter().enumerate().find(|(at, byte)| (**byte == b'x') != is_kept(*at));
            assert_eq!(wrong, None);
            let read = fs::metadata(&read_path).unwrap();
            assert!(read.blocks() * 512 < 3 << 20, "{} blocks", read.blocks());
            let file = OpenOptions::new().write(true).open(&write_path).unwrap();
            fallocate(&file, kept, 16 * MIB, 16 * MIB).unwrap();
            drop(file);
            assert!(fs::read(&read_path).unwrap() == bytes, "KEEP_SIZE beyond the end");
            fs::remove_file(&write_path).unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_with_o_sync_is_at_the_servers_when_it_returns() {
    let (_cell, a, b) = two_mounts().await;
    for (writer, reader) in [(&a, &b), (&b, &a)] {
        for flag in [libc::O_SYNC, libc::O_DSYNC, libc::O_SYNC | libc::O_DIRECT] {
            let (write_path, read_path) = (writer.path().join("file"), reader.path().join("file"));
            files(move || {
                let plain = File::create(&write_path).unwrap();
                plain.write_all_at(b"plain", 0).unwrap();
                assert_eq!(fs::read(&read_path).unwrap(), b"", "not before close");
                let synced =
                    OpenOptions::new().write(true).custom_flags(flag).open(&write_path).unwrap();
                synced.write_all_at(b"SYNC", 0).unwrap();
                assert_eq!(fs::read(&read_path).unwrap(), b"SYNCn");
                synced.write_all_at(b"AGAIN", 0).unwrap();
                assert_eq!(fs::read(&read_path).unwrap(), b"AGAIN");
                drop((plain, synced));
                fs::remove_file(&write_path).unwrap();
            })
            .await;
        }
    }
}
