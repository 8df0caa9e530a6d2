//! What the kernel was told that it may use without asking, and how that is taken back.
//!
//! Owns the record of *names* (directory, name, what it names) and of *attributes* that were
//! answered with a lifetime. Nothing here talks to the kernel: `fuse::notify` takes what is to be
//! taken back and says when it is. Lifetimes are never longer than what is left of the promise
//! lease, and given only for what is promised; so what remains is to take back in time what is
//! changed, or promised no more, while the lease runs.
//!
//! **The argument.** A change is acknowledged (and so answered to whoever made it) after its break
//! was taken in here and what it makes stale was taken back. Let a reply with a lifetime be made
//! before that, and reach the kernel later.
//! - It was recorded under the lock of this file in the same moment in which the promise was found
//!   to hold ([`KernelCache::tell_name`]). So the break, applied to promises first and looked up
//!   here second, either kept the lifetime from being given, or finds the record.
//! - *Attributes* are taken back without any lock of the kernel's, and the kernel drops those that
//!   were on their way meanwhile, but only of an inode that it has. An inode whose first reply may
//!   still be on its way is *unseen* (`Node::is_unseen`), until the kernel names it in a request.
//!   Attributes of an unseen directory have no lifetime. Those of anything else do, and are taken
//!   back with the name: dropping a name waits for the look-up that is under way there, after which
//!   the kernel has the inode.
//! - *Names* are dropped under the lock of their directory, which the kernel holds while it waits
//!   for a reply to anything that changes the directory. Such a change is answered when other
//!   clients have acknowledged it; if these waited for our acknowledgement in turn, that would be a
//!   circle. So names in a directory that is *changing* are dropped when it is not, and not waited
//!   for; an open that comes by such a name is answered `Stale`, and the kernel looks the name up
//!   again.
//! - What this client changes itself the kernel knows; but attributes of a directory that are on
//!   their way while it changes are taken back when it has.
//!
//! A name that is perhaps as it was (the promise ended, not the name) is only *expired*, if that
//! can be: then the kernel asks before it uses it, and keeps what is below it, mounts among them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::name::Name;
use tokio::sync::watch;

use super::node::Place;

/// Names that are recorded although the kernel may have forgotten what they name, at least. Why a
/// bound at all: names are not counted by the kernel, so they are swept when they are twice as many
/// as its inodes.
const SWEEP_NAMES_MIN: usize = 4096;

/// Longest time between an open that was answered `Stale` and its second try, which begins at once.
/// Why so long: a machine may be busy. Why a bound: an open that finds no such name is not tried
/// again, and the next one of that thread is another.
const SECOND_TRY_MAX: Duration = Duration::from_secs(10);

/// Threads that are known to try again. Why: as many as one may wait for at a time.
const SENT_BACK_MAX: usize = dfs_proto::limits::OPS_IN_FLIGHT_MAX;

/// How a name is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It names something else, or nothing.
    Drop,
    /// It may be as it was.
    Expire,
}

/// Names of one directory to be taken back.
#[derive(Debug)]
pub struct Names {
    pub dir: u64,
    pub names: Vec<StaleName>,
    /// The newest order among them.
    last: u64,
}

/// A name to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleName {
    pub name: Name,
    /// The node that the kernel has under it. Its attributes are taken back after the name.
    pub child: u64,
    pub way: Way,
}

/// A moment: what was ordered before it is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order(u64);

#[derive(Debug, Default)]
pub(crate) struct KernelCache {
    state: Mutex<State>,
    /// Somebody has something to do, or has nothing to do any more.
    work: Condvar,
    /// Changes when something was taken back, or need not be waited for.
    progress: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// What names are known to name, by directory.
    names: HashMap<u64, HashMap<Name, u64>>,
    name_count: usize,
    attrs: HashSet<u64>,
    /// How many changes of this client are under way in a directory.
    changing: HashMap<u64, u32>,
    stale_attrs: Vec<u64>,
    stale_names: HashMap<u64, StaleNames>,
    /// Threads whose open was answered `Stale` because of a name, and when.
    sent_back: VecDeque<(u32, Duration)>,
    last_order: u64,
    is_over: bool,
}

/// Names of a directory that are to be taken back.
#[derive(Debug, Default)]
struct StaleNames {
    names: HashMap<Name, Stale>,
    /// Whether a thread is at it.
    is_taken: bool,
}

#[derive(Clone, Copy, Debug)]
struct Stale {
    child: u64,
    way: Way,
    order: u64,
}

