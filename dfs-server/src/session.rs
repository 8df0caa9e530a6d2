//! Sessions: which clients live, and how to tell them something.
//!
//! A session lives as long as its lease, counted here from the sending of the reply that renewed
//! it; the client counts from the sending of its request, so it stops first. The table is memory
//! only: after a restart clients open their sessions again under the same id, and whatever a lost
//! session was granted is caught by the fence.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::capability::MacKey;
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::id::SessionId;
use dfs_proto::limits::{SESSION_COUNT_MAX, SESSION_LEASE};
use dfs_proto::session::SessionEvent;
use dfs_proto::version::Epoch;
use tokio::sync::mpsc;

use crate::request::Peer;

/// Events queued for one client. One that falls behind has its stream ended and opens a new one.
const EVENT_QUEUE_MAX: usize = 1024;

/// The sessions of one owner. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    table: Arc<Mutex<HashMap<SessionId, Session>>>,
    clock: Arc<dyn Clock>,
}

struct Session {
    /// Account or machine that opened it; nobody else may use it.
    user: String,
    /// Its bearer, as it was opened last.
    peer: Peer,
    host: String,
    key: MacKey,
    ends_at: Duration,
    events: Option<mpsc::Sender<SessionEvent>>,
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

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
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
        if let Some(session) = table.get_mut(&id) {
            if session.user != peer.user() {
                return Err(FsError::NotPermitted);
            }
            session.ends_at = ends_at;
            session.peer = peer.clone();
            return Ok(session.key.clone());
        }
        if table.len() >= SESSION_COUNT_MAX {
            let limit = SESSION_COUNT_MAX as u64;
            return Err(FsError::TooLarge { what: "number of sessions".into(), limit });
        }
        let key = fresh_key.clone();
        let (user, host) = (peer.user().to_owned(), host.to_owned());
        let peer = peer.clone();
        table.insert(id, Session { user, peer, host, key: fresh_key, ends_at, events: None });
        Ok(key)
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// `SessionUnknown`, also for somebody else's session.
    pub fn renew(&self, id: SessionId, user: &str) -> Result<(), FsError> {
        let ends_at = self.clock.boottime() + SESSION_LEASE;
        self.with(id, user, |session| session.ends_at = ends_at)
    }

