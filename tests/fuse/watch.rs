//! `dfs watch`: what other clients change, as they do.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::support::{Client, PATIENCE, Server, eventually};

/// A watcher under way, and what it prints.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
}

impl Watcher {
    /// Starts one; from then on it is told everything.
    fn start(client: &Client, dir: &Path, arguments: &[&str]) -> Watcher {
        let mut command: Command = client.dfs(&["watch"]);
        command.arg(dir).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        let mut notes = BufReader::new(child.stderr.take().unwrap());
        notes.read_line(&mut first).unwrap();
        assert!(first.starts_with("watching "), "{first}");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        Watcher { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("it is told")
    }

    /// Events up to the one that says this of this name; of each only what it says and of what.
    fn until(&self, event: &str, path: &Path) -> Vec<(String, String)> {
        let mut all = Vec::new();
        loop {
            let line: Value = serde_json::from_str(&self.line()).unwrap();
            let word = |key: &str| line[key].as_str().unwrap().to_owned();
            all.push((word("event"), word("path")));
            if all.last() == Some(&(event.to_owned(), path.to_str().unwrap().to_owned())) {
                return all;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn changes_by_other_clients_are_shown_as_they_happen_and_own_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b_mount) = (a.mount(&server, &[]), b.mount(&server, &[]));
    fs::create_dir(a.at("d")).unwrap();
    let (here, there) = (b_mount.at("d"), a.at("d"));
    let mut watcher = Watcher::start(&b, &here, &["--json"]);
    // Often, so that the promise it lives on must be kept.
    for round in 0..50 {
        let name = format!("f{round}");
        fs::write(there.join(&name), "some content").unwrap();
        watcher.until("changed", &here.join(&name));
        fs::rename(there.join(&name), there.join("kept")).unwrap();
        let seen = watcher.until("changed", &here.join("kept"));
        let (removed, kept) = (here.join(&name), here.join("kept"));
        let of = |path: &Path| path.to_str().unwrap().to_owned();
        assert!(seen.contains(&("removed".into(), of(&removed))), "{seen:?}");
        fs::write(here.join("own"), round.to_string()).unwrap();
        fs::remove_file(there.join("kept")).unwrap();
        let seen = watcher.until("removed", &kept);
        assert!(!seen.iter().any(|(_, path)| path.ends_with("own")), "{seen:?}");
    }
    fs::set_permissions(there.join("own"), fs::Permissions::from_mode(0o600)).unwrap();
    let shown = loop {
        let line: Value = serde_json::from_str(&watcher.line()).unwrap();
        if line["mode"] == "0600" {
            break line;
        }
    };
    let own = here.join("own");
    assert_eq!(
        shown,
        json!({"event": "changed", "path": own, "kind": "file", "size_bytes": 2, "mode": "0600"})
    );
    fs::remove_dir_all(&there).unwrap();
    watcher.until("gone", &here);
    let status = eventually("it ends with the directory", || watcher.child.try_wait().unwrap());
    assert!(status.success());
}

#[test]
fn a_watcher_goes_on_after_a_restart_of_the_server_and_says_that_it_may_have_missed_something() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b_mount) = (a.mount(&server, &[]), b.mount(&server, &[]));
    let watcher = Watcher::start(&b, &b_mount.dir, &[]);
    fs::write(a.at("before"), "x").unwrap();
    eventually("it is shown", || watcher.line().contains("before").then_some(()));
    server.kill_9();
    server.resume();
    eventually("it says so", || watcher.line().starts_with("missed").then_some(()));
    fs::write(a.at("after"), "x").unwrap();
    eventually("it is shown", || watcher.line().contains("after").then_some(()));
    drop(watcher);
    // Nobody waits for a watcher that is gone.
    fs::write(a.at("last"), "x").unwrap();
}

#[test]
fn what_cannot_be_watched_is_refused_with_its_name_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("f"), "").unwrap();
    let fails = |path: &Path| client.fail(&["watch", path.to_str().unwrap()]);
    let (code, said) = fails(&mount.at("f"));
    assert!(code == 1 && said.contains("not a directory"), "{code}: {said}");
    let (code, said) = fails(dir.path());
    assert!(code == 2 && said.contains("not inside a DFS mount"), "{code}: {said}");
    let (_, said) = fails(&mount.at("none"));
    assert!(said.contains("none"), "{said}");
}
