//! `mount -t dfs`, fstab and umount(8): the system's own programs, with `mount.dfs` as the helper.
//!
//! Most run in a mount and a process namespace of their own, in which the helper is installed, so
//! that the machine stays as it is and nothing can be left behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::support::{Client, Server, attempt, eventually, is_mounted, program, run};

/// A machine on which the helper is installed and root has logged in.
struct Machine {
    dir: tempfile::TempDir,
    server: Server,
    client: Client,
}

/// Before each script. `daemons` counts mount daemons; `ended` waits until there is none.
const PRELUDE: &str = r#"
    mount --bind "$HELPERS" "$(readlink -f /sbin)"
    daemons() { cat /proc/[0-9]*/comm 2>/dev/null | grep -cx dfs || true; }
    ended() {
        for _ in $(seq 600); do [ "$(daemons)" != 0 ] || return 0; sleep 0.1; done
        echo "a daemon is left" >&2; return 1
    }
    fails() {
        local code=$1 status=0; shift
        "$@" >"$HOMEDIR/said" 2>&1 || status=$?
        cat "$HOMEDIR/said"
        [ "$status" = "$code" ] || { echo "exit $status of $*, not $code"; exit 1; } >&2
        tries=$(grep -c 'try:' "$HOMEDIR/said" || true)
        [ "$tries" = 1 ] || { echo "$tries remedies: $(cat "$HOMEDIR/said")"; exit 1; } >&2
        ended
        ! findmnt "$MNT" || { echo "a mount is left after $*"; exit 1; } >&2
    }
"#;

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = Server::start(&dir.path().join("data"), &[]);
        let client = Client::new(&dir.path().join("a"), &server);
        let machine = Machine { dir, server, client };
        fs::create_dir(machine.at("helpers")).unwrap();
        fs::create_dir(machine.at("mnt")).unwrap();
        for name in ["mount.dfs", "mount.fuse.dfs"] {
            symlink(program("dfs"), machine.at("helpers").join(name)).unwrap();
        }
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self) -> String {
        format!("{}/main", self.server.url())
    }

    /// Options by which a mount finds login and cache without any environment.
    fn options(&self) -> String {
        let (config, cache) = (self.client.home.join("config"), self.at("cache"));
        format!("config_dir={},cache_dir={}", config.display(), cache.display())
    }

    /// The helper itself, as mount(8) calls it.
    fn helper(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.at("helpers/mount.dfs"));
        command.arg(self.url()).arg(self.at("mnt")).args(arguments);
        command
    }

    /// A script that sees the helper installed, and as little environment as systemd gives.
    fn script(&self, script: &str) -> Output {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["bash", "-euo", "pipefail", "-c", &format!("{PRELUDE}\n{script}")])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .env("DFS", program("dfs"))
            .env("URL", self.url())
            .env("SERVER", self.server.url())
            .env("O", self.options())
            .env("MNT", self.at("mnt"))
            .env("HOMEDIR", self.dir.path())
            .env("CONFIG", self.client.home.join("config"))
            .env("HELPERS", self.at("helpers"));
        attempt(&mut command)
    }

    /// What a script that must succeed prints.
    fn ask(&self, script: &str) -> String {
        let output = self.script(script);
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let log = fs::read_to_string(self.at("cache.log")).unwrap_or_default();
        assert!(output.status.success(), "{}\n{out}\n{err}\n{log}", output.status);
        out.into_owned()
    }
}

#[test]
fn mount_of_both_types_applies_the_flags_and_umount_ends_the_daemon() {
    let machine = Machine::new();
    for kind in ["dfs", "fuse.dfs"] {
        // The pipe ends only when the daemon has let go of it.
        let text = machine.ask(&format!(
            r#"
            mount -v -t {kind} -o "$O,nosuid,nodev,noexec,noatime,_netdev,nofail" \
                -o "x-systemd.automount,comment=mine" "$URL" "$MNT" 2>&1 | cat
            findmnt -no FSTYPE,SOURCE,VFS-OPTIONS "$MNT"
            cp /bin/true "$MNT/program"
            ! "$MNT/program" 2>&1
            umount "$MNT"
            ended
            mount -t {kind} -o "$O,ro" "$URL" "$MNT"
            ! touch "$MNT/new" 2>&1
            "$MNT/program" && echo runs
            umount "$MNT"
            ended
            "#
        ));
        assert!(text.contains(&format!("{} is mounted at", machine.url())), "{text}");
        assert!(text.contains(&format!("fuse.dfs {}", machine.url())), "{text}");
        assert!(text.contains("rw,nosuid,nodev,noexec,noatime"), "{text}");
        assert!(text.contains("Permission denied"), "{text}");
        assert!(text.contains("Read-only file system") && text.contains("runs"), "{text}");
    }
}

