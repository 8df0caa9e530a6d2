//! `dfs watch`: what other clients change in a directory, as they do.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::WatchArgs;
use super::failure::{Context, Failure};
use super::mounts;
use super::output::{Output, Report, Table};
use crate::config::ByteSize;
use crate::control::client::ControlError;
use crate::control::message::{Seen, SeenEvent};
use crate::control::mountinfo::{Mount, absolute};

/// One line of what is shown.
#[derive(Debug, Serialize)]
struct Shown {
    event: SeenEvent,
    path: String,
    kind: Option<String>,
    size_bytes: Option<u64>,
    mode: Option<String>,
}

impl Report for Shown {
    fn table(&self) -> Table {
        let size = self.size_bytes.map(|bytes| ByteSize(bytes).to_string()).unwrap_or_default();
        let words = [self.event.word().to_owned(), self.path.clone(), size];
        Table { header: Vec::new(), rows: vec![words.into()] }
    }
}

/// Shows changes until the directory is gone, the mount ends, or nobody reads any more.
///
/// # Errors
/// A [`Failure`] if the path is not inside a mount or cannot be watched, or the daemon ends.
pub async fn watch(arguments: &WatchArgs, output: &mut Output) -> Result<(), Failure> {
    let dir = &arguments.path;
    let (mount, path) = place(dir)?;
    let silent = |error| match error {
        ControlError::Refused(why) => {
            Failure::failed(format!("cannot watch {}", dir.display()), why)
        }
        error => mounts::unanswered(&mount, error),
    };
    let daemon = mounts::daemon(&mount).map_err(silent)?;
    let mut watched = daemon.watch(path).await.map_err(silent)?;
    output.note(&format!("watching {}; Ctrl-C ends it", dir.display()));
    while !output.is_closed() {
        let seen = watched.next().await.map_err(silent)?;
        let is_gone = seen.event == SeenEvent::Gone;
        output.show(&of(dir, seen))?;
        if is_gone {
            break;
        }
    }
    Ok(())
}

fn of(dir: &Path, Seen { event, name, kind, size_bytes, mode }: Seen) -> Shown {
    let path = if name.is_empty() { dir.to_owned() } else { dir.join(name) };
    Shown { event, path: path.display().to_string(), kind, size_bytes, mode }
}

/// The mount that a directory is in, and its path in the volume.
fn place(dir: &Path) -> Result<(Mount, String), Failure> {
    let what = || format!("cannot watch {}", dir.display());
    let plain: PathBuf = absolute(dir).about(what)?;
    let plain = plain.canonicalize().about(what)?;
    let table = mounts::table()?;
    let mount = table.containing(&plain).filter(|mount| mount.is_dfs()).ok_or_else(|| {
        Failure::usage(what(), "it is not inside a DFS mount").remedy("see all mounts: dfs status")
    })?;
    let below = plain.strip_prefix(&mount.mount_point).unwrap_or(Path::new(""));
    let inside = mount.root.join(below);
    let path = inside.to_str().ok_or_else(|| Failure::usage(what(), "its name is not UTF-8"))?;
    Ok((mount.clone(), path.to_owned()))
}
