//! The write-lock table as a machine without I/O: events in, actions out.
//!
//! State of a file: free (no entry), or held by one session under one token, with a queue of those
//! who wait. Rules:
//! 1. Tokens only grow: each grant takes the next counter of the service's epoch, and the epoch is
//!    raised and made durable before the service answers anybody.
//! 2. First come, first served. A session that holds a lock and asks again gets the same token.
//! 3. The first waiter causes one recall of the holder. A holder that did not yield within the
//!    patience of somebody who would not wait is remembered as busy until it lets go.
//! 4. A grant that nobody took (the asker went away) goes to the next waiter.
//!
//! Why it is safe that tables are lost with the process: a token of an older epoch is smaller than
//! every later one, so the fence in the inode's row, which a new grant moves, refuses it.

use std::collections::{HashMap, HashSet, VecDeque};

use dfs_proto::attr::Timestamp;
use dfs_proto::id::{FileId, SessionId};
use dfs_proto::lock::WriteClaim;
use dfs_proto::version::{Epoch, FencingToken};

/// Names one asker while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaiterId(pub u64);

/// Somebody who wants a lock.
#[derive(Clone, Debug)]
pub struct Asker {
    pub waiter: WaiterId,
    pub session: SessionId,
    /// What others are told of it.
    pub name: String,
    pub since: Timestamp,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Grant { waiter: WaiterId, token: FencingToken },
    Recall { fid: FileId, session: SessionId, token: FencingToken },
}

/// How an ask went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Granted(FencingToken),
    /// In the queue; `is_busy` says that the holder has been seen not to yield.
    Queued {
        is_busy: bool,
    },
}

#[derive(Debug)]
struct Held {
    session: SessionId,
    token: FencingToken,
    name: String,
    /// When it was asked for.
    since: Timestamp,
    is_recalled: bool,
    is_busy: bool,
    /// Askers of this session that the grant was sent to and that have not taken it yet.
    untaken_by: Vec<WaiterId>,
    /// Whether one of them has.
    is_taken: bool,
}

#[derive(Debug)]
struct Lock {
    held: Held,
    queue: VecDeque<Asker>,
}

/// All write locks of the service.
#[derive(Debug)]
pub struct LockTable {
    epoch: Epoch,
    counter: u64,
    locks: HashMap<FileId, Lock>,
    /// Files a session holds or waits for.
    by_session: HashMap<SessionId, HashSet<FileId>>,
}

impl LockTable {
    pub fn new(epoch: Epoch) -> LockTable {
        LockTable { epoch, counter: 0, locks: HashMap::new(), by_session: HashMap::new() }
    }

    /// Somebody wants the lock of `fid`.
    pub fn ask(&mut self, fid: FileId, asker: Asker) -> (Asked, Vec<Action>) {
        self.by_session.entry(asker.session).or_default().insert(fid);
        let Some(lock) = self.locks.get_mut(&fid) else {
            let held = grant(self.epoch, &mut self.counter, asker);
            let token = held.token;
            self.locks.insert(fid, Lock { held, queue: VecDeque::new() });
            return (Asked::Granted(token), Vec::new());
        };
        if lock.held.session == asker.session {
            lock.held.untaken_by.push(asker.waiter);
            return (Asked::Granted(lock.held.token), Vec::new());
        }
        lock.queue.push_back(asker);
        let actions = recall(fid, &mut lock.held).into_iter().collect();
        (Asked::Queued { is_busy: lock.held.is_busy }, actions)
    }

    /// The grant reached its asker.
    pub fn taken(&mut self, fid: FileId, waiter: WaiterId) {
        if let Some(Lock { held, .. }) = self.locks.get_mut(&fid)
            && held.untaken_by.contains(&waiter)
        {
            held.untaken_by.retain(|other| *other != waiter);
            held.is_taken = true;
        }
    }

    /// The asker went away without taking a grant.
    pub fn abandon(&mut self, fid: FileId, waiter: WaiterId) -> Vec<Action> {
        let Some(lock) = self.locks.get_mut(&fid) else {
            return Vec::new();
        };
        if lock.held.untaken_by.contains(&waiter) {
            lock.held.untaken_by.retain(|other| *other != waiter);
            let is_wanted = lock.held.is_taken || !lock.held.untaken_by.is_empty();
            return if is_wanted { Vec::new() } else { self.pass_on(fid) };
        }
        if let Some(index) = lock.queue.iter().position(|asker| asker.waiter == waiter) {
            let session = lock.queue.remove(index).map(|asker| asker.session);
            self.unlist(fid, session);
        }
        Vec::new()
    }

    /// A holder gives a lock back. A lock that was granted anew since is left alone.
    pub fn release(&mut self, fid: FileId, session: SessionId, token: FencingToken) -> Vec<Action> {
        match self.locks.get(&fid) {
            Some(Lock { held, .. }) if held.session == session && held.token == token => {
                self.pass_on(fid)
            }
            _ => Vec::new(),
        }
    }

