//! `dfs mkdir`, `rm` and `mv`, by url and by paths inside a mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::support::{Client, Server, shell};

/// Names below a directory, sorted, one a line.
const TREE: &str = "find . -mindepth 1 -printf '%P\\n' | sort";

#[test]
fn directories_are_made_with_and_without_those_above_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    client.ask(&["mkdir", &server.path("one"), mount.at("two").to_str().unwrap()]);
    client.ask(&["mkdir", "-p", &server.path("one/a/b"), &server.path("one/a")]);
    assert_eq!(mount.shell(TREE), "one\none/a\none/a/b\ntwo\n");
    let umask = fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777;
    assert_eq!(fs::metadata(mount.at("one")).unwrap().mode() & 0o777, umask);

    fs::write(mount.at("file"), "x").unwrap();
    for (path, reason) in [
        ("one", "exists already"),
        ("no/such", "no such file"),
        ("file/below", "not a directory"),
        ("", "exists already"),
    ] {
        let (code, stderr) = client.fail(&["mkdir", &server.path(path)]);
        assert!(code == 1 && stderr.contains(reason), "{path}: {code} {stderr}");
    }
    let (code, stderr) = client.fail(&["mkdir", "-p", &server.path("file")]);
    assert!(code == 1 && stderr.contains("exists already"), "{stderr}");
    // What can be made is made, whatever became of the path before.
    let (_, stderr) = client.fail(&["mkdir", &server.path("one"), &server.path("three")]);
    assert!(stderr.contains("/main/one"), "{stderr}");
    assert!(mount.at("three").is_dir());
}

#[test]
fn rm_removes_names_and_trees_and_follows_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    mount.shell(
        "mkdir -p tree/a/b tree/c kept/deep; echo 1 > tree/a/b/f; echo 2 > kept/deep/f; \
         ln -s ../kept tree/out; ln -s kept/deep link; echo 3 > g; echo 4 > h",
    );
    let local = dir.path().join("into");
    symlink(mount.at("kept/deep"), &local).unwrap();

    let (code, stderr) = client.fail(&["rm", &server.path("tree"), &server.path("g")]);
    assert_eq!(code, 1);
    assert!(stderr.contains("is a directory") && stderr.contains("try: "), "{stderr}");
    assert!(!mount.at("g").exists(), "the others are removed");
    client.ask(&["rm", "-r", &server.path("tree"), mount.at("link").to_str().unwrap()]);
    client.ask(&["rm", mount.at("h").to_str().unwrap()]);
    assert_eq!(mount.shell(TREE), "kept\nkept/deep\nkept/deep/f\n");

    let (code, stderr) = client.fail(&["rm", "-r", local.to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("not inside a DFS mount"), "{code} {stderr}");
    client.ask(&["rm", local.join("f").to_str().unwrap()]);
    assert_eq!(mount.shell(TREE), "kept\nkept/deep\n");

    let missing = server.path("missing");
    let (code, stderr) = client.fail(&["rm", &missing]);
    assert!(code == 1 && stderr.contains("no such file"), "{stderr}");
    client.ask(&["rm", "-f", &missing, &server.path("missing/below")]);
    let (code, stderr) = client.fail(&["rm", "-rf", &server.path("")]);
    assert!(code == 1 && stderr.contains("root of a volume"), "{stderr}");
}

#[test]
fn mv_goes_into_directories_and_over_files_and_stays_in_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    mount.shell(
        "mkdir -p d/sub full/d/x; echo a > a; echo b > b; echo c > c; ln -s a link; ln c hard",
    );
    let at = |path: &str| mount.at(path).to_str().unwrap().to_owned();
    client.ask(&["mv", &server.path("a"), &server.path("b")]);
    assert_eq!(fs::read_to_string(mount.at("b")).unwrap(), "a\n");
    client.ask(&["mv", &at("b"), &at("link"), &server.path("d")]);
    client.ask(&["mv", &at("hard"), &at("c")]);
    client.ask(&["mv", &at("c"), &at("d/sub/new")]);
    assert_eq!(shell(&mount.at("d"), TREE), "b\nlink\nsub\nsub/new\n");
    assert_eq!(fs::read_link(mount.at("d/link")).unwrap().to_str(), Some("a"));

    mount.shell("echo e > e");
    for (from, to, reason) in [
        ("d", "full", "not empty"),
        ("d", "d/sub", "own descendant"),
        ("d", "e", "not a directory"),
        ("missing", "e", "no such file"),
        ("e", "e", "moved to itself"),
        ("e", "no/such", "no such file"),
    ] {
        let (code, stderr) = client.fail(&["mv", &server.path(from), &server.path(to)]);
        assert!(code == 1 && stderr.contains(reason), "{from} {to}: {code} {stderr}");
    }
    let other = format!("{}/other/e", server.url());
    let (code, stderr) = client.fail(&["mv", &other, &server.path("d")]);
    assert!(code == 1 && stderr.contains("different volumes"), "{stderr}");
    assert!(stderr.contains("try: copy it"), "{stderr}");
    let (code, stderr) = client.fail(&["mv", &at("e"), &at("d"), &server.path("new")]);
    assert!(code == 2 && stderr.contains("need a directory"), "{stderr}");
    assert_eq!(mount.shell("cat e"), "e\n");
}
