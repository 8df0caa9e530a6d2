//! `dfs put`: from here into a volume.
//!
//! A file that exists is refused unless `--overwrite` says otherwise; replacing it is one commit,
//! so readers see the old content or the new. A new file whose content could not be stored is
//! removed again.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::directory::{
    CommitAttr, Create, Durability, LockWait, MakeDir, MakeSymlink, Open, OpenAccess, OpenReply,
    Unlink, Yield,
};
use dfs_proto::id::FileId;
use dfs_proto::name::Name;
use nix::fcntl::OFlag;

use super::local;
use super::target;
use super::volume::{Links, Slot, Volume, Volumes, check_is_file};
use crate::cli::CopyArgs;
use crate::cli::failure::{Context, Failure};
use crate::cli::output::Output;
use crate::config::{FileUrl, LOCK_TIMEOUT_DEFAULT};
use crate::metrics::Counter;
use crate::writeback::{SendFile, send_file};

/// What is to be copied into a volume.
#[derive(Debug)]
pub struct Put<'a> {
    pub sources: &'a [OsString],
    pub destination: FileUrl,
    pub arguments: &'a CopyArgs,
}

impl Put<'_> {
    /// # Errors
    /// A [`Failure`] for the first file that cannot be copied; those before it are stored.
    pub async fn run(&self, volumes: &mut Volumes, output: &mut Output) -> Result<(), Failure> {
        let sources = self.checked_sources()?;
        let volume = volumes.of(&self.destination.volume).await?;
        let place = self.place(volume).await?;
        if sources.len() > 1 && place.is_new() {
            let what = format!("cannot copy to {}", self.destination);
            return Err(Failure::usage(what, "several files need a directory to go to"));
        }
        for source in sources {
            let slot = place.slot(source)?;
            let mut tree = Tree { volume, is_overwriting: self.arguments.overwrite };
            tree.copy(source.to_owned(), slot, output).await?;
        }
        Ok(())
    }

    fn checked_sources(&self) -> Result<Vec<&Path>, Failure> {
        let check = |source: &OsString| match target::is_url(source) {
            true => {
                let what = format!("cannot copy {}", source.to_string_lossy());
                Err(Failure::usage(what, "put copies from here").remedy("dfs get"))
            }
            false => Ok(()),
        };
        self.sources.iter().try_for_each(check)?;
        let paths: Vec<&Path> = self.sources.iter().map(Path::new).collect();
        for path in &paths {
            let is_directory = fs::metadata(path).about(|| reading(path))?.is_dir();
            if is_directory && !self.arguments.recursive {
                let failure = Failure::usage(reading(path), "it is a directory");
                return Err(failure.remedy("copy it with all it holds: -r"));
            }
        }
        Ok(paths)
    }

    async fn place(&self, volume: &Volume) -> Result<Place, Failure> {
        let what = || format!("cannot copy to {}", self.destination);
        let path = &self.destination.path;
        match volume.find(path, Links::Followed).await {
            Ok(found) if found.attr.kind == FileKind::Directory => {
                return Ok(Place::Inside { dir: found.attr.fid });
            }
            Ok(_) | Err(FsError::NotFound) => {}
            Err(error) => return Err(Failure::fs(what(), error)),
        }
        Ok(Place::Named(volume.slot(path).await.about(what)?))
    }
}

/// Where sources go.
#[derive(Clone, Debug)]
enum Place {
    /// Into a directory, under their own names.
    Inside { dir: FileId },
    /// Under this name.
    Named(Slot),
}

impl Place {
    fn is_new(&self) -> bool {
        matches!(self, Place::Named(_))
    }

    fn slot(&self, source: &Path) -> Result<Slot, Failure> {
        let dir = match self {
            Place::Named(slot) => return Ok(slot.clone()),
            Place::Inside { dir } => *dir,
        };
        let cannot = |cause: String| Failure::usage(reading(source), cause);
        let name = match local::last_name(source) {
            Some(name) => name.to_vec(),
            // `.` and `..` and what ends in them: what is it really called?
            None => {
                let real = source.canonicalize().about(|| reading(source))?;
                local::last_name(&real).ok_or_else(|| cannot("it has no name".into()))?.to_vec()
            }
        };
        let name = Name::parse(&name).map_err(|error| cannot(error.to_string()))?;
        Ok(Slot { parent: dir, name })
    }
}

/// One source, a file or a tree, on its way.
struct Tree<'a> {
    volume: &'a Volume,
    is_overwriting: bool,
}

