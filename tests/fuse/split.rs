//! Roles in processes of their own, started in any order (scenario row 8).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Client, Server, attempt, eventually, sha256};

fn token(client: &Client, cell: &Server, roles: &str) -> String {
    client.ask(&["admin", "token", "new", "--roles", roles, "--cell", &cell.url()]).trim().into()
}

fn join(dir: &Path, name: &str, roles: &str, token: &str) -> Server {
    let mut arguments = vec!["--roles", roles, "--join", token];
    if roles == "file" {
        arguments.extend(["--file-nodes", "1"]);
    }
    Server::start(&dir.join(name), &arguments)
}

#[test]
fn row_8_roles_of_one_cell_start_in_any_order_and_say_what_they_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let auth = Server::start(&dir.join("auth"), &["--roles", "auth"]);
    let admin = Client::new(&dir.join("a"), &auth);
    let tokens = ["file", "file", "lock", "directory"].map(|roles| token(&admin, &auth, roles));
    // Those who depend on others come first.
    let one = join(dir, "one", "file", &tokens[0]);
    let two = join(dir, "two", "file", &tokens[1]);
    eventually("file node says whom it waits for", || {
        one.log().contains("directory").then_some(())
    });
    let directory = join(dir, "directory", "directory", &tokens[3]);
    let lock = join(dir, "lock", "lock", &tokens[2]);

    let mount = eventually("the cell comes together", || {
        let status = admin.ask(&["status", "--json", &auth.url()]);
        let live = status.matches("\"is_live\":true").count()
            + status.matches("\"is_live\": true").count();
        (live == 2).then(|| admin.mount(&auth, &[]))
    });
    fs::write(mount.at("f"), vec![9; 2 << 20]).unwrap();
    let before = sha256(&mount.at("f"));
    mount.umount();

    // All of it again, in another order, without tokens.
    let mut all = [auth, one, two, directory, lock];
    all.iter_mut().for_each(Server::terminate);
    for index in [4, 2, 3, 1, 0] {
        all[index].resume();
    }
    let mount = admin.mount(&all[0], &["--timeout", "60s"]);
    assert_eq!(sha256(&mount.at("f")), before);
    fs::write(mount.at("g"), "written after the restart").unwrap();
    mount.umount();
}

/// SEMANTICS.md, L5: "Locks survive a restart of the servers", also of the lock server alone.
#[test]
fn locks_survive_a_kill_of_a_lock_server_that_runs_apart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cell = Server::start(&dir.join("cell"), &["--roles", "auth,directory,file"]);
    let admin = Client::new(&dir.join("a"), &cell);
    let mut lock = join(dir, "lock", "lock", &token(&admin, &cell, "lock"));
    let mount = admin.mount(&cell, &[]);
    eventually("locks can be had", || {
        attempt(&mut flock(&mount.dir, &["-n", "file", "true"])).status.success().then_some(())
    });
    let mut holder = flock(&mount.dir, &["file", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let is_held = || !attempt(&mut flock(&mount.dir, &["-n", "file", "true"])).status.success();
    eventually("it has the lock", || is_held().then_some(()));
    lock.kill_9();
    lock.resume();
    assert!(is_held(), "asked for while those of before may come back");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    eventually("it went back", || (!is_held()).then_some(()));
    mount.umount();
}

fn flock(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("flock");
    command.args(arguments).current_dir(dir).stdin(Stdio::null());
    command
}

#[test]
fn a_join_token_works_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let cell = Server::start(&dir.join("cell"), &[]);
    let admin = Client::new(&dir.join("a"), &cell);
    let token = token(&admin, &cell, "file");
    let _node = join(dir, "one", "file", &token);
    let output = crate::support::attempt(
        std::process::Command::new(crate::support::program("dfs-server"))
            .args(["serve", "--roles", "file", "--listen", "127.0.0.1:0", "--join", &token])
            .arg("--data")
            .arg(dir.join("two")),
    );
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("token"), "{text}");
}
