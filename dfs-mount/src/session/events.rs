//! The tasks of a session: the heartbeat, the listener on its event stream, and the one that
//! acknowledges breaks.
//!
//! All end when the session is dropped or closed. The heartbeat asks once each third of a lease
//! and does not retry inside: the next one is the retry. The listener reconnects with growing
//! delays; a stream that is silent for longer than a lease times three is taken for dead, because
//! the owner says `Idle` when it has nothing else to say. Breaks are acknowledged by a task of its
//! own, several at once if they come faster than it can: the listener never waits for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::client::{CallError, ItemStream};
use dfs_proto::id::FileId;
use dfs_proto::lease::{heartbeat_interval, holder_deadline};
use dfs_proto::lock::Recall;
use dfs_proto::promise::{BreakNumber, USED_DIRS_MAX};
use dfs_proto::session::{Acknowledge, Events, Heartbeat, HeartbeatReply, SessionEvent};
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Core;
use super::connection::{Attempt, Sending, To};
use super::told::Done;

/// Delays between two tries to get the event stream.
const RECONNECT_DELAY_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);

pub(super) async fn beat(core: Arc<Core>, stop: CancellationToken) {
    // Dropping a request half way is harmless: a heartbeat only prolongs.
    let _ = stop.run_until_cancelled(beat_for_ever(&core)).await;
}

async fn beat_for_ever(core: &Core) {
    let clock = Arc::clone(core.connection.clock());
    loop {
        let interval = heartbeat_interval(core.standing().lease);
        tokio::select! {
            () = clock.sleep_until(clock.boottime() + interval) => {}
            () = core.hurry.notified() => {}
        }
        beat_once(core).await;
    }
}

async fn beat_once(core: &Core) {
    let (seen, lease) = {
        let standing = core.standing();
        (standing.opening, standing.lease)
    };
    let _beating = core.beating.lock().await;
    let yielded = core.yielded().depart();
    let request = Heartbeat { yielded };
    let sent_at = core.connection.clock().boottime();
    let (to, sending) = (To::Role(Role::Directory), Sending::default());
    let attempt = Attempt { to, sending, timeout: lease };
    let result = core.connection.attempt(attempt, &request, Vec::new()).await;
    core.yielded().travelling.clear();
    match result {
        Ok(answer) => {
            renewed(core, sent_at, &answer.reply);
            give_back_owed(core).await;
        }
        Err(CallError::Fs(FsError::SessionUnknown)) => {
            // The owner does not know our locks either: nothing is left to give back.
            if let Err(error) = core.reopen(seen).await {
                tracing::warn!(%error, "session is lost and cannot be opened again yet");
            }
        }
        Err(error) => {
            core.yielded().waiting.extend(request.yielded);
            tracing::debug!(%error, "heartbeat was not answered");
        }
    }
}

/// Gives back the ranges that could not be when they were due.
async fn give_back_owed(core: &Core) {
    let mut owed = core.ranges.take_owed(None).into_iter();
    while let Some(range) = owed.next() {
        if let Err(error) = core.connection.call_once(Role::Directory, None, &range).await {
            tracing::debug!(fid = %range.fid, %error, "a lock goes back later");
            core.ranges.owe(range);
            return owed.for_each(|rest| core.ranges.owe(rest));
        }
    }
}

fn renewed(core: &Core, sent_at: Duration, reply: &HeartbeatReply) {
    let mut standing = core.standing();
    if standing.epoch != reply.epoch {
        tracing::warn!(before = standing.epoch.0, now = reply.epoch.0, "owner has restarted");
        standing.epoch = reply.epoch;
    }
    standing.lease = Duration::from_millis(reply.lease_ms.into());
    standing.leased_until = holder_deadline(sent_at, standing.lease);
    if let Some(stream) = reply.promised {
        core.connection.promises().renewed(stream, standing.leased_until);
    }
}

/// What is to be acknowledged.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    waiting: Mutex<Waiting>,
    come: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    number: Option<BreakNumber>,
    used: Vec<FileId>,
    /// What must be over before.
    done: Vec<Done>,
}

impl Acknowledgements {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, number: BreakNumber, used: Vec<FileId>, done: Done) {
        let mut waiting = self.waiting();
        waiting.number = waiting.number.max(Some(number));
        waiting.used.extend(used);
        waiting.done.push(done);
        drop(waiting);
        self.come.notify_one();
    }

    /// The next acknowledgement, and what must be over before it is sent.
    fn take(&self) -> Option<(Acknowledge, Vec<Done>)> {
        let Waiting { number, mut used, done } = std::mem::take(&mut *self.waiting());
        used.sort_unstable();
        used.dedup();
        // Those left out are no longer promised after their next break.
        used.truncate(USED_DIRS_MAX);
        number.map(|number| (Acknowledge { number, used }, done))
    }
}