    /// A session has ended: what it held goes to those who wait, what it waited for is forgotten.
    pub fn end_session(&mut self, session: SessionId) -> Vec<Action> {
        let mut fids: Vec<FileId> =
            self.by_session.remove(&session).into_iter().flatten().collect();
        fids.sort();
        let mut actions = Vec::new();
        for fid in fids {
            let Some(lock) = self.locks.get_mut(&fid) else { continue };
            lock.queue.retain(|asker| asker.session != session);
            if lock.held.session == session {
                actions.extend(self.pass_on(fid));
            }
        }
        actions
    }

    /// The holder did not yield in the time somebody was ready to wait.
    pub fn mark_busy(&mut self, fid: FileId) {
        if let Some(lock) = self.locks.get_mut(&fid) {
            lock.held.is_busy = true;
        }
    }

    /// Who holds the lock, for messages.
    pub fn holder_name(&self, fid: FileId) -> Option<&str> {
        self.locks.get(&fid).map(|lock| lock.held.name.as_str())
    }

    /// Who holds the lock, and who waits for it, in order.
    pub fn list(&self, fid: FileId) -> (Option<WriteClaim>, Vec<WriteClaim>) {
        let Some(Lock { held, queue }) = self.locks.get(&fid) else { return (None, Vec::new()) };
        let Held { session, token, name, since, .. } = held;
        let (session, token, holder) = (*session, Some(*token), name.clone());
        let holder = WriteClaim { session, holder, token, since: *since };
        let waiting = queue.iter().map(|asker| WriteClaim {
            session: asker.session,
            holder: asker.name.clone(),
            token: None,
            since: asker.since,
        });
        (Some(holder), waiting.collect())
    }

    /// The files whose lock somebody holds, in no order.
    pub fn files(&self) -> impl Iterator<Item = FileId> + '_ {
        self.locks.keys().copied()
    }

    /// Takes a lock from its holder, whatever it does with it; the fence refuses what it still
    /// sends once somebody else has it. Whether there was one.
    pub fn break_lock(&mut self, fid: FileId) -> (bool, Vec<Action>) {
        (self.locks.contains_key(&fid), self.pass_on(fid))
    }

    #[cfg(test)]
    pub fn held_count(&self) -> usize {
        self.locks.len()
    }

    /// The recalls that holders still owe an answer to.
    pub fn outstanding_recalls(&self) -> Vec<Action> {
        let recalled = self.locks.iter().filter(|(_, lock)| lock.held.is_recalled);
        recalled
            .map(|(fid, Lock { held: Held { session, token, .. }, .. })| Action::Recall {
                fid: *fid,
                session: *session,
                token: *token,
            })
            .collect()
    }

    /// Ends the present grant and makes the next one.
    fn pass_on(&mut self, fid: FileId) -> Vec<Action> {
        let Some(mut lock) = self.locks.remove(&fid) else {
            return Vec::new();
        };
        let former = lock.held.session;
        let mut actions = Vec::new();
        if let Some(next) = lock.queue.pop_front() {
            let session = next.session;
            lock.held = grant(self.epoch, &mut self.counter, next);
            let token = lock.held.token;
            lock.held.untaken_by.extend(take_of(&mut lock.queue, session));
            let waiters = lock.held.untaken_by.iter();
            actions.extend(waiters.map(|waiter| Action::Grant { waiter: *waiter, token }));
            if !lock.queue.is_empty() {
                actions.extend(recall(fid, &mut lock.held));
            }
            self.locks.insert(fid, lock);
        }
        self.unlist(fid, Some(former));
        actions
    }

    /// Forgets that `session` has to do with `fid`, if it has not.
    fn unlist(&mut self, fid: FileId, session: Option<SessionId>) {
        let Some(session) = session else { return };
        let concerns = self.locks.get(&fid).is_some_and(|lock| {
            lock.held.session == session || lock.queue.iter().any(|asker| asker.session == session)
        });
        if concerns {
            return;
        }
        if let Some(fids) = self.by_session.get_mut(&session) {
            fids.remove(&fid);
            if fids.is_empty() {
                self.by_session.remove(&session);
            }
        }
    }
}

fn grant(epoch: Epoch, counter: &mut u64, asker: Asker) -> Held {
    *counter += 1;
    Held {
        session: asker.session,
        token: FencingToken::new(epoch, *counter),
        name: asker.name,
        since: asker.since,
        is_recalled: false,
        is_busy: false,
        untaken_by: vec![asker.waiter],
        is_taken: false,
    }
}

fn recall(fid: FileId, held: &mut Held) -> Option<Action> {
    if std::mem::replace(&mut held.is_recalled, true) {
        return None;
    }
    Some(Action::Recall { fid, session: held.session, token: held.token })
}

/// Takes the other askers of `session` out of the queue: they share its grant.
fn take_of(queue: &mut VecDeque<Asker>, session: SessionId) -> Vec<WaiterId> {
    let waiters =
        queue.iter().filter(|asker| asker.session == session).map(|asker| asker.waiter).collect();
    queue.retain(|asker| asker.session != session);
    waiters
}

#[cfg(test)]
mod tests;
