//! The directory's rows and their keys. STORAGE.md's key table describes them.

mod older;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::id::{FileId, InodeNo, NodeId, SessionId, VolumeId};
use dfs_proto::manifest::Manifest;
use dfs_proto::name::Name;
use dfs_proto::version::{DataVersion, DirVersion, Epoch, FencingToken};
use dfs_proto::xattr::{XattrName, XattrValue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ledger::LedgerRow;
use crate::meta::record::from_previous;
use crate::meta::{Abort, Key, KeyBytes, ReadTxn, Record, RecordError, Space, Txn, key};
use older::InodeRowV1;

const VOLUME_TAG: u8 = 1;
const INODE_TAG: u8 = 2;
const DIRENT_TAG: u8 = 3;
const MANIFEST_TAG: u8 = 4;
const LEDGER_TAG: u8 = 5;
const XATTR_TAG: u8 = 6;
const SESSION_TAG: u8 = 7;

/// A volume's policy and counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRow {
    pub name: String,
    /// The epoch in which the root directory was made.
    pub root_generation: Epoch,
    /// Inode numbers from here on have not been used.
    pub next_inode: u64,
    pub replica_count: u32,
    pub min_replicas: u32,
    pub inode_count: u64,
    pub used_bytes: u64,
}

impl Record for VolumeRow {
    const VERSION: u8 = 1;
}

/// An inode: everything but its content and, for directories, its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRow {
    pub generation: Epoch,
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of content or link target; for a directory the number of its entries.
    pub size: u64,
    pub stored_bytes: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub rdev: u32,
    pub data_version: DataVersion,
    pub dir_version: DirVersion,
    /// When the set of entries last changed: what a listing's pages are checked against.
    pub entries_version: DirVersion,
    /// The names of this inode. One for a directory, none for the root.
    pub parents: Vec<(InodeNo, Name)>,
    /// The newest token granted for writing; a commit must carry it.
    pub fence: FencingToken,
    /// Whether that token was given to anybody but root and the owner: what they write takes the
    /// set-id bits away, whatever their client says.
    pub has_foreign_writer: bool,
    /// Where its chunks belong, the primary first.
    pub replicas: Vec<NodeId>,
    /// Replicas that missed the last commit.
    pub lagging: Vec<NodeId>,
    /// A symbolic link's target.
    pub target: Vec<u8>,
    /// Bytes of names and values in its row of extended attributes; 0: there is no such row.
    pub xattr_bytes: u32,
}

impl Record for InodeRow {
    const VERSION: u8 = 2;

    fn from_older(version: u8, body: &[u8]) -> Result<InodeRow, RecordError> {
        from_previous::<InodeRowV1, InodeRow>(version, body)
    }
}

impl InodeRow {
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub fn attr(&self, volume: VolumeId, inode: InodeNo) -> Attr {
        Attr {
            fid: FileId::new(volume, inode, self.generation),
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            stored_bytes: self.stored_bytes,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            rdev: self.rdev,
            data_version: self.data_version,
            dir_version: self.dir_version,
            xattr_bytes: self.xattr_bytes,
        }
    }
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirentRow {
    pub inode: InodeNo,
    pub kind: FileKind,
}

impl Record for DirentRow {
    const VERSION: u8 = 1;
}

/// A file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRow {
    pub manifest: Manifest,
}

impl Record for ManifestRow {
    const VERSION: u8 = 1;
}

/// All extended attributes of an inode.
///
/// One row, as its size is bounded: so they are listed, changed and removed at once, and one look
/// finds all. An inode without any has none, and says so itself: most inodes have none, and looking
/// for what is not there would be asking the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XattrRow {
    pub attributes: BTreeMap<XattrName, XattrValue>,
}

impl Record for XattrRow {
    const VERSION: u8 = 1;
}

/// A session that has listened: the next owner waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    pub host: String,
}

impl Record for SessionRow {
    const VERSION: u8 = 1;
}

pub fn volume_key(volume: VolumeId) -> Key<VolumeRow> {
    Key::new(Space::from(volume), VOLUME_TAG, &[])
}

pub fn inode_key(volume: VolumeId, inode: InodeNo) -> Key<InodeRow> {
    Key::new(Space::from(volume), INODE_TAG, &[&inode.0.to_be_bytes()])
}

pub fn dirent_key(volume: VolumeId, parent: InodeNo, name: &Name) -> Key<DirentRow> {
    let parts = [&parent.0.to_be_bytes()[..], name.as_bytes()];
    Key::new(Space::from(volume), DIRENT_TAG, &parts)
}

