//! `dfs edit`, `flush`, `cache`, `bench` and `completions`, as people use them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Client, Server, attempt, run};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// An editor that is a shell script; it gets the file as `$1`.
fn editor(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("editor");
    fs::write(&path, format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs `dfs edit` with that editor; exit code and standard error.
fn edit(client: &Client, dir: &Path, script: &str, path: &str) -> (i32, String) {
    let mut command = client.dfs(&["edit", path]);
    command.env_remove("VISUAL").env("EDITOR", editor(dir, script)).env("TMPDIR", dir);
    let output = attempt(&mut command);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Private copies of `dfs edit` below `dir`.
fn copies(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.display().to_string().contains("dfs-edit-")).collect()
}

#[test]
fn a_file_is_edited_by_url_and_in_a_mount_and_stored_only_if_it_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("notes.txt"), "one\n").unwrap();
    let version = || json(&client.ask(&["--json", "stat", &server.path("notes.txt")]));
    let before = version();
    let (code, stderr) =
        edit(&client, dir.path(), "test \"$(cat \"$1\")\" = one", &server.path("notes.txt"));
    assert!(code == 0 && stderr.contains("not changed"), "{stderr}");
    assert_eq!(version(), before, "nothing was stored");

    let append = "case \"$1\" in */notes.txt) echo two >>\"$1\";; *) exit 9;; esac";
    assert_eq!(edit(&client, dir.path(), append, &server.path("notes.txt")), (0, String::new()));
    assert_eq!(fs::read_to_string(mount.at("notes.txt")).unwrap(), "one\ntwo\n");
    // As vim does: a new file under the old name.
    let replace = "echo three >\"$1.new\"; mv \"$1.new\" \"$1\"";
    edit(&client, dir.path(), replace, &server.path("notes.txt"));
    assert_eq!(fs::read_to_string(mount.at("notes.txt")).unwrap(), "three\n");
    let in_mount = mount.at("notes.txt");
    edit(&client, dir.path(), "echo four >>\"$1\"", in_mount.to_str().unwrap());
    assert_eq!(fs::read_to_string(in_mount).unwrap(), "three\nfour\n");
    edit(&client, dir.path(), "echo new >\"$1\"", &server.path("made.txt"));
    assert_eq!(fs::read_to_string(mount.at("made.txt")).unwrap(), "new\n");
    assert!(copies(dir.path()).is_empty(), "{:?}", copies(dir.path()));
}

#[test]
fn an_edit_that_cannot_be_stored_keeps_the_text_and_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("f"), "one\n").unwrap();
    let theirs = mount.at("f");
    let script = format!("echo mine >>\"$1\"; echo theirs >'{}'", theirs.display());
    let (code, stderr) = edit(&client, dir.path(), &script, &server.path("f"));
    assert!(code == 1 && stderr.contains("somebody else changed"), "{stderr}");
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs\n");
    let [kept] = &copies(dir.path())[..] else { panic!("{stderr}") };
    assert!(stderr.contains(kept.to_str().unwrap()), "{stderr}");
    assert_eq!(fs::read_to_string(kept.join("f")).unwrap(), "one\nmine\n");
    assert_eq!(fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o700);
    fs::remove_dir_all(kept).unwrap();

    let (code, stderr) = edit(&client, dir.path(), "exit 3", &server.path("f"));
    assert!(code == 1 && copies(dir.path()).is_empty(), "{stderr}");
    for (path, reason) in [("", "is a directory"), ("no/such", "no such file")] {
        let (code, stderr) = edit(&client, dir.path(), "echo x >\"$1\"", &server.path(path));
        assert!(code == 1 && stderr.contains(reason), "{path}: {stderr}");
    }
    let mut missing = client.dfs(&["edit", &server.path("f")]);
    let output = attempt(missing.env("VISUAL", "/nonexistent/editor").env("TMPDIR", dir.path()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("/nonexistent/editor"), "{stderr}");
    assert!(copies(dir.path()).is_empty());
}

