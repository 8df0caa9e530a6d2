//! The single writer of a space: runs closures, commits them in groups, publishes the result.
//!
//! [`Core`] has no thread and no clock: `Store` gives it one of its own, a simulation drives it by
//! hand. One round goes like this:
//!
//! 1. Every job runs over what the jobs before it left: changes of a job that fails are dropped,
//!    a job that misses a row is put aside.
//! 2. The merged changes are encoded once and handed to the engine, with the row that says which
//!    sequence the space has reached.
//! 3. Taken: they are published, the watch (`meta::watch`) is told, and the jobs are answered. A
//!    job that failed, or changed nothing, is answered only now too: it may have read what others
//!    of the batch wrote.
//! 4. The rows that were missed are loaded, and the jobs put aside make the next round.
//!
//! **When the engine fails**, the batch may have been applied nevertheless. Sequences must not be
//! given out twice, nor may readers load rows that are not published; so the state row is read
//! back, and the batch published or forgotten as it says. Until it can be read, the space is
//! *unsettled*: nothing is written, and rows of that batch are not loaded. What was applied is
//! answered as done, unless it was to survive power loss: that is what the engine did not promise.
//! The watch is told of it whenever it comes out, and of no origin whose answer says that it
//! failed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use dfs_proto::FsError;
use dfs_proto::id::NodeId;
use dfs_proto::version::{Epoch, Sequence};
use tokio::sync::oneshot;

use super::record::{self, AnyRow, RecordError, StoreState};
use super::rows::{self, Changes, Incoming, Pending, Pins, Rows, Wanted};
use super::txn::{Ended, Made, Txn};
use super::watch::{Change, Hold, Mutation, Watch};
use super::{
    Abort, Batch, CacheBound, Durability, Engine, EngineError, KeyBytes, Space, internal, key,
    moved,
};
use crate::request::Origin;

/// A mutation that waits for the writer.
pub trait Job: Send {
    fn durability(&self) -> Durability;
    fn origin(&self) -> Option<&Origin>;
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<(), Abort>;
    /// Called once, at the end: with `Ok` only if the last `run` was `Ok`. Whoever asked for the
    /// job waits for `hold` before it uses the answer.
    fn answer(self: Box<Self>, outcome: Result<(), FsError>, hold: Option<Hold>);
}

/// Where the result of a job arrives.
pub type Answer<T> = oneshot::Receiver<Answered<T>>;

pub struct Answered<T> {
    pub result: Result<T, FsError>,
    pub hold: Option<Hold>,
}

/// A job out of a closure.
pub fn job<T, F>(
    durability: Durability,
    origin: Option<Origin>,
    work: F,
) -> (Box<dyn Job>, Answer<T>)
where
    T: Send + 'static,
    F: FnMut(&mut Txn<'_>) -> Result<T, Abort> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    (Box::new(Closure { work, durability, origin, result: None, reply }), answer)
}

struct Closure<T, F> {
    work: F,
    durability: Durability,
    origin: Option<Origin>,
    result: Option<T>,
    reply: oneshot::Sender<Answered<T>>,
}

impl<T, F> Job for Closure<T, F>
where
    T: Send,
    F: FnMut(&mut Txn<'_>) -> Result<T, Abort> + Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<(), Abort> {
        self.result = Some((self.work)(txn)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), FsError>, hold: Option<Hold>) {
        let result = self.result;
        let result = outcome.map(|()| result.expect("a job that ended well has a result"));
        // Nobody listens if the caller was cancelled; the mutation is made all the same.
        let _ = self.reply.send(Answered { result, hold });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("closure panicked: {0}")]
struct Panicked(String);

/// A job with the rows that it has missed so far.
struct Waiting {
    job: Box<dyn Job>,
    pins: Pins,
}

struct Missed {
    waiting: Waiting,
    wanted: Vec<Wanted>,
}

/// Jobs that are committed together.
struct Round {
    made: Made,
    sequence: Sequence,
    durability: Durability,
    ended: Vec<Run>,
    missed: Vec<Missed>,
}

/// A job that has run, and what it changed if it ended well.
struct Run {
    waiting: Waiting,
    result: Result<(), FsError>,
    told: Told,
}

/// What the watch is told of one job.
#[derive(Default)]
struct Told {
    changes: Vec<Change>,
    sequence: Sequence,
}

/// What became of a batch. Not applied without an error does not occur.
struct Fate {
    is_applied: bool,
    error: Option<FsError>,
}

impl Fate {
    const DONE: Fate = Fate { is_applied: true, error: None };

    fn of_job(&self, job: &dyn Job, result: Result<(), FsError>) -> Result<(), FsError> {
        match &self.error {
            Some(error) if !self.is_applied || job.durability() == Durability::Stable => {
                Err(error.clone())
            }
            _ => result,
        }
    }
}

enum Condition {
    Open,
    /// The engine failed, and whether it took this batch, of these jobs, is not known.
    Unsettled(Pending, Vec<Told>),
    /// Somebody else owns the space.
    Lost,
}

