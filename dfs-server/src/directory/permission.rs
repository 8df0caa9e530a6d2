//! Who may do what: owner, group, other, sticky, set-id. Whatever the client's kernel says.

use dfs_proto::FsError;
use dfs_proto::attr::FileKind;
use dfs_proto::credential::Identity;
use dfs_proto::permission::Rights;

use super::rows::InodeRow;

pub use dfs_proto::permission::{EXECUTE, READ, WRITE};

pub const SET_USER_ID: u32 = 0o4000;
pub const SET_GROUP_ID: u32 = 0o2000;
pub const STICKY: u32 = 0o1000;
/// Every bit a mode may have.
pub const MODE_BITS: u32 = 0o7777;

/// Checks permission bits.
///
/// # Errors
/// `AccessDenied`.
pub fn check(row: &InodeRow, who: &Identity, want: u32) -> Result<(), FsError> {
    let InodeRow { kind, mode, uid, gid, .. } = *row;
    if (Rights { kind, mode, uid, gid }).allow(who, want) {
        Ok(())
    } else {
        Err(FsError::AccessDenied)
    }
}

/// Whether `who` may add, remove or replace entries of `dir`.
///
/// # Errors
/// `AccessDenied`.
pub fn check_change_entries(dir: &InodeRow, who: &Identity) -> Result<(), FsError> {
    check(dir, who, WRITE | EXECUTE)
}

/// Whether `who` may take the name of `child` out of `dir`: in a sticky directory only the owner of
/// either.
///
/// # Errors
/// `NotPermitted`.
pub fn check_sticky(dir: &InodeRow, child: &InodeRow, who: &Identity) -> Result<(), FsError> {
    let is_owner = who.is_root() || who.uid == child.uid || who.uid == dir.uid;
    if dir.mode & STICKY == 0 || is_owner { Ok(()) } else { Err(FsError::NotPermitted) }
}

/// Checks that `who` owns the inode.
///
/// # Errors
/// `NotPermitted`.
pub fn check_owner(row: &InodeRow, who: &Identity) -> Result<(), FsError> {
    if who.is_root() || who.uid == row.uid { Ok(()) } else { Err(FsError::NotPermitted) }
}

/// Group and mode of something that `who` makes in `dir`: a set-group-id directory hands its group
/// down, and its bit to directories. Nobody makes a directory with set-id bits otherwise.
pub fn inherit(dir: &InodeRow, who: &Identity, kind: FileKind, mode: u32) -> (u32, u32) {
    let is_dir = kind == FileKind::Directory;
    let mode = mode & if is_dir { MODE_BITS & !SET_USER_ID & !SET_GROUP_ID } else { MODE_BITS };
    if dir.mode & SET_GROUP_ID == 0 {
        return (who.gid, mode);
    }
    if is_dir {
        return (dir.gid, mode | SET_GROUP_ID);
    }
    let grants_group = mode & (SET_GROUP_ID | 0o010) == SET_GROUP_ID | 0o010;
    if grants_group && !who.is_root() && !who.is_in_group(dir.gid) {
        return (dir.gid, mode & !SET_GROUP_ID);
    }
    (dir.gid, mode)
}

/// Whether `who` may set the set-group-id bit of something in group `gid`.
pub fn may_set_group_id(who: &Identity, gid: u32) -> bool {
    who.is_root() || who.is_in_group(gid)
}

/// The mode after somebody changed content or owner: set-id bits go, the group's only where it
/// means execution and not mandatory locking.
pub fn without_set_id(row: &InodeRow) -> u32 {
    if row.is_dir() {
        return row.mode;
    }
    let group = if row.mode & 0o010 != 0 { SET_GROUP_ID } else { 0 };
    row.mode & !SET_USER_ID & !group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::inode_row;

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn sticky_directories_protect_others_files() {
        let dir = InodeRow { uid: 1, mode: 0o1777, ..inode_row(FileKind::Directory) };
        let file = InodeRow { uid: 2, ..inode_row(FileKind::File) };
        assert!(check_sticky(&dir, &file, &who(3, 3, &[])).is_err());
        for uid in [0, 1, 2] {
            assert!(check_sticky(&dir, &file, &who(uid, 3, &[])).is_ok());
        }
    }

    #[test]
    fn set_group_id_directories_hand_their_group_down() {
        let dir = InodeRow { gid: 50, mode: 0o2775, ..inode_row(FileKind::Directory) };
        let user = who(1, 1, &[]);
        assert_eq!(inherit(&dir, &user, FileKind::Directory, 0o755), (50, 0o2755));
        assert_eq!(inherit(&dir, &user, FileKind::File, 0o644), (50, 0o644));
        assert_eq!(inherit(&dir, &user, FileKind::File, 0o2755), (50, 0o755));
        assert_eq!(inherit(&dir, &who(1, 50, &[]), FileKind::File, 0o2755), (50, 0o2755));
    }

    #[test]
    fn set_id_bits_go_with_a_change() {
        let mode = |kind, mode| without_set_id(&InodeRow { mode, ..inode_row(kind) });
        assert_eq!(mode(FileKind::File, 0o6755), 0o755);
        assert_eq!(mode(FileKind::File, 0o6745), 0o2745);
        assert_eq!(mode(FileKind::Directory, 0o6755), 0o6755);
    }
}
