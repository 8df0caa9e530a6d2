//! Committing one working copy: from its mark to what the journal says afterwards.
//!
//! Everything here runs with the copy's `right` held. The order of steps is the crash contract of
//! the module above; [`Writeback::record`] is the one place that turns what became of a change
//! into journal and facts.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::directory::{CommitAttr, Durability};
use dfs_proto::version::FencingToken;

use crate::cache::record::{Closed, Content, State};
use crate::cache::{CacheError, ContentError, Stamp};
use crate::lease::Event;
use crate::metrics::Counter;

use super::failpoint::Point;
use super::job::{Change, Job, Source};
use super::put::{self, Plan, ScanError};
use super::store::{self, Sender, Sent};
use super::working::{Copy, Mark, Pending, Right, Standing, Unsent, closed};
use super::{Commit, Writeback};

/// Rounds of reading a file that changes while it is read.
const ROUNDS_MAX: u32 = 3;

/// Delays between two tries to send what is unsent.
pub(super) const RETRY_DELAY_FIRST: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// What a close asked for.
#[derive(Clone, Debug)]
struct Owed {
    attr: CommitAttr,
    durability: Durability,
}

/// One reading of a copy on its way.
#[derive(Clone, Copy)]
struct Pass<'a> {
    copy: &'a Arc<Copy>,
    mark: Mark,
    owed: &'a Owed,
    job: &'a Job,
}

fn is_shrunk(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::UnexpectedEof
}

/// As [`Copy::mark_to_commit`], off the runtime's threads if it may block.
async fn mark_to_commit(copy: &Arc<Copy>) -> std::io::Result<Mark> {
    if !copy.may_be_mapped() {
        return Ok(copy.mark());
    }
    let copy = Arc::clone(copy);
    let marking = tokio::task::spawn_blocking(move || copy.mark_to_commit());
    marking.await.map_err(std::io::Error::other)?
}

impl Writeback {
    pub(super) async fn commit_locked(
        &self,
        copy: &Arc<Copy>,
        right: &mut Right,
        mut attr: CommitAttr,
        durability: Durability,
    ) -> Result<Commit, ContentError> {
        let standing = copy.facts().standing.clone();
        if let Standing::Unsent(unsent) = &standing {
            // What was set before the first commit is owed until there is one.
            attr.first = attr.first.or_else(|| unsent.attr.first.clone());
        }
        match standing {
            Standing::Vanished => return Ok(Commit::Vanished),
            Standing::Conflict(conflict) => return Err(conflict.into()),
            Standing::Sound if !copy.is_dirty() => {
                self.inner.session.metrics().count(Counter::CommitUnchanged);
                return Ok(Commit::Unchanged);
            }
            Standing::Sound | Standing::Unsent(_) => {}
        }
        self.lock_event(copy.fid(), Event::Uncommitted);
        let owed = Owed { attr, durability };
        let result = self.send(copy, right, &owed).await;
        self.inner.failpoints.pass(Point::AfterRecord).await;
        // Settled also by an error that no retry under this lock can mend: others may go on.
        let is_owed = matches!(&result, Err(ContentError::Fs(error)) if error.is_transient())
            || matches!(&result, Err(ContentError::Cache(_)));
        if !is_owed {
            self.inner.locks.settle(copy.fid(), Event::Settled).await;
        }
        result
    }

