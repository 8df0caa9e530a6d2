//! `make install`, and what it gives to systemd and mount(8).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{PATIENCE, attempt, eventually, program, run, signal};

fn make_install(bin_dir: &Path, variables: &[(&str, &Path)]) -> Output {
    let mut make = Command::new("make");
    make.args(["--silent", "-C", env!("CARGO_MANIFEST_DIR"), "install"]);
    for (name, value) in variables {
        make.arg(format!("{name}={}", value.display()));
    }
    // Not those of a `make test` around this one.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env("DFS_BIN_DIR", bin_dir);
    attempt(&mut make)
}

fn built() -> PathBuf {
    program("dfs").parent().unwrap().to_owned()
}

#[test]
fn programs_helpers_units_and_examples_are_installed_below_destdir() {
    let dir = tempfile::tempdir().unwrap();
    let (root, prefix) = (dir.path(), Path::new("/opt/dfs"));
    for _ in 0..2 {
        let made = make_install(&built(), &[("DESTDIR", root), ("PREFIX", prefix)]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    for name in ["dfs", "dfs-server"] {
        let installed = root.join("opt/dfs/bin").join(name);
        assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        run(Command::new(&installed).arg("--version"));
    }
    for name in ["mount.dfs", "mount.fuse.dfs"] {
        let target = fs::read_link(root.join("sbin").join(name)).unwrap();
        assert_eq!(target, Path::new("/opt/dfs/bin/dfs"));
    }
    for file in [
        "man/man1/dfs.1",
        "man/man1/dfs-mount.1",
        "man/man8/mount.dfs.8",
        "bash-completion/completions/dfs",
        "zsh/site-functions/_dfs",
        "fish/vendor_completions.d/dfs.fish",
    ] {
        assert!(root.join("opt/dfs/share").join(file).metadata().unwrap().len() > 0, "{file}");
    }
    let unit = root.join("opt/dfs/lib/systemd/system/dfs-server.service");
    let text = fs::read_to_string(unit).unwrap();
    assert!(text.contains("ExecStart=/opt/dfs/bin/dfs-server serve"), "{text}");
    for name in ["data.mount", "data.automount", "fstab.line"] {
        assert!(root.join("opt/dfs/share/doc/dfs/examples").join(name).exists(), "{name}");
    }
}

#[test]
fn without_programs_nothing_is_installed_and_the_remedy_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let made = make_install(Path::new("/nonexistent"), &[("DESTDIR", dir.path())]);
    let text = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success() && text.contains("cargo build --release"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn systemd_accepts_the_units() {
    let dir = tempfile::tempdir().unwrap();
    let (prefix, sbin) = (dir.path().join("usr"), dir.path().join("sbin"));
    let made = make_install(&built(), &[("PREFIX", &prefix), ("SBINDIR", &sbin)]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let samples = prefix.join("share/doc/dfs/examples");
    let verified = attempt(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(prefix.join("lib/systemd/system/dfs-server.service"))
            .args([samples.join("data.mount"), samples.join("data.automount")]),
    );
    let text = String::from_utf8_lossy(&verified.stderr);
    // It also complains of units of the machine; ours must be without blame.
    let blamed = ["dfs-server.service", "data.mount", "data.automount"];
    let blame = text.lines().find(|line| blamed.iter().any(|name| line.contains(name)));
    assert!(verified.status.success() && blame.is_none(), "{text}");
}

#[test]
fn the_example_for_fstab_is_one_that_mount_reads() {
    let fstab = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fstab.line");
    let mut findmnt = Command::new("findmnt");
    findmnt.args(["--noheadings", "--raw", "--output", "SOURCE,TARGET,FSTYPE", "--tab-file"]);
    let output = run(findmnt.arg(&fstab));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "dfs://dfs.example.org:7400/main /data dfs\n");
    let line = fs::read_to_string(&fstab).unwrap();
    let options = line.split_whitespace().nth(3).unwrap();
    dfs_mount::config::parse_options(options).unwrap();
}

#[test]
fn systemd_is_told_when_the_server_serves_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut server = Command::new(program("dfs-server"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = || {
        let mut text = [0; 64];
        let count = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..count]).into_owned()
    };
    assert_eq!(told(), "READY=1");
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("dfs-server listens on "), "{line}");
    signal(server.id(), "TERM");
    assert_eq!(told(), "STOPPING=1");
    let status = eventually("the server ends", || server.try_wait().unwrap());
    assert!(status.success());
}
