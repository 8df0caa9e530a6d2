//! A volume without a mount: paths walked by lookups, links followed inside the volume only.

use std::collections::VecDeque;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::credential::Identity;
use dfs_proto::directory::{GetAttr, Lookup, Open, OpenAccess, OpenReply, ReadDir, ReadLink};
use dfs_proto::dirent::DirEntry;
use dfs_proto::id::FileId;
use dfs_proto::limits::DIR_PAGE_ENTRIES_MAX;
use dfs_proto::lock::Recall;
use dfs_proto::name::Name;
use dfs_proto::rpc::Rpc;
use tokio::sync::mpsc;

use crate::cli::cell;
use crate::cli::failure::{Context, Failure};
use crate::config::VolumeUrl;
use crate::session::Session;

/// Most symbolic links on the way to one file. Source: path_resolution(7).
const LINKS_FOLLOWED_MAX: usize = 40;

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
    /// A command gives each lock back as soon as it can, recalled or not.
    _recalls: mpsc::Receiver<Recall>,
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
        let (session, recalls) = opened.about(|| format!("cannot open {url}"))?;
        let caller = cell::own_identity();
        Ok(Volume { url: url.clone(), session, caller, _recalls: recalls })
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

/// A walk along a path: decides, and leaves the asking to its caller.
#[derive(Debug)]
struct Walk {
    /// The directories from the root to here, then, at the end, what was found.
    trail: Vec<Attr>,
    rest: VecDeque<Part>,
    links_followed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Name(Name),
    Up,
}

/// The next lookup.
#[derive(Clone, Debug)]
struct Step {
    dir: FileId,
    name: Name,
}

impl Walk {
    fn new(root: Attr, path: &[Name]) -> Walk {
        let rest = path.iter().cloned().map(Part::Name).collect();
        Walk { trail: vec![root], rest, links_followed: 0 }
    }

    fn here(&self) -> &Attr {
        self.trail.last().expect("a walk begins at the root")
    }

    fn next_step(&mut self) -> Result<Option<Step>, FsError> {
        loop {
            match self.rest.pop_front() {
                None => return Ok(None),
                Some(_) if self.here().kind != FileKind::Directory => {
                    return Err(FsError::NotDirectory);
                }
                Some(Part::Up) if self.trail.len() == 1 => {
                    return Err(FsError::invalid("a path that leads out of the volume"));
                }
                Some(Part::Up) => drop(self.trail.pop()),
                Some(Part::Name(name)) => {
                    return Ok(Some(Step { dir: self.here().fid, name }));
                }
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn enter(&mut self, attr: Attr) {
        self.trail.push(attr);
    }

    /// Puts a link's target before the rest of the path.
    fn follow(&mut self, link: &Name, target: &[u8]) -> Result<(), FsError> {
        self.links_followed += 1;
        if self.links_followed > LINKS_FOLLOWED_MAX {
            return Err(FsError::invalid(format!(
                "a chain of more than {LINKS_FOLLOWED_MAX} links"
            )));
        }
        if target.first() == Some(&b'/') {
            return Err(FsError::invalid(format!("link `{link}`, which leads out of the volume,")));
        }
        let parts = target.split(|byte| *byte == b'/');
        for part in parts.rev().filter(|part| !matches!(*part, b"" | b".")) {
            let part = match part {
                b".." => Part::Up,
                name => Part::Name(Name::parse(name).map_err(|error| {
                    FsError::invalid(format!("target of link `{link}` ({error})"))
                })?),
            };
            self.rest.push_front(part);
        }
        Ok(())
    }

    fn into_end(mut self) -> Attr {
        self.trail.pop().expect("a walk begins at the root")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::tests::attr;

    fn names(path: &str) -> Vec<Name> {
        path.split('/').map(|part| Name::parse(part.as_bytes()).unwrap()).collect()
    }

    /// Walks as a volume does, where each name is a directory, `file` is a file, and `links` says
    /// which names are links; gives the names looked up.
    fn walk(path: &str, links: &[(&str, &str)]) -> Result<Vec<String>, FsError> {
        let mut seen = Vec::new();
        let mut walk = Walk::new(attr(FileKind::Directory, 0o755), &names(path));
        while let Some(step) = walk.next_step()? {
            let name = step.name.to_string();
            let link = links.iter().find(|(link, _)| *link == name);
            seen.push(name.clone());
            match link {
                Some((_, target)) => walk.follow(&step.name, target.as_bytes())?,
                None if name == "file" => walk.enter(attr(FileKind::File, 0o644)),
                None => walk.enter(attr(FileKind::Directory, 0o755)),
            }
        }
        Ok(seen)
    }

    #[test]
    fn links_are_followed_inside_the_volume() {
        assert_eq!(walk("a/b", &[]).unwrap(), ["a", "b"]);
        assert_eq!(walk("a/l/x", &[("l", "b//./c")]).unwrap(), ["a", "l", "b", "c", "x"]);
        assert_eq!(walk("a/l/x", &[("l", "../c")]).unwrap(), ["a", "l", "c", "x"]);
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        for target in ["/etc/passwd", "/", "..", "../..", "b/../../.."] {
            let error = walk("l", &[("l", target)]).unwrap_err();
            assert!(matches!(error, FsError::InvalidArgument { .. }), "{target}: {error}");
        }
    }

    #[test]
    fn a_circle_of_links_ends() {
        let error = walk("a", &[("a", "b"), ("b", "a")]).unwrap_err();
        assert!(error.to_string().contains("more than 40 links"), "{error}");
    }

    #[test]
    fn nothing_is_below_a_file() {
        assert_eq!(walk("file/x", &[]).unwrap_err(), FsError::NotDirectory);
        assert_eq!(walk("l", &[("l", "file/..")]).unwrap_err(), FsError::NotDirectory);
    }

    #[test]
    fn a_target_with_an_impossible_name_is_refused() {
        assert!(walk("l", &[("l", "a\0b")]).is_err());
        assert!(walk("l", &[("l", &"x".repeat(256))]).is_err());
    }
}
