//! The mount of a user who is nobody special: without CAP_SYS_ADMIN the kernel registers no cache
//! files, and mounting goes through `fusermount3`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::kernel::operations;
use crate::support::{Client, Server, program, run};

/// Names the directory in which this test, started again as another user, does the operations.
const DIR_VARIABLE: &str = "DFS_TEST_OPERATIONS_DIR";
const THIS_TEST: &str = "unprivileged::file_operations_work_on_the_mount_of_an_ordinary_user";

/// Mounts, does the operations and unmounts, as `nobody`, with a FUSE device that everybody may
/// open, which only this script and its children see.
const SCRIPT: &str = r#"
mknod -m 666 "$ROOM/fuse" c 10 229
mount --bind "$ROOM/fuse" /dev/fuse
as() { setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; }
trap 'as "$DFS" umount --force "$ROOM/mnt"' EXIT
as "$DFS" mount "$URL" "$ROOM/mnt" --cache-dir "$ROOM/mount-cache"
as mkdir "$ROOM/mnt/work"
as env DFS_TEST_OPERATIONS_DIR="$ROOM/mnt/work" "$TEST" --exact "$NAME" --nocapture
"#;

#[test]
fn file_operations_work_on_the_mount_of_an_ordinary_user() {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        assert!(!nix::unistd::geteuid().is_root());
        return operations::run_all(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let room = dir.path().join("room");
    let client = Client::new(&room, &server);
    fs::create_dir(room.join("mnt")).unwrap();
    run(Command::new("chown").args(["-R", "65534:65534"]).arg(&room));
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "bash", "-euc", SCRIPT])
        .env("ROOM", &client.home)
        .env("HOME", &client.home)
        .env("DFS_CONFIG_DIR", client.home.join("config"))
        .env("DFS_CACHE_DIR", client.home.join("cache"))
        .env("XDG_RUNTIME_DIR", &client.home)
        .env("DFS", program("dfs"))
        .env("URL", format!("{}/main", server.url()))
        .env("TEST", std::env::current_exe().unwrap())
        .env("NAME", THIS_TEST);
    let output = run(&mut command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("1 passed"), "{said}");
}
