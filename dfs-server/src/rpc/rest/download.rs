//! `GET` of a content: the chunks of one version, one batch after another.
//!
//! A version is fixed when the request begins, and every chunk is checked against its hash before a
//! byte of it is sent. The first batch is there before the status is: what goes wrong at once gets
//! an error of its own. What goes wrong later breaks the connection, before the announced length.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::attr::Attr;
use dfs_proto::capability::ReadCapability;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::CallError;
use dfs_proto::directory::{Open, OpenAccess, OpenReply};
use dfs_proto::file::{ChunkRef, Fetch};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::manifest::Extent;
use dfs_proto::version::DataVersion;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, IF_RANGE, RANGE,
};
use hyper::{Method, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::budget::Budget;
use super::caller::{Caller, Request, To};
use super::condition::{Conditions, tag};
use super::range::{Wanted, wanted};
use super::refusal::Refusal;
use super::respond::{ResponseBody, build, full, keep_private};
use super::target::Target;
use super::tree::{Links, find, with_tag};

/// Bytes fetched at a time; the last chunk may go beyond. Units: bytes.
///
/// Why 1 MiB: some chunks in one request, and little memory for each reader.
const BATCH_BYTES: usize = 1 << 20;

/// Memory of one reader: a batch, and what of the one before is still on its way out.
const READER_BYTES: usize = 2 * BATCH_BYTES + (1 << 20);

/// What holes are sent from.
const ZEROS: &[u8] = &[0; 64 << 10];

/// A request for a content.
pub struct Download<'a> {
    pub caller: &'a Caller,
    pub target: &'a Target,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub budget: &'a Budget,
}

impl Download<'_> {
    /// # Errors
    /// As [`find`]; those of `directory.open`; status 412 and 416; `Unavailable` if no replica has
    /// the first bytes.
    pub async fn answer(self) -> Result<Response<ResponseBody>, Refusal> {
        let conditions = Conditions::of(self.headers)?;
        let attr =
            find(self.caller, &self.target.volume, &self.target.path, Links::Followed).await?;
        let opened = open(self.caller, attr.fid, None).await?;
        let version = opened.attr.data_version;
        if !conditions.allow_read(version) {
            return Err(Refusal::with_status(412, FsError::Conflict { current: version }));
        }
        if conditions.has(version) {
            let mut response = build(304, "application/octet-stream", full(Vec::new()));
            keep_private(&mut response);
            return Ok(with_tag(response, &opened.attr));
        }
        let attr = opened.attr.clone();
        let range = self.range(&attr)?;
        let (status, wanted) = match &range {
            Some(range) => (206, range.clone()),
            None => (200, 0..attr.size),
        };
        let length = wanted.end - wanted.start;
        let body = match *self.method == Method::HEAD {
            true => full(Vec::new()),
            false => {
                let permit = self.budget.take(READER_BYTES).await?;
                body(Reader::new(self.caller.clone(), opened, wanted, permit)?).await?
            }
        };
        Ok(response(status, &attr, range, length, body))
    }

    fn range(&self, attr: &Attr) -> Result<Option<Range<u64>>, Refusal> {
        let text = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        // Whoever has the beginning of another version gets all of this one.
        let is_other = text(IF_RANGE).is_some_and(|known| known != tag(attr.data_version));
        match wanted(text(RANGE).filter(|_| !is_other), attr.size) {
            Wanted::All => Ok(None),
            Wanted::Part(range) => Ok(Some(range)),
            Wanted::Nothing => Err(Refusal::range(attr.size)),
        }
    }
}

async fn open(
    caller: &Caller,
    fid: FileId,
    have: Option<DataVersion>,
) -> Result<OpenReply, FsError> {
    caller.ask(To::Directory, &Open { fid, access: OpenAccess::Read, have }).await
}

fn response(
    status: u16,
    attr: &Attr,
    range: Option<Range<u64>>,
    length: u64,
    body: ResponseBody,
) -> Response<ResponseBody> {
    let mut response = with_tag(build(status, "application/octet-stream", body), attr);
    keep_private(&mut response);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(Range { start, end }) = range {
        let text = format!("bytes {start}-{}/{}", end - 1, attr.size);
        headers.extend(HeaderValue::try_from(text).ok().map(|value| (CONTENT_RANGE, value)));
    }
    response
}

