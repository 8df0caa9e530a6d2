//! `dfs cache`: what mounts keep on the local disk.

use serde::Serialize;

use super::MountPointArgs;
use super::failure::Failure;
use super::mounts;
use super::output::{Output, Report, Table};
use super::show;
use crate::config::ByteSize;
use crate::control::message::{CacheListing, CachedFile};

#[derive(Debug, Default, Serialize)]
struct Caches {
    mounts: Vec<MountCache>,
}

#[derive(Debug, Serialize)]
struct MountCache {
    mount_point: String,
    files: Vec<CachedFile>,
}

impl Report for Caches {
    fn table(&self) -> Table {
        let header = vec!["mount", "state", "size", "since", "path"];
        let rows = self.mounts.iter().flat_map(|mount| {
            mount.files.iter().map(|file| {
                vec![
                    mount.mount_point.clone(),
                    file.state.clone(),
                    ByteSize(file.disk_bytes).to_string(),
                    show::minute(file.since_secs),
                    file.path.clone(),
                ]
            })
        });
        let rows: Vec<Vec<String>> = rows.collect();
        match rows.is_empty() {
            true => Table::lines(["nothing is cached".to_owned()]),
            false => Table { header, rows },
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Cleared {
    mounts: Vec<MountCleared>,
}

#[derive(Debug, Serialize)]
struct MountCleared {
    mount_point: String,
    file_count: u64,
    freed_bytes: u64,
}

impl Report for Cleared {
    fn table(&self) -> Table {
        let line = |mount: &MountCleared| {
            let freed = ByteSize(mount.freed_bytes);
            format!("{}: {} files, {freed} given back", mount.mount_point, mount.file_count)
        };
        match self.mounts.is_empty() {
            true => Table::lines(["nothing is mounted".to_owned()]),
            false => Table::lines(self.mounts.iter().map(line)),
        }
    }
}

/// # Errors
/// A [`Failure`] if a daemon does not answer.
pub async fn ls(arguments: &MountPointArgs, output: &mut Output) -> Result<(), Failure> {
    let mut report = Caches::default();
    for mount in mounts::chosen(arguments.dir.as_deref())? {
        let silent = |error| mounts::unanswered(&mount, error);
        let daemon = mounts::daemon(&mount).map_err(silent)?;
        let CacheListing { files, left_out_count } = daemon.cache_list().await.map_err(silent)?;
        if left_out_count > 0 {
            output.note(&format!(
                "{left_out_count} files that were used less recently are not listed"
            ));
        }
        report
            .mounts
            .push(MountCache { mount_point: mount.mount_point.display().to_string(), files });
    }
    output.show(&report)
}

/// # Errors
/// A [`Failure`] if a daemon does not answer; those before it have done it.
pub async fn clear(arguments: &MountPointArgs, output: &mut Output) -> Result<(), Failure> {
    let mut report = Cleared::default();
    for mount in mounts::chosen(arguments.dir.as_deref())? {
        let silent = |error| mounts::unanswered(&mount, error);
        let daemon = mounts::daemon(&mount).map_err(silent)?;
        let (file_count, freed_bytes) = daemon.cache_clear().await.map_err(silent)?;
        let mount_point = mount.mount_point.display().to_string();
        report.mounts.push(MountCleared { mount_point, file_count, freed_bytes });
    }
    output.show(&report)
}
