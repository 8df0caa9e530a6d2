//! Chunks ahead of a commit: read, cut and hashed on a thread, and sent while that goes on.
//!
//! A small file sends nothing ahead: its chunks are the payload of the one store request. Of a
//! large one everything but the last batch travels in put requests, a few at a time. If the file
//! nodes fail, hashing goes on to the end all the same: the manifest is what the journal needs to
//! send the content later.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::CallError;
use dfs_proto::client::retry::retry;
use dfs_proto::directory::NodeAddress;
use dfs_proto::file::{ChunkRef, PutChunks};
use dfs_proto::limits::CHUNKS_PER_REQUEST_MAX;
use dfs_proto::manifest::Manifest;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::metrics::Counter;
use crate::placement::{Next, Replicas, most_telling};
use crate::session::connection::{Attempt, Sending, To};

use super::chunker::{self, NewChunk};
use super::job::Job;

/// Chunk bytes in one request.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Put requests in flight for one file.
const PUTS_IN_FLIGHT: usize = 4;

/// Chunks that wait between hashing and sending.
const CHUNKS_WAITING_MAX: usize = 16;

/// How long a file node may take for one batch, copies included.
const PUT_TIMEOUT: Duration = Duration::from_secs(30);

/// A content that was read, and how far it is sent.
#[derive(Debug)]
pub(super) struct Plan {
    pub manifest: Arc<Manifest>,
    /// New chunks that are not sent yet: the payload of the store.
    pub last: Vec<NewChunk>,
    pub put_before: Vec<ChunkHash>,
    /// Why the others could not be sent; then there is no use in the store.
    pub failed: Option<FsError>,
}

/// Why a file could not be read.
#[derive(Debug)]
pub(super) enum ScanError {
    Io(std::io::Error),
    /// Its manifest is over the protocol's limits.
    Fs(FsError),
}

/// Files up to here are read and hashed where the commit runs: a thread would take longer to wake
/// up than the work takes. Units: bytes.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;

/// Reads, hashes and sends ahead.
pub(super) async fn prepare(job: &Job, replicas: &Replicas) -> Result<Plan, ScanError> {
    let known = job.base.manifest.hashes();
    let source = job.source.clone();
    if source.file().metadata().map_err(ScanError::Io)?.len() <= SMALL_FILE_BYTES_MAX {
        return prepare_small(source.file(), known);
    }
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let scan = tokio::task::spawn_blocking(move || {
        // Nobody takes chunks any more once sending has failed; the manifest is still wanted.
        chunker::scan(source.file(), known, |chunk| drop(sender.blocking_send(chunk)))
    });
    let sent = send_ahead(job, replicas, receiver).await;
    let scanned = scan.await.map_err(|error| ScanError::Io(std::io::Error::other(error)))?;
    let manifest = scanned.map_err(ScanError::Io)?.parse().map_err(ScanError::Fs)?;
    let Ahead { last, put_before, failed } = sent;
    Ok(Plan { manifest: Arc::new(manifest), last, put_before, failed })
}

/// A file whose new chunks all travel with the store.
fn prepare_small(file: &File, known: HashSet<ChunkHash>) -> Result<Plan, ScanError> {
    let mut last = Vec::new();
    let scanned = chunker::scan(file, known, |chunk| last.push(chunk));
    let manifest = scanned.map_err(ScanError::Io)?.parse().map_err(ScanError::Fs)?;
    Ok(Plan { manifest: Arc::new(manifest), last, put_before: Vec::new(), failed: None })
}

#[derive(Debug, Default)]
struct Ahead {
    last: Vec<NewChunk>,
    put_before: Vec<ChunkHash>,
    failed: Option<FsError>,
}

