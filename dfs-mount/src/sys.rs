//! What this program asks of the kernel beyond the standard library: the state of a process that
//! waits for us, the FUSE device, numbers of its interface, and who else writes to a file.
//!
//! Libc calls that no safe crate offers are here and nowhere else. There are two, leases and
//! sync_file_range(2); both take an open file that the caller lends, and no memory of ours.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

/// Types of locks, as the kernel's requests have them. Source: fcntl(2).
pub(crate) const LOCK_SHARED: i32 = libc::F_RDLCK;
pub(crate) const LOCK_EXCLUSIVE: i32 = libc::F_WRLCK;
pub(crate) const LOCK_NONE: i32 = libc::F_UNLCK;

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
    /// It is on its way out because of a signal, which is pending no more.
    pub(crate) is_dying: bool,
    /// It has not begun to exit. `/proc/PID/stat` may be read only of one that has: of one in
    /// execve(2), which closes files and so may be waiting for us, reading it waits for the call.
    has_memory: bool,
}

/// Where `/proc/PID/stat` has them, counted behind the name, and the flag of a task that exits.
/// Source: proc(5).
const STAT_FLAGS: usize = 6;
const STAT_EXIT_CODE: usize = 49;
const EXITING: u64 = 4;

/// Signals whose default is to do nothing: CHLD, CONT, URG, WINCH.
const HARMLESS: u64 = bit(17) | bit(18) | bit(23) | bit(28);
/// Signals whose default is to stop the process: STOP, TSTP, TTIN, TTOU.
const STOPPING: u64 = bit(19) | bit(20) | bit(21) | bit(22);
/// Signals by which people and service managers ask a program to end: HUP, INT, QUIT, TERM.
const ENDING: u64 = bit(1) | bit(2) | bit(3) | bit(15);
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
        let mut status = ProcessStatus::parse(&text);
        if !status.has_memory {
            let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            status.is_dying = is_dying(&String::from_utf8_lossy(&stat));
        }
        Some(status)
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
                "VmSize" => status.has_memory = true,
                "SigBlk" => status.blocked = signals(),
                "SigIgn" => status.ignored = signals(),
                "SigCgt" => status.caught = signals(),
                _ => {}
            }
        }
        status
    }

    /// Whether a signal waits that ends the process, or asks it to end.
    pub(crate) fn is_asked_to_end(&self) -> bool {
        self.is_killed() || self.pending & !self.blocked & !self.ignored & ENDING != 0
    }

    /// Whether a signal waits that the process handles, or that ends it.
    pub(crate) fn is_signalled(&self) -> bool {
        self.is_killed() || self.pending & !self.blocked & self.caught != 0
    }

    /// Whether a signal waits that ends the process.
    pub(crate) fn is_killed(&self) -> bool {
        let spared = self.blocked | self.ignored | self.caught | HARMLESS | STOPPING;
        self.is_dying || self.pending & (KILL | !spared) != 0
    }
}

