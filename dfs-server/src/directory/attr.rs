//! Changing mode, owner and times.

use dfs_proto::FsError;
use dfs_proto::attr::{SetAttr, SetTime, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::AttrReply;
use dfs_proto::id::FileId;

use super::permission::{self, MODE_BITS, SET_GROUP_ID, WRITE};
use super::rows::{self, InodeRow};
use crate::meta::{Abort, Txn};

/// Applies `set` to an inode, all of it or nothing.
///
/// # Errors
/// `NotPermitted`, `AccessDenied`, `Stale`.
pub fn change(
    txn: &mut Txn,
    fid: FileId,
    set: &SetAttr,
    who: &Identity,
    now: Timestamp,
) -> Result<AttrReply, Abort> {
    let row = rows::inode(txn, fid)?;
    if set.is_empty() && permission::check_owner(&row, who).is_err() {
        // Linux lets anybody ask for nothing; strangers do not get a new ctime for it.
        return Ok(AttrReply { attr: row.attr(fid.volume, fid.inode), sequence: txn.sequence() });
    }
    let mut changed = InodeRow::clone(&row);
    change_owner(&row, &mut changed, set, who)?;
    change_mode(&row, &mut changed, set, who)?;
    check_times(&row, set, who)?;
    changed.atime = set.atime.map_or(changed.atime, SetTime::timestamp);
    changed.mtime = set.mtime.map_or(changed.mtime, SetTime::timestamp);
    changed.ctime = now;
    rows::touch_parents(txn, fid.volume, &changed)?;
    let attr = changed.attr(fid.volume, fid.inode);
    rows::put_inode(txn, fid, changed);
    Ok(AttrReply { attr, sequence: txn.sequence() })
}

/// Owner and mode of a new file, as its maker set them before its first commit. What may not be set
/// stays as it is.
pub fn change_first(changed: &mut InodeRow, set: &SetAttr, who: &Identity) {
    let before = changed.clone();
    let mut wanted = changed.clone();
    let is_done = change_owner(&before, &mut wanted, set, who)
        .and_then(|()| change_mode(&before, &mut wanted, set, who));
    if is_done.is_ok() {
        *changed = wanted;
    }
}

/// Only root gives files away; owners may choose among their own groups.
fn change_owner(
    row: &InodeRow,
    changed: &mut InodeRow,
    set: &SetAttr,
    who: &Identity,
) -> Result<(), FsError> {
    if set.uid.is_none() && set.gid.is_none() {
        return Ok(());
    }
    let gives_away = set.uid.is_some_and(|uid| uid != row.uid);
    let is_foreign_group = set.gid.is_some_and(|gid| gid != row.gid && !who.is_in_group(gid));
    if !who.is_root() && (gives_away || is_foreign_group || who.uid != row.uid) {
        return Err(FsError::NotPermitted);
    }
    changed.uid = set.uid.unwrap_or(row.uid);
    changed.gid = set.gid.unwrap_or(row.gid);
    changed.mode = permission::without_set_id(row);
    if !row.is_dir() && !permission::may_set_group_id(who, row.gid) {
        changed.mode &= !SET_GROUP_ID;
    }
    Ok(())
}

fn change_mode(
    row: &InodeRow,
    changed: &mut InodeRow,
    set: &SetAttr,
    who: &Identity,
) -> Result<(), FsError> {
    let Some(mode) = set.mode else {
        return Ok(());
    };
    permission::check_owner(row, who)?;
    let may_set_group_id = permission::may_set_group_id(who, changed.gid);
    let forbidden = if may_set_group_id { 0 } else { SET_GROUP_ID };
    changed.mode = mode & MODE_BITS & !forbidden;
    Ok(())
}

/// A chosen time, or one time alone, is the owner's to set; both to the present, as a write sets
/// them, whoever may write.
fn check_times(row: &InodeRow, set: &SetAttr, who: &Identity) -> Result<(), FsError> {
    let times: Vec<SetTime> = [set.atime, set.mtime].into_iter().flatten().collect();
    if times.iter().any(|time| !time.timestamp().is_valid()) {
        return Err(FsError::invalid("nanoseconds of a time"));
    }
    match times[..] {
        [] => Ok(()),
        [SetTime::Now(_), SetTime::Now(_)] => {
            permission::check_owner(row, who).or_else(|_| permission::check(row, who, WRITE))
        }
        _ => permission::check_owner(row, who),
    }
}
