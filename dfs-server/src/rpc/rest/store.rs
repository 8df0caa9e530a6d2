//! Storing the chunks of one upload and committing them, through whichever replica answers.
//!
//! The commit has one op id: however often it is sent and through whom, it is done once.

use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::attr::Attr;
use dfs_proto::capability::CommitIntent;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::CallError;
use dfs_proto::clock::Clock;
use dfs_proto::codec;
use dfs_proto::directory::{Change, CommitAttr, Durability, OpenReply, RenewWrite, WriteGrant};
use dfs_proto::file::{ChunkRef, PutChunks, Store};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::HEAD_BYTES_MAX;
use dfs_proto::manifest::Manifest;
use dfs_proto::rpc::Rpc;

use super::caller::{CALL_TIMEOUT, Request, To};
use super::session::Standing;
use super::upload::COMMIT_OP;

/// How long one node may take for a commit. Why: it brings everything to its disk first.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(120);

/// A chunk that the file does not have yet.
#[derive(Clone, Debug)]
pub struct NewChunk {
    pub chunk: ChunkRef,
    pub bytes: Bytes,
}

/// Why something was not stored.
#[derive(Debug)]
pub struct Failure {
    pub error: FsError,
    /// Somebody was asked and did not answer: it may be done all the same.
    pub is_ambiguous: bool,
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Failure {
        Failure { error, is_ambiguous: false }
    }
}

/// The way to one file's nodes.
pub struct Storage<'a> {
    standing: &'a Standing,
    clock: &'a dyn Clock,
    fid: FileId,
    grant: WriteGrant,
    replicas: Vec<NodeId>,
    /// The replica that answered last: it holds what was put before.
    preferred: usize,
    put_before: Vec<ChunkHash>,
}

impl<'a> Storage<'a> {
    /// # Errors
    /// `Fenced` if the file was opened without a lock.
    pub fn new(
        standing: &'a Standing,
        opened: &OpenReply,
        clock: &'a dyn Clock,
    ) -> Result<Storage<'a>, FsError> {
        Ok(Storage {
            standing,
            clock,
            fid: opened.attr.fid,
            grant: opened.write.clone().ok_or(FsError::Fenced)?,
            replicas: opened.placement.replicas.iter().map(|replica| replica.node).collect(),
            preferred: 0,
            put_before: Vec::new(),
        })
    }

    /// Stores chunks ahead of the commit.
    ///
    /// # Errors
    /// That of the last node asked.
    pub async fn put(&mut self, new: Vec<NewChunk>) -> Result<(), FsError> {
        if new.is_empty() {
            return Ok(());
        }
        let (chunks, payload) = parts(new);
        let request = |grant: &WriteGrant, node: NodeId| PutChunks {
            node,
            capability: grant.capability.clone(),
            chunks: chunks.clone(),
        };
        let put = self.through_replicas(payload, CALL_TIMEOUT, request).await;
        put.map_err(|failure| failure.error)?;
        self.put_before.extend(chunks.iter().map(|chunk| chunk.hash));
        Ok(())
    }

    /// Stores the last chunks and makes `manifest` the content, to survive power loss.
    ///
    /// # Errors
    /// `Conflict`, `Fenced`, `Stale`, `NoSpace`; else that of the last node asked.
    pub async fn commit(
        &mut self,
        manifest: Manifest,
        new: Vec<NewChunk>,
    ) -> Result<Attr, Failure> {
        let (chunks, payload) = parts(new);
        let attr =
            CommitAttr { mtime: self.clock.wall(), atime: None, clear_set_id: true, first: None };
        let attributes = codec::encode(&attr, HEAD_BYTES_MAX)
            .expect("commit attributes have a small fixed size");
        let (fid, put_before) = (self.fid, self.put_before.clone());
        let (op, key) = (self.standing.caller.op(COMMIT_OP), self.standing.key.clone());
        let (hash, attributes) = (manifest.hash(), ChunkHash::of(&attributes));
        let request = |grant: &WriteGrant, node: NodeId| {
            let (base, token) = (grant.capability.right.base, grant.token);
            let intent = CommitIntent { fid, base, token, op, manifest: hash, attributes };
            let change = Change {
                op,
                manifest: manifest.clone(),
                attr: attr.clone(),
                durability: Durability::Stable,
                capability: grant.capability.clone(),
                mac: key.seal_commit(&intent),
            };
            Store { node, change, chunks: chunks.clone(), put_before: put_before.clone() }
        };
        let reply = self.through_replicas(payload, COMMIT_TIMEOUT, request).await?;
        Ok(reply.attr)
    }

    /// Asks one replica after another until one has an answer that another would not better.
    async fn through_replicas<R: Rpc>(
        &mut self,
        payload: Vec<Bytes>,
        timeout: Duration,
        request: impl Fn(&WriteGrant, NodeId) -> R,
    ) -> Result<R::Reply, Failure> {
        let mut failure = Failure::from(FsError::unavailable("any replica of the file"));
        for turn in 0..self.replicas.len() {
            let index = (self.preferred + turn) % self.replicas.len();
            let node = self.replicas[index];
            let mut answer = self.send(node, &request(&self.grant, node), &payload, timeout).await;
            if let Err(CallError::Fs(FsError::CapabilityRefused(_))) = answer {
                self.renew().await?;
                answer = self.send(node, &request(&self.grant, node), &payload, timeout).await;
            }
            let error = match answer {
                Ok(reply) => {
                    self.preferred = index;
                    return Ok(reply);
                }
                Err(error) => error,
            };
            tracing::debug!(fid = %self.fid, %node, %error, path = R::PATH, "store");
            failure.is_ambiguous |= error.is_transient();
            let is_final = !is_of_the_node(&error);
            failure.error = error.into_fs();
            if is_final {
                break;
            }
        }
        Err(failure)
    }

    async fn send<R: Rpc>(
        &self,
        node: NodeId,
        request: &R,
        payload: &[Bytes],
        timeout: Duration,
    ) -> Result<R::Reply, CallError> {
        let payload = payload.to_vec();
        let request = Request { payload, timeout, ..Request::new(To::Node(node), request) };
        self.standing.caller.send(request).await
    }

    async fn renew(&mut self) -> Result<(), FsError> {
        let request = RenewWrite { fid: self.fid, token: self.grant.token };
        let base = self.grant.capability.right.base;
        let grant = self.standing.caller.ask(To::Directory, &request).await?;
        let current = grant.capability.right.base;
        // Under the lock nobody else can have committed; if so, it is no lock.
        if current != base {
            return Err(FsError::Conflict { current });
        }
        self.grant = grant;
        Ok(())
    }
}

/// Whether another replica may do better.
fn is_of_the_node(error: &CallError) -> bool {
    match error {
        CallError::Transport(_) => true,
        CallError::Fs(error) => {
            let is_of_its_disk = matches!(
                error,
                FsError::NoSpace { .. } | FsError::ChunkMissing(_) | FsError::ChunkCorrupt(_)
            );
            is_of_its_disk || error.is_transient()
        }
    }
}

fn parts(new: Vec<NewChunk>) -> (Vec<ChunkRef>, Vec<Bytes>) {
    new.into_iter().map(|new| (new.chunk, new.bytes)).unzip()
}
