//! What `lock` and `admin lock` show and do.

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::directory::lock::{BreakLocksOf, LocksOf};
use dfs_proto::id::FileId;
use dfs_proto::lock::{FileLocks, RangeSince, WriteClaim};
use dfs_proto::range::{RANGE_END_MAX, Range, RangeKind};
use serde::Serialize;

use super::volume::{Links, Volume, Volumes, check_is_file};
use crate::cli::exit::Exit;
use crate::cli::failure::{Context, Failure};
use crate::cli::output::{Report, Table};
use crate::cli::{password, show};
use crate::config::FileUrl;

/// Locks and those who wait for them.
#[derive(Debug, Default, Serialize)]
pub struct Locks {
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    /// Absent in a list of all: the servers know files by number there.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    fid: String,
    locks: Vec<Lock>,
}

#[derive(Debug, Serialize)]
struct Lock {
    /// `write`: the right to change the file; `shared`, `exclusive`: a range that a program locked.
    kind: &'static str,
    /// `holds` or `waits`; those who wait in the order of the queue.
    state: &'static str,
    holder: String,
    session: String,
    /// When it was granted, or asked for.
    since: String,
    /// The fencing token, of a write lock that is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    /// Absent of one that goes to the end of the file, wherever that will be.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<u64>,
    #[serde(skip)]
    since_secs: i64,
}

const HOLDS: &str = "holds";
const WAITS: &str = "waits";

impl Lock {
    fn of_writer(claim: WriteClaim, state: &'static str) -> Lock {
        let WriteClaim { session, holder, token, since } = claim;
        let token = token.map(|token| token.to_string());
        let kind = "write";
        Lock { token, ..Lock::new(kind, state, (holder, session.to_string(), since)) }
    }

    fn of_range(range: RangeSince, state: &'static str) -> Lock {
        let RangeSince { claim, since } = range;
        let kind = match claim.kind {
            RangeKind::Shared => "shared",
            RangeKind::Exclusive => "exclusive",
        };
        let Range { start, end } = claim.range;
        Lock {
            pid: Some(claim.pid),
            start: Some(start),
            end: (end != RANGE_END_MAX).then_some(end),
            ..Lock::new(kind, state, (claim.holder, claim.session.to_string(), since))
        }
    }

    fn new(
        kind: &'static str,
        state: &'static str,
        (holder, session, since): (String, String, Timestamp),
    ) -> Lock {
        Lock {
            kind,
            state,
            holder,
            session,
            since: show::instant(since),
            token: None,
            pid: None,
            start: None,
            end: None,
            since_secs: since.secs,
        }
    }

    fn what(&self) -> String {
        match (self.start, self.end) {
            (None, _) => String::new(),
            (Some(start), None) => format!("{start}..end"),
            (Some(start), Some(end)) => format!("{start}..{end}"),
        }
    }

    fn row(&self, file: &str) -> Vec<String> {
        vec![
            self.state.to_owned(),
            self.kind.to_owned(),
            self.what(),
            self.holder.clone(),
            self.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            show::minute(self.since_secs),
            self.token.clone().unwrap_or_default(),
            file.to_owned(),
        ]
    }
}

impl Locks {
    /// Adds a file's; `path` as it was named.
    pub fn add(&mut self, locks: FileLocks, path: Option<String>) {
        let FileLocks { fid, writer, waiting_writers, ranges, waiting_ranges } = locks;
        let writers = writer.into_iter().map(|it| Lock::of_writer(it, HOLDS));
        let writers =
            writers.chain(waiting_writers.into_iter().map(|it| Lock::of_writer(it, WAITS)));
        let held = ranges.into_iter().map(|it| Lock::of_range(it, HOLDS));
        let ranges = held.chain(waiting_ranges.into_iter().map(|it| Lock::of_range(it, WAITS)));
        let locks = writers.chain(ranges).collect();
        self.files.push(File { path, fid: fid.to_string(), locks });
    }
}

impl Report for Locks {
    fn table(&self) -> Table {
        let rows = self.files.iter().flat_map(|file| {
            let name = file.path.as_ref().unwrap_or(&file.fid);
            file.locks.iter().map(move |lock| lock.row(name))
        });
        let rows: Vec<Vec<String>> = rows.collect();
        if rows.is_empty() {
            return Table::lines(["no locks".to_owned()]);
        }
        let header = vec!["state", "lock", "bytes", "by", "pid", "since", "token", "file"];
        Table { header, rows }
    }
}

