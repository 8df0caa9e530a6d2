//! Attributes of inodes that are gone from the server and in use here: open files, directories that
//! somebody works in, and what the kernel opens by itself.
//!
//! They are this client's own affair by then, like their content. The kernel does not say whether a
//! question came through a handle; by name the answer is as good, as of before the removal.

use dfs_proto::attr::{Attr, FileKind, SetAttr, SetTime, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::error::FsError;

use super::attr::SET_ID_BITS;
use super::node::{Node, State};
use super::{Caller, Entry, Error, Lifetimes, Vfs};

const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

impl Vfs {
    /// What is known of such an inode.
    pub(super) fn removed(&self, node: &Node) -> Result<Entry, Error> {
        let known = node.state().attr().cloned();
        let attr = known.ok_or(Error::Fs(FsError::NotFound))?;
        let attr = self.shown(node, Attr { nlink: 0, ..attr });
        Ok(Entry { nodeid: node.nodeid, attr, lifetimes: Lifetimes::default() })
    }

    /// Changes its attributes, as the server would.
    ///
    /// # Errors
    /// `NotPermitted`: the kernel leaves judging to the server, and the caller is not the owner.
    pub(super) fn change_removed(
        &self,
        caller: &Caller,
        node: &Node,
        set: &SetAttr,
    ) -> Result<Entry, Error> {
        let mut state = node.state();
        let mut attr = settled(&mut state).ok_or(Error::Fs(FsError::NotFound))?;
        let who = &caller.identity;
        let is_owner = who.is_root() || who.uid == attr.uid;
        if !is_owner && !self.inner.options.kernel_judges {
            return Err(Error::Fs(FsError::NotPermitted));
        }
        apply(&mut attr, set, who, self.now());
        state.change_removed(Attr { nlink: 0, ..attr });
        drop(state);
        self.removed(node)
    }
}

/// Keeps what waited for a commit that found the inode gone.
pub(super) fn settle(state: &mut State) {
    if let Some(attr) = settled(state) {
        state.change_removed(Attr { nlink: 0, ..attr });
    }
}

/// The attributes with all that waited for a commit: there will be none that brings it to others.
fn settled(state: &mut State) -> Option<Attr> {
    let mut attr = state.attr()?.clone();
    if let Some(open) = state.open_mut() {
        let pending = std::mem::take(&mut open.pending);
        if pending.clear_set_id {
            attr.mode &= !SET_ID_BITS;
        }
        attr.atime = pending.atime.unwrap_or(attr.atime);
        pending.first.apply(&mut attr);
    }
    Some(attr)
}

fn apply(attr: &mut Attr, set: &SetAttr, who: &Identity, now: Timestamp) {
    let may_set_group_id = |gid| who.is_root() || who.is_in_group(gid);
    let is_given = set.uid.is_some() || set.gid.is_some();
    if is_given && attr.kind != FileKind::Directory {
        let is_for_group = attr.mode & GROUP_EXECUTE != 0 || !may_set_group_id(attr.gid);
        attr.mode &= !if is_for_group { SET_ID_BITS } else { SET_ID_BITS & !SET_GROUP_ID };
    }
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    if let Some(mode) = set.mode {
        attr.mode = if may_set_group_id(attr.gid) { mode } else { mode & !SET_GROUP_ID };
    }
    attr.atime = set.atime.map_or(attr.atime, SetTime::timestamp);
    attr.mtime = set.mtime.map_or(attr.mtime, SetTime::timestamp);
    attr.ctime = now;
}
