//! `dfs get`: from a volume to here.
//!
//! Names from the server are parsed (no `/`, no `..`), directories are made by us or checked not to
//! be links, links are made and never followed: nothing is written outside the destination.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::directory::ReadLink;
use futures_util::TryStreamExt;

use super::local::{self, Existing, Partial};
use super::target;
use super::volume::{Links, Volume, Volumes};
use crate::cli::CopyArgs;
use crate::cli::failure::{Context, Failure};
use crate::cli::output::Output;
use crate::config::FileUrl;
use crate::fetch::{Fetcher, Piece};

/// What is to be copied to here.
#[derive(Debug)]
pub struct Get {
    /// Each source and the path it gets here.
    copies: Vec<(FileUrl, PathBuf)>,
    is_recursive: bool,
    existing: Existing,
}

impl Get {
    /// # Errors
    /// A [`Failure`] if the destination is no local path, or several sources would get one name.
    pub fn new(
        sources: &[FileUrl],
        destination: &OsString,
        arguments: &CopyArgs,
    ) -> Result<Get, Failure> {
        if target::is_url(destination) {
            let what = format!("cannot copy to {}", destination.to_string_lossy());
            return Err(Failure::usage(what, "get copies to here").remedy("dfs put"));
        }
        let destination = Path::new(destination);
        let is_directory = destination.is_dir();
        if sources.len() > 1 && !is_directory {
            let what = format!("cannot copy to {}", destination.display());
            let cause = "several files need a directory to go to";
            return Err(Failure::usage(what, cause).remedy("mkdir it first"));
        }
        let place = |url: &FileUrl| match is_directory {
            true => destination.join(own_name(url)),
            false => destination.to_owned(),
        };
        Ok(Get {
            copies: sources.iter().map(|url| (url.clone(), place(url))).collect(),
            is_recursive: arguments.recursive,
            existing: existing(arguments),
        })
    }

    /// # Errors
    /// A [`Failure`] for the first file that cannot be copied; those before it are whole.
    pub async fn run(&self, volumes: &mut Volumes, output: &mut Output) -> Result<(), Failure> {
        for (url, path) in &self.copies {
            let volume = volumes.of(&url.volume).await?;
            let what = || format!("cannot copy {url}");
            let attr = volume.find(&url.path, Links::Followed).await.about(what)?.attr;
            if attr.kind == FileKind::Directory && !self.is_recursive {
                let failure = Failure::usage(what(), "it is a directory");
                return Err(failure.remedy("copy it with all it holds: -r"));
            }
            let mut tree = Tree { volume, existing: self.existing, modes: Vec::new() };
            tree.copy(attr, path.clone(), output).await?;
            tree.finish()?;
        }
        Ok(())
    }
}

/// Copies one file to a name that is free.
///
/// # Errors
/// A [`Failure`] if it cannot be read or written.
pub async fn copy_one(
    volume: &Volume,
    attr: &Attr,
    to: &Path,
    output: &mut Output,
) -> Result<(), Failure> {
    let tree = Tree { volume, existing: Existing::Refused, modes: Vec::new() };
    tree.copy_file(attr, to, output).await
}

pub fn existing(arguments: &CopyArgs) -> Existing {
    match arguments.overwrite {
        true => Existing::Replaced,
        false => Existing::Refused,
    }
}

/// What a source is called: a volume's root by its volume.
fn own_name(url: &FileUrl) -> &OsStr {
    match url.path.last() {
        Some(name) => name.as_os_str(),
        None => OsStr::new(&url.volume.volume),
    }
}

/// One source, a file or a tree, on its way.
struct Tree<'a> {
    volume: &'a Volume,
    existing: Existing,
    /// Modes that directories get when all is in them: until then we must be able to write.
    modes: Vec<(PathBuf, u32)>,
}