    /// What others are told of a session: host and user.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn describe(&self, id: SessionId, user: &str) -> Result<String, FsError> {
        self.with(id, user, |session| format!("{} ({})", session.host, session.user))
    }

    /// As whom a caller of a session's client acts.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn identity(&self, id: SessionId, caller: Option<&Identity>) -> Result<Identity, FsError> {
        let now = self.clock.boottime();
        let table = self.table();
        let session = table.get(&id).filter(|session| session.ends_at > now);
        session.map(|session| session.peer.identity(caller)).ok_or(FsError::SessionUnknown)
    }

    /// The key of a session, for checking its MACs.
    ///
    /// # Errors
    /// `SessionUnknown`.
    pub fn key(&self, id: SessionId) -> Result<MacKey, FsError> {
        let now = self.clock.boottime();
        let table = self.table();
        let session = table.get(&id).filter(|session| session.ends_at > now);
        session.map(|session| session.key.clone()).ok_or(FsError::SessionUnknown)
    }

    fn with<T>(
        &self,
        id: SessionId,
        user: &str,
        work: impl FnOnce(&mut Session) -> T,
    ) -> Result<T, FsError> {
        let now = self.clock.boottime();
        let mut table = self.table();
        let session = table.get_mut(&id);
        let session = session.filter(|session| session.user == user && session.ends_at > now);
        session.map(work).ok_or(FsError::SessionUnknown)
    }

    /// Whether a session of this id lives and is another user's.
    pub fn is_foreign(&self, id: SessionId, user: &str) -> bool {
        self.table().get(&id).is_some_and(|session| session.user != user)
    }

    /// Whether a session of this id lives.
    pub fn is_live(&self, id: SessionId) -> bool {
        self.key(id).is_ok()
    }

    /// Gives a session a new event stream, which ends the one before.
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
        // The queue is new: there is room for the first item.
        let _ = sender.try_send(SessionEvent::Started { epoch });
        self.with(id, user, |session| session.events = Some(sender))?;
        Ok(receiver)
    }

    /// Tells a session something. False if it cannot be told: it is unknown, or has no stream (it
    /// will open one and then must be told again).
    pub fn tell(&self, id: SessionId, event: SessionEvent) -> Told {
        let mut table = self.table();
        let Some(session) = table.get_mut(&id) else {
            return Told::Unknown;
        };
        let Some(events) = &session.events else {
            return Told::NotListening;
        };
        match events.try_send(event) {
            Ok(()) => Told::Sent,
            Err(_) => {
                session.events = None;
                Told::NotListening
            }
        }
    }

    /// Sends every listener a sign of life; streams whose client is gone are dropped.
    pub fn tell_idle(&self) {
        for session in self.table().values_mut() {
            let is_closed = session.events.as_ref().is_some_and(mpsc::Sender::is_closed);
            if is_closed {
                session.events = None;
            }
            if let Some(events) = &session.events {
                // A full queue needs no sign of life.
                let _ = events.try_send(SessionEvent::Idle);
            }
        }
    }

    /// Ends a session. False if there was none of that user.
    pub fn close(&self, id: SessionId, user: &str) -> bool {
        let mut table = self.table();
        let is_own = table.get(&id).is_some_and(|session| session.user == user);
        if is_own {
            table.remove(&id);
        }
        is_own
    }

    /// Removes the sessions whose lease has ended.
    pub fn expire(&self) -> Vec<SessionId> {
        let now = self.clock.boottime();
        let mut table = self.table();
        let ended = |session: &Session| session.ends_at <= now;
        let expired: Vec<SessionId> =
            table.iter().filter(|(_, session)| ended(session)).map(|(id, _)| *id).collect();
        expired.iter().for_each(|id| drop(table.remove(id)));
        expired
    }

    pub fn count(&self) -> usize {
        self.table().len()
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
mod tests {
    use dfs_proto::credential::{ActAs, TicketHolder};

    use super::*;
    use dfs_proto::clock::ManualClock;

    const ID: SessionId = SessionId([1; 16]);

    fn sessions() -> (Sessions, ManualClock) {
        let clock = ManualClock::default();
        let sessions = Sessions::new(Arc::new(clock.clone()));
        sessions.open(ID, &bearer("ann"), "host", MacKey([1; 32])).unwrap();
        (sessions, clock)
    }

    fn bearer(user: &str) -> Peer {
        let act_as = ActAs::Machine { squash_root: false };
        Peer::User(Arc::new(TicketHolder { user: user.to_owned(), act_as, is_admin: false }))
    }

    #[test]
    fn a_session_ends_with_its_lease_unless_renewed() {
        let (sessions, clock) = sessions();
        clock.advance(SESSION_LEASE - Duration::from_millis(1));
        sessions.renew(ID, "ann").unwrap();
        clock.advance(SESSION_LEASE - Duration::from_millis(1));
        assert!(sessions.key(ID).is_ok());
        assert_eq!(sessions.expire(), []);
        clock.advance(Duration::from_millis(1));
        assert_eq!(sessions.key(ID), Err(FsError::SessionUnknown));
        assert_eq!(sessions.renew(ID, "ann"), Err(FsError::SessionUnknown));
        assert_eq!(sessions.expire(), [ID]);
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn nobody_uses_another_users_session() {
        let (sessions, _clock) = sessions();
        let stolen = sessions.open(ID, &bearer("bob"), "host", MacKey([2; 32]));
        assert_eq!(stolen, Err(FsError::NotPermitted));
        assert_eq!(sessions.renew(ID, "bob"), Err(FsError::SessionUnknown));
        assert!(sessions.listen(ID, "bob", Epoch(1)).is_err());
        assert!(!sessions.close(ID, "bob"));
        assert!(sessions.close(ID, "ann"));
    }

    #[test]
    fn opening_again_keeps_the_key() {
        let (sessions, _clock) = sessions();
        let key = sessions.open(ID, &bearer("ann"), "host", MacKey([9; 32])).unwrap();
        assert_eq!(key, MacKey([1; 32]));
    }

    #[test]
    fn a_new_stream_ends_the_one_before_and_begins_with_the_epoch() {
        let (sessions, _clock) = sessions();
        assert_eq!(sessions.tell(ID, SessionEvent::Idle), Told::NotListening);
        let mut first = sessions.listen(ID, "ann", Epoch(4)).unwrap();
        assert_eq!(first.try_recv(), Ok(SessionEvent::Started { epoch: Epoch(4) }));
        let mut second = sessions.listen(ID, "ann", Epoch(4)).unwrap();
        assert_eq!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(sessions.tell(ID, SessionEvent::Idle), Told::Sent);
        second.try_recv().unwrap();
        assert_eq!(second.try_recv(), Ok(SessionEvent::Idle));
        assert_eq!(sessions.tell(SessionId([7; 16]), SessionEvent::Idle), Told::Unknown);
    }

    #[test]
    fn a_client_that_does_not_read_loses_its_stream_not_the_server_its_memory() {
        let (sessions, _clock) = sessions();
        let stream = sessions.listen(ID, "ann", Epoch(1)).unwrap();
        while sessions.tell(ID, SessionEvent::Idle) == Told::Sent {}
        assert!(stream.len() <= EVENT_QUEUE_MAX);
        assert_eq!(sessions.tell(ID, SessionEvent::Idle), Told::NotListening);
    }
}
