//! What a mutation changed in directories, read off its rows, and told to those who hold them.
//!
//! The rows are compared with those before, so what nobody sees (a fence, a counter) is no change,
//! and no mutation has to say what it did. A directory is changed
//!
//! 1. if its own attributes differ, its version among them, or it is gone;
//! 2. if one of its entries was put or deleted;
//! 3. if the attributes of an inode that has a name in it differ, but for `dir_version`: that moves
//!    with every change below a directory, and would carry each one up to the root.
//!
//! By `touch_parents` the rows of all directories of 2 and 3 are among those changed. Should one be
//! missing, its promises are broken without saying how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_proto::attr::Attr;
use dfs_proto::credential::Identity;
use dfs_proto::id::{FileId, InodeNo, VolumeId};
use dfs_proto::name::Name;
use dfs_proto::promise::{CHANGED_NAMES_MAX, DirChange};
use dfs_proto::version::{DirVersion, Sequence};

use super::permission::{self, EXECUTE, READ};
use super::rows::{DirentRow, InodeRow, RowName, row_name};
use crate::meta::watch::{Hold, Mutation, Watch};
use crate::session::Sessions;

/// Tells the sessions of one volume's owner.
#[derive(Debug)]
pub struct Watcher {
    pub volume: VolumeId,
    pub sessions: Sessions,
}

impl Watch for Watcher {
    fn committed(&self, mutation: &Mutation<'_>) -> Option<Hold> {
        if mutation.changes.is_empty() {
            return self.sessions.answer_again(mutation.origin?);
        }
        // Whoever is promised something from here on reads what is published already.
        if !self.sessions.has_promises() {
            return None;
        }
        let rows = Rows::new(self.volume, mutation);
        let mut changes = rows.changes();
        for inode in rows.strange() {
            let cut = |dir| DirChange {
                dir,
                attr: None,
                names: Vec::new(),
                is_cut: true,
                is_made: false,
                sequence: mutation.sequence,
            };
            changes.extend(self.sessions.promised(self.volume, inode).into_iter().map(cut));
        }
        let may_see = |dir: FileId, who: &Identity| rows.may_see(dir.inode, who);
        self.sessions.break_promises(&changes, mutation.origin, &may_see)
    }
}

struct Inode {
    /// `None`: not known.
    before: Option<Option<Arc<InodeRow>>>,
    after: Option<Arc<InodeRow>>,
}

impl Inode {
    /// The row it has, or had.
    fn row(&self) -> Option<&Arc<InodeRow>> {
        self.after.as_ref().or_else(|| self.before.as_ref()?.as_ref())
    }
}

/// What changed below one directory: what each name names, `None` for nothing.
type Names = BTreeMap<Name, Option<Attr>>;

/// The rows of a mutation that matter.
struct Rows {
    volume: VolumeId,
    sequence: Sequence,
    inodes: BTreeMap<InodeNo, Inode>,
    names: BTreeMap<InodeNo, Names>,
}

impl Rows {
    fn new(volume: VolumeId, mutation: &Mutation<'_>) -> Rows {
        let (mut inodes, mut entries) = (BTreeMap::new(), Vec::new());
        for change in mutation.changes {
            match row_name(&change.key) {
                RowName::Inode(inode) => {
                    let (before, after) = (change.before(), change.after());
                    inodes.insert(inode, Inode { before, after });
                }
                RowName::Entry(parent, name) => {
                    entries.push((parent, name, change.after::<DirentRow>()));
                }
                RowName::Other => {}
            }
        }
        let mut rows = Rows { volume, sequence: mutation.sequence, inodes, names: BTreeMap::new() };
        for (parent, name, entry) in entries {
            let attr = entry.and_then(|entry| rows.attr(entry.inode));
            rows.names.entry(parent).or_default().insert(name, attr);
        }
        for (inode, changed) in &rows.inodes {
            let Some(row) = changed.after.as_ref().filter(|_| rows.is_shown(*inode)) else {
                continue;
            };
            for (parent, name) in &row.parents {
                let attr = Some(row.attr(volume, *inode));
                rows.names.entry(*parent).or_default().insert(name.clone(), attr);
            }
        }
        rows
    }

    fn attr(&self, inode: InodeNo) -> Option<Attr> {
        let row = self.inodes.get(&inode)?.after.as_ref()?;
        Some(row.attr(self.volume, inode))
    }

    /// Whether an inode is another one than before to those who see it in a directory.
    fn is_shown(&self, inode: InodeNo) -> bool {
        let shown = |row: &InodeRow| {
            let attr = row.attr(self.volume, inode);
            Attr { dir_version: DirVersion::default(), ..attr }
        };
        let Some(Inode { before, after }) = self.inodes.get(&inode) else { return false };
        let Some(Some(before)) = before else { return true };
        after.as_ref().is_none_or(|after| shown(before) != shown(after))
    }

    fn is_dir_changed(&self, inode: InodeNo, changed: &Inode) -> bool {
        let Some(Some(before)) = &changed.before else { return true };
        let attr = |row: &InodeRow| row.attr(self.volume, inode);
        changed.after.as_ref().is_none_or(|after| attr(before) != attr(after))
    }

    /// Whether it is a directory that was made now. Of one that is new it is not always known that
    /// there was none before; but it is empty as of this commit, and that is what is promised.
    fn is_made(&self, changed: &Inode) -> bool {
        let was_there = matches!(changed.before, Some(Some(_)));
        let is_empty = |row: &Arc<InodeRow>| {
            row.size == 0 && row.entries_version == DirVersion::from(self.sequence)
        };
        !was_there && changed.after.as_ref().is_some_and(is_empty)
    }

    /// One for each directory whose row is among those changed.
    fn changes(&self) -> Vec<DirChange> {
        let mut found = Vec::new();
        for (inode, changed) in &self.inodes {
            let Some(row) = changed.row().filter(|row| row.is_dir()) else { continue };
            let names = self.names.get(inode);
            if names.is_none() && !self.is_dir_changed(*inode, changed) {
                continue;
            }
            let names = names.cloned().unwrap_or_default();
            found.push(DirChange {
                dir: FileId::new(self.volume, *inode, row.generation),
                attr: self.attr(*inode),
                is_cut: names.len() > CHANGED_NAMES_MAX,
                is_made: self.is_made(changed),
                names: names.into_iter().take(CHANGED_NAMES_MAX).collect(),
                sequence: self.sequence,
            });
        }
        found
    }

    /// Directories with changed entries whose rows are not among those changed.
    fn strange(&self) -> BTreeSet<InodeNo> {
        let is_known = |inode: &&InodeNo| {
            self.inodes.get(inode).and_then(Inode::row).is_some_and(|row| row.is_dir())
        };
        self.names.keys().filter(|inode| !is_known(inode)).copied().collect()
    }

    /// Whether somebody may read the names in a directory, and the attributes of what they name.
    fn may_see(&self, dir: InodeNo, who: &Identity) -> bool {
        let row = self.inodes.get(&dir).and_then(Inode::row);
        row.is_some_and(|row| permission::check(row, who, READ | EXECUTE).is_ok())
    }
}