#[test]
fn fstab_lines_are_mounted_once_by_their_directory_and_by_mount_a() {
    let machine = Machine::new();
    let text = machine.ask(
        r#"
        # The url in short, as people write it.
        printf '%s %s dfs %s,_netdev,nofail,user,exec 0 0\n' "$SERVER" "$MNT" "$O" >"$HOMEDIR/fstab"
        mount --fstab "$HOMEDIR/fstab" "$MNT"
        echo content >"$MNT/file"
        mount --fstab "$HOMEDIR/fstab" --all --verbose
        [ "$(daemons)" = 1 ]
        DFS_CONFIG_DIR=$CONFIG "$DFS" ls "$MNT"
        umount "$MNT"
        ended
        mount --fstab "$HOMEDIR/fstab" --all
        cat "$MNT/file"
        umount --fstab "$HOMEDIR/fstab" --all --types fuse.dfs 2>/dev/null || umount "$MNT"
        ended
        sed -i 's/nofail/noauto/' "$HOMEDIR/fstab"
        mount --fstab "$HOMEDIR/fstab" --all
        [ "$(daemons)" = 0 ]
        "#,
    );
    assert!(text.contains("already mounted") && text.contains("content"), "{text}");
}

#[test]
fn root_s_login_is_found_without_an_environment() {
    let machine = Machine::new();
    let text = machine.ask(
        r#"
        home=$(getent passwd 0 | cut -d: -f6)
        mount -t tmpfs -o mode=700 dfs-test "$home"
        mkdir -p "$home/.config"
        cp -a "$CONFIG" "$home/.config/dfs"
        mount -t dfs "$URL" "$MNT"
        ls -d "$home"/.cache/dfs/*-main-????????
        umount "$MNT"
        ended
        rm -r "$home/.config/dfs"
        fails 1 mount -t dfs "$URL" "$MNT"
        "#,
    );
    assert!(text.contains("no stored login for it in") && text.contains("/.config/dfs"), "{text}");
}

#[test]
fn bad_input_gets_the_right_code_and_one_remedy_and_leaves_nothing_behind() {
    let machine = Machine::new();
    let text = machine.ask(
        r#"
        fails 1 mount -t dfs -o "$O,bogus=1" "$URL" "$MNT"
        fails 1 mount -t dfs -o "$O,remount,ro" "$URL" "$MNT"
        fails 1 mount -t dfs -o "$O" server:/export "$MNT"
        fails 1 mount -t dfs -o "$O" "$URL/deep/path" "$MNT"
        fails 1 mount.dfs "$URL" "$MNT" -o "$O" -t nfs
        fails 1 mount.dfs "$URL" "$MNT" -o "$O" -N /proc/1/ns/mnt
        fails 32 mount -t dfs -o "$O" "$SERVER/nowhere" "$MNT"
        fails 32 mount.dfs "$URL" "$MNT/missing" -o "$O"
        fails 32 mount.dfs "$URL" "$HOMEDIR/said" -o "$O"
        chmod 644 "$CONFIG"/*.toml
        fails 1 mount -t dfs -o "$O" "$URL" "$MNT"
        chmod 600 "$CONFIG"/*.toml
        mount -t tmpfs dfs-test /dev
        touch /dev/null && mount -t dfs -s -f -o "$O,bogus=1" "$URL" "$MNT"
        mknod -m 666 /dev/zero c 1 5 && rm /dev/null && mknod -m 666 /dev/null c 1 3
        fails 32 mount -t dfs -o "$O" "$URL" "$MNT"
        mknod -m 666 /dev/fuse c 10 229
        mount -t dfs -s -o "$O,bogus=1" "$URL" "$MNT"
        mount.dfs "$URL" "$MNT" -o "$O" 2>&1 && exit 1 || [ $? = 32 ]
        [ "$(daemons)" = 1 ]
        umount "$MNT"
        ended
        "#,
    );
    for said in [
        "option `bogus` is not known",
        "option `remount` is not known",
        "`server:/export` is not dfs://HOST:PORT/VOLUME",
        "a path inside the volume is not wanted",
        "-t nfs: this is the helper for dfs",
        "try: nsenter --mount=/proc/1/ns/mnt",
        "nowhere",
        "try: mkdir -p",
        "it is not a directory",
        "try: chmod 600",
        "cannot open /dev/fuse",
        "modprobe fuse",
        "is mounted there",
    ] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
    for usage in [&["--bogus"][..], &["more", "words"]] {
        let output = attempt(&mut machine.helper(usage));
        assert_eq!(output.status.code(), Some(1), "{usage:?}");
    }
}

#[test]
fn a_server_that_is_away_fails_the_mount() {
    let mut machine = Machine::new();
    machine.server.kill_9();
    let text = machine.ask(r#"fails 32 mount -t dfs -o "$O" "$URL" "$MNT""#);
    assert!(text.contains("check that the server runs"), "{text}");
}

/// C5 of SEMANTICS.md.
#[test]
fn what_is_unsent_at_umount_is_sent_by_the_next_mount() {
    let mut machine = Machine::new();
    let options = format!("{},timeout=1s", machine.options());
    let mnt = machine.at("mnt");
    run(&mut machine.helper(&["-o", &options]));
    let mut file = fs::File::create(mnt.join("file")).unwrap();
    file.write_all(b"content").unwrap();
    machine.server.kill_9();
    drop(file);
    let unmounted = attempt(Command::new("umount").arg(&mnt));
    assert!(unmounted.status.success() && !is_mounted(&mnt));
    let log = machine.at("cache.log");
    eventually("the daemon ends", || {
        fs::read_to_string(&log).unwrap().contains("unmounted").then_some(())
    });
    machine.server.resume();
    run(&mut machine.helper(&["-o", &options]));
    let place = machine.server.path("file");
    eventually("the servers have it", || {
        (machine.client.ask(&["cat", &place]) == "content").then_some(())
    });
    run(Command::new("umount").arg(&mnt));
}

#[test]
fn a_users_mount_has_the_flags_that_were_asked_for() {
    // Nobody: fusermount3 wants a user that has a name.
    const USER: u32 = 65534;
    let machine = Machine::new();
    let own = |name: &str| chown(machine.at(name), Some(USER), Some(USER)).unwrap();
    fs::copy(program("dfs"), machine.at("mount.dfs")).unwrap();
    fs::rename(machine.client.home.join("config"), machine.at("config")).unwrap();
    for entry in fs::read_dir(machine.at("config")).unwrap() {
        chown(entry.unwrap().path(), Some(USER), Some(USER)).unwrap();
    }
    fs::create_dir(machine.at("theirs")).unwrap();
    ["config", "mnt", "theirs"].into_iter().for_each(own);
    let text = machine.ask(&format!(
        r#"
        mount -t tmpfs -o mode=755 dfs-test "$HELPERS"
        mknod -m 666 "$HELPERS/fuse" c 10 229
        mount --bind "$HELPERS/fuse" /dev/fuse
        as="setpriv --reuid={USER} --regid={USER} --clear-groups"
        O="config_dir=$HOMEDIR/config,cache_dir=$HOMEDIR/theirs/cache"
        $as "$HOMEDIR/mount.dfs" "$URL" "$MNT" -o "$O,rw,noexec,noatime,nosuid,nodev,user=ann"
        findmnt -no VFS-OPTIONS "$MNT"
        $as "$DFS" umount "$MNT"
        ended
        fails 1 $as "$HOMEDIR/mount.dfs" "$URL" "$MNT" -o "$O,suid"
        "#
    ));
    assert!(text.contains("rw,nosuid,nodev,noexec,noatime"), "{text}");
    assert!(text.contains("only root may mount with suid or dev"), "{text}");
}

#[test]
fn a_mount_that_nobody_waits_for_any_more_is_given_up() {
    let machine = Machine::new();
    let mnt = machine.at("mnt");
    let mut daemon = Command::new(program("dfs"));
    daemon.args(["mount", "-o", &machine.options(), &machine.url()]).arg(&mnt);
    daemon.env("DFS_MOUNT_ANNOUNCE", "true").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut daemon = daemon.spawn().unwrap();
    drop(daemon.stdout.take());
    let status = eventually("the daemon ends", || daemon.try_wait().unwrap());
    assert!(!status.success() && !is_mounted(&mnt));
}
