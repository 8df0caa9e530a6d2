//! Acceptance scenarios, one function each, named after the row they make true.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;

use crate::support::{Client, Server, run, sha256};

/// Row 4: opening makes a local copy, writes go there, close sends it back.
#[test]
fn row_4_an_edit_is_local_until_close() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    fs::write(a.at("f"), "before").unwrap();
    let cost = a.cost(|| {
        let mut file = fs::OpenOptions::new().append(true).open(a.at("f")).unwrap();
        (0..50).for_each(|_| file.write_all(b" more").unwrap());
        assert_eq!(fs::read_to_string(b.at("f")).unwrap(), "before");
    });
    // The open asks once; what was written travels once, with the close.
    assert_eq!(cost.values().sum::<u64>(), 2, "{cost:?}");
    assert_eq!(cost.get("file.store"), Some(&1));
    assert_eq!(fs::read_to_string(b.at("f")).unwrap(), format!("before{}", " more".repeat(50)));
}

/// Row 7: read once cold, once warm, both times printed, with those of a local disk.
#[test]
fn row_7_bench_tells_cold_and_warm_reads_beside_native_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("kept"), "cached").unwrap();
    let (point, local) = (mount.dir.to_str().unwrap(), dir.path().to_str().unwrap());
    let arguments = ["--json", "bench", point, "--size", "4M", "--files", "5", "--native", local];
    let mut text = String::new();
    let cost = mount.cost(|| text = client.ask(&arguments));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 7, "{report}");
    for figure in figures {
        let number = |key: &str| figure[key].as_f64().unwrap();
        let ratio = number("per_second") / number("native_per_second");
        assert!(ratio > 0.0 && (ratio - number("ratio")).abs() < 1e-6 * ratio, "{figure}");
    }
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names[1..3], ["read it cold", "read it warm"]);
    // Cold means from the servers, and only what was measured with became cold.
    assert!(cost.contains_key("file.fetch"), "{cost:?}");
    let cost = mount.cost(|| assert_eq!(fs::read_to_string(mount.at("kept")).unwrap(), "cached"));
    assert_eq!(cost.get("file.fetch"), None, "{cost:?}");
    let left = fs::read_dir(&mount.dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["kept"]);
}

/// Row 17: existing names, missing names, and no way out of the volume.
#[test]
fn row_17_existing_and_missing_names_are_refused_and_nothing_escapes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("f"), "mine").unwrap();

    let exists = fs::OpenOptions::new().write(true).create_new(true).open(mount.at("f"));
    assert_eq!(exists.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(mount.at("none")).unwrap_err().kind(), ErrorKind::NotFound);
    let secret = dir.path().join("secret");
    fs::write(&secret, "outside").unwrap();
    let (_, error) = client.fail(&["put", secret.to_str().unwrap(), &server.path("f")]);
    assert!(error.contains("exists"), "{error}");
    assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "mine");
    client.fail(&["get", &server.path("none"), dir.path().join("out").to_str().unwrap()]);

    // From the server's side there is no `..` above the root, and links are only text.
    let above = client.fail(&["cat", &server.path("../../etc/passwd")]);
    assert!(!above.1.contains("root:"), "{}", above.1);
    std::os::unix::fs::symlink(&secret, mount.at("out")).unwrap();
    let (_, error) = client.fail(&["cat", &server.path("out")]);
    assert!(!error.contains("outside"), "{error}");
    let target = dir.path().join("tree");
    fs::create_dir(mount.at("d")).unwrap();
    std::os::unix::fs::symlink(dir.path(), mount.at("d/link")).unwrap();
    client.ask(&["get", "-r", &server.path("d"), target.to_str().unwrap()]);
    assert!(fs::symlink_metadata(target.join("link")).unwrap().file_type().is_symlink());

    let long = "x".repeat(256);
    let error = fs::write(mount.at(&long), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ENAMETOOLONG as i32));
    fs::write(mount.at(&long[..255]), "x").unwrap();
    client.fail(&["put", secret.to_str().unwrap(), &server.path(&long)]);
}

/// Row 20 (locks apart): a restart of everything loses nothing.
#[test]
fn row_20_a_restart_of_everything_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    mount.shell(
        "mkdir -p deep/er; head -c 3000000 /dev/urandom > deep/er/file; ln deep/er/file hard",
    );
    let before = sha256(&mount.at("hard"));
    let list = "find . -printf '%P %i %y %m %n %s %T@\\n' | sort";
    let listing = mount.shell(list);
    mount.umount();
    server.terminate();
    server.resume();
    // The stored login still works, and the cache is still good: only the question is asked.
    let mount = client.mount(&server, &[]);
    let cost = mount.cost(|| assert_eq!(sha256(&mount.at("hard")), before));
    assert_eq!(cost.get("file.fetch"), None, "{cost:?}");
    assert_eq!(mount.shell(list), listing);
    run(&mut client.dfs(&["whoami"]));
    let nodes = client.ask(&["status", "--json", &server.url()]);
    assert!(nodes.contains("\"is_live\":true") || nodes.contains("\"is_live\": true"), "{nodes}");
}

/// Row 21: the commands that people type, one after another. Progress on long transfers is tested
/// with a terminal in `tools`.
#[test]
fn row_21_login_put_ls_cat_edit_get_mv_and_rm_work_by_url() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::stranger(&dir.path().join("a"));
    let (code, error) = client.fail(&["ls", &server.path("")]);
    assert!(code == 4 && error.contains("dfs login"), "{code}: {error}");
    client.ask(&["login", "--bootstrap", server.bootstrap().to_str().unwrap()]);
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    fs::write(&source, "first\n").unwrap();
    let (file, moved) = (server.path("file"), server.path("moved"));
    client.ask(&["put", source.to_str().unwrap(), &file]);
    assert_eq!(client.ask(&["ls", &server.path("")]).lines().last(), Some("file"));
    assert_eq!(client.ask(&["cat", &file]), "first\n");
    let editor = dir.path().join("editor");
    fs::write(&editor, "#!/bin/sh\necho second >> \"$1\"\n").unwrap();
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).unwrap();
    run(client.dfs(&["edit", &file]).env("VISUAL", &editor));
    client.ask(&["mv", &file, &moved]);
    client.ask(&["get", &moved, back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&back).unwrap(), "first\nsecond\n");
    client.ask(&["rm", &moved]);
    let (_, error) = client.fail(&["cat", &moved]);
    assert!(error.contains("moved"), "{error}");
}
