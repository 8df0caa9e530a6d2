//! The cache as people see it.

use dfs_proto::attr::Timestamp;
use dfs_proto::id::FileId;

use super::Cache;

/// An entry, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub fid: FileId,
    /// The path when it was opened.
    pub hint: String,
    /// Since when it is in its state.
    pub since: Timestamp,
    pub disk_bytes: u64,
    pub state: &'static str,
    pub is_open: bool,
}

impl Cache {
    /// Every entry, least recently used first.
    pub fn entries(&self) -> Vec<Listed> {
        let books = self.books();
        let entries = books.index.by_use().map(|(_, slot)| Listed {
            fid: slot.entry.fid,
            hint: slot.entry.origin.hint.clone(),
            since: slot.entry.since,
            disk_bytes: slot.entry.disk_bytes,
            state: slot.entry.state.word(),
            is_open: slot.open_file().is_some(),
        });
        entries.collect()
    }
}
