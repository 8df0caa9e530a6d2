//! `dfs umount`: send what is unsent, then unmount, then see the daemon end.
//!
//! The mount itself is not touched before it is taken down: its daemon is found by the kernel's
//! table and asked over its socket, so a mount that hangs or is dead can be unmounted too. A mount
//! whose daemon has died is detached at once: nothing can be sent any more, and what was unsent
//! waits in the cache for the next mount.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use super::UmountArgs;
use super::exit::Exit;
use super::failure::Failure;
use super::mounts;
use super::output::Output;
use crate::config::ByteSize;
use crate::control::client::{ControlClient, ControlError};
use crate::control::message::{OutboxReport, Unsent};
use crate::control::mountinfo::Mount;

/// How long a daemon may take to end once its mount is gone.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// How long sending goes on at most before a mount is taken down by force.
const FORCED_PATIENCE: Duration = Duration::from_secs(5);

/// How long a mount may take to show whether it lives.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// # Errors
/// A [`Failure`]: no DFS mount, unsent data left, in use. The mount then stays.
pub async fn umount(arguments: &UmountArgs, output: &mut Output) -> Result<(), Failure> {
    let mount = mounts::mount_at(&arguments.dir)?;
    let daemon = match living_daemon(&mount).await? {
        Some(daemon) => daemon,
        None => {
            detach(&mount.mount_point)?;
            if let Ok(dead) = mounts::daemon(&mount) {
                dead.forget();
            }
            let dir = mount.mount_point.display();
            output.note(&format!("{dir}: its daemon had died; the mount is cleaned up"));
            return Ok(());
        }
    };
    let patience = match arguments.force {
        true => arguments.timeout.0.min(FORCED_PATIENCE),
        false => arguments.timeout.0,
    };
    let drained = daemon.drain(patience, |left| output.progress(&sending(left))).await;
    let left = match drained {
        Ok(left) => left,
        Err(_) if arguments.force => OutboxReport::default(),
        Err(error) => return Err(mounts::unanswered(&mount, error).remedy(FORCE)),
    };
    judge_left(&mount, &left, arguments.force, output)?;
    take_down(&mount, arguments.force)?;
    match daemon.stop(arguments.force, END_PATIENCE).await {
        // A daemon that sees its mount gone may be faster than we are.
        Ok(()) | Err(ControlError::Dead | ControlError::Ended | ControlError::Io { .. }) => Ok(()),
        Err(error) => Err(mounts::unanswered(&mount, error)),
    }
}

const FORCE: &str = "dfs umount --force, which leaves unsent data in the cache";

pub fn sending(left: Unsent) -> String {
    format!("sending {} files, {}", left.file_count, ByteSize(left.bytes))
}

/// Names what is unsent; that is the end, unless forced.
fn judge_left(
    mount: &Mount,
    left: &OutboxReport,
    is_forced: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut unsent = left.unsent();
    let Some(first) = unsent.next() else {
        return Ok(());
    };
    let more = match unsent.count() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let why = if first.why.is_empty() { first.state.word() } else { &first.why };
    let cause = format!("not sent: {}{more} ({why})", first.path);
    if is_forced {
        output.note(&format!("{cause}; it stays in the cache and is sent at the next mount"));
        return Ok(());
    }
    let what = format!("{} stays mounted", mount.mount_point.display());
    Err(Failure::new(Exit::Unsent, what, cause)
        .remedy(format!("dfs outbox list, wait for the server, or {FORCE}")))
}

/// The daemon, if it lives.
async fn living_daemon(mount: &Mount) -> Result<Option<ControlClient>, Failure> {
    let error = match mounts::daemon(mount) {
        Ok(daemon) => match daemon.status().await {
            Ok(_) => return Ok(Some(daemon)),
            Err(error) => error,
        },
        Err(error) => error,
    };
    match error {
        ControlError::Dead | ControlError::Ended => Ok(None),
        // Without a socket only the mount itself can tell; it may take for ever to.
        ControlError::NoSocket | ControlError::NotOwn { .. }
            if is_disconnected(&mount.mount_point).await =>
        {
            Ok(None)
        }
        error => Err(mounts::unanswered(mount, error)),
    }
}

