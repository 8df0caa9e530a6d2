//! Breaks: telling those who hold promises of a change, and waiting until they know.
//!
//! **The argument** is PROTOCOL.md's, "Coherence". What this file adds to it:
//!
//! 1. One lock is around the table, the numbers and the queues. So the breaks of a stream are in
//!    the order of commits, and a promise that a break ends is gone before the next one is made.
//! 2. Whoever was sent a break delays the answer until it has acknowledged it, until its promises
//!    end by their lease, or until it has none any more: it asked for another stream, or its
//!    session was closed. The lease is renewed only for those who have acknowledged what they were
//!    sent before the renewal before: so it ends for those who do not.
//! 3. A stream that cannot take a break is ended, but its promises stay: the client does not know,
//!    and each change of what it holds waits for the same end of the lease. It gets no new ones.
//! 4. The one who makes the change learns of it by the reply, if its request names the stream that
//!    is live when the change is made; else it is told like all others. A repeated request is
//!    answered with the same changes again, from [`Recent`]; if they were dropped from there, the
//!    session is treated like one that did not acknowledge.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_proto::credential::{ActAs, Identity};
use dfs_proto::id::{FileId, InodeNo, SessionId, VolumeId};
use dfs_proto::limits::OPS_IN_FLIGHT_MAX;
use dfs_proto::promise::{Break, BreakNumber, DirChange, Promise, StreamNumber};
use dfs_proto::session::SessionEvent;
use dfs_proto::version::Sequence;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::promise::Held;
use super::{Session, Sessions, Table};
use crate::request::{Origin, Peer};

/// Who may see what is in a directory.
pub type MaySee<'a> = &'a dyn Fn(FileId, &Identity) -> bool;

/// How far a session is, for those who wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The stream that its promises belong to, if it can have any.
    pub stream: Option<StreamNumber>,
    pub acknowledged: BreakNumber,
}

/// One session's break that an answer waits for.
struct Open {
    id: SessionId,
    stream: StreamNumber,
    number: BreakNumber,
    /// The end of the promises by their lease, as it was when this was looked at last.
    until: Duration,
    progress: watch::Receiver<Progress>,
}

/// What a session's last mutations changed in what it holds, by op number.
#[derive(Debug, Default)]
pub(super) struct Recent {
    changes: BTreeMap<u64, Vec<DirChange>>,
    /// Ops up to here may have been dropped.
    forgotten: u64,
}

impl Recent {
    fn note(&mut self, origin: &Origin, changes: Vec<DirChange>) {
        self.changes = self.changes.split_off(&origin.watermark);
        self.changes.insert(origin.op.number, changes);
        if self.changes.len() > OPS_IN_FLIGHT_MAX
            && let Some((number, _)) = self.changes.pop_first()
        {
            self.forgotten = self.forgotten.max(number);
        }
    }
}

/// A promise that is registered, for rows that are read from here on.
#[derive(Debug)]
pub struct Registered {
    stream: StreamNumber,
    after: BreakNumber,
    dirs: Vec<FileId>,
}

impl Registered {
    pub fn covers(&self, dir: FileId) -> bool {
        self.dirs.contains(&dir)
    }

    /// The promise to send, for `dirs` of those registered, as of the state that was read.
    pub fn into_promise(mut self, dirs: &[FileId], sequence: Sequence) -> Option<Promise> {
        self.dirs.retain(|dir| dirs.contains(dir));
        let Registered { stream, after, dirs } = self;
        (!dirs.is_empty()).then_some(Promise { stream, after, sequence, dirs })
    }
}

impl Sessions {
    /// Registers promises to a session, before the rows are read that they are to cover. `None` if
    /// nothing can be promised to it: there is no such session of `user`, or no stream.
    pub fn promise(&self, id: SessionId, user: &str, dirs: &[FileId]) -> Option<Registered> {
        let now = self.clock.boottime();
        let mut table = self.table();
        let Table { sessions, promises, .. } = &mut *table;
        let session = sessions.get_mut(&id)?;
        if session.user != user || session.ends_at <= now || !session.is_listening(now) {
            return None;
        }
        let stream = session.listener.as_ref()?.stream;
        let after = session.last_break;
        let dirs = dirs.iter().copied();
        let dirs = dirs.filter(|dir| promises.promise(id, &mut session.held, *dir)).collect();
        Some(Registered { stream, after, dirs })
    }

    /// Whether anybody was promised anything.
    pub fn has_promises(&self) -> bool {
        self.table().promises.count() > 0
    }

    /// The promised directories of an inode number, whatever their generation.
    pub fn promised(&self, volume: VolumeId, inode: InodeNo) -> Vec<FileId> {
        self.table().promises.promised(volume, inode)
    }

