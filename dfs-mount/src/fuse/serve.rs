//! How answers are given: entries, and those with a shape of their own (opens, reads and writes,
//! listings, space).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_proto::attr::VolumeSpace;
use dfs_proto::error::FsError;
use dfs_proto::limits::NAME_BYTES_MAX;
use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, WriteFlags,
};

use nix::fcntl::OFlag;
use nix::unistd::Whence;

use super::Fuse;
use super::ask::{
    Asker, allocation, answer_attr, change, open_how, question, release_late, rename_rule,
    unbounded,
};
use super::attr::{file_kind, file_type};
use super::reply::{self, Request};
use crate::vfs::{
    At, Change, CreateHow, Created, Error, NodeHow, Opened, Seek, Side, Vfs, WriteTo,
};

/// Unit in which statfs counts space. Units: bytes.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// Most bytes that the answer to a copy can count; a whole number of pages. Units: bytes.
const COPY_REQUEST_BYTES_MAX: u64 = 1 << 31;

thread_local! {
    /// Where a FUSE thread reads to. It grows to the longest request and stays.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A stretch of an open file.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub(super) handle: u64,
    pub(super) offset: u64,
}

/// A write to a shared file.
#[derive(Clone, Copy)]
struct SharedWrite {
    handle: u64,
    to: WriteTo,
    clears_set_id: bool,
    waits: bool,
    is_sync: bool,
}

impl Fuse {
    pub(super) fn serve_mknod(
        &self,
        (request, (vfs, asker, at)): (Request, (Vfs, Asker, At)),
        (mode, rdev): (u32, u32),
        reply: ReplyEntry,
    ) {
        let operation = async move {
            let kind = file_kind(mode).ok_or_else(|| FsError::invalid("kind of file"))?;
            let how = NodeHow { kind, mode: mode & 0o7777, rdev };
            vfs.mknod(&asker.caller(), at, how).await
        };
        self.answer_entry(request, reply, operation);
    }

    pub(super) fn serve_rename(
        &self,
        (request, (vfs, asker, from)): (Request, (Vfs, Asker, At)),
        to: At,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let operation = async move {
            let rule = rename_rule(flags).ok_or_else(|| FsError::invalid("way of renaming"))?;
            vfs.rename(&asker.caller(), from, to, rule).await
        };
        self.answer_empty(request, reply, operation);
    }

    pub(super) fn serve_setattr(
        &self,
        (request, asker): (Request, Asker),
        handle: Option<FileHandle>,
        wanted: Change,
        reply: ReplyAttr,
    ) {
        let (vfs, nodeid) = (self.vfs.clone(), request.nodeid);
        let handle = handle.map(|handle| handle.0);
        let operation = async move { vfs.setattr(&asker.caller(), nodeid, handle, wanted).await };
        // A cut by path may wait for another client's lock.
        self.server.answer(unbounded(request), reply, operation, answer_attr);
    }

    pub(super) fn serve_open(
        &self,
        (request, asker): (Request, Asker),
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        let (vfs, how, nodeid) = (self.vfs.clone(), open_how(flags.0), request.nodeid);
        let operation = async move { vfs.open(&asker.caller(), nodeid, how).await };
        let request = if how.write { unbounded(request) } else { request };
        let (backings, vfs, late) = (self.backings.clone(), self.vfs.clone(), self.vfs.clone());
        let accept = move |reply, opened: Opened| backings.answer_open(&vfs, reply, &opened);
        let undo = move |opened: Opened| release_late(late, opened.handle);
        self.server.serve(request, reply, operation, (accept, undo));
    }

    pub(super) fn serve_create(
        &self,
        (request, asker): (Request, Asker),
        at: At,
        (mode, flags): (u32, i32),
        reply: ReplyCreate,
    ) {
        let exclusive = OFlag::from_bits_retain(flags).contains(OFlag::O_EXCL);
        let how = CreateHow { mode: mode & 0o7777, exclusive, open: open_how(flags) };
        let vfs = self.vfs.clone();
        let operation = async move { vfs.create(&asker.caller(), at, how).await };
        let (backings, vfs, late) = (self.backings.clone(), self.vfs.clone(), self.vfs.clone());
        let accept = move |reply, created: Created| backings.answer_create(&vfs, reply, &created);
        let undo = move |created: Created| {
            late.forget(created.entry.nodeid, 1);
            release_late(late, created.opened.handle)
        };
        self.server.serve(unbounded(request), reply, operation, (accept, undo));
    }

