//! The table of locked ranges as a machine without I/O: asks in, grants out.
//!
//! Ranges are owned by a process or an open file of a session's client. Rules:
//! 1. Two owners never have overlapping ranges of which one is exclusive. What one owner has there
//!    itself never stands against it: it splits, merges, upgrades or downgrades.
//! 2. Who waits is served in order: an ask that waits is not granted over an earlier one that it
//!    excludes. Two may pass: who has ranges of the file already (those before may be waiting for
//!    it, and then both would wait for ever), and who does not wait (fcntl(2) promises a refusal
//!    only for ranges that somebody has).
//! 3. A grant to one who waits takes effect at once, and counts as heard when it is asked about.
//!    A wait, or such a grant, that is not asked about for its lease is taken back, also what it
//!    replaced; so a lost message locks nothing for ever.
//!
//! Nothing is kept beyond the process: what sessions hold they take up again (`reclaim`), and until
//! they can have done so nothing is granted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::id::{FileId, SessionId};
use dfs_proto::limits::{FILE_RANGES_MAX, RANGE_WAIT_LEASE, RANGE_WAITS_MAX, RECLAIM_RANGES_MAX};
use dfs_proto::lock::{LockOwner, RangeAnswer, RangeClaim, RangeSince, WaitNumber};
use dfs_proto::range::{Range, RangeKind, Segment, Segments};

/// The moment of an event, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub boottime: Duration,
    pub wall: Timestamp,
}

/// A wait that is worth asking about again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ready {
    pub fid: FileId,
    pub session: SessionId,
    pub wait: WaitNumber,
}

/// An owner, of all sessions.
type Who = (SessionId, LockOwner);

#[derive(Debug)]
struct Held {
    holder: String,
    pid: u32,
    since: Timestamp,
    segments: Segments,
}

#[derive(Debug)]
struct Waiting {
    claim: RangeClaim,
    wait: WaitNumber,
    since: Timestamp,
    asked_at: Duration,
}

/// A grant that its asker has not heard of.
#[derive(Debug)]
struct Unheard {
    claim: RangeClaim,
    asked_at: Duration,
    /// What its owner had there.
    before: Vec<Segment>,
}

#[derive(Debug, Default)]
struct File {
    held: BTreeMap<Who, Held>,
    queue: VecDeque<Waiting>,
    unheard: HashMap<(SessionId, WaitNumber), Unheard>,
}

/// All ranges of the service.
#[derive(Debug, Default)]
pub struct RangeTable {
    files: BTreeMap<FileId, File>,
    by_session: HashMap<SessionId, Share>,
}

/// The files of which a session has or wants ranges, and how many it has.
#[derive(Debug, Default)]
struct Share {
    counts: BTreeMap<FileId, usize>,
    total: usize,
}

impl RangeTable {
    /// Somebody wants a range, or asks about its wait for one.
    ///
    /// # Errors
    /// `InvalidArgument`; `TooLarge`.
    pub fn ask(
        &mut self,
        fid: FileId,
        claim: &RangeClaim,
        wait: Option<WaitNumber>,
        now: Moment,
    ) -> Result<(RangeAnswer, Vec<Ready>), FsError> {
        claim.range.parse()?;
        self.check_room(fid, claim.session)?;
        let file = self.files.entry(fid).or_default();
        let answer = file.ask(claim, wait, now);
        let ready = match answer {
            // A downgrade may be what others wait for.
            Ok(RangeAnswer::Granted) => file.serve(fid, now),
            _ => Vec::new(),
        };
        self.note(fid, [claim.session]);
        self.note(fid, sessions_of(&ready));
        Ok((answer?, ready))
    }

    fn check_room(&self, fid: FileId, session: SessionId) -> Result<(), FsError> {
        let Some(share) = self.by_session.get(&session) else { return Ok(()) };
        let here = share.counts.get(&fid).copied().unwrap_or(0);
        for (count, limit) in [(here, FILE_RANGES_MAX), (share.total, RECLAIM_RANGES_MAX)] {
            if count >= limit {
                let what = "number of locked ranges".to_owned();
                return Err(FsError::TooLarge { what, limit: limit as u64 });
            }
        }
        Ok(())
    }