    /// Tells all who hold promises on the directories of `changes`, but `origin`, whose reply tells
    /// it. What is returned is over when all of them know, or hold nothing any more.
    pub fn break_promises(
        &self,
        changes: &[DirChange],
        origin: Option<&Origin>,
        may_see: MaySee<'_>,
    ) -> Option<BoxFuture<'static, ()>> {
        let now = self.clock.boottime();
        let mut table = self.table();
        let mut mail: BTreeMap<SessionId, Vec<DirChange>> = BTreeMap::new();
        for change in changes {
            for id in table.promises.holders(change.dir) {
                let seen = table
                    .sessions
                    .get(id)
                    .is_some_and(|session| session.sees(|identity| may_see(change.dir, identity)));
                mail.entry(*id).or_default().push(if seen { change.clone() } else { cut(change) });
            }
        }
        if let Some(origin) = origin.filter(|origin| table.has_beside(origin)) {
            let mut own = mail.remove(&origin.op.session).unwrap_or_default();
            own.extend(table.promise_what_is_made(origin.op.session, changes));
            if !own.is_empty() {
                table.tell_origin(origin, own);
            }
        }
        let open = mail.into_iter().filter_map(|(id, told)| table.send_break(id, told, now));
        let open: Vec<Open> = open.collect();
        drop(table);
        self.hold(open)
    }

    /// A request whose mutation changed nothing this time, perhaps because it was answered before:
    /// it waits for all that is open, and is told what it changed then.
    pub fn answer_again(&self, origin: &Origin) -> Option<BoxFuture<'static, ()>> {
        let mut table = self.table();
        let own = origin.op.session;
        if let Some(session) = table.sessions.get_mut(&own) {
            let number = origin.op.number;
            if let Some(changes) = session.recent.changes.get(&number) {
                origin.news.write().changes.clone_from(changes);
            } else if number <= session.recent.forgotten && !session.held.is_empty() {
                session.fail_stream("what one of its operations changed is not known any more");
                session.last_break.0 += 1;
                table.unacknowledged.insert(own);
            }
        }
        let ids = table.unacknowledged.iter();
        let open = ids.filter_map(|id| {
            let session = table.sessions.get(id)?;
            session.open_break(*id, session.last_break)
        });
        let open: Vec<Open> = open.collect();
        drop(table);
        self.hold(open)
    }

    fn hold(&self, open: Vec<Open>) -> Option<BoxFuture<'static, ()>> {
        if open.is_empty() {
            return None;
        }
        let sessions = self.clone();
        let wait = async move {
            for mut open in open {
                let is_over = |progress: &Progress| {
                    progress.stream != Some(open.stream) || progress.acknowledged >= open.number
                };
                loop {
                    tokio::select! {
                        // An error means that the session is gone.
                        _ = open.progress.wait_for(is_over) => break,
                        () = sessions.clock.sleep_until(open.until) => {}
                    }
                    match sessions.lapse(&open) {
                        Some(later) => open.until = later,
                        None => break,
                    }
                }
            }
        };
        Some(wait.boxed())
    }

    /// Ends the promises of a session whose lease on them is over; if it was renewed since, when it
    /// will be.
    fn lapse(&self, open: &Open) -> Option<Duration> {
        let (id, now) = (open.id, self.clock.boottime());
        let mut table = self.table();
        let listener = table.sessions.get(&id)?.listener.as_ref();
        let until = listener.filter(|it| it.stream == open.stream)?.promised_until;
        if until > now {
            return Some(until);
        }
        tracing::warn!(session = %id, "promises ended: a break was not acknowledged in time");
        table.give_up(id);
        None
    }
}

/// As told to one who may not see what is in the directory.
fn cut(change: &DirChange) -> DirChange {
    let is_cut = change.is_cut || !change.names.is_empty();
    DirChange { attr: change.attr.clone(), names: Vec::new(), is_cut, ..*change }
}

