//! Watching a directory: what other clients change there, as they do.
//!
//! Fed by breaks, so the directory is kept promised: each change counts as a use of it, and it is
//! listed again when the promise was lost or has ended. What was changed between the two is not
//! told by anybody; then the watcher is told that it may have missed something. What this client
//! changes itself is none of the watcher's business.

use std::collections::VecDeque;
use std::sync::Arc;

use dfs_proto::attr::Attr;
use dfs_proto::error::FsError;
use dfs_proto::name::Name;
use dfs_proto::promise::DirChange;
use dfs_proto::version::DirVersion;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::inode_table::ROOT_NODEID;
use super::namespace::At;
use super::node::Node;
use super::{Caller, Error, Vfs};
use crate::session::told::Seen;

/// Something that a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The name was made, or renamed to, or what it names has another content or attributes.
    Changed(Name, Box<Attr>),
    /// There is no such name any more.
    Removed(Name),
    /// Something may have changed untold.
    Missed,
    /// The directory is gone: nothing more will be told.
    Gone,
}

/// A watcher of one directory.
#[derive(Debug)]
pub struct Watching {
    vfs: Vfs,
    caller: Caller,
    dir: Arc<Node>,
    /// Lookups to be taken back.
    known: Vec<u64>,
    seen: broadcast::Receiver<Seen>,
    sights: VecDeque<Sight>,
    /// As of the last change, or listing.
    version: Option<DirVersion>,
}

impl Vfs {
    /// Watches the directory at `path`, from the volume's root. What is changed after this is
    /// answered is told.
    ///
    /// # Errors
    /// Those of looking names up; `NotDirectory` if it is none, `AccessDenied` if `caller` may not
    /// list it.
    pub async fn watch(&self, caller: Caller, path: &[Name]) -> Result<Watching, Error> {
        let mut watching = Watching {
            vfs: self.clone(),
            caller,
            dir: self.node(ROOT_NODEID)?,
            known: Vec::new(),
            seen: self.session().watch(),
            sights: VecDeque::new(),
            version: None,
        };
        for name in path {
            let at = At { parent: watching.dir.nodeid, name: name.as_bytes().into() };
            let entry = self.lookup(&watching.caller, at).await?;
            watching.known.push(entry.nodeid);
            watching.dir = self.node(entry.nodeid)?;
        }
        watching.hold().await?;
        Ok(watching)
    }
}

impl Watching {
    /// What is next. Cancel-safe.
    pub async fn next(&mut self) -> Sight {
        loop {
            if let Some(sight) = self.sights.pop_front() {
                return sight;
            }
            match self.seen.recv().await {
                Ok(Seen::Change(change)) if change.dir == self.dir.fid => self.take(&change),
                Ok(Seen::Change(_)) => continue,
                Ok(Seen::Ended(dir)) if dir != self.dir.fid => continue,
                Ok(Seen::Ended(_)) => {}
                Ok(Seen::Lost) | Err(RecvError::Lagged(_)) => self.version = None,
                // The session is over, and soon the watcher.
                Err(RecvError::Closed) => std::future::pending().await,
            }
            self.go_on().await;
        }
    }

    fn take(&mut self, change: &DirChange) {
        let Some(attr) = &change.attr else {
            self.sights.push_back(if change.is_cut { Sight::Missed } else { Sight::Gone });
            return;
        };
        self.version = Some(attr.dir_version);
        for (name, attr) in &change.names {
            self.sights.push_back(match attr {
                Some(attr) => Sight::Changed(name.clone(), Box::new(attr.clone())),
                None => Sight::Removed(name.clone()),
            });
        }
        if change.is_cut {
            self.sights.push_back(Sight::Missed);
        }
    }

    /// Sees to it that the next change is told.
    async fn go_on(&mut self) {
        if self.sights.contains(&Sight::Gone) {
            return;
        }
        let before = self.version;
        match self.hold().await {
            Ok(()) if self.version == before => {}
            Err(Error::Fs(FsError::NotFound | FsError::Stale)) => {
                self.sights.push_back(Sight::Gone);
            }
            Ok(()) | Err(_) => self.sights.push_back(Sight::Missed),
        }
    }

    /// Has the directory promised, and counts as somebody who uses it.
    async fn hold(&mut self) -> Result<(), Error> {
        loop {
            let renewal = self.vfs.promises().renewal();
            tokio::pin!(renewal);
            // From here on no renewal is missed.
            renewal.as_mut().enable();
            self.list().await?;
            if let Some((attr, _)) = self.vfs.known_attr(&self.dir) {
                self.version = Some(attr.dir_version);
                return Ok(());
            }
            renewal.await;
        }
    }

    async fn list(&self) -> Result<(), Error> {
        self.vfs.getattr(&self.caller, self.dir.nodeid, None).await?;
        let handle = self.vfs.opendir(self.dir.nodeid)?;
        let mut cookie = 0;
        let listed = loop {
            let before = cookie;
            let sink = |listed: super::Listed<'_>| {
                cookie = listed.cookie;
                true
            };
            match self.vfs.readdir(&self.caller, handle, before, sink).await {
                Ok(()) if cookie == before => break Ok(()),
                Ok(()) => {}
                Err(error) => break Err(error),
            }
        };
        self.vfs.releasedir(handle)?;
        listed
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.known.iter().for_each(|nodeid| self.vfs.forget(*nodeid, 1));
    }
}
