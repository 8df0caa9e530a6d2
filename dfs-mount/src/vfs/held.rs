//! Questions that what the owner has promised answers, and what is learnt from the other answers.
//!
//! Names are answered only to callers whom the server let search the directory, since its rights
//! changed last. Where the kernel judges mode bits it has asked for the attributes it needs before
//! it lists a directory or opens a file; elsewhere the server is asked for both.

use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::directory::{AttrReply, GetAttr, Lookup, ReadDir, ReadDirReply, Walk, WalkReply};
use dfs_proto::error::FsError;
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use dfs_proto::version::Sequence;

use super::node::Node;
use super::{Caller, Error, Vfs};
use crate::cache::promise::{Known, Learnt, Promises};
use crate::session::connection::PromiseCell;

impl Vfs {
    pub(super) fn promises(&self) -> &Promises {
        self.session().promises()
    }

    /// What a name is known to name.
    pub(super) fn known_name(&self, caller: &Caller, dir: FileId, name: &Name) -> Option<Known> {
        let now = self.clock().boottime();
        self.promises().look_up((dir, name), Some(&caller.identity), now)
    }

    /// The attributes of an inode, if they are known: of a directory its own, of anything else
    /// those of the name by which it was last seen.
    pub(super) fn known_attr(&self, node: &Node) -> Option<(Attr, Sequence)> {
        let now = self.clock().boottime();
        let (is_directory, place) = {
            let state = node.state();
            (state.is_directory(), state.place().cloned())
        };
        if is_directory && let Some(known) = self.promises().dir_attr(node.fid, now) {
            return Some(known);
        }
        let place = place?;
        let parent = self.inner.inodes.get(place.parent)?;
        match self.promises().look_up((parent.fid, &place.name), None, now)? {
            Known::Here(attr, sequence) if attr.fid == node.fid => Some((*attr, sequence)),
            Known::Here(..) | Known::Absent => None,
        }
    }

    /// All of a directory, if it is known; only where the kernel has judged who may read it.
    pub(super) fn known_list(&self, dir: FileId) -> Option<(Vec<(Name, Attr)>, Sequence)> {
        let now = self.clock().boottime();
        let promises = self.inner.options.kernel_judges.then(|| self.promises())?;
        promises.list(dir, now)
    }

    pub(super) async fn ask_lookup(
        &self,
        caller: &Caller,
        request: &Lookup,
    ) -> Result<AttrReply, Error> {
        let (since, cell) = (self.promises().moment(), PromiseCell::default());
        let result = self.session().ask(&caller.identity, request, &cell).await;
        let found = match &result {
            Ok(AttrReply { attr, .. }) => Some(attr),
            Err(FsError::NotFound) => None,
            Err(_) => return Err(result.expect_err("an error").into()),
        };
        if let Some(promise) = cell.take() {
            let Lookup { parent, name } = request;
            let learnt = Learnt::Name(name, found);
            self.promises().learn(&promise, *parent, learnt, since);
            self.promises().may_search(&promise, *parent, &caller.identity, since);
        }
        Ok(result?)
    }

    pub(super) async fn ask_getattr(
        &self,
        caller: &Caller,
        fid: FileId,
    ) -> Result<AttrReply, Error> {
        let (since, cell) = (self.promises().moment(), PromiseCell::default());
        let reply = self.session().ask(&caller.identity, &GetAttr { fid }, &cell).await?;
        if let Some(promise) = cell.take() {
            self.promises().learn(&promise, fid, Learnt::Dir(&reply.attr), since);
        }
        Ok(reply)
    }

    pub(super) async fn ask_walk(
        &self,
        caller: &Caller,
        request: &Walk,
    ) -> Result<WalkReply, Error> {
        let (since, cell) = (self.promises().moment(), PromiseCell::default());
        let reply = self.session().ask(&caller.identity, request, &cell).await?;
        let Some(promise) = cell.take() else { return Ok(reply) };
        let promises = self.promises();
        let mut at = &reply.attr;
        promises.learn(&promise, at.fid, Learnt::Dir(at), since);
        for (name, found) in request.names.iter().zip(&reply.found) {
            promises.learn(&promise, at.fid, Learnt::Name(name, Some(found)), since);
            promises.may_search(&promise, at.fid, &caller.identity, since);
            if found.kind == FileKind::Directory {
                promises.learn(&promise, found.fid, Learnt::Dir(found), since);
            }
            at = found;
        }
        Ok(reply)
    }

    pub(super) async fn ask_readdir(
        &self,
        caller: &Caller,
        request: &ReadDir,
    ) -> Result<ReadDirReply, Error> {
        let (since, cell) = (self.promises().moment(), PromiseCell::default());
        let reply = self.session().ask(&caller.identity, request, &cell).await?;
        let is_whole = request.after.is_none() && reply.page.is_last;
        if let Some(promise) = cell.take() {
            let entries = &reply.page.entries;
            if is_whole {
                let names = entries.iter().map(|it| (&it.name, &it.attr, reply.sequence));
                self.promises().learn_all(&promise, request.fid, names, since);
            } else {
                for entry in entries {
                    let learnt = Learnt::Name(&entry.name, Some(&entry.attr));
                    self.promises().learn(&promise, request.fid, learnt, since);
                }
            }
        }
        Ok(reply)
    }
}
