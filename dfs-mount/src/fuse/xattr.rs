//! Extended attributes as the kernel asks for them: by name, into a buffer of a size.
//!
//! Names that are not kept are answered here. The kernel itself asks for `security.capability`, of
//! every inode that is written or run: a request for that would double the cost of making a file.
//! ENOSYS, which would end such questions, would end all others as well.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_proto::error::FsError;
use dfs_proto::xattr::{XattrError, XattrName, XattrValue};
use fuser::{Errno, ReplyEmpty, ReplyXattr};

use super::Fuse;
use super::ask::{Asker, xattr_rule};
use super::reply::{self, Request};
use crate::vfs::{Error, NewXattr};

impl Fuse {
    pub(super) fn serve_getxattr(
        &self,
        (request, asker): (Request, Asker),
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let name = match XattrName::parse(name.as_bytes()) {
            Ok(name) => name,
            Err(XattrError::Security) => {
                return reply::refuse(request, reply, &FsError::NoAttribute.into());
            }
            Err(error) => return reply::refuse(request, reply, &error.into()),
        };
        let (vfs, nodeid) = (self.vfs.clone(), request.nodeid);
        let operation = async move { vfs.getxattr(&asker.caller(), nodeid, name).await };
        let accept = move |reply, value: XattrValue| answer_bytes(reply, size, value.as_bytes());
        self.server.answer(request, reply, operation, accept);
    }

    pub(super) fn serve_listxattr(
        &self,
        (request, asker): (Request, Asker),
        size: u32,
        reply: ReplyXattr,
    ) {
        let (vfs, nodeid) = (self.vfs.clone(), request.nodeid);
        let operation = async move { vfs.listxattr(&asker.caller(), nodeid).await };
        let accept = move |reply, names: Vec<XattrName>| answer_bytes(reply, size, &list(&names));
        self.server.answer(request, reply, operation, accept);
    }

    pub(super) fn serve_setxattr(
        &self,
        (request, asker): (Request, Asker),
        name: &OsStr,
        (value, flags): (&[u8], i32),
        reply: ReplyEmpty,
    ) {
        let new = match new_xattr(name, value, flags) {
            Ok(new) => new,
            Err(error) => return reply::refuse(request, reply, &error),
        };
        let (vfs, nodeid) = (self.vfs.clone(), request.nodeid);
        let operation = async move { vfs.setxattr(&asker.caller(), nodeid, new).await };
        self.answer_empty(request, reply, operation);
    }

    pub(super) fn serve_removexattr(
        &self,
        (request, asker): (Request, Asker),
        name: &OsStr,
        reply: ReplyEmpty,
    ) {
        let name = match XattrName::parse(name.as_bytes()) {
            Ok(name) => name,
            Err(error) => return reply::refuse(request, reply, &error.into()),
        };
        let (vfs, nodeid) = (self.vfs.clone(), request.nodeid);
        let operation = async move { vfs.removexattr(&asker.caller(), nodeid, name).await };
        self.answer_empty(request, reply, operation);
    }
}

fn new_xattr(name: &OsStr, value: &[u8], flags: i32) -> Result<NewXattr, Error> {
    let (name, value) = (XattrName::parse(name.as_bytes())?, XattrValue::parse(value)?);
    let rule = xattr_rule(flags).ok_or_else(|| FsError::invalid("flags of setxattr"))?;
    Ok(NewXattr { name, value, rule })
}

/// What listxattr(2) gives: every name with a NUL behind it.
fn list(names: &[XattrName]) -> Vec<u8> {
    names.iter().flat_map(|name| [name.as_bytes(), b"\0"]).flatten().copied().collect()
}

/// What to answer a program that has a buffer of some size.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    /// It asks how large the buffer must be.
    Length(u32),
    Whole,
    TooSmall,
}

fn fit(size: u32, length: usize) -> Fit {
    let length = u32::try_from(length).expect("values and lists are bounded");
    match size {
        0 => Fit::Length(length),
        size if size < length => Fit::TooSmall,
        _ => Fit::Whole,
    }
}

fn answer_bytes(reply: ReplyXattr, size: u32, bytes: &[u8]) {
    match fit(size, bytes.len()) {
        Fit::Length(length) => reply.size(length),
        Fit::Whole => reply.data(bytes),
        Fit::TooSmall => reply.error(Errno::ERANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_gets_all_or_nothing() {
        assert_eq!(fit(0, 5), Fit::Length(5));
        assert_eq!(fit(5, 5), Fit::Whole);
        assert_eq!(fit(4, 5), Fit::TooSmall);
        assert_eq!(fit(9, 0), Fit::Whole);
    }

    #[test]
    fn a_list_has_a_nul_behind_every_name() {
        let names = ["user.a", "trusted.b"].map(|name| XattrName::parse(name.as_bytes()).unwrap());
        assert_eq!(list(&names), b"user.a\0trusted.b\0");
        assert_eq!(list(&[]), b"");
    }
}
