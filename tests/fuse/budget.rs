//! What operations cost in requests: DESIGN budgets, counted by the client.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use crate::support::{Client, Mount, Server, eventually};

fn with_mount(test: impl FnOnce(&Mount<'_>, &Mount<'_>)) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    for mount in [&a, &b] {
        // A mount's event stream begins by itself, and what is read before it is not promised.
        eventually("the root is held", || {
            let cost = mount.cost(|| assert_eq!(mount.shell("ls -l"), "total 0\n"));
            cost.is_empty().then_some(())
        });
    }
    test(&a, &b);
}

fn total(cost: &BTreeMap<String, u64>) -> u64 {
    cost.values().sum()
}

#[test]
fn a_new_small_file_costs_two_requests() {
    with_mount(|mount, _| {
        let cost = mount.cost(|| fs::write(mount.at("f"), "x").unwrap());
        assert_eq!(total(&cost), 2, "{cost:?}");
    });
}

#[test]
fn an_edit_costs_two_requests() {
    with_mount(|mount, _| {
        fs::write(mount.at("f"), "one").unwrap();
        let cost = mount.cost(|| {
            let mut file = fs::OpenOptions::new().append(true).open(mount.at("f")).unwrap();
            file.write_all(b"two").unwrap();
        });
        assert_eq!(total(&cost), 2, "{cost:?}");
        let cost = mount.cost(|| fs::write(mount.at("f"), "three").unwrap());
        assert_eq!(total(&cost), 2, "{cost:?}");
    });
}

#[test]
fn a_cold_small_file_costs_two_requests_and_a_cached_one_none() {
    with_mount(|a, b| {
        fs::write(a.at("f"), vec![1; 5000]).unwrap();
        let cost = b.cost(|| assert_eq!(fs::read(b.at("f")).unwrap().len(), 5000));
        assert_eq!(total(&cost), 2, "{cost:?}");
        let cost = b.cost(|| assert_eq!(fs::read(b.at("f")).unwrap().len(), 5000));
        assert_eq!(cost, BTreeMap::new());
        let cost = a.cost(|| assert_eq!(fs::read(a.at("f")).unwrap().len(), 5000));
        assert_eq!(cost, BTreeMap::new(), "who wrote it has it");
    });
}

#[test]
fn what_is_held_costs_nothing_and_a_cold_directory_at_most_two() {
    const FILES: u64 = 200;
    with_mount(|a, b| {
        a.shell(&format!("mkdir d && cd d && seq {FILES} | xargs touch"));
        let count = |mount: &Mount<'_>| mount.shell("ls -l d | wc -l");
        let all = format!("{}\n", FILES + 1);
        // So much happened in the root that nobody there asked for that its promise has ended.
        b.shell("ls -l");
        let cost = b.cost(|| assert_eq!(count(b), all));
        assert!((1..=2).contains(&total(&cost)), "cold: {cost:?}");
        let warm = |what: &str, work: &dyn Fn(&Mount<'_>)| {
            for mount in [a, b] {
                let cost = mount.cost(|| work(mount));
                assert_eq!(cost, BTreeMap::new(), "{what}");
            }
        };
        warm("listing", &|mount| assert_eq!(count(mount), all));
        warm("stat", &|mount| assert_eq!(fs::metadata(mount.at("d/7")).unwrap().len(), 0));
        warm("failed look-up", &|mount| assert!(!mount.at("d/none").exists()));
        warm("walk", &|mount| assert_eq!(mount.shell("ls -lR . | grep -c root"), all));
        let cost = a.cost(|| fs::write(a.at("d/7"), "seven").unwrap());
        assert_eq!(total(&cost), 2, "{cost:?}");
        warm("stat after a change", &|mount| {
            assert_eq!(fs::metadata(mount.at("d/7")).unwrap().len(), 5);
        });
    });
}

#[test]
fn a_tree_that_is_made_costs_one_request_a_directory_and_two_a_file() {
    with_mount(|a, b| {
        let make =
            "for d in x x/y x/y/z; do mkdir $d; for f in 1 2 3; do echo $f > $d/$f; done; done";
        let cost = a.cost(|| drop(a.shell(make)));
        assert_eq!(total(&cost), 3 + 2 * 9, "{cost:?}");
        assert_eq!(
            b.shell("find x -type f | xargs cat | sort | uniq -c"),
            "      3 1\n      3 2\n      3 3\n"
        );
    });
}

