//! Directories on a thread's way, asked for before the kernel asks for them.
//!
//! With lifetimes of zero the kernel walks every path anew: it asks for the attributes of the
//! directory where the walk begins, looks up a name, asks for the attributes of what that named,
//! looks up the next, each of them a request. A thread that makes many files walks the same
//! directories again and again. So the way of each thread's last walk is remembered, and when it
//! asks for the attributes of the directory where that began, one request (`directory.walk`) asks
//! for those on the way as well. What comes back answers the lookups that follow.
//!
//! **Why nobody can tell.** Let S be the moment at which the server made the answer. It lies within
//! the system call whose first question was sent as a walk: the thread waits for that. A lookup of
//! the same system call that is answered as of S is answered as of a moment within that call, and
//! the answers of one call are as of moments that never go back. That is all that lookups which ask
//! promise: a change that was known before the call began came before S, and one that came after S
//! was made while the call was under way. What the thread does then with what it found (open,
//! create, the next lookup) is judged by the server, by rights and inodes as they are then.
//!
//! **Why an answer serves no later call.** Where the kernel judges by mode bits
//! (`default_permissions`; elsewhere nothing is asked ahead), it asks for a directory's attributes
//! before it looks up a name there, each time, also where a call begins. So within a walk the
//! thread's questions are lookup, attributes of what that found, lookup there, and so on, nothing
//! twice. Answers are given in this order only, each once; another name, another directory, or the
//! same question again ends them, and so does another identity of the thread. A question for the
//! directory where the walk began always asks anew. What is left are two calls whose questions look
//! like those of one: the first must end with a lookup of a directory without asking for its
//! attributes (`O_PATH`, a `mkdir` that finds the name taken), and the second begin in that very
//! directory, by descriptor. For them, answers live for `DIRECTORY_LOOKUP_ANSWERS` only;
//! SEMANTICS.md R4 says so.
//!
//! An answer to a call that was interrupted may come when the thread is in another: it is dropped,
//! because the thread's next question ended the walk that it belongs to. Whatever this client
//! changes in a directory ends the answers about it, also those still on their way.
//!
//! Pure state, bounded by threads and names; `attr` and `lookup` ask. Knows no nodeids.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::credential::Identity;
use dfs_proto::directory::WalkReply;
use dfs_proto::id::FileId;
use dfs_proto::limits::WALK_NAMES_MAX;
use dfs_proto::name::Name;
use dfs_proto::version::Sequence;

use super::Caller;
use super::node::DIRECTORY_LOOKUP_ANSWERS;

/// Threads whose last walk is remembered. Why: more than that many at once are a storm of short
/// programs, which walk nowhere twice.
const THREADS_MAX: usize = 64;

/// How long a walk is worth asking ahead for. Why: a thread that goes the same way again does so
/// at once; for others the server would look up names that nobody asks for.
const REMEMBERED: Duration = Duration::from_secs(1);

/// The last walk of each thread.
#[derive(Debug, Default)]
pub(crate) struct WalksAhead {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// The one that began a walk last is at the end.
    threads: VecDeque<Thread>,
    /// Grows with every walk that begins.
    walk_count: u64,
}

/// A walk to ask the server for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    number: u64,
    pub(crate) names: Vec<Name>,
}

/// A lookup answered ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) attr: Attr,
    pub(crate) sequence: Sequence,
    /// On `Clock::boottime`.
    pub(crate) answered_at: Duration,
}

#[derive(Debug)]
struct Thread {
    pid: u32,
    /// Where its last walk began.
    start: FileId,
    /// The directories that it then looked up, one in another.
    steps: Vec<Step>,
    /// How many of them it has come along since; `None` once it went another way.
    come: Option<usize>,
    last_step: Duration,
    /// Of the walk under way; none if answers to it are not wanted.
    number: Option<u64>,
    answers: Option<Answers>,
}

#[derive(Debug)]
struct Step {
    name: Name,
    fid: FileId,
}

/// What is known ahead of the lookups of a walk.
#[derive(Debug)]
struct Answers {
    /// Parent, name, and the directory there.
    rest: VecDeque<(FileId, Name, Attr)>,
    who: Identity,
    sequence: Sequence,
    answered_at: Duration,
    /// Whether the kernel has asked for the attributes of the directory that it has come to.
    is_asked: bool,
}

impl WalksAhead {
    /// A thread asks for the attributes of a directory. The walk to ask for instead, if it is
    /// about to walk from there as it did before.
    pub(crate) fn question(&self, pid: u32, fid: FileId, now: Duration) -> Option<Ahead> {
        if pid == 0 {
            return None;
        }
        let mut memory = self.memory();
        let known = memory.threads.iter().rposition(|thread| thread.pid == pid);
        if let Some(index) = known
            && memory.threads[index].has_come_to(fid)
        {
            memory.threads[index].asked_on_the_way();
            return None;
        }
        let known = known.and_then(|index| memory.threads.remove(index));
        if memory.threads.len() >= THREADS_MAX {
            memory.threads.pop_front();
        }
        memory.walk_count += 1;
        let number = memory.walk_count;
        let mut thread = known.unwrap_or_else(|| Thread::new(pid, fid));
        let ahead = thread.begin(fid, number, now);
        memory.threads.push_back(thread);
        ahead
    }

