//! A program that stores into a mapping of a file, and maps another one after that.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::io::Errno;

/// Obeys `map PATH`, `store OFFSET BYTE LENGTH`, `unmap`, and answers with an errno, or 0. The
/// module `mmap` keeps a handle of its own, by which it knows the size: a store beyond it would be
/// SIGBUS, and is no order of ours to obey.
const PROGRAM: &str = "import errno, mmap, os, sys
held = None
for line in sys.stdin.buffer:
    word, *rest = line.rstrip(b'\\n').split(b' ', 1)
    answer = 0
    try:
        if word != b'store' and held is not None:
            held.close()
            held = None
        if word == b'map':
            fd = os.open(rest[0], os.O_RDWR | os.O_NONBLOCK)
            try:
                size = os.fstat(fd).st_size
                held = mmap.mmap(fd, size) if size else None
            finally:
                os.close(fd)
        elif word == b'store':
            at, byte, length = map(int, rest[0].split())
            if held is None or at + length > min(len(held), held.size()):
                answer = errno.EFAULT
            else:
                held[at:at + length] = bytes([byte]) * length
    except OSError as error:
        answer = error.errno
    print(answer, flush=True)
";

/// The program, running. Dropping it ends it.
pub struct Mapping {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Mapping {
    pub fn start() -> Mapping {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("python3: {error}"));
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Mapping { child, orders, answers }
    }

    fn order(&mut self, order: &str) -> Result<(), Errno> {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        match line.trim().parse() {
            Ok(0) => Ok(()),
            Ok(errno) => Err(Errno::from_raw_os_error(errno)),
            Err(_) => panic!("{order}: answered {line:?}"),
        }
    }

    /// Maps a whole file instead of what is mapped.
    pub fn map(&mut self, path: &Path) -> Result<(), Errno> {
        self.order(&format!("map {}", path.display()))
    }

    pub fn store(&mut self, at: usize, byte: u8, length: usize) -> Result<(), Errno> {
        self.order(&format!("store {at} {byte} {length}"))
    }

    pub fn unmap(&mut self) -> Result<(), Errno> {
        self.order("unmap")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
