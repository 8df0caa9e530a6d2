//! Names to inodes: one request for each that is not known, and the rule which nodeid the
//! kernel is told.

use std::sync::Arc;

use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::directory::{AttrReply, Lookup, LookupParent};
use dfs_proto::error::FsError;
use dfs_proto::name::Name;
use dfs_proto::version::Sequence;

use super::namespace::At;
use super::node::{Node, Place};
use super::{Caller, Changing, Entry, Error, Lifetimes, Vfs};
use crate::cache::promise::Known;

impl Vfs {
    /// The inode that a name names.
    ///
    /// # Errors
    /// `NotFound`, `AccessDenied`, `NotDirectory`, `Stale`.
    pub async fn lookup(&self, caller: &Caller, at: At) -> Result<Entry, Error> {
        let At { parent, name } = at;
        let directory = self.node(parent)?;
        let AttrReply { attr, sequence } = match &name[..] {
            b"." => self.ask_getattr(caller, directory.fid).await?,
            b".." => self.ask(caller, &LookupParent { fid: directory.fid }).await?,
            _ => {
                let request = Lookup { parent: directory.fid, name: Name::parse(&name)? };
                let AttrReply { attr, sequence } =
                    self.answer_of_lookup(caller, &directory, &request).await?;
                let place = Place { parent, name: request.name };
                let entry = self.entry(attr, sequence, Some(place)).await;
                if let Some(node) = self.inner.inodes.get(entry.nodeid) {
                    node.walks.looked_up(caller.pid, self.clock().boottime());
                }
                return Ok(entry);
            }
        };
        Ok(self.entry(attr, sequence, None).await)
    }

    async fn answer_of_lookup(
        &self,
        caller: &Caller,
        directory: &Node,
        request: &Lookup,
    ) -> Result<AttrReply, Error> {
        match self.known_name(caller, directory, &request.name) {
            Some(Known::Here(attr, sequence)) => Ok(AttrReply { attr: *attr, sequence }),
            Some(Known::Absent) => Err(FsError::NotFound.into()),
            None => self.ask_lookup(caller, directory, request).await,
        }
    }

    /// Names an inode to the kernel, which then holds one lookup of it more.
    pub(super) async fn entry(
        &self,
        attr: Attr,
        sequence: Sequence,
        place: Option<Place>,
    ) -> Entry {
        let node = self.node_for(&attr, sequence).await;
        let Some(place) = place else { return self.told(&node, attr, sequence) };
        node.state().see_at(place.clone());
        let entry = self.told(&node, attr, sequence);
        self.with_name_lifetime(&node, &place, entry)
    }

    /// What an answer says of an inode, or what is known that is newer.
    pub(super) fn told(&self, node: &Node, attr: Attr, sequence: Sequence) -> Entry {
        let newest = node.state().learn(attr, sequence);
        let (nodeid, attr, lifetimes) =
            (node.nodeid, self.shown(node, newest), Lifetimes::default());
        self.with_attr_lifetime(node, Entry { nodeid, attr, lifetimes })
    }

    /// The node through which the version in `attr` can be opened: if handles show another one,
    /// that is a fresh node.
    async fn node_for(&self, attr: &Attr, sequence: Sequence) -> Arc<Node> {
        let node = self.inner.inodes.look_up(attr.fid);
        if attr.kind != FileKind::File || !node.state().shows_other_than(attr, sequence) {
            return node;
        }
        if self.has_open_what_is_current(&node, attr).await {
            return node;
        }
        self.inner.inodes.supersede(&node);
        let fresh = self.inner.inodes.look_up(attr.fid);
        self.forget(node.nodeid, 1);
        fresh
    }

    /// Whether the open cache file is the server's version after all: it is the working copy (whose
    /// commits make versions), or a commit of it went through without a handle's doing.
    async fn has_open_what_is_current(&self, node: &Node, attr: &Attr) -> bool {
        if self.live_working(node).is_some() {
            return true;
        }
        let Some(clean) = self.cache().clean(attr.fid).await else { return false };
        let mut state = node.state();
        let is_same = state.open().is_some_and(|open| Arc::ptr_eq(&open.file, &clean.file));
        if !is_same || clean.version != attr.data_version {
            return false;
        }
        state.committed(attr.data_version, Some(attr));
        true
    }

    /// Takes in what a mutation said of an inode that the kernel may know.
    pub(super) fn note(&self, attr: &Attr, sequence: Sequence) {
        if let Some(node) = self.inner.inodes.find(attr.fid) {
            node.state().learn(attr.clone(), sequence);
        }
    }

    /// A directory and a name in it that is about to be changed.
    pub(super) fn name_in(&self, at: &At) -> Result<(Changing<'_>, Name), Error> {
        let directory = self.changing(self.node(at.parent)?);
        Ok((directory, Name::parse(&at.name)?))
    }
}
