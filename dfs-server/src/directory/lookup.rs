//! Reading names and attributes.

use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{AttrReply, ReadDir, ReadDirReply};
use dfs_proto::dirent::{DirEntry, DirPage};
use dfs_proto::id::{FileId, InodeNo, ROOT_INODE};
use dfs_proto::limits::DIR_PAGE_ENTRIES_MAX;
use dfs_proto::name::Name;
use dfs_proto::version::{DirVersion, Sequence};

use super::permission::{self, EXECUTE, READ};
use super::rows::{self, DirentRow, InodeRow, dirent_key, dirents_prefix, inode_key};
use super::volume::Volume;
use crate::meta::{Abort, Key, ReadTxn, key};

/// The inode that `name` names in `parent`.
pub fn lookup(
    txn: &mut ReadTxn,
    parent: FileId,
    name: &Name,
    who: &Identity,
) -> Result<AttrReply, Abort> {
    let dir = rows::directory(txn, parent)?;
    permission::check(&dir, who, EXECUTE)?;
    let (fid, row) = rows::child(txn, parent, name)?;
    Ok(reply(txn, fid, &row))
}

/// The directory above a directory.
pub fn parent(txn: &mut ReadTxn, fid: FileId) -> Result<AttrReply, Abort> {
    let row = rows::directory(txn, fid)?;
    let inode = row.parents.first().map_or(ROOT_INODE, |(parent, _)| *parent);
    let above = txn.get(&inode_key(fid.volume, inode))?.ok_or(FsError::Stale)?;
    Ok(reply(txn, FileId::new(fid.volume, inode, above.generation), &above))
}

pub fn getattr(txn: &mut ReadTxn, fid: FileId) -> Result<AttrReply, Abort> {
    let row = rows::inode(txn, fid)?;
    Ok(reply(txn, fid, &row))
}

fn reply(txn: &ReadTxn, fid: FileId, row: &InodeRow) -> AttrReply {
    AttrReply { attr: row.attr(fid.volume, fid.inode), sequence: txn.sequence() }
}

pub fn readlink(txn: &mut ReadTxn, fid: FileId) -> Result<Vec<u8>, Abort> {
    let row = rows::inode(txn, fid)?;
    if row.kind != FileKind::Symlink {
        return Err(FsError::invalid("readlink of what is no symbolic link").into());
    }
    Ok(row.target.clone())
}

/// How often a page is read anew because the directory changed meanwhile.
const PAGE_TRIES_MAX: u32 = 8;

/// The directory's versions before its entries were read.
#[derive(Clone, Copy)]
struct Before {
    entries: DirVersion,
    dir: DirVersion,
    sequence: Sequence,
}

/// A page of a directory.
///
/// Entries come from the engine, their inodes from the rows in memory; in between the directory may
/// change. A page whose entries are the same before and after is true of one moment. A directory
/// that never rests gets a page all the same, after some tries: entries that were there all the
/// time are in it exactly once, those that came or went may be missing, and its version is that of
/// before. So whoever knows the changes since that version can bring it up to date: since the
/// sequence that is returned beside it.
pub async fn readdir(
    volume: &Volume,
    request: &ReadDir,
    who: &Identity,
) -> Result<(ReadDirReply, Sequence), FsError> {
    let limit = request.limit.clamp(1, DIR_PAGE_ENTRIES_MAX) as usize;
    let mut tries = 0;
    loop {
        tries += 1;
        let (fid, reader) = (request.fid, who.clone());
        let before = volume
            .store
            .read(move |txn| {
                let dir = rows::directory(txn, fid)?;
                permission::check(&dir, &reader, READ)?;
                let (entries, dir) = (dir.entries_version, dir.dir_version);
                Ok(Before { entries, dir, sequence: txn.sequence() })
            })
            .await?;
        let mut entries = scan(volume, request, limit + 1).await?;
        let is_last = entries.len() <= limit;
        entries.truncate(limit);
        let names = Scanned { entries, is_last, is_final: tries >= PAGE_TRIES_MAX };
        let page = volume.store.read(move |txn| page(txn, fid, before, &names)).await?;
        if let Some(page) = page {
            return Ok(page);
        }
    }
}

/// What a scan of the engine found.
struct Scanned {
    entries: Vec<Found>,
    is_last: bool,
    /// Whether this try must give a page.
    is_final: bool,
}

type Found = (Name, Arc<DirentRow>);

async fn scan(volume: &Volume, request: &ReadDir, limit: usize) -> Result<Vec<Found>, FsError> {
    let prefix = dirents_prefix(volume.id, request.fid.inode);
    let from = match &request.after {
        Some(name) => key::after(&[&prefix, name.as_bytes()].concat()),
        None => prefix.clone(),
    };
    let found = volume.store.scan::<DirentRow>(from, key::prefix_end(&prefix), limit).await?;
    let named = found.into_iter().map(|(key, row)| {
        let name = rows::name_of_dirent(&key);
        name.map(|name| (name, row)).ok_or_else(|| rows::broken(request.fid, "entry's key"))
    });
    named.collect()
}

fn page(
    txn: &mut ReadTxn,
    fid: FileId,
    before: Before,
    names: &Scanned,
) -> Result<Option<(ReadDirReply, Sequence)>, Abort> {
    let dir = rows::directory(txn, fid)?;
    let is_at_rest = dir.entries_version == before.entries;
    if !is_at_rest && !names.is_final {
        return Ok(None);
    }
    let present = if is_at_rest {
        names.entries.iter().map(|(name, entry)| (name, entry.inode)).collect()
    } else {
        still_there(txn, fid, &names.entries)?
    };
    let keys: Vec<Key<InodeRow>> =
        present.iter().map(|(_, inode)| inode_key(fid.volume, *inode)).collect();
    let inodes = txn.get_all(&keys)?;
    let mut listed = Vec::with_capacity(present.len());
    for ((name, inode), row) in present.into_iter().zip(inodes) {
        let row = row.ok_or_else(|| rows::broken(fid, "entry without inode"))?;
        let attr: Attr = row.attr(fid.volume, inode);
        listed.push(DirEntry { name: name.clone(), attr });
    }
    let sequence = txn.sequence();
    let (version, as_of) = match is_at_rest {
        true => (dir.dir_version, sequence),
        false => (before.dir, before.sequence),
    };
    let page = DirPage { entries: listed, version, is_last: names.is_last };
    Ok(Some((ReadDirReply { page, sequence }, as_of)))
}

/// Those of the entries that exist at the moment of `txn`, with what they name then.
fn still_there<'a>(
    txn: &mut ReadTxn,
    fid: FileId,
    entries: &'a [Found],
) -> Result<Vec<(&'a Name, InodeNo)>, Abort> {
    let keys: Vec<Key<DirentRow>> =
        entries.iter().map(|(name, _)| dirent_key(fid.volume, fid.inode, name)).collect();
    let rows = txn.get_all(&keys)?;
    let found = entries.iter().zip(rows);
    Ok(found.filter_map(|((name, _), row)| Some((name, row?.inode))).collect())
}
