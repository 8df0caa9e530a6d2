//! What is known of directories while the owner has promised to tell of every change there.
//!
//! A directory is *held* if a reply on the live event stream promised it. Of a held directory this
//! keeps its attributes, names with what they name, names that do not exist, and whether these are
//! all names. Everything here is true as long as the promise lease lasts, so it answers questions
//! without a request. `dfs-proto/PROTOCOL.md`, "Coherence", has the argument; what this side owes
//! to it:
//!
//! - *Breaks come in order*, replies do not. A reply that was read before the last change that is
//!   known of its directory (`Dir::changed_at`) is for the operation that asked, and never kept.
//! - A change by this client comes with the reply of the operation. Two of them may overtake each
//!   other; so each name knows the commit that it is as of, and an older one does not replace it.
//! - A break about a directory that is not held is remembered as `missed`: the reply that promised
//!   it may still be on its way, and must not be older.
//! - When the stream is lost or another begins, when the lease lapses, or when an operation's
//!   answer did not say what it changed, everything is forgotten.
//!
//! Pure state behind one lock that is held for some instructions; no clock, no I/O.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::attr::Attr;
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use dfs_proto::promise::{Break, BreakNumber, DirChange, Promise, StreamNumber};
use dfs_proto::version::Sequence;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Most names that are kept, of all directories together. Why: each takes a third of a KiB, and the
/// daemon is to stay under 150 MiB.
const NAMES_MAX: usize = 150_000;

/// How many are left when there were too many.
const NAMES_KEPT: usize = NAMES_MAX / 4 * 3;

/// Most directories that are held. Source: the owner's bound for one session.
const DIRS_MAX: usize = 65_536;

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It names an inode with these attributes, as of that commit or a later one.
    Here(Box<Attr>, Sequence),
    Absent,
}

/// What a reply told of a promised directory.
#[derive(Clone, Debug)]
pub enum Learnt<'a> {
    /// Its own attributes.
    Dir(&'a Attr),
    /// What a name there names, or that there is none such.
    Name(&'a Name, Option<&'a Attr>),
}

/// Names of a directory that follow one another, in their order.
pub struct Page<'a, Names> {
    /// The name before them; `None` for the first.
    pub after: Option<&'a Name>,
    pub names: Names,
    /// What their attributes are as of: never older than the promise. A directory that does not
    /// rest is read in several moments.
    pub sequence: Sequence,
    pub is_last: bool,
}

/// The directories that are held.
#[derive(Debug, Default)]
pub struct Promises {
    state: Mutex<State>,
    renewals: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The stream that breaks come on, while there is one.
    stream: Option<StreamNumber>,
    /// End of the promise lease. On `Clock::boottime`.
    until: Duration,
    dirs: HashMap<FileId, Dir>,
    name_count: usize,
    /// The newest change of a directory that was not held then.
    missed: Sequence,
    /// Promises registered before this break may have been ended by it.
    ended: BreakNumber,
    /// Grows whenever something is forgotten: replies from before are not kept.
    forgotten: u64,
}

#[derive(Debug, Default)]
struct Dir {
    attr: Option<(Box<Attr>, Sequence)>,
    names: HashMap<Name, Entry>,
    /// Whether there are no names but those in `names`.
    is_whole: bool,
    /// The same of the names up to this one, while the directory is listed page by page.
    listed_to: Option<Name>,
    /// The newest change here that is known.
    changed_at: Sequence,
    /// Whether it answered a question since it was last told of in a break.
    is_used: bool,
}

#[derive(Debug)]
struct Entry {
    attr: Option<Box<Attr>>,
    sequence: Sequence,
}

/// An inode, and a name by which its attributes may be known.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub fid: FileId,
    pub place: Option<(FileId, &'a Name)>,
}

/// Whether the caller may do what it wants with an inode that has these attributes.
pub type May<'a> = &'a dyn Fn(&Attr) -> bool;

