//! Questions that what the owner has promised answers, and what is learnt from the other answers.
//!
//! Names, listings and contents are answered to callers whom the server would answer: the same rule
//! decides (`dfs_proto::permission`), over attributes that are promised, and over the identity that
//! the server takes the caller for.

use dfs_proto::attr::Attr;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{AttrReply, GetAttr, Lookup, ReadDir, ReadDirReply};
use dfs_proto::error::FsError;
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use dfs_proto::permission::{EXECUTE, READ, Rights};
use dfs_proto::version::Sequence;

use super::node::Node;
use super::{Caller, Error, Vfs};
use crate::cache::promise::{Known, Learnt, Page, Promises, Subject};
use crate::session::connection::PromiseCell;

impl Vfs {
    pub(super) fn promises(&self) -> &Promises {
        self.session().promises()
    }

    /// What a name is known to name.
    pub(super) fn known_name(&self, caller: &Caller, dir: &Node, name: &Name) -> Option<Known> {
        let (who, now) = (self.acts_as(caller)?, self.clock().boottime());
        let may = |attr: &Attr| Rights::from(attr).allow(&who, EXECUTE);
        self.about(dir, |dir| self.promises().look_up(dir, name, &may, now))
    }

    /// The same, whoever asks.
    pub(super) fn promised_name(&self, dir: &Node, name: &Name) -> Option<Known> {
        let now = self.clock().boottime();
        self.about(dir, |dir| self.promises().look_up(dir, name, &|_| true, now))
    }

    /// The attributes of an inode, if they are known.
    pub(super) fn known_attr(&self, node: &Node) -> Option<(Attr, Sequence)> {
        let now = self.clock().boottime();
        self.about(node, |node| self.promises().attr(node, now))
    }

    /// The same, if the caller may also read it.
    pub(super) fn known_to_reader(&self, caller: &Caller, node: &Node) -> Option<(Attr, Sequence)> {
        let who = self.acts_as(caller)?;
        self.known_attr(node).filter(|(attr, _)| Rights::from(attr).allow(&who, READ))
    }

    /// All of a directory, if it is known.
    pub(super) fn known_list(
        &self,
        caller: &Caller,
        dir: &Node,
    ) -> Option<(Vec<(Name, Attr)>, Sequence)> {
        let (who, now) = (self.acts_as(caller)?, self.clock().boottime());
        let may = |attr: &Attr| Rights::from(attr).allow(&who, READ);
        self.about(dir, |dir| self.promises().list(dir, &may, now))
    }

    /// Whom the server takes a caller for.
    fn acts_as(&self, caller: &Caller) -> Option<Identity> {
        self.session().identity(&caller.identity)
    }

    /// Asks for what is known, by the name at which the inode was last seen.
    fn about<T>(&self, node: &Node, ask: impl FnOnce(Subject<'_>) -> T) -> T {
        let seen = node.state().place().cloned();
        let parent = seen.as_ref().and_then(|seen| self.inner.inodes.get(seen.parent));
        let place = parent.zip(seen).map(|(parent, seen)| (parent.fid, seen.name));
        let place = place.as_ref().map(|(parent, name)| (*parent, name));
        ask(Subject { fid: node.fid, place })
    }

    /// Asks for a name, and for the directory's attributes if they are not known: without them the
    /// next question for a name there would have to be asked, too.
    pub(super) async fn ask_lookup(
        &self,
        caller: &Caller,
        directory: &Node,
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
            if self.known_attr(directory).is_none() {
                // What goes wrong with it is said to those who ask for it.
                let _ = self.ask_getattr(caller, *parent).await;
            }
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

    pub(super) async fn ask_readdir(
        &self,
        caller: &Caller,
        request: &ReadDir,
    ) -> Result<ReadDirReply, Error> {
        let (since, cell) = (self.promises().moment(), PromiseCell::default());
        let reply = self.session().ask(&caller.identity, request, &cell).await?;
        if let Some(promise) = cell.take() {
            let names = reply.page.entries.iter().map(|it| (&it.name, &it.attr));
            let (after, sequence) = (request.after.as_ref(), reply.sequence);
            let page = Page { after, names, sequence, is_last: reply.page.is_last };
            self.promises().learn_page(&promise, request.fid, page, since);
        }
        Ok(reply)
    }
}