/// What the keys of all entries of a directory begin with.
pub fn dirents_prefix(volume: VolumeId, parent: InodeNo) -> KeyBytes {
    key::prefix(Space::from(volume), DIRENT_TAG, &[&parent.0.to_be_bytes()])
}

/// What a key is of.
pub enum RowName {
    Inode(InodeNo),
    /// The directory, and the name in it.
    Entry(InodeNo, Name),
    Other,
}

/// What the key of a changed row is of.
pub fn row_name(bytes: &[u8]) -> RowName {
    let Some((number, rest)) = key::take_u64(key::parts(bytes)) else { return RowName::Other };
    match (key::tag_of(bytes), Name::parse(rest)) {
        (Some(INODE_TAG), _) => RowName::Inode(InodeNo(number)),
        (Some(DIRENT_TAG), Ok(name)) => RowName::Entry(InodeNo(number), name),
        _ => RowName::Other,
    }
}

/// The name in a directory entry's key.
pub fn name_of_dirent(bytes: &[u8]) -> Option<Name> {
    let (_parent, name) = key::take_u64(key::parts(bytes))?;
    Name::parse(name).ok()
}

pub fn manifest_key(volume: VolumeId, inode: InodeNo) -> Key<ManifestRow> {
    Key::new(Space::from(volume), MANIFEST_TAG, &[&inode.0.to_be_bytes()])
}

pub fn xattr_key(volume: VolumeId, inode: InodeNo) -> Key<XattrRow> {
    Key::new(Space::from(volume), XATTR_TAG, &[&inode.0.to_be_bytes()])
}

/// Where the rows of sessions begin and end.
pub fn sessions(volume: VolumeId) -> (KeyBytes, KeyBytes) {
    let start = key::prefix(Space::from(volume), SESSION_TAG, &[]);
    let end = key::prefix_end(&start);
    (start, end)
}

pub fn session_key(volume: VolumeId, session: SessionId) -> Key<SessionRow> {
    Key::new(Space::from(volume), SESSION_TAG, &[&session.0])
}

/// The session in the key of its row.
pub fn session_of(bytes: &[u8]) -> Option<SessionId> {
    key::parts(bytes).try_into().ok().map(SessionId)
}

/// Where the ledgers of a volume's sessions begin and end.
pub fn ledgers(volume: VolumeId) -> (KeyBytes, KeyBytes) {
    let start = key::prefix(Space::from(volume), LEDGER_TAG, &[]);
    let end = key::prefix_end(&start);
    (start, end)
}

pub fn ledger_key(volume: VolumeId, session: SessionId) -> Key<LedgerRow> {
    Key::new(Space::from(volume), LEDGER_TAG, &[&session.0])
}

/// The inode of a file id.
///
/// # Errors
/// `Stale` if there is none, or another one has its number.
pub fn inode(txn: &mut ReadTxn, fid: FileId) -> Result<Arc<InodeRow>, Abort> {
    let row = txn.get(&inode_key(fid.volume, fid.inode))?;
    Ok(row.filter(|row| row.generation == fid.generation).ok_or(FsError::Stale)?)
}

/// A file and its content, also one that was removed lately: whoever looked its name up before may
/// open it, as on a local disk. The second says whether it is removed; such a row is read only.
///
/// # Errors
/// `Stale` if there is none.
pub fn openable(txn: &mut ReadTxn, fid: FileId) -> Result<(Arc<InodeRow>, bool), Abort> {
    let row = txn.get(&inode_key(fid.volume, fid.inode))?;
    if let Some(row) = row.filter(|row| row.generation == fid.generation) {
        return Ok((row, false));
    }
    let removed = txn.get_removed(&inode_key(fid.volume, fid.inode))?;
    let removed = removed.filter(|row| row.generation == fid.generation && !row.is_dir());
    let row = InodeRow::clone(&*removed.ok_or(FsError::Stale)?);
    Ok((Arc::new(InodeRow { nlink: 0, parents: Vec::new(), ..row }), true))
}

/// The content of a removed file.
///
/// # Errors
/// `Stale` if it is not remembered.
pub fn removed_manifest(txn: &mut ReadTxn, fid: FileId, row: &InodeRow) -> Result<Manifest, Abort> {
    if row.size == 0 {
        return Ok(Manifest::default());
    }
    let content = txn.get_removed(&manifest_key(fid.volume, fid.inode))?;
    Ok(content.ok_or(FsError::Stale)?.manifest.clone())
}

