//! Mode bits: the rule by which the owner of a volume decides who may read, write or search what.
//!
//! A client that holds promised attributes decides by the same rule, so that what it answers itself
//! is what the owner would have let the caller see.

use crate::attr::{Attr, FileKind};
use crate::credential::Identity;

pub const READ: u32 = 4;
pub const WRITE: u32 = 2;
pub const EXECUTE: u32 = 1;

/// What of an inode decides who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub kind: FileKind,
    /// As in [`Attr`].
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Rights {
    /// Whether `who` has all of `want`. Root has all, but to execute what nobody may.
    pub fn allow(&self, who: &Identity, want: u32) -> bool {
        if who.is_root() {
            let is_executable = self.kind == FileKind::Directory || self.mode & 0o111 != 0;
            return want & EXECUTE == 0 || is_executable;
        }
        let shift = if who.uid == self.uid {
            6
        } else if who.is_in_group(self.gid) {
            3
        } else {
            0
        };
        (self.mode >> shift) & want == want
    }
}

impl From<&Attr> for Rights {
    fn from(attr: &Attr) -> Rights {
        let Attr { kind, mode, uid, gid, .. } = *attr;
        Rights { kind, mode, uid, gid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let rights = Rights { kind: FileKind::File, mode: 0o075, uid: 1, gid: 2 };
        assert!(!rights.allow(&who(1, 2, &[]), READ), "the owner's class is empty");
        assert!(rights.allow(&who(9, 2, &[]), READ | WRITE | EXECUTE));
        assert!(rights.allow(&who(9, 9, &[3, 2]), WRITE));
        assert!(rights.allow(&who(9, 9, &[3]), READ));
        assert!(!rights.allow(&who(9, 9, &[3]), WRITE));
    }

    #[test]
    fn root_may_all_but_execute_what_nobody_may() {
        let file = Rights { kind: FileKind::File, mode: 0, uid: 1, gid: 2 };
        assert!(file.allow(&Identity::ROOT, READ | WRITE));
        assert!(!file.allow(&Identity::ROOT, EXECUTE));
        assert!(Rights { mode: 0o001, ..file }.allow(&Identity::ROOT, EXECUTE));
        let dir = Rights { kind: FileKind::Directory, ..file };
        assert!(dir.allow(&Identity::ROOT, EXECUTE | WRITE));
    }
}
