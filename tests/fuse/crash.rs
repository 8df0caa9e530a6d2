//! kill -9 of servers and clients in the middle of work: nothing acknowledged is lost or torn.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::mapper::Mapper;
use crate::support::{Client, Mount, Server, attempt, eventually, is_mounted, run, shell};

/// The content of a numbered file: its number, many times.
fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + (number as usize * 131) % 9000)
}

/// What a writer in another thread is told and tells.
#[derive(Default)]
struct Work {
    is_over: AtomicBool,
    acknowledged_count: AtomicU64,
}

impl Work {
    /// Waits until the writer has got on.
    fn goes_on(&self) {
        let reached = self.acknowledged_count.load(Ordering::SeqCst);
        eventually("the writer goes on", || {
            (self.acknowledged_count.load(Ordering::SeqCst) >= reached + 20).then_some(())
        });
    }
}

/// Writes numbered files until told to stop. Returns those whose close succeeded.
fn write_until_over(mount: &Mount<'_>, dir: &str, work: &Work) -> Vec<u64> {
    fs::create_dir_all(mount.at(dir)).unwrap();
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if work.is_over.load(Ordering::SeqCst) {
            break;
        }
        let path = mount.at(dir).join(format!("f{}", number % 50));
        if write_and_close(&path, &content(number)) {
            acknowledged.push(number);
            work.acknowledged_count.fetch_add(1, Ordering::SeqCst);
        }
    }
    acknowledged
}

/// `std::fs::write` does not report what close says; `dd` does.
fn write_and_close(path: &Path, bytes: &[u8]) -> bool {
    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let Ok(file) = nix::fcntl::open(path, flags, Mode::from_bits_truncate(0o644)) else {
        return false;
    };
    let is_written = nix::unistd::write(&file, bytes).is_ok_and(|count| count == bytes.len());
    let raw = std::os::fd::IntoRawFd::into_raw_fd(file);
    nix::unistd::close(raw).is_ok() && is_written
}

/// Every file has the content of the last acknowledged write to it, or of a later one.
fn check(mount: &Mount<'_>, dir: &str, acknowledged: &[u64]) {
    for slot in 0..50 {
        let Some(last) = acknowledged.iter().rev().find(|number| *number % 50 == slot) else {
            continue;
        };
        let bytes = fs::read(mount.at(dir).join(format!("f{slot}"))).unwrap();
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(number >= *last && number % 50 == slot, "slot {slot}: {number}, not {last}");
        assert_eq!(bytes, content(number), "slot {slot} is torn");
    }
}

#[test]
fn three_kills_of_the_server_during_work_lose_nothing_that_close_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    let work = Work::default();
    let acknowledged = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until_over(&a, "work", &work));
        for _ in 0..3 {
            work.goes_on();
            server.kill_9();
            server.resume();
        }
        work.goes_on();
        work.is_over.store(true, Ordering::SeqCst);
        writer.join().unwrap()
    });
    check(&b, "work", &acknowledged);
    check(&a, "work", &acknowledged);
    // Both mounts still work, both ways.
    fs::write(b.at("after"), "b").unwrap();
    assert_eq!(fs::read_to_string(a.at("after")).unwrap(), "b");
    a.umount();
    b.umount();
}

#[test]
fn a_killed_client_sends_what_was_closed_but_not_acknowledged_at_its_next_mount() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["--timeout", "2s"]);
    fs::write(mount.at("kept"), "first").unwrap();
    let held = fs::OpenOptions::new().write(true).truncate(true).open(mount.at("kept")).unwrap();
    nix::unistd::write(&held, b"second version").unwrap();
    server.kill_9();
    let raw = std::os::fd::IntoRawFd::into_raw_fd(held);
    assert!(nix::unistd::close(raw).is_err(), "close must report that nobody took the data");
    mount.kill_9();
    assert!(is_mounted(&mount.dir), "a dead mount stays until somebody cleans it");
    run(client.dfs(&["umount"]).arg(&mount.dir));
    assert!(!is_mounted(&mount.dir));
    drop(mount);
    server.resume();
    let mount = client.mount(&server, &[]);
    eventually("the outbox is empty", || {
        let list = client.ask(&["outbox", "list", "--json", mount.dir.to_str().unwrap()]);
        (!list.contains("unsent") && !list.contains("sending")).then_some(())
    });
    let other = Client::new(&dir.path().join("b"), &server);
    let other = other.mount(&server, &[]);
    assert_eq!(fs::read_to_string(other.at("kept")).unwrap(), "second version");
}

