//! The command's side of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::message::Unsent;
use super::message::{
    self, CacheListing, LINE_BYTES_MAX, LineError, MountStatus, OutboxReport, Reply, Request, Seen,
};
use super::mountinfo::Mount;
use super::place::{self, Found};
use crate::config::Environment;

/// How long a daemon may take to answer what it can answer at once.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long giving the whole cache back may take: a file to remove for each entry.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(300);

/// How much longer than the time it was given a daemon may take.
const GRACE: Duration = Duration::from_secs(5);

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No socket: the daemon is older than its socket directory, or of another environment.
    #[error("the mount daemon has no control socket")]
    NoSocket,
    /// Only the user who mounted it may look for the socket.
    #[error("only {}, who mounted it, may ask the mount daemon", user(*uid))]
    NotOwn { uid: u32 },
    /// A socket, and nobody behind it.
    #[error("the mount daemon is not running")]
    Dead,
    #[error("cannot talk to the mount daemon at {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the mount daemon did not answer within {:.0} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("the mount daemon ended in the middle of its answer")]
    Ended,
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("the mount daemon refused: {0}")]
    Refused(String),
    #[error("the mount daemon answered something else than was asked")]
    Unexpected,
}

fn user(uid: u32) -> String {
    if uid == 0 { "root".to_owned() } else { format!("user {uid}") }
}

/// The daemon of one mount.
#[derive(Debug)]
pub struct ControlClient {
    path: PathBuf,
}

impl ControlClient {
    /// The daemon that listens at `path`.
    pub fn at(path: PathBuf) -> ControlClient {
        ControlClient { path }
    }

    /// # Errors
    /// [`ControlError::NoSocket`], [`ControlError::NotOwn`].
    pub fn of_mount(mount: &Mount, environment: Environment<'_>) -> Result<Self, ControlError> {
        let uid = mount.owner_uid().unwrap_or(0);
        match place::find(mount.device, uid, environment) {
            Found::Socket(path) => Ok(ControlClient { path }),
            Found::Hidden => Err(ControlError::NotOwn { uid }),
            Found::Nothing => Err(ControlError::NoSocket),
        }
    }

