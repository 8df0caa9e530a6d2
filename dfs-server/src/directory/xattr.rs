//! Extended attributes: what programs keep beside a file under names of their own.
//!
//! Who may do what is as xattr(7) says of a local file system, whatever the client's kernel checked
//! before. A change is one of the inode's attributes: it moves ctime, and the version of every
//! directory that names the inode.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{AttrReply, GetXattr, ListXattr, RemoveXattr, SetXattr, XattrRule};
use dfs_proto::id::FileId;
use dfs_proto::limits::{XATTR_INODE_BYTES_MAX, XATTR_LIST_BYTES_MAX};
use dfs_proto::xattr::{XattrName, XattrNamespace, XattrValue};

use super::Directory;
use super::create::check_room;
use super::permission::{self, READ, STICKY, WRITE};
use super::rows::{self, InodeRow, XattrRow, xattr_key};
use crate::meta::{Abort, ReadTxn, Txn};
use crate::request::Context;

impl Directory {
    pub async fn get_xattr(
        &self,
        context: Context,
        request: GetXattr,
    ) -> Result<XattrValue, FsError> {
        let GetXattr { fid, name } = request;
        let who = context.identity;
        let store = &self.volume_of(fid)?.store;
        store.read(move |txn| get(txn, fid, &name, &who)).await
    }

    pub async fn list_xattr(
        &self,
        context: Context,
        request: ListXattr,
    ) -> Result<Vec<XattrName>, FsError> {
        let (fid, who) = (request.fid, context.identity);
        let store = &self.volume_of(fid)?.store;
        store.read(move |txn| list(txn, fid, &who)).await
    }

    pub async fn set_xattr(
        &self,
        context: Context,
        request: SetXattr,
    ) -> Result<AttrReply, FsError> {
        let volume = request.fid.volume;
        let has_room = self.volume(volume)?.store.has_room();
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let change = Change { who, now, has_room };
        self.mutate(&context, volume, move |txn| set(txn, &request, &change)).await
    }

    pub async fn remove_xattr(
        &self,
        context: Context,
        request: RemoveXattr,
    ) -> Result<AttrReply, FsError> {
        let (who, now) = (context.identity.clone(), self.clock.wall());
        let volume = request.fid.volume;
        self.mutate(&context, volume, move |txn| remove(txn, &request, &who, now)).await
    }
}

/// Who sets an attribute, and when.
struct Change {
    who: Identity,
    now: Timestamp,
    /// Whether the metadata's disk has space for something new.
    has_room: bool,
}

fn get(
    txn: &mut ReadTxn,
    fid: FileId,
    name: &XattrName,
    who: &Identity,
) -> Result<XattrValue, Abort> {
    let row = rows::inode(txn, fid)?;
    check_read(&row, name, who)?;
    let kept = kept(txn, fid, &row)?;
    Ok(kept.attributes.get(name).cloned().ok_or(FsError::NoAttribute)?)
}

/// The names, but those that `who` may not know of. No permission is needed, as for `stat`.
fn list(txn: &mut ReadTxn, fid: FileId, who: &Identity) -> Result<Vec<XattrName>, Abort> {
    let row = rows::inode(txn, fid)?;
    let kept = kept(txn, fid, &row)?;
    let is_shown = |name: &&XattrName| who.is_root() || name.namespace() != XattrNamespace::Trusted;
    Ok(kept.attributes.keys().filter(is_shown).cloned().collect())
}

fn set(txn: &mut Txn, request: &SetXattr, change: &Change) -> Result<AttrReply, Abort> {
    let SetXattr { fid, name, value, rule } = request;
    let row = rows::inode(txn, *fid)?;
    check_write(&row, name, &change.who)?;
    let mut new = XattrRow::clone(&*kept(txn, *fid, &row)?);
    let old = new.attributes.insert(name.clone(), value.clone());
    match (rule, old) {
        (XattrRule::Create, Some(_)) => return Err(FsError::Exists.into()),
        (XattrRule::Replace, None) => return Err(FsError::NoAttribute.into()),
        _ => {}
    }
    check_bounds(&new.attributes)?;
    if bytes_of(&new.attributes) > row.xattr_bytes as usize {
        check_room(change.has_room)?;
    }
    replace(txn, *fid, &row, new, change.now)
}