    /// The server has answered a walk, unless it is over by now.
    pub(crate) fn answered(&self, who: &Caller, ahead: &Ahead, reply: &WalkReply, now: Duration) {
        let mut memory = self.memory();
        let Some(thread) = memory.thread(who.pid) else { return };
        if thread.number == Some(ahead.number) && thread.come == Some(0) {
            thread.take(&who.identity, reply, now);
        }
    }

    /// What a lookup is answered with, if it is the next one of a walk that was answered.
    pub(crate) fn answer(
        &self,
        who: &Caller,
        parent: FileId,
        name: &Name,
        now: Duration,
    ) -> Option<Answer> {
        let mut memory = self.memory();
        let thread = memory.thread(who.pid)?;
        let mut answers = thread.answers.take()?;
        let is_in_time = now < answers.answered_at + DIRECTORY_LOOKUP_ANSWERS;
        if !is_in_time || !answers.is_asked || answers.who != who.identity {
            return None;
        }
        let (_, _, attr) =
            answers.rest.pop_front().filter(|(at, next, _)| *at == parent && next == name)?;
        answers.is_asked = false;
        let Answers { sequence, answered_at, .. } = answers;
        thread.answers = Some(answers).filter(|answers| !answers.rest.is_empty());
        Some(Answer { attr, sequence, answered_at })
    }

    /// A thread has looked a name up; `found` if there is a directory.
    pub(crate) fn looked_up(
        &self,
        pid: u32,
        (parent, name): (FileId, &Name),
        found: Option<FileId>,
        now: Duration,
    ) {
        let mut memory = self.memory();
        let Some(thread) = memory.thread(pid) else { return };
        thread.come = thread.go(parent, name, found);
        if thread.come.is_some() {
            thread.last_step = now;
        }
    }

    /// Something in a directory is changed from here: nothing that was asked before says anything
    /// about it any more.
    pub(crate) fn end_answers_about(&self, fid: FileId) {
        let mut memory = self.memory();
        for thread in &mut memory.threads {
            if thread.start == fid || thread.steps.iter().any(|step| step.fid == fid) {
                thread.answers = None;
                thread.number = None;
            }
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn thread(&mut self, pid: u32) -> Option<&mut Thread> {
        self.threads.iter_mut().rfind(|thread| thread.pid == pid)
    }
}

impl Thread {
    fn new(pid: u32, start: FileId) -> Thread {
        Thread {
            pid,
            start,
            steps: Vec::new(),
            come: None,
            last_step: Duration::ZERO,
            number: None,
            answers: None,
        }
    }

    /// Whether a walk under way has come to the directory, after its beginning.
    fn has_come_to(&self, fid: FileId) -> bool {
        let step = self.come.and_then(|come| come.checked_sub(1)).map(|last| &self.steps[last]);
        step.is_some_and(|step| step.fid == fid)
    }

    fn asked_on_the_way(&mut self) {
        self.answers = self.answers.take().filter(|answers| !answers.is_asked);
        if let Some(answers) = &mut self.answers {
            answers.is_asked = true;
        }
    }

    fn begin(&mut self, start: FileId, number: u64, now: Duration) -> Option<Ahead> {
        self.answers = None;
        self.number = Some(number);
        self.come = Some(0);
        if self.start != start || now >= self.last_step + REMEMBERED {
            self.start = start;
            self.steps.clear();
        }
        let names: Vec<Name> = self.steps.iter().map(|step| step.name.clone()).collect();
        (!names.is_empty()).then_some(Ahead { number, names })
    }

    fn take(&mut self, who: &Identity, reply: &WalkReply, now: Duration) {
        // What is not there any more is not asked for again.
        self.steps.truncate(reply.found.len());
        let mut parent = self.start;
        let mut rest = VecDeque::with_capacity(self.steps.len());
        for (step, attr) in self.steps.iter_mut().zip(&reply.found) {
            if attr.kind != FileKind::Directory {
                break;
            }
            step.fid = attr.fid;
            rest.push_back((parent, step.name.clone(), attr.clone()));
            parent = attr.fid;
        }
        let (who, sequence) = (who.clone(), reply.sequence);
        self.answers = Some(Answers { rest, who, sequence, answered_at: now, is_asked: true });
    }

    /// How far the walk has come with a lookup, if it goes on.
    fn go(&mut self, parent: FileId, name: &Name, found: Option<FileId>) -> Option<usize> {
        let come = self.come?;
        let at = come.checked_sub(1).map_or(self.start, |last| self.steps[last].fid);
        if at != parent {
            return None;
        }
        let is_known = self.steps.get(come).is_some_and(|step| step.name == *name);
        if !is_known || found.is_none() {
            self.steps.truncate(come);
        }
        // To make or remove the name, the kernel asks for the directory once more: still this walk.
        let Some(fid) = found else { return Some(come) };
        if come >= WALK_NAMES_MAX {
            return None;
        }
        match self.steps.get_mut(come) {
            Some(step) => step.fid = fid,
            None => self.steps.push(Step { name: name.clone(), fid }),
        }
        Some(come + 1)
    }
}

#[cfg(test)]
mod tests;
