//! How long the kernel may use what it is told, and what happens when that is not true any more.
//!
//! `kernel` has the argument and the record; this says what is promised, and for how long: names
//! and attributes that the promises of this client hold at the moment of the answer, as they were
//! answered, for what is left of the lease. Not those of a file that is open here in another state
//! than the servers': it changes without anybody being told.
//!
//! *Names* have a lifetime only where the kernel judges by mode bits, as the servers do, and where
//! these take root, whom the kernel refuses nothing, for root: elsewhere it would let one user by a
//! name that the servers refuse him. There it asks each time, and is answered from memory.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::credential::Identity;
use dfs_proto::directory::RenameRule;
use dfs_proto::promise::DirChange;
use dfs_proto::version::DirVersion;
use tokio::sync::mpsc;

use super::kernel::{Names, Order};
use super::node::{Node, Place};
use super::{Caller, Entry, Vfs};
use crate::cache::promise::Known;
use crate::session::told::{Told, What};

/// Longest that an acknowledgement waits for the kernel to drop names. Why so long: it takes
/// microseconds, unless the kernel holds the directory for a request of this client; where that is
/// known it is not waited for, so this bounds what was overlooked.
const NAMES_PATIENCE: Duration = Duration::from_secs(1);

/// How long the kernel may use parts of an entry without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    pub name: Duration,
    pub attr: Duration,
}

impl Vfs {
    /// The events that are to be taken in from here on; the caller sees to it.
    pub fn keep(&self) -> mpsc::Receiver<Told> {
        self.session().keep()
    }

    /// Takes in what the owner told: what is stale by it is to be taken back, and those who drop
    /// names begin to.
    pub fn take_in(&self, what: &What) {
        match what {
            What::Lost => self.inner.kernel.stale_all(),
            What::Break(told) => {
                told.changes.iter().for_each(|change| self.take_in_change(change));
                let ended = told.ended.iter().filter_map(|dir| self.inner.inodes.find(*dir));
                ended.for_each(|dir| self.inner.kernel.stale_dir(dir.nodeid));
            }
        }
        self.inner.kernel.order();
    }

    /// Waits until the kernel has nothing any more of what was taken in, or need not be waited for.
    pub async fn taken_back(&self) {
        let order: Order = self.inner.kernel.order();
        let settled = self.inner.kernel.settled(order);
        if tokio::time::timeout(NAMES_PATIENCE, settled).await.is_err() {
            tracing::warn!("the kernel was slow to drop names");
        }
    }

    /// Waits until promises that names were told by have lapsed.
    pub async fn lapsed(&self) {
        loop {
            let until = self.promises().until();
            match until {
                Some(until) if self.clock().boottime() < until => {
                    self.clock().sleep_until(until).await;
                }
                _ if self.inner.kernel.has_names() => return,
                _ => self.promises().renewal().await,
            }
        }
    }

    /// Inodes whose attributes are to be taken back, now.
    pub fn take_stale_attrs(&self) -> Vec<u64> {
        self.inner.kernel.take_attrs()
    }

    /// Names to be taken back, all of one directory. Blocks until there are; `None` at the end.
    pub fn next_stale_names(&self) -> Option<Names> {
        self.inner.kernel.next_names()
    }

    /// They are.
    pub fn names_taken_back(&self, done: &Names) {
        self.inner.kernel.names_taken_back(done);
    }

    /// The kernel asks nothing any more.
    pub fn kernel_is_gone(&self) {
        self.inner.kernel.end();
    }

    fn take_in_change(&self, change: &DirChange) {
        let (kernel, inodes) = (&self.inner.kernel, &self.inner.inodes);
        for attr in change.names.iter().filter_map(|(_, attr)| attr.as_ref()) {
            // By whatever name the kernel has it.
            if let Some(node) = inodes.find(attr.fid) {
                kernel.stale_attr(node.nodeid);
            }
        }
        let Some(dir) = inodes.find(change.dir).map(|dir| dir.nodeid) else { return };
        kernel.stale_attr(dir);
        if change.attr.is_none() || change.is_cut {
            kernel.stale_dir(dir);
        }
        let is_unseen = |nodeid| inodes.get(nodeid).is_none_or(|node| node.is_unseen());
        for (name, attr) in &change.names {
            let known = kernel.named(dir, name).and_then(|nodeid| inodes.get(nodeid));
            let is_same = |node: &Node, attr: &Attr| node.fid == attr.fid && !is_older(node, attr);
            match (known, attr) {
                (Some(node), Some(attr)) if is_same(&node, attr) => {
                    kernel.stale_attr_of(dir, name, is_unseen);
                }
                _ => kernel.stale_name(dir, name),
            }
        }
    }

    /// What is left of the lease on promises.
    fn left(&self) -> Option<Duration> {
        let left = self.promises().until()?.checked_sub(self.clock().boottime())?;
        (!left.is_zero()).then_some(left)
    }