pub(super) async fn acknowledge(core: Arc<Core>, stop: CancellationToken) {
    let _ = stop.run_until_cancelled(acknowledge_for_ever(&core)).await;
}

async fn acknowledge_for_ever(core: &Core) {
    loop {
        core.acknowledgements.come.notified().await;
        let Some((request, done)) = core.acknowledgements.take() else { continue };
        for done in done {
            // An error means that there is nobody to wait for.
            let _ = done.await;
        }
        let (to, sending) = (To::Role(Role::Directory), Sending::default());
        let attempt = Attempt { to, sending, timeout: core.standing().lease };
        if let Err(error) = core.connection.attempt(attempt, &request, Vec::new()).await {
            // The owner ends the stream when the lease of its promises has passed.
            tracing::debug!(%error, "breaks were not acknowledged");
        }
    }
}

pub(super) async fn listen(
    core: Arc<Core>,
    recalls: mpsc::Sender<Recall>,
    stop: CancellationToken,
) {
    let _ = stop.run_until_cancelled(listen_for_ever(&core, &recalls)).await;
}

async fn listen_for_ever(core: &Core, recalls: &mpsc::Sender<Recall>) {
    let clock = Arc::clone(core.connection.clock());
    let mut delay = RECONNECT_DELAY_FIRST;
    loop {
        let seen = core.standing().opening;
        let sent_at = clock.boottime();
        match core.connection.open_stream(Role::Directory, &Events {}).await {
            Ok(stream) => {
                let result = take_events(core, sent_at, stream, recalls).await;
                core.connection.promises().stream_ended();
                // To ask for another one says that nothing is held any more.
                let _ = core.listeners.lost().await.await;
                match result {
                    Ok(End::OfOurs) => continue,
                    Ok(End::OfTheirs) => delay = RECONNECT_DELAY_FIRST,
                    Err(error) => note(core, seen, error).await,
                }
            }
            Err(error) => note(core, seen, error).await,
        }
        clock.sleep_until(clock.boottime() + delay).await;
        delay = (delay * 2).min(RECONNECT_DELAY_MAX);
    }
}

async fn note(core: &Core, seen: u64, error: CallError) {
    tracing::debug!(%error, "no event stream");
    if matches!(error, CallError::Fs(FsError::SessionUnknown))
        && let Err(error) = core.reopen(seen).await
    {
        tracing::warn!(%error, "session is lost and cannot be opened again yet");
    }
}

/// Why a stream that brought something ended.
enum End {
    /// Another one is wanted at once.
    OfOurs,
    OfTheirs,
}

/// Takes events until the stream ends. `Ok` if it brought any.
async fn take_events(
    core: &Core,
    sent_at: Duration,
    mut stream: ItemStream<SessionEvent>,
    recalls: &mpsc::Sender<Recall>,
) -> Result<End, CallError> {
    let clock = core.connection.clock();
    let mut has_started = false;
    loop {
        let silent_at = clock.boottime() + core.standing().lease * 3;
        let item = tokio::select! {
            item = stream.next() => item,
            () = clock.sleep_until(silent_at) => None,
            () = core.connection.wants_new_stream(), if has_started => return Ok(End::OfOurs),
        };
        match item {
            None => break,
            Some(Err(error)) if !has_started => return Err(error),
            Some(Err(CallError::Fs(FsError::SessionUnknown))) => {
                return Err(FsError::SessionUnknown.into());
            }
            Some(Err(_)) => break,
            Some(Ok(event)) => {
                has_started = true;
                take_event(core, sent_at, event, recalls).await;
            }
        }
    }
    if has_started { Ok(End::OfTheirs) } else { Err(FsError::unavailable("event stream").into()) }
}

async fn take_event(
    core: &Core,
    sent_at: Duration,
    event: SessionEvent,
    recalls: &mpsc::Sender<Recall>,
) {
    let promises = core.connection.promises();
    match event {
        SessionEvent::LockRecall { fid, token } => {
            let recall = Recall { fid, session: core.connection.id(), token };
            // Nobody takes recalls (a command without write locks): the lease will do.
            let _ = recalls.send(recall).await;
        }
        SessionEvent::Started { epoch, stream } => {
            tracing::debug!(epoch = epoch.0, stream = stream.0, "event stream");
            promises.stream_began(stream);
            promises.renewed(stream, holder_deadline(sent_at, core.standing().lease));
        }
        SessionEvent::Break(told) => {
            let (number, used) = (told.number, promises.break_came(&told));
            let done = core.listeners.broken(told).await;
            core.acknowledgements.add(number, used, done);
        }
        SessionEvent::RangeReady { wait, .. } => core.ranges.wake(wait),
        SessionEvent::RangesLost { fid } => core.ranges.lose(fid),
        SessionEvent::ReclaimRanges => {
            if let Err(error) = core.reclaim().await {
                tracing::warn!(%error, "locks were not taken up again");
            }
        }
        SessionEvent::Idle => {}
    }
}
