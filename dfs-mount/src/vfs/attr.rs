//! Attributes: what the server says, except where this client knows better.
//!
//! It knows better for files that are open here. The size and times of a file with a working copy
//! are those of its cache file, which grows with every write; those of a handle's older version
//! stay as they were. `fstat` of an open file that is gone from the server is answered from memory.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dfs_proto::admin::Role;
use dfs_proto::attr::{Attr, FileKind, SetAttr, SetTime, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{AttrReply, ChangeAttr, Durability, GetAttr};
use dfs_proto::error::FsError;

use super::node::{First, Node};
use super::open::OpenHow;
use super::{Caller, Entry, Error, Lifetimes, Vfs};
use crate::writeback::Working;

/// What a caller changes of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub set: SetAttr,
    pub size: Option<u64>,
}

pub(super) const SET_ID_BITS: u32 = 0o6000;

/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

impl Vfs {
    /// Attributes of an inode; `handle` if the question came through one.
    ///
    /// # Errors
    /// `Stale` if the inode is gone and not in use here.
    pub async fn getattr(
        &self,
        caller: &Caller,
        nodeid: u64,
        handle: Option<u64>,
    ) -> Result<Entry, Error> {
        let node = match handle {
            Some(handle) => self.file_handle(handle)?.node().clone(),
            None => self.node(nodeid)?,
        };
        if let Some((attr, sequence)) = self.known_attr(&node) {
            return Ok(self.told(&node, attr, sequence));
        }
        if let Some(attr) = self.attr_while_writing(&node) {
            return Ok(Entry { nodeid: node.nodeid, attr, lifetimes: Lifetimes::default() });
        }
        match self.ask_getattr(caller, node.fid).await {
            Ok(AttrReply { attr, sequence }) => Ok(self.told(&node, attr, sequence)),
            Err(Error::Fs(FsError::Stale)) if node.may_be_in_use() => self.removed(&node),
            Err(error) => Err(error),
        }
    }

    /// Attributes of a file that is written here. Nobody else changes its content, and every walk
    /// to it brings its other attributes, so a question through a handle needs no request.
    fn attr_while_writing(&self, node: &Node) -> Option<Attr> {
        let live = self.live_working(node).filter(Working::has_lock)?;
        if !node.is_open() {
            return None;
        }
        let attr = node.state().attr()?.clone();
        Some(overlaid(node, attr, &live))
    }

    /// `attr` as this client's programs see it.
    pub(super) fn shown(&self, node: &Node, mut attr: Attr) -> Attr {
        if attr.kind != FileKind::File {
            return attr;
        }
        // What others may have changed is shown as it is here, until it is brought up to date.
        let is_ours = |live: &Working| live.has_lock() || live.is_dirty();
        if let Some(live) = self.live_working(node).filter(is_ours) {
            return overlaid(node, attr, &live);
        }
        let state = node.state();
        match state.open() {
            Some(open) if open.version != attr.data_version => {
                attr.size = open.attr.size;
                attr.stored_bytes = open.attr.stored_bytes;
                attr.mtime = open.attr.mtime;
                attr
            }
            _ => attr,
        }
    }

    /// This client's working copy of the file, if that is what the node shows.
    pub(super) fn live_working(&self, node: &Node) -> Option<Working> {
        let working = self.working(node)?;
        let state = node.state();
        let is_shown = state.open().is_none_or(|open| Arc::ptr_eq(&open.file, working.file()));
        is_shown.then(|| working.clone())
    }

    /// The file's working copy, unless it has become a conflict that new opens do not see.
    pub(super) fn working(&self, node: &Node) -> Option<Working> {
        self.writeback().working(node.fid).filter(|working| !working.is_detached())
    }

    /// Changes attributes. `handle` if the change came through one.
    ///
    /// # Errors
    /// As `directory.setattr`; for a size also those of opening the file for writing.
    pub async fn setattr(
        &self,
        caller: &Caller,
        nodeid: u64,
        handle: Option<u64>,
        change: Change,
    ) -> Result<Entry, Error> {
        if handle.is_none() {
            return self.change(caller, nodeid, None, change).await;
        }
        self.change(caller, nodeid, handle, change).await.map_err(Error::through_handle)
    }

    async fn change(
        &self,
        caller: &Caller,
        nodeid: u64,
        handle: Option<u64>,
        change: Change,
    ) -> Result<Entry, Error> {
        let node = self.node(nodeid)?;
        let Change { mut set, size } = change;
        if let Some(size) = size {
            self.resize(caller, &node, handle, size).await?;
        }
        if set.is_empty() && size.is_none() {
            return self.clear_set_id(caller, &node).await;
        }
        self.keep_times_for_commit(caller, &node, &mut set)?;
        self.keep_first_for_commit(caller, &node, &mut set)?;
        if set.is_empty() {
            return self.getattr(caller, nodeid, None).await;
        }
        // By which the server judges the rest.
        self.send_first(&node).await;
        let is_directory = node.state().attr().is_some_and(|it| it.kind == FileKind::Directory);
        let _changing = is_directory.then(|| self.changing(node.clone()));
        let request = ChangeAttr { fid: node.fid, set };
        match self.ask(caller, &request).await {
            Ok(AttrReply { attr, sequence }) => Ok(self.told(&node, attr, sequence)),
            Err(Error::Fs(FsError::Stale)) if node.may_be_in_use() => {
                self.change_removed(caller, &node, &request.set)
            }
            Err(error) => Err(error),
        }
    }

