//! The program itself: what a shell sees of `dfs` before any server is asked.

use std::path::Path;
use std::process::{Command, Output, Stdio};

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs `dfs` with a home of its own.
fn dfs(home: &Path, arguments: &[&str]) -> Ended {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_dfs"))
        .args(arguments)
        .env_clear()
        .env("DFS_CONFIG_DIR", home.join("config"))
        .env("DFS_CACHE_DIR", home.join("cache"))
        .stdin(Stdio::null())
        .output()
        .expect("dfs runs and prints UTF-8");
    Ended {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("dfs runs and prints UTF-8"),
        stderr: String::from_utf8(stderr).expect("dfs runs and prints UTF-8"),
    }
}

#[test]
fn help_goes_to_stdout_and_lists_the_exit_codes() {
    let home = tempfile::tempdir().unwrap();
    let ended = dfs(home.path(), &["--help"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(ended.stdout.contains("Exit codes:\n  0  done\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("umount"));
    assert_eq!(dfs(home.path(), &["--version"]).code, Some(0));
}

#[test]
fn wrong_usage_ends_with_2_and_says_nothing_on_stdout() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [&[][..], &["fly"], &["mount", "dfs://h:0/v", "/"], &["ls", "/elsewhere"]] {
        let ended = dfs(home.path(), arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!ended.stderr.is_empty());
    }
}

#[test]
fn a_command_without_a_login_ends_with_4_and_says_what_to_try() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [&["whoami"][..], &["logout"], &["ls", "dfs://h/main"]] {
        let ended = dfs(home.path(), arguments);
        assert_eq!(ended.code, Some(4), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.starts_with("dfs: not logged in"), "{}", ended.stderr);
        assert!(ended.stderr.contains("\n  try: dfs login"), "{}", ended.stderr);
    }
}

#[test]
fn a_mount_is_refused_before_any_server_is_asked() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let dir = home.path().to_str().unwrap();
    for (place, options, code, reason) in [
        ("/nowhere/at/all", "ro", 6, "No such file"),
        (file, "ro", 6, "not a directory"),
        ("/proc", "ro", 6, "is mounted there"),
        (dir, "bogus", 2, "option `bogus` is not known"),
        (dir, "ro", 4, "there is no stored login"),
    ] {
        let ended = dfs(home.path(), &["mount", "dfs://127.0.0.1:1/main", place, "-o", options]);
        assert_eq!(ended.code, Some(code), "{place}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{place}: {}", ended.stderr);
        assert!(ended.stderr.contains("\n  try: "), "{place}: {}", ended.stderr);
    }
}

#[test]
fn a_broken_configuration_is_named_with_its_fault() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("config")).unwrap();
    std::fs::write(home.path().join("config/dfs.conf"), "[mount]\ncolour = 1\n").unwrap();
    let dir = home.path().to_str().unwrap();
    let ended = dfs(home.path(), &["mount", "dfs://127.0.0.1:1/main", dir]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("dfs.conf") && ended.stderr.contains("colour"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_server_that_is_not_there_ends_with_3() {
    let home = tempfile::tempdir().unwrap();
    let fingerprint = "ab".repeat(32);
    let arguments = ["login", "dfs://127.0.0.1:1", "--user", "u", "--fingerprint", &fingerprint];
    let ended = dfs(home.path(), &arguments);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
}

#[test]
fn unmounting_what_is_no_mount_ends_with_6() {
    let home = tempfile::tempdir().unwrap();
    let ended = dfs(home.path(), &["umount", home.path().to_str().unwrap()]);
    assert_eq!(ended.code, Some(6));
    assert!(ended.stderr.contains("nothing is mounted there"), "{}", ended.stderr);
}