    /// Whose range stands against this one.
    pub fn test(&self, fid: FileId, claim: &RangeClaim) -> Option<RangeClaim> {
        self.files.get(&fid)?.against(claim)
    }

    /// An owner gives back what it has in a range.
    pub fn unlock(&mut self, fid: FileId, who: Who, range: Range, now: Moment) -> Vec<Ready> {
        self.change(fid, [who.0], now, |file| file.set(who, range, None))
    }

    /// A wait is over, whatever became of it.
    pub fn cancel(
        &mut self,
        fid: FileId,
        session: SessionId,
        wait: WaitNumber,
        now: Moment,
    ) -> Vec<Ready> {
        self.change(fid, [session], now, |file| file.cancel(session, wait))
    }

    /// A session takes up a range that it had of a service before.
    ///
    /// # Errors
    /// `LockBusy` if somebody has it by now; as [`RangeTable::ask`].
    pub fn reclaim(&mut self, fid: FileId, claim: &RangeClaim, now: Moment) -> Result<(), FsError> {
        match self.ask(fid, claim, None, now)? {
            (RangeAnswer::Granted, _) => Ok(()),
            (RangeAnswer::Queued(other) | RangeAnswer::Held(other), _) => {
                Err(FsError::LockBusy { holder: other.holder })
            }
        }
    }

    /// A session has ended: what it had goes to those who wait, what it waited for is forgotten.
    pub fn end_session(&mut self, session: SessionId, now: Moment) -> Vec<Ready> {
        let share = self.by_session.remove(&session).unwrap_or_default();
        let end = |fid| self.change(fid, [session], now, |file| file.end(session));
        share.counts.into_keys().flat_map(end).collect()
    }

    /// Takes all ranges of a file away. The sessions that had some, and how many those were.
    pub fn break_all(&mut self, fid: FileId, now: Moment) -> (Vec<SessionId>, u64, Vec<Ready>) {
        let Some(file) = self.files.get_mut(&fid) else { return Default::default() };
        let count = file.held.values().map(|held| held.segments.len() as u64).sum();
        let mut sessions: Vec<SessionId> = file.held.keys().map(|(session, _)| *session).collect();
        sessions.dedup();
        file.held.clear();
        file.unheard.clear();
        let ready = self.change(fid, sessions.clone(), now, |_| ());
        (sessions, count, ready)
    }

    /// Ends waits, and grants, that nobody has asked about for too long.
    pub fn expire(&mut self, now: Moment) -> Vec<Ready> {
        let is_late = |asked_at: Duration| asked_at + RANGE_WAIT_LEASE <= now.boottime;
        let mut late = Vec::new();
        for (fid, file) in &self.files {
            let waiting = file.queue.iter().filter(|it| is_late(it.asked_at));
            late.extend(waiting.map(|it| (*fid, it.claim.session, it.wait)));
            let unheard = file.unheard.iter().filter(|(_, it)| is_late(it.asked_at));
            late.extend(unheard.map(|((session, wait), _)| (*fid, *session, *wait)));
        }
        let cancel = |(fid, session, wait)| self.cancel(fid, session, wait, now);
        late.into_iter().flat_map(cancel).collect()
    }

    /// Who has, and who waits for, ranges of a file.
    pub fn list(&self, fid: FileId) -> (Vec<RangeSince>, Vec<RangeSince>) {
        let Some(file) = self.files.get(&fid) else { return Default::default() };
        let waiting = file.queue.iter();
        let waiting = waiting.map(|it| RangeSince { claim: it.claim.clone(), since: it.since });
        (file.list(), waiting.collect())
    }

