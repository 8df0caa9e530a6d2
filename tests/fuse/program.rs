//! Programs that people use, on one mount and checked from another.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::{Client, Server, eventually, run, sha256, shell};

#[test]
fn what_one_mount_writes_the_other_reads() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    fs::write(a.at("hello"), "from a\n").unwrap();
    assert_eq!(fs::read_to_string(b.at("hello")).unwrap(), "from a\n");
    fs::write(b.at("hello"), "from b, longer\n").unwrap();
    assert_eq!(fs::read_to_string(a.at("hello")).unwrap(), "from b, longer\n");
    a.shell(
        "mkdir -p x/y; ln -s ../hello x/link; ln hello x/hard; chmod 640 hello; echo z > x/y/z",
    );
    assert_eq!(fs::read_to_string(b.at("x/link")).unwrap(), "from b, longer\n");
    let (hello, hard) =
        (fs::metadata(b.at("hello")).unwrap(), fs::metadata(b.at("x/hard")).unwrap());
    assert_eq!((hello.ino(), hello.nlink(), hello.mode() & 0o777), (hard.ino(), 2, 0o640));
    b.shell("mv x/y/z moved; rm x/hard; rmdir x/y");
    assert_eq!(fs::read_to_string(a.at("moved")).unwrap(), "z\n");
    assert!(!a.at("x/y").exists() && !a.at("x/hard").exists());
    a.umount();
    b.umount();
}

#[test]
fn a_source_tree_copied_in_with_cp_a_is_the_same_on_the_other_mount() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    let source = dir.path().join("source");
    make_tree(&source, 400);
    run(Command::new("cp").arg("-a").arg(&source).arg(a.at("tree")));
    run(Command::new("diff").args(["-r", "--no-dereference"]).arg(&source).arg(b.at("tree")));
    let list =
        "find . -printf '%P %y %m %s %l %T@\\n' | sed 's/^\\(.* d [0-9]*\\) [0-9]*/\\1/' | sort";
    assert_eq!(shell(&source, list), shell(&b.at("tree"), list));
}

/// A tree with nested directories, links, odd names, modes and times.
fn make_tree(root: &std::path::Path, files: usize) {
    for index in 0..files {
        let dir = root.join(format!("d{}", index % 17)).join(format!("s{}", index % 5));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("file {index} \u{e9}"));
        fs::write(&path, vec![b'a' + (index % 26) as u8; index * 37]).unwrap();
        let mode = if index % 3 == 0 { 0o755 } else { 0o640 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    shell(root, "ln -s d1/s1 link; ln -s nowhere dangling; mkdir empty; touch -d @1000000000 d1");
}

#[test]
fn git_clones_into_the_mount_and_the_other_mount_finds_the_repository_sound() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    let origin = dir.path().join("origin");
    make_tree(&origin, 60);
    let identity = "git config user.email a@b; git config user.name n;";
    shell(&origin, &format!("git init -q .; {identity} git add .; git commit -qm one"));
    shell(dir.path(), &format!("git clone -q origin {}", a.at("clone").display()));
    let work = format!("{identity} echo more >> more; git add more; git commit -qm two");
    shell(&a.at("clone"), &work);
    let safe = "git -c safe.directory='*'";
    shell(&b.at("clone"), &format!("{safe} fsck --strict"));
    assert_eq!(shell(&b.at("clone"), &format!("{safe} status --porcelain")), "");
    assert_eq!(shell(&b.at("clone"), &format!("{safe} log --format=%s")), "two\none\n");
}

#[test]
fn vim_saves_in_place_and_by_rename_without_leaving_anything_behind() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("text"), "one\n").unwrap();
    for (backupcopy, word) in [("yes", "two"), ("no", "three")] {
        let edit = format!(
            "vim -Nu NONE -es -c 'set backupcopy={backupcopy}' -c '%s/$/ {word}/' -c 'wq' text"
        );
        mount.shell(&edit);
    }
    assert_eq!(fs::read_to_string(mount.at("text")).unwrap(), "one two three\n");
    assert_eq!(mount.shell("ls -A"), "text\n");
}

#[test]
fn a_large_file_goes_in_and_out_unchanged_and_two_nodes_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (client, other) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (client.mount(&server, &[]), other.mount(&server, &[]));
    let source = dir.path().join("large");
    shell(dir.path(), "head -c 96M /dev/urandom > large; truncate -s 120M large");
    run(Command::new("cp").arg(&source).arg(a.at("large")));
    assert_eq!(sha256(&b.at("large")), sha256(&source));
    let place = server.path("large");
    let report = client.ask(&["where", "--json", &place]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let text = report.to_string();
    assert!(text.contains("node-1") && text.contains("node-2"), "{text}");
    for node in ["node-1", "node-2"] {
        let script = format!("du -sb --apparent-size {node}/chunks | cut -f1");
        let bytes: u64 = shell(&server.data, &script).trim().parse().unwrap();
        assert!(bytes >= 96 << 20, "{node} holds {bytes} bytes");
    }
}