impl KernelCache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lifetime of a name in a reply: that which `promised` finds, if any.
    pub(crate) fn tell_name(
        &self,
        place: &Place,
        child: u64,
        promised: impl FnOnce() -> Option<Duration>,
    ) -> Duration {
        let mut state = self.state();
        let Some(lifetime) = promised() else { return Duration::ZERO };
        state.set_name(place, child);
        lifetime
    }

    /// The lifetime of attributes in a reply: that which `promised` finds, if any.
    pub(crate) fn tell_attr(
        &self,
        nodeid: u64,
        promised: impl FnOnce() -> Option<Duration>,
    ) -> Duration {
        let mut state = self.state();
        if state.changing.contains_key(&nodeid) {
            return Duration::ZERO;
        }
        let Some(lifetime) = promised() else { return Duration::ZERO };
        state.attrs.insert(nodeid);
        lifetime
    }

    /// The kernel has forgotten an inode. `is_known`: whether it knows another.
    pub(crate) fn forgot(&self, nodeid: u64, known_count: usize, is_known: impl Fn(u64) -> bool) {
        let mut state = self.state();
        state.attrs.remove(&nodeid);
        if let Some(names) = state.names.remove(&nodeid) {
            state.name_count -= names.len();
        }
        if state.name_count > SWEEP_NAMES_MIN.max(2 * known_count) {
            state.sweep(is_known);
        }
    }

    /// This client begins to change a directory.
    pub(crate) fn begin_change(&self, dir: u64) {
        *self.state().changing.entry(dir).or_default() += 1;
        self.progress.send_replace(());
    }

    /// It has.
    pub(crate) fn end_change(&self, dir: u64) {
        let mut state = self.state();
        state.stale_attr(dir);
        if let Entry::Occupied(mut count) = state.changing.entry(dir) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        let has_work = !state.stale_names.is_empty();
        drop(state);
        if has_work {
            self.work.notify_all();
        }
    }

    /// This client has removed a name; the kernel knows.
    pub(crate) fn removed(&self, place: &Place) {
        self.state().remove_name(place.parent, &place.name);
    }

    /// This client has renamed, and the kernel moves what it has of the names. `is_promised` says
    /// of a name and what it names by then whether that is promised; else it is taken back.
    pub(crate) fn renamed(
        &self,
        (from, to): (&Place, &Place),
        is_exchange: bool,
        is_promised: impl Fn(&Place, u64) -> bool,
    ) {
        let mut state = self.state();
        let moved = state.remove_name(from.parent, &from.name);
        let replaced = state.remove_name(to.parent, &to.name);
        let back = replaced.filter(|_| is_exchange);
        for (place, child) in [(to, moved), (from, back)] {
            let Some(child) = child else { continue };
            state.set_name(place, child);
            if !is_promised(place, child) {
                state.stale_name(place.parent, &place.name, Way::Drop);
            }
        }
    }

    /// Attributes that the kernel may have are not true any more, or not promised.
    pub(crate) fn stale_attr(&self, nodeid: u64) {
        self.state().stale_attr(nodeid);
    }

    /// What a name names has other attributes now: they are taken back, of whatever node the kernel
    /// has under that name.
    pub(crate) fn stale_attr_of(&self, dir: u64, name: &Name, is_unseen: impl Fn(u64) -> bool) {
        let mut state = self.state();
        let Some(child) = state.child(dir, name) else { return };
        state.stale_attr(child);
        if is_unseen(child) {
            state.stale_name(dir, name, Way::Drop);
        }
    }

    /// A name in a directory names something else, or nothing. Attributes of what it named are
    /// taken back with it.
    pub(crate) fn stale_name(&self, dir: u64, name: &Name) {
        let mut state = self.state();
        if let Some(child) = state.child(dir, name) {
            state.stale_attr(child);
            state.stale_name(dir, name, Way::Drop);
        }
    }

    /// What a name is known to name.
    pub(crate) fn named(&self, dir: u64, name: &Name) -> Option<u64> {
        self.state().child(dir, name)
    }

    /// Nothing in a directory is promised any more.
    pub(crate) fn stale_dir(&self, dir: u64) {
        self.state().stale_dir(dir);
    }

    /// Nothing is promised any more.
    pub(crate) fn stale_all(&self) {
        let mut state = self.state();
        let State { attrs, stale_attrs, .. } = &mut *state;
        stale_attrs.extend(attrs.drain());
        let dirs: Vec<u64> = state.names.keys().copied().collect();
        dirs.into_iter().for_each(|dir| state.stale_dir(dir));
    }

    /// Whether the kernel may have come to an inode by a name that is to be taken back.
    pub(crate) fn is_doubtful(&self, nodeid: u64) -> bool {
        let state = self.state();
        let mut stale = state.stale_names.values().flat_map(|stale| stale.names.values());
        stale.any(|stale| stale.child == nodeid)
    }

    /// The open of a thread is answered `Stale`. Always so.
    pub(crate) fn sent_back(&self, pid: u32, now: Duration) -> bool {
        let mut state = self.state();
        if state.sent_back.len() >= SENT_BACK_MAX {
            state.sent_back.pop_front();
        }
        state.sent_back.push_back((pid, now));
        true
    }

    /// Whether this is the second try of an open that was.
    pub(crate) fn tries_again(&self, pid: u32, now: Duration) -> bool {
        let mut state = self.state();
        let at = state.sent_back.iter().position(|(sent_back, _)| *sent_back == pid);
        let found = at.and_then(|at| state.sent_back.remove(at));
        found.is_some_and(|(_, since)| now < since + SECOND_TRY_MAX)
    }

    /// Whether the kernel has any name with a lifetime, perhaps one that is over.
    pub(crate) fn has_names(&self) -> bool {
        self.state().name_count > 0
    }

    /// Attributes to be taken back. Whoever takes them does it before anything is said of them.
    pub(crate) fn take_attrs(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().stale_attrs)
    }

    /// Everything ordered so far. Wakes those who do it.
    pub(crate) fn order(&self) -> Order {
        let (order, has_work) = {
            let state = self.state();
            (state.last_order, !state.stale_names.is_empty())
        };
        if has_work {
            self.work.notify_all();
        }
        Order(order)
    }

    /// Waits until what was ordered is done, or is not to be waited for.
    pub(crate) async fn settled(&self, order: Order) {
        let mut progress = self.progress.subscribe();
        while !self.state().is_settled(order) {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// Names to be taken back, all of one directory; waits for some. `None`: it is over.
    pub(crate) fn next_names(&self) -> Option<Names> {
        let mut state = self.state();
        loop {
            if state.is_over {
                return None;
            }
            if let Some(names) = state.take_names() {
                return Some(names);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// They are.
    pub(crate) fn names_taken_back(&self, done: &Names) {
        let mut state = self.state();
        state.names_taken_back(done);
        drop(state);
        self.work.notify_all();
        self.progress.send_replace(());
    }

    /// Nobody takes anything back any more.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.is_over = true;
        state.stale_names.clear();
        drop(state);
        self.work.notify_all();
        self.progress.send_replace(());
    }
}

impl State {
    fn child(&self, dir: u64, name: &Name) -> Option<u64> {
        self.names.get(&dir)?.get(name).copied()
    }

    fn set_name(&mut self, place: &Place, child: u64) {
        let names = self.names.entry(place.parent).or_default();
        self.name_count += usize::from(names.insert(place.name.clone(), child).is_none());
    }

    fn remove_name(&mut self, dir: u64, name: &Name) -> Option<u64> {
        let names = self.names.get_mut(&dir)?;
        let child = names.remove(name)?;
        self.name_count -= 1;
        if names.is_empty() {
            self.names.remove(&dir);
        }
        Some(child)
    }

    /// Forgets names of inodes that the kernel has forgotten, and so their names.
    fn sweep(&mut self, is_known: impl Fn(u64) -> bool) {
        for names in self.names.values_mut() {
            names.retain(|_, child| is_known(*child));
        }
        self.names.retain(|_, names| !names.is_empty());
        self.name_count = self.names.values().map(HashMap::len).sum();
    }

    fn stale_attr(&mut self, nodeid: u64) {
        if self.attrs.remove(&nodeid) {
            self.stale_attrs.push(nodeid);
        }
    }

    fn stale_name(&mut self, dir: u64, name: &Name, way: Way) {
        let Some(child) = self.remove_name(dir, name) else { return };
        if self.is_over {
            return;
        }
        self.last_order += 1;
        let order = self.last_order;
        let stale = self.stale_names.entry(dir).or_default();
        stale.names.insert(name.clone(), Stale { child, way, order });
    }

    fn stale_dir(&mut self, dir: u64) {
        self.stale_attr(dir);
        let Some(names) = self.names.get(&dir) else { return };
        let names: Vec<(Name, u64)> = names.iter().map(|(name, it)| (name.clone(), *it)).collect();
        for (name, child) in names {
            self.stale_attr(child);
            self.stale_name(dir, &name, Way::Expire);
        }
    }

    fn is_settled(&self, Order(order): Order) -> bool {
        let is_done = |stale: &StaleNames| stale.names.values().all(|name| name.order > order);
        let mut stale = self.stale_names.iter();
        stale.all(|(dir, stale)| self.changing.contains_key(dir) || is_done(stale))
    }

    fn take_names(&mut self) -> Option<Names> {
        let State { stale_names, changing, .. } = self;
        let is_ready =
            |dir: &u64, stale: &StaleNames| !stale.is_taken && !changing.contains_key(dir);
        let (dir, stale) = stale_names.iter_mut().find(|(dir, stale)| is_ready(dir, stale))?;
        stale.is_taken = true;
        let last = stale.names.values().map(|name| name.order).max().unwrap_or_default();
        let names = stale.names.iter().map(|(name, &Stale { child, way, .. })| {
            let name = name.clone();
            StaleName { name, child, way }
        });
        Some(Names { dir: *dir, names: names.collect(), last })
    }

    fn names_taken_back(&mut self, done: &Names) {
        let Entry::Occupied(mut entry) = self.stale_names.entry(done.dir) else { return };
        let stale = entry.get_mut();
        stale.is_taken = false;
        stale.names.retain(|_, name| name.order > done.last);
        if stale.names.is_empty() {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests;