    /// Times set on a file that is open here for writing go into its cache file and travel with
    /// the next commit. Only for those who may set them in any case; the server judges the others.
    fn keep_times_for_commit(
        &self,
        caller: &Caller,
        node: &Node,
        set: &mut SetAttr,
    ) -> Result<(), Error> {
        if set.atime.is_none() && set.mtime.is_none() {
            return Ok(());
        }
        let is_written = |working: &Working| working.writer_count() > 0 && working.has_lock();
        let Some(working) = self.working(node).filter(is_written) else {
            return Ok(());
        };
        let mut state = node.state();
        let first = state.open().and_then(|open| open.pending.first.uid);
        let owner = first.or(state.attr().map(|attr| attr.uid));
        let is_entitled = caller.identity.is_root() || owner == Some(caller.identity.uid);
        let file = working.file();
        // The cache file's own time means nothing before something was written.
        let unchanged = state.attr().filter(|_| !working.is_dirty()).map(|attr| attr.mtime);
        let mtime = set.mtime.or(unchanged.map(SetTime::At));
        match state.open_mut() {
            Some(open) if is_entitled && Arc::ptr_eq(&open.file, file) => {
                set_file_times(&working, set.atime, mtime)?;
                open.pending.atime = set.atime.map(SetTime::timestamp).or(open.pending.atime);
            }
            _ => return Ok(()),
        }
        drop(state);
        (set.atime, set.mtime) = (None, None);
        Ok(())
    }

    /// Owner and mode set on a file that was made here and is not committed yet travel with its
    /// first commit. Only where it is certain that the server would do the same: its maker sets
    /// them, whom the server took for whom they are, and no set-id bits are touched on the way.
    fn keep_first_for_commit(
        &self,
        caller: &Caller,
        node: &Node,
        set: &mut SetAttr,
    ) -> Result<(), Error> {
        let SetAttr { mode, uid, gid, .. } = *set;
        if mode.is_none() && uid.is_none() && gid.is_none() {
            return Ok(());
        }
        let Some(working) = self.working(node).filter(Working::is_new) else { return Ok(()) };
        let mut state = node.state();
        let Some(attr) = state.attr().cloned() else { return Ok(()) };
        let is_makers = working.writer_count() > 0
            && working.caller() == Some(&caller.identity)
            && attr.uid == caller.identity.uid;
        let is_dirty = working.is_dirty();
        let Some(open) = state.open_mut() else { return Ok(()) };
        let file = working.file();
        if !is_makers || !Arc::ptr_eq(&open.file, file) {
            return Ok(());
        }
        let Some(first) = with(open.pending.first, &attr, set, &caller.identity) else {
            return Ok(());
        };
        // The cache file's own time means nothing before something was written. Setting any time
        // moves the file's time of change, which is the one that is shown.
        let mtime = (!is_dirty).then_some(SetTime::At(attr.mtime));
        set_file_times(&working, Some(SetTime::At(attr.atime)), mtime)?;
        open.pending.first = first;
        drop(state);
        working.mark_dirty();
        (set.mode, set.uid, set.gid) = (None, None, None);
        Ok(())
    }

    /// Tells the server what was to travel with the first commit: before somebody else asks for
    /// what depends on it. If that fails, it goes on waiting.
    pub(super) async fn send_first(&self, node: &Node) {
        let pending = node.state().open().map(|open| open.pending.first).unwrap_or_default();
        if pending.is_empty() {
            return;
        }
        let Some(working) = self.working(node) else { return };
        let First { mode, uid, gid } = pending;
        let set = SetAttr { mode, uid, gid, ..SetAttr::default() };
        let request = ChangeAttr { fid: node.fid, set };
        match self.session().call(Role::Directory, working.caller(), &request).await {
            Ok(AttrReply { attr, sequence }) => {
                let mut state = node.state();
                state.learn(attr, sequence);
                if let Some(open) = state.open_mut().filter(|open| open.pending.first == pending) {
                    open.pending.first = First::default();
                }
            }
            Err(error) => tracing::debug!(fid = %node.fid, %error, "owner and mode wait"),
        }
    }