async fn body(mut reader: Reader) -> Result<ResponseBody, FsError> {
    let first = reader.next().await?;
    let rest = stream::try_unfold(reader, |mut reader| async move {
        let next = reader.next().await.inspect_err(|error| {
            tracing::warn!(fid = %reader.fid, %error, "content breaks off in the middle");
        })?;
        Ok(next.map(|bytes| (Frame::data(bytes), reader)))
    });
    let first = stream::iter(first.map(|bytes| Ok(Frame::data(bytes))));
    Ok(StreamBody::new(futures_util::StreamExt::chain(first, rest)).boxed_unsync())
}

/// A stretch of the content that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stretch {
    /// These bytes of a chunk.
    Chunk {
        chunk: ChunkRef,
        part: Range<usize>,
    },
    Zeros(u64),
}

/// The stretches of a range, in order.
struct Stretches {
    extents: std::vec::IntoIter<Extent>,
    offset: u64,
    range: Range<u64>,
}

impl Iterator for Stretches {
    type Item = Stretch;

    fn next(&mut self) -> Option<Stretch> {
        while self.offset < self.range.end {
            let extent = self.extents.next()?;
            let (begin, length) = (self.offset, extent.length());
            self.offset += length;
            let start = self.range.start.max(begin) - begin;
            let end = self.range.end.min(self.offset) - begin;
            if start >= end {
                continue;
            }
            return Some(match extent {
                Extent::Hole { .. } => Stretch::Zeros(end - start),
                Extent::Chunk { hash, length } => {
                    let part = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
                    Stretch::Chunk { chunk: ChunkRef { hash, length }, part }
                }
            });
        }
        None
    }
}