/// A moment, for telling whether something was forgotten since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(u64);

impl Promises {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream has begun. What was promised on another is promised no more.
    pub fn stream_began(&self, stream: StreamNumber) {
        let mut state = self.state();
        state.forget_all();
        state.stream = Some(stream);
    }

    /// The stream is gone: nobody would tell of a change.
    pub fn stream_ended(&self) {
        let mut state = self.state();
        state.forget_all();
        state.stream = None;
    }

    /// The owner renewed the promises of a stream; `until` is on `Clock::boottime`.
    pub fn renewed(&self, stream: StreamNumber, until: Duration) {
        let mut state = self.state();
        if state.stream == Some(stream) {
            state.until = state.until.max(until);
            drop(state);
            self.renewals.notify_waiters();
        }
    }

    /// The end of the promise lease, if there is a stream. On `Clock::boottime`.
    pub fn until(&self) -> Option<Duration> {
        let state = self.state();
        state.stream.map(|_| state.until)
    }

    /// Waits for the next renewal.
    pub fn renewal(&self) -> Notified<'_> {
        self.renewals.notified()
    }

    /// An operation may have changed anything: nothing that was learnt answers any more.
    pub fn forget_all(&self) {
        self.state().forget_all();
    }

    /// Nothing that was learnt of the directory answers any more, nor does what is on its way.
    pub fn forget(&self, dir: FileId) {
        let mut state = self.state();
        state.remove(dir);
        state.forgotten += 1;
    }

    pub fn moment(&self) -> Since {
        Since(self.state().forgotten)
    }

    /// The stream that breaks come on, while there is one.
    pub fn stream(&self) -> Option<StreamNumber> {
        self.state().stream
    }

    /// What a name in a directory names, if that is known at the time `now`, and that the caller
    /// may know it.
    pub fn look_up(
        &self,
        dir: Subject<'_>,
        name: &Name,
        may: May<'_>,
        now: Duration,
    ) -> Option<Known> {
        let mut state = self.state();
        let dirs = state.live(now)?;
        may(attr_of(dirs, dir)?.0).then_some(())?;
        let dir = dirs.get_mut(&dir.fid)?;
        let known = match dir.names.get(name) {
            Some(Entry { attr: Some(attr), sequence }) => Known::Here(attr.clone(), *sequence),
            Some(Entry { attr: None, .. }) => Known::Absent,
            None if dir.is_whole => Known::Absent,
            None => return None,
        };
        dir.is_used = true;
        Some(known)
    }

    /// The attributes of an inode, if they are known, and the commit they are as of: of a held
    /// directory its own, of anything else those that its name has in a held directory.
    pub fn attr(&self, of: Subject<'_>, now: Duration) -> Option<(Attr, Sequence)> {
        let mut state = self.state();
        let dirs = state.live(now)?;
        let (attr, sequence) = attr_of(dirs, of)?;
        let known = (attr.clone(), sequence);
        let holder =
            if dirs.contains_key(&of.fid) { Some(of.fid) } else { of.place.map(|it| it.0) };
        if let Some(dir) = holder.and_then(|holder| dirs.get_mut(&holder)) {
            dir.is_used = true;
        }
        Some(known)
    }

    /// All names of a directory in their order, if they are known, and that the caller may know
    /// them. `None` is also the answer for one that is changed while it is listed again and again:
    /// the caller asks the server.
    pub fn list(
        &self,
        dir: Subject<'_>,
        may: May<'_>,
        now: Duration,
    ) -> Option<(Vec<(Name, Attr)>, Sequence)> {
        let mut state = self.state();
        let dirs = state.live(now)?;
        may(attr_of(dirs, dir)?.0).then_some(())?;
        let dir = dirs.get_mut(&dir.fid).filter(|dir| dir.is_whole)?;
        dir.is_used = true;
        let mut all: Vec<(Name, Attr)> = dir
            .names
            .iter()
            .filter_map(|(name, entry)| Some((name.clone(), Attr::clone(entry.attr.as_ref()?))))
            .collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        Some((all, dir.changed_at))
    }

    /// Takes in what a reply told. `since` is a moment before its request was sent.
    pub fn learn(&self, promise: &Promise, dir: FileId, learnt: Learnt<'_>, since: Since) {
        let mut state = self.state();
        let Some(sequence) = state.accept(promise, dir, since) else { return };
        let dir = state.hold(dir);
        let added = match learnt {
            Learnt::Dir(attr) => {
                dir.set_attr(attr, sequence);
                0
            }
            Learnt::Name(name, attr) => usize::from(dir.set_name(name, attr, sequence)),
        };
        state.grew(added);
    }

    /// A page of a directory. It is whole when all pages were learnt one after another, for what
    /// changes in those before comes in breaks.
    pub fn learn_page<'a>(
        &self,
        promise: &Promise,
        dir: FileId,
        page: Page<'_, impl Iterator<Item = (&'a Name, &'a Attr)>>,
        since: Since,
    ) {
        let mut state = self.state();
        let Some(sequence) = state.accept(promise, dir, since) else { return };
        let dir = state.hold(dir);
        let is_next = dir.listed_to.as_ref() == page.after;
        if page.after.is_none() {
            dir.names.retain(|_, entry| entry.sequence > sequence);
        }
        let mut last = page.after.cloned();
        for (name, attr) in page.names {
            dir.set_name(name, Some(attr), page.sequence);
            last = Some(name.clone());
        }
        let follows = page.after.is_none() || is_next;
        if follows {
            dir.is_whole |= page.is_last;
            dir.listed_to = last.filter(|_| !page.is_last);
        }
        state.name_count = state.dirs.values().map(|dir| dir.names.len()).sum();
        state.grew(0);
    }

    /// Takes in what an operation of this client changed. `since` is a moment before its request
    /// was sent: a directory that it made is held if all was well since.
    pub fn changed_here(&self, changes: &[DirChange], since: Since) {
        let mut state = self.state();
        for change in changes {
            let is_whole_story = since == Since(state.forgotten) && change.sequence >= state.missed;
            if change.is_made && is_whole_story && !state.dirs.contains_key(&change.dir) {
                state.hold(change.dir).is_whole = true;
            }
            state.apply(change);
        }
    }

    /// Takes in a break. The directories in it that were used since the break before that told of
    /// them.
    pub fn break_came(&self, told: &Break) -> Vec<FileId> {
        let mut state = self.state();
        let mut used = Vec::new();
        for change in &told.changes {
            if let Some(dir) = state.dirs.get_mut(&change.dir)
                && std::mem::take(&mut dir.is_used)
                && !used.contains(&change.dir)
            {
                used.push(change.dir);
            }
            state.apply(change);
        }
        for dir in &told.ended {
            state.remove(*dir);
            state.ended = state.ended.max(told.number);
        }
        used.retain(|dir| !told.ended.contains(dir));
        used
    }

    /// How many directories and names are held.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state();
        (state.dirs.len(), state.name_count)
    }
}