impl Table {
    /// Nothing is promised to a session any more, and nobody waits for it.
    pub(super) fn give_up(&mut self, id: SessionId) {
        self.unacknowledged.remove(&id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        self.promises.end_all(id, &mut session.held);
        session.listener = None;
        session.recent = Recent::default();
        let acknowledged = session.last_break;
        session.progress.send_replace(Progress { stream: None, acknowledged });
    }

    /// Whether the reply of a mutation comes to a client that has the stream of today. One that
    /// began another one since does not wait for this reply, and learns of the change as others do.
    fn has_beside(&self, origin: &Origin) -> bool {
        let listener = self.sessions.get(&origin.op.session).and_then(|it| it.listener.as_ref());
        listener.is_some_and(|listener| Some(listener.stream) == origin.news.stream())
    }

    /// The directories that a session has just made are promised to it: all that it is told of is
    /// after this change. What is to be told of them.
    fn promise_what_is_made(&mut self, id: SessionId, changes: &[DirChange]) -> Vec<DirChange> {
        let Table { sessions, promises, .. } = self;
        let Some(session) = sessions.get_mut(&id) else { return Vec::new() };
        let made = changes.iter().filter(|change| change.is_made);
        let made = made.filter(|change| promises.promise(id, &mut session.held, change.dir));
        made.cloned().collect()
    }

    fn tell_origin(&mut self, origin: &Origin, changes: Vec<DirChange>) {
        let id = origin.op.session;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // There will be no change of what is gone.
        let is_gone = |change: &&DirChange| change.attr.is_none() && !change.is_cut;
        for change in changes.iter().filter(is_gone) {
            self.promises.end(id, &mut session.held, change.dir);
        }
        origin.news.write().changes.clone_from(&changes);
        session.recent.note(origin, changes);
    }

    fn send_break(
        &mut self,
        id: SessionId,
        mut told: Vec<DirChange>,
        now: Duration,
    ) -> Option<Open> {
        if self.sessions.get(&id)?.is_lapsed(now) {
            self.give_up(id);
            return None;
        }
        let session = self.sessions.get_mut(&id)?;
        let ending = told.iter().filter_map(|change| session.held.ends_with(change.dir)).max();
        told.retain(|change| session.held.ends_with(change.dir).is_none());
        if told.is_empty() {
            // Nothing is sent of what has ended, but its holder may not know that yet.
            return session.open_break(id, ending?);
        }
        session.last_break.0 += 1;
        let number = session.last_break;
        let acknowledged = session.progress.borrow().acknowledged;
        let is_last = |held: &mut Held, change: &DirChange| {
            held.is_idle(change.dir, number, acknowledged) || change.attr.is_none()
        };
        let ended = told.iter().filter(|change| is_last(&mut session.held, change));
        let ended: Vec<FileId> = ended.map(|change| change.dir).collect();
        let event = Break { number, changes: told, ended: ended.clone() };
        // Of a stream that failed nobody hears what ends: promises stay until the lease is over.
        if session.send(SessionEvent::Break(event)).is_ok() {
            ended.into_iter().for_each(|dir| session.held.end_with(dir, number));
        }
        self.unacknowledged.insert(id);
        session.open_break(id, number)
    }
}

impl Session {
    /// Whether promises can be made to it: there is a stream to break them on, and time.
    fn is_listening(&self, now: Duration) -> bool {
        self.has_stream() && !self.is_lapsed(now)
    }

    pub(super) fn has_stream(&self) -> bool {
        let sender = self.listener.as_ref().and_then(|listener| listener.sender.as_ref());
        sender.is_some_and(|sender| !sender.is_closed())
    }

    /// Whether its promises have ended by their lease, or it can have none.
    pub(super) fn is_lapsed(&self, now: Duration) -> bool {
        self.listener.as_ref().is_none_or(|listener| listener.promised_until <= now)
    }

    /// Puts an event on its stream, or ends the stream if that cannot be.
    pub(super) fn send(&mut self, event: SessionEvent) -> Result<(), NoStream> {
        let sender = self.listener.as_ref().and_then(|listener| listener.sender.as_ref());
        if sender.ok_or(NoStream)?.try_send(event).is_ok() {
            return Ok(());
        }
        self.fail_stream("it does not take events");
        Err(NoStream)
    }

    /// Ends its stream. Its promises stay: the client does not know yet.
    pub(super) fn fail_stream(&mut self, why: &str) {
        if let Some(listener) = self.listener.as_mut().filter(|it| it.sender.is_some()) {
            tracing::info!(host = self.host, why, "event stream ended");
            listener.sender = None;
        }
    }

    fn open_break(&self, id: SessionId, number: BreakNumber) -> Option<Open> {
        let listener = self.listener.as_ref()?;
        Some(Open {
            id,
            stream: listener.stream,
            number,
            until: listener.promised_until,
            progress: self.progress.subscribe(),
        })
    }

    /// Whether it has acknowledged what it was sent before its lease was renewed last. Not whether
    /// a break is open: one always is, if others change what it holds all the time.
    pub(super) fn keeps_up(&self) -> bool {
        self.progress.borrow().acknowledged >= self.renewed_at
    }

    pub(super) fn has_open_break(&self) -> bool {
        self.progress.borrow().acknowledged < self.last_break
    }

    /// A machine is trusted with its users; a person sees what the directory lets them see.
    fn sees(&self, may_see: impl Fn(&Identity) -> bool) -> bool {
        match &self.peer {
            Peer::User(holder) => match &holder.act_as {
                ActAs::Machine { .. } => true,
                ActAs::Personal { identity } => may_see(identity),
            },
            peer => may_see(&peer.identity(None)),
        }
    }
}

/// There is no stream to send on.
#[derive(Debug)]
pub(super) struct NoStream;

#[cfg(test)]
mod tests;