async fn send_ahead(job: &Job, replicas: &Replicas, mut chunks: mpsc::Receiver<NewChunk>) -> Ahead {
    let mut ahead = Ahead::default();
    let mut last_bytes = 0;
    let mut puts = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(done) = puts.next() => {
                if let Err(error) = done {
                    ahead.failed = Some(error);
                    return ahead;
                }
            }
            chunk = chunks.recv(), if puts.len() < PUTS_IN_FLIGHT => {
                let Some(chunk) = chunk else { break };
                let is_full = last_bytes + chunk.bytes.len() > BATCH_BYTES_MAX
                    || ahead.last.len() >= CHUNKS_PER_REQUEST_MAX;
                if is_full {
                    let batch = std::mem::take(&mut ahead.last);
                    ahead.put_before.extend(batch.iter().map(|new| new.chunk.hash));
                    last_bytes = 0;
                    puts.push(put(job, replicas, batch));
                }
                last_bytes += chunk.bytes.len();
                ahead.last.push(chunk);
            }
        }
    }
    while let Some(done) = puts.next().await {
        if let Err(error) = done {
            ahead.failed = Some(error);
            return ahead;
        }
    }
    ahead
}

/// Sends chunks in batches, one after another.
pub(super) async fn put_all(
    job: &Job,
    replicas: &Replicas,
    chunks: Vec<NewChunk>,
) -> Result<(), FsError> {
    let mut rest = chunks.into_iter().peekable();
    while rest.peek().is_some() {
        let mut room = BATCH_BYTES_MAX;
        let mut batch = Vec::new();
        while let Some(chunk) = rest.next_if(|next| batch.is_empty() || next.bytes.len() <= room) {
            room = room.saturating_sub(chunk.bytes.len());
            batch.push(chunk);
        }
        put(job, replicas, batch).await?;
    }
    Ok(())
}

async fn put(job: &Job, replicas: &Replicas, batch: Vec<NewChunk>) -> Result<(), FsError> {
    let policy = job.session.connection().policy();
    let attempt = |_| put_somewhere(job, replicas, &batch);
    retry(&**job.session.clock(), policy, attempt).await.map_err(CallError::into_fs)
}

async fn put_somewhere(
    job: &Job,
    replicas: &Replicas,
    batch: &[NewChunk],
) -> Result<(), CallError> {
    let mut errors = Vec::new();
    let (_, placement) = job.ensured().await?;
    for address in replicas.for_store(&placement) {
        match put_at(job, &address, batch).await {
            Ok(()) => {
                replicas.answered(address.node);
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(fid = %job.fid, node = %address.node, %error, "replica left");
                let next = replicas.failed(address.node, &error);
                errors.push(error);
                if next == Next::GiveUp {
                    break;
                }
            }
        }
    }
    Err(most_telling(errors).unwrap_or_else(|| FsError::unavailable("any replica").into()))
}

async fn put_at(job: &Job, address: &NodeAddress, batch: &[NewChunk]) -> Result<(), CallError> {
    match ask(job, address, batch).await {
        Err(CallError::Fs(FsError::CapabilityRefused(_))) => {
            let (grant, _) = job.ensured().await?;
            job.renew(&grant.capability).await?;
            ask(job, address, batch).await
        }
        result => result,
    }
}

async fn ask(job: &Job, address: &NodeAddress, batch: &[NewChunk]) -> Result<(), CallError> {
    let (grant, _) = job.ensured().await?;
    let request =
        PutChunks { node: address.node, capability: grant.capability, chunks: refs(batch) };
    let sending = Sending { caller: job.caller.as_ref(), ..Sending::default() };
    let attempt = Attempt { to: To::Node(address), sending, timeout: PUT_TIMEOUT };
    job.session.attempt(attempt, &request, payload(batch)).await?;
    job.session.metrics().add(Counter::StoredBytes, byte_count(batch));
    Ok(())
}

pub(super) fn refs(chunks: &[NewChunk]) -> Vec<ChunkRef> {
    chunks.iter().map(|new| new.chunk).collect()
}

pub(super) fn payload(chunks: &[NewChunk]) -> Vec<Bytes> {
    chunks.iter().map(|new| new.bytes.clone()).collect()
}

pub(super) fn byte_count(chunks: &[NewChunk]) -> u64 {
    chunks.iter().map(|new| new.bytes.len() as u64).sum()
}
