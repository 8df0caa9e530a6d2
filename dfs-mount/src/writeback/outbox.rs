//! The outbox: changes that the servers do not have.
//!
//! The journal is its truth: what is listed survives a kill. Unsent changes are tried again in the
//! background, with growing delays; a sweep ends at the first one that nobody answers, for the
//! others would wait as long. Only what was closed is sent: if a writer has gone on since, its own
//! close will see to it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::attr::Timestamp;
use dfs_proto::id::FileId;
use tokio_util::sync::CancellationToken;

use crate::cache::ContentError;
use crate::cache::record::{Entry, EntryId, State};

use super::working::{Copy, Standing, Unsent};
use super::{Inner, Writeback};

/// How a change in the outbox stands. Commands are told so too: words and states only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutboxState {
    /// On its way.
    Sending,
    /// Failed so far; tried again.
    Unsent,
    /// Another change came first; kept until a person decides.
    Conflict,
    /// The client died while it was open; kept until a person decides.
    Interrupted,
}

impl OutboxState {
    /// Whether the daemon sends it without being asked. The rest waits for a person.
    pub fn is_sent_by_itself(self) -> bool {
        match self {
            OutboxState::Sending | OutboxState::Unsent => true,
            OutboxState::Conflict | OutboxState::Interrupted => false,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            OutboxState::Sending => "sending",
            OutboxState::Unsent => "unsent",
            OutboxState::Conflict => "conflict",
            OutboxState::Interrupted => "interrupted",
        }
    }
}

/// A change that the servers do not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxItem {
    pub id: EntryId,
    pub fid: FileId,
    /// The path in the volume when the file was opened.
    pub hint: String,
    pub size_bytes: u64,
    pub state: OutboxState,
    pub why: String,
    /// When it was closed; what was never closed: when that was found.
    pub since: Timestamp,
}

/// What is left after a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Could not be sent in time.
    pub unsent: Vec<OutboxItem>,
    /// Waits for a person.
    pub kept: Vec<OutboxItem>,
}

/// Pause between two sweeps of a drain.
const DRAIN_PAUSE: Duration = Duration::from_millis(500);

impl Writeback {
    /// Everything in the outbox, oldest use first.
    pub fn outbox(&self) -> Vec<OutboxItem> {
        let unclean = self.inner.cache.unclean();
        unclean.into_iter().filter_map(|(id, entry)| self.item(id, entry)).collect()
    }

    fn item(&self, id: EntryId, entry: Entry) -> Option<OutboxItem> {
        let mut since = entry.since;
        let (state, why) = match entry.state {
            State::Clean(_) => return None,
            // An open file is no item, unless its close has failed before anything of it could be
            // journalled.
            State::Working { .. } => {
                let unsent = self.unsent_facts(entry.fid, id)?;
                since = unsent.since;
                (OutboxState::Unsent, unsent.why)
            }
            State::Sending { .. } => (OutboxState::Sending, String::new()),
            State::Unsent { why, .. } => (OutboxState::Unsent, why),
            State::Conflict { why, .. } => (OutboxState::Conflict, why),
            State::Interrupted { .. } => {
                let why = "the client ended while the file was open".to_owned();
                (OutboxState::Interrupted, why)
            }
        };
        let file = self.inner.cache.open_entry(id).ok();
        let size_bytes = file.and_then(|file| file.size().ok()).unwrap_or(0);
        let Entry { fid, origin, .. } = entry;
        Some(OutboxItem { id, fid, hint: origin.hint, size_bytes, state, why, since })
    }

    fn unsent_facts(&self, fid: FileId, id: EntryId) -> Option<Unsent> {
        let working = self.working(fid).filter(|working| working.id() == id)?;
        working.copy.facts().unsent().cloned()
    }

    /// Tries to send everything unsent now. Answers with how many changes are left.
    pub async fn retry(&self) -> usize {
        self.sweep(|_| true).await;
        self.unsent_copies().len()
    }

