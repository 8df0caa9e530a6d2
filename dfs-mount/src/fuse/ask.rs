//! What requests have in common: who asks, what kind of wait it is, and how flags are meant.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use dfs_proto::directory::{RenameRule, XattrRule};
use fuser::{INodeNo, RenameFlags, ReplyAttr, ReplyEntry};
use nix::fcntl::OFlag;

use super::LIFETIME;
use super::attr::{file_attr, generation};
use super::caller::Callers;
use super::interrupt::Wakes;
use super::reply::Request;
use crate::sys;
use crate::vfs::{At, Caller, Entry, OpenHow, Vfs};

/// Who asks, before it is looked up what groups they have.
pub(super) struct Asker {
    pub(super) callers: Arc<Callers>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
}

impl Asker {
    pub(super) fn caller(&self) -> Caller {
        self.callers.caller(self.uid, self.gid, self.pid)
    }
}

/// A question that any signal ends.
pub(super) fn question(op: &'static str, request: &fuser::Request, nodeid: INodeNo) -> Request {
    let pid = request.pid();
    Request { op, nodeid: nodeid.0, pid, wakes: Wakes::Any, needs_permit: true }
}

/// A change, whose outcome a living program must learn.
pub(super) fn change(op: &'static str, request: &fuser::Request, nodeid: INodeNo) -> Request {
    Request { wakes: Wakes::Fatal, ..question(op, request, nodeid) }
}

/// Something that others may be waiting for: it never waits for a permit.
pub(super) fn unbounded(request: Request) -> Request {
    Request { needs_permit: false, ..request }
}

/// A name in a directory.
pub(super) fn at(parent: INodeNo, name: &OsStr) -> At {
    At { parent: parent.0, name: name.as_bytes().into() }
}

pub(super) fn open_how(flags: i32) -> OpenHow {
    let flags = OFlag::from_bits_retain(flags);
    let access = flags & OFlag::O_ACCMODE;
    let truncate = flags.contains(OFlag::O_TRUNC);
    OpenHow {
        read: access != OFlag::O_WRONLY,
        write: access != OFlag::O_RDONLY || truncate,
        truncate,
        nonblock: flags.contains(OFlag::O_NONBLOCK),
    }
}

/// What renameat2(2) flags mean; `None` for what only overlay file systems use.
pub(super) fn rename_rule(flags: RenameFlags) -> Option<RenameRule> {
    match flags {
        _ if flags.is_empty() => Some(RenameRule::Replace),
        RenameFlags::RENAME_NOREPLACE => Some(RenameRule::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameRule::Exchange),
        _ => None,
    }
}

/// What setxattr(2) flags mean; `None` for both at once, which nothing can fulfil, and others.
pub(super) fn xattr_rule(flags: i32) -> Option<XattrRule> {
    match flags {
        0 => Some(XattrRule::Any),
        sys::XATTR_CREATE => Some(XattrRule::Create),
        sys::XATTR_REPLACE => Some(XattrRule::Replace),
        _ => None,
    }
}

pub(super) fn answer_entry(reply: ReplyEntry, entry: Entry) {
    reply.entry(&LIFETIME, &file_attr(&entry), generation(&entry.attr));
}

pub(super) fn answer_attr(reply: ReplyAttr, entry: Entry) {
    reply.attr(&LIFETIME, &file_attr(&entry));
}

/// Ends a handle that its opener did not wait for.
pub(super) async fn release_late(vfs: Vfs, handle: u64) {
    if let Err(error) = vfs.release(handle).await {
        tracing::debug!(%error, "release of a handle that nobody waited for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_flags_say_what_is_wanted() {
        let read = open_how(OFlag::O_RDONLY.bits());
        assert!(read.read && !read.write && !read.truncate);
        let write = open_how((OFlag::O_WRONLY | OFlag::O_NONBLOCK).bits());
        assert!(!write.read && write.write && write.nonblock);
        let cut = open_how((OFlag::O_RDONLY | OFlag::O_TRUNC).bits());
        assert!(cut.read && cut.write && cut.truncate, "cutting is writing");
    }

    #[test]
    fn setxattr_flags_say_what_must_be_there() {
        assert_eq!(xattr_rule(0), Some(XattrRule::Any));
        assert_eq!(xattr_rule(1), Some(XattrRule::Create));
        assert_eq!(xattr_rule(2), Some(XattrRule::Replace));
        assert_eq!((xattr_rule(3), xattr_rule(4)), (None, None));
    }

    #[test]
    fn rename_flags_that_we_do_not_have_are_refused() {
        assert_eq!(rename_rule(RenameFlags::empty()), Some(RenameRule::Replace));
        assert_eq!(rename_rule(RenameFlags::RENAME_EXCHANGE), Some(RenameRule::Exchange));
        assert_eq!(rename_rule(RenameFlags::RENAME_WHITEOUT), None);
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        assert_eq!(rename_rule(both), None);
    }
}
