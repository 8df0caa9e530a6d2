//! Real processes for tests: a cell, its clients, their mounts.
//!
//! Everything started here is ended by its owner's `Drop`, by pid; every wait is bounded.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

/// Longest wait for anything that should be quick. Generous: CI machines are small and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `probe` until it gives something.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::yield_now();
        // Polling another process: there is no event to wait for.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Whether a process waits in the kernel for an answer of a mount's.
pub fn waits(child: &Child) -> bool {
    let place = fs::read_to_string(format!("/proc/{}/wchan", child.id()));
    place.is_ok_and(|place| place.contains("request_wait_answer") || place.contains("fuse"))
}

/// A program that `make build` has built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(built.exists(), "{} is missing: run `make build` first", built.display());
    built
}

/// A test suite of others, which `make install-suites` has installed.
pub fn tool(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let installed = target.join("tools/bin").join(name);
    let what = "run `make install-suites` first";
    assert!(installed.exists(), "{} is missing: {what}", installed.display());
    installed
}

/// The output of a command that must end well within the patience.
pub fn run(command: &mut Command) -> Output {
    let output = attempt(command);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    output
}

/// The output of a command that may fail but must end.
pub fn attempt(command: &mut Command) -> Output {
    attempt_within(command, PATIENCE * 4)
}

/// As [`attempt`], with a patience of its own.
pub fn attempt_within(command: &mut Command, patience: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let readers = [drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap())];
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{command:?} does not end");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap());
    Output { status, stdout, stderr }
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has said what it had to say.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// A program that has written to a file and not closed it, until it is dropped. A file that the
/// test itself has open is flushed, and so committed, by each command that it starts.
pub struct Holder {
    child: Child,
}

impl Holder {
    pub fn of(path: &Path) -> Holder {
        let script =
            "open(F, '>>', $ARGV[0]) or die; syswrite(F, 'held'); print \"ready\\n\"; <STDIN>";
        let mut command = Command::new("perl");
        command.args(["-e", &format!("$| = 1; {script}")]).arg(path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("perl");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Holder { child }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A shell command in a directory.
pub fn shell(dir: &Path, script: &str) -> String {
    let output = run(Command::new("bash").arg("-euc").arg(script).current_dir(dir));
    String::from_utf8(output.stdout).unwrap()
}

/// A server process with all roles, or some.
pub struct Server {
    pub data: PathBuf,
    pub address: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Starts a server on a free port and waits until it answers.
    pub fn start(data: &Path, arguments: &[&str]) -> Server {
        let mut server = Server {
            data: data.to_owned(),
            address: "127.0.0.1:0".into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            child: None,
        };
        server.resume();
        server
    }

    /// Starts it again where it was.
    pub fn resume(&mut self) {
        let mut child = self.spawn();
        let stdout = child.stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let Some(rest) = line.strip_prefix("dfs-server listens on ") else {
            let _ = child.kill();
            panic!("server did not start: {line:?}; {}", self.log());
        };
        self.address = rest.split([';', '\n']).next().unwrap().to_owned();
        self.child = Some(child);
    }

    fn spawn(&self) -> Child {
        fs::create_dir_all(&self.data).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        Command::new(program("dfs-server"))
            .arg("serve")
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", &self.address])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        format!("dfs://{}", self.address)
    }

    /// Where a path of the first volume is.
    pub fn path(&self, path: &str) -> String {
        format!("{}/main/{path}", self.url())
    }

    pub fn bootstrap(&self) -> PathBuf {
        self.data.join("bootstrap.toml")
    }

    pub fn kill_9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops it where it is, or lets it go on: connections stay, nothing is answered.
    pub fn freeze(&self, is_frozen: bool) {
        let pid = self.child.as_ref().unwrap().id();
        signal(pid, if is_frozen { "STOP" } else { "CONT" });
    }

    /// Ends it as an operator would.
    pub fn terminate(&mut self) {
        let mut child = self.child.take().unwrap();
        signal(child.id(), "TERM");
        eventually("server ends on SIGTERM", || child.try_wait().unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("server log of {}:\n{}", self.data.display(), tail(&self.log()));
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    run(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()));
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A client machine: its own configuration and cache.
pub struct Client {
    pub home: PathBuf,
}

impl Client {
    /// A client that has logged in with the bootstrap file of `server`.
    pub fn new(home: &Path, server: &Server) -> Client {
        let client = Client::stranger(home);
        run(client.dfs(&["login", "--bootstrap"]).arg(server.bootstrap()));
        client
    }

    /// A client without a login.
    pub fn stranger(home: &Path) -> Client {
        fs::create_dir_all(home).unwrap();
        Client { home: home.to_owned() }
    }

    pub fn dfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("dfs"));
        command
            .args(arguments)
            .env("DFS_CONFIG_DIR", self.home.join("config"))
            .env("DFS_CACHE_DIR", self.home.join("cache"))
            .process_group(0);
        command
    }

    /// What a command printed.
    pub fn ask(&self, arguments: &[&str]) -> String {
        String::from_utf8(run(&mut self.dfs(arguments)).stdout).unwrap()
    }

    /// Exit code and standard error of a command that must fail.
    pub fn fail(&self, arguments: &[&str]) -> (i32, String) {
        let output = attempt(&mut self.dfs(arguments));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} succeeded");
        (output.status.code().expect("ended by itself"), text)
    }

    /// Mounts the first volume.
    pub fn mount(&self, server: &Server, options: &[&str]) -> Mount<'_> {
        let dir = self.home.join("mnt");
        fs::create_dir_all(&dir).unwrap();
        let url = format!("{}/main", server.url());
        let cache = self.home.join("mount-cache");
        let mut command = self.dfs(&["mount", &url]);
        if !options.contains(&"--cache-dir") {
            command.arg("--cache-dir").arg(&cache);
        }
        run(command.arg(&dir).args(options));
        let mut mount = Mount { client: self, dir, cache, pid: 0 };
        mount.pid = u32::try_from(mount.status()["pid"].as_u64().unwrap()).unwrap();
        mount
    }
}

/// A mounted volume.
pub struct Mount<'a> {
    client: &'a Client,
    pub dir: PathBuf,
    pub cache: PathBuf,
    /// The daemon's. Asked for at once: a command started later would inherit open files, and
    /// closing them in the child flushes them.
    pub pid: u32,
}