    /// # Errors
    /// [`ControlError`], as for all verbs: `Dead` if nobody listens any more.
    pub async fn status(&self) -> Result<MountStatus, ControlError> {
        match self.ask(&Request::Status, ANSWER_TIMEOUT).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(other)),
        }
    }

    pub async fn outbox(&self) -> Result<OutboxReport, ControlError> {
        outbox_of(self.ask(&Request::OutboxList, ANSWER_TIMEOUT).await?)
    }

    pub async fn cache_list(&self) -> Result<CacheListing, ControlError> {
        match self.ask(&Request::CacheList, ANSWER_TIMEOUT).await? {
            Reply::Cache(listing) => Ok(listing),
            other => Err(unexpected(other)),
        }
    }

    /// How many files went, and how many bytes.
    pub async fn cache_clear(&self) -> Result<(u64, u64), ControlError> {
        self.cleared(&Request::CacheClear).await
    }

    /// Gives back one file of a listing; whether it could go.
    pub async fn cache_drop(&self, fid: String) -> Result<bool, ControlError> {
        self.cleared(&Request::CacheDrop { fid }).await.map(|(file_count, _)| file_count > 0)
    }

    async fn cleared(&self, request: &Request) -> Result<(u64, u64), ControlError> {
        match self.ask(request, CLEAR_TIMEOUT).await? {
            Reply::CacheCleared { file_count, freed_bytes } => Ok((file_count, freed_bytes)),
            other => Err(unexpected(other)),
        }
    }

    /// Waits for at most `limit` for the daemon's attempts.
    pub async fn retry(&self, limit: Duration) -> Result<OutboxReport, ControlError> {
        outbox_of(self.ask(&Request::OutboxRetry, limit).await?)
    }

    /// Lets the daemon send for at most `limit`, and hears how far it is.
    pub async fn drain(
        &self,
        limit: Duration,
        mut progress: impl FnMut(Unsent),
    ) -> Result<OutboxReport, ControlError> {
        let deadline_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut line = self.send(&Request::Drain { deadline_ms }).await?;
        let replies = async {
            loop {
                match line.next().await? {
                    Reply::Progress(left) => progress(left),
                    Reply::Drained(report) => return Ok(report),
                    other => return Err(unexpected(other)),
                }
            }
        };
        let limit = limit.saturating_add(GRACE);
        tokio::time::timeout(limit, replies).await.map_err(|_| ControlError::Silent(limit))?
    }

    /// Watches a directory. When this is answered, what changes from then on is told.
    pub async fn watch(&self, path: String) -> Result<Watched, ControlError> {
        let mut line = self.send(&Request::Watch { path }).await?;
        let first = tokio::time::timeout(ANSWER_TIMEOUT, line.next()).await;
        match first.map_err(|_| ControlError::Silent(ANSWER_TIMEOUT))?? {
            Reply::Watching => Ok(Watched { line }),
            other => Err(unexpected(other)),
        }
    }

    /// Ends the daemon and waits until it has ended, for at most `limit`.
    pub async fn stop(&self, detach: bool, limit: Duration) -> Result<(), ControlError> {
        let mut line = self.send(&Request::Stop { detach }).await?;
        let end = async {
            loop {
                match line.next().await {
                    Ok(Reply::Stopping) => {}
                    Ok(other) => return Err(unexpected(other)),
                    Err(ControlError::Ended) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(limit, end).await.map_err(|_| ControlError::Silent(limit))?
    }

    /// Removes the socket of a daemon that is known to be dead.
    pub fn forget(&self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket of a dead daemon stays");
        }
    }

    async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply, ControlError> {
        let reply = async { self.send(request).await?.next().await };
        tokio::time::timeout(limit, reply).await.map_err(|_| ControlError::Silent(limit))?
    }

    async fn send(&self, request: &Request) -> Result<Line, ControlError> {
        let stream =
            UnixStream::connect(&self.path).await.map_err(|source| match source.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ControlError::Dead,
                _ => ControlError::Io { path: self.path.clone(), source },
            })?;
        Line::over(stream, &self.path, request).await
    }
}

/// A directory that is watched.
pub struct Watched {
    line: Line,
}

impl Watched {
    /// What is seen next, when something is.
    ///
    /// # Errors
    /// `Ended` with the daemon.
    pub async fn next(&mut self) -> Result<Seen, ControlError> {
        match self.line.next().await? {
            Reply::Seen(seen) => Ok(seen),
            other => Err(unexpected(other)),
        }
    }
}

fn outbox_of(reply: Reply) -> Result<OutboxReport, ControlError> {
    match reply {
        Reply::Outbox(report) => Ok(report),
        other => Err(unexpected(other)),
    }
}

fn unexpected(reply: Reply) -> ControlError {
    match reply {
        Reply::Refused { why } => ControlError::Refused(why),
        _ => ControlError::Unexpected,
    }
}

/// One connection after its request was sent.
struct Line {
    reader: BufReader<OwnedReadHalf>,
    path: PathBuf,
    /// Kept open: a closed half would look like a command that is gone.
    _writer: OwnedWriteHalf,
}

impl Line {
    async fn over(
        stream: UnixStream,
        path: &Path,
        request: &Request,
    ) -> Result<Line, ControlError> {
        let (reader, mut writer) = stream.into_split();
        let path = path.to_owned();
        match writer.write_all(&message::encode(request)).await {
            Ok(()) => Ok(Line { reader: BufReader::new(reader), path, _writer: writer }),
            Err(source) => Err(ControlError::Io { path, source }),
        }
    }

    async fn next(&mut self) -> Result<Reply, ControlError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(LINE_BYTES_MAX as u64);
        match limited.read_until(b'\n', &mut line).await {
            Ok(_) if line.last() == Some(&b'\n') => Ok(message::decode(&line)?),
            Ok(_) => Err(ControlError::Ended),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(ControlError::Ended)
            }
            Err(source) => Err(ControlError::Io { path: self.path.clone(), source }),
        }
    }
}