    /// The files of which somebody has or wants ranges, from after one on.
    pub fn files_after(&self, after: Option<FileId>) -> impl Iterator<Item = FileId> + '_ {
        let is_after = move |fid: &&FileId| after.is_none_or(|after| **fid > after);
        self.files.keys().filter(is_after).copied()
    }

    /// Changes what `sessions` have or want of a file.
    fn change(
        &mut self,
        fid: FileId,
        sessions: impl IntoIterator<Item = SessionId>,
        now: Moment,
        work: impl FnOnce(&mut File),
    ) -> Vec<Ready> {
        let Some(file) = self.files.get_mut(&fid) else { return Vec::new() };
        work(file);
        let ready = file.serve(fid, now);
        self.note(fid, sessions);
        self.note(fid, sessions_of(&ready));
        ready
    }

    /// Brings what is known of sessions up to what the file says, and forgets what is empty.
    fn note(&mut self, fid: FileId, sessions: impl IntoIterator<Item = SessionId>) {
        for session in sessions {
            let file = self.files.get(&fid);
            let count = file.map_or(0, |file| file.segments_of(session).count());
            let share = self.by_session.entry(session).or_default();
            share.total = share.total + count - share.counts.remove(&fid).unwrap_or(0);
            if file.is_some_and(|file| file.concerns(session)) {
                share.counts.insert(fid, count);
            }
            if share.counts.is_empty() {
                self.by_session.remove(&session);
            }
        }
        if self.files.get(&fid).is_some_and(|file| file.held.is_empty() && file.queue.is_empty()) {
            self.files.remove(&fid);
        }
    }
}

fn sessions_of(ready: &[Ready]) -> Vec<SessionId> {
    ready.iter().map(|ready| ready.session).collect()
}

impl File {
    fn ask(
        &mut self,
        claim: &RangeClaim,
        wait: Option<WaitNumber>,
        now: Moment,
    ) -> Result<RangeAnswer, FsError> {
        let who = (claim.session, claim.owner);
        if let Some(wait) = wait {
            if self.unheard.remove(&(claim.session, wait)).is_some() {
                return Ok(RangeAnswer::Granted);
            }
            let is_it = |it: &&mut Waiting| it.wait == wait && it.claim.session == claim.session;
            if let Some(waiting) = self.queue.iter_mut().find(is_it) {
                waiting.asked_at = now.boottime;
                let before = self.stands_before(claim, Some(wait));
                return Ok(RangeAnswer::Queued(before.unwrap_or_else(|| claim.clone())));
            }
        }
        let is_patient = wait.is_some() && !self.held.contains_key(&who);
        let blocker =
            if is_patient { self.stands_before(claim, None) } else { self.against(claim) };
        match (blocker, wait) {
            (None, _) => {
                self.grant(claim, now);
                Ok(RangeAnswer::Granted)
            }
            (Some(other), None) => Ok(RangeAnswer::Held(other)),
            (Some(_), Some(_)) if self.queue.len() >= RANGE_WAITS_MAX => {
                let what = "waits for ranges of a file".to_owned();
                Err(FsError::TooLarge { what, limit: RANGE_WAITS_MAX as u64 })
            }
            (Some(other), Some(wait)) => {
                let (claim, asked_at, since) = (claim.clone(), now.boottime, now.wall);
                self.queue.push_back(Waiting { claim, wait, since, asked_at });
                Ok(RangeAnswer::Queued(other))
            }
        }
    }

    fn grant(&mut self, claim: &RangeClaim, now: Moment) {
        let who = (claim.session, claim.owner);
        let held = self.held.entry(who).or_insert_with(|| Held {
            holder: claim.holder.clone(),
            pid: claim.pid,
            since: now.wall,
            segments: Segments::default(),
        });
        held.pid = claim.pid;
        held.segments.set(claim.range, Some(claim.kind));
    }

    fn set(&mut self, who: Who, range: Range, kind: Option<RangeKind>) {
        let Some(held) = self.held.get_mut(&who) else { return };
        held.segments.set(range, kind);
        if held.segments.is_empty() {
            self.held.remove(&who);
        }
    }

