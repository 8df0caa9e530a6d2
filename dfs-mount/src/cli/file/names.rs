//! `dfs mkdir`, `rm`, `mv`: names, whatever they name.
//!
//! They mean what their namesakes mean in the plain cases: each path is tried, and the command
//! fails if one of them did. A link that is the last name of a source is itself removed or moved;
//! below a directory no link is followed at all.

use std::ffi::OsString;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::directory::{MakeDir, RemoveDir, Rename, RenameRule, Unlink};
use dfs_proto::id::FileId;
use nix::sys::stat::{Mode, umask};

use super::target;
use super::volume::{Links, Slot, Volume, Volumes};
use crate::cli::failure::{Context, Failure};
use crate::cli::mounts;
use crate::cli::output::Output;
use crate::cli::{MkdirArgs, RmArgs};
use crate::config::FileUrl;

/// What the makers of directories on the way to one may do with them. Source: mkdir(1p), -p.
const PARENT_MODE: u32 = 0o300;

/// Tries `work` with each of `paths`; all failures are shown, the last by the caller.
async fn each(
    paths: &[OsString],
    output: &mut Output,
    mut work: impl AsyncFnMut(FileUrl) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let table = mounts::table()?;
    let mut last = Ok(());
    for path in paths {
        let done = match target::resolve_entry(path, &table) {
            Ok(url) => work(url).await,
            Err(failure) => Err(failure),
        };
        if let (Err(earlier), true) = (&last, done.is_err()) {
            output.fail(earlier);
        }
        if done.is_err() {
            last = done;
        }
    }
    last
}

/// # Errors
/// A [`Failure`] if a directory could not be made; the others are.
pub async fn mkdir(
    arguments: &MkdirArgs,
    volumes: &mut Volumes,
    output: &mut Output,
) -> Result<(), Failure> {
    let mode = 0o777 & !own_umask();
    each(&arguments.paths, output, async |url| {
        let what = || format!("cannot make directory {url}");
        let volume = volumes.of(&url.volume).await?;
        match arguments.parents {
            true => make_with_parents(volume, &url, mode).await.about(what),
            false => make(volume, &url, url.path.len(), mode).await.about(what),
        }
    })
    .await
}

/// Which permissions this process takes away from what it makes.
fn own_umask() -> u32 {
    let own = umask(Mode::empty());
    umask(own);
    own.bits()
}

/// Makes the directory that the first `depth` names of `url` lead to.
async fn make(volume: &Volume, url: &FileUrl, depth: usize, mode: u32) -> Result<(), FsError> {
    if depth == 0 {
        return Err(FsError::Exists);
    }
    let Slot { parent, name } = volume.slot(&url.path[..depth]).await?;
    volume.call(&MakeDir { parent, name, mode }).await.map(drop)
}

/// Makes what is missing on the way, and is content with what is there.
async fn make_with_parents(volume: &Volume, url: &FileUrl, mode: u32) -> Result<(), FsError> {
    for depth in 1..=url.path.len() {
        let is_last = depth == url.path.len();
        let mode = if is_last { mode } else { mode | PARENT_MODE };
        let find = || volume.find(&url.path[..depth], Links::Followed);
        let found = match find().await {
            Err(FsError::NotFound) => match make(volume, url, depth, mode).await {
                // Somebody else made it meanwhile; or it is a link to nowhere.
                Err(FsError::Exists) => find().await.map_err(|_| FsError::Exists)?,
                Err(error) => return Err(error),
                Ok(()) => continue,
            },
            found => found?,
        };
        match (found.attr.kind, is_last) {
            (FileKind::Directory, _) => {}
            (_, true) => return Err(FsError::Exists),
            (_, false) => return Err(FsError::NotDirectory),
        }
    }
    Ok(())
}

/// # Errors
/// A [`Failure`] if something could not be removed; the rest is.
pub async fn rm(
    arguments: &RmArgs,
    volumes: &mut Volumes,
    output: &mut Output,
) -> Result<(), Failure> {
    each(&arguments.paths, output, async |url| {
        let volume = volumes.of(&url.volume).await?;
        let removed = remove(volume, &url, arguments.recursive).await;
        let Err((path, error)) = removed else {
            return Ok(());
        };
        let is_missing = matches!(error, FsError::NotFound | FsError::NotDirectory);
        if arguments.force && is_missing {
            return Ok(());
        }
        let needs_flag = error == FsError::IsDirectory && !arguments.recursive;
        let failure = Failure::fs(format!("cannot remove {path}"), error);
        match needs_flag {
            true => Err(failure.remedy("remove it with all it holds: -r")),
            false => Err(failure),
        }
    })
    .await
}

/// What could not be removed, and why.
type Stuck = (String, FsError);

async fn remove(volume: &Volume, url: &FileUrl, recursive: bool) -> Result<(), Stuck> {
    let stuck = |error| (url.to_string(), error);
    let slot = volume.slot(&url.path).await.map_err(stuck)?;
    match unlink(volume, &slot).await {
        Err(FsError::IsDirectory) if recursive => {}
        removed => return removed.map_err(stuck),
    }
    let found = volume.look_up(&slot).await.map_err(stuck)?;
    remove_tree(volume, Tree { slot, fid: found.fid, path: url.to_string() }).await
}

