//! A program that maps a file, closes it, and goes on storing to the mapping.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Maps all of a file, closes its only handle, and obeys: `OFFSET TEXT` stores there. Every step is
/// answered with a line; at the end of its orders it unmaps. Not by the module `mmap`, which keeps
/// a handle of its own.
const PROGRAM: &str = "import ctypes, os, sys
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
print('mapped', flush=True)
for line in sys.stdin:
    offset, text = line.split()
    ctypes.memmove(at + int(offset), text.encode(), len(text))
    print('stored', flush=True)
libc.munmap(at, size)
";

/// The program, running. Dropping it unmaps.
pub struct Mapper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    /// Maps a file; its last handle of this program's is closed by then.
    pub fn of(path: &Path) -> Mapper {
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("python3: {error}"));
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut mapper = Mapper { child, orders, answers };
        mapper.expect("mapped");
        mapper
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }

    pub fn store(&mut self, offset: usize, text: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{offset} {text}").unwrap();
        self.expect("stored");
    }

    /// Unmaps and ends.
    pub fn end(mut self) {
        drop(self.orders.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
