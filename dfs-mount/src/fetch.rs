//! Fetching: from a manifest to a file in the cache.
//!
//! Owns nothing but the list of fetches under way (one for each file and version; who comes later
//! waits for it). A new version is built in a new cache file: chunks that an older cached version
//! has are copied from there, the others come from replicas, a few requests at a time; every chunk
//! is checked against its hash on the way in, holes stay holes. Only a complete file is recorded.
//! A replica that is silent, or lacks a chunk, or has it damaged, is left at once (`placement`).
//! Called by vfs at open, and by commands that need no cache. Knows nothing of who may read what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::Attr;
use dfs_proto::capability::ReadCapability;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::CallError;
use dfs_proto::client::retry::retry;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{NodeAddress, Open, OpenAccess, OpenReply, Placement};
use dfs_proto::file::{ChunkRef, Fetch};
use dfs_proto::id::FileId;
use dfs_proto::limits::CHUNKS_PER_REQUEST_MAX;
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::version::DataVersion;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use crate::cache::record::{Content, Origin, State};
use crate::cache::{Cache, CacheError, CacheFile, CleanFile, ContentError};
use crate::metrics::Counter;
use crate::placement::{Next, Replicas, most_telling};
use crate::session::Session;
use crate::session::connection::{Attempt, Sending, To};

/// Chunk bytes asked for in one request. Why: large enough to fill a connection, small enough that
/// the requests in flight fit in memory and a lost one is soon repeated.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Requests in flight for one file.
const BATCHES_IN_FLIGHT: usize = 4;

/// How long a replica may take until its answer begins. Why: others may be faster.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches content for one client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Session,
    replicas: Replicas,
    flights: Mutex<HashMap<(FileId, DataVersion), Weak<Flight>>>,
}

/// Held while a version is fetched.
type Flight = tokio::sync::Mutex<()>;

/// A stretch of a file, in file order.
///
/// Units: bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Data { offset: u64, bytes: Bytes },
    Hole { offset: u64, length: u64 },
}

impl Fetcher {
    pub fn new(session: Session) -> Fetcher {
        let clock = Arc::clone(session.clock());
        let replicas = Replicas::new(clock, Arc::clone(session.metrics()));
        Fetcher { inner: Arc::new(Inner { session, replicas, flights: Mutex::default() }) }
    }

    /// The version of a file that an open answered with, complete in the cache. `previous` is the
    /// cached version that the open named, or another one to take chunks from.
    ///
    /// # Errors
    /// `Full` if it does not fit the cache; `ChunkMissing` or `ChunkCorrupt` if no replica has a
    /// chunk right; `Unavailable` if none answers until the policy ends. Nothing is recorded then.
    pub async fn fetch(
        &self,
        cache: &Cache,
        caller: Option<&Identity>,
        reply: &OpenReply,
        previous: Option<&CleanFile>,
    ) -> Result<CleanFile, ContentError> {
        let version = reply.attr.data_version;
        let Some(manifest) = &reply.manifest else {
            let current = previous.filter(|previous| previous.version == version);
            return current.cloned().ok_or_else(|| no_manifest(&reply.attr).into());
        };
        let manifest = Arc::new(checked(manifest.clone(), &reply.attr)?);
        let flight = self.flight(reply.attr.fid, version);
        let _one = flight.lock().await;
        if let Some(clean) = cache.clean(reply.attr.fid).await.filter(|it| it.version == version) {
            return Ok(clean);
        }
        let job = Job::new(self, caller.cloned(), reply);
        build(&job, cache, manifest, previous).await
    }

