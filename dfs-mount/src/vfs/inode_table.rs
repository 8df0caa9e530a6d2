//! Which inodes the kernel knows, and by which numbers (nodeids).
//!
//! A nodeid is the inode's number, so that `st_ino` is the same on every client. Two inodes break
//! that rule and get a fresh nodeid, from a range no inode number reaches:
//! - a file that is open here on an older version while a newer one is on the server: the kernel
//!   has one size and one page cache for each nodeid, so the newer version needs another;
//! - an inode whose number belonged to one of another generation that the kernel still knows.
//!
//! A file has one *current* node: lookups yield it, and it alone may be opened. Every reply that
//! names an inode to the kernel counts as one lookup; FORGET takes lookups back, and at zero the
//! node leaves the table (open handles keep it alive by themselves). Nothing here waits or talks
//! to anybody: FORGET is answered on the spot. Lock order: the table, then a node's state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::id::FileId;

use super::node::Node;
use crate::cache::CacheFile;

/// The root directory's nodeid, fixed by the kernel.
pub(crate) const ROOT_NODEID: u64 = 1;

/// The first nodeid that is no inode's number.
const FRESH_START: u64 = 1 << 62;

/// Longest path that is put together for people. Units: names. Why a bound: two moves of
/// directories on another client can make what was last seen a circle.
const PATH_NAMES_MAX: usize = 128;

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    lookup_count: u64,
}

#[derive(Debug)]
struct Slots {
    by_nodeid: HashMap<u64, Slot>,
    /// The nodeid of each file's current node.
    current: HashMap<FileId, u64>,
    next_fresh: u64,
}

/// The inodes that the kernel knows.
#[derive(Debug)]
pub(crate) struct InodeTable {
    slots: Mutex<Slots>,
}

impl InodeTable {
    /// A table that knows the root only; the root is never forgotten.
    pub(crate) fn new(root: FileId) -> InodeTable {
        let mut slots =
            Slots { by_nodeid: HashMap::new(), current: HashMap::new(), next_fresh: FRESH_START };
        slots.insert(ROOT_NODEID, root);
        InodeTable { slots: Mutex::new(slots) }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, nodeid: u64) -> Option<Arc<Node>> {
        self.slots().by_nodeid.get(&nodeid).map(|slot| slot.node.clone())
    }

    /// The current node of `fid`, if the kernel knows one.
    pub(crate) fn find(&self, fid: FileId) -> Option<Arc<Node>> {
        let slots = self.slots();
        let nodeid = slots.current.get(&fid)?;
        slots.by_nodeid.get(nodeid).map(|slot| slot.node.clone())
    }

    /// Names `fid` to the kernel: its current node, made if there is none, with one lookup more.
    pub(crate) fn look_up(&self, fid: FileId) -> Arc<Node> {
        let mut slots = self.slots();
        slots.settle(fid);
        let nodeid = match slots.current.get(&fid) {
            Some(nodeid) => *nodeid,
            None => {
                let nodeid = slots.vacant_nodeid(fid);
                slots.insert(nodeid, fid);
                nodeid
            }
        };
        let slot = slots.by_nodeid.get_mut(&nodeid).expect("a current nodeid has a slot");
        slot.lookup_count += 1;
        slot.node.clone()
    }

    /// Gives the file of `old` another node, unless `old` is not its current one any more.
    pub(crate) fn supersede(&self, old: &Node) {
        let mut slots = self.slots();
        if slots.is_current(old) {
            let nodeid = slots.take_fresh();
            slots.insert(nodeid, old.fid);
        }
    }

    /// Runs `claim` if `node` is its file's current one, and keeps it current meanwhile. A node
    /// that was superseded and is not open becomes current again, unless the current one shows
    /// `file` already: two nodes over one cache file would each have a page cache of it.
    pub(crate) fn if_current<T>(
        &self,
        node: &Node,
        file: &Arc<CacheFile>,
        claim: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut slots = self.slots();
        slots.reinstate(node, file);
        slots.is_current(node).then(claim)
    }

    /// Takes back `count` lookups. Whether that were all.
    pub(crate) fn forget(&self, nodeid: u64, count: u64) -> bool {
        if nodeid == ROOT_NODEID {
            return false;
        }
        let mut slots = self.slots();
        let Some(slot) = slots.by_nodeid.get_mut(&nodeid) else { return true };
        slot.lookup_count = slot.lookup_count.saturating_sub(count);
        // What remains was told after the kernel had given the inode up: it has it anew.
        slot.node.is_new_again();
        slots.drop_unknown(nodeid);
        !slots.by_nodeid.contains_key(&nodeid)
    }

