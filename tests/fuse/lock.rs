//! Locks between programs on two mounts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Mount, Server, eventually, shell, signal, tool, waits};

struct World {
    server: Server,
    a: Client,
    b: Client,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&dir.path().join("data"), &[]);
        let client = |name: &str| Client::new(&dir.path().join(name), &server);
        let (a, b) = (client("a"), client("b"));
        World { server, a, b, dir }
    }

    fn mounts(&self, options: &[&str]) -> (Mount<'_>, Mount<'_>) {
        (self.a.mount(&self.server, options), self.b.mount(&self.server, options))
    }
}

/// A program that locks, unlocks and writes one file as it is told, a line at a time.
struct Locker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

const LOCKER: &str = r#"
import errno, fcntl, os, signal, sys
path, kind, flags = sys.argv[1:]
fd = os.open(path, {'r': os.O_RDONLY, 'w': os.O_RDWR | os.O_CREAT}[flags], 0o644)
take = fcntl.flock if kind == 'flock' else fcntl.lockf
def ring(*_):
    raise InterruptedError(errno.EINTR, 'rung')
signal.signal(signal.SIGALRM, ring)
def work(order, *rest):
    if order == 'lock':
        take(fd, fcntl.LOCK_EX)
    elif order == 'share':
        take(fd, fcntl.LOCK_SH)
    elif order == 'try':
        take(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif order == 'unlock':
        take(fd, fcntl.LOCK_UN)
    elif order == 'alarm':
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        take(fd, fcntl.LOCK_EX)
    elif order == 'write':
        os.pwrite(fd, rest[0].encode(), 0)
    elif order == 'read':
        return os.pread(fd, 100, 0).decode()
    return 'ok'
print('ready', flush=True)
for line in sys.stdin:
    try:
        print(work(*line.split()), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"#;

impl Locker {
    fn start(mount: &Mount<'_>, kind: &str, flags: &str) -> Locker {
        let mut child = Command::new("python3")
            .args(["-c", LOCKER, "file", kind, flags])
            .current_dir(&mount.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut locker = Locker { child, orders, answers };
        assert_eq!(locker.answer(), "ready");
        locker
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn told(&mut self, order: &str) -> String {
        self.order(order);
        self.answer()
    }

    /// Begins to wait for the lock.
    fn wait_for_lock(&mut self) {
        self.order("lock");
        eventually("the program waits", || waits(&self.child).then_some(()));
    }

    fn kill(&mut self) {
        signal(self.child.id(), "KILL");
        self.child.wait().unwrap();
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const KINDS: [&str; 2] = ["fcntl", "flock"];

/// L1: "A lock that one program has another gets neither on the same client nor on another one"
#[test]
fn locks_exclude_programs_on_both_mounts() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    for kind in KINDS {
        let [mut first, mut second] = [(); 2].map(|()| Locker::start(&a, kind, "w"));
        let mut other = Locker::start(&b, kind, "w");
        assert_eq!(first.told("lock"), "ok");
        assert_eq!((second.told("try"), other.told("try")), ("EAGAIN".into(), "EAGAIN".into()));
        assert_eq!(first.told("share"), "ok");
        assert_eq!((second.told("share"), other.told("share")), ("ok".into(), "ok".into()));
        assert_eq!(first.told("try"), "EAGAIN");
        for locker in [&mut first, &mut second, &mut other] {
            assert_eq!(locker.told("unlock"), "ok");
        }
        assert_eq!(other.told("try"), "ok");
    }
}

/// L2: "a process ends, however it ends"
#[test]
fn a_lock_of_a_process_that_is_killed_is_had_at_once() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    for kind in KINDS {
        let mut holder = Locker::start(&a, kind, "w");
        let mut waiter = Locker::start(&b, kind, "w");
        assert_eq!(holder.told("lock"), "ok");
        waiter.wait_for_lock();
        let killed = Instant::now();
        holder.kill();
        assert_eq!(waiter.answer(), "ok");
        let elapsed = killed.elapsed();
        assert!(elapsed < Duration::from_secs(5), "{elapsed:?}: less than any lease");
    }
}

/// L2: "... a client is gone: after its lease"
#[test]
fn locks_of_a_client_that_is_killed_are_had_after_its_lease() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    let mut holder = Locker::start(&a, "fcntl", "w");
    let mut waiter = Locker::start(&b, "fcntl", "w");
    assert_eq!(holder.told("lock"), "ok");
    waiter.wait_for_lock();
    let killed = Instant::now();
    a.kill_9();
    assert_eq!(waiter.answer(), "ok");
    let elapsed = killed.elapsed();
    assert!(elapsed < Duration::from_secs(30), "{elapsed:?}: a lease of 10 s, and a busy machine");
    assert_eq!(waiter.told("write after"), "ok");
}

/// L3: "A wait ends on Ctrl-C, and on any signal that the program handles"
#[test]
fn a_signal_ends_a_wait_and_its_place_in_the_queue() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    for kind in KINDS {
        let mut holder = Locker::start(&a, kind, "w");
        let mut waiter = Locker::start(&b, kind, "w");
        assert_eq!(holder.told("lock"), "ok");
        assert_eq!(waiter.told("alarm"), "EINTR");
        waiter.wait_for_lock();
        let started = Instant::now();
        signal(waiter.child.id(), "INT");
        eventually("the program ends", || waiter.child.try_wait().unwrap());
        assert!(started.elapsed() < Duration::from_secs(10));
        assert_eq!(holder.told("unlock"), "ok");
        let mut third = Locker::start(&b, kind, "w");
        assert_eq!(third.told("try"), "ok", "nobody has it, and nobody waits for it");
    }
}

/// L3: "... and fails with EAGAIN after `lock_timeout`; the log names who has it"
#[test]
fn clients_that_want_each_others_locks_end_by_the_timeout() {
    let world = World::new();
    let (a, b) = world.mounts(&["--lock-timeout", "2s"]);
    let mut holds_file = Locker::start(&a, "fcntl", "w");
    let mut wants_file = Locker::start(&b, "fcntl", "w");
    a.shell("touch second");
    let started = Instant::now();
    assert_eq!(holds_file.told("lock"), "ok");
    let script = "import fcntl, sys, time
f = open('second', 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('has', flush=True)
sys.stdin.readline()";
    let mut holds_second = Command::new("python3")
        .args(["-c", script])
        .current_dir(&b.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(holds_second.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "has\n");
    wants_file.order("lock");
    let wants_second = "import fcntl
try: fcntl.lockf(open('second', 'r+'), fcntl.LOCK_EX)
except OSError as error: print(error.errno, error.strerror)";
    let ended = a.shell(&format!("python3 -c \"{wants_second}\""));
    assert_eq!(ended, "11 Resource temporarily unavailable\n");
    assert_eq!(wants_file.answer(), "EAGAIN");
    assert!(started.elapsed() < Duration::from_secs(40));
    drop(holds_second.stdin.take());
    holds_second.wait().unwrap();
    let logs = shell(world.dir.path(), "grep -rhs 'waited too long for a lock' a b || true");
    assert!(logs.contains("held by"), "{logs}");
}

/// L5: "Locks survive a restart of the servers"
#[test]
fn locks_survive_a_kill_of_the_server_and_waiters_go_on_waiting() {
    let mut world = World::new();
    let (a, b) = (world.a.mount(&world.server, &[]), world.b.mount(&world.server, &[]));
    let mut holder = Locker::start(&a, "flock", "w");
    let mut waiter = Locker::start(&b, "flock", "w");
    assert_eq!(holder.told("lock"), "ok");
    waiter.wait_for_lock();
    world.server.kill_9();
    world.server.resume();
    let mut third = Locker::start(&b, "flock", "w");
    assert_eq!(third.told("try"), "EAGAIN");
    assert_eq!(holder.told("write kept"), "ok");
    assert_eq!(holder.told("unlock"), "ok");
    assert_eq!(waiter.answer(), "ok");
    assert_eq!(waiter.told("read"), "kept");
    drop((a, b));
}

/// L4: "A handle that was opened for reading only goes on reading the version it opened"
#[test]
fn a_lock_through_a_handle_for_reading_does_not_renew_what_it_reads() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    a.shell("printf old >file");
    let mut reader = Locker::start(&b, "flock", "r");
    let mut writer = Locker::start(&a, "flock", "w");
    assert_eq!(writer.told("lock"), "ok");
    assert_eq!(writer.told("write new"), "ok");
    assert_eq!(writer.told("unlock"), "ok");
    assert_eq!(reader.told("share"), "ok");
    assert_eq!(reader.told("read"), "old");
    assert_eq!(b.shell("cat file"), "new");
    let mut again = Locker::start(&b, "flock", "w");
    assert_eq!(again.told("read"), "new");
}

/// Adds one to a number in a file, often, with one open file.
const COUNT: &str = r#"
import fcntl, os, sys
kind, times = sys.argv[1], int(sys.argv[2])
take = fcntl.flock if kind == 'flock' else fcntl.lockf
fd = os.open(kind + '.count', os.O_RDWR)
for _ in range(times):
    take(fd, fcntl.LOCK_EX)
    number = int(os.pread(fd, 20, 0) or b'0')
    os.pwrite(fd, str(number + 1).encode(), 0)
    take(fd, fcntl.LOCK_UN)
"#;

/// L4: "... so counters, databases and lock files work across clients"
#[test]
fn counters_under_locks_are_exact_across_mounts() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    for kind in KINDS {
        a.shell(&format!("touch {kind}.count"));
        let count = |mount: &Mount<'_>| {
            let mut command = Command::new("python3");
            command.args(["-c", COUNT, kind, "40"]).current_dir(&mount.dir).spawn().unwrap()
        };
        let mut counting = [count(&a), count(&b), count(&a), count(&b)];
        for child in &mut counting {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(b.shell(&format!("cat {kind}.count")), "160", "{kind}");
    }
}

/// Two processes, one on each mount, until both have seen each other's changes at each step.
#[test]
fn ping_pong_sees_the_other_mounts_increments() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    let start = |mount: &Mount<'_>, name: &str| {
        let output = fs::File::create(world.dir.path().join(name)).unwrap();
        let mut command = Command::new("stdbuf");
        command.args(["-o0", tool("ping_pong").to_str().unwrap(), "-rw", "pong", "3"]);
        command.current_dir(&mount.dir).stdout(output).spawn().unwrap()
    };
    let mut players = [start(&a, "first"), start(&b, "second")];
    let said = |name: &str| fs::read_to_string(world.dir.path().join(name)).unwrap_or_default();
    let has_seen = |name: &str| said(name).contains("data increment = 2");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("both see increments of two", || {
            (has_seen("first") && has_seen("second")).then_some(())
        });
    }));
    for player in &mut players {
        let _ = player.kill();
        let _ = player.wait();
    }
    let (first, second) = (said("first"), said("second"));
    assert!(result.is_ok(), "{first}\n{second}");
    for said in [first, second] {
        let last = said.rsplit("data increment = ").next().unwrap();
        assert!(last.starts_with('2'), "it stays so: {said}");
    }
}

