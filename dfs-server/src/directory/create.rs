//! Making names: directories, files, links.

use dfs_proto::FsError;
use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::EntryReply;
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::{LINK_COUNT_MAX, SYMLINK_BYTES_MAX};
use dfs_proto::name::Name;
use dfs_proto::version::FencingToken;

use super::permission;
use super::rows::{self, DirentRow, EntryChange, InodeRow, dirent_key};
use super::volume::{new_inode, use_inode};
use crate::meta::{Abort, Txn};

/// Something to make, and who makes it.
#[derive(Clone, Debug)]
pub struct NewEntry {
    pub parent: FileId,
    pub name: Name,
    /// Reserved for it.
    pub fid: FileId,
    pub kind: FileKind,
    pub mode: u32,
    pub who: Identity,
    pub now: Timestamp,
    pub details: Details,
    /// Whether the metadata's disk has space for something new.
    pub has_room: bool,
}

/// What only some kinds have.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub rdev: u32,
    pub target: Vec<u8>,
    /// The write lock its maker gets with it.
    pub fence: FencingToken,
    /// Where its chunks will be.
    pub replicas: Vec<NodeId>,
}

/// Makes an inode with one name.
///
/// # Errors
/// `Exists`, `AccessDenied`, `NotDirectory`, `NoSpace`, `Stale`.
pub fn make(txn: &mut Txn, new: &NewEntry) -> Result<EntryReply, Abort> {
    let dir = rows::directory(txn, new.parent)?;
    permission::check(&dir, &new.who, permission::EXECUTE)?;
    let entry_key = dirent_key(new.parent.volume, new.parent.inode, &new.name);
    if txn.get(&entry_key)?.is_some() {
        return Err(FsError::Exists.into());
    }
    permission::check_change_entries(&dir, &new.who)?;
    check_room(new.has_room)?;
    let is_dir = new.kind == FileKind::Directory;
    let (gid, mode) = permission::inherit(&dir, &new.who, new.kind, new.mode);
    let row = InodeRow {
        mode,
        gid,
        nlink: if is_dir { 2 } else { 1 },
        size: new.details.target.len() as u64,
        rdev: new.details.rdev,
        target: new.details.target.clone(),
        fence: new.details.fence,
        replicas: new.details.replicas.clone(),
        parents: vec![(new.parent.inode, new.name.clone())],
        ..new_inode(txn, new.fid, new.kind, &new.who, new.now)
    };
    txn.put(&entry_key, DirentRow { inode: new.fid.inode, kind: new.kind });
    use_inode(txn, new.fid)?;
    if is_dir {
        txn.begin_range(rows::dirents_prefix(new.fid.volume, new.fid.inode));
    }
    let attr = row.attr(new.fid.volume, new.fid.inode);
    rows::put_inode(txn, new.fid, row);
    let change = EntryChange { entries: 1, subdirectories: i32::from(is_dir), now: new.now };
    let (before, after) = rows::change_entries(txn, new.parent, change)?;
    Ok(EntryReply { attr, before, after, sequence: txn.sequence() })
}

/// Checks a symbolic link's target.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_target(target: &[u8]) -> Result<(), FsError> {
    match target.len() {
        1..=SYMLINK_BYTES_MAX if !target.contains(&0) => Ok(()),
        0 => Err(FsError::NotFound),
        _ => Err(FsError::invalid("target of a symbolic link")),
    }
}

/// Another name for an inode.
#[derive(Clone, Debug)]
pub struct NewLink {
    pub fid: FileId,
    pub parent: FileId,
    pub name: Name,
    pub who: Identity,
    pub now: Timestamp,
    /// As in [`NewEntry`].
    pub has_room: bool,
}

/// # Errors
/// `NoSpace`, unless the metadata's disk has space for something new.
pub fn check_room(has_room: bool) -> Result<(), FsError> {
    let what = || "the metadata's disk is nearly full: remove something, or enlarge it".to_owned();
    if has_room { Ok(()) } else { Err(FsError::NoSpace { what: what() }) }
}

/// Gives an inode another name.
///
/// # Errors
/// `Stale`, `Exists`, `AccessDenied`, `NotPermitted` for a directory, `TooManyLinks`.
pub fn link(txn: &mut Txn, new: &NewLink) -> Result<EntryReply, Abort> {
    let dir = rows::directory(txn, new.parent)?;
    permission::check(&dir, &new.who, permission::EXECUTE)?;
    let row = rows::inode(txn, new.fid)?;
    let entry_key = dirent_key(new.parent.volume, new.parent.inode, &new.name);
    if txn.get(&entry_key)?.is_some() {
        return Err(FsError::Exists.into());
    }
    permission::check_change_entries(&dir, &new.who)?;
    check_room(new.has_room)?;
    if row.is_dir() {
        return Err(FsError::NotPermitted.into());
    }
    if row.nlink >= LINK_COUNT_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    let mut changed = InodeRow::clone(&row);
    changed.nlink += 1;
    changed.ctime = new.now;
    changed.parents.push((new.parent.inode, new.name.clone()));
    rows::touch_parents(txn, new.fid.volume, &changed)?;
    let attr = changed.attr(new.fid.volume, new.fid.inode);
    txn.put(&entry_key, DirentRow { inode: new.fid.inode, kind: row.kind });
    rows::put_inode(txn, new.fid, changed);
    let change = EntryChange { entries: 1, subdirectories: 0, now: new.now };
    let (_, after) = rows::change_entries(txn, new.parent, change)?;
    Ok(EntryReply { attr, before: dir.dir_version, after, sequence: txn.sequence() })
}