    /// Sets a file's length: through a handle on its working copy, else as an open for writing, a
    /// cut and a close.
    async fn resize(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        handle: Option<u64>,
        size: u64,
    ) -> Result<(), Error> {
        if let Some(handle) = handle {
            let clears_set_id = !caller.identity.is_root();
            return match self.set_len(handle, size, clears_set_id) {
                Err(Error::Shared) => {
                    let change = || self.set_len(handle, size, clears_set_id);
                    self.with_lock(caller, handle, true, change).await
                }
                result => result,
            };
        }
        let how = OpenHow { write: true, truncate: size == 0, read: false, ..OpenHow::default() };
        let opened = self.open(caller, node.nodeid, how).await?;
        let clears_set_id = !caller.identity.is_root();
        let cut = || self.set_len(opened.handle, size, clears_set_id);
        let result = match cut() {
            Err(Error::Shared) => self.with_lock(caller, opened.handle, true, cut).await,
            result => result,
        };
        let result = match result {
            Ok(()) => self.commit(opened.handle, Durability::Process).await,
            Err(error) => Err(error),
        };
        self.release(opened.handle).await?;
        result
    }

    /// The kernel's word for "somebody unprivileged wrote": a change of nothing.
    async fn clear_set_id(&self, caller: &Caller, node: &Arc<Node>) -> Result<Entry, Error> {
        if self.working(node).is_some_and(|working| working.writer_count() > 0) {
            self.note_set_id_cleared(node);
            return self.getattr(caller, node.nodeid, None).await;
        }
        let AttrReply { attr, sequence } = self.ask(caller, &GetAttr { fid: node.fid }).await?;
        if attr.mode & SET_ID_BITS == 0 {
            return Ok(self.told(node, attr, sequence));
        }
        let set = SetAttr { mode: Some(attr.mode & !SET_ID_BITS), ..SetAttr::default() };
        let reply = self.ask(caller, &ChangeAttr { fid: node.fid, set }).await?;
        Ok(self.told(node, reply.attr, reply.sequence))
    }

    /// A write by somebody unprivileged took the set-id bits away, if there are any.
    pub(super) fn note_set_id_cleared(&self, node: &Node) {
        let mut state = node.state();
        let has_bits = state.attr().is_some_and(|attr| attr.mode & SET_ID_BITS != 0);
        if let Some(open) = state.open_mut() {
            open.pending.clear_set_id |= has_bits;
            let first = &mut open.pending.first;
            first.mode = first.mode.map(|mode| mode & !SET_ID_BITS);
        }
    }
}

/// `first` with `set` on top; `None` if the server may see it otherwise.
fn with(first: First, attr: &Attr, set: &SetAttr, who: &Identity) -> Option<First> {
    let mut now = attr.clone();
    first.apply(&mut now);
    let SetAttr { mode, uid, gid, .. } = *set;
    let is_owner_changed = uid.is_some() || gid.is_some();
    let has_set_id = now.mode & SET_ID_BITS != 0;
    let is_allowed = who.is_root()
        || uid.is_none_or(|uid| uid == now.uid) && gid.is_none_or(|gid| who.is_in_group(gid));
    let sets_id = mode.is_some_and(|mode| mode & SET_ID_BITS != 0);
    if is_owner_changed && has_set_id || !is_allowed || sets_id && !who.is_root() {
        return None;
    }
    Some(First { mode: mode.or(first.mode), uid: uid.or(first.uid), gid: gid.or(first.gid) })
}

/// `attr` with what was changed here and not committed.
fn overlaid(node: &Node, mut attr: Attr, live: &Working) -> Attr {
    let pending = node.state().open().map(|open| open.pending).unwrap_or_default();
    if pending.clear_set_id {
        attr.mode &= !SET_ID_BITS;
    }
    if let Some(atime) = pending.atime {
        attr.atime = atime;
    }
    pending.first.apply(&mut attr);
    if live.is_dirty()
        && let Ok(metadata) = live.file().file().metadata()
    {
        attr.size = metadata.len();
        attr.stored_bytes = metadata.blocks() * STAT_BLOCK_BYTES;
        attr.mtime = mtime_of(&metadata);
        // Never back: the server's clock may be ahead of this machine's.
        attr.ctime = attr.ctime.max(ctime_of(&metadata));
    }
    attr
}

pub(super) fn mtime_of(metadata: &Metadata) -> Timestamp {
    Timestamp::new(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0))
}

fn ctime_of(metadata: &Metadata) -> Timestamp {
    Timestamp::new(metadata.ctime(), u32::try_from(metadata.ctime_nsec()).unwrap_or(0))
}

/// Gives a working copy times of its inode, so that the file system under it keeps count of them.
fn set_file_times(
    working: &Working,
    atime: Option<SetTime>,
    mtime: Option<SetTime>,
) -> Result<(), Error> {
    let mut times = std::fs::FileTimes::new();
    if let Some(atime) = atime.and_then(|time| system_time(time.timestamp())) {
        times = times.set_accessed(atime);
    }
    if let Some(mtime) = mtime.and_then(|time| system_time(time.timestamp())) {
        times = times.set_modified(mtime);
    }
    working.set_times(times).map_err(Error::local("set the times of a cache file"))
}

fn system_time(time: Timestamp) -> Option<SystemTime> {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let start = if time.secs < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    start?.checked_add(Duration::from_nanos(u64::from(time.nanos)))
}
