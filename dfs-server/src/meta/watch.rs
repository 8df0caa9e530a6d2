//! Who is told of every mutation, between its publication and its answer.
//!
//! A service that keeps others informed of its rows registers one [`Watch`] with its store. It is
//! called on the writer's thread, for one mutation after the other in the order of commits, after
//! readers can see the mutation and before its caller is answered: so whoever registered an
//! interest before it read rows, and read what was there before, is known to the watch by then. A
//! watch must not block; what its caller shall wait for it returns.

use std::fmt;
use std::sync::Arc;

use dfs_proto::version::Sequence;
use futures_util::future::BoxFuture;

use super::record::{AnyRow, Record, RecordError, downcast};
use super::rows::Row;
use super::{KeyBytes, internal, key};
use crate::request::Origin;

/// What the answer of a mutation waits for. Bounded in time by whoever makes it.
pub type Hold = BoxFuture<'static, ()>;

/// A row before and after a mutation.
#[derive(Clone)]
pub struct Change {
    pub key: KeyBytes,
    /// `None` if it was not in memory.
    before: Option<Row>,
    after: Row,
}

/// One mutation that readers see.
#[derive(Debug)]
pub struct Mutation<'a> {
    /// Shape: in the order of keys, none twice; empty if nothing was changed (the answer may be
    /// that of an earlier run).
    pub changes: &'a [Change],
    pub sequence: Sequence,
    /// Who asked for it; `None` if that is nobody who waits for a good answer.
    pub origin: Option<&'a Origin>,
}

pub trait Watch: Send + Sync + fmt::Debug + 'static {
    /// Called for mutations that changed something, and for those with an origin.
    fn committed(&self, mutation: &Mutation<'_>) -> Option<Hold>;
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Change({})", key::hex(&self.key))
    }
}

impl Change {
    pub(super) fn new(key: KeyBytes, before: Option<Row>, after: Row) -> Change {
        Change { key, before, after }
    }

    /// The row before, as far as it is known: `None` is not known, `Some(None)` there was none.
    pub fn before<R: Record>(&self) -> Option<Option<Arc<R>>> {
        let Some(row) = self.before.as_ref()? else { return Some(None) };
        typed(row).map(Some)
    }

    /// The row after.
    pub fn after<R: Record>(&self) -> Option<Arc<R>> {
        typed(self.after.as_ref()?)
    }
}

/// A row of another type is none that anybody could read.
fn typed<R: Record>(row: &Arc<dyn AnyRow>) -> Option<Arc<R>> {
    let logged = |fault: &RecordError| drop(internal("tell of a changed row", fault));
    downcast(row).inspect_err(logged).ok()
}
