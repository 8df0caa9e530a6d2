//! `PUT` of a content: received window by window, cut, stored on the file's nodes, then committed.
//!
//! The beginning is received before the lock is taken, so that a short content, however slowly it
//! comes, holds up nobody. Chunks go to the file's nodes as they are cut; one commit at the end
//! makes them the content, on top of the version that was found under the lock and met the
//! request's conditions. Until then readers see what was before. A file that was made for the
//! content is removed again if the content does not come.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::attr::Attr;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::{CallError, cut_window};
use dfs_proto::clock::Clock;
use dfs_proto::directory::{
    Create, GetAttr, LockWait, Lookup, Open, OpenAccess, OpenReply, Outcome, OutcomeReply, Unlink,
};
use dfs_proto::file::ChunkRef;
use dfs_proto::id::VolumeId;
use dfs_proto::limits::{CHUNK_BYTES_MAX, MANIFEST_EXTENTS_MAX};
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::version::DataVersion;
use hyper::Response;
use hyper::body::Body;

use super::budget::Budget;
use super::caller::{CALL_TIMEOUT, Request, To};
use super::condition::Conditions;
use super::received::Received;
use super::refusal::Refusal;
use super::respond::{ResponseBody, json};
use super::session::Standing;
use super::show::Shown;
use super::store::{Failure, NewChunk, Storage};
use super::target::Target;
use super::tree::{Links, Slot, find, slot, with_tag};

/// What is received before it is cut. Units: bytes.
///
/// Why: where a chunk ends depends on up to `CHUNK_BYTES_MAX` bytes, and the rest is work.
const WINDOW_BYTES: usize = 2 * CHUNK_BYTES_MAX as usize;

/// Memory of one upload: the window, its chunks, and their copy on the way to a node.
const UPLOAD_BYTES: usize = 4 * WINDOW_BYTES;

/// Longest content, if the sender says its length: what a manifest of the longest chunks holds.
const CONTENT_BYTES_MAX: u64 = MANIFEST_EXTENTS_MAX as u64 * CHUNK_BYTES_MAX as u64;

/// How long an upload waits for the write lock. Units: milliseconds.
///
/// Why 30 s: less than programs wait for an answer.
const LOCK_WAIT_MS: u32 = 30_000;

/// Mode of a new file if the query names none.
const FILE_MODE_DEFAULT: u32 = 0o644;

/// The numbers of the ops of one upload.
const CREATE_OP: u64 = 1;
pub const COMMIT_OP: u64 = 2;
const REMOVE_OP: u64 = 3;

/// A content on its way in.
pub struct Upload<'a> {
    pub standing: &'a Standing,
    pub target: &'a Target,
    pub conditions: &'a Conditions,
    pub budget: &'a Budget,
    pub clock: &'a dyn Clock,
}

/// What the path leads to.
enum Place {
    There(Attr),
    Free(Slot),
}