    async fn send(
        &self,
        copy: &Arc<Copy>,
        right: &mut Right,
        owed: &Owed,
    ) -> Result<Commit, ContentError> {
        if let Err(error) = self.settle_pending(copy, right).await {
            // What an earlier close was about is journalled already.
            self.unsent(copy, copy.mark(), owed, &error);
            return Err(error.into());
        }
        for _ in 0..ROUNDS_MAX {
            if !copy.is_dirty() {
                let version = copy.facts().base.version;
                return Ok(Commit::Stored { version, attr: None });
            }
            let mark = match mark_to_commit(copy).await {
                Ok(mark) => mark,
                Err(error) => {
                    return Err(self.unread(copy, copy.mark(), owed, ScanError::Io(error)));
                }
            };
            let job = self.job(copy, right, owed);
            let mut plan = match put::prepare(&job, &self.inner.replicas).await {
                Ok(plan) => plan,
                Err(ScanError::Io(error)) if is_shrunk(&error) => continue,
                Err(error) => return Err(self.unread(copy, mark, owed, error)),
            };
            if let Some(conflict) = self.mended(&job, &plan).await {
                return self.record_conflict(copy, conflict);
            }
            let pass = Pass { copy, mark, owed, job: &job };
            let sent = self.store(pass, right, &mut plan).await?;
            (right.grant, right.placement) = job.right().unzip();
            match self.record(Pass { copy, mark, owed, job: &job }, right, &plan, sent).await? {
                Some(commit) => return Ok(commit),
                None => continue,
            }
        }
        let error = FsError::unavailable("file changes faster than it can be read");
        self.unsent(copy, copy.mark(), owed, &error);
        Err(error.into())
    }

