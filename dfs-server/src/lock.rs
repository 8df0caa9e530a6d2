//! The lock service: who may write a file, and who has which ranges of it.
//!
//! `table` and `range` decide; this shell (and `claims`, for ranges) keeps the waiting futures and
//! the event streams, and holds no lock across an await. Directory nodes call it, through RPC also
//! when they live in the same process. A wait for the write lock ends with a grant, at its
//! deadline, or when its caller goes away; a wait for a range is an entry in a queue, and nobody's
//! future.

mod claims;
mod range;
mod table;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::clock::Clock;
use dfs_proto::directory::LockWait;
use dfs_proto::id::FileId;
use dfs_proto::lock::{EndSession, Grant, LockEvent, Recall, Release};
use dfs_proto::version::{Epoch, FencingToken};
use tokio::sync::{mpsc, oneshot};

use range::RangeTable;
use table::{Action, Asked, Asker, LockTable, WaiterId};

/// How long an opener that will not wait gives an idle holder to answer its recall.
///
/// Why 250 ms: an idle holder yields within a round trip, which is longer than this on no line
/// that people mount over; a busy one costs this once and is then known to be busy.
const YIELD_PATIENCE: Duration = Duration::from_millis(250);

/// Events queued for one directory node. One that falls behind is cut off and starts again with all
/// recalls that are outstanding; waits for ranges are asked about again.
const EVENT_QUEUE_MAX: usize = 4096;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LockService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    next_waiter: AtomicU64,
    epoch: Epoch,
    /// Until then ranges are only taken up again. On `Clock::boottime`.
    grace_ends_at: Duration,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct State {
    table: LockTable,
    ranges: RangeTable,
    waiting: HashMap<WaiterId, oneshot::Sender<FencingToken>>,
    listeners: Vec<mpsc::Sender<LockEvent>>,
}

impl State {
    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Grant { waiter, token } => {
                    // A waiter that is gone is about to abandon the grant: its guard sees to it.
                    let _ = self.waiting.remove(&waiter).map(|sender| sender.send(token));
                }
                Action::Recall { fid, session, token } => {
                    self.tell(&LockEvent::Recall(Recall { fid, session, token }));
                }
            }
        }
    }

    fn tell(&mut self, event: &LockEvent) {
        self.listeners.retain(|listener| listener.try_send(event.clone()).is_ok());
    }
}

impl LockService {
    /// `epoch` must be larger than that of any service before, and durable. For `grace` from now
    /// on ranges are only taken up again: as long as sessions may hold some of a service before.
    pub fn new(epoch: Epoch, grace: Duration, clock: Arc<dyn Clock>) -> LockService {
        let state = State {
            table: LockTable::new(epoch),
            ranges: RangeTable::default(),
            waiting: HashMap::new(),
            listeners: Vec::new(),
        };
        let shared = Shared {
            state: Mutex::new(state),
            next_waiter: AtomicU64::new(1),
            epoch,
            grace_ends_at: clock.boottime() + grace,
            clock,
        };
        LockService { shared: Arc::new(shared) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants a lock, at once or after those before. Dropping the future gives up the place in the
    /// queue, or the grant if it was made and not received.
    ///
    /// # Errors
    /// `LockBusy` if the caller will not wait, `LockTimeout` at its deadline.
    pub async fn grant(&self, request: Grant) -> Result<FencingToken, FsError> {
        let waiter = WaiterId(self.shared.next_waiter.fetch_add(1, Ordering::Relaxed));
        let fid = request.fid;
        let since = self.shared.clock.wall();
        let asker = Asker { waiter, session: request.session, name: request.holder, since };
        let place = Place { service: self.clone(), fid, waiter };
        let (sender, receiver) = oneshot::channel();
        let is_busy = {
            let mut state = self.state();
            let (asked, actions) = state.table.ask(fid, asker);
            let is_busy = match asked {
                Asked::Granted(token) => {
                    drop(state);
                    place.take();
                    return Ok(token);
                }
                Asked::Queued { is_busy } => is_busy,
            };
            state.waiting.insert(waiter, sender);
            state.apply(actions);
            is_busy
        };
        let wait = match request.wait {
            LockWait::No if is_busy => Duration::ZERO,
            LockWait::No => YIELD_PATIENCE,
            LockWait::UpTo(wait_ms) => Duration::from_millis(u64::from(wait_ms)),
        };
        self.wait(place, receiver, wait, request.wait).await
    }

    async fn wait(
        &self,
        place: Place,
        mut receiver: oneshot::Receiver<FencingToken>,
        wait: Duration,
        kind: LockWait,
    ) -> Result<FencingToken, FsError> {
        let deadline = self.shared.clock.sleep_until(self.shared.clock.boottime() + wait);
        let granted = tokio::select! {
            biased;
            granted = &mut receiver => granted.ok(),
            () = deadline => receiver.try_recv().ok(),
        };
        if let Some(token) = granted {
            place.take();
            return Ok(token);
        }
        let mut state = self.state();
        let holder = state.table.holder_name(place.fid).unwrap_or("somebody").to_owned();
        match kind {
            LockWait::No => {
                state.table.mark_busy(place.fid);
                Err(FsError::LockBusy { holder })
            }
            LockWait::UpTo(_) => Err(FsError::LockTimeout { holder }),
        }
    }

    /// Takes a lock back from its holder.
    pub fn release(&self, request: &Release) {
        let mut state = self.state();
        let actions = state.table.release(request.fid, request.session, request.token);
        state.apply(actions);
    }

    /// Takes everything back from a session that ended.
    pub fn end_session(&self, request: &EndSession) {
        let mut state = self.state();
        let actions = state.table.end_session(request.session);
        state.apply(actions);
        let ready = state.ranges.end_session(request.session, self.moment());
        state.wake(ready);
    }

    /// The events from here on, outstanding recalls first.
    pub fn events(&self) -> mpsc::Receiver<LockEvent> {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE_MAX);
        let mut state = self.state();
        let outstanding = state.table.outstanding_recalls();
        // The queue is new: there is room for the first item.
        let _ = sender.try_send(LockEvent::Started { epoch: self.shared.epoch });
        state.listeners.push(sender);
        state.apply(outstanding);
        receiver
    }
}

#[cfg(test)]
impl LockService {
    /// Locks that somebody holds.
    pub(crate) fn held_count(&self) -> usize {
        self.state().table.held_count()
    }
}

/// A place in a file's queue; gives it up unless the grant was taken.
struct Place {
    service: LockService,
    fid: FileId,
    waiter: WaiterId,
}

impl Place {
    fn take(self) {
        self.service.state().table.taken(self.fid, self.waiter);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.service.state();
        state.waiting.remove(&self.waiter);
        let actions = state.table.abandon(self.fid, self.waiter);
        state.apply(actions);
    }
}

#[cfg(test)]
mod tests;
