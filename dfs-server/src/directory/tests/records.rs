//! Golden bytes of the rows: what is on disk does not move.

use std::fmt::Debug;

use dfs_proto::attr::{FileKind, Timestamp};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::{InodeNo, NodeId, SessionId};
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::version::{DataVersion, DirVersion, Epoch, FencingToken};
use dfs_proto::xattr::{XattrName, XattrValue};

use super::cell::{VOLUME, name};
use crate::directory::rows::{
    DirentRow, InodeRow, ManifestRow, SessionRow, VolumeRow, XattrRow, dirent_key, inode_key,
    ledger_key, manifest_key, name_of_dirent, session_key, volume_key, xattr_key,
};
use crate::meta::Record;
use crate::meta::record::{decode, encode};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    let digits = text.replace(' ', "");
    let pairs = (0..digits.len()).step_by(2);
    pairs.map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn golden<R: Record + PartialEq + Debug>(row: &R, expected: &str) {
    let bytes = encode(row).unwrap();
    assert_eq!(hex(&bytes), expected.replace(' ', ""));
    assert_eq!(decode::<R>(&bytes).unwrap(), *row);
}

#[test]
fn keys_of_a_volume() {
    let inode = InodeNo(258);
    let parts = |bytes: &[u8]| hex(&bytes[4..]);
    assert_eq!(hex(&volume_key(VOLUME).bytes()[..]), "0000000101");
    assert_eq!(parts(inode_key(VOLUME, inode).bytes()), "020000000000000102");
    let entry = dirent_key(VOLUME, inode, &name("ab"));
    assert_eq!(parts(entry.bytes()), "0300000000000001026162");
    assert_eq!(name_of_dirent(entry.bytes()), Some(name("ab")));
    assert_eq!(parts(manifest_key(VOLUME, inode).bytes()), "040000000000000102");
    assert_eq!(parts(xattr_key(VOLUME, inode).bytes()), "060000000000000102");
    let session = "07".repeat(16);
    assert_eq!(parts(session_key(VOLUME, SessionId([7; 16])).bytes()), format!("07{session}"));
    assert_eq!(parts(ledger_key(VOLUME, SessionId([7; 16])).bytes()), format!("05{session}"));
}

#[test]
fn the_row_of_a_volume() {
    let row = VolumeRow {
        name: "main".into(),
        root_generation: Epoch(1),
        next_inode: 300,
        replica_count: 2,
        min_replicas: 1,
        inode_count: 7,
        used_bytes: 70_000,
    };
    golden(&row, "01 046d61696e 01 fb2c01 02 01 07 fc70110100");
}

#[test]
fn the_row_of_a_session() {
    golden(&SessionRow { host: "laptop".into() }, "01 066c6170746f70");
}

#[test]
fn the_row_of_an_inode() {
    let row = InodeRow {
        generation: Epoch(3),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 1000,
        gid: 100,
        size: 5,
        stored_bytes: 4,
        atime: Timestamp::new(-1, 6),
        mtime: Timestamp::new(1, 7),
        ctime: Timestamp::new(2, 8),
        rdev: 0,
        data_version: DataVersion::new(Epoch(3), 9),
        dir_version: DirVersion::new(Epoch(3), 10),
        entries_version: DirVersion::new(Epoch(3), 11),
        parents: vec![(InodeNo(1), name("f"))],
        fence: FencingToken::new(Epoch(2), 12),
        has_foreign_writer: true,
        replicas: vec![NodeId(1), NodeId(2)],
        lagging: vec![NodeId(2)],
        target: b"t".to_vec(),
        xattr_bytes: 300,
    };
    let times = "0106 0207 0408";
    let versions = "0309 030a 030b";
    let before_xattrs = format!(
        "03 00 fba401 01 fbe803 64 05 04 {times} 00 {versions} 01 01 0166 020c 01 020102 0102 0174"
    );
    golden(&row, &format!("02 {before_xattrs} fb2c01"));
    let old = bytes(&format!("01 {before_xattrs}"));
    assert_eq!(decode::<InodeRow>(&old).unwrap(), InodeRow { xattr_bytes: 0, ..row });
}

#[test]
fn the_rows_of_entries_and_manifests() {
    golden(&DirentRow { inode: InodeNo(9), kind: FileKind::Directory }, "01 09 01");
    let hash = ChunkHash([0xab; 32]);
    let extents = vec![Extent::Chunk { hash, length: 5 }, Extent::Hole { length: 6 }];
    let row = ManifestRow { manifest: Manifest { extents } };
    golden(&row, &format!("01 02 00 {} 05 01 06", "ab".repeat(32)));
}

#[test]
fn the_row_of_extended_attributes() {
    let attribute = |name: &str, value: &[u8]| {
        (XattrName::parse(name.as_bytes()).unwrap(), XattrValue::parse(value).unwrap())
    };
    let attributes = [attribute("user.b", b""), attribute("trusted.a", b"\x00\xff")];
    let row = XattrRow { attributes: attributes.into() };
    golden(&row, "01 02 09 747275737465642e61 02 00ff 06 757365722e62 00");
}
