//! Write-back: changes are made on local files and sent when they are closed.
//!
//! Owns the working copies, the write locks and the outbox. The promise is tenet 1: what a close
//! was answered for is at the servers; what was closed and not answered is sent later, also by the
//! next run of the client; what was never closed is kept and never sent by itself.
//!
//! The journal's order is the crash contract (entry states of the cache, in order):
//! 1. `Working` before an open for writing is answered.
//! 2. `Sending`, with the manifest of what was closed and the op id, before the store is sent.
//! 3. `Working` on the new base (or `Clean`, when nobody writes) after the answer, before the
//!    close is answered. On failure `Unsent`, on another's change `Conflict`.
//!
//! After a kill (see `recover`): `Sending` and `Unsent` are sent if the file still has the
//! journalled hashes, once their old op is settled; everything else that differs from its base
//! becomes `Interrupted`. So a replay can neither send twice nor send half of something.
//!
//! One task at a time commits a file (`Copy::right`). A commit that is dropped half way leaves its
//! op as pending in there, and the next one settles it first; the data stays dirty meanwhile.

mod chunker;
mod commit;
pub mod failpoint;
mod job;
mod locks;
mod outbox;
mod put;
mod recover;
mod send_file;
mod share;
mod store;
mod working;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::Attr;
use dfs_proto::directory::{CommitAttr, Durability, OpenReply, Placement, WriteGrant};
use dfs_proto::id::FileId;
use dfs_proto::lock::Recall;
use dfs_proto::manifest::Manifest;
use dfs_proto::version::DataVersion;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::record::{Content, Origin, State};
use crate::cache::{Cache, CacheError, CacheFile, ContentError};
use crate::lease::Event;
use crate::placement::Replicas;
use crate::session::Session;

pub use locks::WriteIntent;
pub use outbox::{Drained, OutboxItem, OutboxState};
pub use send_file::{SendFile, send_file};
use share::Asked;
pub use working::Working;

use failpoint::{FailPoints, Point};
use locks::Locks;
use working::Copy;

/// The write-back of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writeback {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Session,
    cache: Cache,
    replicas: Replicas,
    locks: Locks,
    /// Working copies that stand for their files. Copies in conflict are not here.
    live: Mutex<HashMap<FileId, Arc<Copy>>>,
    /// Something became unsent.
    wake: Arc<Notify>,
    stop: CancellationToken,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    failpoints: FailPoints,
}

/// What an open for writing found.
#[derive(Debug)]
pub struct Begin {
    /// The cached version, or an empty file.
    pub file: Arc<CacheFile>,
    /// The server's version and content; what the file holds, unless `is_dirty`.
    pub base: DataVersion,
    pub base_manifest: Arc<Manifest>,
    pub grant: WriteGrant,
    pub placement: Placement,
    pub origin: Origin,
    /// The file differs from its base from the start (it was truncated by the open).
    pub is_dirty: bool,
    /// The open made the file.
    pub is_new: bool,
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Nothing had changed; nothing was sent.
    Unchanged,
    /// The server has it. Without attributes if the answer was lost and found out later.
    Stored { version: DataVersion, attr: Option<Box<Attr>> },
    /// The file is removed everywhere, and the change with it.
    Vanished,
}

/// How long an open waits for an unsent change to be sent first.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

impl Writeback {
    /// Takes up what an earlier run left, and starts to obey recalls and to send what is unsent.
    ///
    /// # Errors
    /// Those of the cache.
    pub async fn start(
        session: Session,
        cache: Cache,
        recalls: mpsc::Receiver<Recall>,
    ) -> Result<Writeback, CacheError> {
        let (clock, metrics) = (Arc::clone(session.clock()), Arc::clone(session.metrics()));
        let writeback = Writeback {
            inner: Arc::new(Inner {
                locks: Locks::new(session.clone()),
                session,
                cache,
                replicas: Replicas::new(clock, metrics),
                live: Mutex::default(),
                wake: Arc::default(),
                stop: CancellationToken::new(),
                tasks: tokio::sync::Mutex::default(),
                failpoints: FailPoints::default(),
            }),
        };
        recover::take_up(&writeback).await?;
        let mut tasks = writeback.inner.tasks.lock().await;
        tasks.spawn(outbox::send_again(Arc::downgrade(&writeback.inner), writeback.stopped()));
        let weak = Arc::downgrade(&writeback.inner);
        tasks.spawn(obey_recalls(weak, recalls, writeback.stopped()));
        drop(tasks);
        Ok(writeback)
    }

    fn stopped(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Ends the tasks. What is unsent stays in the journal.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let mut tasks = self.inner.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
    }

