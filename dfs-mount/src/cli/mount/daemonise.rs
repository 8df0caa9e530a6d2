//! From command to daemon: start self again with a piped stdout, wait for one line.
//!
//! No fork of a process with threads: the daemon is a fresh process, which makes itself a session
//! of its own only when the mount is ready, and then lets go of everything it inherited. A mount
//! helper that kept its caller's stdout open would block boot.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};

use crate::cli::exit::Exit;
use crate::cli::failure::{Context, Failure};
use crate::cli::output::{Output, Report, Table, json_line};
use crate::config::MountConfig;

/// Tells a daemon that its parent waits for the line.
pub const ANNOUNCE_VARIABLE: &str = "DFS_MOUNT_ANNOUNCE";

/// Longest line. Units: bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// The line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Announcement {
    Ready { pid: u32 },
    Failed { exit: u8, what: String, cause: String, remedy: Option<String> },
}

/// What `dfs mount` shows.
#[derive(Debug, Serialize)]
pub struct Mounted {
    url: String,
    mount_point: String,
    pid: u32,
}

impl Report for Mounted {
    fn table(&self) -> Table {
        Table::lines([format!("{} is mounted at {}", self.url, self.mount_point)])
    }
}

/// Starts the daemon, by the command line of `dfs mount`, and waits until it is ready.
///
/// # Errors
/// The daemon's [`Failure`], or that it ended without a word.
pub fn start(config: &MountConfig, command_line: &[OsString]) -> Result<Mounted, Failure> {
    let what = || "cannot start the mount daemon".to_owned();
    let program = std::env::current_exe().about(what)?;
    let mut daemon = Command::new(program)
        // The program may lie there under its name as a mount helper.
        .arg0("dfs")
        .args(command_line)
        .env(ANNOUNCE_VARIABLE, "true")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .about(what)?;
    let pipe = daemon.stdout.take().ok_or_else(|| Failure::failed(what(), "it has no stdout"))?;
    match read_announcement(pipe) {
        Ok(Some(announcement)) => {
            let pid = announcement.into_result()?;
            let mount_point = config.mount_point.display().to_string();
            Ok(Mounted { url: config.url.to_string(), mount_point, pid })
        }
        Ok(None) => {
            let status = daemon.wait().about(what)?;
            let cause = format!("it ended before the mount was ready ({status})");
            let log = config.log_file.display();
            Err(Failure::failed(what(), cause).remedy(format!("look into {log}")))
        }
        Err(error) => Err(Failure::failed(what(), error)),
    }
}

/// The line from the daemon; `None` if it ended before.
fn read_announcement(pipe: impl Read) -> io::Result<Option<Announcement>> {
    let mut line = Vec::new();
    BufReader::new(pipe.take(LINE_BYTES_MAX)).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        _ => Ok(None),
    }
}

impl Announcement {
    fn of(failure: &Failure) -> Announcement {
        Announcement::Failed {
            exit: failure.exit.code(),
            what: failure.what.clone(),
            cause: failure.causes(),
            remedy: failure.remedy.clone(),
        }
    }

    fn into_result(self) -> Result<u32, Failure> {
        match self {
            Announcement::Ready { pid } => Ok(pid),
            Announcement::Failed { exit, what, cause, remedy } => {
                let exit = Exit::from_code(exit).unwrap_or(Exit::Failed);
                Err(Failure { remedy, ..Failure::new(exit, what, cause) })
            }
        }
    }
}

/// Tells the parent, once, how it went.
#[derive(Clone, Debug)]
pub struct Announcer {
    is_awaited: Arc<AtomicBool>,
}

impl Announcer {
    pub fn to_parent() -> Announcer {
        Announcer { is_awaited: Arc::new(AtomicBool::new(true)) }
    }

    /// Nobody waits: a mount in the foreground.
    pub fn silent() -> Announcer {
        Announcer { is_awaited: Arc::default() }
    }

    /// Whether the parent still waits.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Acquire)
    }

    /// The mount is there: leaves the parent's session, tells it, lets go of its files.
    ///
    /// # Errors
    /// A [`Failure`] if the parent cannot be told; the mount is then to be given up.
    pub fn ready(&self, output: &mut Output) -> Result<(), Failure> {
        if !self.is_awaited.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let cannot = |error: nix::Error| Failure::failed("cannot become a daemon", error);
        setsid().map_err(cannot)?;
        chdir("/").map_err(cannot)?;
        let announcement = Announcement::Ready { pid: std::process::id() };
        output.bytes(json_line(&announcement).as_bytes())?;
        if output.is_closed() {
            return Err(Failure::failed("cannot become a daemon", "who asked for it has gone"));
        }
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null");
        let nothing = nothing.about(|| "cannot become a daemon".to_owned())?;
        dup2_stdin(&nothing).map_err(cannot)?;
        dup2_stdout(&nothing).map_err(cannot)?;
        dup2_stderr(&nothing).map_err(cannot)
    }

    /// There will be no mount.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub fn failed(&mut self, failure: &Failure, output: &mut Output) -> Result<(), Failure> {
        self.is_awaited.store(false, Ordering::Release);
        output.bytes(json_line(&Announcement::of(failure)).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::captured;

    #[test]
    fn the_readiness_line_is_the_documented_one() {
        let line = json_line(&Announcement::Ready { pid: 7 });
        assert_eq!(line, "{\"ready\":{\"pid\":7}}\n");
        let read = read_announcement(line.as_bytes()).unwrap().unwrap();
        assert_eq!(read.into_result().unwrap(), 7);
    }

    #[test]
    fn a_failure_reaches_the_parent_whole() {
        let (mut output, out, _) = captured(false);
        let mut announcer = Announcer::to_parent();
        let failure = Failure::new(Exit::Unreachable, "cannot mount", "nobody\nthere").remedy("x");
        announcer.failed(&failure, &mut output).unwrap();
        assert!(!announcer.is_awaited());
        let read = read_announcement(out.text().as_bytes()).unwrap().unwrap();
        let failure = read.into_result().unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert_eq!(failure.what, "cannot mount");
        assert_eq!(failure.causes(), "nobody\nthere");
        assert_eq!(failure.remedy.as_deref(), Some("x"));
    }

    #[test]
    fn a_daemon_that_ends_without_a_line_is_noticed() {
        assert_eq!(read_announcement(&b""[..]).unwrap(), None);
        assert_eq!(read_announcement(&b"{\"ready\":{\"pid\":7}}"[..]).unwrap(), None);
        assert!(read_announcement(&b"panic!\n"[..]).is_err());
    }

    #[test]
    fn a_foreground_mount_announces_nothing() {
        let (mut output, out, _) = captured(false);
        Announcer::silent().ready(&mut output).unwrap();
        assert_eq!(out.text(), "");
    }
}
