//! `dfs status`: mounts as their daemons see them, cells as their servers see them.
//!
//! What does not answer is part of the report, not an end of it; the exit code then says that
//! something is wrong.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dfs_proto::admin::{CellMap, Map, Role, Status, StatusReply};
use serde::Serialize;

use super::StatusArgs;
use super::cell;
use super::exit::Exit;
use super::failure::{Context, Failure};
use super::mounts;
use super::output::{Output, Report, Table};
use super::show;
use crate::config::{ByteSize, CellAddress, SCHEME, UrlError};
use crate::control::message::MountStatus;
use crate::control::mountinfo::Mount;
use crate::credential::Credential;

#[derive(Debug, Default, Serialize)]
struct StatusReport {
    mounts: Vec<MountState>,
    cells: Vec<CellState>,
}

#[derive(Debug, Serialize)]
struct MountState {
    mount_point: PathBuf,
    url: String,
    /// Absent if the daemon did not answer.
    daemon: Option<MountStatus>,
    error: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

#[derive(Debug, Serialize)]
struct CellState {
    url: String,
    /// Absent if the cell did not answer.
    map: Option<CellMap>,
    /// What the directory server says.
    directory: Option<StatusReply>,
    error: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

/// # Errors
/// A [`Failure`] if the target is none, or something in the report does not answer.
pub async fn status(arguments: &StatusArgs, output: &mut Output) -> Result<(), Failure> {
    let report = match arguments.target.as_deref() {
        None => everything().await?,
        Some(target) if target.as_bytes().starts_with(SCHEME.as_bytes()) => {
            let cell = parse_cell(target)?;
            let cells = vec![ask_cell(&cell::credential(Some(&cell))?).await];
            StatusReport { cells, ..StatusReport::default() }
        }
        Some(target) => {
            let mount = mounts::mount_at(Path::new(target))?;
            StatusReport { mounts: vec![ask_mount(&mount).await], ..StatusReport::default() }
        }
    };
    output.show(&report)?;
    report.judge()
}

fn parse_cell(target: &OsStr) -> Result<CellAddress, Failure> {
    let parsed = target.to_string_lossy().parse();
    parsed.map_err(|error: UrlError| Failure::usage("cannot show the status", error))
}

async fn everything() -> Result<StatusReport, Failure> {
    let mut report = StatusReport::default();
    for mount in mounts::chosen(None)? {
        report.mounts.push(ask_mount(&mount).await.among_others());
    }
    for credential in cell::store()?.list()? {
        report.cells.push(ask_cell(&credential).await);
    }
    Ok(report)
}

async fn ask_mount(mount: &Mount) -> MountState {
    let answer = match mounts::daemon(mount) {
        Ok(daemon) => daemon.status().await,
        Err(error) => Err(error),
    };
    let (daemon, failure) = match answer {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(mounts::unanswered(mount, error))),
    };
    MountState {
        mount_point: mount.mount_point.clone(),
        url: mount.source.to_string_lossy().into_owned(),
        daemon,
        error: failure.as_ref().map(Failure::causes),
        exit: failure.map_or(Exit::Done, |failure| failure.exit),
    }
}

async fn ask_cell(credential: &Credential) -> CellState {
    let url = format!("{SCHEME}{}", cell::address(credential));
    match ask_servers(credential).await {
        Ok((map, directory)) => CellState {
            url,
            map: Some(map),
            directory: Some(directory),
            error: None,
            exit: Exit::Done,
        },
        Err(failure) => CellState {
            url,
            map: None,
            directory: None,
            error: Some(failure.causes()),
            exit: failure.exit,
        },
    }
}

async fn ask_servers(credential: &Credential) -> Result<(CellMap, StatusReply), Failure> {
    let what = || "cannot ask the cell".to_owned();
    let caller = cell::own_identity();
    let connection = cell::connect(credential)?;
    let map = connection.call(Role::Directory, Some(&caller), &Map {}).await.about(what)?;
    let status = connection.call(Role::Directory, Some(&caller), &Status {}).await.about(what)?;
    Ok((map, status))
}

impl StatusReport {
    /// The exit code of the first thing that is wrong.
    fn judge(&self) -> Result<(), Failure> {
        for mount in &self.mounts {
            if mount.exit != Exit::Done {
                let what = format!("no answer for {}", mount.mount_point.display());
                let error = mount.error.clone().unwrap_or_default();
                return Err(Failure::new(mount.exit, what, error));
            }
        }
        for cell in &self.cells {
            if let Some(error) = &cell.error {
                let what = format!("no answer from {}", cell.url);
                return Err(Failure::new(cell.exit, what, error.clone()));
            }
        }
        Ok(())
    }
}

impl Report for StatusReport {
    fn table(&self) -> Table {
        let mut table = Table::default();
        self.mounts.iter().for_each(|mount| mount.add_to(&mut table));
        self.cells.iter().for_each(|cell| cell.add_to(&mut table));
        if table.rows.is_empty() {
            table.rows.push(vec!["no mounts, and no logins".to_owned()]);
        }
        table
    }
}

fn line(table: &mut Table, name: &str, value: String) {
    table.rows.push(vec![name.to_owned(), value]);
}

impl MountState {
    /// In a list of everything: that others have mounts of their own is nothing wrong.
    fn among_others(self) -> MountState {
        match self.exit {
            Exit::Refused => MountState { exit: Exit::Done, ..self },
            _ => self,
        }
    }