/// A database in rollback-journal mode, written from both mounts under its own locks.
#[test]
fn sqlite_writes_one_database_from_both_mounts_and_loses_nothing() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    a.shell("sqlite3 shared.db 'PRAGMA journal_mode=delete; CREATE TABLE t (who, n);' >/dev/null");
    let script = r#"for i in $(seq 12); do
        sqlite3 -cmd '.timeout 60000' shared.db \
            "BEGIN IMMEDIATE; INSERT INTO t VALUES ('$1', (SELECT count(*) FROM t)); COMMIT;"
    done"#;
    let write = |mount: &Mount<'_>, who: &str| {
        let mut command = Command::new("bash");
        command.args(["-euc", script, "-", who]).current_dir(&mount.dir).spawn().unwrap()
    };
    let mut writers = [write(&a, "x"), write(&b, "y")];
    for child in &mut writers {
        assert!(child.wait().unwrap().success());
    }
    for mount in [&a, &b] {
        let shown = mount.shell(
            "sqlite3 shared.db 'SELECT count(*), count(DISTINCT n), max(n) FROM t;
                PRAGMA integrity_check;'",
        );
        assert_eq!(shown, "24|24|23\nok\n", "each saw all that were before it");
    }
}

/// Long-lived connections: what they keep of the database must be renewed under their locks.
#[test]
fn sqlite_connections_that_stay_open_see_each_others_rows() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    a.shell("sqlite3 shared.db 'CREATE TABLE t (n);'");
    let script = "import sqlite3
