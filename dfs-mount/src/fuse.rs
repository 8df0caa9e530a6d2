//! The kernel's requests, turned into operations of `vfs`: one short method for each.
//!
//! What a method does is name the caller, say what kind of wait it is (`reply`), and shape the
//! answer. Reads and writes of open files are served on the spot; everything that may ask a server
//! goes through `reply::Server`. Opens also tell the kernel how it reaches the bytes (`backing`).
//!
//! Entries and attributes are handed out with the lifetimes that `vfs` says, and taken back by
//! `notify` before they end if they are not true any more.
//!
//! Operations that this file system does not have are answered ENOSYS, after which the kernel
//! stops asking, or EOPNOTSUPP. This directory is the only one that names `fuser`.

mod ask;
mod attr;
mod backing;
mod caller;
mod errno;
mod interrupt;
mod lock;
mod notify;
mod reply;
mod serve;
mod session;
mod xattr;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use dfs_proto::attr::SetAttr;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use crate::vfs::{Change, Side, Vfs};
use ask::{answer_attr, at, change, question, unbounded};
use attr::set_time;
use backing::Backings;
use caller::Callers;
use lock::KernelLock;
use reply::Server;
use serve::{Stretch, answer_statfs};

pub use session::{MountOptions, Mounted, mount};

/// A mounted volume as fuser sees it.
struct Fuse {
    vfs: Vfs,
    server: Server,
    callers: Arc<Callers>,
    backings: Arc<Backings>,
}

impl Filesystem for Fuse {
    fn init(
        &mut self,
        _request: &fuser::Request,
        config: &mut KernelConfig,
    ) -> std::io::Result<()> {
        session::negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (vfs, asker, at) = self.named(request, parent, name);
        let operation = async move { vfs.lookup(&asker.caller(), at).await };
        self.answer_entry(question("lookup", request, parent), reply, operation);
    }

    fn forget(&self, _request: &fuser::Request, nodeid: INodeNo, count: u64) {
        self.vfs.forget(nodeid.0, count);
    }

    fn getattr(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let (vfs, asker) = self.asked(request);
        let handle = handle.map(|handle| handle.0);
        let operation = async move { vfs.getattr(&asker.caller(), nodeid.0, handle).await };
        let request = question("getattr", request, nodeid);
        self.server.answer(request, reply, operation, answer_attr);
    }

    fn setattr(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = || self.vfs.now();
        let mode = mode.map(|mode| mode & 0o7777);
        let (atime, mtime) = (atime.map(|at| set_time(at, now)), mtime.map(|at| set_time(at, now)));
        let set = SetAttr { mode, uid, gid, atime, mtime };
        let asked = (change("setattr", request, nodeid), self.asker(request));
        self.serve_setattr(asked, handle, Change { set, size }, reply);
    }