/// Who has and who wants the locks of files.
///
/// # Errors
/// A [`Failure`] for the first path that is no file, or whose locks the caller may not see.
pub async fn locks(urls: &[FileUrl], volumes: &mut Volumes) -> Result<Locks, Failure> {
    let mut locks = Locks::default();
    for url in urls {
        let what = || format!("cannot find out who has locked {url}");
        let volume = volumes.of(&url.volume).await?;
        let fid = file(volume, url).await.about(what)?;
        let page = volume.call(&LocksOf { fid }).await.about(what)?;
        page.files.into_iter().for_each(|it| locks.add(it, Some(url.to_string())));
    }
    Ok(locks)
}

async fn file(volume: &Volume, url: &FileUrl) -> Result<FileId, FsError> {
    let attr = volume.find(&url.path, Links::Followed).await?.attr;
    check_is_file(&attr)?;
    Ok(attr.fid)
}

/// Takes all locks of a file away, once that is confirmed; how many there were.
///
/// # Errors
/// A [`Failure`] if it is not confirmed, the path is no file, or the login no administrator's.
pub async fn break_locks(url: &FileUrl, yes: bool, volumes: &mut Volumes) -> Result<u64, Failure> {
    let what = || format!("cannot break the locks of {url}");
    if !yes {
        let question = format!("Take all locks of {url} from those who hold them?");
        match password::confirm(&question) {
            Ok(true) => {}
            Ok(false) => return Err(Failure::new(Exit::Failed, what(), "not confirmed")),
            Err(failure) => {
                return Err(Failure { what: what(), ..failure }
                    .remedy("answer at a terminal, or say --yes"));
            }
        }
    }
    let volume = volumes.of(&url.volume).await?;
    let fid = file(volume, url).await.about(what)?;
    volume.call(&BreakLocksOf { fid }).await.about(what)
}

#[cfg(test)]
mod tests {
    use dfs_proto::id::{InodeNo, SessionId, VolumeId};
    use dfs_proto::lock::{LockOwner, RangeClaim};
    use dfs_proto::version::{Epoch, FencingToken};

    use super::super::super::output::tests::captured;
    use super::*;

    fn locks() -> Locks {
        let (session, since) = (SessionId([1; 16]), Timestamp::new(86_400, 0));
        let holder = || "host (ann)".to_owned();
        let token = Some(FencingToken::new(Epoch(3), 4));
        let claim = |range, kind| RangeSince {
            claim: RangeClaim {
                session,
                holder: holder(),
                owner: LockOwner(1),
                pid: 77,
                range,
                kind,
            },
            since,
        };
        let mut locks = Locks::default();
        let found = FileLocks {
            fid: FileId::new(VolumeId(1), InodeNo(2), Epoch(1)),
            writer: Some(WriteClaim { session, holder: holder(), token, since }),
            waiting_writers: vec![],
            ranges: vec![claim(Range { start: 5, end: 9 }, RangeKind::Shared)],
            waiting_ranges: vec![claim(Range::WHOLE, RangeKind::Exclusive)],
        };
        locks.add(found, Some("dfs://h/main/f".to_owned()));
        locks
    }

    #[test]
    fn locks_are_shown_as_table_and_as_json() {
        let (mut output, out, _) = captured(false);
        output.show(&locks()).unwrap();
        let text = out.text();
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["STATE", "LOCK", "BYTES", "BY", "PID", "SINCE", "TOKEN", "FILE"]);
        let since = ["1970-01-02", "00:00"];
        let writes = ["holds", "write", "host", "(ann)", since[0], since[1], "3.4"];
        assert_eq!(lines[1], [&writes[..], &["dfs://h/main/f"]].concat());
        assert_eq!(lines[2][..6], ["holds", "shared", "5..9", "host", "(ann)", "77"]);
        assert_eq!(lines[3][..6], ["waits", "exclusive", "0..end", "host", "(ann)", "77"]);

        let (mut output, out, _) = captured(true);
        output.show(&locks()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
        let locks = &json["files"][0]["locks"];
        assert_eq!((&locks[0]["kind"], &locks[0]["token"]), (&"write".into(), &"3.4".into()));
        assert_eq!((&locks[1]["start"], &locks[1]["end"]), (&5.into(), &9.into()));
        assert_eq!((&locks[2]["state"], locks[2].get("end")), (&"waits".into(), None));
    }

    #[test]
    fn that_there_are_none_is_said() {
        let (mut output, out, _) = captured(false);
        output.show(&Locks::default()).unwrap();
        assert_eq!(out.text(), "no locks\n");
    }
}
