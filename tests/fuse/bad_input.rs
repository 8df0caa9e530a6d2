//! Bad input: a clear error that names the value and the remedy, and nothing lost.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::support::{Client, Server, attempt, program, run};

/// Standard error of a server that must not start.
fn refused(arguments: &[&str]) -> String {
    let output = attempt(Command::new(program("dfs-server")).arg("serve").args(arguments));
    assert!(!output.status.success(), "{arguments:?} started");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_password_and_an_unknown_user_get_the_same_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::stranger(&dir.path().join("a"));
    let password = dir.path().join("password");
    fs::write(&password, "not the password\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let bootstrap = fs::read_to_string(server.bootstrap()).unwrap();
    let fingerprint = bootstrap
        .lines()
        .find_map(|line| line.strip_prefix("ca_fingerprint = "))
        .unwrap()
        .trim_matches('"');
    let login = |user: &str| {
        let arguments = ["login", &server.url(), "--user", user, "--fingerprint", fingerprint];
        let output = attempt(client.dfs(&arguments).env("DFS_PASSWORD_FILE", &password));
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).replace(user, "USER")
    };
    let wrong = login("admin");
    assert!(wrong.contains("user or password is wrong"), "{wrong}");
    assert_eq!(wrong, login("nobody-such"));
    let (_, text) = client.fail(&["ls", &server.path("")]);
    assert!(text.contains("log") && text.contains("try:"), "{text}");
}

#[test]
fn a_server_of_another_cell_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let address = server.address.clone();
    server.terminate();
    let mut impostor = Server::start(&dir.path().join("other"), &[]);
    impostor.terminate();
    impostor.address = address;
    impostor.resume();
    let (code, text) = client.fail(&["ls", &impostor.path("")]);
    assert!(text.contains("its certificate is from another CA"), "{text}");
    assert!(text.contains("not the cell that was logged in to"), "{text}");
    assert!(!text.contains("UnknownIssuer") && code == 4, "exit {code}: {text}");
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let (code, text) = client.fail(&["mount", &impostor.path(""), mnt.to_str().unwrap()]);
    assert!(text.contains("not the cell that was logged in to"), "exit {code}: {text}");
    let wrong = "0".repeat(64);
    let arguments = ["login", &impostor.url(), "--user", "admin", "--fingerprint", &wrong];
    let (_, text) = client.fail(&arguments);
    assert!(text.contains("fingerprint"), "{text}");
}

#[test]
fn a_login_file_that_cannot_be_used_is_named_with_the_remedy_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let entry = fs::read_dir(client.home.join("config")).unwrap().next().unwrap().unwrap();
    let path = entry.path();
    let refusal = |remedy: &str| {
        let (code, text) = client.fail(&["ls", &server.path("")]);
        assert_eq!((code, text.matches(remedy).count()), (2, 1), "{text}");
        text
    };
    std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
    let text = refusal("without sudo");
    assert!(text.contains("belongs to user 1234, and this command runs as user 0"), "{text}");
    std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    client.ask(&["ls", &server.path("")]);
    fs::write(&path, "[[[").unwrap();
    refusal("log in again");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    refusal("chmod 600");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let text = refusal("log in again");
    assert!(text.contains("is a directory"), "{text}");
}

#[test]
fn a_mount_of_root_is_called_so_to_other_users() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    // Where others may run it.
    let (public, theirs) = (dir.path().join("dfs"), dir.path().join("theirs"));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(program("dfs"), &public).unwrap();
    let status = |of: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1234", "--regid=1234", "--clear-groups"]).arg(&public);
        attempt(command.arg("status").args(of).env("DFS_CONFIG_DIR", &theirs))
    };
    let all = status(&[]);
    let text = String::from_utf8_lossy(&all.stdout).into_owned();
    assert!(text.contains(mount.dir.to_str().unwrap()), "{text}");
    assert!(text.contains("only root, who mounted it, may ask"), "{text}");
    let asked = status(&[mount.dir.to_str().unwrap()]);
    assert_eq!(asked.status.code(), Some(4));
    let text = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(text.contains("only root, who mounted it, may ask"), "{text}");
}

#[test]
fn unknown_volumes_and_unusable_mount_points_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let point = dir.path().join("point");
    let file = dir.path().join("file");
    fs::create_dir(&point).unwrap();
    fs::write(&file, "").unwrap();
    let volume = |name: &str| format!("{}/{name}", server.url());
    let (_, text) = client.fail(&["mount", &volume("nowhere"), point.to_str().unwrap()]);
    assert!(text.contains("nowhere"), "{text}");
    let missing = dir.path().join("missing");
    let (_, text) = client.fail(&["mount", &volume("main"), missing.to_str().unwrap()]);
    assert!(text.contains("missing"), "{text}");
    let (_, text) = client.fail(&["mount", &volume("main"), file.to_str().unwrap()]);
    assert!(text.contains("director"), "{text}");
    let (_, text) = client.fail(&["mount", "ftp://x/y", point.to_str().unwrap()]);
    assert!(text.contains("ftp://x/y"), "{text}");

    let mount = client.mount(&server, &[]);
    let url = volume("main");
    let (_, text) = client.fail(&["mount", &url, mount.dir.to_str().unwrap()]);
    assert!(text.contains("mount"), "busy: {text}");
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 0);
}

