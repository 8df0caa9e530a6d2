use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Barrier;

use super::*;
use crate::support::Holder;

fn paths(a: &Mount, b: &Mount, name: &str) -> (PathBuf, PathBuf) {
    (a.path().join(name), b.path().join(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_reader_keeps_its_version_and_later_opens_see_the_close() {
    let (_cell, a, b) = two_mounts().await;
    for (writer, reader) in [(&a, &b), (&b, &a)] {
        let (write_path, read_path) = paths(writer, reader, "file");
        files(move || {
            fs::write(&write_path, "old").unwrap();
            let mut old = File::open(&read_path).unwrap();
            fs::write(&write_path, "newer").unwrap();
            assert_eq!(fs::read_to_string(&read_path).unwrap(), "newer");
            let mut text = String::new();
            old.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), old.metadata().unwrap().len()), ("old", 3));
            let again = OpenOptions::new().write(true).open(&read_path).unwrap();
            again.write_all_at(b"N", 0).unwrap();
            drop(again);
            assert_eq!(fs::read_to_string(&write_path).unwrap(), "Newer");
            assert_eq!(fs::read_to_string(&read_path).unwrap(), "Newer");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exclusive_creation_and_truncating_opens() {
    let (_cell, a, b) = two_mounts().await;
    let (a_path, b_path) = paths(&a, &b, "file");
    files(move || {
        let exclusive = |path| OpenOptions::new().write(true).create_new(true).open(path);
        exclusive(&a_path).unwrap().write_all(b"abc").unwrap();
        let exists = exclusive(&b_path).unwrap_err();
        assert_eq!(exists.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&b_path).unwrap(), "abc");
        File::create(&b_path).unwrap();
        assert_eq!(fs::read_to_string(&a_path).unwrap(), "");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_elsewhere_is_waited_for_or_refused() {
    let (_cell, a, b) = two_mounts().await;
    let (a_path, b_path) = paths(&a, &b, "file");
    files(move || {
        let mut holder = File::create(&a_path).unwrap();
        holder.write_all(b"held").unwrap();
        let nonblock =
            OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&b_path);
        assert_eq!(nonblock.unwrap_err().raw_os_error(), Some(nix::libc::EAGAIN));
        let waiter = std::thread::spawn(move || {
            let mut file = OpenOptions::new().append(true).open(&b_path).unwrap();
            file.write_all(b"+").unwrap();
        });
        drop(holder);
        waiter.join().unwrap();
        assert_eq!(fs::read_to_string(&a_path).unwrap(), "held+");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_wait_for_a_lock_ends() {
    let (_cell, a, b) = two_mounts().await;
    let a_path = a.path().join("file");
    let holder = files(move || Holder::of(&a_path)).await;
    let status = b.try_sh("exec timeout -s TERM 1 bash -c 'echo x >> $M/file'").await.status;
    assert_eq!(status.code(), Some(124), "timeout says that it ended the program");
    files(move || drop(holder)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_threads_make_and_read_files() {
    let (_cell, a, b) = two_mounts().await;
    let (a_dir, b_dir) = (a.path().to_owned(), b.path().to_owned());
    files(move || {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let dir = if thread % 2 == 0 { &a_dir } else { &b_dir };
                scope.spawn(move || {
                    for number in 0..20 {
                        let path = dir.join(format!("{thread}-{number}"));
                        fs::write(&path, format!("{thread} {number}")).unwrap();
                    }
                });
            }
        });
        for dir in [&a_dir, &b_dir] {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 160);
            for thread in 0..8 {
                let text = fs::read_to_string(dir.join(format!("{thread}-7"))).unwrap();
                assert_eq!(text, format!("{thread} 7"));
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_files_stay_sparse() {
    let (_cell, a, b) = two_mounts().await;
    a.sh("truncate -s 100M $M/sparse; printf x | dd of=$M/sparse bs=1 seek=50000000 conv=notrunc \
        status=none; test $(stat -c %b $M/sparse) -lt 10000")
        .await;
    b.sh("cp --sparse=auto $M/sparse $M/copy; cmp $M/sparse $M/copy; \
        test $(stat -c %b $M/copy) -lt 10000")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_is_not_fetched_again_nor_asked_for() {
    let (_cell, a, b) = two_mounts().await;
    a.sh("echo content > $M/file").await;
    for mount in [&a, &b] {
        mount.sh("cat $M/file").await;
        let count = |path| mount.client.rpc_count(path);
        let before = (count("file.fetch"), count("directory.open"));
        mount.sh("cat $M/file $M/file > /dev/null").await;
        assert_eq!((count("file.fetch"), count("directory.open")), before);
    }
    assert!(a.client.vfs.passes_through(), "root may let the kernel read cache files");
    assert!(!b.client.vfs.passes_through());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_mount_is_not_taken_away_and_a_lazy_end_commits_what_is_open() {
    let cell = Cell::start().await;
    let mut mount = Mount::of(cell.client(true).await).await;
    let path = mount.path().join("file");
    let mut open = files(move || File::create(&path).unwrap()).await;
    let busy = mount.mounted.as_ref().unwrap().unmount(false).unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy);
    open.write_all(b"kept").unwrap();
    let mounted = mount.mounted.take().unwrap();
    mounted.unmount(true).unwrap();
    files(move || drop(open)).await;
    mounted.ended().await.unwrap();
    let later = Mount::of(cell.client(true).await).await;
    assert_eq!(later.sh("cat $M/file").await, "kept");
    later.unmount().await;
}

/// N2: "`O_CREAT | O_EXCL` succeeds for exactly one of all clients that try."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_mounts_that_make_a_name_exclusively_exactly_one_succeeds() {
    const NAMES: usize = 64;
    let (_cell, a, b) = two_mounts().await;
    let (a_path, b_path) = (a.path().to_owned(), b.path().to_owned());
    let [by_a, by_b] = files(move || {
        let start = Barrier::new(2);
        let makes = |dir: &Path, number: usize| {
            start.wait();
            match File::create_new(dir.join(format!("name{number}"))) {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                Err(error) => panic!("name{number}: {error}"),
            }
        };
        let make_all = |dir: PathBuf| (0..NAMES).map(|number| makes(&dir, number)).collect();
        std::thread::scope(|scope| {
            let racers = [a_path, b_path].map(|dir| scope.spawn(|| make_all(dir)));
            racers.map(|racer| -> Vec<bool> { racer.join().unwrap() })
        })
    })
    .await;
    for (number, (a, b)) in by_a.iter().zip(&by_b).enumerate() {
        assert!(a != b, "name{number}: made by {}", if *a { "both" } else { "none" });
    }
}