impl Mount<'_> {
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    pub fn shell(&self, script: &str) -> String {
        shell(&self.dir, script)
    }

    /// The daemon's part of `dfs status --json`.
    pub fn status(&self) -> Value {
        let text = self.client.ask(&["status", "--json", self.dir.to_str().unwrap()]);
        let report: Value = serde_json::from_str(&text).unwrap();
        report["mounts"][0]["daemon"].clone()
    }

    /// Requests sent so far, by operation, without lookups and attributes.
    pub fn rpc_counts(&self) -> std::collections::BTreeMap<String, u64> {
        let status = self.status();
        let counts = status["rpcs"].as_object().expect("daemon reports its requests");
        counts
            .iter()
            .filter(|(path, _)| !UNCOUNTED.contains(&path.as_str()))
            .map(|(path, count)| (path.clone(), count.as_u64().unwrap()))
            .collect()
    }

    /// Requests that `work` costs, by operation.
    pub fn cost(&self, work: impl FnOnce()) -> std::collections::BTreeMap<String, u64> {
        let before = self.rpc_counts();
        work();
        let mut after = self.rpc_counts();
        after.retain(|path, count| {
            *count -= before.get(path).copied().unwrap_or(0);
            *count > 0
        });
        after
    }

    /// Ends the daemon as a crash would. The mount point stays, dead.
    pub fn kill_9(&self) {
        let pid = self.pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)
            .unwrap();
        eventually("daemon is gone", || (!is_running(pid)).then_some(()));
    }

    pub fn umount(self) {
        run(self.client.dfs(&["umount"]).arg(&self.dir));
        assert!(!is_mounted(&self.dir), "still mounted");
    }
}

/// Requests of the background, which budgets do not count.
const UNCOUNTED: [&str; 5] =
    ["session.acknowledge", "session.heartbeat", "session.events", "admin.map", "auth.renew"];

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if !is_mounted(&self.dir) {
            return;
        }
        let _ = attempt(self.client.dfs(&["umount", "--force", "--timeout", "5s"]).arg(&self.dir));
        if is_mounted(&self.dir) {
            let _ = attempt(Command::new("umount").arg("-l").arg(&self.dir));
        }
    }
}

pub fn is_running(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

pub fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = dir.to_str().unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(dir))
}

/// SHA-256 of a file, by another program than ours.
pub fn sha256(path: &Path) -> String {
    let output = run(Command::new("sha256sum").arg(path));
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}