    fn readlink(&self, request: &fuser::Request, nodeid: INodeNo, reply: ReplyData) {
        let (vfs, asker) = self.asked(request);
        let operation = async move { vfs.readlink(&asker.caller(), nodeid.0).await };
        let request = question("readlink", request, nodeid);
        self.server.answer(request, reply, operation, |reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let asked = (change("mknod", request, parent), self.named(request, parent, name));
        self.serve_mknod(asked, (mode, rdev), reply);
    }

    fn mkdir(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (vfs, asker, at) = self.named(request, parent, name);
        let operation = async move { vfs.mkdir(&asker.caller(), at, mode & 0o7777).await };
        self.answer_entry(change("mkdir", request, parent), reply, operation);
    }

    fn unlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, asker, at) = self.named(request, parent, name);
        let operation = async move { vfs.unlink(&asker.caller(), at).await };
        self.answer_empty(change("unlink", request, parent), reply, operation);
    }

    fn rmdir(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, asker, at) = self.named(request, parent, name);
        let operation = async move { vfs.rmdir(&asker.caller(), at).await };
        self.answer_empty(change("rmdir", request, parent), reply, operation);
    }

    fn symlink(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (vfs, asker, at) = self.named(request, parent, name);
        let target = target.as_os_str().to_owned();
        let operation = async move { vfs.symlink(&asker.caller(), at, target.as_bytes()).await };
        self.answer_entry(change("symlink", request, parent), reply, operation);
    }

    fn rename(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let asked = (change("rename", request, parent), self.named(request, parent, name));
        self.serve_rename(asked, at(new_parent, new_name), flags, reply);
    }

    fn link(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (vfs, asker, at) = self.named(request, parent, name);
        let operation = async move { vfs.link(&asker.caller(), nodeid.0, at).await };
        self.answer_entry(change("link", request, nodeid), reply, operation);
    }

    fn open(&self, request: &fuser::Request, nodeid: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let asked = (question("open", request, nodeid), self.asker(request));
        self.serve_open(asked, flags, reply);
    }

    fn create(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let asked = (change("create", request, parent), self.asker(request));
        self.serve_create(asked, at(parent, name), (mode, flags), reply);
    }

    fn read(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let at = Stretch { handle: handle.0, offset };
        self.serve_read(question("read", request, nodeid), at, size, reply);
    }

    fn write(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let at = Stretch { handle: handle.0, offset };
        let asked = (change("write", request, nodeid), self.asker(request));
        self.serve_write(asked, (at, data), (write_flags, flags), reply);
    }

    fn flush(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.serve_flush(request, (nodeid, handle), lock_owner, reply);
    }

    fn release(
        &self,
        _request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve_release(nodeid, handle, reply);
    }

    fn getlk(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        last: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let asked = (question("getlk", request, nodeid), self.asker(request));
        self.serve_find_lock(asked, (handle, KernelLock { owner, pid, start, last, kind }), reply);
    }

    fn setlk(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        last: u64,
        kind: i32,
        pid: u32,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let asked = (question("setlk", request, nodeid), self.asker(request));
        let lock = KernelLock { owner, pid, start, last, kind };
        self.serve_lock(asked, (handle, lock), waits, reply);
    }

    fn fsync(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let (vfs, asker) = self.asked(request);
        let operation = async move { vfs.fsync(&asker.caller(), handle.0).await };
        self.answer_empty(unbounded(change("fsync", request, nodeid)), reply, operation);
    }

    fn opendir(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        _flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        self.serve_opendir(question("opendir", request, nodeid), reply);
    }

    fn readdir(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        cookie: u64,
        reply: ReplyDirectory,
    ) {
        let asked = (question("readdir", request, nodeid), self.asker(request));
        self.serve_readdir(asked, (handle.0, cookie), reply);
    }

    fn releasedir(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serve_releasedir(question("releasedir", request, nodeid), handle, reply);
    }

    fn fsyncdir(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let (vfs, asker) = self.asked(request);
        let operation = async move { vfs.fsync_dir(&asker.caller(), nodeid.0).await };
        self.answer_empty(unbounded(change("fsyncdir", request, nodeid)), reply, operation);
    }

    fn statfs(&self, request: &fuser::Request, nodeid: INodeNo, reply: ReplyStatfs) {
        let (vfs, asker) = self.asked(request);
        let operation = async move { vfs.statfs(&asker.caller()).await };
        let request = question("statfs", request, nodeid);
        self.server.answer(request, reply, operation, answer_statfs);
    }

    fn lseek(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve_seek(question("lseek", request, nodeid), (handle.0, offset), whence, reply);
    }

    fn fallocate(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let at = Stretch { handle: handle.0, offset };
        self.serve_allocate((request, nodeid), (at, length), mode, reply);
    }

    fn copy_file_range(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to_nodeid: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = Side { handle: from.0, offset: from_offset };
        let to = Side { handle: to.0, offset: to_offset };
        self.serve_copy((request, nodeid), (from, to), length, reply);
    }

    // The kernel judges by mode bits where it may (default_permissions), else every operation is
    // judged by the server: there is nothing to ask beforehand.
    fn access(&self, _: &fuser::Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    // Programs ask of every file whether it is a terminal.
    fn ioctl(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_bytes: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn setxattr(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let asked = (change("setxattr", request, nodeid), self.asker(request));
        self.serve_setxattr(asked, name, (value, flags), reply);
    }

    fn getxattr(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let asked = (question("getxattr", request, nodeid), self.asker(request));
        self.serve_getxattr(asked, name, size, reply);
    }

    fn listxattr(&self, request: &fuser::Request, nodeid: INodeNo, size: u32, reply: ReplyXattr) {
        let asked = (question("listxattr", request, nodeid), self.asker(request));
        self.serve_listxattr(asked, size, reply);
    }

    fn removexattr(
        &self,
        request: &fuser::Request,
        nodeid: INodeNo,
        name: &OsStr,
        reply: ReplyEmpty,
    ) {
        let asked = (change("removexattr", request, nodeid), self.asker(request));
        self.serve_removexattr(asked, name, reply);
    }
}
