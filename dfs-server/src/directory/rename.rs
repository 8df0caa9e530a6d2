//! Moving names, atomically.

use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{Rename, RenameReply, RenameRule};
use dfs_proto::id::{FileId, InodeNo};
use dfs_proto::name::Name;

use super::permission::{self, WRITE};
use super::remove::drop_name;
use super::rows::{self, DirentRow, EntryChange, InodeRow, dirent_key, inode_key};
use crate::meta::{Abort, ReadTxn, Txn};

/// Deepest directory tree that is walked to rule out a loop. Why: corrupt rows must not turn into
/// an endless walk; PATH_MAX allows 2048 levels, working directories more.
const DEPTH_MAX: usize = 1 << 16;

type Found = (FileId, Arc<InodeRow>);

/// One side of a rename.
struct Side {
    dir: FileId,
    dir_row: Arc<InodeRow>,
    name: Name,
    found: Option<Found>,
}

/// A rename that is allowed.
struct Move {
    from: Side,
    to: Side,
    is_exchange: bool,
    now: Timestamp,
}

/// What a rename changes in the two directories.
#[derive(Clone, Copy, Default)]
struct Deltas {
    from: (i64, i32),
    to: (i64, i32),
}

/// Runs a rename.
///
/// Checks come in the order of Linux: what exists, the shape of the tree, then who may do it.
///
/// # Errors
/// As [`Rename`] says.
pub fn rename(
    txn: &mut Txn,
    request: &Rename,
    who: &Identity,
    now: Timestamp,
) -> Result<RenameReply, Abort> {
    if request.from_parent.volume != request.to_parent.volume {
        return Err(FsError::CrossVolume.into());
    }
    let from = side(txn, request.from_parent, &request.from_name, who)?;
    let to = side(txn, request.to_parent, &request.to_name, who)?;
    let (moved, moved_row) = from.found.clone().ok_or(FsError::NotFound)?;
    let is_exchange = request.rule == RenameRule::Exchange;
    match (&to.found, request.rule) {
        (Some(_), RenameRule::NoReplace) => return Err(FsError::Exists.into()),
        (None, RenameRule::Exchange) => return Err(FsError::NotFound.into()),
        _ => {}
    }
    check_tree(txn, &from, &to, is_exchange)?;
    if to.found.as_ref().is_some_and(|(target, _)| *target == moved) {
        let attr = moved_row.attr(moved.volume, moved.inode);
        return Ok(RenameReply { attr, replaced: None, sequence: txn.sequence() });
    }
    check_rights(&from, &to, is_exchange, who)?;
    let deltas = match &to.found {
        Some((_, other)) if is_exchange => exchange_deltas(&moved_row, other),
        Some((_, target)) if target.is_dir() && target.size > 0 => {
            return Err(FsError::NotEmpty.into());
        }
        target => move_deltas(&moved_row, target.is_some()),
    };
    apply(txn, &Move { from, to, is_exchange, now }, deltas)
}

fn side(txn: &mut ReadTxn, dir: FileId, name: &Name, who: &Identity) -> Result<Side, Abort> {
    let dir_row = rows::directory(txn, dir)?;
    permission::check(&dir_row, who, permission::EXECUTE)?;
    let found = match rows::child(txn, dir, name) {
        Ok(found) => Some(found),
        Err(Abort::Fail(FsError::NotFound)) => None,
        Err(abort) => return Err(abort),
    };
    Ok(Side { dir, dir_row, name: name.clone(), found })
}

/// No directory may come to lie below itself; what lies above the source is not empty.
fn check_tree(txn: &mut ReadTxn, from: &Side, to: &Side, is_exchange: bool) -> Result<(), Abort> {
    if from.dir == to.dir {
        return Ok(());
    }
    if is_above(txn, &from.found, to.dir)? {
        return Err(FsError::Loop.into());
    }
    if is_above(txn, &to.found, from.dir)? {
        return Err(if is_exchange { FsError::Loop } else { FsError::NotEmpty }.into());
    }
    Ok(())
}

