//! How answers are given: entries, and those with a shape of their own (opens, reads and writes,
//! listings, space).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_proto::attr::VolumeSpace;
use dfs_proto::limits::NAME_BYTES_MAX;
use fuser::{
    Errno, FileHandle, INodeNo, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, WriteFlags,
};

use nix::fcntl::OFlag;
use nix::unistd::Whence;

use super::Fuse;
use super::ask::{Asker, allocation, answer_attr, open_how, release_late, unbounded};
use super::attr::file_type;
use super::reply::{self, Request};
use crate::vfs::{At, Change, CreateHow, Created, Error, Opened, Seek, Side, WriteTo};

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

impl Fuse {
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

    pub(super) fn serve_allocate(
        &self,
        request: Request,
        (at, length): (Stretch, u64),
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(how) = allocation(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        match self.vfs.allocate(at.handle, how, (at.offset, length)) {
            Ok(()) => reply.ok(),
            Err(error) => reply::refuse(request, reply, &error),
        }
    }

    pub(super) fn serve_copy(
        &self,
        request: Request,
        (from, to): (Side, Side),
        length: u64,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the count; the kernel asks for the rest.
        let length = length.min(COPY_REQUEST_BYTES_MAX);
        let vfs = self.vfs.clone();
        let operation = async move { vfs.copy_range(from, to, length).await };
        let accept = |reply: ReplyWrite, copied: u64| {
            reply.written(u32::try_from(copied).expect("no more than was asked for"));
        };
        self.server.answer(request, reply, operation, accept);
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
