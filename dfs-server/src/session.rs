//! Sessions: which clients live, and how to tell them something.
//!
//! A session lives as long as its lease, counted here from the sending of the reply that renewed
//! it; the client counts from the sending of its request, so it stops first. The table is memory
//! only: after a restart clients open their sessions again under the same id, and whatever a lost
//! session was granted is caught by the fence, what it was promised by `grace`.
//!
//! A session that listens can be promised to be told of changes (`promise`, `breaker`); these
//! promises have a lease of their own, renewed with the session's while breaks are acknowledged.

mod breaker;
pub mod grace;
mod promise;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::capability::MacKey;
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::id::SessionId;
use dfs_proto::limits::{SESSION_COUNT_MAX, SESSION_LEASE};
use dfs_proto::promise::{BreakNumber, StreamNumber, USED_DIRS_MAX};
use dfs_proto::session::{Acknowledge, SessionEvent};
use dfs_proto::version::Epoch;
use tokio::sync::{mpsc, watch};

use crate::request::Peer;
pub use breaker::{MaySee, Registered};
use breaker::{Progress, Recent};
use promise::{Held, Promises};

/// Events queued for one client. One that falls behind has its stream ended and opens a new one.
const EVENT_QUEUE_MAX: usize = 1024;

/// The sessions of one owner. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    table: Arc<Mutex<Table>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<SessionId, Session>,
    promises: Promises,
    /// Sessions with a break that is not acknowledged.
    unacknowledged: BTreeSet<SessionId>,
    /// Streams made so far.
    streams: u32,
}

struct Session {
    /// Account or machine that opened it; nobody else may use it.
    user: String,
    /// Its bearer, as it was opened last.
    peer: Peer,
    host: String,
    key: MacKey,
    ends_at: Duration,
    /// Whether its row is written: the next owner waits for it.
    is_recorded: bool,
    listener: Option<Listener>,
    held: Held,
    last_break: BreakNumber,
    /// The last break when the lease on its promises was renewed last.
    renewed_at: BreakNumber,
    progress: watch::Sender<Progress>,
    recent: Recent,
}

/// A session's event stream, and what rests on it.
struct Listener {
    stream: StreamNumber,
    /// `None` after it failed: then its promises stay, unused, until their lease ends.
    sender: Option<mpsc::Sender<SessionEvent>>,
    /// The end of the lease on its promises.
    promised_until: Duration,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({})", self.count())
    }
}

