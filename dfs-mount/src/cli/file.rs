//! Files without a mount: `ls`, `cat`, `stat`, `where`, `lock`, `put`, `get`, `edit`, `mkdir`,
//! `rm`, `mv`.
//!
//! Each speaks to the servers through a session of its own, so it works on machines that cannot
//! mount, and sees what the servers have, not what a mount may still have to send.

mod edit;
mod get;
mod list;
mod local;
pub mod locks;
mod names;
mod put;
mod target;
mod volume;

use std::ffi::OsString;

use futures_util::TryStreamExt;

use super::failure::{Context, Failure};
use super::mounts;
use super::output::Output;
use super::{CopyArgs, EditArgs, LsArgs, MkdirArgs, MvArgs, RmArgs};
use crate::config::FileUrl;
use crate::fetch::{Fetcher, Piece};
use volume::{Links, Volumes};

/// Zeros that stand for a hole. Why this many: as much as one write of data.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// # Errors
/// A [`Failure`] for the first path that cannot be listed.
pub async fn ls(arguments: &LsArgs, output: &mut Output) -> Result<(), Failure> {
    let urls = urls(&arguments.paths)?;
    let listed = with_volumes(async |it| list::listings(&urls, arguments.long, it).await).await?;
    output.show(&listed)
}

/// # Errors
/// A [`Failure`] for the first path without attributes.
pub async fn stat(paths: &[OsString], output: &mut Output) -> Result<(), Failure> {
    let urls = urls(paths)?;
    let found = with_volumes(async |volumes| list::attributes(&urls, volumes).await).await?;
    output.show(&found)
}

/// # Errors
/// A [`Failure`] for the first path that is neither file nor directory.
pub async fn locate(paths: &[OsString], output: &mut Output) -> Result<(), Failure> {
    let urls = urls(paths)?;
    let found = with_volumes(async |volumes| list::places(&urls, volumes).await).await?;
    output.show(&found)
}

/// # Errors
/// A [`Failure`] for the first path that is no file, or whose locks the caller may not see.
pub async fn lock(paths: &[OsString], output: &mut Output) -> Result<(), Failure> {
    let urls = urls(paths)?;
    let found = with_volumes(async |volumes| locks::locks(&urls, volumes).await).await?;
    output.show(&found)
}

/// # Errors
/// A [`Failure`] if it is not confirmed, or the login is no administrator's.
pub async fn break_locks(path: &OsString, yes: bool, output: &mut Output) -> Result<(), Failure> {
    let url = target::resolve(path, &mounts::table()?)?;
    let count = with_volumes(async |it| locks::break_locks(&url, yes, it).await).await?;
    output.note(&format!("broke {count} locks of {url}"));
    Ok(())
}

/// # Errors
/// A [`Failure`] for the first file that cannot be read to its end.
pub async fn cat(paths: &[OsString], output: &mut Output) -> Result<(), Failure> {
    let urls = urls(paths)?;
    with_volumes(async |volumes| {
        for url in &urls {
            cat_one(url, volumes, output).await?;
            if output.is_closed() {
                break;
            }
        }
        Ok(())
    })
    .await
}

async fn cat_one(url: &FileUrl, volumes: &mut Volumes, output: &mut Output) -> Result<(), Failure> {
    let what = || format!("cannot read {url}");
    let volume = volumes.of(&url.volume).await?;
    let found = volume.find(&url.path, Links::Followed).await.about(what)?;
    let opened = volume.open_to_read(&found.attr).await.about(what)?;
    let fetcher = Fetcher::new(volume.session().clone());
    let mut pieces = fetcher.pieces(Some(volume.caller()), &opened).about(what)?;
    while let Some(piece) = pieces.try_next().await.about(what)? {
        match piece {
            Piece::Data { bytes, .. } => output.bytes(&bytes)?,
            Piece::Hole { length, .. } => write_zeros(length, output)?,
        }
        if output.is_closed() {
            break;
        }
    }
    Ok(())
}

fn write_zeros(length: u64, output: &mut Output) -> Result<(), Failure> {
    let mut left = length;
    while left > 0 && !output.is_closed() {
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        output.bytes(&ZEROS[..step])?;
        left -= step as u64;
    }
    Ok(())
}

/// # Errors
/// A [`Failure`] for the first source that cannot be copied; what was copied before stays.
pub async fn get(arguments: &CopyArgs, output: &mut Output) -> Result<(), Failure> {
    let (sources, destination) = split(&arguments.paths)?;
    let job = get::Get::new(&urls(sources)?, destination, arguments)?;
    with_volumes(async |volumes| job.run(volumes, output).await).await
}

/// # Errors
/// As [`get`].
pub async fn put(arguments: &CopyArgs, output: &mut Output) -> Result<(), Failure> {
    let (sources, destination) = split(&arguments.paths)?;
    let destination = target::resolve(destination, &mounts::table()?)?;
    let job = put::Put { sources, destination, arguments };
    with_volumes(async |volumes| job.run(volumes, output).await).await
}

/// # Errors
/// A [`Failure`] if the file cannot be read, edited or stored.
pub async fn edit(arguments: &EditArgs, output: &mut Output) -> Result<(), Failure> {
    with_volumes(async |volumes| edit::edit(&arguments.path, volumes, output).await).await
}

/// # Errors
/// A [`Failure`] if a directory could not be made.
pub async fn mkdir(arguments: &MkdirArgs, output: &mut Output) -> Result<(), Failure> {
    with_volumes(async |volumes| names::mkdir(arguments, volumes, output).await).await
}

/// # Errors
/// A [`Failure`] if something could not be removed.
pub async fn rm(arguments: &RmArgs, output: &mut Output) -> Result<(), Failure> {
    with_volumes(async |volumes| names::rm(arguments, volumes, output).await).await
}

/// # Errors
/// A [`Failure`] if something could not be moved.
pub async fn mv(arguments: &MvArgs, output: &mut Output) -> Result<(), Failure> {
    let (sources, destination) = split(&arguments.paths)?;
    let destination = target::resolve(destination, &mounts::table()?)?;
    with_volumes(async |volumes| names::mv(sources, &destination, volumes, output).await).await
}

/// Runs `work` and then ends the sessions it opened, whatever came of it.
async fn with_volumes<T>(
    work: impl AsyncFnOnce(&mut Volumes) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut volumes = Volumes::default();
    let result = work(&mut volumes).await;
    volumes.close().await;
    result
}

fn split(paths: &[OsString]) -> Result<(&[OsString], &OsString), Failure> {
    match paths.split_last() {
        Some((destination, sources)) if !sources.is_empty() => Ok((sources, destination)),
        _ => Err(Failure::usage("cannot copy", "a source and a destination are needed")),
    }
}

fn urls(paths: &[OsString]) -> Result<Vec<FileUrl>, Failure> {
    let table = mounts::table()?;
    paths.iter().map(|path| target::resolve(path, &table)).collect()
}
