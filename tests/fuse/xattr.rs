//! Extended attributes through the kernel: the programs that set and copy them, and its own rules.

use std::process::Command;

use rustix::fs::{XattrFlags, getxattr, getxattr_query, listxattr, listxattr_query, setxattr};
use rustix::io::Errno;

use crate::support::{Client, Mount, Server, attempt};

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

/// Every attribute below a directory, for comparison.
fn dump(mount: &Mount<'_>, dir: &str) -> String {
    mount.shell(&format!("cd {dir}; getfattr -R -P -h -d -m - -e hex . | sort"))
}

/// Why a command in the mount fails.
fn failure(mount: &Mount<'_>, script: &str) -> String {
    let mut shell = Command::new("bash");
    let output = attempt(shell.arg("-euc").arg(script).current_dir(mount.at("")));
    assert!(!output.status.success(), "{script}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Something of each kind that can have attributes.
const TREE: &str = "mkdir -p tree/sub; echo 1 > tree/f; echo 2 > tree/sub/g; ln -s f tree/s; \
    setfattr -n user.text -v 'some words' tree/f; setfattr -n user.empty tree/f; \
    setfattr -n user.bytes -v 0x00ff0a tree/sub/g; setfattr -n trusted.t -v root tree/f; \
    setfattr -n user.dir -v 1 tree/sub; setfattr -h -n trusted.link -v 2 tree/s; \
    chmod 440 tree/f; chown 7:8 tree/sub/g";

/// X1 of SEMANTICS.md.
#[test]
fn what_setfattr_sets_getfattr_shows_on_the_other_mount() {
    with_mounts(|a, b| {
        a.shell(TREE);
        let seen = dump(b, "tree");
        assert_eq!(seen, dump(a, "tree"));
        for line in ["user.empty", "user.bytes=0x00ff0a", "user.dir=0x31", "trusted.link=0x32"] {
            assert!(seen.lines().any(|seen| seen.starts_with(line)), "{line} in\n{seen}");
        }
        b.shell("setfattr -n user.text -v other tree/f; setfattr -x user.empty tree/f");
        assert_eq!(a.shell("getfattr --only-values -n user.text tree/f"), "other");
        assert!(failure(a, "getfattr -n user.empty tree/f").contains("No such attribute"));
        assert!(failure(a, "setfattr -x user.empty tree/f").contains("No such attribute"));
        b.shell("mv tree/f tree/sub/h; ln tree/sub/h hard; rm tree/sub/h");
        assert_eq!(a.shell("getfattr --only-values -n user.text hard"), "other");
    });
}

/// X1 of SEMANTICS.md.
#[test]
fn extended_attributes_that_were_set_survive_a_kill_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    mount.shell(TREE);
    let before = dump(&mount, "tree");
    server.kill_9();
    server.resume();
    assert_eq!(dump(&mount, "tree"), before);
    mount.shell("setfattr -n user.text -v after tree/f");
    server.kill_9();
    server.resume();
    assert_eq!(mount.shell("getfattr --only-values -n user.text tree/f"), "after");
    mount.umount();
}

/// X2 of SEMANTICS.md.
#[test]
fn cp_rsync_and_tar_carry_extended_attributes() {
    with_mounts(|a, b| {
        a.shell(TREE);
        a.shell(
            // Without the window rsync takes times of one second for equal, on any file system.
            "cp -a tree copied; rsync -aX --modify-window=-1 tree/ synced/; \
             tar --xattrs --xattrs-include='*' -cf tree.tar tree; mkdir unpacked; \
             tar --xattrs --xattrs-include='*' -xpf tree.tar -C unpacked",
        );
        let expected = dump(b, "tree");
        let list = "find . -printf '%P %y %m %U %G %s %T@ %l\\n' | sort";
        for copy in ["copied", "synced", "unpacked/tree"] {
            assert_eq!(dump(b, copy), expected, "{copy}");
            let of = |dir: &str| b.shell(&format!("cd {dir}; {list}"));
            assert_eq!(of(copy), of("tree"), "{copy}");
        }
        let again = a.shell("rsync -aX --modify-window=-1 --itemize-changes tree/ synced/");
        assert_eq!(again, "", "nothing is left to copy");
    });
}

#[test]
fn a_size_of_zero_asks_for_the_length_and_what_does_not_fit_is_not_cut() {
    with_mounts(|a, b| {
        a.shell(": > f; setfattr -n user.a -v 0123456789 f");
        let path = b.at("f");
        let mut buffer = [0; 64];
        assert_eq!(getxattr_query(&path, "user.a"), Ok(10));
        assert_eq!(getxattr(&path, "user.a", &mut buffer[..9]), Err(Errno::RANGE));
        assert_eq!(getxattr(&path, "user.a", &mut buffer[..10]), Ok(10));
        assert_eq!(&buffer[..10], b"0123456789");
        assert_eq!(listxattr_query(&path), Ok(7));
        assert_eq!(listxattr(&path, &mut buffer[..6]), Err(Errno::RANGE));
        assert_eq!(listxattr(&path, &mut buffer), Ok(7));
        assert_eq!(&buffer[..7], b"user.a\0");
    });
}

#[test]
fn the_flags_of_setxattr_say_whether_it_must_be_there() {
    with_mounts(|a, _| {
        a.shell(": > f");
        let set = |value: &[u8], flags| setxattr(a.at("f"), "user.a", value, flags);
        let both = XattrFlags::CREATE | XattrFlags::REPLACE;
        assert_eq!(set(b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
        assert_eq!(set(b"2", XattrFlags::CREATE), Ok(()));
        assert_eq!(set(b"3", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(set(b"4", XattrFlags::REPLACE), Ok(()));
        assert_eq!(set(b"5", both), Err(Errno::INVAL));
        assert_eq!(set(&vec![6; (64 << 10) + 1], XattrFlags::empty()), Err(Errno::TOOBIG));
        assert_eq!(a.shell("getfattr --only-values -n user.a f"), "4");
    });
}

/// X5 of SEMANTICS.md.
#[test]
fn programs_that_write_or_run_a_file_cause_no_request_for_an_attribute() {
    with_mounts(|a, b| {
        let script = "cp /bin/true program; ./program; echo 1 >> program; truncate -s 100 program; \
                      chown 7 program; ls -l . > /dev/null";
        for mount in [a, b] {
            let cost = mount.cost(|| drop(mount.shell(script)));
            assert!(cost.contains_key("directory.open"), "{cost:?}");
            assert!(!cost.keys().any(|path| path.contains("xattr")), "{cost:?}");
        }
        a.shell("ls -l");
        let cost = a.cost(|| drop(a.shell("setfattr -n user.a -v 1 program")));
        assert_eq!(cost.into_iter().collect::<Vec<_>>(), [("directory.set_xattr".to_owned(), 1)]);
    });
}

/// X3 of SEMANTICS.md.
#[test]
fn the_largest_value_and_many_names_fit_and_more_do_not() {
    with_mounts(|a, b| {
        a.shell(
            ": > f; head -c 65536 /dev/urandom > value; \
             setfattr -n user.large -v 0s$(base64 -w 0 value) f; \
             getfattr --only-values -n user.large f | cmp - value",
        );
        b.shell("getfattr --only-values -n user.large f | cmp - value");
        let fill = |name: &str| format!("setfattr -n user.{name} -v 0s$(base64 -w 0 value) f");
        a.shell(&format!("{}; {}", fill("2"), fill("3")));
        assert!(failure(a, &fill("4")).contains("No space left"));
        assert_eq!(b.shell("getfattr f | grep -c ^user"), "3\n");
        a.shell("setfattr -x user.2 f");
        a.shell(&fill("4"));
        let long = "x".repeat(251);
        let refused = failure(a, &format!("setfattr -n user.{long} -v 1 f"));
        assert!(refused.contains("out of range"), "{refused}");
        a.shell(&format!("setfattr -n user.{} -v 1 f", &long[1..]));
        assert_eq!(b.shell("getfattr f | grep -c ^user"), "4\n");
    });
}

/// X4 of SEMANTICS.md.
#[test]
fn namespaces_have_their_rules() {
    with_mounts(|a, b| {
        a.shell("chmod 1777 .; echo x > f; chmod 644 f; mkdir -m 1777 shared; ln -s f s; mkfifo p");
        let other = "setpriv --reuid=1234 --regid=1234 --clear-groups";
        a.shell("setfattr -n trusted.a -v 1 f; setfattr -n user.a -v 2 f");
        let seen = b.shell(&format!("{other} getfattr -d -m - f"));
        assert!(seen.contains("user.a") && !seen.contains("trusted.a"), "{seen}");
        let failures = [
            (format!("{other} setfattr -n user.a -v 3 f"), "Permission denied"),
            (format!("{other} setfattr -n trusted.b -v 3 f"), "not permitted"),
            (format!("{other} setfattr -n user.a -v 3 shared"), "not permitted"),
            ("setfattr -h -n user.a -v 3 s".to_owned(), "not permitted"),
            ("setfattr -n user.a -v 3 p".to_owned(), "not permitted"),
            ("setfattr -n user.dfs.a -v 3 f".to_owned(), "not supported"),
            ("setfattr -n other.a -v 3 f".to_owned(), "not supported"),
            ("setfattr -n security.x -v 3 f".to_owned(), "not supported"),
            ("getfattr -n security.capability f".to_owned(), "No such attribute"),
            (
                format!("setfattr -n security.capability -v 0x01000002{} f", "0".repeat(32)),
                "not supported",
            ),
            (
                "setfattr -n system.posix_acl_access -v \
                 0x0200000001000600ffffffff04000400ffffffff20000400ffffffff f"
                    .to_owned(),
                "not supported",
            ),
        ];
        for (script, reason) in failures {
            let said = failure(b, &script);
            assert!(said.contains(reason), "{script}: {said}");
        }
        a.shell(&format!("{other} touch mine; {other} setfattr -n user.a -v 1 mine"));
        assert_eq!(b.shell("getfattr --only-values -n user.a mine"), "1");
    });
}
