//! What commands and mount daemons say to each other: one JSON object a line, each with a version.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::writeback::OutboxState;

/// Version of everything in this file. A daemon outlives the program that is installed: a newer
/// command must be able to tell that it speaks to an older daemon.
pub const CONTROL_VERSION: u16 = 1;

/// Longest line. Units: bytes. Why: an outbox of tens of thousands of files fits.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// What a command asks of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// Answered with [`Reply::Status`].
    Status,
    /// Answered with [`Reply::Outbox`].
    OutboxList,
    /// Tries to send everything unsent; answered with what is left, as [`Reply::Outbox`].
    OutboxRetry,
    /// Sends what is unsent, for at most this long; answered with any number of
    /// [`Reply::Progress`], then [`Reply::Drained`].
    Drain { deadline_ms: u64 },
    /// Answered with [`Reply::Cache`].
    CacheList,
    /// Gives back what the servers have too and nobody has open; answered with
    /// [`Reply::CacheCleared`].
    CacheClear,
    /// Gives back what is kept of one file, by the name that a listing has for it; answered with
    /// [`Reply::CacheCleared`], of no file if it may not go yet.
    CacheDrop { fid: String },
    /// Tells what other clients change in a directory, given by its path in the volume; answered
    /// with [`Reply::Watching`], then any number of [`Reply::Seen`] until the command goes away.
    Watch { path: String },
    /// Ends the daemon once its mount is gone; with `detach` it gives the mount up by itself.
    /// Answered with [`Reply::Stopping`]; the connection ends with the daemon.
    Stop { detach: bool },
}

/// What a daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Status(Box<MountStatus>),
    Outbox(OutboxReport),
    Progress(Unsent),
    Drained(OutboxReport),
    Cache(CacheListing),
    CacheCleared { file_count: u64, freed_bytes: u64 },
    Watching,
    Seen(Seen),
    Stopping,
    Refused { why: String },
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub event: SeenEvent,
    /// In the directory; empty if the event is about the whole of it.
    pub name: String,
    /// What the name names, if it names something.
    pub kind: Option<String>,
    pub size_bytes: Option<u64>,
    /// In octal.
    pub mode: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeenEvent {
    /// Made, renamed to, or with another content or attributes.
    Changed,
    Removed,
    /// Something may have changed untold: the connection was lost, or there was too much.
    Missed,
    /// The directory is gone: nothing more is told.
    Gone,
}

impl SeenEvent {
    pub fn word(self) -> &'static str {
        match self {
            SeenEvent::Changed => "changed",
            SeenEvent::Removed => "removed",
            SeenEvent::Missed => "missed",
            SeenEvent::Gone => "gone",
        }
    }
}

/// How much waits to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsent {
    pub file_count: u64,
    pub bytes: u64,
}

/// A file whose new content the servers do not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxEntry {
    pub id: u64,
    /// Its path in the volume when it was opened; `...` stands for directories not known.
    pub path: String,
    pub fid: String,
    pub size_bytes: u64,
    pub state: OutboxState,
    pub why: String,
    /// Seconds since 1970.
    pub since_secs: i64,
}

/// An outbox as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxReport {
    pub entries: Vec<OutboxEntry>,
}

impl OutboxReport {
    /// What an unmount waits for.
    pub fn unsent(&self) -> impl Iterator<Item = &OutboxEntry> {
        self.entries.iter().filter(|entry| entry.state.is_sent_by_itself())
    }
}

/// Most that a listing of the cache takes. Units: bytes of paths and [`CACHED_FILE_BYTES`] for each
/// file. Why: half a line, so that it fits however it is escaped.
pub const CACHE_LISTING_BYTES_MAX: usize = LINE_BYTES_MAX / 2;

/// What a file takes in a listing beside its path.
pub const CACHED_FILE_BYTES: usize = 200;