    /// The working copy that stands for a file, if there is one.
    pub fn working(&self, fid: FileId) -> Option<Working> {
        self.live().get(&fid).map(|copy| Working { copy: Arc::clone(copy) })
    }

    /// To be called first in every open. If a change of the file was closed here and is unsent,
    /// tries to send it. Answers with the working copy, if one stands for the file: the handle has
    /// to use its file.
    pub async fn before_open(&self, fid: FileId) -> Option<Working> {
        let working = self.working(fid)?;
        let is_left = {
            let facts = working.copy.facts();
            facts.unsent().is_some() && facts.writer_count == 0
        };
        if is_left {
            let clock = self.inner.cache.clock();
            // Whatever comes of it, the copy (or its absence) is what the open has to see. A commit
            // that is dropped stays pending.
            tokio::select! {
                _ = self.send_unsent(&working.copy) => {}
                () = clock.sleep_until(clock.boottime() + OPEN_PATIENCE) => {}
            }
        }
        self.working(fid)
    }

    /// To be called before an open for writing is sent (for a create: when its answer has named
    /// the file). A recall of its lock waits until the open has ended.
    pub async fn intend(&self, fid: FileId) -> WriteIntent {
        self.inner.locks.intend(fid).await
    }

    /// One more writer for the working copy of the file, if there is one and the server's version
    /// is its base. If the server has moved on, the copy does not stand for the file any more: a
    /// change in it becomes a conflict in the outbox, and the answer is `None`.
    ///
    /// # Errors
    /// `Unavailable` if the outcome of an earlier commit cannot be found out; those of the cache.
    pub async fn join(
        &self,
        intent: &WriteIntent,
        reply: &OpenReply,
    ) -> Result<Option<Working>, ContentError> {
        let Some(working) = self.working(intent.fid()) else {
            return Ok(None);
        };
        let Some(grant) = &reply.write else {
            return Err(FsError::malformed("open for writing brought no lock").into());
        };
        let copy = &working.copy;
        let mut right = copy.right.lock().await;
        self.settle_pending(copy, &mut right).await?;
        if !self.is_live(copy) {
            // Its last writer closed it while we waited.
            return Ok(None);
        }
        let current = reply.attr.data_version;
        // An answer from before our own last commit is no news.
        if current > copy.facts().base.version {
            self.detach(copy, FsError::Conflict { current })?;
            return Ok(None);
        }
        right.grant = Some(grant.clone());
        right.placement = Some(reply.placement.clone());
        copy.set_has_lock();
        copy.facts().writer_count += 1;
        self.lock_event(intent.fid(), Event::Granted(grant.token));
        self.lock_event(intent.fid(), Event::WriterOpened);
        drop(right);
        Ok(Some(working))
    }

    /// Makes a file a working copy with one writer, journalled before this returns.
    ///
    /// # Errors
    /// `Unavailable` if a working copy stands for the file already (join it); those of the cache.
    pub async fn begin(&self, intent: &WriteIntent, begin: Begin) -> Result<Working, ContentError> {
        let fid = intent.fid();
        if self.working(fid).is_some() {
            return Err(FsError::unavailable("file is being opened by somebody else").into());
        }
        let base = Content { version: begin.base, manifest: begin.base_manifest };
        let token = begin.grant.token;
        let copy = Copy::new(self.inner.cache.clone(), begin.file, begin.origin, base.clone());
        let state = State::Working { base, token };
        self.inner.cache.record(&copy.file, &copy.origin, state, None)?;
        if begin.is_dirty {
            copy.mark_dirty();
        }
        {
            let mut facts = copy.facts();
            (facts.writer_count, facts.is_new) = (1, begin.is_new);
        }
        let copy = Arc::new(copy);
        {
            let mut right = copy.right.lock().await;
            right.grant = Some(begin.grant);
            right.placement = Some(begin.placement);
        }
        self.live().insert(fid, Arc::clone(&copy));
        self.lock_event(fid, Event::Granted(token));
        self.lock_event(fid, Event::WriterOpened);
        self.inner.failpoints.pass(Point::AfterWorking).await;
        Ok(Working { copy })
    }

    /// Sends what changed since the last commit, if anything did.
    ///
    /// # Errors
    /// Why the server does not have it. The data is in the outbox then: as `Unsent`, tried again,
    /// or as `Conflict`. An error of the cache leaves the copy dirty.
    pub async fn commit(
        &self,
        working: &Working,
        attr: CommitAttr,
        durability: Durability,
    ) -> Result<Commit, ContentError> {
        let mut right = working.copy.right.lock().await;
        let result = self.commit_locked(&working.copy, &mut right, attr, durability).await;
        drop(right);
        // Flushed by every process that inherited it, an unshared file is let go only as asked for.
        if durability == Durability::Stable || working.copy.facts().is_shared {
            self.share(working.fid(), Asked::ByOthers).await;
        }
        result
    }

