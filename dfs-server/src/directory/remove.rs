//! Taking names away.

use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::EntryReply;
use dfs_proto::id::{FileId, InodeNo};
use dfs_proto::name::Name;

use super::permission;
use super::rows::{self, EntryChange, InodeRow, dirent_key, inode_key, manifest_key, xattr_key};
use crate::meta::{Abort, Txn};

/// A name to take away.
#[derive(Clone, Debug)]
pub struct OldEntry {
    pub parent: FileId,
    pub name: Name,
    pub who: Identity,
    pub now: Timestamp,
}

/// What kind of thing the name must name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    EmptyDirectory,
    NoDirectory,
}

/// Removes a name; the inode goes with its last one.
///
/// # Errors
/// `NotFound`, `AccessDenied`, `NotPermitted` (sticky), `IsDirectory`, `NotDirectory`, `NotEmpty`.
pub fn remove(txn: &mut Txn, old: &OldEntry, expect: Expect) -> Result<EntryReply, Abort> {
    let dir = rows::directory(txn, old.parent)?;
    permission::check(&dir, &old.who, permission::EXECUTE)?;
    let (fid, row) = rows::child(txn, old.parent, &old.name)?;
    permission::check_change_entries(&dir, &old.who)?;
    permission::check_sticky(&dir, &row, &old.who)?;
    match (row.is_dir(), expect) {
        (true, Expect::NoDirectory) => return Err(FsError::IsDirectory.into()),
        (false, Expect::EmptyDirectory) => return Err(FsError::NotDirectory.into()),
        (true, Expect::EmptyDirectory) if row.size > 0 => return Err(FsError::NotEmpty.into()),
        _ => {}
    }
    let attr = drop_name(txn, fid, &row, (old.parent.inode, &old.name), old.now)?;
    txn.delete(&dirent_key(old.parent.volume, old.parent.inode, &old.name));
    let subdirectories = -i32::from(row.is_dir());
    let change = EntryChange { entries: -1, subdirectories, now: old.now };
    let (_, after) = rows::change_entries(txn, old.parent, change)?;
    Ok(EntryReply { attr, before: dir.dir_version, after, sequence: txn.sequence() })
}

/// Takes one of an inode's names out of its row, and the row away with the last. The entry itself
/// is the caller's business. Returns the attributes afterwards.
pub fn drop_name(
    txn: &mut Txn,
    fid: FileId,
    row: &Arc<InodeRow>,
    name: (InodeNo, &Name),
    now: Timestamp,
) -> Result<Attr, Abort> {
    let mut changed = InodeRow::clone(row);
    changed.ctime = now;
    changed.nlink = if row.is_dir() { 0 } else { row.nlink.saturating_sub(1) };
    changed.parents.retain(|(parent, known)| (*parent, known) != name);
    rows::touch_parents(txn, fid.volume, &changed)?;
    let attr = changed.attr(fid.volume, fid.inode);
    if changed.nlink > 0 {
        rows::put_inode(txn, fid, changed);
        return Ok(attr);
    }
    txn.delete(&inode_key(fid.volume, fid.inode));
    txn.delete(&manifest_key(fid.volume, fid.inode));
    if row.xattr_bytes > 0 {
        txn.delete(&xattr_key(fid.volume, fid.inode));
    }
    let used = row.stored_bytes.saturating_add(u64::from(row.xattr_bytes));
    rows::count(txn, fid.volume, -1, -i64::try_from(used).unwrap_or(i64::MAX))?;
    Ok(attr)
}