    fn cancel(&mut self, session: SessionId, wait: WaitNumber) {
        self.queue.retain(|it| (it.claim.session, it.wait) != (session, wait));
        let Some(Unheard { claim, before, .. }) = self.unheard.remove(&(session, wait)) else {
            return;
        };
        let who = (claim.session, claim.owner);
        let Some(held) = self.held.get_mut(&who) else { return };
        held.segments.set(claim.range, None);
        for Segment { range, kind } in before {
            held.segments.set(range, Some(kind));
        }
        if held.segments.is_empty() {
            self.held.remove(&who);
        }
    }

    fn end(&mut self, session: SessionId) {
        self.held.retain(|(other, _), _| *other != session);
        self.queue.retain(|it| it.claim.session != session);
        self.unheard.retain(|(other, _), _| *other != session);
    }

    /// Grants what those who wait can have by now.
    fn serve(&mut self, fid: FileId, now: Moment) -> Vec<Ready> {
        let mut ready = Vec::new();
        let mut index = 0;
        while let Some(Waiting { claim, wait, .. }) = self.queue.get(index) {
            let (who, wait) = ((claim.session, claim.owner), *wait);
            let is_blocked = if self.held.contains_key(&who) {
                self.against(claim).is_some()
            } else {
                self.stands_before(claim, Some(wait)).is_some()
            };
            if is_blocked {
                index += 1;
                continue;
            }
            let Some(Waiting { claim, asked_at, .. }) = self.queue.remove(index) else { break };
            let had = self.held.get(&who).map(|held| held.segments.within(claim.range).collect());
            self.grant(&claim, now);
            let session = claim.session;
            let unheard = Unheard { claim, asked_at, before: had.unwrap_or_default() };
            self.unheard.insert((session, wait), unheard);
            ready.push(Ready { fid, session, wait });
        }
        ready
    }

    /// What another owner has that stands against a claim.
    fn against(&self, claim: &RangeClaim) -> Option<RangeClaim> {
        let who = (claim.session, claim.owner);
        let others = self.held.iter().filter(|(other, _)| **other != who);
        others
            .filter_map(|(other, held)| {
                let Segment { range, kind } = held.segments.against(claim.range, claim.kind)?;
                Some(held.claim(*other, range, kind))
            })
            .min_by_key(|claim| claim.range)
    }

    /// The same, or what an owner waits for who came before: before the wait of this number, if it
    /// is in the queue.
    fn stands_before(&self, claim: &RangeClaim, wait: Option<WaitNumber>) -> Option<RangeClaim> {
        let is_own = |it: &Waiting| it.claim.session == claim.session && Some(it.wait) == wait;
        let excludes = |it: &&Waiting| {
            (it.claim.session, it.claim.owner) != (claim.session, claim.owner)
                && it.claim.range.overlaps(claim.range)
                && it.claim.kind.excludes(claim.kind)
        };
        let earlier = || self.queue.iter().take_while(|it| !is_own(it)).find(excludes);
        self.against(claim).or_else(|| earlier().map(|it| it.claim.clone()))
    }

    fn segments_of(&self, session: SessionId) -> impl Iterator<Item = Segment> + '_ {
        let own = self.held.range((session, LockOwner(0))..=(session, LockOwner(u64::MAX)));
        own.flat_map(|(_, held)| held.segments.iter())
    }

    fn concerns(&self, session: SessionId) -> bool {
        self.segments_of(session).next().is_some()
            || self.queue.iter().any(|it| it.claim.session == session)
    }

    fn list(&self) -> Vec<RangeSince> {
        let of = |(who, held): (&Who, &Held)| {
            let claims = held.segments.iter().map(|it| held.claim(*who, it.range, it.kind));
            claims.map(|claim| RangeSince { claim, since: held.since }).collect::<Vec<_>>()
        };
        self.held.iter().flat_map(of).collect()
    }
}

impl Held {
    fn claim(&self, (session, owner): Who, range: Range, kind: RangeKind) -> RangeClaim {
        let (holder, pid) = (self.holder.clone(), self.pid);
        RangeClaim { session, holder, owner, pid, range, kind }
    }
}

#[cfg(test)]
mod tests;
