//! Changes of names: one request each, atomic on the server, visible when it is answered.
//!
//! Files that are open here keep working whatever happens to their names: handles are over inodes.

use std::sync::Arc;

use dfs_proto::attr::FileKind;
use dfs_proto::directory::{
    EntryReply, Fsync, MakeDir, MakeLink, MakeNode, MakeSymlink, ReadLink, RemoveDir, Rename,
    RenameReply, RenameRule, Unlink,
};
use dfs_proto::error::FsError;

use super::node::Place;
use super::{Caller, Entry, Error, Vfs};

/// What a special file is made with.
#[derive(Clone, Copy, Debug)]
pub struct NodeHow {
    pub kind: FileKind,
    /// With the caller's umask applied.
    pub mode: u32,
    pub rdev: u32,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct At {
    pub parent: u64,
    /// Whatever the caller said: parsed by the operation.
    pub name: Box<[u8]>,
}

impl Vfs {
    /// Makes a directory. `mode` has the caller's umask applied.
    pub async fn mkdir(&self, caller: &Caller, at: At, mode: u32) -> Result<Entry, Error> {
        let (parent, name) = self.name_in(&at)?;
        let request = MakeDir { parent: parent.fid, name, mode };
        let reply = self.ask(caller, &request).await?;
        Ok(self.new_entry(reply, Place { parent: at.parent, name: request.name }).await)
    }

    pub async fn symlink(&self, caller: &Caller, at: At, target: &[u8]) -> Result<Entry, Error> {
        let (parent, name) = self.name_in(&at)?;
        let request = MakeSymlink { parent: parent.fid, name, target: target.to_vec() };
        let reply = self.ask(caller, &request).await?;
        Ok(self.new_entry(reply, Place { parent: at.parent, name: request.name }).await)
    }

    /// A symbolic link's target. Asked for once: it never changes.
    pub async fn readlink(&self, caller: &Caller, nodeid: u64) -> Result<Arc<[u8]>, Error> {
        let node = self.node(nodeid)?;
        if let Some(target) = node.target.get() {
            return Ok(target.clone());
        }
        let target: Arc<[u8]> = self.ask(caller, &ReadLink { fid: node.fid }).await?.into();
        Ok(node.target.get_or_init(|| target).clone())
    }

    /// Makes a fifo, a socket, a device, or an empty file.
    ///
    /// # Errors
    /// `NotPermitted` for devices, if the mount was not asked to have them or the caller is not
    /// root.
    pub async fn mknod(&self, caller: &Caller, at: At, how: NodeHow) -> Result<Entry, Error> {
        let is_device = matches!(how.kind, FileKind::CharDevice | FileKind::BlockDevice);
        if is_device && !self.inner.options.devices {
            return Err(FsError::NotPermitted.into());
        }
        let (parent, name) = self.name_in(&at)?;
        let NodeHow { kind, mode, rdev } = how;
        let request = MakeNode { parent: parent.fid, name, kind, mode, rdev };
        let reply = self.ask(caller, &request).await?;
        Ok(self.new_entry(reply, Place { parent: at.parent, name: request.name }).await)
    }

    /// Gives an inode another name.
    pub async fn link(&self, caller: &Caller, nodeid: u64, at: At) -> Result<Entry, Error> {
        let node = self.node(nodeid)?;
        let (parent, name) = self.name_in(&at)?;
        let request = MakeLink { fid: node.fid, parent: parent.fid, name };
        let reply = self.ask(caller, &request).await?;
        Ok(self.new_entry(reply, Place { parent: at.parent, name: request.name }).await)
    }

    async fn new_entry(&self, reply: EntryReply, place: Place) -> Entry {
        self.entry(reply.attr, reply.sequence, Some(place)).await
    }

    pub async fn unlink(&self, caller: &Caller, at: At) -> Result<(), Error> {
        let (parent, name) = self.name_in(&at)?;
        let request = Unlink { parent: parent.fid, name };
        let reply = self.ask(caller, &request).await?;
        self.note(&reply.attr, reply.sequence);
        self.inner.kernel.removed(&Place { parent: at.parent, name: request.name });
        Ok(())
    }

    pub async fn rmdir(&self, caller: &Caller, at: At) -> Result<(), Error> {
        let (parent, name) = self.name_in(&at)?;
        let place = Place { parent: at.parent, name };
        let _removed = self.changing_at(&place);
        let request = RemoveDir { parent: parent.fid, name: place.name.clone() };
        let reply = self.ask(caller, &request).await?;
        self.note(&reply.attr, reply.sequence);
        self.inner.kernel.removed(&place);
        Ok(())
    }

    pub async fn rename(
        &self,
        caller: &Caller,
        from: At,
        to: At,
        rule: RenameRule,
    ) -> Result<(), Error> {
        let (from_parent, from_name) = self.name_in(&from)?;
        let (to_parent, to_name) = self.name_in(&to)?;
        let from = Place { parent: from.parent, name: from_name };
        let to = Place { parent: to.parent, name: to_name };
        let _moved = (self.changing_at(&from), self.changing_at(&to));
        let request = Rename {
            from_parent: from_parent.fid,
            from_name: from.name.clone(),
            to_parent: to_parent.fid,
            to_name: to.name.clone(),
            rule,
        };
        let RenameReply { attr, replaced, sequence } = self.ask(caller, &request).await?;
        self.note(&attr, sequence);
        self.see_at(&attr, to.clone());
        if let Some(replaced) = replaced {
            self.note(&replaced, sequence);
            if rule == RenameRule::Exchange {
                self.see_at(&replaced, from.clone());
            }
        }
        self.renamed(&from, &to, rule);
        Ok(())
    }

    fn see_at(&self, attr: &dfs_proto::attr::Attr, place: Place) {
        if let Some(node) = self.inner.inodes.find(attr.fid) {
            node.state().see_at(place);
        }
    }

    /// What fsync(2) of a directory waits for: its entries survive the loss of power.
    pub async fn fsync_dir(&self, caller: &Caller, nodeid: u64) -> Result<(), Error> {
        // The kernel holds the directory meanwhile.
        let node = self.changing(self.node(nodeid)?);
        match self.ask(caller, &Fsync { fid: node.fid }).await {
            // A directory without a name has nothing that could outlive the power.
            Err(Error::Fs(FsError::Stale)) => Ok(()),
            other => other,
        }
    }
}
