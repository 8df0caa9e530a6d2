//! What requests have in common: who asks, what kind of wait it is, and how flags are meant.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use dfs_proto::directory::{RenameRule, XattrRule};
use fuser::{INodeNo, RenameFlags, ReplyAttr, ReplyEmpty, ReplyEntry};
use nix::fcntl::{FallocateFlags, OFlag};

use super::Fuse;
use super::attr::{file_attr, generation};
use super::caller::Callers;
use super::interrupt::Wakes;
use super::reply::Request;
use crate::cache::Allocate;
use crate::sys;
use crate::vfs::{At, Caller, Entry, Error, Lifetimes, OpenHow, Vfs};

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

impl Fuse {
    pub(super) fn asker(&self, request: &fuser::Request) -> Asker {
        Asker {
            callers: self.callers.clone(),
            uid: request.uid(),
            gid: request.gid(),
            pid: request.pid(),
        }
    }

    pub(super) fn asked(&self, request: &fuser::Request) -> (Vfs, Asker) {
        (self.vfs.clone(), self.asker(request))
    }

    pub(super) fn named(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
    ) -> (Vfs, Asker, At) {
        (self.vfs.clone(), self.asker(request), at(parent, name))
    }

    /// Answers with an entry; a caller that has gone away never held the lookup.
    pub(super) fn answer_entry(
        &self,
        request: Request,
        reply: ReplyEntry,
        operation: impl Future<Output = Result<Entry, Error>> + Send + 'static,
    ) {
        let vfs = self.vfs.clone();
        let undo = move |entry: Entry| {
            vfs.forget(entry.nodeid, 1);
            std::future::ready(())
        };
        self.server.serve(request, reply, operation, (answer_entry, undo));
    }

    pub(super) fn answer_empty(
        &self,
        request: Request,
        reply: ReplyEmpty,
        operation: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.server.answer(request, reply, operation, |reply, ()| reply.ok());
    }
}

/// A question that a signal to end ends.
pub(super) fn question(op: &'static str, request: &fuser::Request, nodeid: INodeNo) -> Request {
    let pid = request.pid();
    Request { op, nodeid: nodeid.0, pid, wakes: Wakes::Ending, needs_permit: true }
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

/// What a mode of fallocate(2) means; `None` for those that move content, or that only some local
/// file systems know.
pub(super) fn allocation(mode: i32) -> Option<Allocate> {
    const KEEP_SIZE: FallocateFlags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mode = FallocateFlags::from_bits_retain(mode);
    let keeps_size = mode.contains(KEEP_SIZE);
    match mode.difference(KEEP_SIZE) {
        rest if rest.is_empty() => Some(Allocate::Space { keeps_size }),
        FallocateFlags::FALLOC_FL_ZERO_RANGE => Some(Allocate::Zero { keeps_size }),
        FallocateFlags::FALLOC_FL_PUNCH_HOLE if keeps_size => Some(Allocate::Hole),
        _ => None,
    }
}

pub(super) fn answer_entry(reply: ReplyEntry, entry: Entry) {
    let Lifetimes { name, attr } = entry.lifetimes;
    reply.entry_with_ttls(&attr, &name, &file_attr(&entry), generation(&entry.attr));
}

pub(super) fn answer_attr(reply: ReplyAttr, entry: Entry) {
    reply.attr(&entry.lifetimes.attr, &file_attr(&entry));
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
    fn modes_of_fallocate_that_we_do_not_have_are_refused() {
        let of = |flags: FallocateFlags| allocation(flags.bits());
        let (keep, hole) =
            (FallocateFlags::FALLOC_FL_KEEP_SIZE, FallocateFlags::FALLOC_FL_PUNCH_HOLE);
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        assert_eq!(of(FallocateFlags::empty()), Some(Allocate::Space { keeps_size: false }));
        assert_eq!(of(keep), Some(Allocate::Space { keeps_size: true }));
        assert_eq!(of(hole | keep), Some(Allocate::Hole));
        assert_eq!(of(zero), Some(Allocate::Zero { keeps_size: false }));
        assert_eq!(of(zero | keep), Some(Allocate::Zero { keeps_size: true }));
        assert_eq!(of(hole), None, "a hole at the end cannot change the size");
        assert_eq!(of(hole | zero | keep), None);
        assert_eq!(of(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(of(FallocateFlags::FALLOC_FL_INSERT_RANGE), None);
        assert_eq!(of(FallocateFlags::FALLOC_FL_UNSHARE_RANGE), None);
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
