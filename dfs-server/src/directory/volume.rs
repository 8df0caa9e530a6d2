//! A volume this node owns: its rows, and the inode numbers it hands out.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_proto::FsError;
use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::credential::Identity;
use dfs_proto::directory::Durability;
use dfs_proto::id::{FileId, InodeNo, ROOT_INODE, SessionId, VolumeId};
use dfs_proto::limits::SESSION_COUNT_MAX;
use dfs_proto::version::{Epoch, FencingToken};

use super::rows::{self, InodeRow, SessionRow, VolumeRow, volume_key};
use crate::meta::{Abort, Store, Txn};

/// Copies of every file, and the fewest a commit must reach, in a new volume.
const REPLICA_COUNT: u32 = 2;
const MIN_REPLICAS: u32 = 1;

/// A volume, cheap to clone.
#[derive(Clone)]
pub struct Volume {
    pub id: VolumeId,
    pub name: Arc<str>,
    pub root: FileId,
    pub store: Store,
    /// The sessions that listened to the owner before.
    pub listeners: Arc<HashSet<SessionId>>,
    next_inode: Arc<AtomicU64>,
}

impl Volume {
    /// Takes up a volume, making it first if it does not exist.
    ///
    /// # Errors
    /// Whatever the metadata engine reports.
    pub async fn open(
        store: Store,
        id: VolumeId,
        name: &str,
        now: Timestamp,
    ) -> Result<Volume, FsError> {
        let new_name = name.to_owned();
        let epoch = store.epoch();
        let row = store
            .write(Durability::Stable, move |txn| match txn.get(&volume_key(id))? {
                Some(row) => Ok(VolumeRow::clone(&row)),
                None => Ok(make(txn, id, &new_name, epoch, now)),
            })
            .await?;
        let (from, to) = rows::sessions(id);
        let listeners = store.scan::<SessionRow>(from, to, SESSION_COUNT_MAX).await?;
        let listeners = listeners.iter().filter_map(|(key, _)| rows::session_of(key));
        Ok(Volume {
            listeners: Arc::new(listeners.collect()),
            id,
            name: row.name.into(),
            root: FileId::new(id, ROOT_INODE, row.root_generation),
            next_inode: Arc::new(AtomicU64::new(row.next_inode)),
            store,
        })
    }

    /// A file id that nobody has. Its creation must record it with [`use_inode`].
    pub fn reserve_inode(&self) -> FileId {
        let inode = self.next_inode.fetch_add(1, Ordering::Relaxed);
        FileId::new(self.id, InodeNo(inode), self.store.epoch())
    }
}

fn make(txn: &mut Txn, id: VolumeId, name: &str, epoch: Epoch, now: Timestamp) -> VolumeRow {
    let root = FileId::new(id, ROOT_INODE, epoch);
    let row = VolumeRow {
        name: name.to_owned(),
        root_generation: epoch,
        next_inode: ROOT_INODE.0 + 1,
        replica_count: REPLICA_COUNT,
        min_replicas: MIN_REPLICAS,
        inode_count: 1,
        used_bytes: 0,
    };
    txn.put(&volume_key(id), row.clone());
    let inode = new_inode(txn, root, FileKind::Directory, &Identity::ROOT, now);
    rows::put_inode(txn, root, InodeRow { mode: 0o755, nlink: 2, ..inode });
    row
}

/// An inode as it is born: no names, mode 0, one link to come.
pub fn new_inode(
    txn: &Txn,
    fid: FileId,
    kind: FileKind,
    owner: &Identity,
    now: Timestamp,
) -> InodeRow {
    let sequence = txn.sequence();
    InodeRow {
        generation: fid.generation,
        kind,
        mode: 0,
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        size: 0,
        stored_bytes: 0,
        atime: now,
        mtime: now,
        ctime: now,
        rdev: 0,
        data_version: sequence.into(),
        dir_version: sequence.into(),
        entries_version: sequence.into(),
        parents: Vec::new(),
        fence: FencingToken::default(),
        has_foreign_writer: false,
        replicas: Vec::new(),
        lagging: Vec::new(),
        target: Vec::new(),
        xattr_bytes: 0,
    }
}

/// Records that a reserved inode number is used, and counts the inode.
pub fn use_inode(txn: &mut Txn, fid: FileId) -> Result<(), Abort> {
    let row = rows::volume(txn, fid.volume)?;
    let mut changed = VolumeRow::clone(&row);
    changed.next_inode = changed.next_inode.max(fid.inode.0 + 1);
    changed.inode_count += 1;
    txn.put(&volume_key(fid.volume), changed);
    Ok(())
}