#[test]
fn changes_of_names_cost_one_request_each() {
    with_mount(|mount, _| {
        fs::write(mount.at("f"), "x").unwrap();
        let one = |what: &str, work: &dyn Fn()| {
            let cost = mount.cost(work);
            assert_eq!(total(&cost), 1, "{what}: {cost:?}");
        };
        one("mkdir", &|| fs::create_dir(mount.at("d")).unwrap());
        one("rename", &|| fs::rename(mount.at("f"), mount.at("d/g")).unwrap());
        one("link", &|| fs::hard_link(mount.at("d/g"), mount.at("h")).unwrap());
        one("unlink", &|| fs::remove_file(mount.at("h")).unwrap());
        one("symlink", &|| std::os::unix::fs::symlink("t", mount.at("s")).unwrap());
        one("unlink", &|| fs::remove_file(mount.at("d/g")).unwrap());
        one("rmdir", &|| fs::remove_dir(mount.at("d")).unwrap());
    });
}

#[test]
fn reading_and_writing_an_open_file_costs_nothing() {
    with_mount(|mount, _| {
        fs::write(mount.at("f"), "x").unwrap();
        let cost = mount.cost(|| {
            let mut file =
                fs::OpenOptions::new().append(true).read(true).open(mount.at("f")).unwrap();
            (0..100).for_each(|_| file.write_all(b"more").unwrap());
            assert_eq!(file.metadata().unwrap().len(), 401);
            file.seek(SeekFrom::Start(0)).unwrap();
            assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), 401);
        });
        // One to open, one to send: that of the close.
        assert_eq!(total(&cost), 2, "{cost:?}");
    });
}

#[test]
fn a_close_without_a_change_sends_nothing() {
    with_mount(|mount, _| {
        fs::write(mount.at("f"), "x").unwrap();
        let cost = mount.cost(|| {
            drop(fs::OpenOptions::new().write(true).open(mount.at("f")).unwrap());
        });
        assert_eq!(cost, BTreeMap::from([("directory.open".to_owned(), 1)]));
    });
}

#[test]
fn a_file_out_of_tar_or_cp_costs_two_requests_whatever_they_set_on_it() {
    with_mount(|a, b| {
        let source = tempfile::tempdir().unwrap();
        let script = "echo content > f; chmod 751 f; chown 7:8 f; touch -d @1000000000 f; \
                      tar cf t.tar f";
        crate::support::shell(source.path(), script);
        let unpack = format!("tar xpf {}/t.tar", source.path().display());
        let cost = a.cost(|| drop(a.shell(&unpack)));
        assert_eq!(total(&cost), 2, "tar: {cost:?}");
        let copy = format!("cp -a {}/f copy", source.path().display());
        let cost = a.cost(|| drop(a.shell(&copy)));
        assert_eq!(total(&cost), 2, "cp -a: {cost:?}");
        let list = "stat -c '%a %u %g %s %.Y' f copy";
        assert_eq!(b.shell(list), "751 7 8 8 1000000000.000000000\n".repeat(2));
    });
}

/// rsync makes a file under another name, closes it, sets its times and mode, and renames it: five
/// requests. An owner to set beside that is one more change that everybody sees at once.
#[test]
fn a_file_out_of_rsync_costs_five_requests_and_another_owner_one_more() {
    const FILES: u64 = 20;
    with_mount(|a, b| {
        for (name, owner, most) in [("own", "0:0", 5), ("others", "7:8", 6)] {
            let source = tempfile::tempdir().unwrap();
            let script = format!(
                "for i in $(seq {FILES}); do echo content $i > f$i; done; chmod 751 *; \
                 chown {owner} *; touch -d @1000000000 *"
            );
            crate::support::shell(source.path(), &script);
            fs::create_dir(a.at(name)).unwrap();
            // The directory itself stays as it is, so that only the files cost something.
            let copy = format!("rsync -a --omit-dir-times {}/* {name}/", source.path().display());
            let cost = a.cost(|| drop(a.shell(&copy)));
            assert!(total(&cost) <= most * FILES, "{name}: {cost:?}");
            assert_eq!(cost.get("file.store"), Some(&FILES), "{name}: {cost:?}");
            let facts = format!("stat -c '%a %u:%g %.Y' {name}/* | sort -u; ls {name} | wc -l");
            let expected = format!("751 {owner} 1000000000.000000000\n{FILES}\n");
            assert_eq!(b.shell(&facts), expected);
        }
    });
}