    /// `entry`, with the lifetime that its attributes may have.
    pub(super) fn with_attr_lifetime(&self, node: &Node, entry: Entry) -> Entry {
        let promised = || {
            let (attr, _) = self.known_attr(node)?;
            let is_promised = is_shown_alike(&attr, &entry.attr) && self.is_as_told(node, &attr);
            is_promised.then(|| self.left())?
        };
        let may_be_late = entry.attr.kind == FileKind::Directory && node.is_unseen();
        if may_be_late {
            return entry;
        }
        let attr = self.inner.kernel.tell_attr(node.nodeid, promised);
        Entry { lifetimes: Lifetimes { attr, ..entry.lifetimes }, ..entry }
    }

    /// `entry`, with the lifetime that its name may have.
    pub(super) fn with_name_lifetime(&self, node: &Node, place: &Place, entry: Entry) -> Entry {
        if !self.kernel_judges_as_servers() {
            return entry;
        }
        let promised = || self.is_promised(place, node).then(|| self.left())?;
        let name = self.inner.kernel.tell_name(place, node.nodeid, promised);
        Entry { lifetimes: Lifetimes { name, ..entry.lifetimes }, ..entry }
    }

    /// Whether a name is known to name an inode, in the state that its node shows.
    fn is_promised(&self, place: &Place, node: &Node) -> bool {
        let Some(dir) = self.inner.inodes.get(place.parent) else { return false };
        match self.promised_name(&dir, &place.name) {
            Some(Known::Here(attr, _)) => attr.fid == node.fid && self.is_as_told(node, &attr),
            Some(Known::Absent) | None => false,
        }
    }

    /// Whether whom the kernel lets through by mode bits the servers would let through.
    fn kernel_judges_as_servers(&self) -> bool {
        let root = Identity::ROOT;
        self.inner.options.kernel_judges && self.session().identity(&root) == Some(root)
    }

    /// Whether a file is here in the state that the servers have: nobody writes it, and no other
    /// version is open.
    fn is_as_told(&self, node: &Node, attr: &Attr) -> bool {
        self.writeback().working(node.fid).is_none() && !is_older(node, attr)
    }

    /// A file is open here for writing: from now on its attributes change untold.
    pub(super) fn begun_writing(&self, node: &Node) {
        self.inner.kernel.stale_attr(node.nodeid);
    }

    /// A handle was opened. If it shows another version than the name does by now, the name is to
    /// lead elsewhere.
    pub(super) fn opened(&self, node: &Node) {
        let Some((attr, _)) = self.known_attr(node) else { return };
        if is_older(node, &attr) && self.writeback().working(node.fid).is_none() {
            let place = node.state().place().cloned();
            if let Some(Place { parent, name }) = place {
                self.inner.kernel.stale_name(parent, &name);
                self.inner.kernel.order();
            }
        }
    }

    /// Whether an open may have come by a name that is not true any more, and is to be answered
    /// `Stale` so that the kernel looks it up: the name is being taken back, or the promise has
    /// lapsed and the kernel cannot know (a suspended machine's clock for lifetimes stood still).
    /// Once in each call: the kernel does not try a third time.
    pub(super) fn is_to_look_again(&self, caller: &Caller, node: &Node) -> bool {
        let (kernel, now) = (&self.inner.kernel, self.clock().boottime());
        let is_again = kernel.tries_again(caller.pid, now);
        let is_lapsed = || kernel.has_names() && self.left().is_none();
        let is_doubtful = kernel.is_doubtful(node.nodeid) || is_lapsed();
        caller.pid != 0 && !is_again && is_doubtful && kernel.sent_back(caller.pid, now)
    }

    /// An inode that is about to be changed. To be kept until the change is answered: the kernel
    /// holds it meanwhile.
    pub(super) fn changing(&self, node: Arc<Node>) -> Changing<'_> {
        self.inner.kernel.begin_change(node.nodeid);
        Changing { vfs: self, node }
    }

    /// The same, of what a name names that is about to be removed or moved.
    pub(super) fn changing_at(&self, at: &Place) -> Option<Changing<'_>> {
        let nodeid = self.inner.kernel.named(at.parent, &at.name)?;
        Some(self.changing(self.inner.inodes.get(nodeid)?))
    }

    /// This client has renamed.
    pub(super) fn renamed(&self, from: &Place, to: &Place, rule: RenameRule) {
        let is_promised = |place: &Place, nodeid: u64| {
            self.inner.inodes.get(nodeid).is_some_and(|node| self.is_promised(place, &node))
        };
        self.inner.kernel.renamed((from, to), rule == RenameRule::Exchange, is_promised);
    }
}

/// An inode while this client changes it.
pub(super) struct Changing<'a> {
    vfs: &'a Vfs,
    node: Arc<Node>,
}

impl Deref for Changing<'_> {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.vfs.inner.kernel.end_change(self.node.nodeid);
    }
}

/// Whether the handles of a node show another version than `attr`'s.
fn is_older(node: &Node, attr: &Attr) -> bool {
    let state = node.state();
    attr.kind == FileKind::File
        && state.open().is_some_and(|open| open.version != attr.data_version)
}

/// Whether programs see the same of two attributes.
fn is_shown_alike(one: &Attr, other: &Attr) -> bool {
    let shown = |attr: &Attr| Attr { dir_version: DirVersion::default(), ..attr.clone() };
    shown(one) == shown(other)
}