    /// The content of a file in file order, without a cache.
    ///
    /// # Errors
    /// `Malformed` if the open's answer has no manifest; the stream's items as
    /// [`Fetcher::fetch`].
    pub fn pieces(
        &self,
        caller: Option<&Identity>,
        reply: &OpenReply,
    ) -> Result<BoxStream<'static, Result<Piece, FsError>>, FsError> {
        let manifest = reply.manifest.clone().ok_or_else(|| no_manifest(&reply.attr))?;
        let manifest = checked(manifest, &reply.attr)?;
        let job = Arc::new(Job::new(self, caller.cloned(), reply));
        let segments = stream::iter(segments(&manifest)).map(move |segment| {
            let job = Arc::clone(&job);
            async move { job.pieces(segment).await }
        });
        Ok(segments
            .buffered(BATCHES_IN_FLIGHT)
            .map_ok(|pieces| stream::iter(pieces).map(Ok))
            .try_flatten()
            .boxed())
    }

    fn flight(&self, fid: FileId, version: DataVersion) -> Arc<Flight> {
        let mut flights = self.flights();
        flights.retain(|_, flight| flight.strong_count() > 0);
        let known = flights.get(&(fid, version)).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let flight = Arc::new(Flight::default());
            flights.insert((fid, version), Arc::downgrade(&flight));
            flight
        })
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<(FileId, DataVersion), Weak<Flight>>> {
        self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_manifest(attr: &Attr) -> FsError {
    FsError::malformed(format!("open of {} brought no manifest", attr.fid))
}

fn checked(manifest: Manifest, attr: &Attr) -> Result<Manifest, FsError> {
    let manifest = manifest.parse()?;
    match manifest.size() == attr.size {
        true => Ok(manifest),
        false => Err(FsError::malformed(format!("manifest of {} has another size", attr.fid))),
    }
}

/// Builds a version in a new cache file and records it.
async fn build(
    job: &Job,
    cache: &Cache,
    manifest: Arc<Manifest>,
    previous: Option<&CleanFile>,
) -> Result<CleanFile, ContentError> {
    let reservation = cache.reserve(manifest.stored_bytes())?;
    let file = cache.create(job.fid)?;
    let size = manifest.size();
    file.writer().and_then(|writer| writer.set_len(size)).map_err(|error| refused(&file, error))?;
    let wanted = copy_known(job, cache, &file, &manifest, previous).await?;
    let batches = stream::iter(batches(&wanted)).map(Ok);
    batches
        .try_for_each_concurrent(BATCHES_IN_FLIGHT, |batch| {
            let (cache, file) = (cache.clone(), Arc::clone(&file));
            async move {
                let bytes = job.chunks(batch.iter().map(|want| want.chunk).collect()).await?;
                blocking(move || write(&cache, &file, &batch, &bytes)).await?
            }
        })
        .await?;
    file.end_writing();
    let stamp = file.stamp().ok();
    let content = Content { version: job.version, manifest: Arc::clone(&manifest) };
    cache.record(&file, &Origin::default(), State::Clean(content), stamp)?;
    drop(reservation);
    Ok(CleanFile { file, version: job.version, manifest })
}

/// A chunk and all its places in the file.
#[derive(Clone, Debug)]
struct Want {
    chunk: ChunkRef,
    offsets: Vec<u64>,
}

fn wants(manifest: &Manifest) -> Vec<Want> {
    let mut index_of: HashMap<ChunkHash, usize> = HashMap::new();
    let mut wants: Vec<Want> = Vec::new();
    for chunk in manifest.chunks() {
        let index = *index_of.entry(chunk.hash).or_insert(wants.len());
        if index == wants.len() {
            let chunk = ChunkRef { hash: chunk.hash, length: chunk.length };
            wants.push(Want { chunk, offsets: Vec::new() });
        }
        wants[index].offsets.push(chunk.offset);
    }
    wants
}

/// Copies the chunks that the previous version has, and answers with those still wanted.
async fn copy_known(
    job: &Job,
    cache: &Cache,
    file: &Arc<CacheFile>,
    manifest: &Manifest,
    previous: Option<&CleanFile>,
) -> Result<Vec<Want>, ContentError> {
    let wants = wants(manifest);
    let Some(previous) = previous.cloned() else {
        return Ok(wants);
    };
    let (cache, file) = (cache.clone(), Arc::clone(file));
    let metrics = Arc::clone(job.fetcher.inner.session.metrics());
    let copy = move || {
        let known: HashMap<ChunkHash, u64> =
            previous.manifest.chunks().map(|chunk| (chunk.hash, chunk.offset)).collect();
        let mut missing = Vec::new();
        for want in wants {
            let offset = known.get(&want.chunk.hash);
            // Checked again although the file was: somebody may write to it meanwhile.
            match offset.and_then(|offset| read_chunk(&previous.file, *offset, want.chunk)) {
                Some(bytes) => {
                    metrics.add(Counter::CopiedBytes, bytes.len() as u64);
                    write(&cache, &file, std::slice::from_ref(&want), &[bytes])?;
                }
                None => missing.push(want),
            }
        }
        Ok(missing)
    };
    blocking(copy).await?
}

fn read_chunk(file: &CacheFile, offset: u64, chunk: ChunkRef) -> Option<Bytes> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; chunk.length as usize];
    file.file().read_exact_at(&mut bytes, offset).ok()?;
    (ChunkHash::of(&bytes) == chunk.hash).then(|| bytes.into())
}

