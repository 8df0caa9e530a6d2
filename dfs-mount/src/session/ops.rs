//! Op ids and their watermark.
//!
//! Owns the numbers of one client. The watermark, the lowest number whose answer is still
//! awaited, travels with every request: the server forgets what is below it, and refuses to run a
//! mutation below it that it does not remember. So dropping a guard is a promise: this op will not
//! be sent again, and a late duplicate of it may be refused. Whoever cannot promise that yet (a
//! store whose outcome is unknown) keeps the guard.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::id::{OpId, SessionId};

/// Hands out op ids.
#[derive(Clone, Debug)]
pub struct OpIds {
    session: SessionId,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// An op id in use. Dropping it settles the op.
#[derive(Debug)]
pub struct OpGuard {
    op: OpId,
    open: Arc<Mutex<Open>>,
}

impl OpIds {
    pub fn new(session: SessionId) -> OpIds {
        let open = Open { next: 1, unanswered: BTreeSet::new() };
        OpIds { session, open: Arc::new(Mutex::new(open)) }
    }

    pub fn begin(&self) -> OpGuard {
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.unanswered.insert(number);
        OpGuard { op: OpId { session: self.session, number }, open: Arc::clone(&self.open) }
    }

    /// The lowest number without an answer; the next to be handed out if all are answered.
    pub fn lowest_unanswered(&self) -> u64 {
        let open = lock(&self.open);
        open.unanswered.first().copied().unwrap_or(open.next)
    }
}

impl OpGuard {
    pub fn id(&self) -> OpId {
        self.op
    }
}

impl Drop for OpGuard {
    fn drop(&mut self) {
        lock(&self.open).unanswered.remove(&self.op.number);
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_is_the_lowest_op_whose_guard_lives() {
        let ops = OpIds::new(SessionId([7; 16]));
        assert_eq!(ops.lowest_unanswered(), 1);
        let (first, second) = (ops.begin(), ops.begin());
        assert_eq!((first.id().number, second.id().number), (1, 2));
        drop(second);
        assert_eq!(ops.lowest_unanswered(), 1);
        drop(first);
        assert_eq!(ops.lowest_unanswered(), 3);
    }
}
