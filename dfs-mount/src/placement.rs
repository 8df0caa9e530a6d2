//! Which replica of a file to ask, and whom to ask next when it fails.
//!
//! Owns the memory of replicas that were bad or slow: they are left at once and come last for a
//! while. Decides without input or output; fetch and write-back ask it before each request and
//! tell it how the request went.
//!
//! | the replica | next step | remembered |
//! |---|---|---|
//! | does not answer in time | another replica | as bad |
//! | lacks a chunk, or has it damaged | another replica | no: its other chunks may be good |
//! | has no space, or cannot at present | another replica | no |
//! | refuses as another would too | give up | no |

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::client::CallError;
use dfs_proto::clock::Clock;
use dfs_proto::directory::{NodeAddress, Placement};
use dfs_proto::id::NodeId;

use crate::metrics::{Counter, Metrics};

/// How long a replica that failed comes last. Why: long enough that a dead one costs one request
/// of many, short enough that one that came back is used again before anybody looks.
const BAD_FOR: Duration = Duration::from_secs(20);

/// Replicas remembered. Why: more file nodes than one client talks to; the memory is a hint only.
const REMEMBERED_MAX: usize = 1024;

/// The memory of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// Until when a replica counts as bad, on `Clock::boottime`.
    bad: Mutex<HashMap<NodeId, Duration>>,
    /// Turns reads over all replicas.
    turn: AtomicUsize,
}

/// What a failed request to a replica means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another replica may do it.
    Another,
    /// Every replica would say the same.
    GiveUp,
}

impl Replicas {
    pub fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Replicas {
        let (bad, turn) = (Mutex::default(), AtomicUsize::new(0));
        Replicas { inner: Arc::new(Inner { clock, metrics, bad, turn }) }
    }

    /// The replicas in the order in which a read should try them: in turns, bad ones last.
    pub fn for_read(&self, placement: &Placement) -> Vec<NodeAddress> {
        let mut order = placement.replicas.clone();
        if !order.is_empty() {
            let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed);
            order.rotate_left(turn % placement.replicas.len());
        }
        self.bad_last(&mut order);
        order
    }

    /// The replicas in the order in which a store should try them: the primary first, bad ones
    /// last.
    pub fn for_store(&self, placement: &Placement) -> Vec<NodeAddress> {
        let mut order = placement.replicas.clone();
        self.bad_last(&mut order);
        order
    }

    /// Takes note of a failed request and says what to do next.
    pub fn failed(&self, node: NodeId, error: &CallError) -> Next {
        self.inner.metrics.count(Counter::ReplicaLeft);
        match error {
            CallError::Transport(_) | CallError::Fs(FsError::TimedOut { .. }) => {
                self.remember_bad(node);
                Next::Another
            }
            CallError::Fs(error) => next_after(error),
        }
    }

    /// Takes note of a request that was answered.
    pub fn answered(&self, node: NodeId) {
        self.bad().remove(&node);
    }

    fn remember_bad(&self, node: NodeId) {
        let now = self.inner.clock.boottime();
        let mut bad = self.bad();
        if bad.len() >= REMEMBERED_MAX {
            bad.retain(|_, until| *until > now);
        }
        if bad.len() < REMEMBERED_MAX {
            bad.insert(node, now + BAD_FOR);
        }
    }

    fn bad_last(&self, order: &mut [NodeAddress]) {
        let now = self.inner.clock.boottime();
        let bad = self.bad();
        order.sort_by_key(|address| bad.get(&address.node).is_some_and(|until| *until > now));
    }

    fn bad(&self) -> MutexGuard<'_, HashMap<NodeId, Duration>> {
        self.inner.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_after(error: &FsError) -> Next {
    match error {
        FsError::ChunkMissing(_)
        | FsError::ChunkCorrupt(_)
        | FsError::NoSpace { .. }
        | FsError::Unavailable { .. }
        | FsError::NotOfCell { .. }
        | FsError::TimedOut { .. }
        | FsError::Internal { .. }
        | FsError::UnknownOperation { .. }
        | FsError::InvalidArgument { .. }
        | FsError::Malformed { .. } => Next::Another,
        _ => Next::GiveUp,
    }
}

/// Of the errors of several replicas, the one that tells most: damage before absence before
/// silence, and what a server said before what a network did.
pub fn most_telling(errors: Vec<CallError>) -> Option<CallError> {
    let rank = |error: &CallError| match error {
        CallError::Fs(FsError::ChunkCorrupt(_)) => 0,
        CallError::Fs(FsError::ChunkMissing(_)) => 1,
        CallError::Fs(FsError::NoSpace { .. }) => 2,
        CallError::Fs(error) if !error.is_transient() => 3,
        CallError::Fs(_) => 4,
        CallError::Transport(error) if !error.fault.is_transient() => 5,
        CallError::Transport(_) => 6,
    };
    errors.into_iter().min_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::chunk::ChunkHash;
    use dfs_proto::client::{TransportError, TransportFault};
    use dfs_proto::clock::ManualClock;

    fn placement() -> Placement {
        let address = |node| NodeAddress { node: NodeId(node), host: None, port: 1 };
        Placement { replicas: vec![address(1), address(2)] }
    }

    fn lost() -> CallError {
        TransportError::new(TransportFault::Lost, "node", "lost").into()
    }

    fn nodes(order: &[NodeAddress]) -> Vec<u32> {
        order.iter().map(|address| address.node.0).collect()
    }

    #[test]
    fn a_replica_that_does_not_answer_comes_last_for_a_while() {
        let clock = ManualClock::default();
        let replicas = Replicas::new(Arc::new(clock.clone()), Arc::default());
        assert_eq!(nodes(&replicas.for_store(&placement())), [1, 2]);
        assert_eq!(replicas.failed(NodeId(1), &lost()), Next::Another);
        assert_eq!(nodes(&replicas.for_store(&placement())), [2, 1]);
        assert_eq!(nodes(&replicas.for_read(&placement())), [2, 1]);
        assert_eq!(nodes(&replicas.for_read(&placement())), [2, 1]);
        clock.advance(BAD_FOR);
        assert_eq!(nodes(&replicas.for_store(&placement())), [1, 2]);
    }

    #[test]
    fn reads_take_turns() {
        let replicas = Replicas::new(Arc::new(ManualClock::default()), Arc::default());
        assert_eq!(nodes(&replicas.for_read(&placement())), [1, 2]);
        assert_eq!(nodes(&replicas.for_read(&placement())), [2, 1]);
    }

    #[test]
    fn a_missing_chunk_does_not_make_a_replica_bad_and_a_refusal_ends_the_search() {
        let replicas = Replicas::new(Arc::new(ManualClock::default()), Arc::default());
        let missing = CallError::Fs(FsError::ChunkMissing(ChunkHash([0; 32])));
        assert_eq!(replicas.failed(NodeId(1), &missing), Next::Another);
        assert_eq!(nodes(&replicas.for_store(&placement())), [1, 2]);
        assert_eq!(replicas.failed(NodeId(1), &FsError::Fenced.into()), Next::GiveUp);
    }

    #[test]
    fn damage_tells_more_than_silence() {
        let corrupt = CallError::Fs(FsError::ChunkCorrupt(ChunkHash([0; 32])));
        let told = most_telling(vec![lost(), corrupt, FsError::unavailable("x").into()]);
        assert!(matches!(told, Some(CallError::Fs(FsError::ChunkCorrupt(_)))));
    }
}
