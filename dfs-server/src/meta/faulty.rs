//! An engine that fails on command, around any other.
//!
//! For tests and simulations: commits fail before or after they were applied, loads and scans fail,
//! commits can be held to look at what happens meanwhile. Without orders it only counts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use dfs_proto::id::NodeId;
use dfs_proto::version::Epoch;

use super::{Batch, Engine, EngineError, KeyBytes, RawRow, Space};

/// Where in a commit something happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    BeforeApplied,
    AfterApplied,
}

/// The cause of every failure that was ordered.
#[derive(Debug, thiserror::Error)]
#[error("ordered by a test")]
pub struct Ordered;

/// An engine that obeys [`Faults`].
#[derive(Debug)]
pub struct FaultyEngine {
    inner: Arc<dyn Engine>,
    faults: Faults,
}

/// Gives orders to a [`FaultyEngine`].
#[derive(Clone, Debug, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    commits: u64,
    loads: u64,
    /// Numbers of commits that fail.
    failing: Vec<(u64, Moment)>,
    reads_fail: bool,
    is_full: bool,
    hold: Option<Moment>,
    is_holding: bool,
}

/// While it lives, the next commit stops at its moment.
#[derive(Debug)]
pub struct Hold {
    faults: Faults,
}

impl FaultyEngine {
    pub fn new(inner: Arc<dyn Engine>) -> (Arc<FaultyEngine>, Faults) {
        let faults = Faults::default();
        (Arc::new(FaultyEngine { inner, faults: faults.clone() }), faults)
    }

    fn stop(&self, commit: u64, moment: Moment) -> Result<(), EngineError> {
        let mut orders = self.faults.orders();
        while orders.hold == Some(moment) {
            orders.is_holding = true;
            self.faults.shared.changed.notify_all();
            orders = self.faults.wait(orders);
        }
        orders.is_holding = false;
        match orders.failing.contains(&(commit, moment)) {
            true => Err(ordered("commit a batch")),
            false => Ok(()),
        }
    }
}

impl Orders {
    fn check_read(&self, doing: &'static str) -> Result<(), EngineError> {
        match self.reads_fail {
            true => Err(ordered(doing)),
            false => Ok(()),
        }
    }
}

fn ordered(doing: &'static str) -> EngineError {
    EngineError::Failed { doing, cause: Box::new(Ordered) }
}

impl Faults {
    /// The `n`-th commit from here fails, counting the next as 1.
    pub fn fail_commit(&self, n: u64, moment: Moment) {
        let mut orders = self.orders();
        let commit = orders.commits + n;
        orders.failing.push((commit, moment));
    }

    /// Takes orders to fail commits back.
    pub fn forget(&self) {
        self.orders().failing.clear();
    }

    /// Whether loads and scans fail.
    pub fn fail_reads(&self, fail: bool) {
        self.orders().reads_fail = fail;
    }

    /// Whether there is no space for anything new.
    pub fn set_full(&self, is_full: bool) {
        self.orders().is_full = is_full;
    }

    /// Makes commits stop at `moment` until the returned value is dropped.
    pub fn hold_commits(&self, moment: Moment) -> Hold {
        self.orders().hold = Some(moment);
        Hold { faults: self.clone() }
    }

    /// Commits that were tried, claims apart.
    pub fn commits(&self) -> u64 {
        self.orders().commits
    }

    /// Loads that were tried, whatever number of keys each had.
    pub fn loads(&self) -> u64 {
        self.orders().loads
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, orders: MutexGuard<'a, Orders>) -> MutexGuard<'a, Orders> {
        self.shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// Waits until a commit has stopped. Blocks.
    pub fn wait(&self) {
        let mut orders = self.faults.orders();
        while !orders.is_holding {
            orders = self.faults.wait(orders);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.faults.orders().hold = None;
        self.faults.shared.changed.notify_all();
    }
}

impl Engine for FaultyEngine {
    fn load(&self, keys: &[KeyBytes]) -> Result<Vec<Option<Vec<u8>>>, EngineError> {
        let mut orders = self.faults.orders();
        orders.loads += 1;
        orders.check_read("load rows")?;
        drop(orders);
        self.inner.load(keys)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<RawRow>, EngineError> {
        self.faults.orders().check_read("scan rows")?;
        self.inner.scan(from, to, limit)
    }

    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        let commit = {
            let mut orders = self.faults.orders();
            orders.commits += 1;
            orders.commits
        };
        self.stop(commit, Moment::BeforeApplied)?;
        self.inner.commit(batch)?;
        self.stop(commit, Moment::AfterApplied)
    }

    fn claim(&self, space: Space, holder: NodeId) -> Result<Epoch, EngineError> {
        self.inner.claim(space, holder)
    }

    fn has_room(&self) -> bool {
        !self.faults.orders().is_full && self.inner.has_room()
    }
}
