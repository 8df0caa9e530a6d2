//! Storing: from a plan to a commit, whatever happens on the way.
//!
//! One op id stands for the change from its first store to the end: the directory runs it once,
//! however often and through whichever replica it is asked, and an error leaves it free to be
//! asked again. What an error means is one table ([`judge`]); everything else here acts on it. A
//! store that was sent and not answered is *ambiguous*: giving up then asks for the op's outcome,
//! and if that is not to be had either, the op is handed back as pending, to be settled before
//! anything else is sent for this file.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::Attr;
use dfs_proto::capability::CommitIntent;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::{Answer, CallError, TransportError, TransportFault};
use dfs_proto::codec;
use dfs_proto::directory::{
    Change, CommitReply, Durability, GetAttr, Open, OpenAccess, OutcomeReply, WriteGrant,
};
use dfs_proto::file::Store;
use dfs_proto::id::{NodeId, OpId};
use dfs_proto::limits::HEAD_BYTES_MAX;
use dfs_proto::manifest::Manifest;
use dfs_proto::version::{DataVersion, FencingToken, Sequence};

use crate::cache::CacheError;
use crate::metrics::Counter;
use crate::placement::{Next, Replicas, most_telling};
use crate::session::connection::{Attempt, Sending, To, is_unsent};

use super::chunker;
use super::failpoint::{FailPoints, Point};
use super::job::Job;
use super::put::{self, Plan};

/// Time a store gets beyond the policy's when it must reach stable storage first, as long as the
/// servers show that they live.
const STABLE_WAIT: Duration = Duration::from_secs(90);

/// Longest and shortest time one attempt gets.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

/// How often it is looked whether servers that take long still live.
const LIFE_CHECK: Duration = Duration::from_secs(1);

/// Remedies (renewals, new locks, chunks sent again) for one change before it counts as failed.
const REMEDIES_MAX: u32 = 8;

/// What became of a change.
#[derive(Debug)]
pub(super) enum Sent {
    Stored {
        version: DataVersion,
        attr: Option<Attr>,
    },
    /// The file is gone.
    Vanished,
    Conflict(FsError),
    /// Not accepted; if `is_open`, the op may still run.
    Unsent {
        error: FsError,
        is_open: bool,
    },
    /// The file is not what the plan says any more: plan again.
    Changed,
}

/// Tells the journal before anything final is sent.
pub(super) type Journal<'a> = &'a (dyn Fn(FencingToken) -> Result<(), CacheError> + Send + Sync);

/// What an error means for the change.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The same again, a little later.
    Again,
    Reopen,
    Renew,
    Relock,
    Resend(Vec<ChunkHash>),
    Vanished,
    Conflict,
    /// The op is spent: its outcome says how.
    Settled,
    Final,
}

fn judge(error: &CallError) -> Verdict {
    let error = match error {
        CallError::Transport(error) if error.fault.is_transient() => return Verdict::Again,
        CallError::Transport(_) => return Verdict::Final,
        CallError::Fs(error) => error,
    };
    match error {
        FsError::SessionUnknown => Verdict::Reopen,
        FsError::CapabilityRefused(_) => Verdict::Renew,
        FsError::Fenced => Verdict::Relock,
        FsError::NeedChunks(hashes) => Verdict::Resend(hashes.clone()),
        FsError::ChunkMissing(hash) | FsError::ChunkCorrupt(hash) => Verdict::Resend(vec![*hash]),
        FsError::Stale => Verdict::Vanished,
        FsError::Conflict { .. } => Verdict::Conflict,
        FsError::OpSettled => Verdict::Settled,
        error if error.is_transient() => Verdict::Again,
        _ => Verdict::Final,
    }
}

/// One change on its last leg.
pub(super) struct Sender<'a> {
    pub job: &'a Job,
    pub replicas: &'a Replicas,
    pub plan: &'a mut Plan,
    pub op: OpId,
    pub journal: Journal<'a>,
    pub failpoints: &'a FailPoints,
    pub progress: Progress,
}

/// How far a sender got.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The lock under which the change is in the journal.
    journalled: Option<FencingToken>,
    is_ambiguous: bool,
    remedy_count: u32,
    delay: Duration,
    /// When servers that do not show that they live have had their time.
    patience_ends_at: Option<Duration>,
    give_up_at: Option<Duration>,
}