async fn unlink(volume: &Volume, slot: &Slot) -> Result<(), FsError> {
    let request = Unlink { parent: slot.parent, name: slot.name.clone() };
    volume.call(&request).await.map(drop)
}

/// A directory that is to go with all it holds.
struct Tree {
    slot: Slot,
    fid: FileId,
    path: String,
}

/// What is left to do of a tree.
enum Step {
    Empty(Tree),
    Remove(Tree),
}

/// Removes a tree from its leaves up, by ids: whatever is renamed meanwhile, nothing outside of the
/// directories that were found is touched. What is gone already is no error.
async fn remove_tree(volume: &Volume, tree: Tree) -> Result<(), Stuck> {
    let mut steps = vec![Step::Empty(tree)];
    while let Some(step) = steps.pop() {
        match step {
            Step::Remove(Tree { slot, path, .. }) => {
                let request = RemoveDir { parent: slot.parent, name: slot.name };
                gone(volume.call(&request).await.map(drop)).map_err(|error| (path, error))?;
            }
            Step::Empty(tree) => {
                let below = empty(volume, &tree).await?;
                steps.push(Step::Remove(tree));
                steps.extend(below.into_iter().map(Step::Empty));
            }
        }
    }
    Ok(())
}

/// Removes what a directory holds but the directories, which are its answer.
async fn empty(volume: &Volume, tree: &Tree) -> Result<Vec<Tree>, Stuck> {
    let entries = match volume.entries(tree.fid).await {
        Ok(entries) => entries,
        Err(FsError::Stale) => Vec::new(),
        Err(error) => return Err((tree.path.clone(), error)),
    };
    let mut below = Vec::new();
    for entry in entries {
        let path = format!("{}/{}", tree.path, entry.name);
        let slot = Slot { parent: tree.fid, name: entry.name };
        if entry.attr.kind == FileKind::Directory {
            below.push(Tree { slot, fid: entry.attr.fid, path });
            continue;
        }
        gone(unlink(volume, &slot).await).map_err(|error| (path, error))?;
    }
    Ok(below)
}

fn gone(removed: Result<(), FsError>) -> Result<(), FsError> {
    match removed {
        Err(FsError::NotFound | FsError::Stale) => Ok(()),
        removed => removed,
    }
}

/// # Errors
/// A [`Failure`] if a source could not be moved; the others are.
pub async fn mv(
    sources: &[OsString],
    destination: &FileUrl,
    volumes: &mut Volumes,
    output: &mut Output,
) -> Result<(), Failure> {
    let volume = volumes.of(&destination.volume).await?;
    let inside = directory(volume, destination).await?;
    if sources.len() > 1 && inside.is_none() {
        let what = format!("cannot move to {destination}");
        return Err(Failure::usage(what, "several sources need a directory to go to"));
    }
    each(sources, output, async |source| {
        let what = || format!("cannot move {source} to {destination}");
        if source.volume != destination.volume {
            return Err(Failure::fs(what(), FsError::CrossVolume)
                .remedy("copy it with dfs get and dfs put, then remove it with dfs rm"));
        }
        let from = volume.slot(&source.path).await.about(what)?;
        let to = match inside {
            Some(parent) => Slot { parent, name: from.name.clone() },
            None => volume.slot(&destination.path).await.about(what)?,
        };
        move_name(volume, from, to).await.about(what)
    })
    .await
}

/// The directory that a path leads to; `None` if it leads to anything else or to nothing.
async fn directory(volume: &Volume, url: &FileUrl) -> Result<Option<FileId>, Failure> {
    match volume.find(&url.path, Links::Followed).await {
        Ok(found) if found.attr.kind == FileKind::Directory => Ok(Some(found.attr.fid)),
        Ok(_) | Err(FsError::NotFound) => Ok(None),
        Err(error) => Err(Failure::fs(format!("cannot move to {url}"), error)),
    }
}

async fn move_name(volume: &Volume, from: Slot, to: Slot) -> Result<(), FsError> {
    if from == to {
        return Err(FsError::invalid("a name moved to itself"));
    }
    if is_one_file(volume, &from, &to).await? {
        // rename(2) leaves both names of one file as they are; mv(1) takes the first away.
        return unlink(volume, &from).await;
    }
    let request = Rename {
        from_parent: from.parent,
        from_name: from.name,
        to_parent: to.parent,
        to_name: to.name,
        rule: RenameRule::Replace,
    };
    volume.call(&request).await.map(drop)
}

async fn is_one_file(volume: &Volume, from: &Slot, to: &Slot) -> Result<bool, FsError> {
    let moved: Attr = volume.look_up(from).await?;
    match volume.look_up(to).await {
        Ok(target) => Ok(target.fid == moved.fid),
        Err(FsError::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}