    /// Sees to it that a plan whose chunks were refused for want of the lock can be sent after
    /// all. Answers with a conflict if it cannot ever.
    async fn mended(&self, job: &Job, plan: &Plan) -> Option<FsError> {
        match &plan.failed {
            Some(error @ FsError::Conflict { .. }) => Some(error.clone()),
            Some(FsError::Fenced) => match job.relock().await {
                Err(error @ FsError::Conflict { .. }) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }

    fn job(&self, copy: &Copy, right: &Right, owed: &Owed) -> Job {
        let change = Change {
            fid: copy.fid(),
            caller: copy.origin.caller.clone(),
            source: Source::Cached(Arc::clone(&copy.file)),
            base: copy.facts().base.clone(),
            attr: owed.attr.clone(),
            durability: owed.durability,
        };
        let held = right.grant.clone().zip(right.placement.clone());
        Job::new(self.inner.session.clone(), change, held)
    }

    async fn store(
        &self,
        pass: Pass<'_>,
        right: &mut Right,
        plan: &mut Plan,
    ) -> Result<Sent, ContentError> {
        match plan.failed.take() {
            Some(FsError::Stale) => return Ok(Sent::Vanished),
            // The lock is mended; the chunks go through the resend of the store.
            Some(FsError::Fenced) | None => {}
            Some(error) => return Ok(Sent::Unsent { error, is_open: false }),
        }
        let Pass { copy, mark, owed, job } = pass;
        let guard = self.inner.session.connection().begin_op();
        let op = guard.id();
        let manifest = Arc::clone(&plan.manifest);
        right.pending = Some(Pending { op, guard: Some(guard), manifest, mark });
        let manifest = Arc::clone(&plan.manifest);
        let journal = move |token: FencingToken| {
            let closed = closed(Some(op), &manifest, &owed.attr, owed.durability);
            let state = State::Sending { base: job.base.clone(), token, closed };
            self.inner.cache.record(&copy.file, &copy.origin, state, None)
        };
        let sender = Sender {
            job,
            replicas: &self.inner.replicas,
            plan,
            op,
            journal: &journal,
            failpoints: &self.inner.failpoints,
            progress: store::Progress::default(),
        };
        let sent = sender.run().await?;
        self.inner.failpoints.pass(Point::AfterStore).await;
        Ok(sent)
    }

    /// Brings journal and facts up to what became of a change. `None`: it has to be read again.
    async fn record(
        &self,
        pass: Pass<'_>,
        right: &mut Right,
        plan: &Plan,
        sent: Sent,
    ) -> Result<Option<Commit>, ContentError> {
        let Pass { copy, mark, owed, .. } = pass;
        let is_open = matches!(sent, Sent::Unsent { is_open: true, .. });
        let op = right.pending.as_ref().map(|pending| pending.op).filter(|_| is_open);
        if !is_open {
            right.pending = None;
        }
        match sent {
            Sent::Changed => Ok(None),
            Sent::Stored { version, attr } => {
                let content = Content { version, manifest: Arc::clone(&plan.manifest) };
                self.advance(copy, right, content, mark);
                self.inner.session.metrics().count(Counter::CommitStored);
                Ok(Some(Commit::Stored { version, attr: attr.map(Box::new) }))
            }
            Sent::Vanished => {
                self.vanish(copy);
                Ok(Some(Commit::Vanished))
            }
            Sent::Conflict(conflict) => self.record_conflict(copy, conflict).map(Some),
            Sent::Unsent { error, .. } => {
                let closed = closed(op, &plan.manifest, &owed.attr, owed.durability);
                self.journal_unsent(copy, right, closed, &error);
                self.unsent(copy, mark, owed, &error);
                Err(error.into())
            }
        }
    }

    /// The server has the content of `mark` as this version.
    fn advance(&self, copy: &Arc<Copy>, right: &Right, content: Content, mark: Mark) {
        let has_writers = {
            let mut facts = copy.facts();
            facts.base = content.clone();
            facts.is_new = false;
            facts.committed = mark;
            facts.standing = Standing::Sound;
            facts.writer_count > 0
        };
        let token = right.grant.as_ref().map(|grant| grant.token);
        if has_writers {
            let state = State::Working { base: content, token: token.unwrap_or_default() };
            self.journal(copy, state, None);
        } else {
            self.close(copy, token);
        }
    }

    /// Nobody writes any more: a copy that is not dirty becomes a cached version.
    pub(super) fn close(&self, copy: &Arc<Copy>, token: Option<FencingToken>) {
        let (base, standing, committed) = {
            let facts = copy.facts();
            (facts.base.clone(), facts.standing.clone(), facts.committed)
        };
        match standing {
            Standing::Vanished => {
                self.inner.cache.remove(copy.file.id());
                self.forget(copy);
            }
            Standing::Conflict(_) | Standing::Unsent(_) => {}
            Standing::Sound if copy.is_dirty() => {
                // Closed without a commit that got anywhere: the times are all that is not known.
                let mtime = self.inner.cache.clock().wall();
                let attr = CommitAttr { mtime, ..CommitAttr::default() };
                let owed = Owed { attr, durability: Durability::Process };
                let error = FsError::unavailable("it was closed without being sent");
                tracing::warn!(fid = %copy.fid(), ?token, "closed copy is dirty");
                self.unsent(copy, copy.mark(), &owed, &error);
            }
            Standing::Sound if copy.facts().is_torn => {
                self.inner.cache.remove(copy.file.id());
                self.forget(copy);
            }
            Standing::Sound if self.is_live(copy) => {
                self.journal(copy, State::Clean(base), committed.stamp());
                self.forget(copy);
            }
            // The server has moved on since, and so have later opens.
            Standing::Sound => self.inner.cache.remove(copy.file.id()),
        }
    }

    pub(super) fn vanish(&self, copy: &Arc<Copy>) {
        self.inner.session.metrics().count(Counter::CommitVanished);
        let mut facts = copy.facts();
        facts.standing = Standing::Vanished;
        let is_last = facts.writer_count == 0;
        drop(facts);
        self.inner.cache.remove(copy.file.id());
        if is_last {
            self.forget(copy);
        }
    }

    fn record_conflict(&self, copy: &Arc<Copy>, conflict: FsError) -> Result<Commit, ContentError> {
        self.detach(copy, conflict.clone())?;
        Err(conflict.into())
    }

    /// The copy stands for its file no longer. A change in it is kept as a conflict.
    pub(super) fn detach(&self, copy: &Arc<Copy>, conflict: FsError) -> Result<(), CacheError> {
        let is_changed = copy.is_dirty() || copy.facts().unsent().is_some();
        self.forget(copy);
        self.lock_event(copy.fid(), Event::Lost);
        if !is_changed {
            return Ok(());
        }
        self.inner.session.metrics().count(Counter::CommitConflict);
        let base = copy.facts().base.clone();
        let why = conflict.to_string();
        tracing::warn!(fid = %copy.fid(), hint = copy.origin.hint, why, "kept as a conflict");
        copy.facts().standing = Standing::Conflict(conflict);
        self.inner.cache.record(&copy.file, &copy.origin, State::Conflict { base, why }, None)
    }

    /// Finds out what became of an earlier commit whose answer is owed.
    pub(super) async fn settle_pending(
        &self,
        copy: &Arc<Copy>,
        right: &mut Right,
    ) -> Result<(), FsError> {
        let Some(pending) = &right.pending else {
            return Ok(());
        };
        let owed = Owed { attr: CommitAttr::default(), durability: Durability::Process };
        let job = self.job(copy, right, &owed);
        let sent = match store::settle(&job, pending.op, &pending.manifest).await {
            Err(FsError::Stale) => Some(Sent::Vanished),
            sent => sent?,
        };
        let Some(Pending { manifest, mark, guard, .. }) = right.pending.take() else {
            return Ok(());
        };
        drop(guard);
        match sent {
            Some(Sent::Stored { version, .. }) => {
                // The capability is for the base before: another one comes with the lock.
                right.grant = None;
                self.advance(copy, right, Content { version, manifest }, mark);
            }
            Some(Sent::Vanished) => self.vanish(copy),
            _ => {}
        }
        Ok(())
    }

    fn unread(&self, copy: &Arc<Copy>, mark: Mark, owed: &Owed, error: ScanError) -> ContentError {
        let error: ContentError = match error {
            ScanError::Fs(error) => error.into(),
            ScanError::Io(source) => {
                let path = copy.file.path().to_owned();
                CacheError::Io { what: "cannot read cache file", path, source }.into()
            }
        };
        self.unsent(copy, mark, owed, &FsError::unavailable(error.to_string()));
        error
    }

    /// Notes that a closed content is owed, and when to try again.
    fn unsent(&self, copy: &Arc<Copy>, mark: Mark, owed: &Owed, error: &FsError) {
        self.inner.session.metrics().count(Counter::CommitUnsent);
        let mut facts = copy.facts();
        let delay = facts.unsent().map_or(RETRY_DELAY_FIRST, |unsent| unsent.delay * 2);
        let delay = delay.min(RETRY_DELAY_MAX);
        let clock = self.inner.cache.clock();
        let same = facts.unsent().filter(|unsent| unsent.mark == mark);
        let since = same.map_or_else(|| clock.wall(), |unsent| unsent.since);
        tracing::warn!(fid = %copy.fid(), hint = copy.origin.hint, %error, "unsent");
        facts.standing = Standing::Unsent(Unsent {
            why: error.to_string(),
            since,
            mark,
            attr: owed.attr.clone(),
            durability: owed.durability,
            next_try: clock.boottime() + delay,
            delay,
        });
        drop(facts);
        self.inner.wake.notify_one();
    }

    fn journal_unsent(&self, copy: &Copy, right: &Right, closed: Closed, error: &FsError) {
        let base = copy.facts().base.clone();
        let token = right.grant.as_ref().map(|grant| grant.token).unwrap_or_default();
        let why = error.to_string();
        self.journal(copy, State::Unsent { base, token, closed, why }, None);
    }

    /// Records a state whose absence does no harm: the one before is replayed to the same end.
    fn journal(&self, copy: &Copy, state: State, trusted: Option<Stamp>) {
        let recorded = self.inner.cache.record(&copy.file, &copy.origin, state, trusted);
        if let Err(error) = recorded {
            tracing::warn!(fid = %copy.fid(), %error, "journal");
        }
    }
}
