//! Signals to programs that wait for a silent server.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Mount, Server, eventually, signal, waits};

/// How long a signal may take to end a wait. Callers are looked at ten times a second; the waits
/// themselves would last over 30 s.
const PROMPT: Duration = Duration::from_secs(10);

/// The timeout of the mounts here.
const LONG: &str = "30s";

/// A program that has written to `w`, and has stopped before its last step.
fn writer(mount: &Mount<'_>, last: &str) -> Child {
    let program = format!(
        "import os, signal, sys
def ring(*_):
    os.write(1, b'rung')
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGALRM, ring)
signal.signal(signal.SIGTERM, ring)
fd = os.open('w', os.O_WRONLY | os.O_CREAT)
os.write(fd, b'data')
os.kill(os.getpid(), signal.SIGSTOP)
{last}
"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]).current_dir(&mount.dir).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    eventually("the program has stopped", || (state(&child) == Some('T')).then_some(()));
    child
}

fn state(child: &Child) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Lets a program take its last step while the server is silent, and ends it with a signal. What it
/// said.
fn end_while_silent(server: &Server, mut child: Child, name: &str) -> String {
    server.freeze(true);
    signal(child.id(), "CONT");
    eventually("the program waits", || waits(&child).then_some(()));
    let started = Instant::now();
    signal(child.id(), name);
    let status = eventually("the program ends", || child.try_wait().unwrap());
    let elapsed = started.elapsed();
    server.freeze(false);
    assert!(elapsed < PROMPT, "{elapsed:?} until SIG{name} took effect");
    assert_eq!(status.code(), None, "ended by a signal");
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn world(dir: &Path) -> (Server, Client) {
    let server = Server::start(&dir.join("data"), &[]);
    let client = Client::new(&dir.join("a"), &server);
    (server, client)
}

fn arrives(server: &Server, dir: &Path) {
    let other = Client::new(&dir.join("b"), server);
    let other = other.mount(server, &[]);
    eventually("what was written is stored", || {
        (fs::read(other.at("w")).ok()? == b"data").then_some(())
    });
}

/// F6: "SIGKILL ends a program that waits for the servers, in any call;"
#[test]
fn a_program_that_is_killed_while_it_waits_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = world(dir.path());
    let mount = client.mount(&server, &["--timeout", LONG]);
    for last in ["os.close(fd)", "os.fsync(fd)", "os.statvfs('.')", "os.mkdir('d')"] {
        end_while_silent(&server, writer(&mount, last), "KILL");
    }
    arrives(&server, dir.path());
}

/// F6: "... a signal to end that it handles ends open and close with EINTR."
#[test]
fn a_signal_to_end_that_a_program_handles_ends_open_and_close() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = world(dir.path());
    let mount = client.mount(&server, &["--timeout", LONG]);
    for last in ["os.close(fd)", "os.open('w', os.O_RDONLY)"] {
        assert_eq!(end_while_silent(&server, writer(&mount, last), "TERM"), "rung", "{last}");
        end_while_silent(&server, writer(&mount, last), "INT");
    }
    arrives(&server, dir.path());
}

/// F6: "No other signal that it handles ends any call, and none ends fsync: ..."
#[test]
fn timers_end_no_call_and_a_handled_signal_ends_no_fsync() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = world(dir.path());
    let mount = client.mount(&server, &["--timeout", LONG]);
    let undisturbed = [
        ("os.fsync(fd)", "TERM"),
        ("os.fsync(fd)", "ALRM"),
        ("os.close(fd)", "ALRM"),
        ("os.open('w', os.O_RDONLY)", "ALRM"),
    ];
    for (last, name) in undisturbed {
        let (mut child, other) = (writer(&mount, last), writer(&mount, "os.close(fd)"));
        server.freeze(true);
        let send = |child: &Child, name| {
            signal(child.id(), "CONT");
            eventually("the program waits", || waits(child).then_some(()));
            signal(child.id(), name);
        };
        send(&child, name);
        // When a later signal has taken effect, the earlier one has been looked at.
        send(&other, "TERM");
        let said = other.wait_with_output().unwrap().stdout;
        assert_eq!(said, b"rung");
        assert!(waits(&child), "SIG{name} ended {last}");
        server.freeze(false);
        child.wait().unwrap();
    }
    arrives(&server, dir.path());
}

#[test]
fn a_write_with_o_sync_says_that_nobody_took_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, client) = world(dir.path());
    let mount = client.mount(&server, &["--timeout", "1s"]);
    let program = "import os, signal, sys
fd = os.open('w', os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
os.kill(os.getpid(), signal.SIGSTOP)
try:
    os.write(fd, b'data')
except OSError as error:
    sys.exit(error.strerror)
";
    let mut command = Command::new("python3");
    command.args(["-c", program]).current_dir(&mount.dir);
    let mut child = command.spawn().unwrap();
    eventually("the program has stopped", || (state(&child) == Some('T')).then_some(()));
    server.kill_9();
    signal(child.id(), "CONT");
    assert!(!child.wait().unwrap().success(), "the write succeeded");
    server.resume();
    arrives(&server, dir.path());
}