#[test]
fn what_was_not_closed_at_the_crash_is_kept_and_never_sent_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("f"), "committed").unwrap();
    let held = fs::OpenOptions::new().write(true).truncate(true).open(mount.at("f")).unwrap();
    nix::unistd::write(&held, b"half").unwrap();
    mount.kill_9();
    drop(held);
    run(client.dfs(&["umount"]).arg(&mount.dir));
    drop(mount);
    let mount = client.mount(&server, &[]);
    assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "committed");
    let list = client.ask(&["outbox", "list", mount.dir.to_str().unwrap()]);
    assert!(list.contains("interrupted"), "{list}");
}

#[test]
fn what_a_mapping_stored_before_the_crash_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("f"), "..........").unwrap();
    let mut mapper = Mapper::of(&mount.at("f"));
    mapper.store(0, "sent");
    let other = Client::new(&dir.path().join("b"), &server);
    let other = other.mount(&server, &[]);
    eventually("what was stored is committed", || {
        (fs::read_to_string(other.at("f")).unwrap() == "sent......").then_some(())
    });
    mapper.store(5, "kept");
    mount.kill_9();
    drop(mapper);
    run(client.dfs(&["umount"]).arg(&mount.dir));
    drop(mount);
    let mount = client.mount(&server, &[]);
    assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "sent......");
    let list = client.ask(&["outbox", "list", mount.dir.to_str().unwrap()]);
    assert!(list.contains("interrupted"), "{list}");
}

#[test]
fn a_server_that_is_away_is_an_error_never_an_empty_directory_and_the_mount_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["--timeout", "2s"]);
    fs::write(mount.at("f"), "x").unwrap();
    server.kill_9();
    let listed = fs::read_dir(&mount.dir).and_then(|mut names| names.next().transpose());
    for error in [listed.map(drop), fs::read(mount.at("f")).map(drop)].map(Result::unwrap_err) {
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EHOSTDOWN as i32), "{error}");
    }
    server.resume();
    eventually("the mount works again", || fs::read_to_string(mount.at("f")).ok());
    assert_eq!(shell(&mount.dir, "ls"), "f\n");
}

#[test]
fn a_server_that_is_silent_keeps_close_and_fsync_no_longer_than_one_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["--timeout", "3s"]);
    let names = ["closed", "synced"];
    let files = names.map(|name| fs::File::create(mount.at(name)).unwrap());
    server.freeze(true);
    files.iter().zip(names).for_each(|(file, name)| {
        nix::unistd::write(file, name.as_bytes()).unwrap();
    });
    let started = Instant::now();
    let [closed, synced] = files;
    let sync = std::thread::spawn(move || (synced.sync_all().is_err(), synced));
    let raw = std::os::fd::IntoRawFd::into_raw_fd(closed);
    let refusal = nix::unistd::close(raw).unwrap_err();
    assert_eq!(refusal, nix::errno::Errno::ETIMEDOUT);
    let (is_refused, synced) = sync.join().unwrap();
    assert!(is_refused);
    // The timeout, and a lease in which nothing is heard.
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    server.freeze(false);
    drop(synced);
    let other = Client::new(&dir.path().join("b"), &server);
    let other = other.mount(&server, &[]);
    for name in names {
        eventually("what was kept arrives", || {
            (fs::read_to_string(other.at(name)).unwrap() == name).then_some(())
        });
    }
}

#[test]
fn umount_names_what_it_cannot_send_and_force_keeps_it_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["--timeout", "1s"]);
    fs::create_dir_all(mount.at("some/where")).unwrap();
    fs::write(mount.at("some/where/precious"), "one").unwrap();
    let held = fs::OpenOptions::new().append(true).open(mount.at("some/where/precious")).unwrap();
    nix::unistd::write(&held, b" two").unwrap();
    server.kill_9();
    drop(held);
    let refused = attempt(client.dfs(&["umount", "--timeout", "1s"]).arg(&mount.dir));
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains(" /some/where/precious "), "{text}");
    let list = client.ask(&["outbox", "list", mount.dir.to_str().unwrap()]);
    assert!(list.split_whitespace().any(|word| word == "/some/where/precious"), "{list}");
    assert!(is_mounted(&mount.dir));
    run(client.dfs(&["umount", "--force", "--timeout", "1s"]).arg(&mount.dir));
    drop(mount);
    server.resume();
    let mount = client.mount(&server, &[]);
    eventually("the unsent change arrives", || {
        (fs::read_to_string(mount.at("some/where/precious")).unwrap() == "one two").then_some(())
    });
}
