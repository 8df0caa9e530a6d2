//! The grace after a start: no change is accepted while a client may go by promises of the owner
//! before, of which nothing is known here.
//!
//! Each session that listens has a row, synced before its first stream begins; so after any death
//! of the process the rows name all who can hold promises. One is missing until it asks for a
//! stream again (then it goes by no earlier promise), or is closed. None of them goes by a promise
//! for longer than a lease: the last reply that renewed it came before this owner started. So
//! changes wait until nobody is missing, and a lease from the start at most.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dfs_proto::clock::Clock;
use dfs_proto::id::SessionId;
use dfs_proto::limits::SESSION_LEASE;
use tokio::sync::watch;

/// Cheap to clone.
#[derive(Clone)]
pub struct Grace {
    missing: Arc<Mutex<HashSet<SessionId>>>,
    is_over: Arc<watch::Sender<bool>>,
    ends_at: Duration,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grace(over: {})", *self.is_over.borrow())
    }
}

impl Grace {
    /// Begins now. `listeners` are those who had a stream of an owner before.
    pub fn new(listeners: HashSet<SessionId>, clock: Arc<dyn Clock>) -> Grace {
        let is_over = Arc::new(watch::Sender::new(listeners.is_empty()));
        let ends_at = clock.boottime() + SESSION_LEASE;
        Grace { missing: Arc::new(Mutex::new(listeners)), is_over, ends_at, clock }
    }

    /// A session goes by no promise of before any more.
    pub fn settle(&self, id: SessionId) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.remove(&id) && missing.is_empty() {
            self.is_over.send_replace(true);
        }
    }

    /// Whether a session of before has not come back yet, and may.
    pub fn awaits(&self, id: SessionId) -> bool {
        self.clock.boottime() < self.ends_at
            && self.missing.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Those who did not come back, once, when the time is over.
    pub fn take_missing(&self) -> Vec<SessionId> {
        if self.clock.boottime() < self.ends_at {
            return Vec::new();
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_over.send_replace(true);
        missing.drain().collect()
    }

    /// Waits until changes are accepted. Cancel-safe.
    pub async fn wait(&self) {
        if *self.is_over.borrow() {
            return;
        }
        let mut is_over = self.is_over.subscribe();
        tokio::select! {
            // The sender is ours: there is no error to see.
            _ = is_over.wait_for(|is_over| *is_over) => {}
            () = self.clock.sleep_until(self.ends_at) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::clock::ManualClock;
    use futures_util::FutureExt;

    use super::*;

    const ANN: SessionId = SessionId([1; 16]);
    const BOB: SessionId = SessionId([2; 16]);

    fn grace() -> (Grace, ManualClock) {
        let clock = ManualClock::default();
        (Grace::new([ANN, BOB].into(), Arc::new(clock.clone())), clock)
    }

    fn is_over(grace: &Grace) -> bool {
        grace.wait().now_or_never().is_some()
    }

    #[test]
    fn it_ends_when_the_last_has_come_back() {
        let (grace, _clock) = grace();
        let mut waiting = Box::pin(grace.wait());
        grace.settle(ANN);
        grace.settle(ANN);
        grace.settle(SessionId([9; 16]));
        assert!((&mut waiting).now_or_never().is_none());
        grace.settle(BOB);
        assert!(waiting.now_or_never().is_some() && is_over(&grace));
    }

    #[test]
    fn it_ends_a_lease_after_the_start_whoever_is_missing() {
        let (grace, clock) = grace();
        grace.settle(ANN);
        clock.advance(SESSION_LEASE - Duration::from_millis(1));
        assert!(!is_over(&grace) && grace.take_missing().is_empty());
        clock.advance(Duration::from_millis(1));
        assert!(is_over(&grace));
        assert_eq!((grace.take_missing(), grace.take_missing()), (vec![BOB], vec![]));
    }

    #[test]
    fn it_awaits_whom_it_misses_while_it_lasts() {
        let (grace, clock) = grace();
        grace.settle(ANN);
        assert!(!grace.awaits(ANN) && grace.awaits(BOB));
        clock.advance(SESSION_LEASE);
        assert!(!grace.awaits(BOB), "others may have been granted what it had");
    }

    #[test]
    fn there_is_none_where_nobody_listened() {
        assert!(is_over(&Grace::new(HashSet::new(), Arc::new(ManualClock::default()))));
    }
}
