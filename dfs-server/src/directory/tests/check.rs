//! What must hold of all rows of a volume, whatever was done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_proto::attr::FileKind;
use dfs_proto::id::{InodeNo, ROOT_INODE};
use dfs_proto::name::Name;

use super::cell::{Cell, VOLUME, name};
use crate::directory::rows::{
    self, DirentRow, InodeRow, ManifestRow, XattrRow, dirent_key, inode_key, manifest_key,
    name_of_dirent, xattr_key,
};
use crate::directory::xattr::bytes_of;
use crate::meta::{Record, key};

/// All rows of a volume.
pub struct Rows {
    inodes: BTreeMap<InodeNo, Arc<InodeRow>>,
    entries: BTreeMap<(InodeNo, Name), DirentRow>,
    manifests: BTreeMap<InodeNo, Arc<ManifestRow>>,
    xattrs: BTreeMap<InodeNo, Arc<XattrRow>>,
}

type Found<R> = Vec<(Vec<u8>, Arc<R>)>;

async fn scan<R: Record>(cell: &Cell, some_key: &[u8]) -> Found<R> {
    let from: crate::meta::KeyBytes = some_key[..5].into();
    let to = key::prefix_end(&from);
    cell.volume.store.scan(from, to, usize::MAX).await.unwrap()
}

fn number(key: &[u8]) -> InodeNo {
    InodeNo(key::take_u64(key::parts(key)).unwrap().0)
}

impl Rows {
    async fn load(cell: &Cell) -> Rows {
        let zero = InodeNo(0);
        let inodes = scan::<InodeRow>(cell, inode_key(VOLUME, zero).bytes()).await;
        let manifests = scan::<ManifestRow>(cell, manifest_key(VOLUME, zero).bytes()).await;
        let entries = scan::<DirentRow>(cell, dirent_key(VOLUME, zero, &name("x")).bytes()).await;
        let xattrs = scan::<XattrRow>(cell, xattr_key(VOLUME, zero).bytes()).await;
        let named = |(key, row): (Vec<u8>, Arc<DirentRow>)| {
            ((number(&key), name_of_dirent(&key).unwrap()), *row)
        };
        Rows {
            inodes: inodes.into_iter().map(|(key, row)| (number(&key), row)).collect(),
            entries: entries.into_iter().map(named).collect(),
            manifests: manifests.into_iter().map(|(key, row)| (number(&key), row)).collect(),
            xattrs: xattrs.into_iter().map(|(key, row)| (number(&key), row)).collect(),
        }
    }

    fn check_entries(&self) {
        for ((parent, name), entry) in &self.entries {
            assert!(self.inodes[parent].is_dir(), "{name} is in what is no directory");
            let child = &self.inodes[&entry.inode];
            assert_eq!(child.kind, entry.kind, "kind of {name}");
            let place = (*parent, name.clone());
            let times = child.parents.iter().filter(|other| **other == place).count();
            assert_eq!(times, 1, "{name} in the list of its inode");
            assert!(self.inodes[parent].dir_version >= self.inodes[parent].entries_version);
        }
    }

    fn check_inode(&self, inode: InodeNo, row: &InodeRow) {
        let names = row.parents.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names.len(), row.parents.len(), "{inode:?} lists a name twice");
        for place in &names {
            assert_eq!(self.entries.get(place).map(|entry| entry.inode), Some(inode));
        }
        if row.is_dir() {
            let entries: Vec<&DirentRow> =
                self.entries.iter().filter(|((dir, _), _)| *dir == inode).map(|it| it.1).collect();
            let dirs = entries.iter().filter(|entry| entry.kind == FileKind::Directory).count();
            assert_eq!(row.nlink as usize, 2 + dirs, "links of {inode:?}");
            assert_eq!(row.size as usize, entries.len(), "entries of {inode:?}");
            assert_eq!(row.parents.len(), usize::from(inode != ROOT_INODE));
            self.check_reaches_root(inode);
        } else {
            assert_eq!(row.nlink as usize, row.parents.len(), "links of {inode:?}");
            assert!(row.nlink > 0, "{inode:?} is an orphan");
        }
        if row.kind == FileKind::File {
            let content = self.manifests.get(&inode).map(|row| &row.manifest);
            assert_eq!(content.map_or(0, |content| content.size()), row.size);
            assert_eq!(content.map_or(0, |content| content.stored_bytes()), row.stored_bytes);
            assert!(row.lagging.iter().all(|node| row.replicas.contains(node)));
        }
    }

    /// Every row of attributes belongs to an inode, which knows its size.
    fn check_xattrs(&self) {
        for (inode, row) in &self.inodes {
            let kept = self.xattrs.get(inode).map_or(0, |row| bytes_of(&row.attributes));
            assert_eq!(row.xattr_bytes as usize, kept, "extended attributes of {inode:?}");
        }
        for (inode, row) in &self.xattrs {
            assert!(self.inodes.contains_key(inode), "extended attributes of nothing, {inode:?}");
            assert!(!row.attributes.is_empty(), "an empty row of {inode:?}");
        }
    }

    fn check_reaches_root(&self, from: InodeNo) {
        let mut at = from;
        for _ in 0..=self.inodes.len() {
            match self.inodes[&at].parents.first() {
                Some((parent, _)) => at = *parent,
                None => return assert_eq!(at, ROOT_INODE),
            }
        }
        panic!("{from:?} is its own ancestor");
    }
}

/// Checks every rule on every row. Panics with the first that is broken.
pub async fn check(cell: &Cell) {
    let rows = Rows::load(cell).await;
    rows.check_entries();
    rows.inodes.iter().for_each(|(inode, row)| rows.check_inode(*inode, row));
    for inode in rows.manifests.keys() {
        assert_eq!(rows.inodes[inode].kind, FileKind::File, "content of {inode:?}");
    }
    rows.check_xattrs();
    let volume = cell.volume.store.read(|txn| rows::volume(txn, VOLUME)).await.unwrap();
    assert_eq!(volume.inode_count as usize, rows.inodes.len(), "inodes of the volume");
    let used = |row: &Arc<InodeRow>| row.stored_bytes + u64::from(row.xattr_bytes);
    let stored: u64 = rows.inodes.values().map(used).sum();
    assert_eq!(volume.used_bytes, stored, "bytes of the volume");
    let last = rows.inodes.keys().next_back().unwrap();
    assert!(volume.next_inode > last.0, "the next inode number is taken");
}