/// The inode of a file id that must be a directory.
///
/// # Errors
/// `Stale`, `NotDirectory`.
pub fn directory(txn: &mut ReadTxn, fid: FileId) -> Result<Arc<InodeRow>, Abort> {
    let row = inode(txn, fid)?;
    if row.is_dir() { Ok(row) } else { Err(FsError::NotDirectory.into()) }
}

/// The inode a directory's entry names.
///
/// # Errors
/// `NotFound`.
pub fn child(
    txn: &mut ReadTxn,
    parent: FileId,
    name: &Name,
) -> Result<(FileId, Arc<InodeRow>), Abort> {
    let entry = txn.get(&dirent_key(parent.volume, parent.inode, name))?;
    let entry = entry.ok_or(FsError::NotFound)?;
    let row = txn.get(&inode_key(parent.volume, entry.inode))?;
    let row = row.ok_or_else(|| broken(parent, "entry without inode"))?;
    Ok((FileId::new(parent.volume, entry.inode, row.generation), row))
}

/// A rule of the rows that does not hold.
pub fn broken(fid: FileId, rule: &str) -> FsError {
    let incident = format!("broken-row-{fid}");
    tracing::error!(%incident, rule, "metadata breaks a rule");
    FsError::Internal { incident }
}

/// A file's content.
///
/// An empty file's is not looked for: most creations are followed by an open and a commit, and a
/// row that does not exist would have to be asked of the engine each time.
pub fn manifest(txn: &mut ReadTxn, fid: FileId, row: &InodeRow) -> Result<Manifest, Abort> {
    if row.size == 0 {
        return Ok(Manifest::default());
    }
    let content = txn.get(&manifest_key(fid.volume, fid.inode))?;
    Ok(content.map(|content| content.manifest.clone()).unwrap_or_default())
}

/// The volume's own row.
pub fn volume(txn: &mut ReadTxn, volume: VolumeId) -> Result<Arc<VolumeRow>, Abort> {
    let row = txn.get(&volume_key(volume))?;
    Ok(row.ok_or_else(|| FsError::UnknownVolume { name: volume.0.to_string() })?)
}

pub fn put_inode(txn: &mut Txn, fid: FileId, row: InodeRow) {
    txn.put(&inode_key(fid.volume, fid.inode), row);
}

/// Marks that attributes or content of `row` changed, in every directory that names it.
///
/// Each directory once, also if it names the inode twice.
pub fn touch_parents(txn: &mut Txn, volume: VolumeId, row: &InodeRow) -> Result<(), Abort> {
    let mut parents: Vec<InodeNo> = row.parents.iter().map(|(parent, _)| *parent).collect();
    parents.sort();
    parents.dedup();
    for parent in parents {
        let key = inode_key(volume, parent);
        let Some(parent_row) = txn.get(&key)? else { continue };
        let mut changed = InodeRow::clone(&parent_row);
        changed.dir_version = txn.sequence().into();
        txn.put(&key, changed);
    }
    Ok(())
}

/// A change of a directory's entries.
#[derive(Clone, Copy, Debug)]
pub struct EntryChange {
    pub entries: i64,
    pub subdirectories: i32,
    pub now: Timestamp,
}

/// Applies a change of entries to their directory. Returns its version before and after.
///
/// The directory's own attributes change with it, so the directory that names it is touched too.
pub fn change_entries(
    txn: &mut Txn,
    dir: FileId,
    change: EntryChange,
) -> Result<(DirVersion, DirVersion), Abort> {
    let row = directory(txn, dir)?;
    let mut changed = InodeRow::clone(&row);
    let after: DirVersion = txn.sequence().into();
    changed.size = changed.size.saturating_add_signed(change.entries);
    changed.nlink = changed.nlink.saturating_add_signed(change.subdirectories);
    changed.mtime = change.now;
    changed.ctime = change.now;
    changed.dir_version = after;
    changed.entries_version = after;
    touch_parents(txn, dir.volume, &changed)?;
    put_inode(txn, dir, changed);
    Ok((row.dir_version, after))
}

/// Adds to a volume's counters.
pub fn count(txn: &mut Txn, id: VolumeId, inodes: i64, bytes: i64) -> Result<(), Abort> {
    let row = volume(txn, id)?;
    let mut changed = VolumeRow::clone(&row);
    changed.inode_count = changed.inode_count.saturating_add_signed(inodes);
    changed.used_bytes = changed.used_bytes.saturating_add_signed(bytes);
    txn.put(&volume_key(id), changed);
    Ok(())
}
