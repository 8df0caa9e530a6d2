//! `dfs outbox`: what waits to be sent.

use std::time::Duration;

use serde::Serialize;

use super::MountPointArgs;
use super::exit::Exit;
use super::failure::Failure;
use super::mounts;
use super::output::{Output, Report, Table};
use super::show;
use crate::config::ByteSize;
use crate::control::client::{ControlClient, ControlError};
use crate::control::message::{OutboxEntry, OutboxReport};
use crate::control::mountinfo::Mount;

/// How long `retry` waits for a daemon's attempts.
const RETRY_PATIENCE: Duration = Duration::from_secs(120);

/// The outboxes of mounts.
#[derive(Debug, Default, Serialize)]
struct Outboxes {
    mounts: Vec<MountOutbox>,
}

#[derive(Debug, Serialize)]
struct MountOutbox {
    mount_point: String,
    entries: Vec<OutboxEntry>,
    /// Why the daemon did not say.
    #[serde(skip)]
    silent: Option<Failure>,
}

impl Report for Outboxes {
    fn table(&self) -> Table {
        let header = vec!["mount", "state", "size", "since", "path", "why"];
        let rows = self.mounts.iter().flat_map(|mount| {
            mount.entries.iter().map(|entry| {
                vec![
                    mount.mount_point.clone(),
                    entry.state.word().to_owned(),
                    ByteSize(entry.size_bytes).to_string(),
                    show::minute(entry.since_secs),
                    entry.path.clone(),
                    entry.why.clone(),
                ]
            })
        });
        let rows: Vec<Vec<String>> = rows.collect();
        match rows.is_empty() {
            true => Table::lines(["nothing waits".to_owned()]),
            false => Table { header, rows },
        }
    }
}

/// # Errors
/// A [`Failure`] if a daemon does not answer.
pub async fn list(arguments: &MountPointArgs, output: &mut Output) -> Result<(), Failure> {
    show(arguments, async |daemon| daemon.outbox().await, output).await.map(drop)
}

/// Exits with [`Exit::Unsent`] if something is left.
///
/// # Errors
/// A [`Failure`] if a daemon does not answer, or data is still unsent afterwards.
pub async fn retry(arguments: &MountPointArgs, output: &mut Output) -> Result<(), Failure> {
    let report = show(arguments, async |it| it.retry(RETRY_PATIENCE).await, output).await?;
    let left: Vec<&OutboxEntry> = report.mounts.iter().flat_map(|mount| &mount.entries).collect();
    match left.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(
            Exit::Unsent,
            format!("{} files could not be sent", left.len()),
            format!("{}: {}", first.path, first.why),
        )),
    }
}

/// Asks each mount's daemon and shows what they say.
async fn show(
    arguments: &MountPointArgs,
    ask: impl AsyncFn(&ControlClient) -> Result<OutboxReport, ControlError>,
    output: &mut Output,
) -> Result<Outboxes, Failure> {
    let mut report = Outboxes::default();
    for mount in mounts::chosen(arguments.dir.as_deref())? {
        let answer = match mounts::daemon(&mount) {
            Ok(daemon) => ask(&daemon).await,
            Err(error) => Err(error),
        };
        report.add(&mount, answer);
    }
    output.show(&report)?;
    report.first_silent()?;
    Ok(report)
}

impl Outboxes {
    fn add(&mut self, mount: &Mount, answer: Result<OutboxReport, ControlError>) {
        let mount_point = mount.mount_point.display().to_string();
        let (entries, silent) = match answer {
            Ok(outbox) => (outbox.entries, None),
            Err(error) => (Vec::new(), Some(mounts::unanswered(mount, error))),
        };
        self.mounts.push(MountOutbox { mount_point, entries, silent });
    }

    /// The failure of the first mount whose daemon did not answer: one that is dead must not hide
    /// what the others have to say, and not be passed over either.
    fn first_silent(&mut self) -> Result<(), Failure> {
        let silent = self.mounts.iter_mut().find_map(|mount| mount.silent.take());
        silent.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::mounts::tests::mount;
    use crate::cli::output::tests::captured;
    use crate::writeback::OutboxState;

    #[test]
    fn a_dead_daemon_neither_hides_the_others_nor_is_passed_over() {
        let mut outboxes = outboxes();
        outboxes.add(&mount(), Err(ControlError::Dead));
        assert_eq!(outboxes.table().rows.len(), 1);
        assert!(outboxes.first_silent().unwrap_err().causes().contains("not running"));
    }

    fn outboxes() -> Outboxes {
        let entry = OutboxEntry {
            id: 3,
            path: "/a\nb".into(),
            fid: "1:2.3".into(),
            size_bytes: 2048,
            state: OutboxState::Conflict,
            why: "changed by another client".into(),
            since_secs: 86_400,
        };
        let mut outboxes = Outboxes::default();
        outboxes.add(&mount(), Ok(OutboxReport { entries: vec![entry] }));
        outboxes
    }

    #[test]
    fn an_outbox_is_shown_as_table_and_as_json() {
        let (mut output, out, _) = captured(false);
        output.show(&outboxes()).unwrap();
        let expected = "MOUNT  STATE     SIZE     SINCE             PATH  WHY\n\
            /mnt   conflict  2.0 KiB  1970-01-02 00:00  /a?b  changed by another client\n";
        assert_eq!(out.text(), expected);
        let (mut output, out, _) = captured(true);
        output.show(&outboxes()).unwrap();
        assert_eq!(
            out.text(),
            "{\"mounts\":[{\"mount_point\":\"/mnt\",\"entries\":[{\"id\":3,\"path\":\"/a\\nb\",\
             \"fid\":\"1:2.3\",\"size_bytes\":2048,\"state\":\"conflict\",\
             \"why\":\"changed by another client\",\"since_secs\":86400}]}]}\n"
        );
    }

    #[test]
    fn an_empty_outbox_says_so() {
        let (mut output, out, _) = captured(false);
        output.show(&Outboxes::default()).unwrap();
        assert_eq!(out.text(), "nothing waits\n");
    }
}