#[test]
fn put_get_and_cat_move_files_without_a_mount() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let source = dir.path().join("in");
    fs::write(&source, vec![7; 3 << 20]).unwrap();
    let (place, back) = (server.path("file"), dir.path().join("out"));
    let (source_text, back_text) = (source.to_str().unwrap(), back.to_str().unwrap());
    client.ask(&["put", source_text, &place]);
    client.ask(&["get", &place, back_text]);
    assert_eq!(sha256(&source), sha256(&back));
    assert_eq!(client.ask(&["cat", &place]).len(), 3 << 20);
    assert!(client.ask(&["ls", &server.path("")]).contains("file"));
    assert!(client.ask(&["stat", &place]).contains("3145728"));
}

#[test]
fn where_names_the_nodes_of_a_file_or_of_each_file_directly_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    shell(dir.path(), "mkdir -p d/sub/empty; echo 1 > d/one; echo 2 > d/two; echo 3 > d/sub/three");
    let tree = dir.path().join("d");
    client.ask(&["put", "-r", tree.to_str().unwrap(), &server.path("")]);
    let located = |place: &str| {
        let report = client.ask(&["where", "--json", place]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let files = report["files"].as_array().unwrap().iter();
        files
            .map(|file| {
                assert_eq!(file["replicas"].as_array().unwrap().len(), 2, "{file}");
                file["path"].as_str().unwrap().to_owned()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(located(&server.path("d/one")), [server.path("d/one")]);
    assert_eq!(located(&server.path("d")), [server.path("d/one"), server.path("d/two")]);
    assert_eq!(client.ask(&["where", &server.path("d/sub/empty")]), "no files\n");
}

#[test]
fn a_reader_keeps_its_version_while_a_new_open_sees_the_next() {
    use std::io::{Read, Seek, SeekFrom};
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    fs::write(a.at("f"), "old content").unwrap();
    let mut old = fs::File::open(b.at("f")).unwrap();
    fs::write(a.at("f"), "new").unwrap();
    assert_eq!(fs::read_to_string(b.at("f")).unwrap(), "new");
    let mut text = String::new();
    old.seek(SeekFrom::Start(0)).unwrap();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old content");
    assert_eq!(old.metadata().unwrap().len(), 11);
    drop(old);
    eventually("the name shows the new version", || {
        (fs::metadata(b.at("f")).unwrap().len() == 3).then_some(())
    });
}

/// Has several shells append lines to one file at once, one after another on each of `mounts`.
fn append_at_once(mounts: &[&std::path::Path], prepare: &str) {
    const LINES: usize = 60;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let dir = mounts[writer % mounts.len()];
            let script = format!(
                "for line in $(seq {LINES}); do echo {writer}-$line >> log || exit 1; done"
            );
            let mut command = Command::new("bash");
            command.args(["-c", &script]).current_dir(dir);
            command
        })
        .collect();
    shell(mounts[0], prepare);
    let running: Vec<_> = writers.into_iter().map(|mut it| it.spawn().unwrap()).collect();
    let ends: Vec<_> = running.into_iter().map(|mut it| it.wait().unwrap().success()).collect();
    assert_eq!(ends, [true; 4]);
    for dir in mounts {
        let lines = shell(dir, "sort -u log | wc -l");
        assert_eq!(lines.trim(), (4 * LINES).to_string());
    }
}

/// W10 of SEMANTICS.md.
#[test]
fn programs_that_append_to_one_file_at_once_lose_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    append_at_once(&[&a.at("")], ": > log");
    for _ in 0..3 {
        append_at_once(&[&a.at(""), &b.at("")], "rm -f log");
    }
    a.umount();
    b.umount();
}

/// R6 of SEMANTICS.md.
#[test]
fn a_file_that_is_replaced_all_the_time_can_always_be_opened_and_is_never_torn() {
    const ROUNDS: u8 = 100;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    fs::write(a.at("f"), [0; 5000]).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let read = |path: std::path::PathBuf| {
        let mut count = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let bytes = fs::read(&path).expect("the name is never absent, and what it names opens");
            assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == bytes[0]));
            count += 1;
        }
        count
    };
    std::thread::scope(|scope| {
        let readers = [a.at("f"), b.at("f"), b.at("f")].map(|path| scope.spawn(|| read(path)));
        for round in 1..=ROUNDS {
            fs::write(a.at("next"), vec![round; 1000 + usize::from(round) * 97]).unwrap();
            fs::rename(a.at("next"), a.at("f")).unwrap();
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    });
    assert_eq!(fs::read(b.at("f")).unwrap()[0], ROUNDS);
    a.umount();
    b.umount();
}
