//! `dfs flush`: everything unsent goes now.

use serde::Serialize;

use super::FlushArgs;
use super::exit::Exit;
use super::failure::Failure;
use super::mounts;
use super::output::{Output, Report, Table};
use super::umount::sending;

/// What became of the mounts that were asked.
#[derive(Debug, Default, Serialize)]
struct Flushed {
    mounts: Vec<MountFlushed>,
}

#[derive(Debug, Serialize)]
struct MountFlushed {
    mount_point: String,
    /// Files whose content the servers still do not have, and that are tried again.
    unsent_count: usize,
    /// Files that wait for a person: see `dfs outbox list`.
    kept_count: usize,
}

impl Report for Flushed {
    fn table(&self) -> Table {
        let header = vec!["mount", "unsent", "kept"];
        let row = |mount: &MountFlushed| {
            let (unsent, kept) = (mount.unsent_count.to_string(), mount.kept_count.to_string());
            vec![mount.mount_point.clone(), unsent, kept]
        };
        let rows: Vec<Vec<String>> = self.mounts.iter().map(row).collect();
        match rows.is_empty() {
            true => Table::lines(["nothing is mounted".to_owned()]),
            false => Table { header, rows },
        }
    }
}

/// # Errors
/// A [`Failure`] if a daemon does not answer, or data is still unsent when the time is over.
pub async fn flush(arguments: &FlushArgs, output: &mut Output) -> Result<(), Failure> {
    let mut report = Flushed::default();
    let mut first_left = None;
    let mut silent = None;
    for mount in mounts::chosen(arguments.dir.as_deref())? {
        let tell = |left| output.progress(&sending(left));
        let drained = match mounts::daemon(&mount) {
            Ok(daemon) => daemon.drain(arguments.timeout.0, tell).await,
            Err(error) => Err(error),
        };
        let left = match drained {
            Ok(left) => left,
            Err(error) => {
                silent = silent.or(Some(mounts::unanswered(&mount, error)));
                continue;
            }
        };
        let unsent_count = left.unsent().count();
        first_left = first_left.or(left.unsent().next().cloned());
        report.mounts.push(MountFlushed {
            mount_point: mount.mount_point.display().to_string(),
            unsent_count,
            kept_count: left.entries.len() - unsent_count,
        });
    }
    output.show(&report)?;
    if let Some(failure) = silent {
        return Err(failure);
    }
    let Some(left) = first_left else {
        return Ok(());
    };
    let count: usize = report.mounts.iter().map(|mount| mount.unsent_count).sum();
    let what = format!("{count} files could not be sent");
    Err(Failure::new(Exit::Unsent, what, format!("{}: {}", left.path, left.why))
        .remedy("dfs outbox list; wait for the server"))
}