/// Whether what was found is `dir` or one of the directories above it.
fn is_above(txn: &mut ReadTxn, found: &Option<Found>, dir: FileId) -> Result<bool, Abort> {
    let Some((fid, _)) = found.as_ref().filter(|(_, row)| row.is_dir()) else {
        return Ok(false);
    };
    let mut inode = dir.inode;
    for _ in 0..DEPTH_MAX {
        if inode == fid.inode {
            return Ok(true);
        }
        let row = txn.get(&inode_key(dir.volume, inode))?;
        let row = row.ok_or_else(|| rows::broken(dir, "directory without parent"))?;
        match row.parents.first() {
            Some((parent, _)) => inode = *parent,
            None => return Ok(false),
        }
    }
    Err(rows::broken(dir, "directory without root").into())
}

/// Whether `who` may take both names, and whether the kinds of what they name fit.
fn check_rights(from: &Side, to: &Side, is_exchange: bool, who: &Identity) -> Result<(), FsError> {
    let (_, moved) = from.found.as_ref().ok_or(FsError::NotFound)?;
    check_taking(from, who)?;
    let Some((_, target)) = &to.found else {
        permission::check_change_entries(&to.dir_row, who)?;
        return check_new_parent(from, to, moved, who);
    };
    check_taking(to, who)?;
    if is_exchange {
        check_new_parent(from, to, moved, who)?;
        return check_new_parent(to, from, target, who);
    }
    match (moved.is_dir(), target.is_dir()) {
        (true, false) => Err(FsError::NotDirectory),
        (false, true) => Err(FsError::IsDirectory),
        _ => check_new_parent(from, to, moved, who),
    }
}

fn check_taking(side: &Side, who: &Identity) -> Result<(), FsError> {
    permission::check_change_entries(&side.dir_row, who)?;
    match &side.found {
        Some((_, row)) => permission::check_sticky(&side.dir_row, row, who),
        None => Ok(()),
    }
}

/// A directory that gets another `..` is written to.
fn check_new_parent(from: &Side, to: &Side, row: &InodeRow, who: &Identity) -> Result<(), FsError> {
    if row.is_dir() && from.dir != to.dir {
        return permission::check(row, who, WRITE);
    }
    Ok(())
}

fn move_deltas(moved: &InodeRow, has_target: bool) -> Deltas {
    let dirs = i32::from(moved.is_dir());
    let gone = i32::from(has_target);
    Deltas { from: (-1, -dirs), to: (1 - i64::from(gone), dirs * (1 - gone)) }
}

fn exchange_deltas(moved: &InodeRow, other: &InodeRow) -> Deltas {
    let change = i32::from(other.is_dir()) - i32::from(moved.is_dir());
    Deltas { from: (0, change), to: (0, -change) }
}

fn apply(txn: &mut Txn, plan: &Move, deltas: Deltas) -> Result<RenameReply, Abort> {
    let Move { from, to, is_exchange, now } = plan;
    let replaced = match &to.found {
        Some((fid, _)) if *is_exchange => Some(give_name(txn, *fid, to, from, *now)?),
        Some((fid, row)) => Some(drop_name(txn, *fid, row, (to.dir.inode, &to.name), *now)?),
        None => None,
    };
    if !is_exchange {
        txn.delete(&dirent_key(from.dir.volume, from.dir.inode, &from.name));
    }
    let (moved, _) = from.found.as_ref().ok_or(FsError::NotFound)?;
    let attr = give_name(txn, *moved, from, to, *now)?;
    let change = |(entries, subdirectories)| EntryChange { entries, subdirectories, now: *now };
    rows::change_entries(txn, from.dir, change(deltas.from))?;
    rows::change_entries(txn, to.dir, change(deltas.to))?;
    Ok(RenameReply { attr, replaced, sequence: txn.sequence() })
}

/// Makes `to`'s name name `fid`, which had `from`'s.
fn give_name(
    txn: &mut Txn,
    fid: FileId,
    from: &Side,
    to: &Side,
    now: Timestamp,
) -> Result<Attr, Abort> {
    let row = rows::inode(txn, fid)?;
    let mut changed = InodeRow::clone(&row);
    let old: (InodeNo, &Name) = (from.dir.inode, &from.name);
    if let Some(place) = changed.parents.iter_mut().find(|(inode, name)| (*inode, name) == old) {
        *place = (to.dir.inode, to.name.clone());
    }
    changed.ctime = now;
    rows::touch_parents(txn, fid.volume, &changed)?;
    let entry = DirentRow { inode: fid.inode, kind: changed.kind };
    txn.put(&dirent_key(to.dir.volume, to.dir.inode, &to.name), entry);
    let attr = changed.attr(fid.volume, fid.inode);
    rows::put_inode(txn, fid, changed);
    Ok(attr)
}
