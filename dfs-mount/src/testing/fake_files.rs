//! The fake cell's file nodes, and the commit.

use bytes::{Bytes, BytesMut};
use dfs_proto::FsError;
use dfs_proto::capability::CommitIntent;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::ReplyBody;
use dfs_proto::codec;
use dfs_proto::directory::{Change, CommitReply};
use dfs_proto::file::{ChunkRef, Fetch, PutChunks, PutReply, Store};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::HEAD_BYTES_MAX;
use dfs_proto::rpc::{Envelope, encode_reply};
use dfs_proto::version::DataVersion;

use super::fake_cell::{CAPABILITY_KEY, FakeCell, NODES, Request};

impl FakeCell {
    pub(super) fn fetch(&self, request: &Request) -> ReplyBody {
        match self.admit::<Fetch>(request).and_then(|(_, it)| self.chunks(&it)) {
            Err(error) => reply(&Err::<(), _>(error)),
            Ok(chunks) => {
                let mut whole = BytesMut::from(&encode_reply(&Ok(())).expect("small")[..]);
                chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
                ReplyBody::Whole(whole.freeze())
            }
        }
    }

    fn chunks(&self, it: &Fetch) -> Result<Vec<Bytes>, FsError> {
        let right = CAPABILITY_KEY
            .verify_read(&it.capability, self.clock.wall().secs)
            .map_err(FsError::CapabilityRefused)?;
        let cell = self.cell();
        let find = |chunk: &ChunkRef| {
            let found = cell.chunks.get(&(it.node, right.fid, chunk.hash)).cloned();
            found.ok_or(FsError::ChunkMissing(chunk.hash))
        };
        it.chunks.iter().map(find).collect()
    }

    pub(super) fn put(&self, request: &Request) -> ReplyBody {
        let payload = request.payload.clone();
        self.run(request, |_, it: PutChunks| {
            let now = self.clock.wall().secs;
            let right = CAPABILITY_KEY.verify_write(&it.capability, now);
            let right = right.map_err(FsError::CapabilityRefused)?;
            self.keep(right.fid, it.node, &it.chunks, payload)?;
            Ok(PutReply { held_by: self.held_by(it.node) })
        })
    }

    pub(super) fn store(&self, request: &Request) -> ReplyBody {
        let payload = request.payload.clone();
        self.run(request, |who, it: Store| {
            let now = self.clock.wall().secs;
            let right = CAPABILITY_KEY.verify_write(&it.change.capability, now);
            let fid = right.map_err(FsError::CapabilityRefused)?.fid;
            self.keep(fid, it.node, &it.chunks, payload)?;
            let cell = self.cell();
            let is_missing = |hash: &&ChunkHash| !cell.chunks.contains_key(&(it.node, fid, **hash));
            let missing: Vec<ChunkHash> =
                it.put_before.iter().filter(is_missing).copied().collect();
            drop(cell);
            if !missing.is_empty() {
                return Err(FsError::NeedChunks(missing));
            }
            self.commit(who, &it.change, it.node)
        })
    }

    fn held_by(&self, node: NodeId) -> Vec<NodeId> {
        let down = self.cell().down.clone();
        let others = NODES.into_iter().filter(|other| *other != node && !down.contains(other));
        [node].into_iter().chain(others).collect()
    }

    fn keep(
        &self,
        fid: FileId,
        node: NodeId,
        chunks: &[ChunkRef],
        mut payload: Bytes,
    ) -> Result<(), FsError> {
        let holders = self.held_by(node);
        let mut cell = self.cell();
        for chunk in chunks {
            let bytes = payload.split_to(chunk.length as usize);
            if ChunkHash::of(&bytes) != chunk.hash {
                return Err(FsError::ChunkCorrupt(chunk.hash));
            }
            for holder in &holders {
                cell.chunks.insert((*holder, fid, chunk.hash), bytes.clone());
            }
        }
        Ok(())
    }

    fn commit(
        &self,
        who: &Envelope,
        change: &Change,
        node: NodeId,
    ) -> Result<CommitReply, FsError> {
        let right = &change.capability.right;
        let fid = right.fid;
        self.known(who)?;
        let mut cell = self.cell();
        let intent = CommitIntent {
            fid,
            base: right.base,
            token: right.token,
            op: change.op,
            manifest: change.manifest.hash(),
            attributes: ChunkHash::of(&codec::encode(&change.attr, HEAD_BYTES_MAX).expect("small")),
        };
        let key = &cell.sessions.get(&right.session).ok_or(FsError::SessionUnknown)?.0;
        assert!(key.is_sealed_commit(&intent, &change.mac), "the client seals what it sends");
        match cell.ledger.get(&change.op) {
            Some(Some(reply)) => return Ok(reply.clone()),
            Some(None) => return Err(FsError::OpSettled),
            None if change.op.number < who.lowest_unanswered => return Err(FsError::OpSettled),
            None => {}
        }
        let file = cell.files.get(&fid).ok_or(FsError::Stale)?.clone();
        if right.token != file.fence {
            return Err(FsError::Fenced);
        }
        if right.base != file.attr.data_version {
            return Err(FsError::Conflict { current: file.attr.data_version });
        }
        let known = file.manifest.hashes();
        let is_there = |hash: &ChunkHash| {
            known.contains(hash) || cell.chunks.contains_key(&(node, fid, *hash))
        };
        let hashes = change.manifest.hashes();
        let missing: Vec<ChunkHash> = hashes.into_iter().filter(|hash| !is_there(hash)).collect();
        if !missing.is_empty() {
            return Err(FsError::NeedChunks(missing));
        }
        let sequence = cell.next_sequence();
        let file = cell.files.get_mut(&fid).ok_or(FsError::Stale)?;
        file.manifest = change.manifest.clone();
        file.commit_count += 1;
        file.attr.size = change.manifest.size();
        file.attr.mtime = change.attr.mtime;
        file.attr.data_version = DataVersion::from(sequence);
        let attr = file.attr.clone();
        let base = attr.data_version;
        let grant = self.write_grant(right.session, fid, base, right.token);
        let reply = CommitReply { attr, capability: grant.capability, sequence };
        cell.ledger.insert(change.op, Some(reply.clone()));
        Ok(reply)
    }
}

fn reply<T: serde::Serialize>(result: &Result<T, FsError>) -> ReplyBody {
    ReplyBody::Whole(encode_reply(result).expect("replies of tests are small"))
}
