//! Directory entries and their pages.

use serde::{Deserialize, Serialize};

use crate::attr::Attr;
use crate::name::Name;
use crate::version::DirVersion;

/// One name of a directory, with the attributes of the inode it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    pub name: Name,
    pub attr: Attr,
}

/// Part of a directory.
///
/// Shape: ordered by name; at most [`crate::limits::DIR_PAGE_ENTRIES_MAX`] entries. Pages of one
/// listing belong together only if they carry the same `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirPage {
    pub entries: Vec<DirEntry>,
    pub version: DirVersion,
    pub is_last: bool,
}