/// What is known of an inode: of a directory that is held there, else where it has a name.
fn attr_of<'a>(dirs: &'a HashMap<FileId, Dir>, of: Subject<'_>) -> Option<(&'a Attr, Sequence)> {
    if let Some((attr, sequence)) = dirs.get(&of.fid).and_then(|dir| dir.attr.as_ref()) {
        return Some((attr, *sequence));
    }
    let (parent, name) = of.place?;
    let Entry { attr, sequence } = dirs.get(&parent)?.names.get(name)?;
    let attr = attr.as_deref().filter(|attr| attr.fid == of.fid)?;
    Some((attr, *sequence))
}

impl State {
    /// The directories, if what is known of them is true at the time `now`.
    fn live(&mut self, now: Duration) -> Option<&mut HashMap<FileId, Dir>> {
        (self.stream.is_some() && now < self.until).then_some(&mut self.dirs)
    }

    fn forget_all(&mut self) {
        self.dirs.clear();
        self.name_count = 0;
        self.forgotten += 1;
    }

    fn remove(&mut self, dir: FileId) {
        if let Some(dir) = self.dirs.remove(&dir) {
            self.name_count -= dir.names.len();
        }
    }

    /// The commit that a reply is as of, if what it tells of a directory may be kept.
    fn accept(&self, promise: &Promise, dir: FileId, since: Since) -> Option<Sequence> {
        let is_promised = self.stream == Some(promise.stream)
            && promise.dirs.contains(&dir)
            && promise.after >= self.ended
            && since == Since(self.forgotten);
        let newest = self.dirs.get(&dir).map_or(self.missed, |dir| dir.changed_at);
        (is_promised && promise.sequence >= newest).then_some(promise.sequence)
    }

