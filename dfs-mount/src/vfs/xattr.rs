//! Extended attributes: kept by the servers, asked for one at a time, and not cached.
//!
//! That an inode has none is one of its attributes, so a question right after a look-up, as
//! programs put it that list a directory or copy a tree, needs no request of its own.
//!
//! The kernel does not say whether a question came through a handle. So for what is open here a
//! removed inode is never `Stale`, which would reach the program: it has no attributes.

use dfs_proto::directory::{AttrReply, GetXattr, ListXattr, RemoveXattr, SetXattr, XattrRule};
use dfs_proto::error::FsError;
use dfs_proto::xattr::{XattrName, XattrValue};

use super::node::Node;
use super::{Caller, Error, Vfs};

/// An extended attribute to set.
#[derive(Clone, Debug)]
pub struct NewXattr {
    pub name: XattrName,
    pub value: XattrValue,
    pub rule: XattrRule,
}

impl Vfs {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `AccessDenied`, `Stale`.
    pub async fn getxattr(
        &self,
        caller: &Caller,
        nodeid: u64,
        name: XattrName,
    ) -> Result<XattrValue, Error> {
        let node = self.node(nodeid)?;
        if self.has_no_xattr(&node) {
            return Err(Error::Fs(FsError::NoAttribute));
        }
        self.send_what_judges(caller, &node).await;
        match self.ask(caller, &GetXattr { fid: node.fid, name }).await {
            Err(Error::Fs(FsError::Stale)) if node.is_open() => {
                Err(Error::Fs(FsError::NoAttribute))
            }
            answer => answer,
        }
    }

    /// The names of all that the caller may know of.
    ///
    /// # Errors
    /// `Stale`.
    pub async fn listxattr(&self, caller: &Caller, nodeid: u64) -> Result<Vec<XattrName>, Error> {
        let node = self.node(nodeid)?;
        if self.has_no_xattr(&node) {
            return Ok(Vec::new());
        }
        match self.ask(caller, &ListXattr { fid: node.fid }).await {
            Err(Error::Fs(FsError::Stale)) if node.is_open() => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As [`SetXattr`]; `NotFound` for a removed file that is open here.
    pub async fn setxattr(&self, caller: &Caller, nodeid: u64, new: NewXattr) -> Result<(), Error> {
        // The kernel holds the inode meanwhile.
        let node = self.changing(self.node(nodeid)?);
        self.send_what_judges(caller, &node).await;
        let NewXattr { name, value, rule } = new;
        let request = SetXattr { fid: node.fid, name, value, rule };
        self.xattr_changed(&node, self.ask(caller, &request).await)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As [`RemoveXattr`]; `NotFound` for a removed file that is open here.
    pub async fn removexattr(
        &self,
        caller: &Caller,
        nodeid: u64,
        name: XattrName,
    ) -> Result<(), Error> {
        let node = self.changing(self.node(nodeid)?);
        self.send_what_judges(caller, &node).await;
        let request = RemoveXattr { fid: node.fid, name };
        self.xattr_changed(&node, self.ask(caller, &request).await)
    }

    fn xattr_changed(&self, node: &Node, answer: Result<AttrReply, Error>) -> Result<(), Error> {
        match answer {
            Ok(AttrReply { attr, sequence }) => {
                self.told(node, attr, sequence);
                Ok(())
            }
            Err(error) if node.is_open() => Err(error.through_handle()),
            Err(error) => Err(error),
        }
    }

    /// Whether it is known that there are none.
    fn has_no_xattr(&self, node: &Node) -> bool {
        self.known_attr(node).is_some_and(|(attr, _)| attr.xattr_bytes == 0)
    }

    /// Owner and mode that wait for a new file's first commit decide who may do what; but root may
    /// in any case.
    async fn send_what_judges(&self, caller: &Caller, node: &Node) {
        if !caller.identity.is_root() {
            self.send_first(node).await;
        }
    }
}
