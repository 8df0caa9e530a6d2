//! What the control socket is told of a mount, and what it may ask of it.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::credential::Identity;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;

use crate::cache::{Freed, Listed};
use crate::cli::show;
use crate::config::{MountConfig, parse_path};
use crate::control::message::{
    self, CacheListing, CacheStatus, CachedFile, MountStatus, OutboxReport, Seen, SeenEvent, Unsent,
};
use crate::control::server::{Daemon, Progress};
use crate::vfs::{Caller, Parts, Sight, Vfs};
use crate::writeback::OutboxItem;

/// A running mount.
pub struct Service {
    config: Arc<MountConfig>,
    parts: Parts,
    vfs: Vfs,
    give_up: CancellationToken,
    /// On `Clock::boottime`.
    started: Duration,
}

impl Service {
    pub fn new(
        config: Arc<MountConfig>,
        parts: Parts,
        vfs: Vfs,
        give_up: CancellationToken,
    ) -> Service {
        let started = parts.session.clock().boottime();
        Service { config, parts, vfs, give_up, started }
    }

    fn report(&self) -> OutboxReport {
        OutboxReport { entries: self.parts.writeback.outbox().into_iter().map(entry).collect() }
    }

    fn now(&self) -> MountStatus {
        let report = self.report();
        let usage = self.parts.cache.usage();
        let session = &self.parts.session;
        let up = session.clock().boottime().saturating_sub(self.started);
        let counts = session.metrics().rpc_counts();
        let unsent = sum(report.unsent().map(|entry| entry.size_bytes));
        MountStatus {
            pid: std::process::id(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            url: self.config.url.to_string(),
            mount_point: self.config.mount_point.clone(),
            cache_dir: self.config.cache_dir.clone(),
            log_file: self.config.log_file.clone(),
            is_connected: session.is_leased(),
            read_only: self.config.read_only,
            uptime_ms: u64::try_from(up.as_millis()).unwrap_or(u64::MAX),
            cache: CacheStatus {
                used_bytes: usage.disk_bytes,
                limit_bytes: usage.limit_bytes,
                entry_count: usage.entry_count as u64,
            },
            kept_count: report.entries.len() as u64 - unsent.file_count,
            unsent,
            rpcs: counts.into_iter().map(|(path, count)| (path.to_owned(), count)).collect(),
            events: session.metrics().event_counts(),
        }
    }
}

fn sum(sizes: impl Iterator<Item = u64>) -> Unsent {
    sizes.fold(Unsent::default(), |sum, size| Unsent {
        file_count: sum.file_count + 1,
        bytes: sum.bytes.saturating_add(size),
    })
}

fn entry(item: OutboxItem) -> message::OutboxEntry {
    message::OutboxEntry {
        id: item.id.0,
        path: item.hint,
        fid: item.fid.to_string(),
        size_bytes: item.size_bytes,
        state: item.state,
        why: item.why,
        since_secs: item.since.secs,
    }
}

fn cached(entry: Listed) -> CachedFile {
    CachedFile {
        path: entry.hint,
        fid: entry.fid.to_string(),
        disk_bytes: entry.disk_bytes,
        state: entry.state.to_owned(),
        is_open: entry.is_open,
        since_secs: entry.since.secs,
    }
}

/// Whoever may control the daemon may see what its user sees.
fn own_caller() -> Caller {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Caller { identity: Identity { uid, gid, groups: Vec::new() }, pid: 0 }
}

fn seen(sight: Sight) -> Seen {
    let (event, name, attr) = match sight {
        Sight::Changed(name, attr) => (SeenEvent::Changed, Some(name), Some(attr)),
        Sight::Removed(name) => (SeenEvent::Removed, Some(name), None),
        Sight::Missed => (SeenEvent::Missed, None, None),
        Sight::Gone => (SeenEvent::Gone, None, None),
    };
    Seen {
        event,
        name: name.map(|name| name.to_string()).unwrap_or_default(),
        kind: attr.as_ref().map(|attr| show::kind_word(attr.kind).to_owned()),
        size_bytes: attr.as_ref().map(|attr| attr.size),
        mode: attr.map(|attr| format!("{:04o}", attr.mode)),
    }
}

impl Daemon for Service {
    fn status(&self) -> BoxFuture<'_, MountStatus> {
        Box::pin(async { self.now() })
    }

    fn outbox(&self) -> BoxFuture<'_, OutboxReport> {
        Box::pin(async { self.report() })
    }

    fn retry(&self) -> BoxFuture<'_, OutboxReport> {
        Box::pin(async {
            self.parts.writeback.retry().await;
            self.report()
        })
    }

    fn drain(&self, deadline: Duration, progress: Progress) -> BoxFuture<'_, OutboxReport> {
        Box::pin(async move {
            let tell = |left: &[OutboxItem]| {
                progress.report(sum(left.iter().map(|item| item.size_bytes)));
            };
            let left = self.parts.writeback.drain(deadline, tell).await;
            let entries = left.unsent.into_iter().chain(left.kept).map(entry).collect();
            OutboxReport { entries }
        })
    }

    fn cache(&self) -> BoxFuture<'_, CacheListing> {
        let files = self.parts.cache.entries().into_iter().rev().map(cached);
        let listing = CacheListing::of(files);
        Box::pin(std::future::ready(listing))
    }

    fn clear_cache(&self, fid: Option<String>) -> BoxFuture<'_, (u64, u64)> {
        let cache = self.parts.cache.clone();
        let clear = tokio::task::spawn_blocking(move || match fid {
            None => cache.clear(|_| true),
            Some(wanted) => cache.clear(|fid| fid.to_string() == wanted),
        });
        Box::pin(async move {
            let Freed { file_count, bytes } = clear.await.unwrap_or_default();
            (file_count, bytes)
        })
    }

    fn watch(&self, path: String) -> BoxFuture<'_, Result<BoxStream<'static, Seen>, String>> {
        Box::pin(async move {
            let names = parse_path(path.as_bytes()).map_err(|error| error.to_string())?;
            let watching = self.vfs.watch(own_caller(), &names).await;
            let watching = watching.map_err(|error| error.to_string())?;
            let stream = futures_util::stream::unfold(watching, async |mut watching| {
                let sight = watching.next().await;
                Some((seen(sight), watching))
            });
            Ok(stream.boxed())
        })
    }

    fn stop(&self, detach: bool) {
        if detach {
            self.give_up.cancel();
        }
    }
}