#[test]
fn flush_says_what_the_servers_do_not_have_and_cache_gives_back_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["--timeout", "1s"]);
    let point = mount.dir.to_str().unwrap().to_owned();
    fs::create_dir(mount.at("d")).unwrap();
    fs::write(mount.at("d/clean"), vec![7; 100_000]).unwrap();
    fs::write(mount.at("busy"), "open").unwrap();
    let held = fs::File::open(mount.at("busy")).unwrap();
    let flushed = json(&client.ask(&["--json", "flush", &point]));
    assert_eq!(flushed["mounts"][0]["unsent_count"], 0);

    fs::write(mount.at("unsent"), "x").unwrap();
    let waiting =
        fs::OpenOptions::new().write(true).truncate(true).open(mount.at("unsent")).unwrap();
    nix::unistd::write(&waiting, b"second").unwrap();
    server.kill_9();
    assert!(nix::unistd::close(std::os::fd::IntoRawFd::into_raw_fd(waiting)).is_err());
    let (code, stderr) = client.fail(&["flush", "--timeout", "1s", &point]);
    assert!(code == 5 && stderr.contains("/unsent"), "{code} {stderr}");

    let files = json(&client.ask(&["--json", "cache", "ls", &point]));
    let state = |path: &str| {
        let files = files["mounts"][0]["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["path"] == path);
        file.unwrap_or_else(|| panic!("{path} in {files:?}"))["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state("/d/clean"), "clean");
    assert_ne!(state("/unsent"), "clean");
    let cleared = json(&client.ask(&["--json", "cache", "clear", &point]));
    assert_eq!(cleared["mounts"][0]["file_count"], 1, "{cleared}");
    assert!(cleared["mounts"][0]["freed_bytes"].as_u64().unwrap() >= 100_000, "{cleared}");
    server.resume();
    client.ask(&["flush", &point]);
    drop(held);
    assert_eq!(fs::read_to_string(mount.at("unsent")).unwrap(), "second");
    assert_eq!(fs::read(mount.at("d/clean")).unwrap(), vec![7; 100_000], "fetched again");
    assert_eq!(fs::read_to_string(mount.at("busy")).unwrap(), "open");
}

#[test]
fn bench_measures_a_mount_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    let point = mount.dir.to_str().unwrap();
    let table = client.ask(&["bench", point, "--size", "1M", "--files", "2"]);
    for word in ["NATIVE", "RATIO", "read it cold", "read it warm"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 0);
    let (code, stderr) = client.fail(&["bench", dir.path().join("none").to_str().unwrap()]);
    assert!(code == 1 && stderr.contains("none"), "{stderr}");
}

#[test]
fn a_terminal_sees_how_far_a_copy_is_and_a_pipe_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let large = dir.path().join("large");
    let bytes: Vec<u8> = (0..64_u32 << 20).map(|index| (index >> 3) as u8 ^ index as u8).collect();
    fs::write(&large, bytes).unwrap();
    for (source, target) in [
        (large.display().to_string(), server.path("large")),
        (server.path("large"), dir.path().join("back").display().to_string()),
    ] {
        let verb = if source.starts_with("dfs:") { "get" } else { "put" };
        let plain = client.dfs(&[]);
        let line = format!("'{}' {verb} '{source}' '{target}'", plain.get_program().display());
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
        let environment = plain.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let shown = run(terminal.envs(environment)).stdout;
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("/64.00 MiB"), "{verb}: {shown:?}");
    }
    let quiet = dir.path().join("quiet");
    let quiet = run(&mut client.dfs(&["get", &server.path("large"), quiet.to_str().unwrap()]));
    assert!(quiet.stderr.is_empty(), "{}", String::from_utf8_lossy(&quiet.stderr));
}

#[test]
fn bash_completes_verbs_with_the_script_that_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::stranger(dir.path());
    let script = client.ask(&["completions", "bash"]);
    let file = dir.path().join("dfs.bash");
    fs::write(&file, script).unwrap();
    let complete = "source \"$0\"; COMP_WORDS=(dfs umo); COMP_CWORD=1; \
                    _dfs dfs umo dfs; echo \"${COMPREPLY[@]}\"";
    let output = run(Command::new("bash").args(["-c", complete]).arg(&file));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "umount");
}
