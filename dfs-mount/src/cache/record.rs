//! What the cache's log says: the last state of each entry.
//!
//! The log is index and journal at once: an entry is a cached version (`Clean`), or data that the
//! server does not have yet (everything else). Variants and fields are the format on disk: new
//! variants go to the end, anything else needs a new log header.

use std::sync::Arc;

use dfs_proto::attr::Timestamp;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{CommitAttr, Durability};
use dfs_proto::id::{FileId, OpId};
use dfs_proto::manifest::Manifest;
use dfs_proto::version::{DataVersion, FencingToken};
use serde::{Deserialize, Serialize};

/// Names one entry and its file, never again within one cache directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId(pub u64);

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A version of a file and what it consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub version: DataVersion,
    pub manifest: Arc<Manifest>,
}

/// Where changed data comes from, for people and for sending it later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The path at the time of opening, as people know it.
    pub hint: String,
    /// The local user who opened the file: a later store acts for them.
    pub caller: Option<Identity>,
}

/// A new content as it was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The op under which it was last sent, if it may have been.
    pub op: Option<OpId>,
    pub manifest: Arc<Manifest>,
    pub attr: CommitAttr,
    pub durability: Durability,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// A version that the server has.
    Clean(Content),
    /// Open for writing: the file may differ from `base`.
    Working { base: Content, token: FencingToken },
    /// Closed, and about to be sent or sent without an answer yet.
    Sending { base: Content, token: FencingToken, closed: Closed },
    /// Closed, and not accepted so far; will be tried again.
    Unsent { base: Content, token: FencingToken, closed: Closed, why: String },
    /// Somebody else's change came first. Kept until a person decides.
    Conflict { base: Content, why: String },
    /// Never closed: the client died while it was open. Kept until a person decides.
    Interrupted { base: Content },
}

impl State {
    /// Whether the entry stands for its file when that is opened.
    pub fn is_current(&self) -> bool {
        !matches!(self, State::Conflict { .. } | State::Interrupted { .. })
    }

    /// The state in one word, for people.
    pub fn word(&self) -> &'static str {
        match self {
            State::Clean(_) => "clean",
            State::Working { .. } => "writing",
            State::Sending { .. } => "sending",
            State::Unsent { .. } => "unsent",
            State::Conflict { .. } => "conflict",
            State::Interrupted { .. } => "interrupted",
        }
    }

    pub fn is_clean(&self) -> bool {
        matches!(self, State::Clean(_))
    }

    /// Whether `next` is about the same closed content: an attempt to send it, or its end.
    fn is_continued_by(&self, next: &State) -> bool {
        let Some(closed) = self.closed() else { return false };
        let is_same = |next: &Closed| next.manifest == closed.manifest;
        matches!(next, State::Conflict { .. }) || next.closed().is_some_and(is_same)
    }

    fn closed(&self) -> Option<&Closed> {
        match self {
            State::Sending { closed, .. } | State::Unsent { closed, .. } => Some(closed),
            _ => None,
        }
    }
}

/// One entry of the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub fid: FileId,
    pub origin: Origin,
    /// When the entry came into its state, by the wall clock; of a closed content: when it was
    /// closed, whatever became of it since.
    pub since: Timestamp,
    /// Space on disk when it was recorded. Units: bytes.
    pub disk_bytes: u64,
    pub state: State,
}

impl Entry {
    /// Since when the entry that follows on this one is what it is.
    pub fn since_of(&self, next: &State, now: Timestamp) -> Timestamp {
        if self.state.is_continued_by(next) { self.since } else { now }
    }
}

/// One record of the log: `None` is the end of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: EntryId,
    pub entry: Option<Entry>,
}