/// Whether a line of `/proc/PID/stat` is of a task that a signal ends. One that exits by itself
/// waits for what it closes as if it had called close(2).
fn is_dying(stat: &str) -> bool {
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let field = |index| fields.split_whitespace().nth(index).and_then(|word| word.parse().ok());
    let flags: u64 = field(STAT_FLAGS).unwrap_or(0);
    let exit_code: u64 = field(STAT_EXIT_CODE).unwrap_or(0);
    flags & EXITING != 0 && exit_code & 0x7f != 0
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

/// The fcntl(2) command that names the signal of a broken lease; libc does not have it. Source:
/// asm-generic/fcntl.h.
const F_SETSIG: libc::c_int = 10;

/// Whether anybody can write to a file: through an open file, or a mapping that was made through
/// one, in any process. `file` must be open for reading only, and no other open file of the
/// caller's for writing, or the answer is about the caller.
///
/// The kernel grants a read lease on a file that nobody has open for writing, and on no other. It
/// is given back at once. The caller sees to it that nobody opens the file for writing meanwhile:
/// the open would wait for that.
///
/// Source: fcntl(2), F_SETLEASE.
///
/// # Errors
/// The file system knows no leases; the file is not ours.
pub(crate) fn has_writers(file: &File) -> io::Result<bool> {
    // A lease that is broken after all sends a signal: one that does nothing instead of SIGIO,
    // which would end this program.
    file_control(file, F_SETSIG, libc::SIGURG)?;
    match file_control(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => file_control(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

#[allow(unsafe_code)]
fn file_control(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and these commands take a
    // number and no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Brings the pages of a file that were changed to the disk, so that the next store to any of them
/// through a mapping moves the file's times. Metadata stay in memory. Blocks.
///
/// Source: sync_file_range(2). All three flags, or pages that are on their way are left out.
///
/// # Errors
/// Those of writing.
#[allow(unsafe_code)]
pub(crate) fn write_back(file: &File) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: as above; length 0 means up to the end.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, ChildStdin, ChildStdout, Stdio};

    use super::*;

    /// A program that maps a file, closes it, and from then on stores one byte for each line it
    /// gets. Not by the module `mmap`, which keeps the file open.
    struct Mapper {
        child: Child,
        orders: Option<ChildStdin>,
        answers: ChildStdout,
    }

    const MAPPER: &str = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
READ_WRITE, SHARED = 3, 1
at = libc.mmap(None, size, READ_WRITE, SHARED, fd, 0)
assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
os.close(fd)
print('.', end='', flush=True)
for line in sys.stdin:
    ctypes.memmove(at, line.encode(), 1)
    print('.', end='', flush=True)
libc.munmap(at, size)
";

    impl Mapper {
        fn of(path: &Path) -> Mapper {
            let mut child = Command::new("python3")
                .args(["-c", MAPPER])
                .arg(path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (orders, answers) = (child.stdin.take(), child.stdout.take().unwrap());
            let mut mapper = Mapper { child, orders, answers };
            mapper.wait();
            mapper
        }

        fn wait(&mut self) {
            self.answers.read_exact(&mut [0]).unwrap();
        }

        fn store(&mut self, byte: char) {
            writeln!(self.orders.as_mut().unwrap(), "{byte}").unwrap();
            self.wait();
        }

        fn end(&mut self) {
            drop(self.orders.take());
            self.child.wait().unwrap();
        }
    }

    #[test]
    fn whoever_may_write_to_a_file_is_noticed_also_without_an_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = File::create(&path).unwrap();
        writer.set_len(4096).unwrap();
        let reader = File::open(&path).unwrap();
        let other_reader = File::open(&path).unwrap();
        assert!(has_writers(&reader).unwrap());
        drop(writer);
        assert!(!has_writers(&reader).unwrap());
        let mut mapper = Mapper::of(&path);
        assert!(has_writers(&reader).unwrap());
        assert!(has_writers(&other_reader).unwrap());
        mapper.end();
        assert!(!has_writers(&reader).unwrap());
    }

    #[test]
    fn a_store_to_a_page_that_was_stored_to_before_moves_the_time_after_a_write_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [0; 4096]).unwrap();
        let file = File::open(&path).unwrap();
        let modified = || file.metadata().unwrap().modified().unwrap();
        let mut mapper = Mapper::of(&path);
        let mut before = modified();
        for byte in ['a', 'b', 'c'] {
            mapper.store(byte);
            assert!(modified() > before, "{byte}");
            write_back(&file).unwrap();
            before = modified();
        }
        mapper.end();
    }

    fn status(pending: u64, blocked: u64, ignored: u64, caught: u64) -> ProcessStatus {
        ProcessStatus { pending, blocked, ignored, caught, ..ProcessStatus::default() }
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
        let ours = ProcessStatus::of(std::process::id()).unwrap();
        assert!(ours.has_memory, "who lives is not asked how it ends");
        assert!(ProcessStatus::of(0).is_none());
    }

    #[test]
    fn who_is_ended_by_a_signal_is_told_from_who_exits() {
        let stat = |flags: u64, code: u64| {
            let rest = "0 ".repeat(STAT_EXIT_CODE - STAT_FLAGS - 1);
            format!("12 (a) b) S 1 1 1 0 -1 {flags} {rest}{code}\n")
        };
        assert!(is_dying(&stat(0x40_0044, 9)));
        assert!(!is_dying(&stat(0x40_0044, 0x700)), "exit(7)");
        assert!(!is_dying(&stat(0x40_0040, 9)), "stopped by a signal, not exiting");
        assert!(!is_dying(""));
    }

    #[test]
    fn a_signal_asks_to_end_unless_it_is_blocked_ignored_or_means_something_else() {
        let interrupt = bit(2);
        assert!(status(interrupt, 0, 0, 0).is_asked_to_end());
        assert!(status(interrupt, 0, 0, interrupt).is_asked_to_end(), "handled");
        assert!(!status(interrupt, interrupt, 0, 0).is_asked_to_end());
        assert!(!status(interrupt, 0, interrupt, 0).is_asked_to_end());
        assert!(!status(0, 0, 0, 0).is_asked_to_end());
        for (signal, name) in [(10, "USR1"), (14, "ALRM"), (17, "CHLD"), (23, "URG"), (28, "WINCH")]
        {
            assert!(
                !status(bit(signal), 0, 0, bit(signal)).is_asked_to_end(),
                "SIG{name}, handled"
            );
        }
        assert!(status(bit(14), 0, 0, 0).is_asked_to_end(), "SIGALRM without a handler");
        assert!(!status(bit(20), 0, 0, 0).is_asked_to_end(), "SIGTSTP");
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