/// Reads a range of one version.
struct Reader {
    caller: Caller,
    fid: FileId,
    version: DataVersion,
    capability: ReadCapability,
    replicas: Vec<NodeId>,
    /// The replica that answered last.
    preferred: usize,
    stretches: std::iter::Peekable<Stretches>,
    ready: VecDeque<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn new(
        caller: Caller,
        opened: OpenReply,
        range: Range<u64>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Reader, FsError> {
        let extents = opened.manifest.unwrap_or_default().parse()?.extents.into_iter();
        Ok(Reader {
            caller,
            fid: opened.attr.fid,
            version: opened.attr.data_version,
            capability: opened.read,
            replicas: opened.placement.replicas.iter().map(|replica| replica.node).collect(),
            preferred: 0,
            stretches: Stretches { extents, offset: 0, range }.peekable(),
            ready: VecDeque::new(),
            _permit: permit,
        })
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, FsError> {
        if let Some(bytes) = self.ready.pop_front() {
            return Ok(Some(bytes));
        }
        if let Some(Stretch::Zeros(left)) = self.stretches.peek_mut() {
            let length = usize::try_from(*left).unwrap_or(usize::MAX).min(ZEROS.len());
            *left -= length as u64;
            if *left == 0 {
                self.stretches.next();
            }
            return Ok(Some(Bytes::from_static(&ZEROS[..length])));
        }
        let (mut chunks, mut parts, mut total) = (Vec::new(), Vec::new(), 0);
        while total < BATCH_BYTES
            && let Some(Stretch::Chunk { chunk, part }) =
                self.stretches.next_if(|stretch| matches!(stretch, Stretch::Chunk { .. }))
        {
            total += chunk.length as usize;
            chunks.push(chunk);
            parts.push(part);
        }
        if chunks.is_empty() {
            return Ok(None);
        }
        let fetched = self.fetch(&chunks).await?;
        self.ready =
            fetched.into_iter().zip(parts).map(|(bytes, part)| bytes.slice(part)).collect();
        Ok(self.ready.pop_front())
    }

    /// Chunks from whichever replica has them; if none has all, each from one that has it.
    async fn fetch(&mut self, chunks: &[ChunkRef]) -> Result<Vec<Bytes>, FsError> {
        match self.fetch_together(chunks).await {
            Err(_) if chunks.len() > 1 => {
                let mut fetched = Vec::with_capacity(chunks.len());
                for chunk in chunks {
                    fetched.extend(self.fetch_together(std::slice::from_ref(chunk)).await?);
                }
                Ok(fetched)
            }
            fetched => fetched,
        }
    }

    async fn fetch_together(&mut self, chunks: &[ChunkRef]) -> Result<Vec<Bytes>, FsError> {
        let mut failed = FsError::unavailable("any replica of the file");
        for turn in 0..self.replicas.len() {
            let index = (self.preferred + turn) % self.replicas.len();
            match self.fetch_from(self.replicas[index], chunks).await {
                Ok(fetched) => {
                    self.preferred = index;
                    return Ok(fetched);
                }
                Err(error) => {
                    tracing::debug!(fid = %self.fid, node = %self.replicas[index], %error, "fetch");
                    // What a node says of the chunk tells more than that another is away.
                    if !error.is_transient() || failed.is_transient() {
                        failed = error;
                    }
                }
            }
        }
        Err(failed)
    }

    /// Asks one node; an expired capability is renewed once.
    async fn fetch_from(
        &mut self,
        node: NodeId,
        chunks: &[ChunkRef],
    ) -> Result<Vec<Bytes>, FsError> {
        match self.fetch_once(node, chunks).await {
            Err(FsError::CapabilityRefused(_)) => {
                self.capability = open(&self.caller, self.fid, Some(self.version)).await?.read;
                self.fetch_once(node, chunks).await
            }
            fetched => fetched,
        }
    }

    async fn fetch_once(&self, node: NodeId, chunks: &[ChunkRef]) -> Result<Vec<Bytes>, FsError> {
        let capability = self.capability.clone();
        let request = Fetch { node, capability, chunks: chunks.to_vec() };
        let answer = self.caller.exchange(Request::new(To::Node(node), &request)).await;
        verified(chunks, answer.map_err(CallError::into_fs)?.payload)
    }
}

/// Cuts a payload into chunks that have the hashes they are named by.
fn verified(chunks: &[ChunkRef], mut payload: Bytes) -> Result<Vec<Bytes>, FsError> {
    let expected: usize = chunks.iter().map(|chunk| chunk.length as usize).sum();
    if payload.len() != expected {
        let what = format!("{} bytes of chunks for {expected}", payload.len());
        return Err(FsError::malformed(what));
    }
    let cut = chunks.iter().map(|chunk| {
        let bytes = payload.split_to(chunk.length as usize);
        let is_right = ChunkHash::of(&bytes) == chunk.hash;
        if is_right { Ok(bytes) } else { Err(FsError::ChunkCorrupt(chunk.hash)) }
    });
    cut.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(length: u32) -> Extent {
        Extent::Chunk { hash: ChunkHash::of(&length.to_le_bytes()), length }
    }

    fn stretches(range: Range<u64>) -> Vec<Stretch> {
        let extents = vec![chunk(10), Extent::Hole { length: 20 }, chunk(5), chunk(7)];
        Stretches { extents: extents.into_iter(), offset: 0, range }.collect()
    }

    fn part(length: u32, part: Range<usize>) -> Stretch {
        let chunk = ChunkRef { hash: ChunkHash::of(&length.to_le_bytes()), length };
        Stretch::Chunk { chunk, part }
    }

    #[test]
    fn a_range_takes_parts_of_chunks_and_of_holes() {
        let all = [part(10, 0..10), Stretch::Zeros(20), part(5, 0..5), part(7, 0..7)];
        assert_eq!(stretches(0..42), all);
        assert_eq!(stretches(9..11), [part(10, 9..10), Stretch::Zeros(1)]);
        assert_eq!(stretches(12..20), [Stretch::Zeros(8)]);
        assert_eq!(stretches(31..36), [part(5, 1..5), part(7, 0..1)]);
        assert_eq!(stretches(41..42), [part(7, 6..7)]);
        assert_eq!(stretches(0..0), []);
    }

    #[test]
    fn bytes_that_are_not_the_chunk_are_not_passed_on() {
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"three"));
        let of = |bytes: &Bytes| ChunkRef {
            hash: ChunkHash::of(bytes),
            length: u32::try_from(bytes.len()).unwrap(),
        };
        let chunks = [of(&one), of(&two)];
        let good = Bytes::from_static(b"onethree");
        assert_eq!(verified(&chunks, good).unwrap(), [one, two]);
        let damaged = verified(&chunks, Bytes::from_static(b"onethrex"));
        assert_eq!(damaged, Err(FsError::ChunkCorrupt(chunks[1].hash)));
        assert!(verified(&chunks, Bytes::from_static(b"one")).is_err());
    }
}