fn write(
    cache: &Cache,
    file: &CacheFile,
    batch: &[Want],
    bytes: &[Bytes],
) -> Result<(), ContentError> {
    for (want, bytes) in batch.iter().zip(bytes) {
        for offset in &want.offsets {
            cache.write_at(file, bytes, *offset)?;
        }
    }
    Ok(())
}

fn batches(wants: &[Want]) -> Vec<Vec<Want>> {
    let mut batches: Vec<Vec<Want>> = Vec::new();
    let mut room = 0;
    for want in wants {
        let length = u64::from(want.chunk.length);
        match batches.last_mut() {
            Some(batch) if length <= room && batch.len() < CHUNKS_PER_REQUEST_MAX => {
                batch.push(want.clone());
                room -= length;
            }
            _ => {
                batches.push(vec![want.clone()]);
                room = BATCH_BYTES_MAX.saturating_sub(length);
            }
        }
    }
    batches
}

/// Stretches of a file, each fetched by one request at most.
fn segments(manifest: &Manifest) -> Vec<Vec<(u64, Extent)>> {
    let mut segments: Vec<Vec<(u64, Extent)>> = Vec::new();
    let (mut offset, mut room) = (0, 0);
    for extent in &manifest.extents {
        let bytes = match extent {
            Extent::Chunk { length, .. } => u64::from(*length),
            Extent::Hole { .. } => 0,
        };
        match segments.last_mut() {
            Some(segment) if bytes <= room && segment.len() < CHUNKS_PER_REQUEST_MAX => {
                segment.push((offset, *extent));
                room -= bytes;
            }
            _ => {
                segments.push(vec![(offset, *extent)]);
                room = BATCH_BYTES_MAX.saturating_sub(bytes);
            }
        }
        offset += extent.length();
    }
    segments
}

/// One version of one file, being fetched.
#[derive(Debug)]
struct Job {
    fetcher: Fetcher,
    fid: FileId,
    version: DataVersion,
    caller: Option<Identity>,
    placement: Placement,
    /// Replaced when it expires on the way.
    capability: Mutex<ReadCapability>,
}

impl Job {
    fn new(fetcher: &Fetcher, caller: Option<Identity>, reply: &OpenReply) -> Job {
        Job {
            fetcher: fetcher.clone(),
            fid: reply.attr.fid,
            version: reply.attr.data_version,
            caller,
            placement: reply.placement.clone(),
            capability: Mutex::new(reply.read.clone()),
        }
    }

    async fn pieces(&self, segment: Vec<(u64, Extent)>) -> Result<Vec<Piece>, FsError> {
        let chunk = |(_, extent): &(u64, Extent)| match *extent {
            Extent::Chunk { hash, length } => Some(ChunkRef { hash, length }),
            Extent::Hole { .. } => None,
        };
        let mut bytes = self.chunks(segment.iter().filter_map(chunk).collect()).await?.into_iter();
        let piece = |(offset, extent): (u64, Extent)| match extent {
            Extent::Chunk { .. } => bytes.next().map(|bytes| Piece::Data { offset, bytes }),
            Extent::Hole { length } => Some(Piece::Hole { offset, length }),
        };
        Ok(segment.into_iter().filter_map(piece).collect())
    }