impl Tree<'_> {
    async fn copy(&mut self, attr: Attr, to: PathBuf, output: &mut Output) -> Result<(), Failure> {
        let mut waiting = vec![(attr, to)];
        while let Some((attr, to)) = waiting.pop() {
            match attr.kind {
                FileKind::Directory => {
                    local::make_directory(&to, self.existing)
                        .map_err(|error| not_written(&to, error))?;
                    let entries = self.volume.entries(attr.fid).await.about(|| reading(&to))?;
                    waiting.extend(
                        entries
                            .into_iter()
                            .rev()
                            .map(|entry| (entry.attr, to.join(entry.name.as_os_str()))),
                    );
                    self.modes.push((to, attr.mode));
                }
                FileKind::File => self.copy_file(&attr, &to, output).await?,
                FileKind::Symlink => self.copy_link(&attr, &to).await?,
                FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice => {
                    output.note(&format!("left out {}: it has no content", to.display()));
                }
            }
        }
        Ok(())
    }

    async fn copy_link(&self, attr: &Attr, to: &Path) -> Result<(), Failure> {
        let link = self.volume.call(&ReadLink { fid: attr.fid }).await.about(|| reading(to))?;
        let link = Path::new(OsStr::from_bytes(&link));
        local::make_link(to, link, self.existing).map_err(|error| not_written(to, error))
    }

    async fn copy_file(&self, attr: &Attr, to: &Path, output: &mut Output) -> Result<(), Failure> {
        let partial = Partial::begin(to, self.existing).map_err(|error| not_written(to, error))?;
        let opened = self.volume.open_to_read(attr).await.about(|| reading(to))?;
        let fetcher = Fetcher::new(self.volume.session().clone());
        let caller = Some(self.volume.caller());
        let mut pieces = fetcher.pieces(caller, &opened).about(|| reading(to))?;
        let whole = opened.attr.size;
        while let Some(piece) = pieces.try_next().await.about(|| reading(to))? {
            let Piece::Data { offset, bytes } = piece else { continue };
            partial.write_at(&bytes, offset).map_err(|error| not_written(to, error))?;
            output.advance(&to.display().to_string(), offset + bytes.len() as u64, whole);
        }
        let attr = &opened.attr;
        partial.finish(attr.size, attr.mode, attr.mtime).map_err(|error| not_written(to, error))
    }

    /// Sets modes from the innermost directory outwards.
    fn finish(self) -> Result<(), Failure> {
        for (path, mode) in self.modes.into_iter().rev() {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o777))
                .map_err(|error| not_written(&path, error))?;
        }
        Ok(())
    }
}

fn reading(to: &Path) -> String {
    format!("cannot read what goes to {}", to.display())
}

fn not_written(to: &Path, error: std::io::Error) -> Failure {
    let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
    let failure = Failure::failed(format!("cannot write {}", to.display()), error);
    match exists {
        true => failure.remedy("replace it with --overwrite"),
        false => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;

    fn get(sources: &[&str], destination: &Path) -> Result<Get, Failure> {
        let sources: Vec<FileUrl> = sources.iter().map(|url| url.parse().unwrap()).collect();
        let arguments = CopyArgs { recursive: false, overwrite: false, paths: Vec::new() };
        Get::new(&sources, &destination.as_os_str().to_owned(), &arguments)
    }

    #[test]
    fn files_go_into_a_directory_or_get_the_name_given() {
        let dir = tempfile::tempdir().unwrap();
        let places = |sources: &[&str], to: &Path| -> Vec<PathBuf> {
            get(sources, to).unwrap().copies.into_iter().map(|(_, path)| path).collect()
        };
        let here = dir.path();
        assert_eq!(places(&["dfs://h/v/a"], &here.join("b")), [here.join("b")]);
        assert_eq!(places(&["dfs://h/v/d/a", "dfs://h/v"], here), [here.join("a"), here.join("v")]);
    }

    #[test]
    fn several_files_need_a_directory() {
        let failure = get(&["dfs://h/v/a", "dfs://h/v/b"], Path::new("/none")).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let failure = get(&["dfs://h/v/a"], Path::new("dfs://h/v/b")).unwrap_err();
        assert_eq!(failure.remedy.as_deref(), Some("dfs put"));
    }
}