impl Sessions {
    pub fn new(clock: Arc<dyn Clock>) -> Sessions {
        Sessions { table: Arc::default(), clock }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session, or renews the one of that id. `fresh_key` is used only for a new one.
    ///
    /// # Errors
    /// `NotPermitted` if it is another user's, `TooLarge` if there are too many.
    pub fn open(
        &self,
        id: SessionId,
        peer: &Peer,
        host: &str,
        fresh_key: MacKey,
    ) -> Result<MacKey, FsError> {
        let ends_at = self.clock.boottime() + SESSION_LEASE;
        let mut table = self.table();
        if let Some(session) = table.sessions.get_mut(&id) {
            if session.user != peer.user() {
                return Err(FsError::NotPermitted);
            }
            session.ends_at = ends_at;
            session.peer = peer.clone();
            return Ok(session.key.clone());
        }
        if table.sessions.len() >= SESSION_COUNT_MAX {
            let limit = SESSION_COUNT_MAX as u64;
            return Err(FsError::TooLarge { what: "number of sessions".into(), limit });
        }
        let key = fresh_key.clone();
        let (user, host) = (peer.user().to_owned(), host.to_owned());
        let session = Session {
            user,
            peer: peer.clone(),
            host,
            key: fresh_key,
            ends_at,
            is_recorded: false,
            listener: None,
            held: Held::default(),
            last_break: BreakNumber::default(),
            renewed_at: BreakNumber::default(),
            progress: watch::Sender::default(),
            recent: Recent::default(),
        };
        table.sessions.insert(id, session);
        Ok(key)
    }

    /// Renews a lease, and that of its promises on the stream that is returned.
    ///
    /// # Errors
    /// `SessionUnknown`, also for somebody else's session.
    pub fn renew(&self, id: SessionId, user: &str) -> Result<Option<StreamNumber>, FsError> {
        let now = self.clock.boottime();
        let ends_at = now + SESSION_LEASE;
        self.with(id, user, |session| {
            session.ends_at = ends_at;
            let is_kept = session.has_stream() && session.keeps_up();
            let is_promised = is_kept && !session.is_lapsed(now);
            let listener = session.listener.as_mut().filter(|_| is_promised)?;
            listener.promised_until = ends_at;
            session.renewed_at = session.last_break;
            Some(listener.stream)
        })
    }

    /// Notes that a session knows of all breaks up to a number. Never waits for anything.
    ///
    /// # Errors
    /// `SessionUnknown`, also for somebody else's session; `InvalidArgument` for a break that was
    /// not sent; `TooLarge`.
    pub fn acknowledge(
        &self,
        id: SessionId,
        user: &str,
        request: &Acknowledge,
    ) -> Result<(), FsError> {
        let Acknowledge { number, used } = request;
        if used.len() > USED_DIRS_MAX {
            let what = "directories that were used".to_owned();
            return Err(FsError::TooLarge { what, limit: USED_DIRS_MAX as u64 });
        }
        let now = self.clock.boottime();
        let mut table = self.table();
        table.live(id, user, now)?;
        let Table { sessions, promises, unacknowledged, .. } = &mut *table;
        let session = sessions.get_mut(&id).ok_or(FsError::SessionUnknown)?;
        if *number > session.last_break {
            let last = session.last_break.0;
            return Err(FsError::invalid(format!("break {} (the last is {last})", number.0)));
        }
        used.iter().for_each(|dir| session.held.note_use(*dir, *number));
        session.progress.send_if_modified(|progress| {
            let is_new = progress.acknowledged < *number;
            progress.acknowledged = progress.acknowledged.max(*number);
            is_new
        });
        promises.acknowledged(id, &mut session.held, *number);
        if !session.has_open_break() {
            unacknowledged.remove(&id);
        }
        Ok(())
    }

    /// What others are told of a session: host and user.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn describe(&self, id: SessionId, user: &str) -> Result<String, FsError> {
        self.with(id, user, |session| format!("{} ({})", session.host, session.user))
    }

