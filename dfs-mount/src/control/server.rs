//! The daemon's side of the control socket.
//!
//! One task accepts, one task serves each connection; all of them belong to the caller of
//! [`serve`] and end with its token. At most [`CONNECTION_COUNT_MAX`] are served at a time and a
//! request must come within [`REQUEST_TIMEOUT`], so nobody can hold the daemon up.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::message::{self, CacheListing, MountStatus, OutboxReport, Reply, Request, Seen, Unsent};

/// Most connections served at a time. Why: a few commands and a monitor; more is a mistake.
const CONNECTION_COUNT_MAX: usize = 32;

/// How long a connection may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest request. Units: bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// Progress reports that wait for a slow reader; more are dropped, the next one tells all.
const PROGRESS_QUEUE_MAX: usize = 16;

/// What a mount daemon can be asked.
pub trait Daemon: Send + Sync + 'static {
    fn status(&self) -> BoxFuture<'_, MountStatus>;

    fn outbox(&self) -> BoxFuture<'_, OutboxReport>;

    /// Tries to send everything unsent now, and tells what is left.
    fn retry(&self) -> BoxFuture<'_, OutboxReport>;

    /// Sends what is unsent until nothing is or `deadline` has passed; tells what is left.
    fn drain(&self, deadline: Duration, progress: Progress) -> BoxFuture<'_, OutboxReport>;

    fn cache(&self) -> BoxFuture<'_, CacheListing>;

    /// Gives back the space of clean, unused files, or of one: how many, and how many bytes.
    fn clear_cache(&self, fid: Option<String>) -> BoxFuture<'_, (u64, u64)>;

    /// Watches a directory; or why not.
    fn watch(&self, path: String) -> BoxFuture<'_, Result<BoxStream<'static, Seen>, String>>;

    /// Begins the daemon's end; returns at once.
    fn stop(&self, detach: bool);
}

/// Takes reports of a drain under way; never waits.
#[derive(Clone, Debug)]
pub struct Progress(mpsc::Sender<Unsent>);

impl Progress {
    pub fn report(&self, left: Unsent) {
        // A full queue means that the reader is slow, a closed one that it is gone: neither is the
        // drain's business.
        let _ = self.0.try_send(left);
    }
}

/// A bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Listens at `path`. A file that lies there was left by a daemon that is gone: no two living
    /// mounts have the same device number.
    ///
    /// # Errors
    /// What unlink(2) and bind(2) report.
    pub fn bind(path: &Path) -> io::Result<ControlSocket> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let inode = inode_of(path)?;
        Ok(ControlSocket { listener, path: path.to_owned(), inode })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The kernel gives a device number away again as soon as the mount is gone: by now the path
        // may be another daemon's.
        if inode_of(&self.path).is_ok_and(|inode| inode != self.inode) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "control socket was gone");
        }
    }
}

fn inode_of(path: &Path) -> io::Result<u64> {
    Ok(std::fs::symlink_metadata(path)?.ino())
}

/// Serves until `end` is cancelled; connections under way are dropped then.
pub async fn serve(socket: ControlSocket, daemon: Arc<dyn Daemon>, end: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTION_COUNT_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = end.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = socket.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "control socket cannot accept");
                continue_later().await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let daemon = Arc::clone(&daemon);
        connections.spawn(async move {
            if let Err(error) = serve_connection(stream, &*daemon).await {
                tracing::debug!(%error, "control connection ended");
            }
            drop(slot);
        });
    }
}

/// Out of descriptors, most likely: some will be free in a moment.
async fn continue_later() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one connection: checks who it is, reads its request, answers.
///
/// # Errors
/// What reading and writing the stream reports; the peer is told of everything else.
pub async fn serve_connection(stream: UnixStream, daemon: &dyn Daemon) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let own = nix::unistd::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    if !may_control(peer, own) {
        let why = format!("user {peer} may not control a mount of user {own}");
        return writer.write_all(&message::encode(&Reply::Refused { why })).await;
    }
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES_MAX));
    match tokio::time::timeout(REQUEST_TIMEOUT, reader.read_until(b'\n', &mut line)).await {
        Ok(read) => read?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    match message::decode(&line) {
        Ok(Request::Watch { path }) => watch(path, daemon, (&mut reader, &mut writer)).await?,
        Ok(request) => answer(request, daemon, &mut writer).await?,
        Err(error) => {
            let why = error.to_string();
            writer.write_all(&message::encode(&Reply::Refused { why })).await?;
        }
    }
    Ok(())
}

fn may_control(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == own_uid || peer_uid == 0
}

type Writer = tokio::net::unix::OwnedWriteHalf;

async fn answer(request: Request, daemon: &dyn Daemon, writer: &mut Writer) -> io::Result<()> {
    let reply = match request {
        Request::Status => Reply::Status(Box::new(daemon.status().await)),
        Request::OutboxList => Reply::Outbox(daemon.outbox().await),
        Request::OutboxRetry => Reply::Outbox(daemon.retry().await),
        Request::Drain { deadline_ms } => {
            let left = drain(Duration::from_millis(deadline_ms), daemon, writer).await?;
            Reply::Drained(left)
        }
        Request::CacheList => Reply::Cache(daemon.cache().await),
        Request::CacheClear => cleared(daemon.clear_cache(None).await),
        Request::CacheDrop { fid } => cleared(daemon.clear_cache(Some(fid)).await),
        Request::Watch { .. } => unreachable!("answered by whoever reads on"),
        Request::Stop { detach } => {
            writer.write_all(&message::encode(&Reply::Stopping)).await?;
            daemon.stop(detach);
            // The connection ends with the process: that is how the command sees its end.
            return std::future::pending().await;
        }
    };
    writer.write_all(&message::encode(&reply)).await
}

/// Tells what is seen until there is nothing more, or the command goes away.
async fn watch(
    path: String,
    daemon: &dyn Daemon,
    (reader, writer): (&mut (impl AsyncRead + Unpin), &mut Writer),
) -> io::Result<()> {
    let mut seen = match daemon.watch(path).await {
        Ok(seen) => seen,
        Err(why) => return writer.write_all(&message::encode(&Reply::Refused { why })).await,
    };
    writer.write_all(&message::encode(&Reply::Watching)).await?;
    loop {
        let next = tokio::select! {
            next = seen.next() => next,
            // It says nothing more, so this is its end.
            _ = reader.read_u8() => return Ok(()),
        };
        let Some(next) = next else { return Ok(()) };
        writer.write_all(&message::encode(&Reply::Seen(next))).await?;
    }
}

fn cleared((file_count, freed_bytes): (u64, u64)) -> Reply {
    Reply::CacheCleared { file_count, freed_bytes }
}

async fn drain(
    deadline: Duration,
    daemon: &dyn Daemon,
    writer: &mut Writer,
) -> io::Result<OutboxReport> {
    let (sender, mut reports) = mpsc::channel(PROGRESS_QUEUE_MAX);
    let mut drained = daemon.drain(deadline, Progress(sender));
    loop {
        tokio::select! {
            // Reports first: the last one belongs before the result.
            biased;
            Some(left) = reports.recv() => {
                writer.write_all(&message::encode(&Reply::Progress(left))).await?;
            }
            left = &mut drained => return Ok(left),
        }
    }
}

#[cfg(test)]
mod tests;