impl Tree<'_> {
    async fn copy(&mut self, from: PathBuf, to: Slot, output: &mut Output) -> Result<(), Failure> {
        // The source itself may be a link to what is meant; links below it are copied as links.
        let first = fs::metadata(&from).about(|| reading(&from))?;
        let mut waiting = vec![(from, to, first)];
        while let Some((from, to, found)) = waiting.pop() {
            let kind = found.file_type();
            if kind.is_dir() {
                let dir = self.make_directory(&from, &to, &found).await?;
                waiting.extend(children(&from, dir)?);
            } else if kind.is_file() {
                self.copy_file(&from, &to, output).await?;
            } else if kind.is_symlink() {
                self.copy_link(&from, &to).await?;
            } else {
                output.note(&format!("left out {}: it has no content", from.display()));
            }
        }
        Ok(())
    }

    async fn make_directory(
        &self,
        from: &Path,
        to: &Slot,
        found: &Metadata,
    ) -> Result<FileId, Failure> {
        let mode = found.permissions().mode() & 0o777;
        let request = MakeDir { parent: to.parent, name: to.name.clone(), mode };
        match self.volume.call(&request).await {
            Ok(made) => Ok(made.attr.fid),
            Err(FsError::Exists) if self.is_overwriting => {
                let attr = self.volume.look_up(to).await.about(|| writing(from))?;
                match attr.kind {
                    FileKind::Directory => Ok(attr.fid),
                    _ => Err(Failure::fs(writing(from), FsError::NotDirectory)),
                }
            }
            Err(error) => Err(refused(from, error)),
        }
    }

    async fn copy_link(&self, from: &Path, to: &Slot) -> Result<(), Failure> {
        let target = fs::read_link(from).about(|| reading(from))?;
        let target = target.as_os_str().as_bytes().to_vec();
        let request = MakeSymlink { parent: to.parent, name: to.name.clone(), target };
        if self.is_overwriting {
            let old = Unlink { parent: to.parent, name: to.name.clone() };
            match self.volume.call(&old).await {
                Ok(_) | Err(FsError::NotFound) => {}
                Err(error) => return Err(refused(from, error)),
            }
        }
        self.volume.call(&request).await.map_err(|error| refused(from, error))?;
        Ok(())
    }

    async fn copy_file(&self, from: &Path, to: &Slot, output: &mut Output) -> Result<(), Failure> {
        // O_NONBLOCK: a fifo that took the file's place must not stop us.
        let mut options = fs::OpenOptions::new();
        let source = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(from);
        let source = source.about(|| reading(from))?;
        let found = source.metadata().about(|| reading(from))?;
        if !found.is_file() {
            return Err(Failure::failed(reading(from), "it is no file any more"));
        }
        let (opened, is_new) = self.open(to, &found).await.map_err(|error| refused(from, error))?;
        let name = from.display().to_string();
        let metrics = self.volume.session().metrics();
        let before = metrics.value(Counter::StoredBytes);
        let sent = || metrics.value(Counter::StoredBytes) - before;
        let store = self.store(source, &found, &opened);
        let stored = output.advance_while(&name, found.len(), sent, store).await;
        self.end(to, &opened, is_new && stored.is_err()).await;
        stored.about(|| writing(from))
    }

    /// Gives the lock back, and takes a new file back whose content did not come.
    async fn end(&self, to: &Slot, opened: &OpenReply, is_void: bool) {
        if let Some(grant) = &opened.write {
            let request = Yield { fid: opened.attr.fid, token: grant.token };
            if let Err(error) = self.volume.call(&request).await {
                tracing::debug!(%error, "the lock goes with the session");
            }
        }
        if is_void {
            self.remove(to, opened.attr.fid).await;
        }
    }

    /// Opens exactly the version that was edited.
    async fn open_version(&self, base: &Attr) -> Result<OpenReply, FsError> {
        let access = OpenAccess::Write { wait: lock_wait(), read: false };
        let open = Open { fid: base.fid, access, have: None };
        self.call_waiting(&open).await
    }

    /// Makes the file, or opens the one that may be replaced; says whether it is new.
    async fn open(&self, to: &Slot, found: &Metadata) -> Result<(OpenReply, bool), FsError> {
        let access = OpenAccess::Write { wait: lock_wait(), read: false };
        let create = Create {
            parent: to.parent,
            name: to.name.clone(),
            mode: found.permissions().mode() & 0o777,
            exclusive: true,
            access,
        };
        match self.call_waiting(&create).await {
            Ok(made) => return Ok((made.open, true)),
            Err(FsError::Exists) if self.is_overwriting => {}
            Err(error) => return Err(error),
        }
        let attr = self.volume.look_up(to).await?;
        check_is_file(&attr)?;
        let open = Open { fid: attr.fid, access, have: None };
        Ok((self.call_waiting(&open).await?, false))
    }

    async fn call_waiting<R: dfs_proto::rpc::Rpc>(&self, request: &R) -> Result<R::Reply, FsError> {
        let (session, caller) = (self.volume.session(), self.volume.caller());
        let to = dfs_proto::admin::Role::Directory;
        session.call_waiting(to, Some(caller), request, LOCK_TIMEOUT_DEFAULT).await
    }

    async fn store(
        &self,
        source: File,
        found: &Metadata,
        opened: &OpenReply,
    ) -> Result<(), FsError> {
        let base_manifest = opened.manifest.clone().unwrap_or_default().parse()?;
        let nanos = u32::try_from(found.mtime_nsec()).unwrap_or(0);
        let attr = CommitAttr {
            first: None,
            mtime: Timestamp::new(found.mtime(), nanos),
            atime: None,
            clear_set_id: true,
        };
        let send = SendFile {
            caller: Some(self.volume.caller()),
            source,
            opened,
            base_manifest,
            attr,
            durability: Durability::Stable,
        };
        send_file(self.volume.session(), send).await.map(drop)
    }

    /// Takes back a file whose content never came, if it is still that file.
    async fn remove(&self, slot: &Slot, made: FileId) {
        let still =
            self.volume.look_up(slot).await.is_ok_and(|attr| attr.fid == made && attr.size == 0);
        if !still {
            return;
        }
        let request = Unlink { parent: slot.parent, name: slot.name.clone() };
        if let Err(error) = self.volume.call(&request).await {
            tracing::warn!(%error, name = %slot.name, "an empty file is left behind");
        }
    }
}

