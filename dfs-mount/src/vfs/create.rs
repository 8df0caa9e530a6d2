//! Making files: the one open whose file is not known before it is answered.

use dfs_proto::admin::Role;
use dfs_proto::directory::Create;
use dfs_proto::error::FsError;

use super::namespace::At;
use super::node::Place;
use super::open::{OpenHow, Opened, Opening};
use super::{Caller, Entry, Error, Vfs};
use crate::session::Creating;

/// A file that was made, or found, and opened.
#[derive(Debug)]
pub struct Created {
    pub entry: Entry,
    pub opened: Opened,
}

/// What a file is made with.
#[derive(Clone, Copy, Debug)]
pub struct CreateHow {
    /// With the caller's umask applied.
    pub mode: u32,
    pub exclusive: bool,
    pub open: OpenHow,
}

impl Vfs {
    /// Makes a file and opens it; an existing one is opened unless `how.exclusive`.
    ///
    /// # Errors
    /// `Exists`, `AccessDenied`, `NotDirectory`, `NotFound`, and those of [`Vfs::open`].
    pub async fn create(&self, caller: &Caller, at: At, how: CreateHow) -> Result<Created, Error> {
        let (directory, name) = self.name_in(&at)?;
        let access = self.access(how.open);
        let CreateHow { mode, exclusive, open } = how;
        let request = Create { parent: directory.fid, name, mode, exclusive, access };
        let identity = Some(&caller.identity);
        let wait = self.lock_wait(open);
        let session = self.session();
        let asked_at = self.clock().boottime();
        let creating = session.begin_creation();
        let answer = session.call_waiting(Role::Directory, identity, &request, wait).await?;
        let reply = answer.open;
        let place = Place { parent: at.parent, name: request.name };
        let entry = self.entry(reply.attr.clone(), reply.sequence, Some(place)).await;
        let known = Lookup { vfs: self, nodeid: Some(entry.nodeid) };
        let node = self.node(entry.nodeid)?;
        // What was just made is empty already.
        let truncate = open.truncate && !answer.created;
        let how = OpenHow { truncate, ..open };
        if !answer.created {
            self.send_first(&node).await;
        }
        let (reply, is_new) = (&reply, answer.created);
        let opening = Opening { caller, node: &node, how, reply, asked_at, walk: None, is_new };
        let opened = self.open_as_answered(opening, &creating, open.truncate).await?;
        known.keep();
        Ok(Created { entry, opened })
    }

    async fn open_as_answered(
        &self,
        opening: Opening<'_>,
        creating: &Creating,
        truncate: bool,
    ) -> Result<Opened, Error> {
        let Opening { caller, node, how, .. } = opening;
        let opened = if how.write {
            let intent = self.writeback().intend(node.fid).await;
            if creating.has_gone_back(node.fid) {
                drop(intent);
                // Others may have written it meanwhile.
                let how = OpenHow { truncate, ..how };
                return self.open_write(caller, node.clone(), how).await;
            }
            self.write_as_answered(opening, &intent, None).await?
        } else {
            self.read_as_answered(opening, None).await?
        };
        // A create is answered with the manifest, so that the answer always fits; a server that
        // left it out makes the kernel ask in the ordinary way.
        opened.ok_or(Error::Fs(FsError::Stale))
    }
}

/// A lookup that is taken back unless it is kept.
struct Lookup<'a> {
    vfs: &'a Vfs,
    nodeid: Option<u64>,
}

impl Lookup<'_> {
    fn keep(mut self) {
        self.nodeid = None;
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        if let Some(nodeid) = self.nodeid {
            self.vfs.forget(nodeid, 1);
        }
    }
}