impl Upload<'_> {
    /// # Errors
    /// As [`find`]; status 412 and 408; `LockTimeout`; those of storing.
    pub async fn run<B>(
        &self,
        received: &mut Received<B>,
    ) -> Result<Response<ResponseBody>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        if received.length().is_some_and(|length| length > CONTENT_BYTES_MAX) {
            let what = "content".into();
            return Err(FsError::TooLarge { what, limit: CONTENT_BYTES_MAX }.into());
        }
        let place = self.place().await?;
        match &place {
            Place::There(attr) if !self.conditions.allow_change(Some(attr.data_version)) => {
                return self.done_before(attr).await;
            }
            Place::There(_) => {}
            Place::Free(_) => self.judge(None)?,
        }
        let _permit = self.budget.take(UPLOAD_BYTES).await?;
        let mut window = Vec::new();
        let is_over = received.fill(&mut window, WINDOW_BYTES).await?;
        let (opened, made) = self.open(place).await?;
        let stored = async {
            if made.is_none() {
                self.judge(Some(opened.attr.data_version))?;
            }
            self.store(received, &opened, (window, is_over)).await
        };
        let is_new = made.is_some();
        let attr = match (stored.await, made) {
            (Err(refusal), Some(slot)) => match self.take_back(&slot, &opened.attr).await {
                Some(attr) => attr,
                None => return Err(refusal),
            },
            (stored, _) => stored?,
        };
        Ok(with_tag(json(if is_new { 201 } else { 200 }, &Shown::new(&attr)), &attr))
    }

    async fn place(&self) -> Result<Place, FsError> {
        let (caller, target) = (&self.standing.caller, self.target);
        match find(caller, &target.volume, &target.path, Links::Followed).await {
            Ok(attr) => Ok(Place::There(attr)),
            Err(FsError::NotFound) => Ok(Place::Free(slot(caller, target).await?)),
            Err(error) => Err(error),
        }
    }

    /// Whether the request's conditions hold of what is there; `None`: nothing.
    fn judge(&self, version: Option<DataVersion>) -> Result<(), Refusal> {
        if self.conditions.allow_change(version) {
            return Ok(());
        }
        let error = version.map_or(FsError::NotFound, |current| FsError::Conflict { current });
        Err(Refusal::with_status(412, error))
    }

    /// The version is not the one that was to be replaced: perhaps because this very request was
    /// done already.
    async fn done_before(&self, attr: &Attr) -> Result<Response<ResponseBody>, Refusal> {
        let current = attr.data_version;
        if self.standing.is_repeatable
            && let OutcomeReply::Committed(sequence) = self.outcome(attr.fid.volume).await?
        {
            return match DataVersion::from(sequence) == current {
                true => Ok(with_tag(json(200, &Shown::new(attr)), attr)),
                false => Err(FsError::OpSettled.into()),
            };
        }
        Err(Refusal::with_status(412, FsError::Conflict { current }))
    }

    /// What became of the commit; if it was not done, it never will be.
    async fn outcome(&self, volume: VolumeId) -> Result<OutcomeReply, FsError> {
        let caller = &self.standing.caller;
        caller.ask(To::Directory, &Outcome { volume, op: caller.op(COMMIT_OP) }).await
    }

    /// Opens the file with its lock; says where, if it was made for this.
    async fn open(&self, place: Place) -> Result<(OpenReply, Option<Slot>), FsError> {
        let caller = &self.standing.caller;
        let access = OpenAccess::Write { wait: LockWait::UpTo(LOCK_WAIT_MS), read: false };
        let timeout = CALL_TIMEOUT + Duration::from_millis(u64::from(LOCK_WAIT_MS));
        match place {
            Place::There(attr) => {
                let open = Open { fid: attr.fid, access, have: None };
                let request = Request { timeout, ..Request::new(To::Directory, &open) };
                let opened = caller.send(request).await;
                Ok((opened.map_err(CallError::into_fs)?, None))
            }
            Place::Free(slot) => {
                let mode = self.target.query.mode.unwrap_or(FILE_MODE_DEFAULT);
                let (parent, name) = (slot.parent, slot.name.clone());
                let create = Create { parent, name, mode, exclusive: false, access };
                let op = Some(CREATE_OP);
                let request = Request { timeout, op, ..Request::new(To::Directory, &create) };
                let made = caller.send(request).await;
                let made = made.map_err(CallError::into_fs)?;
                Ok((made.open, made.created.then_some(slot)))
            }
        }
    }

    async fn store<B>(
        &self,
        received: &mut Received<B>,
        opened: &OpenReply,
        (mut window, mut is_over): (Vec<u8>, bool),
    ) -> Result<Attr, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let base = opened.manifest.clone().unwrap_or_default().parse()?;
        let mut content = Content { known: base.hashes(), manifest: Manifest::default() };
        let mut storage = Storage::new(self.standing, opened, self.clock)?;
        loop {
            let cut = tokio::task::spawn_blocking(move || cut(window, is_over)).await;
            let (rest, chunks) = cut.map_err(|error| {
                tracing::error!(%error, "cutting a content");
                FsError::Internal { incident: "rest-cut".into() }
            })?;
            let new = content.add(chunks)?;
            if is_over {
                let stored = storage.commit(content.manifest.parse()?, new).await;
                return self.settled(stored, &opened.attr).await;
            }
            storage.put(new).await?;
            window = rest;
            is_over = received.fill(&mut window, WINDOW_BYTES).await?;
        }
    }

    /// A commit without an answer was done, or never will be; or nobody can say.
    async fn settled(&self, stored: Result<Attr, Failure>, before: &Attr) -> Result<Attr, Refusal> {
        let failure = match stored {
            Ok(attr) => return Ok(attr),
            Err(failure) => failure,
        };
        if !failure.is_ambiguous {
            return Err(failure.error.into());
        }
        match self.outcome(before.fid.volume).await {
            Ok(OutcomeReply::Committed(_)) => {
                let request = GetAttr { fid: before.fid };
                Ok(self.standing.caller.ask(To::Directory, &request).await?.attr)
            }
            Ok(OutcomeReply::Refused) => Err(failure.error.into()),
            Err(error) => {
                tracing::warn!(fid = %before.fid, %error, "outcome of a PUT is open");
                Err(FsError::TimedOut { whom: "the file's nodes; the outcome is open".into() }
                    .into())
            }
        }
    }

    /// Removes the file that was made for a content that did not come. If it has come after all,
    /// gives its attributes.
    async fn take_back(&self, slot: &Slot, made: &Attr) -> Option<Attr> {
        let caller = &self.standing.caller;
        let left = |error: FsError| tracing::warn!(%error, name = %slot.name, "empty file is left");
        match self.outcome(made.fid.volume).await {
            Ok(OutcomeReply::Refused) => {}
            Ok(OutcomeReply::Committed(_)) => {
                let reply = caller.ask(To::Directory, &GetAttr { fid: made.fid }).await;
                return reply.inspect_err(|error| left(error.clone())).ok().map(|reply| reply.attr);
            }
            Err(error) => {
                left(error);
                return None;
            }
        }
        let (parent, name) = (slot.parent, slot.name.clone());
        let there = caller.ask(To::Directory, &Lookup { parent, name: name.clone() }).await;
        let is_ours = |attr: &Attr| attr.fid == made.fid && attr.data_version == made.data_version;
        if there.is_ok_and(|there| is_ours(&there.attr))
            && let Err(error) = caller.change(REMOVE_OP, &Unlink { parent, name }).await
        {
            left(error);
        }
        None
    }
}