/// Stores one local file on top of the version `base`, or under a name that is free.
///
/// # Errors
/// A [`Failure`] if it is not that version any more, or the content cannot be stored.
pub async fn store_one(
    volume: &Volume,
    from: &Path,
    to: &Slot,
    base: Option<&Attr>,
) -> Result<(), Failure> {
    let tree = Tree { volume, is_overwriting: false };
    let source = File::open(from).about(|| reading(from))?;
    let found = source.metadata().about(|| reading(from))?;
    let opened = match base {
        Some(base) => tree.open_version(base).await,
        None => tree.open(to, &found).await.map(|(opened, _)| opened),
    };
    let opened = opened.about(|| writing(from))?;
    let is_moved_on = base.is_some_and(|base| base.data_version != opened.attr.data_version);
    let stored = match is_moved_on {
        true => Err(Failure::failed(writing(from), "somebody else changed the file meanwhile")),
        false => tree.store(source, &found, &opened).await.about(|| writing(from)),
    };
    tree.end(to, &opened, base.is_none() && stored.is_err()).await;
    stored
}

/// What a local directory holds, with the places it goes to.
fn children(from: &Path, dir: FileId) -> Result<Vec<(PathBuf, Slot, Metadata)>, Failure> {
    let mut children = Vec::new();
    for entry in fs::read_dir(from).about(|| reading(from))? {
        let entry = entry.about(|| reading(from))?;
        let name = parse_name(&entry.file_name(), from)?;
        let path = entry.path();
        let found = entry.metadata().about(|| reading(&path))?;
        children.push((path, Slot { parent: dir, name }, found));
    }
    children.sort_by(|a, b| b.1.name.cmp(&a.1.name));
    Ok(children)
}

fn parse_name(name: &OsStr, from: &Path) -> Result<Name, Failure> {
    Name::parse(name.as_bytes()).map_err(|error| Failure::failed(reading(from), error))
}

fn lock_wait() -> LockWait {
    let wait: Duration = LOCK_TIMEOUT_DEFAULT;
    LockWait::UpTo(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX))
}

fn reading(from: &Path) -> String {
    format!("cannot copy {}", from.display())
}

fn writing(from: &Path) -> String {
    format!("cannot store {}", from.display())
}

fn refused(from: &Path, error: FsError) -> Failure {
    let exists = error == FsError::Exists;
    let failure = Failure::fs(writing(from), error);
    match exists {
        true => failure.remedy("replace it with --overwrite"),
        false => failure,
    }
}