    pub(super) fn serve_read(&self, request: Request, at: Stretch, size: u32, reply: ReplyData) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.vfs.read(at.handle, at.offset, &mut buffer[..size]) {
                Ok(count) => reply.data(&buffer[..count]),
                Err(error) => reply::refuse(request, reply, &error),
            }
        });
    }

    pub(super) fn serve_write(
        &self,
        (request, asker): (Request, Asker),
        (at, data): (Stretch, &[u8]),
        (kind, flags): (WriteFlags, OpenFlags),
        reply: ReplyWrite,
    ) {
        let flags = OFlag::from_bits_retain(flags.0);
        // The kernel's end of the file may not be ours; but pages that it writes late have a place.
        let is_page = kind.contains(WriteFlags::FUSE_WRITE_CACHE);
        let is_append = flags.contains(OFlag::O_APPEND) && !is_page;
        let to = if is_append { WriteTo::End } else { WriteTo::Offset(at.offset) };
        let clears_set_id = kind.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let count = u32::try_from(data.len()).expect("a request's length");
        let written = self.vfs.write(at.handle, to, data, clears_set_id);
        if is_page {
            self.server.enter(|| self.vfs.commit_late_stores(at.handle));
        }
        match written {
            Err(Error::Shared) => {
                let waits = is_page || !flags.contains(OFlag::O_NONBLOCK);
                let is_sync = flags.contains(OFlag::O_DSYNC) && !is_page;
                let write = SharedWrite { handle: at.handle, to, clears_set_id, waits, is_sync };
                self.serve_shared_write((request, asker), write, data, reply);
            }
            // Also set in O_SYNC, and for a single write by pwritev2(2).
            Ok(()) if flags.contains(OFlag::O_DSYNC) && !is_page => {
                let vfs = self.vfs.clone();
                let operation = async move { vfs.fsync(&asker.caller(), at.handle).await };
                let accept = move |reply: ReplyWrite, ()| reply.written(count);
                self.server.answer(unbounded(request), reply, operation, accept);
            }
            Ok(()) => reply.written(count),
            Err(error) => reply::refuse(request, reply, &error),
        }
    }

    /// A write that has to wait for the write lock.
    fn serve_shared_write(
        &self,
        (request, asker): (Request, Asker),
        write: SharedWrite,
        data: &[u8],
        reply: ReplyWrite,
    ) {
        let SharedWrite { handle, to, clears_set_id, waits, is_sync } = write;
        let (vfs, data) = (self.vfs.clone(), data.to_vec());
        let count = u32::try_from(data.len()).expect("a request's length");
        let operation = async move {
            let caller = asker.caller();
            let change = || vfs.write(handle, to, &data, clears_set_id);
            vfs.with_lock(&caller, handle, waits, change).await?;
            if is_sync { vfs.fsync(&caller, handle).await } else { Ok(()) }
        };
        let accept = move |reply: ReplyWrite, ()| reply.written(count);
        self.server.answer(unbounded(request), reply, operation, accept);
    }

    pub(super) fn serve_allocate(
        &self,
        (request, nodeid): (&fuser::Request, INodeNo),
        (at, length): (Stretch, u64),
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (asker, request) = (self.asker(request), question("fallocate", request, nodeid));
        let Some(how) = allocation(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        match self.vfs.allocate(at.handle, how, (at.offset, length)) {
            Ok(()) => reply.ok(),
            Err(Error::Shared) => {
                let vfs = self.vfs.clone();
                let operation = async move {
                    let change = || vfs.allocate(at.handle, how, (at.offset, length));
                    vfs.with_lock(&asker.caller(), at.handle, true, change).await
                };
                self.answer_empty(unbounded(request), reply, operation);
            }
            Err(error) => reply::refuse(request, reply, &error),
        }
    }

    pub(super) fn serve_copy(
        &self,
        (request, nodeid): (&fuser::Request, INodeNo),
        (from, to): (Side, Side),
        length: u64,
        reply: ReplyWrite,
    ) {
        let (asker, request) = (self.asker(request), change("copy_file_range", request, nodeid));
        // The reply has 32 bits for the count; the kernel asks for the rest.
        let length = length.min(COPY_REQUEST_BYTES_MAX);
        let vfs = self.vfs.clone();
        let operation = async move { vfs.copy_range(&asker.caller(), from, to, length).await };
        let accept = |reply: ReplyWrite, copied: u64| {
            reply.written(u32::try_from(copied).expect("no more than was asked for"));
        };
        // It may wait for another client's lock.
        self.server.answer(unbounded(request), reply, operation, accept);
    }

    pub(super) fn serve_seek(
        &self,
        request: Request,
        (handle, offset): (u64, i64),
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = if whence == Whence::SeekData as i32 {
            Seek::Data
        } else if whence == Whence::SeekHole as i32 {
            Seek::Hole
        } else {
            // The kernel does the others itself.
            return reply.error(Errno::EINVAL);
        };
        match self.vfs.seek(handle, offset, seek) {
            Ok(found) => reply.offset(found),
            // Nothing more to find is an answer, not a failure.
            Err(Error::Local { source, .. }) => reply.error(source.into()),
            Err(error) => reply::refuse(request, reply, &error),
        }
    }

    pub(super) fn serve_opendir(&self, request: Request, reply: ReplyOpen) {
        match self.vfs.opendir(request.nodeid) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply::refuse(request, reply, &error),
        }
    }

    pub(super) fn serve_releasedir(&self, request: Request, handle: FileHandle, reply: ReplyEmpty) {
        match self.vfs.releasedir(handle.0) {
            Ok(()) => reply.ok(),
            Err(error) => reply::refuse(request, reply, &error),
        }
    }

    pub(super) fn serve_readdir(
        &self,
        (request, asker): (Request, Asker),
        (handle, cookie): (u64, u64),
        reply: ReplyDirectory,
    ) {
        let vfs = self.vfs.clone();
        self.server.fill(request, reply, |mut filling| async move {
            let caller = asker.caller();
            let listed = vfs.readdir(&caller, handle, cookie, |item| {
                let (nodeid, kind) = (INodeNo(item.nodeid), file_type(item.kind));
                !filling.reply().add(nodeid, item.cookie, kind, OsStr::from_bytes(item.name))
            });
            let result = listed.await;
            filling.finish(result, ReplyDirectory::ok);
        });
    }
}

pub(super) fn answer_statfs(reply: ReplyStatfs, space: VolumeSpace) {
    let block = u64::from(STATFS_BLOCK_BYTES);
    let free = space.free_bytes / block;
    reply.statfs(
        space.total_bytes / block,
        free,
        free,
        space.total_inodes,
        space.free_inodes,
        STATFS_BLOCK_BYTES,
        u32::try_from(NAME_BYTES_MAX).expect("a small number"),
        STATFS_BLOCK_BYTES,
    );
}
