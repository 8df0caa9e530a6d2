//! What this program asks of the kernel beyond the standard library: the state of a process that
//! waits for us, the FUSE device, and numbers of its interface.
//!
//! Everything here goes through safe calls; a libc call that no safe crate offers would belong
//! here, and nowhere else, with its argument.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

/// What setxattr(2) asks for in its flags: a new attribute, or one that is there.
pub(crate) const XATTR_CREATE: i32 = libc::XATTR_CREATE;
pub(crate) const XATTR_REPLACE: i32 = libc::XATTR_REPLACE;

/// Signals of a thread and supplementary groups, as `/proc/PID/status` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessStatus {
    pub(crate) groups: Vec<u32>,
    /// Signals that wait for the thread or its process. Units: bit n-1 is signal n.
    pub(crate) pending: u64,
    pub(crate) blocked: u64,
    pub(crate) ignored: u64,
    pub(crate) caught: u64,
}

/// Signals whose default is to do nothing: CHLD, CONT, URG, WINCH.
const HARMLESS: u64 = bit(17) | bit(18) | bit(23) | bit(28);
/// Signals whose default is to stop the process: STOP, TSTP, TTIN, TTOU.
const STOPPING: u64 = bit(19) | bit(20) | bit(21) | bit(22);
const KILL: u64 = bit(9);

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

impl ProcessStatus {
    /// The status of a process or thread; `None` if there is none (it has ended, or lives in a
    /// pid namespace that we do not see).
    pub(crate) fn of(pid: u32) -> Option<ProcessStatus> {
        if pid == 0 {
            return None;
        }
        let text = std::fs::read(format!("/proc/{pid}/status")).ok()?;
        Some(ProcessStatus::parse(&text))
    }

    fn parse(text: &[u8]) -> ProcessStatus {
        let mut status = ProcessStatus::default();
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let Some((key, value)) = line.split_once(':') else { continue };
            let signals = || u64::from_str_radix(value.trim(), 16).unwrap_or(0);
            match key {
                "Groups" => {
                    status.groups =
                        value.split_whitespace().filter_map(|group| group.parse().ok()).collect();
                }
                "SigPnd" | "ShdPnd" => status.pending |= signals(),
                "SigBlk" => status.blocked = signals(),
                "SigIgn" => status.ignored = signals(),
                "SigCgt" => status.caught = signals(),
                _ => {}
            }
        }
        status
    }

    /// Whether a signal waits that a system call would return for.
    pub(crate) fn is_interrupted(&self) -> bool {
        let default_of_nothing = HARMLESS & !self.caught;
        self.pending & !self.blocked & !self.ignored & !default_of_nothing != 0
    }

    /// Whether a signal waits that ends the process.
    pub(crate) fn is_killed(&self) -> bool {
        let spared = self.blocked | self.ignored | self.caught | HARMLESS | STOPPING;
        self.pending & (KILL | !spared) != 0
    }
}

/// Opens the FUSE device for a new connection.
pub(crate) fn open_fuse_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// Mounts a connection; `data` holds the options that FUSE reads.
pub(crate) fn mount_fuse(
    source: &str,
    directory: &Path,
    is_read_only: bool,
    data: &str,
) -> io::Result<()> {
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    if is_read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    Ok(nix::mount::mount(Some(source), directory, Some("fuse.dfs"), flags, Some(data))?)
}

/// Takes a mount away. If `is_lazy`, it leaves the tree at once and ends with its last user. Others
/// than root unmount through the set-user-id helper that mounted.
///
/// # Errors
/// `ResourceBusy`: it is in use.
pub(crate) fn unmount(directory: &Path, is_lazy: bool) -> io::Result<()> {
    let flags = if is_lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match nix::mount::umount2(directory, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) => unmount_by_helper(directory, is_lazy),
        result => Ok(result?),
    }
}

fn unmount_by_helper(directory: &Path, is_lazy: bool) -> io::Result<()> {
    let mut helper = Command::new("fusermount3");
    helper.arg("-u").args(is_lazy.then_some("-z")).arg("--").arg(directory);
    let result = helper.output().map_err(|error| {
        io::Error::new(error.kind(), format!("fusermount3 (package fuse3): {error}"))
    })?;
    if result.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&result.stderr).trim().to_owned();
    let is_busy = said.contains("busy");
    let kind = if is_busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, ignored: u64, caught: u64) -> ProcessStatus {
        ProcessStatus { groups: Vec::new(), pending, blocked, ignored, caught }
    }

    #[test]
    fn the_lines_of_proc_status_are_read() {
        let text = b"Name:\ta: b\nGroups:\t4 27 1000 \nSigPnd:\t0000000000000002\n\
                     ShdPnd:\t0000000000000100\nSigBlk:\t0000000000010000\n\
                     SigIgn:\t0000000000001000\nSigCgt:\t0000000180004a02\n";
        let status = ProcessStatus::parse(text);
        assert_eq!(status.groups, [4, 27, 1000]);
        assert_eq!(status.pending, 0x102);
        assert_eq!((status.blocked, status.ignored), (0x10000, 0x1000));
        assert_eq!(status.caught, 0x1_8000_4a02);
    }

    #[test]
    fn our_own_status_can_be_read_and_no_process_has_none() {
        assert!(ProcessStatus::of(std::process::id()).is_some());
        assert!(ProcessStatus::of(0).is_none());
    }

    #[test]
    fn a_blocked_ignored_or_harmless_signal_interrupts_nobody() {
        let interrupt = bit(2);
        assert!(status(interrupt, 0, 0, 0).is_interrupted());
        assert!(!status(interrupt, interrupt, 0, 0).is_interrupted());
        assert!(!status(interrupt, 0, interrupt, 0).is_interrupted());
        assert!(!status(bit(17), 0, 0, 0).is_interrupted(), "SIGCHLD without a handler");
        assert!(status(bit(17), 0, 0, bit(17)).is_interrupted());
        assert!(!status(0, 0, 0, 0).is_interrupted());
    }

    #[test]
    fn only_a_signal_that_nobody_handles_kills() {
        let terminate = bit(15);
        assert!(status(terminate, 0, 0, 0).is_killed());
        assert!(!status(terminate, 0, 0, terminate).is_killed());
        assert!(!status(bit(20), 0, 0, 0).is_killed(), "SIGTSTP stops");
        assert!(status(KILL, u64::MAX, 0, 0).is_killed());
    }
}
