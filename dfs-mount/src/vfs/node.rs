//! One inode as the kernel knows it: what was last heard of it, where it was last seen, and the
//! version that its open handles share.
//!
//! All handles of a node are over one cache file. That file is the version the first handle opened
//! or, while somebody here writes, the working copy that grows out of it; a handle for another
//! version needs another node (`inode_table`). Pure state: what it takes to get there is done by
//! `open` and `io`. Every lock here is held for a few instructions, except `gate`, which serialises
//! the network part of opens of one file.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use dfs_proto::version::{DataVersion, Sequence};

use super::mode::{ModeRule, Way};
use super::walk::Walks;
use crate::cache::CacheFile;

/// One inode of the kernel's.
pub(crate) struct Node {
    pub(crate) nodeid: u64,
    pub(crate) fid: FileId,
    /// Held from an open's answer until its handle exists. Nodes of one file share it.
    pub(crate) gate: Arc<tokio::sync::Mutex<()>>,
    /// Nodes of one file share them.
    pub(crate) walks: Arc<Walks>,
    /// A symbolic link's target: it never changes.
    pub(crate) target: OnceLock<Arc<[u8]>>,
    /// Whether the kernel has named it in a request.
    is_seen: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    known: Option<Known>,
    /// Where it was last seen: for messages only.
    place: Option<Place>,
    open: Option<OpenVersion>,
    mode: ModeRule,
}

/// Attributes and how new they are.
struct Known {
    attr: Attr,
    sequence: Sequence,
}

/// A name that led to an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) parent: u64,
    pub(crate) name: Name,
}

/// What every open handle of a node shows.
pub(crate) struct OpenVersion {
    pub(crate) file: Arc<CacheFile>,
    pub(crate) version: DataVersion,
    /// The attributes with that version, and how new they are.
    pub(crate) attr: Attr,
    pub(crate) sequence: Sequence,
    /// When the question was sent whose answer named this version. On `Clock::boottime`.
    pub(crate) asked_at: Duration,
    pub(crate) pending: Pending,
}

/// Attributes that wait for the next commit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pending {
    /// Set by a caller.
    pub(crate) atime: Option<Timestamp>,
    /// A write took the set-user-id and set-group-id bits away.
    pub(crate) clear_set_id: bool,
    /// Set on a file that was made here and is not committed yet.
    pub(crate) first: First,
}

/// Owner and mode of a new file that the server does not know yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

impl First {
    pub(crate) fn is_empty(&self) -> bool {
        *self == First::default()
    }

    /// `attr` with what is set here.
    pub(crate) fn apply(&self, attr: &mut Attr) {
        attr.mode = self.mode.unwrap_or(attr.mode);
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
    }
}

/// Why a handle could not be added to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OtherVersionOpen;