/// The writer's state, and everything it does.
pub struct Core {
    engine: Arc<dyn Engine>,
    rows: Arc<Rows>,
    space: Space,
    epoch: Epoch,
    /// Everything up to here survives power loss.
    stable: Sequence,
    condition: Condition,
    watch: Arc<OnceLock<Arc<dyn Watch>>>,
}

impl Core {
    /// Takes the space over: whoever owned it cannot commit any more.
    pub fn open(
        engine: Arc<dyn Engine>,
        space: Space,
        holder: NodeId,
        bound: CacheBound,
    ) -> Result<Core, EngineError> {
        let epoch = engine.claim(space, holder)?;
        let sequence = reached(&*engine, space)?;
        let rows = Arc::new(Rows::new(space, bound, sequence));
        let (stable, condition, watch) = (sequence, Condition::Open, Arc::default());
        Ok(Core { engine, rows, space, epoch, stable, condition, watch })
    }

    /// Where to put the watch, once.
    pub(crate) fn watch(&self) -> &Arc<OnceLock<Arc<dyn Watch>>> {
        &self.watch
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn rows(&self) -> &Arc<Rows> {
        &self.rows
    }

    /// Runs and answers all of `jobs`.
    pub fn run_batch(&mut self, jobs: Vec<Box<dyn Job>>) {
        let wait = |job| Waiting { job, pins: Pins::new(self.rows.clone()) };
        let mut waiting: Vec<Waiting> = jobs.into_iter().map(wait).collect();
        while !waiting.is_empty() {
            let missed = self.run_round(waiting);
            waiting = missed.into_iter().filter_map(|missed| self.fetch(missed)).collect();
        }
    }

    /// Runs `waiting` and commits, publishes and answers those that did not miss a row.
    fn run_round(&mut self, waiting: Vec<Waiting>) -> Vec<Missed> {
        if let Err(error) = self.settle() {
            for Waiting { job, .. } in waiting {
                job.answer(Err(error.clone()), None);
            }
            return Vec::new();
        }
        let mut round = Round {
            made: Made::default(),
            sequence: self.rows.sequence(),
            durability: Durability::Process,
            ended: Vec::with_capacity(waiting.len()),
            missed: Vec::new(),
        };
        for waiting in waiting {
            self.run_job(waiting, &mut round);
        }
        self.commit_round(round)
    }

    fn run_job(&self, mut waiting: Waiting, round: &mut Round) {
        // Counters go on through epochs: easier to read, and a state row tells its age.
        let sequence = Sequence::new(self.epoch, round.sequence.counter + 1);
        let mut txn = Txn::new(self.space, &self.rows, &round.made.changes, sequence);
        let run = catch_unwind(AssertUnwindSafe(|| waiting.job.run(&mut txn)));
        let result = run.unwrap_or_else(|panic| Err(Abort::Fail(panicked(&*panic))));
        match txn.end(result) {
            (Ended::Done(()), made) => {
                if !made.changes.is_empty() {
                    round.sequence = sequence;
                }
                round.made.changes.extend(made.changes);
                round.made.new_ranges.extend(made.new_ranges);
                round.durability = round.durability.max(waiting.job.durability());
                let told = Told { changes: made.told, sequence };
                round.ended.push(Run { waiting, result: Ok(()), told });
            }
            (Ended::Failed(error), _) => {
                let told = Told::default();
                round.ended.push(Run { waiting, result: Err(error), told });
            }
            (Ended::Missed(wanted), _) => round.missed.push(Missed { waiting, wanted }),
        }
    }

    fn commit_round(&mut self, round: Round) -> Vec<Missed> {
        let Round { made, sequence, durability, mut ended, mut missed } = round;
        let needs_sync = durability == Durability::Stable && self.stable != self.rows.sequence();
        let fate = if made.changes.is_empty() && !needs_sync {
            Fate::DONE
        } else {
            match encode(&made.changes) {
                Ok(rows) => self.commit(made, rows, sequence, durability),
                // One row is not fit to be stored: find out whose by running each job alone.
                Err(_) if ended.len() > 1 => {
                    for run in ended {
                        missed.extend(self.run_round(vec![run.waiting]));
                    }
                    return missed;
                }
                Err(fault) => {
                    Fate { is_applied: false, error: Some(internal("encode a row", &fault)) }
                }
            }
        };
        if let Condition::Unsettled(_, told) = &mut self.condition {
            told.extend(ended.iter_mut().map(|run| std::mem::take(&mut run.told)));
        }
        for Run { waiting: Waiting { job, .. }, result, told } in ended {
            let outcome = fate.of_job(&*job, result);
            let origin = job.origin().filter(|_| outcome.is_ok());
            let hold = if fate.is_applied { self.tell(&told, origin) } else { None };
            job.answer(outcome, hold);
        }
        missed
    }

    /// Tells the watch of a job that is published.
    fn tell(&self, told: &Told, origin: Option<&Origin>) -> Option<Hold> {
        let Told { changes, sequence } = told;
        if changes.is_empty() && origin.is_none() {
            return None;
        }
        self.watch.get()?.committed(&Mutation { changes, sequence: *sequence, origin })
    }

    fn commit(
        &mut self,
        made: Made,
        rows: Vec<Option<Vec<u8>>>,
        sequence: Sequence,
        durability: Durability,
    ) -> Fate {
        let Made { changes, new_ranges, .. } = made;
        let changes = Arc::new(changes);
        let incoming = changes.iter().zip(&rows).map(|((key, row), bytes)| Incoming {
            key: key.clone(),
            row: row.clone(),
            bytes: key.len() + bytes.as_ref().map_or(0, Vec::len),
        });
        let pending = Pending { rows: incoming.collect(), new_ranges, sequence };
        let batch = self.batch(changes.keys().cloned().zip(rows), sequence, durability);
        self.rows.announce(changes);
        match self.engine.commit(&batch) {
            Ok(()) => {
                if durability == Durability::Stable {
                    self.stable = sequence;
                }
                self.rows.publish(pending);
                Fate::DONE
            }
            Err(error @ EngineError::NotOwner { .. }) => {
                self.lose();
                Fate { is_applied: false, error: Some(error.report("commit")) }
            }
            Err(error) => {
                let error = Some(error.report("commit"));
                self.condition = Condition::Unsettled(pending, Vec::new());
                // If this fails too, the next round tries again.
                let _ = self.settle();
                Fate { is_applied: self.rows.sequence() == sequence, error }
            }
        }
    }

    fn batch(
        &self,
        rows: impl Iterator<Item = (KeyBytes, Option<Vec<u8>>)>,
        sequence: Sequence,
        durability: Durability,
    ) -> Batch {
        let state = record::encode(&StoreState { sequence }).expect("a small row encodes");
        // Its key comes before those of all other tags.
        let first = (key::state(self.space).bytes().clone(), Some(state));
        let rows = std::iter::once(first).chain(rows).collect();
        Batch { space: self.space, epoch: self.epoch, rows, durability }
    }

    /// Finds out what became of a batch whose commit failed, if there is one.
    ///
    /// # Errors
    /// If the space cannot be written at present, or any more.
    fn settle(&mut self) -> Result<(), FsError> {
        let (pending, told) = match std::mem::replace(&mut self.condition, Condition::Open) {
            Condition::Open => return Ok(()),
            Condition::Unsettled(pending, told) => (pending, told),
            Condition::Lost => {
                self.condition = Condition::Lost;
                return Err(moved(self.space));
            }
        };
        match reached(&*self.engine, self.space) {
            Ok(sequence) if sequence == pending.sequence => {
                self.rows.publish(pending);
                // Their jobs were answered with an error, or are told of by whoever calls this.
                for told in &told {
                    drop(self.tell(told, None));
                }
                Ok(())
            }
            Ok(sequence) if sequence == self.rows.sequence() => {
                self.rows.give_up();
                Ok(())
            }
            Ok(_) => {
                self.lose();
                Err(moved(self.space))
            }
            Err(error) => {
                self.condition = Condition::Unsettled(pending, told);
                self.rows.set_stuck();
                error.report("read back the state after a failed commit");
                Err(FsError::unavailable(format!("the metadata engine, for {}", self.space)))
            }
        }
    }

    fn lose(&mut self) {
        self.condition = Condition::Lost;
        self.rows.set_lost();
        self.rows.give_up();
    }

    /// Loads what a job missed; answers the job itself if that fails.
    ///
    /// On this thread, and after the commit of those that missed nothing: what is loaded here
    /// cannot be changed before the job runs again.
    fn fetch(&self, missed: Missed) -> Option<Waiting> {
        let Missed { mut waiting, wanted } = missed;
        let absent = waiting.pins.add(wanted);
        if absent.is_empty() {
            return Some(waiting);
        }
        match rows::load(&*self.engine, absent) {
            Ok(loaded) => {
                self.rows.fill(loaded);
                Some(waiting)
            }
            Err(error) => {
                waiting.job.answer(Err(error.report("load rows")), None);
                None
            }
        }
    }
}

impl Drop for Core {
    /// A reader that waits for a commit of a writer that is gone would wait for ever.
    fn drop(&mut self) {
        self.rows.set_stuck();
    }
}

/// The sequence of the last commit that the engine has of a space.
fn reached(engine: &dyn Engine, space: Space) -> Result<Sequence, EngineError> {
    let key = key::state(space);
    let value = engine.load(std::slice::from_ref(key.bytes()))?.pop().flatten();
    let Some(bytes) = value else { return Ok(Sequence::default()) };
    record::decode::<StoreState>(&bytes)
        .map(|state| state.sequence)
        .map_err(|cause| EngineError::Record { key: key::hex(key.bytes()), cause })
}

fn encode(changes: &Changes) -> Result<Vec<Option<Vec<u8>>>, RecordError> {
    changes.values().map(|row| row.as_deref().map(AnyRow::encode).transpose()).collect()
}

fn panicked(panic: &(dyn Any + Send)) -> FsError {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    internal("run a closure", &Panicked(text.to_owned()))
}
