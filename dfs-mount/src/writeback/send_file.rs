//! Sending a file without a mount: no cache, no journal; what fails is the caller's to report.

use std::fs::File;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::Attr;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{CommitAttr, Durability, OpenReply};
use dfs_proto::manifest::Manifest;

use crate::cache::record::Content;
use crate::placement::Replicas;
use crate::session::Session;

use super::failpoint::FailPoints;
use super::job::{Change, Job, Source};
use super::put::{self, ScanError};
use super::store::{Progress, Sender, Sent};

/// A local file that becomes the content of an opened one.
#[derive(Debug)]
pub struct SendFile<'a> {
    pub caller: Option<&'a Identity>,
    pub source: File,
    /// The answer of the create or the open for writing.
    pub opened: &'a OpenReply,
    /// The content before, whose chunks need not be sent; empty if it is not known.
    pub base_manifest: Manifest,
    pub attr: CommitAttr,
    pub durability: Durability,
}

/// Sends a file. `None` instead of attributes if only the answer was lost.
///
/// # Errors
/// Why the server does not have it: `Conflict`, `Stale`, those of the servers; `Unavailable` if
/// the source cannot be read, or nobody answers until the policy ends.
pub async fn send_file(session: &Session, file: SendFile<'_>) -> Result<Option<Attr>, FsError> {
    let OpenReply { attr, placement, write, .. } = file.opened;
    let grant = write.clone().ok_or_else(|| FsError::malformed("open without the lock"))?;
    let change = Change {
        fid: attr.fid,
        caller: file.caller.cloned(),
        source: Source::Plain(Arc::new(file.source)),
        base: Content { version: attr.data_version, manifest: Arc::new(file.base_manifest) },
        attr: file.attr,
        durability: file.durability,
    };
    let job = Job::new(session.clone(), change, Some((grant, placement.clone())));
    let replicas = Replicas::new(Arc::clone(session.clock()), Arc::clone(session.metrics()));
    let mut plan = put::prepare(&job, &replicas).await.map_err(|error| match error {
        ScanError::Fs(error) => error,
        ScanError::Io(error) => FsError::unavailable(format!("source file: {error}")),
    })?;
    if let Some(error) = plan.failed.take() {
        return Err(error);
    }
    let guard = session.connection().begin_op();
    let sender = Sender {
        job: &job,
        replicas: &replicas,
        plan: &mut plan,
        op: guard.id(),
        journal: &|_| Ok(()),
        failpoints: &FailPoints::default(),
        progress: Progress::default(),
    };
    let sent = sender.run().await.map_err(|error| FsError::unavailable(error.to_string()))?;
    match sent {
        Sent::Stored { attr, .. } => Ok(attr),
        Sent::Vanished => Err(FsError::Stale),
        Sent::Conflict(error) | Sent::Unsent { error, .. } => Err(error),
        Sent::Changed => Err(FsError::unavailable("source file changed while it was read")),
    }
}
