//! The store: a space's rows in memory and the thread that writes it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use dfs_proto::FsError;
use dfs_proto::id::NodeId;
use dfs_proto::version::{Epoch, Sequence};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::rows::{self, Pins, Rows, Wanted};
use super::txn::{Ended, ReadTxn, Txn};
use super::watch::Watch;
use super::writer::{self, Answered, Core, Job};
use super::{
    Abort, CacheBound, Durability, Engine, EngineError, KeyBytes, Record, Space, internal, key,
    record,
};
use crate::request::Origin;

/// Most mutations that wait for one writer; more wait for room in the queue.
const QUEUE_JOBS_MAX: usize = 1024;

/// Most mutations of one group commit. Why: bounds what one commit holds in memory and how long
/// the first of its jobs waits for the last.
const BATCH_JOBS_MAX: usize = 128;

/// Rows of a scan with their keys.
pub type Scanned<R> = Vec<(Vec<u8>, Arc<R>)>;

/// A handle on one space, cheap to clone. The writer ends with the last one.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    rows: Arc<Rows>,
    space: Space,
    epoch: Epoch,
    writer: Mutex<Writer>,
    watch: Arc<OnceLock<Arc<dyn Watch>>>,
}

/// Both are `None` once the store is closed.
struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Takes the space over in a new epoch and starts its writer. Blocks.
    pub fn open(
        engine: Arc<dyn Engine>,
        space: Space,
        holder: NodeId,
    ) -> Result<Store, EngineError> {
        Store::open_bounded(engine, space, holder, CacheBound::default())
    }

    /// As [`Store::open`], with another bound on the rows in memory.
    pub fn open_bounded(
        engine: Arc<dyn Engine>,
        space: Space,
        holder: NodeId,
        bound: CacheBound,
    ) -> Result<Store, EngineError> {
        let core = Core::open(engine.clone(), space, holder, bound)?;
        let (rows, epoch, watch) = (core.rows().clone(), core.epoch(), core.watch().clone());
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
        let thread = thread::Builder::new()
            .name(format!("meta-{space}"))
            .spawn(move || run_writer(core, jobs))
            .map_err(|error| EngineError::Failed {
                doing: "start the writer's thread",
                cause: Box::new(error),
            })?;
        let writer = Mutex::new(Writer { queue: Some(queue), thread: Some(thread) });
        Ok(Store { shared: Arc::new(Shared { engine, rows, space, epoch, writer, watch }) })
    }

    pub fn space(&self) -> Space {
        self.shared.space
    }

    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Whether there is space for more rows: to be asked before anything new is made.
    pub fn has_room(&self) -> bool {
        self.shared.engine.has_room()
    }

    /// The sequence of the last published commit; of an older epoch before the first of this one.
    pub fn sequence(&self) -> Sequence {
        self.shared.rows.sequence()
    }

    /// Runs `work` on one published state, again after every miss, and returns its result.
    ///
    /// Does not queue behind the writer (`meta::rows` tells the one commit it may wait for).
    /// Runs on the caller's thread under a lock that holds publishing up: keep it short.
    /// Cancel-safe.
    pub async fn read<T>(
        &self,
        mut work: impl FnMut(&mut ReadTxn<'_>) -> Result<T, Abort>,
    ) -> Result<T, FsError> {
        let mut pins = Pins::new(self.shared.rows.clone());
        loop {
            let wanted = match self.shared.rows.read(&mut work) {
                Ended::Done(value) => return Ok(value),
                Ended::Failed(error) => return Err(error),
                Ended::Missed(wanted) => wanted,
            };
            self.load(wanted, &mut pins).await?;
        }
    }

    /// Has the writer run `work`; returns when its group commit was accepted and published.
    ///
    /// If `work` fails, nothing of it is changed. With [`Durability::Stable`] the commit, and all
    /// before it, survive power loss. Dropped while it waits for room in the queue, nothing was
    /// done; dropped later, the mutation is made nevertheless.
    ///
    /// # Errors
    /// Those of `work`; `Internal` if it panicked or the engine failed (then the mutation may be
    /// found to have been made); `NoSpace` if the engine's disk is full; `Unavailable` if the
    /// store is closed, lost its space, or cannot reach its engine.
    pub async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnMut(&mut Txn<'_>) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, FsError> {
        self.write_for(None, durability, work).await
    }

    /// As [`Store::write`], for somebody: returns when the watch's hold is over as well.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn write_for<T: Send + 'static>(
        &self,
        origin: Option<Origin>,
        durability: Durability,
        work: impl FnMut(&mut Txn<'_>) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, FsError> {
        let (job, answer) = writer::job(durability, origin, work);
        let queue = self.shared.writer().queue.clone().ok_or_else(|| self.closed())?;
        queue.send(job).await.map_err(|_| self.closed())?;
        drop(queue);
        let Ok(Answered { result, hold }) = answer.await else { return Err(self.closed()) };
        if let Some(hold) = hold {
            hold.await;
        }
        result
    }

    /// Has `watch` told of every mutation from here on.
    ///
    /// # Panics
    /// If there is one already: it would never be told.
    pub fn set_watch(&self, watch: Arc<dyn Watch>) {
        let set = self.shared.watch.set(watch);
        assert!(set.is_ok(), "{} has one watch", self.shared.space);
    }

    /// Everything committed so far survives power loss when this returns.
    pub async fn stable(&self) -> Result<(), FsError> {
        self.write(Durability::Stable, |_| Ok(())).await
    }

    /// Up to `limit` rows with `from <= key < to`, in the order of keys, as of one commit.
    ///
    /// That commit is published when this returns, but others may follow it: a caller that needs
    /// to know whether the rows are current compares a version in a `read` afterwards. The rows do
    /// not go through the cache.
    pub async fn scan<R: Record>(
        &self,
        from: impl Into<KeyBytes>,
        to: impl Into<KeyBytes>,
        limit: usize,
    ) -> Result<Scanned<R>, FsError> {
        let (from, to) = (from.into(), to.into());
        let engine = self.shared.engine.clone();
        let range = (from.clone(), to.clone());
        let work = move || scan_rows(&*engine, &range.0, &range.1, limit);
        let rows = self.blocking(work).await?.map_err(|error| error.report("scan rows"))?;
        // The engine may be one commit ahead of what is published. A reader that compares versions
        // must not find the old one beside rows of the new.
        if let Some(commit) = self.shared.rows.commit_in(&from, &to) {
            self.ended(commit).await?;
        }
        self.shared.rows.read(|_| Ok(())).done()?;
        Ok(rows)
    }

    /// Has the writer finish what is queued and end. Later writes are refused; reads go on.
    pub async fn close(&self) {
        let shared = self.shared.clone();
        if spawn_blocking(move || shared.stop()).await.is_err() {
            tracing::error!(space = %self.shared.space, "the writer's end was not awaited");
        }
    }

    async fn load(&self, wanted: Vec<Wanted>, pins: &mut Pins) -> Result<(), FsError> {
        let absent = pins.add(wanted);
        if absent.is_empty() {
            return Ok(());
        }
        let engine = self.shared.engine.clone();
        let work = move || rows::load(&*engine, absent);
        let loaded = self.blocking(work).await?.map_err(|error| error.report("load rows"))?;
        // Here and not on the loader's thread: if this future is dropped, the pins that make it
        // right to insert the rows are gone.
        match self.shared.rows.fill(loaded) {
            Some(commit) => self.ended(commit).await,
            None => Ok(()),
        }
    }

    /// Waits for the end of a commit in flight.
    async fn ended(&self, commit: u64) -> Result<(), FsError> {
        if self.shared.rows.has_ended(commit).await {
            return Ok(());
        }
        // Its outcome is unknown, and only the writer can find out: any job has it try again.
        self.write(Durability::Process, |_| Ok(())).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FsError> {
        let failed = |error: tokio::task::JoinError| match error.is_panic() {
            true => internal("use the metadata engine", &error),
            false => self.closed(),
        };
        spawn_blocking(work).await.map_err(failed)
    }

    #[cfg(test)]
    pub(crate) fn rows_in_memory(&self) -> usize {
        self.shared.rows.len()
    }

    fn closed(&self) -> FsError {
        FsError::unavailable(format!("{} is closed on this server", self.shared.space))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("space", &self.shared.space)
            .field("epoch", &self.shared.epoch)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the queue and waits for the writer to empty it.
    fn stop(&self) {
        let (queue, thread) = {
            let mut writer = self.writer();
            (writer.queue.take(), writer.thread.take())
        };
        drop(queue);
        let Some(thread) = thread else { return };
        // The last handle may have been in a closure: the writer cannot wait for itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!(space = %self.space, "the metadata writer panicked");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run_writer(mut core: Core, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    let mut jobs = Vec::new();
    while queue.blocking_recv_many(&mut jobs, BATCH_JOBS_MAX) > 0 {
        core.run_batch(std::mem::take(&mut jobs));
    }
}

fn scan_rows<R: Record>(
    engine: &dyn Engine,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Result<Scanned<R>, EngineError> {
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| match record::decode::<R>(&value) {
        Ok(row) => Ok((key, Arc::new(row))),
        Err(cause) => Err(EngineError::Record { key: key::hex(&key), cause }),
    };
    engine.scan(from, to, limit)?.into_iter().map(decode).collect()
}