    /// The host of a session that is to be recorded; `None` if it is.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn unrecorded(&self, id: SessionId, user: &str) -> Result<Option<String>, FsError> {
        self.with(id, user, |session| (!session.is_recorded).then(|| session.host.clone()))
    }

    /// The row of a session is written.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn set_recorded(&self, id: SessionId, user: &str) -> Result<(), FsError> {
        self.with(id, user, |session| session.is_recorded = true)
    }

    /// As whom a caller of a session's client acts.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn identity(&self, id: SessionId, caller: Option<&Identity>) -> Result<Identity, FsError> {
        let now = self.clock.boottime();
        let table = self.table();
        let session = table.sessions.get(&id).filter(|session| session.ends_at > now);
        session.map(|session| session.peer.identity(caller)).ok_or(FsError::SessionUnknown)
    }

    /// The key of a session, for checking its MACs.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn key(&self, id: SessionId) -> Result<MacKey, FsError> {
        let now = self.clock.boottime();
        let table = self.table();
        let session = table.sessions.get(&id).filter(|session| session.ends_at > now);
        session.map(|session| session.key.clone()).ok_or(FsError::SessionUnknown)
    }

    fn with<T>(
        &self,
        id: SessionId,
        user: &str,
        work: impl FnOnce(&mut Session) -> T,
    ) -> Result<T, FsError> {
        let now = self.clock.boottime();
        Ok(work(self.table().live(id, user, now)?))
    }

    /// Whether a session of this id lives and is another user's.
    pub fn is_foreign(&self, id: SessionId, user: &str) -> bool {
        self.table().sessions.get(&id).is_some_and(|session| session.user != user)
    }

    /// Whether a session of this id lives.
    pub fn is_live(&self, id: SessionId) -> bool {
        self.key(id).is_ok()
    }

    /// Gives a session a new event stream, which ends the one before and all that was promised on
    /// it.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn listen(
        &self,
        id: SessionId,
        user: &str,
        epoch: Epoch,
    ) -> Result<mpsc::Receiver<SessionEvent>, FsError> {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE_MAX);
        let now = self.clock.boottime();
        let mut table = self.table();
        table.live(id, user, now)?;
        table.give_up(id);
        table.streams += 1;
        // The epoch makes it another number than those of owners before.
        let stream = StreamNumber(u64::from(epoch.0) << 32 | u64::from(table.streams));
        let session = table.sessions.get_mut(&id).ok_or(FsError::SessionUnknown)?;
        // Promises do not outlive their session.
        let promised_until = now + SESSION_LEASE;
        session.ends_at = promised_until;
        session.listener = Some(Listener { stream, sender: Some(sender), promised_until });
        session.progress.send_modify(|progress| progress.stream = Some(stream));
        // The queue is new: there is room for the first item.
        let _ = session.send(SessionEvent::Started { epoch, stream });
        Ok(receiver)
    }

    /// Tells a session something. False if it cannot be told: it is unknown, or has no stream (it
    /// will open one and then must be told again).
    pub fn tell(&self, id: SessionId, event: SessionEvent) -> Told {
        match self.table().sessions.get_mut(&id).map(|session| session.send(event)) {
            Some(Ok(())) => Told::Sent,
            Some(Err(_)) => Told::NotListening,
            None => Told::Unknown,
        }
    }

    /// Tells every session something, if it listens.
    pub fn tell_all(&self, event: &SessionEvent) {
        for session in self.table().sessions.values_mut() {
            // Who has no stream learns what matters when it asks for one.
            let _ = session.send(event.clone());
        }
    }

    /// Sends every listener a sign of life; ends streams whose client is gone, and promises whose
    /// lease is over.
    pub fn tell_idle(&self) {
        let now = self.clock.boottime();
        let mut table = self.table();
        let mut lapsed = Vec::new();
        for (id, session) in &mut table.sessions {
            if session.listener.is_some() && session.is_lapsed(now) {
                lapsed.push(*id);
            } else if !session.has_stream() {
                session.fail_stream("its client is gone");
            } else if let Some(listener) = &session.listener
                && let Some(sender) = &listener.sender
            {
                // A full queue needs no sign of life.
                let _ = sender.try_send(SessionEvent::Idle);
            }
        }
        lapsed.into_iter().for_each(|id| table.give_up(id));
    }

    /// Ends a session. False if there was none of that user.
    pub fn close(&self, id: SessionId, user: &str) -> bool {
        let mut table = self.table();
        let is_own = table.sessions.get(&id).is_some_and(|session| session.user == user);
        if is_own {
            table.remove(id);
        }
        is_own
    }

    /// Removes the sessions whose lease has ended.
    pub fn expire(&self) -> Vec<SessionId> {
        let now = self.clock.boottime();
        let mut table = self.table();
        let ended = |session: &Session| session.ends_at <= now;
        let expired: Vec<SessionId> = table
            .sessions
            .iter()
            .filter(|(_, session)| ended(session))
            .map(|(id, _)| *id)
            .collect();
        expired.iter().for_each(|id| table.remove(*id));
        expired
    }

    pub fn count(&self) -> usize {
        self.table().sessions.len()
    }
}

impl Table {
    fn live(&mut self, id: SessionId, user: &str, now: Duration) -> Result<&mut Session, FsError> {
        let session = self.sessions.get_mut(&id);
        let session = session.filter(|session| session.user == user && session.ends_at > now);
        session.ok_or(FsError::SessionUnknown)
    }

    fn remove(&mut self, id: SessionId) {
        self.give_up(id);
        self.sessions.remove(&id);
    }
}

/// How telling a session went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Sent,
    NotListening,
    Unknown,
}

#[cfg(test)]
mod tests;
