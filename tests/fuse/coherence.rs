//! What one mount changes, the next call on another sees: with everything in the kernel's caches.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Mount, Server, eventually, shell, signal, waits};

/// How often each kind of change is made.
const ROUNDS: u64 = 200;

/// How long the owner waits for a client that does not answer. Source: `SESSION_LEASE`.
const LEASE: Duration = Duration::from_secs(10);

fn with_mounts(test: impl FnOnce(&Mount<'_>, &Mount<'_>)) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    test(&a, &b);
    a.umount();
    b.umount();
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn is_absent(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Asks for a name until the kernel answers by itself, so that what follows is about its caches.
fn warm(path: &Path) {
    (0..3).for_each(|_| warm_once(path));
}

fn warm_once(path: &Path) {
    fs::metadata(path).unwrap();
}

/// R4 of SEMANTICS.md.
#[test]
fn names_that_come_and_go_are_seen_by_the_next_call_elsewhere() {
    with_mounts(|a, b| {
        fs::create_dir(a.at("d")).unwrap();
        for round in 0..ROUNDS {
            let (name, other) = (format!("d/f{round}"), format!("d/g{round}"));
            assert!(is_absent(&b.at(&name)));
            fs::write(a.at(&name), "x").unwrap();
            assert_eq!(fs::metadata(b.at(&name)).unwrap().len(), 1, "{name}");
            assert!(names(&b.at("d")).contains(&name[2..]), "{name}");
            warm(&b.at(&name));
            fs::rename(a.at(&name), a.at(&other)).unwrap();
            assert!(is_absent(&b.at(&name)), "{name} was renamed");
            warm(&b.at(&other));
            let listed = names(&b.at("d"));
            assert!(listed.contains(&other[2..]) && !listed.contains(&name[2..]), "{listed:?}");
            fs::remove_file(a.at(&other)).unwrap();
            assert!(is_absent(&b.at(&other)), "{other} was removed");
            assert_eq!(names(&b.at("d")), BTreeSet::new());
        }
    });
}

/// R1 and R4 of SEMANTICS.md.
#[test]
fn what_a_name_names_and_its_attributes_are_seen_by_the_next_call_elsewhere() {
    with_mounts(|a, b| {
        fs::create_dir_all(a.at("d/sub")).unwrap();
        fs::write(a.at("d/f"), "").unwrap();
        for round in 1..=ROUNDS {
            let content = "x".repeat(usize::try_from(round).unwrap());
            warm(&b.at("d/f"));
            fs::write(a.at("d/f"), &content).unwrap();
            assert_eq!(fs::metadata(b.at("d/f")).unwrap().len(), round);
            assert_eq!(fs::read_to_string(b.at("d/f")).unwrap(), content);
            let mode = 0o600 + u32::try_from(round % 64).unwrap();
            fs::set_permissions(a.at("d/f"), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(fs::metadata(b.at("d/f")).unwrap().mode() & 0o777, mode);
            warm(&b.at("d/f"));
            fs::write(a.at("d/new"), format!("new {round}")).unwrap();
            fs::rename(a.at("d/new"), a.at("d/f")).unwrap();
            assert_eq!(fs::read_to_string(b.at("d/f")).unwrap(), format!("new {round}"));
            assert_eq!(
                fs::metadata(b.at("d/f")).unwrap().ino(),
                fs::metadata(a.at("d/f")).unwrap().ino()
            );
            warm(&b.at("d/sub"));
            let before = fs::metadata(b.at("d/sub")).unwrap().modified().unwrap();
            fs::write(a.at("d/sub").join(round.to_string()), "").unwrap();
            assert!(fs::metadata(b.at("d/sub")).unwrap().modified().unwrap() > before);
        }
    });
}

/// R4 of SEMANTICS.md: also what lies below.
#[test]
fn a_directory_on_the_way_that_is_moved_or_replaced_is_seen_by_the_next_call_elsewhere() {
    with_mounts(|a, b| {
        for round in 0..ROUNDS / 4 {
            fs::create_dir_all(a.at("way/to")).unwrap();
            fs::write(a.at("way/to/f"), round.to_string()).unwrap();
            assert_eq!(fs::read_to_string(b.at("way/to/f")).unwrap(), round.to_string());
            warm(&b.at("way/to/f"));
            fs::rename(a.at("way"), a.at("moved")).unwrap();
            assert!(is_absent(&b.at("way/to/f")));
            warm(&b.at("moved/to/f"));
            fs::remove_dir_all(a.at("moved")).unwrap();
            assert!(is_absent(&b.at("moved/to/f")) && is_absent(&b.at("moved")));
        }
    });
}

/// What both mounts do at once to the names of one directory.
fn work(mount: &Mount<'_>, own: &str) {
    for round in 0..ROUNDS {
        let at = |name: &str| mount.at("d").join(name);
        let mine = format!("{own}{round}");
        fs::write(at(&mine), &mine).unwrap();
        // The same name from both: whoever is last has it.
        fs::rename(at(&mine), at("shared")).unwrap();
        match fs::read_to_string(at("shared")) {
            // Written by `write`, in two steps.
            Ok(seen) => assert!(seen.is_empty() || seen.starts_with(['a', 'b']), "{seen}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
        fs::create_dir(at(&mine)).unwrap();
        match fs::remove_file(at("shared")) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        let again = format!("again-{own}");
        fs::write(at(&again), own).unwrap();
        fs::rename(at(&again), at("shared")).unwrap();
        if round % 2 == 0 {
            fs::remove_dir(at(&mine)).unwrap();
        }
    }
}

/// R4 and N1 of SEMANTICS.md: breaks are acknowledged while names are held by our own changes.
#[test]
fn two_mounts_that_change_one_directory_at_once_go_on_and_see_the_truth() {
    with_mounts(|a, b| {
        fs::create_dir(a.at("d")).unwrap();
        let started = Instant::now();
        std::thread::scope(|scope| {
            let working = [scope.spawn(|| work(a, "a")), scope.spawn(|| work(b, "b"))];
            working.into_iter().for_each(|thread| thread.join().unwrap());
        });
        // Two that wait for each other do so for a lease, each time.
        assert!(started.elapsed() < LEASE * 12, "{:?}", started.elapsed());
        let odd = (0..ROUNDS).filter(|round| round % 2 == 1);
        let kept = odd.flat_map(|round| [format!("a{round}"), format!("b{round}")]);
        let expected: BTreeSet<String> = kept.chain(["shared".to_owned()]).collect();
        for mount in [a, b] {
            assert_eq!(names(&mount.at("d")), expected);
            let facts = "stat -c '%n %i %s %a %Y' d d/* | sort; cat d/shared";
            assert_eq!(mount.shell(facts), a.shell(facts));
        }
    });
}

/// What `work` costs in requests of the kernel, and in requests to servers.
fn cost(mount: &Mount<'_>, work: impl FnOnce()) -> (u64, u64) {
    let counts = || {
        let status = mount.status();
        let sum = |what: &str| {
            let counts = status["rpcs"].as_object().unwrap().iter();
            let sum = counts.filter(|(path, _)| path.starts_with(what)).map(|(_, count)| count);
            sum.map(|count| count.as_u64().unwrap()).sum::<u64>()
        };
        let asked = status["events"]["kernel_asked"].as_u64().unwrap();
        (asked, sum("directory.") + sum("file."))
    };
    let before = counts();
    work();
    let after = counts();
    (after.0 - before.0, after.1 - before.1)
}

/// R2 and R7 of SEMANTICS.md.
#[test]
fn what_is_warm_costs_no_request_to_servers_and_a_stat_none_of_the_kernel() {
    const FILES: usize = 20;
    with_mounts(|a, b| {
        fs::create_dir_all(a.at("way/to")).unwrap();
        let paths: Vec<_> = (0..FILES).map(|number| format!("way/to/f{number}")).collect();
        paths.iter().for_each(|path| fs::write(a.at(path), "some content").unwrap());
        for mount in [a, b] {
            let stat = || paths.iter().for_each(|path| warm_once(&mount.at(path)));
            let read = || {
                for path in &paths {
                    assert_eq!(fs::read(mount.at(path)).unwrap(), b"some content");
                }
            };
            let list = || assert_eq!(names(&mount.at("way/to")).len(), FILES);
            let miss = || (0..FILES).for_each(|_| assert!(is_absent(&mount.at("way/to/no"))));
            // Lifetimes end with the lease, and are renewed by the next call: a run that one falls
            // into is not the one that is counted.
            let calls =
                [("stat", &stat as &dyn Fn()), ("read", &read), ("list", &list), ("miss", &miss)];
            for (what, call) in calls {
                (0..2).for_each(|_| call());
                let costs: Vec<_> = (0..3).map(|_| cost(mount, call)).collect();
                let servers: Vec<u64> = costs.iter().map(|(_, servers)| *servers).collect();
                assert_eq!(servers, [0; 3], "{what}");
                if what == "stat" {
                    stat();
                    let kernel = (0..3).map(|_| cost(mount, call).0).min();
                    assert_eq!(kernel, Some(0), "{what}");
                }
            }
        }
    });
}

/// R8 of SEMANTICS.md, and what a stopped client costs others.
#[test]
fn a_client_that_was_stopped_longer_than_its_lease_shows_nothing_old() {
    with_mounts(|a, b| {
        fs::create_dir(a.at("d")).unwrap();
        fs::write(a.at("d/f"), "old").unwrap();
        assert_eq!(fs::read_to_string(b.at("d/f")).unwrap(), "old");
        warm(&b.at("d/f"));
        signal(b.pid, "STOP");
        let began = Instant::now();
        fs::write(a.at("new"), "newer").unwrap();
        fs::rename(a.at("new"), a.at("d/f")).unwrap();
        let took = began.elapsed();
        assert!(took < LEASE + Duration::from_secs(5), "{took:?}");
        // The change was answered, so the kernel's word is over, too: this waits for the daemon.
        let mut cat = Command::new("stat");
        let cat = cat.args(["-c", "%s"]).arg(b.at("d/f")).stdout(Stdio::piped());
        let mut asking = cat.spawn().unwrap();
        eventually("stat waits for the daemon", || waits(&asking).then_some(()));
        // Nobody waits for it a second time.
        let began = Instant::now();
        fs::write(a.at("d/f"), "newest of all").unwrap();
        fs::remove_dir_all(a.at("gone")).unwrap_err();
        assert!(began.elapsed() < LEASE / 2, "{:?}", began.elapsed());
        signal(b.pid, "CONT");
        assert!(asking.wait().unwrap().success());
        let said = std::io::read_to_string(asking.stdout.take().unwrap()).unwrap();
        assert_eq!(said, "13\n");
        assert_eq!(fs::read_to_string(b.at("d/f")).unwrap(), "newest of all");
    });
}

/// P3 of SEMANTICS.md: names and attributes that the kernel has are judged for whoever asks.
#[test]
fn what_one_user_has_looked_up_another_may_not_see() {
    with_mounts(|a, b| {
        fs::create_dir_all(a.at("d/below")).unwrap();
        fs::write(a.at("d/below/f"), "").unwrap();
        let asked = |by: &str| {
            warm(&b.at("d/below/f"));
            let stat = format!("setpriv --reuid={by} --regid={by} --clear-groups stat d/below/f");
            let output = Command::new("bash").args(["-c", &stat]).current_dir(&b.dir).output();
            output.unwrap().status.success()
        };
        let close = |mode| {
            fs::set_permissions(a.at("d"), fs::Permissions::from_mode(mode)).unwrap();
        };
        for _ in 0..ROUNDS / 20 {
            close(0o711);
            assert!(asked("65534"));
            close(0o700);
            assert!(!asked("65534"), "the other client closed it");
        }
        std::os::unix::fs::chown(a.at("d"), Some(65534), Some(65534)).unwrap();
        assert!(asked("65534") && !asked("65533"));
    });
}

/// N9 of SEMANTICS.md.
#[test]
fn a_mount_inside_a_mount_stays_when_the_server_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let a = Client::new(&dir.path().join("a"), &server);
    let a = a.mount(&server, &[]);
    fs::create_dir_all(a.at("d/inside")).unwrap();
    fs::write(a.at("d/f"), "").unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("seen"), "").unwrap();
    let place = a.at("d/inside");
    shell(dir.path(), &format!("mount --bind inside {}", place.display()));
    warm(&a.at("d/f"));
    server.kill_9();
    server.resume();
    eventually("promises are had again", || {
        fs::write(a.at("d/f"), "").unwrap();
        let (_, servers) = cost(&a, || warm_once(&a.at("d/f")));
        (servers == 0).then_some(())
    });
    assert_eq!(names(&place), BTreeSet::from(["seen".to_owned()]));
    shell(dir.path(), &format!("umount {}", place.display()));
    a.umount();
}