    fn add_to(&self, table: &mut Table) {
        line(table, "mount", format!("{} of {}", self.mount_point.display(), self.url));
        let Some(daemon) = &self.daemon else {
            line(table, "  state", self.error.clone().unwrap_or_default());
            return;
        };
        let state = if daemon.is_connected { "connected" } else { "server does not answer" };
        let age = show::age(daemon.uptime_ms);
        line(table, "  state", format!("{state}, process {} up {age}", daemon.pid));
        let cache = &daemon.cache;
        let (used, limit) = (ByteSize(cache.used_bytes), ByteSize(cache.limit_bytes));
        let files = cache.entry_count;
        let dir = daemon.cache_dir.display();
        line(table, "  cache", format!("{used} of {limit}, {files} files, in {dir}"));
        let unsent = format!(
            "{} files, {}; {} wait for you (dfs outbox list)",
            daemon.unsent.file_count,
            ByteSize(daemon.unsent.bytes),
            daemon.kept_count
        );
        line(table, "  unsent", unsent);
        line(table, "  log", daemon.log_file.display().to_string());
    }
}

impl CellState {
    fn add_to(&self, table: &mut Table) {
        line(table, "cell", self.url.clone());
        if let Some(error) = &self.error {
            line(table, "  state", error.clone());
        }
        for entry in self.map.iter().flat_map(|map| &map.nodes) {
            let roles: Vec<&str> = entry.roles.iter().map(|role| role.name()).collect();
            let host = entry.host.as_deref().unwrap_or("*");
            let silent = show::age(entry.silent_ms);
            let text = format!("{} at {host}:{}, heard {silent} ago", roles.join("+"), entry.port);
            line(table, &format!("  {}", entry.node), text);
        }
        let Some(directory) = &self.directory else {
            return;
        };
        let (version, up) = (&directory.version, show::age(directory.uptime_ms));
        let sessions = directory.sessions;
        line(table, "  directory", format!("version {version}, up {up}, {sessions} sessions"));
        line(table, "  volumes", directory.volumes.join(" "));
        for node in &directory.file_nodes {
            let state = if node.is_live { "live" } else { "dead" };
            let (free, total) = (ByteSize(node.free_bytes), ByteSize(node.total_bytes));
            let name = format!("  {} (files)", node.node);
            line(table, &name, format!("{state}, {free} free of {total}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::captured;
    use crate::control::message::{CacheStatus, Unsent};
    use dfs_proto::admin::{FileNodeState, NodeEntry};
    use dfs_proto::id::NodeId;

    fn report() -> StatusReport {
        let daemon = MountStatus {
            pid: 42,
            is_connected: true,
            cache_dir: "/c".into(),
            log_file: "/c.log".into(),
            uptime_ms: 5000,
            cache: CacheStatus { used_bytes: 1024, limit_bytes: 10 << 30, entry_count: 3 },
            unsent: Unsent { file_count: 1, bytes: 10 },
            ..MountStatus::default()
        };
        let entry = NodeEntry {
            node: NodeId(3),
            roles: Role::ALL.to_vec(),
            host: None,
            port: 7400,
            file_nodes: vec![NodeId(1)],
            silent_ms: 1000,
        };
        let directory = StatusReply {
            version: "0.1.0".into(),
            node: NodeId(3),
            roles: Role::ALL.to_vec(),
            uptime_ms: 240_000,
            sessions: 2,
            volumes: vec!["main".into()],
            file_nodes: vec![FileNodeState {
                node: NodeId(1),
                is_live: true,
                total_bytes: 1 << 30,
                free_bytes: 1 << 29,
            }],
        };
        StatusReport {
            mounts: vec![MountState {
                mount_point: "/mnt".into(),
                url: "dfs://h:7400/main".into(),
                daemon: Some(daemon),
                error: None,
                exit: Exit::Done,
            }],
            cells: vec![CellState {
                url: "dfs://h:7400".into(),
                map: Some(CellMap { nodes: vec![entry] }),
                directory: Some(directory),
                error: None,
                exit: Exit::Done,
            }],
        }
    }

    #[test]
    fn mounts_and_cells_are_shown() {
        let (mut output, out, _) = captured(false);
        output.show(&report()).unwrap();
        let expected = "\
mount             /mnt of dfs://h:7400/main
  state           connected, process 42 up 5 s
  cache           1.0 KiB of 10.0 GiB, 3 files, in /c
  unsent          1 files, 10 B; 0 wait for you (dfs outbox list)
  log             /c.log
cell              dfs://h:7400
  node-3          auth+directory+lock+file at *:7400, heard 1 s ago
  directory       version 0.1.0, up 4 min, 2 sessions
  volumes         main
  node-1 (files)  live, 512.0 MiB free of 1.0 GiB
";
        assert_eq!(out.text(), expected);
    }

    #[test]
    fn the_json_form_has_everything() {
        let (mut output, out, _) = captured(true);
        output.show(&report()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(value["mounts"][0]["daemon"]["cache"]["used_bytes"], 1024);
        assert_eq!(value["mounts"][0]["daemon"]["rpcs"], serde_json::json!({}));
        assert_eq!(value["cells"][0]["map"]["nodes"][0]["roles"][1], "directory");
        assert_eq!(value["cells"][0]["directory"]["sessions"], 2);
        assert_eq!(value["cells"][0]["error"], serde_json::Value::Null);
    }

    #[test]
    fn a_mount_of_another_user_is_wrong_only_if_it_is_asked_for() {
        let foreign = |exit| MountState {
            mount_point: "/theirs".into(),
            url: "dfs://h:7400/main".into(),
            daemon: None,
            error: Some("only root may ask".into()),
            exit,
        };
        let report = |mount| StatusReport { mounts: vec![mount], ..StatusReport::default() };
        assert_eq!(report(foreign(Exit::Refused)).judge().unwrap_err().exit, Exit::Refused);
        let listed = report(foreign(Exit::Refused).among_others());
        assert!(listed.judge().is_ok());
        assert_eq!(listed.table().rows[1], ["  state", "only root may ask"]);
        assert!(report(foreign(Exit::Failed).among_others()).judge().is_err());
    }

    #[test]
    fn what_does_not_answer_decides_the_exit_code() {
        let mut report = report();
        assert!(report.judge().is_ok());
        report.cells[0].error = Some("nobody there".into());
        report.cells[0].exit = Exit::Unreachable;
        let failure = report.judge().unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.what.contains("dfs://h:7400"));
    }
}
