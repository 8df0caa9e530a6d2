//! The daemon's log: a file that is bounded, or stderr in the foreground.
//!
//! `DFS_LOG` sets what is logged, in the notation of `tracing_subscriber::EnvFilter`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// Size at which the log is moved to `FILE.old` and begun anew. Units: bytes.
/// Why: two of them never matter on a disk that has room for a cache.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Why fuser's warnings are left out: it has one for every request of a kind that we do not answer,
/// and programs send them with every open.
const DEFAULT_FILTER: &str = "info,fuser=error";

fn builder() -> SubscriberBuilder {
    tracing_subscriber::fmt()
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env("DFS_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER))
}

/// Logs to stderr. Only the first choice of a process counts.
pub fn to_stderr() {
    // Without colours: it is a journal or a file more often than a terminal.
    let logger = builder().with_env_filter(filter()).with_ansi(false).with_writer(io::stderr);
    // Fails if a logger is set already: then that one stays.
    let _ = logger.try_init();
}

/// Logs to a file, made with its directory if it is not there.
///
/// # Errors
/// What making and opening them report.
pub fn to_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let log = LogFile::open(path, LOG_BYTES_MAX)?;
    let logger = builder().with_env_filter(filter()).with_ansi(false).with_writer(Mutex::new(log));
    let _ = logger.try_init();
    Ok(())
}

/// A file that begins anew when it is full.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    written_bytes: u64,
    limit_bytes: u64,
}

impl LogFile {
    fn open(path: &Path, limit_bytes: u64) -> io::Result<LogFile> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let written_bytes = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, written_bytes, limit_bytes })
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        fs::rename(&self.path, old)?;
        *self = LogFile::open(&self.path, self.limit_bytes)?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A log that cannot be moved away goes on where it is: better long than lost.
        if self.written_bytes >= self.limit_bytes && self.begin_anew().is_err() {
            self.written_bytes = 0;
        }
        let written = self.file.write(bytes)?;
        self.written_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_begins_anew_and_keeps_one_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = LogFile::open(&path, 4).unwrap();
        for line in ["aaaa", "bbbb", "cc"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "cc");
        assert_eq!(fs::read_to_string(dir.path().join("x.log.old")).unwrap(), "bbbb");
        drop(log);
        LogFile::open(&path, 4).unwrap().write_all(b"dd").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ccdd");
    }
}