/// A file of which there is content in the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedFile {
    /// Its path in the volume when it was opened; `...` stands for directories not known.
    pub path: String,
    pub fid: String,
    pub disk_bytes: u64,
    pub state: String,
    pub is_open: bool,
    /// Since when it is in this state. Seconds since 1970.
    pub since_secs: i64,
}

/// What is in a cache, most recently used first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheListing {
    pub files: Vec<CachedFile>,
    /// Files that did not fit.
    pub left_out_count: u64,
}

impl CacheListing {
    /// As many of `files` as fit.
    pub fn of(files: impl IntoIterator<Item = CachedFile>) -> CacheListing {
        let mut listing = CacheListing::default();
        let mut bytes = 0;
        for file in files {
            bytes += file.path.len() + CACHED_FILE_BYTES;
            match bytes <= CACHE_LISTING_BYTES_MAX {
                true => listing.files.push(file),
                false => listing.left_out_count += 1,
            }
        }
        listing
    }
}

/// A mount, as its daemon sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    pub pid: u32,
    pub program_version: String,
    pub url: String,
    pub mount_point: PathBuf,
    pub cache_dir: PathBuf,
    pub log_file: PathBuf,
    /// Whether the session's lease is good: the server answers.
    pub is_connected: bool,
    pub read_only: bool,
    pub uptime_ms: u64,
    pub cache: CacheStatus,
    pub unsent: Unsent,
    /// Files that wait for a person: conflicts and interrupted writes.
    pub kept_count: u64,
    /// Requests sent on the wire, by operation, since the daemon started.
    pub rpcs: BTreeMap<String, u64>,
    /// What else is counted, by name.
    #[serde(default)]
    pub events: BTreeMap<String, u64>,
}

/// A mount's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    pub used_bytes: u64,
    pub limit_bytes: u64,
    pub entry_count: u64,
}

/// A line that is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("control message is malformed")]
    Malformed(#[source] serde_json::Error),
    #[error("control protocol version {theirs}, this program speaks {CONTROL_VERSION}")]
    Version { theirs: u16 },
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    version: u16,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u16,
}

/// A message as a line, with its end.
pub fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    let message = Outgoing { version: CONTROL_VERSION, body };
    let mut line = serde_json::to_vec(&message).expect("messages have string keys only");
    line.push(b'\n');
    line
}

/// Reads a line.
///
/// # Errors
/// [`LineError`]; the version is judged before the rest is looked at.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    let VersionOnly { version } = serde_json::from_slice(line).map_err(LineError::Malformed)?;
    if version != CONTROL_VERSION {
        return Err(LineError::Version { theirs: version });
    }
    serde_json::from_slice(line).map_err(LineError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_the_documented_ones() {
        let line = |request: &Request| String::from_utf8(encode(request)).unwrap();
        assert_eq!(line(&Request::Status), "{\"version\":1,\"verb\":\"status\"}\n");
        assert_eq!(
            line(&Request::Drain { deadline_ms: 5 }),
            "{\"version\":1,\"verb\":\"drain\",\"deadline_ms\":5}\n"
        );
        let progress = encode(&Reply::Progress(Unsent { file_count: 1, bytes: 2 }));
        let text = "{\"version\":1,\"reply\":\"progress\",\"file_count\":1,\"bytes\":2}\n";
        assert_eq!(String::from_utf8(progress).unwrap(), text);
    }

    #[test]
    fn another_version_is_told_before_the_rest_is_read() {
        let error = decode::<Request>(b"{\"version\":2,\"verb\":\"fly\"}").unwrap_err();
        assert!(matches!(error, LineError::Version { theirs: 2 }), "{error}");
        for line in ["", "{}", "[]", "{\"version\":1}", "{\"version\":1,\"verb\":\"fly\"}"] {
            let error = decode::<Request>(line.as_bytes()).unwrap_err();
            assert!(matches!(error, LineError::Malformed(_)), "{line}: {error}");
        }
    }
}