    /// Chunks, checked, in the order asked for.
    async fn chunks(&self, wanted: Vec<ChunkRef>) -> Result<Vec<Bytes>, FsError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        match self.persist(&wanted).await {
            // Each replica may lack another chunk: one by one there may be a good copy of each.
            Err(FsError::ChunkMissing(_) | FsError::ChunkCorrupt(_)) if wanted.len() > 1 => {
                let mut all = Vec::with_capacity(wanted.len());
                for chunk in wanted {
                    all.extend(self.persist(&[chunk]).await?);
                }
                Ok(all)
            }
            result => result,
        }
    }

    async fn persist(&self, wanted: &[ChunkRef]) -> Result<Vec<Bytes>, FsError> {
        let session = &self.fetcher.inner.session;
        let policy = session.connection().policy();
        let attempt = |left: Duration| self.any_replica(wanted, left.min(REPLICA_TIMEOUT));
        retry(&**session.clock(), policy, attempt).await.map_err(CallError::into_fs)
    }

    async fn any_replica(
        &self,
        wanted: &[ChunkRef],
        timeout: Duration,
    ) -> Result<Vec<Bytes>, CallError> {
        let replicas = &self.fetcher.inner.replicas;
        let mut errors = Vec::new();
        for address in replicas.for_read(&self.placement) {
            match self.one_replica(&address, wanted, timeout).await {
                Ok(chunks) => {
                    replicas.answered(address.node);
                    return Ok(chunks);
                }
                Err(error) => {
                    tracing::debug!(fid = %self.fid, node = %address.node, %error, "replica left");
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

    async fn one_replica(
        &self,
        address: &NodeAddress,
        wanted: &[ChunkRef],
        timeout: Duration,
    ) -> Result<Vec<Bytes>, CallError> {
        match self.ask(address, wanted, timeout).await {
            Err(CallError::Fs(FsError::CapabilityRefused(_))) => {
                self.renew().await?;
                self.ask(address, wanted, timeout).await
            }
            result => result,
        }
    }

    async fn ask(
        &self,
        address: &NodeAddress,
        wanted: &[ChunkRef],
        timeout: Duration,
    ) -> Result<Vec<Bytes>, CallError> {
        let capability = self.capability.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = Fetch { node: address.node, capability, chunks: wanted.to_vec() };
        let session = &self.fetcher.inner.session;
        let sending = Sending { caller: self.caller.as_ref(), ..Sending::default() };
        let attempt = Attempt { to: To::Node(address), sending, timeout };
        let answer = session.attempt(attempt, &request, Vec::new()).await?;
        session.metrics().add(Counter::FetchedBytes, answer.payload.len() as u64);
        let wanted = wanted.to_vec();
        let cut = tokio::task::spawn_blocking(move || cut(&answer.payload, &wanted)).await;
        Ok(cut.map_err(|error| FsError::unavailable(error.to_string()))??)
    }

    /// A long fetch outlives its capability: asks the directory for another one.
    async fn renew(&self) -> Result<(), FsError> {
        let request = Open { fid: self.fid, access: OpenAccess::Read, have: Some(self.version) };
        let session = &self.fetcher.inner.session;
        let reply = session.call(Role::Directory, self.caller.as_ref(), &request).await?;
        *self.capability.lock().unwrap_or_else(PoisonError::into_inner) = reply.read;
        Ok(())
    }
}

/// Cuts a payload into the chunks asked for, and checks each.
fn cut(payload: &Bytes, wanted: &[ChunkRef]) -> Result<Vec<Bytes>, FsError> {
    let total: usize = wanted.iter().map(|chunk| chunk.length as usize).sum();
    if payload.len() != total {
        let what = format!("fetch of {total} bytes brought {}", payload.len());
        return Err(FsError::malformed(what));
    }
    let mut rest = payload.clone();
    let mut chunks = Vec::with_capacity(wanted.len());
    for chunk in wanted {
        let bytes = rest.split_to(chunk.length as usize);
        if ChunkHash::of(&bytes) != chunk.hash {
            return Err(FsError::ChunkCorrupt(chunk.hash));
        }
        chunks.push(bytes);
    }
    Ok(chunks)
}

fn refused(file: &CacheFile, source: std::io::Error) -> ContentError {
    let path = file.path().to_owned();
    CacheError::Io { what: "cannot size cache file", path, source }.into()
}

/// Runs what reads, writes or hashes off the tasks that serve others.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ContentError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| FsError::unavailable(error.to_string()).into())
}

#[cfg(test)]
mod tests;