/// The new version, as far as it has come.
struct Content {
    /// Chunks that need not be sent: of the version before, or sent already.
    known: HashSet<ChunkHash>,
    manifest: Manifest,
}

impl Content {
    /// Adds chunks to the end; gives back those that are new.
    fn add(&mut self, chunks: Vec<NewChunk>) -> Result<Vec<NewChunk>, FsError> {
        if self.manifest.extents.len() + chunks.len() > MANIFEST_EXTENTS_MAX {
            let limit = MANIFEST_EXTENTS_MAX as u64;
            return Err(FsError::TooLarge { what: "number of the content's chunks".into(), limit });
        }
        let extent =
            |new: &NewChunk| Extent::Chunk { hash: new.chunk.hash, length: new.chunk.length };
        self.manifest.extents.extend(chunks.iter().map(extent));
        Ok(chunks.into_iter().filter(|new| self.known.insert(new.chunk.hash)).collect())
    }
}

/// Cuts a window into chunks, and gives back what belongs to the next one.
fn cut(window: Vec<u8>, is_last: bool) -> (Vec<u8>, Vec<NewChunk>) {
    let mut chunks = Vec::new();
    let used = cut_window(&window, is_last, &mut |bytes| {
        let length = u32::try_from(bytes.len()).expect("a chunk is at most CHUNK_BYTES_MAX");
        let chunk = ChunkRef { hash: ChunkHash::of(bytes), length };
        chunks.push(NewChunk { chunk, bytes: Bytes::copy_from_slice(bytes) });
    });
    (window[used..].to_vec(), chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_show_in_the_cuts() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let bytes: Vec<u8> = (0..7 << 20).map(|_| next()).collect();
        let (_, whole) = cut(bytes.clone(), true);
        let (mut window, mut chunks, mut rest) = (Vec::new(), Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let taken = rest.len().min(WINDOW_BYTES - window.len());
            window.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            let (kept, more) = cut(window, rest.is_empty());
            assert!(!more.is_empty() && kept.len() < CHUNK_BYTES_MAX as usize);
            window = kept;
            chunks.extend(more);
        }
        let hashes = |chunks: &[NewChunk]| -> Vec<ChunkHash> {
            chunks.iter().map(|new| new.chunk.hash).collect()
        };
        assert_eq!(hashes(&chunks), hashes(&whole));
    }

    #[test]
    fn a_chunk_is_sent_once_and_a_known_one_never() {
        let (_, chunks) = cut(b"known".to_vec(), true);
        let (_, new) = cut(b"new".to_vec(), true);
        let known = HashSet::from([chunks[0].chunk.hash]);
        let mut content = Content { known, manifest: Manifest::default() };
        assert!(content.add(chunks.clone()).unwrap().is_empty());
        assert_eq!(content.add(new.clone()).unwrap().len(), 1);
        assert!(content.add(new.clone()).unwrap().is_empty());
        assert_eq!(content.manifest.size(), 5 + 3 + 3);
        let many = vec![new[0].clone(); MANIFEST_EXTENTS_MAX];
        assert!(matches!(content.add(many), Err(FsError::TooLarge { .. })));
    }
}