impl Node {
    pub(crate) fn new(nodeid: u64, fid: FileId) -> Node {
        Node {
            nodeid,
            fid,
            gate: Arc::default(),
            walks: Arc::default(),
            target: OnceLock::new(),
            is_seen: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Another node of the same file.
    pub(crate) fn sibling(&self, nodeid: u64) -> Node {
        let (gate, walks) = (self.gate.clone(), self.walks.clone());
        Node { gate, walks, ..Node::new(nodeid, self.fid) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the first reply that told the kernel of it may still be on its way there.
    pub(crate) fn is_unseen(&self) -> bool {
        !self.is_seen.load(Ordering::Relaxed)
    }

    /// The kernel has named it in a request.
    pub(crate) fn saw(&self) {
        self.is_seen.store(true, Ordering::Relaxed);
    }

    /// The kernel has given it up, and may have been told of it since.
    pub(crate) fn is_new_again(&self) {
        self.is_seen.store(false, Ordering::Relaxed);
    }

    /// Whether handles of this node are over `file`.
    pub(crate) fn shows(&self, file: &Arc<CacheFile>) -> bool {
        self.state().open.as_ref().is_some_and(|open| Arc::ptr_eq(&open.file, file))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state().mode.handle_count() > 0
    }

    /// Whether a program may hold the inode without a name: an open file, or what the kernel does
    /// not tell us is held, such as the directory that somebody works in, or an open fifo.
    pub(crate) fn may_be_in_use(&self) -> bool {
        let state = self.state();
        let told = [FileKind::File, FileKind::Symlink];
        let is_untold = state.attr().is_some_and(|attr| !told.contains(&attr.kind));
        is_untold || state.mode.handle_count() > 0
    }
}

impl State {
    /// Takes in attributes as of `sequence`, unless newer ones are known. The newest.
    pub(crate) fn learn(&mut self, attr: Attr, sequence: Sequence) -> Attr {
        match &self.known {
            Some(known) if known.sequence > sequence => known.attr.clone(),
            _ => {
                self.known = Some(Known { attr: attr.clone(), sequence });
                attr
            }
        }
    }

    /// The inode is gone from the server, and its attributes were changed here.
    pub(crate) fn change_removed(&mut self, attr: Attr) {
        if let Some(open) = &mut self.open {
            open.attr.mtime = attr.mtime;
        }
        if let Some(known) = &mut self.known {
            known.attr = attr;
        }
    }

    pub(crate) fn attr(&self) -> Option<&Attr> {
        self.known.as_ref().map(|known| &known.attr)
    }

    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    pub(crate) fn see_at(&mut self, place: Place) {
        self.place = Some(place);
    }

    pub(crate) fn open(&self) -> Option<&OpenVersion> {
        self.open.as_ref()
    }

    pub(crate) fn open_mut(&mut self) -> Option<&mut OpenVersion> {
        self.open.as_mut()
    }

    /// Adds a handle over `wanted`, the first of the node or one of the same cache file.
    ///
    /// # Errors
    /// [`OtherVersionOpen`]: handles over another cache file are open.
    pub(crate) fn add_handle(
        &mut self,
        wanted: OpenVersion,
        may_write: bool,
        may_pass: bool,
    ) -> Result<Way, OtherVersionOpen> {
        let newest = self.learn(wanted.attr.clone(), wanted.sequence);
        let attr = if newest.data_version == wanted.version { newest } else { wanted.attr };
        let wanted = OpenVersion { attr, ..wanted };
        let open = match &mut self.open {
            Some(open) if !Arc::ptr_eq(&open.file, &wanted.file) => return Err(OtherVersionOpen),
            Some(open) => {
                open.version = wanted.version;
                open.asked_at = open.asked_at.max(wanted.asked_at);
                open
            }
            vacant => vacant.insert(wanted),
        };
        Ok(self.mode.open(open.version, may_write, may_pass))
    }

    /// What a handle gets whose cache file the kernel refused to register.
    pub(crate) fn refuse_passthrough(&mut self) -> Way {
        let version = self.open.as_ref().map(|open| open.version).unwrap_or_default();
        self.mode.refuse_passthrough(version)
    }

    /// Takes a handle away; with the last one goes the version.
    pub(crate) fn remove_handle(&mut self) {
        if self.mode.close() {
            self.open = None;
        }
    }

    /// A commit of this node's cache file made version `after`; its attributes, unless the answer
    /// was lost.
    pub(crate) fn committed(&mut self, after: DataVersion, attr: Option<&Attr>) {
        if let Some(attr) = attr {
            self.learn(attr.clone(), Sequence::new(after.epoch, after.counter));
        }
        if let Some(open) = &mut self.open {
            self.mode.committed(open.version, after);
            open.version = after;
            if let Some(attr) = attr {
                open.attr = attr.clone();
            }
        }
    }

    /// The node's cache file was brought up to a version that another client made.
    pub(crate) fn refreshed(&mut self, version: DataVersion, attr: &Attr, sequence: Sequence) {
        self.learn(attr.clone(), sequence);
        self.mode.forget_pages();
        if let Some(open) = &mut self.open {
            open.version = version;
            open.attr = attr.clone();
        }
    }

    /// Whether handles show another version than `attr`'s, which is of `sequence`. `false` if
    /// something newer than `sequence` is known: the question is then out of date.
    pub(crate) fn shows_other_than(&self, attr: &Attr, sequence: Sequence) -> bool {
        let is_news = self.known.as_ref().is_none_or(|known| known.sequence <= sequence);
        let shown = self.open.as_ref().map(|open| open.version);
        is_news && shown.is_some_and(|version| version != attr.data_version)
    }
}

impl State {
    /// Whether a version is known that came after the one in `attr`, which is of `sequence`.
    pub(crate) fn has_newer_version(&self, attr: &Attr, sequence: Sequence) -> bool {
        let is_newer = |known: &Known| known.sequence > sequence;
        self.known
            .as_ref()
            .is_some_and(|known| is_newer(known) && known.attr.data_version != attr.data_version)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} as {})", self.fid, self.nodeid)
    }
}

#[cfg(test)]
mod tests;