db = sqlite3.connect('shared.db', timeout=60, isolation_level=None)
for _ in range(15):
    db.execute('BEGIN IMMEDIATE')
    db.execute('INSERT INTO t SELECT count(*) FROM t')
    db.execute('COMMIT')
";
    let write = |mount: &Mount<'_>| {
        Command::new("python3").args(["-c", script]).current_dir(&mount.dir).spawn().unwrap()
    };
    let mut writers = [write(&a), write(&b)];
    for child in &mut writers {
        assert!(child.wait().unwrap().success());
    }
    let shown = b.shell("sqlite3 shared.db 'SELECT count(*), count(DISTINCT n) FROM t'");
    assert_eq!(shown, "30|30\n");
}

/// L6: "`dfs lock FILE` shows who has and who wants the locks of a file ..."
#[test]
fn dfs_lock_shows_holders_and_waiters_and_an_administrator_breaks_them() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    let mut holder = Locker::start(&a, "fcntl", "w");
    let mut waiter = Locker::start(&b, "fcntl", "w");
    assert_eq!((holder.told("lock"), holder.told("write 1")), ("ok".into(), "ok".into()));
    waiter.wait_for_lock();
    let path = world.server.path("file");
    let text = world.b.ask(&["lock", &path]);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let word = |line: usize, word: usize| lines[line].split_whitespace().nth(word).unwrap();
    assert_eq!([word(1, 0), word(1, 1)], ["holds", "write"], "{text}");
    assert_eq!([word(2, 0), word(2, 1), word(2, 2)], ["holds", "exclusive", "0..end"], "{text}");
    assert_eq!([word(3, 0), word(3, 1)], ["waits", "exclusive"], "{text}");
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&world.b.ask(arguments)).unwrap()
    };
    let shown = json(&["lock", "--json", b.at("file").to_str().unwrap()]);
    let locks = &shown["files"][0]["locks"];
    assert_eq!(locks[1]["pid"], holder.child.id());
    assert!(locks[0]["token"].is_string() && locks[1]["since"].is_string(), "{shown}");
    let all = json(&["admin", "lock", "list", "--json"]);
    assert_eq!(all["files"][0]["fid"], shown["files"][0]["fid"]);

    world.b.ask(&["admin", "lock", "break", &path, "--yes"]);
    assert_eq!(waiter.answer(), "ok");
    // L5, for locks that were lost: the program is told before it goes by them again.
    eventually("its client knows", || (holder.told("try") == "EIO").then_some(()));
    assert_eq!(holder.told("unlock"), "ok");
    assert_eq!(holder.told("try"), "EAGAIN");
}

/// L5: "its programs get EIO for the next lock of such a file, until they have released all of it"
#[test]
fn locks_that_were_broken_are_lost_until_they_are_let_go() {
    let world = World::new();
    let (a, b) = world.mounts(&[]);
    let mut holder = Locker::start(&a, "flock", "w");
    assert_eq!(holder.told("lock"), "ok");
    world.a.ask(&["admin", "lock", "break", &world.server.path("file"), "--yes"]);
    eventually("its client knows", || (holder.told("try") == "EIO").then_some(()));
    assert_eq!(holder.told("unlock"), "ok");
    assert_eq!(b.shell("flock -n file echo free"), "free\n");
    assert_eq!(holder.told("try"), "ok");
}