#[test]
fn one_cache_directory_serves_one_client_and_never_lies_on_a_dfs_mount() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    let point = dir.path().join("point");
    fs::create_dir(&point).unwrap();
    let url = format!("{}/main", server.url());
    let (point, cache) = (point.to_str().unwrap(), mount.cache.to_str().unwrap());
    let (_, text) = client.fail(&["mount", &url, point, "--cache-dir", cache]);
    assert!(text.contains(&mount.pid.to_string()), "names the holder: {text}");
    let inside = mount.at("cache");
    let (_, text) = client.fail(&["mount", &url, point, "--cache-dir", inside.to_str().unwrap()]);
    assert!(text.contains("cache"), "{text}");
}

#[test]
fn a_full_cache_directory_is_enospc_and_loses_nothing_that_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let cache = dir.path().join("small");
    fs::create_dir(&cache).unwrap();
    let size = "size=12m,mode=700";
    run(Command::new("mount").args(["-t", "tmpfs", "-o", size, "dfs-test"]).arg(&cache));
    let undo = Unmount(cache.clone());
    let inner = cache.join("cache");
    {
        let mount = client.mount(&server, &["--cache-dir", inner.to_str().unwrap()]);
        fs::write(mount.at("small"), vec![1; 100_000]).unwrap();
        let full = fs::write(mount.at("large"), vec![2; 40 << 20]).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(nix::errno::Errno::ENOSPC as i32), "{full}");
        fs::remove_file(mount.at("large")).unwrap();
        assert_eq!(fs::read(mount.at("small")).unwrap(), vec![1; 100_000]);
        fs::write(mount.at("again"), vec![3; 1 << 20]).unwrap();
        mount.umount();
    }
    drop(undo);
    let other = Client::new(&dir.path().join("b"), &server);
    let other = other.mount(&server, &[]);
    assert_eq!(fs::read(other.at("again")).unwrap(), vec![3; 1 << 20]);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = attempt(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn server_settings_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (data, fresh) = (server.data.to_str().unwrap(), dir.path().join("fresh"));
    let fresh = fresh.to_str().unwrap();
    let text = refused(&["--data", fresh, "--listen", &server.address]);
    assert!(text.contains(&server.address) && text.contains("--listen"), "{text}");
    assert!(!dir.path().join("fresh/bootstrap.toml").exists());
    let text = refused(&["--data", data, "--listen", "127.0.0.1:0"]);
    assert!(text.contains("in use"), "{text}");
    let config = dir.path().join("cell.toml");
    fs::write(&config, "listen = [\n").unwrap();
    let text = refused(&["--config", config.to_str().unwrap()]);
    assert!(text.contains("cell.toml") && text.contains("line"), "{text}");
    let text = refused(&["--config", "/nonexistent.toml"]);
    assert!(text.contains("/nonexistent.toml"), "{text}");
    let text = refused(&["--data", fresh, "--roles", "file", "--listen", "127.0.0.1:0"]);
    assert!(text.contains("--join"), "{text}");
    let text = refused(&["--data", fresh, "--roles", "file", "--join", "nonsense"]);
    assert!(text.contains("token"), "{text}");
}

#[test]
fn damaged_metadata_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&dir.path().join("data"), &[]);
    server.terminate();
    let path = server.data.join("meta.db");
    fs::write(&path, "this is no database").unwrap();
    let _ = fs::remove_file(server.data.join("meta.db-wal"));
    let text = refused(&["--data", server.data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert!(text.contains("meta.db"), "{text}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "this is no database");
}

#[test]
fn garbage_on_the_wire_is_answered_and_hurts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    for noise in [&b"\x16\x03\x01\xff\xff"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 70_000]] {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        // The server may hang up in the middle: that is its right.
        let _ = socket.write_all(noise);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    let url = format!("https://{}", server.address);
    let post = |path: &str, body: &str| {
        let script = format!(
            "head -c {body} /dev/urandom | curl -sk -m 20 -o /dev/null \
             -w '%{{http_code}}' --data-binary @- {url}{path}"
        );
        crate::support::shell(dir.path(), &script)
    };
    assert_eq!(post("/dfs/directory.lookup", "100"), "413");
    assert_eq!(post("/dfs/directory.lookup", "3"), "400");
    assert_eq!(post("/dfs/no.such", "0"), "400");
    assert_eq!(post("/dfs/file.store", "20000000"), "413");
    let claim = format!(
        "curl -sk -m 20 -o /dev/null -w '%{{http_code}}' -X POST \
         -H 'Content-Length: 99999999999' {url}/dfs/file.store || true"
    );
    assert_eq!(crate::support::shell(dir.path(), &claim), "413");
    client.ask(&["ls", &server.path("")]);
}

#[test]
fn strangers_that_announce_large_bodies_hold_up_nobody() {
    // More than fit into the server's memory for bodies.
    const STRANGERS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    fs::write(dir.path().join("large"), vec![7; 9 << 20]).unwrap();
    let head =
        "POST /dfs/auth.login HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 8388608\\r\\n\\r\\nabcd";
    let script = format!(
        "(printf '{head}'; exec cat) \
         | exec openssl s_client -quiet -connect {} >/dev/null 2>&1",
        server.address
    );
    let start = |_| {
        let mut stranger = Command::new("sh");
        stranger.args(["-c", &script]).stdin(Stdio::piped()).process_group(0).spawn().unwrap()
    };
    let mut strangers: Vec<_> = (0..STRANGERS).map(start).collect();
    let started = std::time::Instant::now();
    let large = dir.path().join("large");
    client.ask(&["put", large.to_str().unwrap(), &server.path("large")]);
    client.ask(&["ls", &server.path("")]);
    assert!(started.elapsed() < std::time::Duration::from_secs(25), "{:?}", started.elapsed());
    for stranger in &mut strangers {
        let group = format!("-{}", stranger.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = stranger.wait();
    }
}