impl Sender<'_> {
    /// Sends until the change is stored, refused, or given up.
    pub async fn run(mut self) -> Result<Sent, CacheError> {
        let policy = self.job.session.connection().policy();
        self.progress.delay = policy.first_delay;
        let start = self.job.session.clock().boottime();
        self.progress.patience_ends_at = policy.give_up_after.map(|after| start + after);
        self.progress.give_up_at = match self.job.durability {
            Durability::Process => self.progress.patience_ends_at,
            Durability::Stable => self.progress.patience_ends_at.map(|at| at + STABLE_WAIT),
        };
        loop {
            let opening = self.job.session.key().opening;
            let error = match self.through_replicas().await? {
                Ok(reply) => return Ok(stored(self.job, reply)),
                Err(error) => error,
            };
            if let Some(sent) = self.react(error, opening).await {
                return Ok(sent);
            }
        }
    }

    /// Tries each replica once. The first answer that is more than silence counts.
    async fn through_replicas(&mut self) -> Result<Result<CommitReply, CallError>, CacheError> {
        let (grant, placement) = match self.job.ensured().await {
            Ok(right) => right,
            Err(error) => return Ok(Err(error.into())),
        };
        if self.progress.journalled != Some(grant.token) {
            (self.journal)(grant.token)?;
            self.progress.journalled = Some(grant.token);
        }
        self.failpoints.pass(Point::AfterSending).await;
        let mut errors = Vec::new();
        let addresses = self.replicas.for_store(&placement);
        for (index, address) in addresses.iter().enumerate() {
            let timeout = self.timeout(addresses.len() - index);
            let request = store(self.job, self.plan, self.op, &grant);
            let request = Store { node: address.node, ..request };
            let sending = Sending { caller: self.job.caller.as_ref(), ..Sending::default() };
            let attempt = Attempt { to: To::Node(address), sending, timeout };
            match self.attempt(attempt, &request).await {
                Ok(answer) => {
                    self.replicas.answered(address.node);
                    let bytes = put::byte_count(&self.plan.last);
                    self.job.session.metrics().add(Counter::StoredBytes, bytes);
                    return Ok(Ok(answer.reply));
                }
                Err(error) => {
                    tracing::debug!(fid = %self.job.fid, node = %address.node, %error, "store");
                    self.progress.is_ambiguous |= error.is_transient() && !is_unsent(&error);
                    if judge(&error) != Verdict::Again && judge(&error) != Verdict::Final {
                        return Ok(Err(error));
                    }
                    let next = self.replicas.failed(address.node, &error);
                    errors.push(error);
                    if next == Next::GiveUp {
                        break;
                    }
                }
            }
        }
        let none = || FsError::unavailable("any replica of the file").into();
        Ok(Err(most_telling(errors).unwrap_or_else(none)))
    }

    /// Sends the store once. A node that brings it to its disk may take long, but only as long as
    /// the owner's heartbeats say that somebody is there.
    async fn attempt(
        &self,
        attempt: Attempt<'_>,
        request: &Store,
    ) -> Result<Answer<CommitReply>, CallError> {
        let session = &self.job.session;
        let payload = put::payload(&self.plan.last);
        let whom = match attempt.to {
            To::Node(address) => address.node.to_string(),
            To::Role(role) => role.name().to_owned(),
        };
        tokio::select! {
            answer = session.connection().attempt(attempt, request, payload) => answer,
            () = self.patience_ends() => {
                let what = "no heartbeat was answered meanwhile";
                Err(TransportError::new(TransportFault::TimedOut, whom, what).into())
            }
        }
    }

    /// Returns when nothing has been heard of the servers for a lease, after the policy's time.
    async fn patience_ends(&self) {
        let Some(end) = self.progress.patience_ends_at else { return std::future::pending().await };
        let session = &self.job.session;
        let clock = session.clock();
        clock.sleep_until(end).await;
        while session.is_leased() {
            clock.sleep_until(clock.boottime() + LIFE_CHECK).await;
        }
    }

    /// Acts on an error. `None`: try again.
    async fn react(&mut self, error: CallError, opening: u64) -> Option<Sent> {
        let verdict = judge(&error);
        if !matches!(verdict, Verdict::Again) {
            self.progress.remedy_count += 1;
        }
        if self.progress.remedy_count > REMEDIES_MAX {
            return Some(self.give_up(error.into_fs()).await);
        }
        let remedy = match verdict {
            Verdict::Again => return self.wait(error).await,
            Verdict::Vanished => return Some(Sent::Vanished),
            Verdict::Conflict => return Some(Sent::Conflict(error.into_fs())),
            Verdict::Final => return Some(self.give_up(error.into_fs()).await),
            Verdict::Settled => {
                self.progress.is_ambiguous = true;
                return Some(self.give_up(error.into_fs()).await);
            }
            Verdict::Reopen => self.job.session.reopen(opening).await,
            Verdict::Renew => self.renew().await,
            Verdict::Relock => self.relock().await,
            Verdict::Resend(hashes) => match self.resend(&hashes).await {
                Ok(true) => Ok(()),
                Ok(false) => return Some(self.changed(error.into_fs()).await),
                Err(error) => Err(error),
            },
        };
        match remedy {
            Ok(()) => None,
            Err(FsError::Stale) => Some(Sent::Vanished),
            Err(error @ FsError::Conflict { .. }) => Some(self.moved(error).await),
            Err(error) => Some(self.give_up(error).await),
        }
    }

    async fn renew(&self) -> Result<(), FsError> {
        let (grant, _) = self.job.ensured().await?;
        match self.job.renew(&grant.capability).await {
            Err(FsError::Fenced) => self.relock().await,
            result => result,
        }
    }

    async fn relock(&self) -> Result<(), FsError> {
        self.job.session.metrics().count(Counter::CommitFenced);
        self.job.relock().await
    }

    /// Sends chunks that a server says it lacks. False if the file does not have them any more.
    async fn resend(&mut self, hashes: &[ChunkHash]) -> Result<bool, FsError> {
        let source = self.job.source.clone();
        let manifest = Arc::clone(&self.plan.manifest);
        let wanted = hashes.to_vec();
        let reread = move || {
            let read = |hash: &ChunkHash| chunker::reread(source.file(), &manifest, *hash);
            wanted.iter().map(read).collect::<Option<Vec<_>>>()
        };
        let read = tokio::task::spawn_blocking(reread).await;
        let read = read.map_err(|error| FsError::unavailable(error.to_string()))?;
        let Some(chunks) = read else {
            return Ok(false);
        };
        put::put_all(self.job, self.replicas, chunks).await?;
        let before = &mut self.plan.put_before;
        before.extend(hashes.iter().copied());
        before.sort_unstable();
        before.dedup();
        Ok(true)
    }

    /// Waits before the next try, unless the time is over.
    async fn wait(&mut self, error: CallError) -> Option<Sent> {
        let clock = self.job.session.clock();
        let now = clock.boottime();
        let delay = self.progress.delay;
        let is_impatient = self.progress.patience_ends_at.is_some_and(|at| at <= now + delay);
        let is_late = self.progress.give_up_at.is_some_and(|at| at <= now + delay);
        if is_late || (is_impatient && !self.job.session.is_leased()) {
            return Some(self.give_up(error.into_fs()).await);
        }
        clock.sleep_until(now + delay).await;
        self.progress.delay = (delay * 2).min(self.job.session.connection().policy().delay_max);
        None
    }

    /// The base has moved. By ourselves, if a store that was not answered came through.
    async fn moved(&self, conflict: FsError) -> Sent {
        if !self.progress.is_ambiguous {
            return Sent::Conflict(conflict);
        }
        match self.settle_in_time().await {
            Ok(Some(stored)) => stored,
            Ok(None) => Sent::Conflict(conflict),
            Err(error) => Sent::Unsent { error, is_open: true },
        }
    }

    /// As [`settle`], within what is left of the time: an outcome that is not known by then is
    /// found out before anything else is sent for the file.
    async fn settle_in_time(&self) -> Result<Option<Sent>, FsError> {
        let clock = self.job.session.clock();
        let late = || FsError::unavailable("the outcome of a store, in time");
        let settled = settle(self.job, self.op, &self.plan.manifest);
        match self.progress.patience_ends_at {
            None => settled.await,
            Some(end) if clock.boottime() >= end => Err(late()),
            Some(end) => tokio::select! {
                settled = settled => settled,
                () = clock.sleep_until(end) => Err(late()),
            },
        }
    }

    async fn changed(&self, error: FsError) -> Sent {
        match self.give_up(error).await {
            Sent::Unsent { is_open: false, .. } => Sent::Changed,
            sent => sent,
        }
    }

    async fn give_up(&self, error: FsError) -> Sent {
        if !self.progress.is_ambiguous {
            return Sent::Unsent { error, is_open: false };
        }
        match self.settle_in_time().await {
            Ok(Some(stored)) => stored,
            Ok(None) => Sent::Unsent { error, is_open: false },
            Err(_) => Sent::Unsent { error, is_open: true },
        }
    }

    /// The time of one attempt, if `replicas_left` are to be asked one after another: what a silent
    /// one takes is not taken from the next.
    fn timeout(&self, replicas_left: usize) -> Duration {
        let longest = match self.job.durability {
            Durability::Process => ATTEMPT_MAX,
            Durability::Stable => ATTEMPT_MAX + STABLE_WAIT,
        };
        let now = self.job.session.clock().boottime();
        let left = self.progress.give_up_at.map_or(longest, |at| at.saturating_sub(now));
        let share = if replicas_left > 1 { left / 2 } else { left };
        share.clamp(ATTEMPT_MIN, longest)
    }
}

