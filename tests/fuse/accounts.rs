//! Accounts beside the first one: made, logged in, mounting, changing passwords, removed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Command, Output, Stdio};

use crate::support::{Client, Server, eventually};

/// Runs a command that reads `lines` from its standard input.
fn with_input(mut command: Command, lines: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn must(client: &Client, arguments: &[&str], lines: &str) -> String {
    let output = with_input(client.dfs(arguments), lines);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn log_in(client: &Client, server: &Server, password: &str) -> Output {
    let ca = server.data.join("cell/ca.pem");
    let arguments = ["login", &server.url(), "--user", "anna", "--ca", ca.to_str().unwrap()];
    with_input(client.dfs(&arguments), password)
}

#[test]
fn a_second_account_logs_in_mounts_and_owns_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let admin = Client::new(&dir.path().join("a"), &server);
    let anna = Client::stranger(&dir.path().join("b"));
    let made = must(&admin, &["admin", "user", "add", "anna", "--json", "--stdin"], "first word\n");
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!((&made["user"], &made["uid"]), (&"anna".into(), &10_000.into()));
    let root = admin.mount(&server, &[]);
    fs::create_dir(root.at("hers")).unwrap();
    chown(root.at("hers"), Some(10_000), Some(10_000)).unwrap();
    fs::write(root.at("roots"), "x").unwrap();

    assert!(log_in(&anna, &server, "first word").status.success());
    assert!(anna.ask(&["whoami"]).contains("anna"));
    let mount = anna.mount(&server, &[]);
    fs::write(mount.at("hers/file"), "from anna").unwrap();
    // Root of her machine is nobody special: her ticket speaks for her alone.
    fs::write(mount.at("roots"), "y").unwrap_err();
    fs::write(mount.at("not-hers"), "y").unwrap_err();
    let seen = fs::metadata(root.at("hers/file")).unwrap();
    assert_eq!((seen.uid(), seen.gid()), (10_000, 10_000));
    assert_eq!(fs::read_to_string(root.at("hers/file")).unwrap(), "from anna");

    let (code, stderr) = anna.fail(&["admin", "user", "list"]);
    assert_eq!(code, 4, "{stderr}");
    let list = admin.ask(&["admin", "user", "list"]);
    assert!(list.lines().any(|line| line.starts_with("anna ")), "{list}");

    admin.ask(&["admin", "user", "remove", "anna", "--yes"]);
    eventually("her mount is refused", || fs::write(mount.at("hers/late"), "z").err());
    assert_eq!(log_in(&anna, &server, "first word").status.code(), Some(4));
    assert_eq!(fs::read_to_string(root.at("hers/file")).unwrap(), "from anna");
    let (code, stderr) = admin.fail(&["admin", "user", "remove", "anna", "--yes"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("no such account") && stderr.contains("try: "), "{stderr}");
}

#[test]
fn passwords_are_changed_by_their_owner_and_set_by_an_administrator() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let admin = Client::new(&dir.path().join("a"), &server);
    let anna = Client::stranger(&dir.path().join("b"));
    must(&admin, &["admin", "user", "add", "anna", "--stdin"], "first word\n");
    assert!(log_in(&anna, &server, "first word").status.success());

    let wrong = with_input(anna.dfs(&["passwd", "--stdin"]), "wrong word\nsecond word\n");
    let stderr = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("try: type the old password again"), "{stderr}");
    let short = with_input(anna.dfs(&["passwd", "--stdin"]), "first word\nshort\n");
    assert_eq!(short.status.code(), Some(1));
    let half = with_input(anna.dfs(&["passwd", "--stdin"]), "first word\n");
    assert_eq!(half.status.code(), Some(2));

    must(&anna, &["passwd", "--stdin"], "first word\nsecond word\n");
    assert!(anna.ask(&["whoami"]).contains("anna"), "the login goes on");
    let other = Client::stranger(&dir.path().join("c"));
    assert_eq!(log_in(&other, &server, "first word").status.code(), Some(4));
    assert!(log_in(&other, &server, "second word").status.success());

    must(&admin, &["admin", "user", "passwd", "anna", "--stdin"], "third word\n");
    for client in [&anna, &other] {
        let (code, stderr) = client.fail(&["whoami"]);
        assert_eq!(code, 4, "{stderr}");
    }
    assert!(log_in(&anna, &server, "third word").status.success());
    let (code, stderr) = admin.fail(&["admin", "user", "remove", "anna"]);
    assert_eq!(code, 2, "without a terminal nobody can be asked: {stderr}");
    assert!(stderr.contains("--yes"), "{stderr}");
}