/// Whether the kernel says that nobody serves the mount any more.
async fn is_disconnected(mount_point: &Path) -> bool {
    let path = mount_point.to_owned();
    let probe = tokio::task::spawn_blocking(move || std::fs::metadata(path));
    let Ok(Ok(Err(error))) = tokio::time::timeout(PROBE_PATIENCE, probe).await else {
        return false;
    };
    error.raw_os_error() == Some(Errno::ENOTCONN as i32)
}

fn take_down(mount: &Mount, is_forced: bool) -> Result<(), Failure> {
    if is_forced {
        return detach(&mount.mount_point);
    }
    unmount(&mount.mount_point, false)
}

fn detach(mount_point: &Path) -> Result<(), Failure> {
    unmount(mount_point, true)
}

fn unmount(mount_point: &Path, is_lazy: bool) -> Result<(), Failure> {
    match crate::sys::unmount(mount_point, is_lazy) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(busy(mount_point)),
        Err(error) => Err(Failure::failed(cannot_unmount(mount_point), error)),
    }
}

fn cannot_unmount(mount_point: &Path) -> String {
    format!("cannot unmount {}", mount_point.display())
}

fn busy(mount_point: &Path) -> Failure {
    let users = users_of(mount_point);
    let cause = match users.is_empty() {
        true => "it is in use".to_owned(),
        false => format!("in use by {}", users.join(", ")),
    };
    Failure::new(Exit::MountPoint, cannot_unmount(mount_point), cause)
        .remedy("close what uses it, or dfs umount --force")
}

/// Most processes that a message names.
const USERS_SHOWN_MAX: usize = 5;

/// Processes that have a file or their working directory in the mount. Reading links under `/proc`
/// does not touch it.
fn users_of(mount_point: &Path) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            process.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit)
        })
        .filter(|process| uses(&process.path(), mount_point))
        .map(|process| {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!("{} (process {})", name.trim(), process.file_name().to_string_lossy())
        })
        .take(USERS_SHOWN_MAX)
        .collect()
}

fn uses(process: &Path, mount_point: &Path) -> bool {
    let is_inside =
        |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(mount_point));
    let open = std::fs::read_dir(process.join("fd"));
    ["cwd", "root", "exe"].iter().any(|name| is_inside(&process.join(name)))
        || open.is_ok_and(|files| files.flatten().any(|file| is_inside(&file.path())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::mounts::tests::mount;
    use crate::cli::output::tests::captured;
    use crate::control::message::OutboxEntry;
    use crate::writeback::OutboxState;

    fn entry(state: OutboxState) -> OutboxEntry {
        OutboxEntry {
            id: 1,
            path: "/a".into(),
            fid: "1:2.3".into(),
            size_bytes: 1,
            state,
            why: "server does not answer".into(),
            since_secs: 0,
        }
    }

    #[test]
    fn unsent_data_keeps_the_mount_and_is_named() {
        let (mut output, _, err) = captured(false);
        let report =
            OutboxReport { entries: vec![entry(OutboxState::Unsent), entry(OutboxState::Sending)] };
        let failure = judge_left(&mount(), &report, false, &mut output).unwrap_err();
        assert_eq!(failure.exit, Exit::Unsent);
        assert_eq!(failure.causes(), "not sent: /a and 1 more (server does not answer)");
        judge_left(&mount(), &report, true, &mut output).unwrap();
        assert!(err.text().contains("sent at the next mount"));
    }

    #[test]
    fn what_waits_for_a_person_does_not_keep_the_mount() {
        let (mut output, _, _) = captured(false);
        let report = OutboxReport {
            entries: vec![entry(OutboxState::Conflict), entry(OutboxState::Interrupted)],
        };
        assert!(judge_left(&mount(), &report, false, &mut output).is_ok());
    }

    #[test]
    fn the_processes_that_use_a_directory_are_named() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        assert!(users_of(&dir).is_empty());
        let _open = std::fs::File::create(dir.join("x")).unwrap();
        let own = format!("(process {})", std::process::id());
        assert!(users_of(&dir).iter().any(|user| user.ends_with(&own)));
    }
}