fn remove(
    txn: &mut Txn,
    request: &RemoveXattr,
    who: &Identity,
    now: Timestamp,
) -> Result<AttrReply, Abort> {
    let RemoveXattr { fid, name } = request;
    let row = rows::inode(txn, *fid)?;
    check_write(&row, name, who)?;
    let mut new = XattrRow::clone(&*kept(txn, *fid, &row)?);
    new.attributes.remove(name).ok_or(FsError::NoAttribute)?;
    replace(txn, *fid, &row, new, now)
}

/// What an inode has.
fn kept(txn: &mut ReadTxn, fid: FileId, row: &InodeRow) -> Result<Arc<XattrRow>, Abort> {
    if row.xattr_bytes == 0 {
        return Ok(Arc::default());
    }
    let kept = txn.get(&xattr_key(fid.volume, fid.inode))?;
    Ok(kept.ok_or_else(|| rows::broken(fid, "extended attributes without their row"))?)
}

/// Makes `new` what an inode has.
fn replace(
    txn: &mut Txn,
    fid: FileId,
    row: &InodeRow,
    new: XattrRow,
    now: Timestamp,
) -> Result<AttrReply, Abort> {
    let mut changed = row.clone();
    let bytes = bytes_of(&new.attributes);
    changed.xattr_bytes = u32::try_from(bytes).expect("checked against XATTR_INODE_BYTES_MAX");
    changed.ctime = now;
    rows::touch_parents(txn, fid.volume, &changed)?;
    let grown = i64::from(changed.xattr_bytes) - i64::from(row.xattr_bytes);
    rows::count(txn, fid.volume, 0, grown)?;
    let attr = changed.attr(fid.volume, fid.inode);
    rows::put_inode(txn, fid, changed);
    let key = xattr_key(fid.volume, fid.inode);
    if new.attributes.is_empty() {
        txn.delete(&key);
    } else {
        txn.put(&key, new);
    }
    Ok(AttrReply { attr, sequence: txn.sequence() })
}

/// Names and values. Not 0 if there is any: names are not empty.
pub fn bytes_of(attributes: &BTreeMap<XattrName, XattrValue>) -> usize {
    attributes.iter().map(|(name, value)| name.as_bytes().len() + value.as_bytes().len()).sum()
}

fn check_bounds(attributes: &BTreeMap<XattrName, XattrValue>) -> Result<(), FsError> {
    let (bytes, limit) = (bytes_of(attributes), XATTR_INODE_BYTES_MAX);
    if bytes > limit {
        let what = format!("extended attributes of a file may have {limit} bytes, not {bytes}");
        return Err(FsError::NoSpace { what });
    }
    let listed: usize = attributes.keys().map(|name| name.as_bytes().len() + 1).sum();
    let limit = XATTR_LIST_BYTES_MAX;
    if listed > limit {
        let what = format!("names of extended attributes may have {limit} bytes, not {listed}");
        return Err(FsError::NoSpace { what });
    }
    Ok(())
}

/// # Errors
/// `NoAttribute` where `who` may not know whether there is one, `AccessDenied`.
fn check_read(row: &InodeRow, name: &XattrName, who: &Identity) -> Result<(), FsError> {
    match name.namespace() {
        XattrNamespace::Trusted if who.is_root() => Ok(()),
        XattrNamespace::User if has_user_attributes(row) => permission::check(row, who, READ),
        _ => Err(FsError::NoAttribute),
    }
}

/// # Errors
/// `Unsupported` for reserved names, `NotPermitted`, `AccessDenied`.
fn check_write(row: &InodeRow, name: &XattrName, who: &Identity) -> Result<(), FsError> {
    if name.is_reserved() {
        let why = "names that begin with `user.dfs.` are for what DFS shows of a file";
        return Err(FsError::Unsupported { what: format!("set or remove `{name}`: {why}") });
    }
    match name.namespace() {
        XattrNamespace::Trusted if who.is_root() => Ok(()),
        XattrNamespace::User if has_user_attributes(row) => {
            // Everybody may write there: not even what others keep beside it would be safe.
            if row.is_dir() && row.mode & STICKY != 0 {
                permission::check_owner(row, who)?;
            }
            permission::check(row, who, WRITE)
        }
        _ => Err(FsError::NotPermitted),
    }
}

/// On links and devices permission bits say something else, or nothing, so that anybody could fill
/// them.
fn has_user_attributes(row: &InodeRow) -> bool {
    matches!(row.kind, FileKind::File | FileKind::Directory)
}