    /// One writer less. After the last one a copy that the server has becomes a cached version,
    /// and a recalled lock goes back.
    ///
    /// If the last handle leaves mappings behind, they count as a writer instead of it, and are
    /// answered with: whoever gets them looks after them ([`Writeback::is_mapping_over`]). So does
    /// a mapping that ended just now, if it was stored to after the last commit.
    pub async fn release(&self, working: Working) -> Option<Working> {
        let copy = &working.copy;
        let right = copy.right.lock().await;
        let is_last = {
            let mut facts = copy.facts();
            facts.writer_count = facts.writer_count.saturating_sub(1);
            facts.writer_count == 0
        };
        // In this order: once nothing is mapped, nothing is stored any more.
        if is_last && (is_mapped(copy) || copy.has_late_stores()) {
            let mut facts = copy.facts();
            (facts.writer_count, facts.is_mapped) = (1, true);
            drop(facts);
            drop(right);
            return Some(working);
        }
        if is_last {
            copy.file.end_writing();
            self.close(copy, right.grant.as_ref().map(|grant| grant.token));
        }
        drop(right);
        self.inner.locks.settle(copy.fid(), Event::WriterClosed).await;
        None
    }

    /// Whether the mappings that [`Writeback::release`] answered with are gone. If so they count
    /// as one more handle that is to be committed and released; handles that were opened since
    /// leave their mappings by themselves.
    pub async fn is_mapping_over(&self, working: &Working) -> bool {
        let copy = &working.copy;
        // Nobody can begin to write meanwhile.
        let _right = copy.right.lock().await;
        let is_alone = copy.facts().writer_count == 1;
        let is_over = is_alone && !is_mapped(copy);
        if is_over {
            copy.facts().is_mapped = false;
        }
        is_over
    }

    async fn obey(&self, recall: &Recall) {
        self.inner.locks.settle(recall.fid, Event::Recalled(recall.token)).await;
        self.share(recall.fid, Asked::ByOthers).await;
    }

    #[cfg(feature = "testing")]
    pub fn failpoints(&self) -> &FailPoints {
        &self.inner.failpoints
    }

    fn lock_event(&self, fid: FileId, event: Event) {
        if let Some(token) = self.inner.locks.apply(fid, event) {
            self.inner.session.yield_later(fid, token);
        }
    }

    fn forget(&self, copy: &Arc<Copy>) {
        if self.is_live(copy) {
            self.live().remove(&copy.fid());
        }
    }

    fn is_live(&self, copy: &Arc<Copy>) -> bool {
        self.live().get(&copy.fid()).is_some_and(|other| Arc::ptr_eq(other, copy))
    }

    fn live(&self) -> MutexGuard<'_, HashMap<FileId, Arc<Copy>>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody may store to the copy's file though no handle that may write is open.
fn is_mapped(copy: &Copy) -> bool {
    if !copy.may_be_mapped() {
        return false;
    }
    match copy.file.is_mapped_for_writing() {
        Ok(is_mapped) => is_mapped,
        Err(error) => {
            // It could when the cache was opened, or nothing would be mapped past us.
            tracing::warn!(fid = %copy.fid(), %error, "cannot see whether the file is mapped");
            false
        }
    }
}

/// Recalls obeyed at the same time.
const RECALLS_AT_ONCE: usize = 16;

async fn obey_recalls(
    inner: Weak<Inner>,
    mut recalls: mpsc::Receiver<Recall>,
    stop: CancellationToken,
) {
    let Some(wanted) = inner.upgrade().map(|inner| inner.locks.wanted()) else { return };
    let mut running = JoinSet::new();
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            recall = recalls.recv() => match recall {
                Some(recall) => Ok(recall),
                None => return,
            },
            fids = wanted.take() => Err(fids),
        };
        if running.len() >= RECALLS_AT_ONCE {
            running.join_next().await;
        }
        let Some(inner) = inner.upgrade() else { return };
        let writeback = Writeback { inner };
        if let Ok(recall) = &next
            && let Some(working) = writeback.working(recall.fid)
        {
            working.ask_to_look();
        }
        running.spawn(async move {
            match next {
                Ok(recall) => writeback.obey(&recall).await,
                Err(fids) => {
                    for fid in fids {
                        writeback.share(fid, Asked::ByOthers).await;
                    }
                }
            }
        });
        while running.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests;