    /// The path by which a nodeid was last seen, from the volume's root: for people, and possibly
    /// out of date. It begins with `...` instead of `/` if the kernel has forgotten a directory on
    /// the way, as it may have done with that of a hard link seen last.
    pub(crate) fn path(&self, nodeid: u64) -> String {
        let slots = self.slots();
        let mut names = Vec::new();
        let mut next = nodeid;
        while next != ROOT_NODEID {
            let place =
                slots.by_nodeid.get(&next).and_then(|slot| slot.node.state().place().cloned());
            let Some(place) = place.filter(|_| names.len() < PATH_NAMES_MAX) else {
                names.push("...".to_owned());
                break;
            };
            next = place.parent;
            names.push(format!("/{}", place.name));
        }
        if names.is_empty() {
            return "/".to_owned();
        }
        names.into_iter().rev().collect()
    }

    /// How many inodes the kernel knows.
    pub(crate) fn len(&self) -> usize {
        self.slots().by_nodeid.len()
    }
}

/// The nodeid that shows the inode's own number.
fn natural_nodeid(fid: FileId) -> u64 {
    fid.inode.0
}

impl Slots {
    /// A new current node. If the file had one, both share the gate that serialises opens.
    fn insert(&mut self, nodeid: u64, fid: FileId) {
        let sibling = self.current.get(&fid).and_then(|old| self.by_nodeid.get(old));
        let node = Arc::new(match sibling {
            Some(slot) => slot.node.sibling(nodeid),
            None => Node::new(nodeid, fid),
        });
        self.by_nodeid.insert(nodeid, Slot { node, lookup_count: 0 });
        self.current.insert(fid, nodeid);
    }

    fn vacant_nodeid(&mut self, fid: FileId) -> u64 {
        let natural = natural_nodeid(fid);
        let is_usable = (ROOT_NODEID + 1..FRESH_START).contains(&natural);
        if is_usable && !self.by_nodeid.contains_key(&natural) {
            return natural;
        }
        self.take_fresh()
    }

    fn take_fresh(&mut self) -> u64 {
        let nodeid = self.next_fresh;
        self.next_fresh += 1;
        nodeid
    }

    fn is_current(&self, node: &Node) -> bool {
        self.current.get(&node.fid) == Some(&node.nodeid)
    }

    fn is_open(&self, nodeid: u64) -> bool {
        self.by_nodeid.get(&nodeid).is_some_and(|slot| slot.node.is_open())
    }

    fn reinstate(&mut self, node: &Node, file: &Arc<CacheFile>) {
        let Some(current) = self.current.get(&node.fid).copied() else { return };
        let Some(slot) = self.by_nodeid.get(&current) else { return };
        let is_known = self.by_nodeid.contains_key(&node.nodeid);
        if current != node.nodeid && is_known && !node.is_open() && !slot.node.shows(file) {
            self.current.insert(node.fid, node.nodeid);
            self.drop_unknown(current);
        }
    }

    /// Returns a file to the nodeid that shows its number, once neither node is open.
    fn settle(&mut self, fid: FileId) {
        let natural = natural_nodeid(fid);
        let Some(current) = self.current.get(&fid).copied() else { return };
        if current == natural || self.is_open(current) {
            return;
        }
        let Some(slot) = self.by_nodeid.get(&natural) else { return };
        if slot.node.fid == fid && !slot.node.is_open() {
            self.current.insert(fid, natural);
            self.drop_unknown(current);
        }
    }

    /// Removes a node that the kernel does not know, and the node that stood ready to follow it:
    /// once no older version is open, the file's own number is free again.
    fn drop_unknown(&mut self, nodeid: u64) {
        let Some(slot) = self.by_nodeid.get(&nodeid) else { return };
        if slot.lookup_count > 0 {
            return;
        }
        let fid = slot.node.fid;
        self.by_nodeid.remove(&nodeid);
        let Some(current) = self.current.get(&fid).copied() else { return };
        if current == nodeid {
            self.current.remove(&fid);
        } else {
            self.drop_unknown(current);
        }
    }
}

#[cfg(test)]
mod tests;