    /// Tries to send everything unsent until it is sent or `patience` is over, telling `progress`
    /// what is left before each sweep.
    pub async fn drain(
        &self,
        patience: Duration,
        mut progress: impl FnMut(&[OutboxItem]) + Send,
    ) -> Drained {
        let clock = Arc::clone(self.inner.cache.clock());
        let deadline = clock.boottime() + patience;
        loop {
            let drained = self.drained();
            if drained.unsent.is_empty() || clock.boottime() >= deadline {
                return drained;
            }
            progress(&drained.unsent);
            tokio::select! {
                () = self.sweep(|_| true) => {}
                () = clock.sleep_until(deadline) => {}
            }
            if !self.drained().unsent.is_empty() {
                clock.sleep_until(deadline.min(clock.boottime() + DRAIN_PAUSE)).await;
            }
        }
    }

    fn drained(&self) -> Drained {
        let is_unsent =
            |item: &OutboxItem| matches!(item.state, OutboxState::Sending | OutboxState::Unsent);
        let (unsent, kept) = self.outbox().into_iter().partition(is_unsent);
        Drained { unsent, kept }
    }

    fn unsent_copies(&self) -> Vec<Arc<Copy>> {
        let live = self.live();
        live.values().filter(|copy| copy.facts().unsent().is_some()).cloned().collect()
    }

    /// Sends the unsent changes that are `due`. Ends at the first that nobody answers.
    async fn sweep(&self, due: impl Fn(&Copy) -> bool) {
        for copy in self.unsent_copies() {
            if !due(&copy) {
                continue;
            }
            match self.send_unsent(&copy).await {
                Err(ContentError::Fs(error)) if error.is_transient() => return,
                _ => {}
            }
        }
    }

    /// Sends what was closed and is unsent.
    ///
    /// # Errors
    /// Why it still is.
    pub(super) async fn send_unsent(&self, copy: &Arc<Copy>) -> Result<(), ContentError> {
        let mut right = copy.right.lock().await;
        let Some(unsent) = copy.facts().unsent().cloned() else {
            return Ok(());
        };
        if copy.mark() != unsent.mark && copy.facts().writer_count > 0 {
            return Ok(());
        }
        self.commit_locked(copy, &mut right, unsent.attr, unsent.durability).await.map(drop)
    }

    fn next_try(&self) -> Option<Duration> {
        let next = |copy: &Arc<Copy>| copy.facts().unsent().map(|unsent| unsent.next_try);
        self.unsent_copies().iter().filter_map(next).min()
    }
}

/// The task that sends again what is unsent.
pub(super) async fn send_again(inner: Weak<Inner>, stop: CancellationToken) {
    // Dropping a commit half way leaves it pending in the journal: the next run settles it.
    let _ = stop.run_until_cancelled(send_again_for_ever(inner)).await;
}

async fn send_again_for_ever(inner: Weak<Inner>) {
    // Held only while something is done: whoever drops the last write-back ends this task.
    while let Some(inner) = inner.upgrade() {
        let writeback = Writeback { inner };
        let clock = Arc::clone(writeback.inner.cache.clock());
        let wake = Arc::clone(&writeback.inner.wake);
        let now = clock.boottime();
        match writeback.next_try() {
            Some(next) if next <= now => {
                let is_due =
                    |copy: &Copy| copy.facts().unsent().is_some_and(|it| it.next_try <= now);
                writeback.sweep(is_due).await;
                writeback.put_off(now);
            }
            next => {
                drop(writeback);
                tokio::select! {
                    () = clock.sleep_until(next.unwrap_or(Duration::MAX)) => {}
                    () = wake.notified() => {}
                }
            }
        }
    }
}

impl Writeback {
    /// What a sweep did not get to waits as long as what it failed at.
    fn put_off(&self, now: Duration) {
        for copy in self.unsent_copies() {
            let mut facts = copy.facts();
            if let Standing::Unsent(unsent) = &mut facts.standing
                && unsent.next_try <= now
            {
                unsent.next_try = now + unsent.delay;
            }
        }
    }
}
