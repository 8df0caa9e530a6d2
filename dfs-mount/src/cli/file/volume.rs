//! A volume without a mount: paths walked by lookups, links followed inside the volume only.

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{GetAttr, Lookup, Open, OpenAccess, OpenReply, ReadDir, ReadLink};
use dfs_proto::dirent::DirEntry;
use dfs_proto::id::FileId;
use dfs_proto::limits::DIR_PAGE_ENTRIES_MAX;
use dfs_proto::name::Name;
use dfs_proto::path::Walk;
use dfs_proto::rpc::Rpc;

use crate::cli::cell;
use crate::cli::failure::{Context, Failure};
use crate::config::VolumeUrl;
use crate::session::Session;

/// Whether the last name of a path, if it is a link, stands for what it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Followed,
    Kept,
}

/// The volumes a command works with, each opened once.
#[derive(Debug, Default)]
pub struct Volumes {
    open: Vec<Volume>,
}

impl Volumes {
    /// # Errors
    /// A [`Failure`] if there is no login, no such volume, or no answer.
    pub async fn of(&mut self, url: &VolumeUrl) -> Result<&Volume, Failure> {
        let known = self.open.iter().position(|volume| volume.url == *url);
        let index = match known {
            Some(index) => index,
            None => {
                self.open.push(Volume::open(url).await?);
                self.open.len() - 1
            }
        };
        Ok(&self.open[index])
    }

    /// Ends the sessions, so that their locks go at once.
    pub async fn close(self) {
        for volume in self.open {
            volume.session.close().await;
        }
    }
}

/// One volume, through a session of this command.
#[derive(Debug)]
pub struct Volume {
    url: VolumeUrl,
    session: Session,
    caller: Identity,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub parent: FileId,
    pub name: Name,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub struct Found {
    pub attr: Attr,
}

impl Volume {
    async fn open(url: &VolumeUrl) -> Result<Volume, Failure> {
        let connection = cell::connect(&cell::credential(Some(&url.cell))?)?;
        let host = cell::host_name();
        let opened = Session::open(connection, &url.volume, &host).await;
        let session = opened.about(|| format!("cannot open {url}"))?;
        let caller = cell::own_identity();
        Ok(Volume { url: url.clone(), session, caller })
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn caller(&self) -> &Identity {
        &self.caller
    }

    /// Asks the directory server.
    ///
    /// # Errors
    /// The operation's.
    pub async fn call<R: Rpc>(&self, request: &R) -> Result<R::Reply, FsError> {
        self.session.call(Role::Directory, Some(&self.caller), request).await
    }

    /// Walks a path from the root.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `AccessDenied`; `Loop` for too many links, `InvalidArgument` for
    /// a link that leads out of the volume.
    pub async fn find(&self, path: &[Name], last: Links) -> Result<Found, FsError> {
        let mut walk = Walk::new(self.session.root(), path);
        while let Some(step) = walk.next_step()? {
            let attr = self.call(&Lookup { parent: step.dir, name: step.name.clone() }).await?.attr;
            let is_last = walk.is_at_end();
            if attr.kind == FileKind::Symlink && (!is_last || last == Links::Followed) {
                let target = self.call(&ReadLink { fid: attr.fid }).await?;
                walk.follow(&step.name, &target)?;
                continue;
            }
            walk.enter(attr);
        }
        Ok(Found { attr: walk.into_end() })
    }

    /// Where the last name of a path is, whether it exists or not; links above it are followed.
    ///
    /// # Errors
    /// As [`Volume::find`]; `InvalidArgument` for the root.
    pub async fn slot(&self, path: &[Name]) -> Result<Slot, FsError> {
        let Some((name, parents)) = path.split_last() else {
            return Err(FsError::invalid("the root of a volume as the name to change"));
        };
        let dir = self.find(parents, Links::Followed).await?.attr;
        match dir.kind {
            FileKind::Directory => Ok(Slot { parent: dir.fid, name: name.clone() }),
            _ => Err(FsError::NotDirectory),
        }
    }

    /// What a name names, link or not.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `AccessDenied`, `Stale`.
    pub async fn look_up(&self, slot: &Slot) -> Result<Attr, FsError> {
        let request = Lookup { parent: slot.parent, name: slot.name.clone() };
        Ok(self.call(&request).await?.attr)
    }

    /// # Errors
    /// `Stale`.
    pub async fn attributes(&self, fid: FileId) -> Result<Attr, FsError> {
        Ok(self.call(&GetAttr { fid }).await?.attr)
    }

    /// All entries of a directory, by name.
    ///
    /// # Errors
    /// `NotDirectory`, `AccessDenied`, `Stale`.
    pub async fn entries(&self, fid: FileId) -> Result<Vec<DirEntry>, FsError> {
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.name.clone());
            let request = ReadDir { fid, after: after.clone(), limit: DIR_PAGE_ENTRIES_MAX };
            let page = self.call(&request).await?.page;
            let goes_on =
                page.entries.last().is_some_and(|entry| Some(&entry.name) > after.as_ref());
            entries.extend(page.entries);
            if page.is_last {
                return Ok(entries);
            }
            // A server whose pages do not advance would be asked for ever.
            if !goes_on {
                return Err(FsError::malformed("directory page does not advance"));
            }
        }
    }

    /// # Errors
    /// `IsDirectory`, `AccessDenied`, `Stale`; `InvalidArgument` for what has no content.
    pub async fn open_to_read(&self, attr: &Attr) -> Result<OpenReply, FsError> {
        check_is_file(attr)?;
        self.call(&Open { fid: attr.fid, access: OpenAccess::Read, have: None }).await
    }
}

/// # Errors
/// `IsDirectory`; `InvalidArgument` for anything else without content.
pub fn check_is_file(attr: &Attr) -> Result<(), FsError> {
    match attr.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(FsError::IsDirectory),
        FileKind::Symlink
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => Err(FsError::invalid("a file without content")),
    }
}