/// What became of an op that was to store `manifest` and was not answered: `None` if it changed
/// nothing and never will.
pub(super) async fn settle(
    job: &Job,
    op: OpId,
    manifest: &Manifest,
) -> Result<Option<Sent>, FsError> {
    let OutcomeReply::Committed(sequence) = job.session.outcome(op).await? else {
        return Ok(None);
    };
    let version = DataVersion::from(sequence);
    if sequence == Sequence::default() {
        return stored_at_some_version(job, manifest).await.map(Some);
    }
    let request = GetAttr { fid: job.fid };
    let reply = job.session.call(Role::Directory, job.caller.as_ref(), &request).await;
    let attr = reply.ok().map(|reply| reply.attr).filter(|attr| attr.data_version == version);
    Ok(Some(Sent::Stored { version, attr }))
}

/// For an op of which the server still knows that it was done, but not as which version. The
/// current one is as good if it has the same content; if not, a change came after ours, and the
/// version of none stands for ours.
async fn stored_at_some_version(job: &Job, manifest: &Manifest) -> Result<Sent, FsError> {
    let request = Open { fid: job.fid, access: OpenAccess::Read, have: None };
    let unknown = Sent::Stored { version: DataVersion::default(), attr: None };
    match job.session.call(Role::Directory, job.caller.as_ref(), &request).await {
        Ok(current) if current.manifest.as_ref() == Some(manifest) => {
            Ok(Sent::Stored { version: current.attr.data_version, attr: Some(current.attr) })
        }
        // Who may write may not be allowed to read.
        Ok(_) | Err(FsError::AccessDenied) => Ok(unknown),
        Err(error) => Err(error),
    }
}

fn stored(job: &Job, reply: CommitReply) -> Sent {
    job.keep_capability(reply.capability);
    Sent::Stored { version: reply.attr.data_version, attr: Some(reply.attr) }
}

fn store(job: &Job, plan: &Plan, op: OpId, grant: &WriteGrant) -> Store {
    let attributes = codec::encode(&job.attr, HEAD_BYTES_MAX)
        .expect("commit attributes have a small fixed size");
    let intent = CommitIntent {
        fid: job.fid,
        base: job.base.version,
        token: grant.token,
        op,
        manifest: plan.manifest.hash(),
        attributes: ChunkHash::of(&attributes),
    };
    let change = Change {
        op,
        manifest: Manifest::clone(&plan.manifest),
        attr: job.attr.clone(),
        durability: job.durability,
        capability: grant.capability.clone(),
        mac: job.session.key().key.seal_commit(&intent),
    };
    let chunks = put::refs(&plan.last);
    Store { node: NodeId(0), change, chunks, put_before: plan.put_before.clone() }
}