    /// The held directory, made if need be.
    fn hold(&mut self, fid: FileId) -> &mut Dir {
        if !self.dirs.contains_key(&fid) && self.dirs.len() >= DIRS_MAX {
            self.forget_all();
        }
        // What was missed may have been about this one.
        let fresh = Dir { changed_at: self.missed, is_used: true, ..Dir::default() };
        self.dirs.entry(fid).or_insert(fresh)
    }

    fn grew(&mut self, names: usize) {
        self.name_count += names;
        if self.name_count > NAMES_MAX {
            self.shrink();
        }
    }

    /// Drops directories, those first that answered nothing lately. The owner ends their promises
    /// when it next breaks them.
    fn shrink(&mut self) {
        let mut all: Vec<(bool, FileId)> =
            self.dirs.iter().map(|(fid, dir)| (dir.is_used, *fid)).collect();
        all.sort_by_key(|(is_used, _)| *is_used);
        for (_, fid) in all {
            if self.name_count <= NAMES_KEPT {
                break;
            }
            self.remove(fid);
        }
    }

    fn apply(&mut self, change: &DirChange) {
        let Some(dir) = self.dirs.get_mut(&change.dir) else {
            self.missed = self.missed.max(change.sequence);
            return;
        };
        let Some(attr) = &change.attr else {
            // It was removed. Nothing more will be told of it.
            self.remove(change.dir);
            self.missed = self.missed.max(change.sequence);
            return;
        };
        if change.is_cut {
            self.remove(change.dir);
            self.missed = self.missed.max(change.sequence);
            return;
        }
        dir.set_attr(attr, change.sequence);
        let is_late = change.sequence < dir.changed_at;
        let mut added = 0;
        for (name, attr) in &change.names {
            // Overtaken by a change that may have taken the name away again.
            dir.is_whole &= !is_late || dir.names.contains_key(name);
            if !is_late || dir.names.contains_key(name) {
                added += usize::from(dir.set_name(name, attr.as_ref(), change.sequence));
            }
        }
        dir.changed_at = dir.changed_at.max(change.sequence);
        self.grew(added);
    }
}

impl Dir {
    fn set_attr(&mut self, attr: &Attr, sequence: Sequence) {
        if self.attr.as_ref().is_some_and(|(_, known)| *known > sequence) {
            return;
        }
        self.attr = Some((Box::new(attr.clone()), sequence));
    }

    /// Sets what a name names, unless something newer is known. Whether there is a name more.
    fn set_name(&mut self, name: &Name, attr: Option<&Attr>, sequence: Sequence) -> bool {
        let entry = || Entry { attr: attr.map(|attr| Box::new(attr.clone())), sequence };
        match self.names.get_mut(name) {
            Some(known) if known.sequence > sequence => false,
            Some(known) => {
                *known = entry();
                false
            }
            None => {
                self.names.insert(name.clone(), entry());
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
