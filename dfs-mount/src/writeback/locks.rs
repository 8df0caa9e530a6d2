//! The write locks of this client: one [`crate::lease::Lock`] for each file, and the requests that
//! give locks back.
//!
//! A lock on its way back and an open for writing must not overtake each other, or the open would
//! be answered with a lock that is then given away. So each file has a gate: giving back holds it
//! until the answer, and an open passes it before it is sent. Locks that are merely kept are
//! bounded; the oldest ride back on a heartbeat.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::admin::Role;
use dfs_proto::directory::Yield;
use dfs_proto::id::FileId;
use dfs_proto::version::FencingToken;
use tokio::sync::Notify;

use crate::lease::{Event, Lock};
use crate::metrics::Counter;
use crate::session::Session;

/// Locks kept without a writer. Why: each costs the owner a row, and an untar of a large tree
/// would leave one for every file.
const IDLE_LOCKS_MAX: usize = 1024;

/// The locks of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Locks {
    session: Session,
    table: Arc<Mutex<Table>>,
    wanted: Arc<Wanted>,
}

/// Files whose lock somebody else waits for, and that an open under way has kept so far.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    fids: Mutex<HashSet<FileId>>,
    come: Notify,
}

impl Wanted {
    fn add(&self, fid: FileId) {
        self.fids.lock().unwrap_or_else(PoisonError::into_inner).insert(fid);
        self.come.notify_one();
    }

    /// Returns when there are some. Cancel-safe.
    pub async fn take(&self) -> HashSet<FileId> {
        self.come.notified().await;
        std::mem::take(&mut *self.fids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Default)]
struct Table {
    locks: HashMap<FileId, Arc<Cell>>,
    /// Files in the order in which their last writer closed.
    idle: VecDeque<FileId>,
}

#[derive(Debug, Default)]
struct Cell {
    gate: tokio::sync::Mutex<()>,
    lock: Mutex<Lock>,
}

/// An open for writing that is under way. Dropping it without an answer gives it up.
#[derive(Debug)]
pub struct WriteIntent {
    fid: FileId,
    locks: Locks,
}

impl WriteIntent {
    pub fn fid(&self) -> FileId {
        self.fid
    }
}

impl Drop for WriteIntent {
    fn drop(&mut self) {
        if let Some(token) = self.locks.apply(self.fid, Event::OpeningEnded) {
            self.locks.session.yield_soon(self.fid, token);
        }
        if self.locks.is_wanted(self.fid) {
            self.locks.wanted.add(self.fid);
        }
    }
}

impl Locks {
    pub fn new(session: Session) -> Locks {
        Locks { session, table: Arc::default(), wanted: Arc::default() }
    }

    /// Locks that may be wanted though no recall comes any more.
    pub fn wanted(&self) -> Arc<Wanted> {
        Arc::clone(&self.wanted)
    }

    /// Announces an open for writing, once no lock of the file is on its way back.
    pub async fn intend(&self, fid: FileId) -> WriteIntent {
        let cell = self.cell(fid);
        let _passed = cell.gate.lock().await;
        self.session.keep_lock(fid).await;
        lock(&cell).apply(Event::Opening);
        WriteIntent { fid, locks: self.clone() }
    }

    /// Takes an event that never makes a lock due at once, or whose caller sees to it.
    pub fn apply(&self, fid: FileId, event: Event) -> Option<FencingToken> {
        let cell = self.cell(fid);
        let due = lock(&cell).apply(event);
        drop(cell);
        self.forget_if_idle(fid);
        due
    }

    /// Whether another client waits for a lock that open writers keep.
    pub fn is_wanted(&self, fid: FileId) -> bool {
        let cell = self.table().locks.get(&fid).cloned();
        cell.is_some_and(|cell| lock(&cell).is_wanted())
    }

    /// Takes an event, and gives the lock back if it is due.
    pub async fn settle(&self, fid: FileId, event: Event) {
        let cell = self.cell(fid);
        let passed = cell.gate.lock().await;
        let due = lock(&cell).apply(event);
        if let Some(token) = due {
            self.session.metrics().count(Counter::LockYielded);
            self.session.goes_back(fid);
            let request = Yield { fid, token };
            if let Err(error) = self.session.call(Role::Directory, None, &request).await {
                tracing::debug!(%fid, %error, "lock goes back with a heartbeat");
                self.session.yield_later(fid, token);
            }
            self.session.went_back(fid);
        }
        if event == Event::WriterClosed {
            self.keep_idle(fid);
        }
        drop(passed);
        drop(cell);
        self.forget_if_idle(fid);
    }

    fn keep_idle(&self, fid: FileId) {
        let mut table = self.table();
        table.idle.push_back(fid);
        while table.idle.len() > IDLE_LOCKS_MAX {
            let Some(oldest) = table.idle.pop_front() else { break };
            let Some(cell) = table.locks.get(&oldest) else { continue };
            if let Some(token) = lock(cell).give_up() {
                self.session.yield_later(oldest, token);
            }
        }
    }

    fn forget_if_idle(&self, fid: FileId) {
        let mut table = self.table();
        let is_idle = table.locks.get(&fid).is_some_and(|cell| {
            // More holders than the table: somebody is about to use it.
            Arc::strong_count(cell) == 1 && lock(cell).is_idle()
        });
        if is_idle {
            table.locks.remove(&fid);
        }
    }

    fn cell(&self, fid: FileId) -> Arc<Cell> {
        Arc::clone(self.table().locks.entry(fid).or_default())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(cell: &Cell) -> MutexGuard<'_, Lock> {
    cell.lock.lock().unwrap_or_else(PoisonError::into_inner)
}
