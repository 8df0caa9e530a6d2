//! `dfs edit`: a file in the user's editor.
//!
//! A path inside a mount is edited where it is. For a url the file comes to a private directory,
//! and goes back if it was changed there: in one commit, and only on top of the version that was
//! edited. Whatever fails then, the local copy is kept and named.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};

use super::get;
use super::put;
use super::target;
use super::volume::{Links, Slot, Volume, Volumes, check_is_file};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context, Failure};
use crate::cli::mounts;
use crate::cli::output::Output;
use crate::config::FileUrl;

/// Where users say which editor they like, the first that is set counts. Source: environ(7).
const EDITOR_VARIABLES: [&str; 2] = ["VISUAL", "EDITOR"];

/// The editor that POSIX systems have.
const EDITOR_DEFAULT: &str = "vi";

/// # Errors
/// A [`Failure`] if the file cannot be read, edited or stored.
pub async fn edit(
    path: &OsString,
    volumes: &mut Volumes,
    output: &mut Output,
) -> Result<(), Failure> {
    let url = target::resolve(path, &mounts::table()?)?;
    if !target::is_url(path) {
        return run_editor(Path::new(path)).await;
    }
    let volume = volumes.of(&url.volume).await?;
    let edited = Edited::begin(volume, &url, output).await?;
    let before = Stamp::of(&edited.path);
    let outcome = run_editor(&edited.path).await;
    if before.is_some() && Stamp::of(&edited.path) == before {
        edited.discard();
        output.note(&format!("{url} was not changed"));
        return outcome;
    }
    let stored = match outcome {
        Ok(()) => edited.store(volume).await,
        failed => failed,
    };
    match stored {
        Ok(()) => {
            edited.discard();
            Ok(())
        }
        Err(failure) => {
            let remedy = format!("your text is in {}", edited.path.display());
            Err(failure.remedy(remedy))
        }
    }
}

/// A file on its way through an editor.
struct Edited {
    slot: Slot,
    /// What was edited; `None` if the name was free.
    base: Option<Attr>,
    dir: PathBuf,
    path: PathBuf,
}

impl Edited {
    async fn begin(volume: &Volume, url: &FileUrl, output: &mut Output) -> Result<Edited, Failure> {
        let what = || format!("cannot edit {url}");
        let base = match volume.find(&url.path, Links::Followed).await {
            Ok(found) => Some(found.attr),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(Failure::fs(what(), error)),
        };
        if let Some(attr) = &base {
            check_is_file(attr).about(what)?;
        }
        let slot = volume.slot(&url.path).await.about(what)?;
        // Before the editor runs: a name that cannot be made is no surprise after an hour of work.
        let parent = volume.attributes(slot.parent).await.about(what)?;
        if parent.kind != FileKind::Directory {
            return Err(Failure::fs(what(), FsError::NotDirectory));
        }
        let dir = private_dir().about(what)?;
        let path = dir.join(slot.name.as_os_str());
        let edited = Edited { slot, base, dir, path };
        if let Some(attr) = &edited.base
            && let Err(failure) = get::copy_one(volume, attr, &edited.path, output).await
        {
            edited.discard();
            return Err(failure);
        }
        Ok(edited)
    }

    async fn store(&self, volume: &Volume) -> Result<(), Failure> {
        if !self.path.exists() {
            let what = format!("cannot store {}", self.path.display());
            return Err(Failure::failed(what, "the editor left no file of that name"));
        }
        put::store_one(volume, &self.path, &self.slot, self.base.as_ref()).await
    }

    fn discard(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a private directory stays");
        }
    }
}

fn private_dir() -> std::io::Result<PathBuf> {
    let number = getrandom::u64().map_err(std::io::Error::other)?;
    let dir = std::env::temp_dir().join(format!("dfs-edit-{number:016x}"));
    DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

/// Tells whether a file was written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if there is no file.
    fn of(path: &Path) -> Option<Stamp> {
        let found = fs::metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Stamp { inode: found.ino(), size: found.size(), changed })
    }
}

fn editor() -> OsString {
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    EDITOR_VARIABLES.into_iter().find_map(set).unwrap_or_else(|| EDITOR_DEFAULT.into())
}

/// Runs the editor as other programs do: what the variable says may have arguments of its own.
async fn run_editor(path: &Path) -> Result<(), Failure> {
    let editor = editor();
    let name = editor.to_string_lossy().into_owned();
    let what = || format!("cannot run the editor {name}");
    let mut script = editor;
    script.push(" \"$@\"");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg("dfs edit").arg(path);
    let ended = tokio::task::spawn_blocking(move || shell.status()).await;
    let status: ExitStatus = ended.map_err(std::io::Error::other).about(what)?.about(what)?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Failed, what(), format!("it ended with {status}"))),
    }
}
