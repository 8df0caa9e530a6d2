//! Random programs over the writer's core, beside a map that keeps every state there ever was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use dfs_proto::FsError;
use dfs_proto::version::Sequence;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop};
use proptest::{prop_oneof, proptest};

use super::support::{Count, HOLDER, PROCESS, SPACE};
use crate::meta::faulty::{Faults, FaultyEngine, Moment};
use crate::meta::key::prefix;
use crate::meta::memory::MemoryEngine;
use crate::meta::writer::{Answer, Core, job};
use crate::meta::{Abort, CacheBound, Durability, Key, Txn};

/// Rows that jobs work on; one more row is changed by every job, so that each has a sequence.
const ROWS: u8 = 5;
const TICK: u8 = ROWS;
/// The range that all of them lie in.
const RANGE: u64 = 7;

#[derive(Clone, Copy, Debug)]
enum Step {
    Look(u8),
    Put(u8, u64),
    Add(u8, u64),
    Delete(u8),
    Fail,
}

#[derive(Clone, Debug)]
struct Program {
    steps: Vec<Step>,
    is_stable: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Batch(Vec<Program>),
    /// The batch's first commit fails.
    FailingBatch(Vec<Program>, bool),
    Restart,
    PowerCut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..ROWS).prop_map(Step::Look),
        3 => (0..ROWS, 0..100u64).prop_map(|(row, value)| Step::Put(row, value)),
        3 => (0..ROWS, 0..100u64).prop_map(|(row, value)| Step::Add(row, value)),
        2 => (0..ROWS).prop_map(Step::Delete),
        1 => Just(Step::Fail),
    ];
    prop::collection::vec(step, 0..6)
}

fn batch() -> impl Strategy<Value = Vec<Program>> {
    let program = (steps(), prop::bool::weighted(0.2))
        .prop_map(|(steps, is_stable)| Program { steps, is_stable });
    prop::collection::vec(program, 1..6)
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => batch().prop_map(Event::Batch),
        2 => (batch(), any::<bool>())
            .prop_map(|(batch, is_applied)| Event::FailingBatch(batch, is_applied)),
        1 => Just(Event::Restart),
        1 => Just(Event::PowerCut),
    ]
}

fn key(row: u8) -> Key<Count> {
    Key::new(SPACE, 1, &[&RANGE.to_be_bytes(), &[row]])
}

/// What the last run of a job saw.
#[derive(Clone, Debug, Default)]
struct Trace {
    sequence: Sequence,
    seen: Vec<Option<u64>>,
}

type State = BTreeMap<u8, u64>;

fn run(steps: &[Step], tick: u64, txn: &mut Txn<'_>) -> Result<Trace, Abort> {
    let mut seen = Vec::new();
    txn.put(&key(TICK), Count(tick));
    for step in steps {
        match *step {
            Step::Look(row) => seen.push(txn.get(&key(row))?.map(|row| row.0)),
            Step::Put(row, value) => txn.put(&key(row), Count(value)),
            Step::Add(row, value) => {
                let old = txn.get(&key(row))?.map_or(0, |row| row.0);
                txn.put(&key(row), Count(old + value));
            }
            Step::Delete(row) => txn.delete(&key(row)),
            Step::Fail => Err(FsError::NotEmpty)?,
        }
    }
    Ok(Trace { sequence: txn.sequence(), seen })
}

/// The same on the model; only for programs that do not fail.
fn replay(steps: &[Step], tick: u64, state: &mut State) -> Vec<Option<u64>> {
    let mut seen = Vec::new();
    state.insert(TICK, tick);
    for step in steps {
        match *step {
            Step::Look(row) => seen.push(state.get(&row).copied()),
            Step::Put(row, value) => drop(state.insert(row, value)),
            Step::Add(row, value) => *state.entry(row).or_default() += value,
            Step::Delete(row) => drop(state.remove(&row)),
            Step::Fail => unreachable!("a program that fails leaves no trace"),
        }
    }
    seen
}

struct World {
    memory: Arc<MemoryEngine>,
    faults: Faults,
    core: Core,
    /// Every state since the last that is known to be stable, oldest first.
    history: Vec<State>,
    last: Sequence,
    tick: u64,
}

impl World {
    fn new() -> World {
        let memory = Arc::new(MemoryEngine::new());
        let (core, faults) = World::start(&memory);
        let last = Sequence::default();
        World { memory, faults, core, history: vec![State::new()], last, tick: 0 }
    }

    /// Has memory know that the range was empty so far.
    fn begin_range(&mut self) {
        let (job, mut answer) = job(PROCESS, None, |txn| {
            txn.begin_range(prefix(SPACE, 1, &[&RANGE.to_be_bytes()]));
            txn.put(&key(TICK), Count(0));
            Ok(txn.sequence())
        });
        self.core.run_batch(vec![job]);
        self.last = answer.try_recv().unwrap().result.unwrap();
        self.history.push(State::from([(TICK, 0)]));
    }

    fn start(memory: &Arc<MemoryEngine>) -> (Core, Faults) {
        let (engine, faults) = FaultyEngine::new(memory.clone());
        let bound = CacheBound { rows: 2, bytes: 1 << 20 };
        (Core::open(engine, SPACE, HOLDER, bound).unwrap(), faults)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Batch(programs) => self.batch(programs, None),
            Event::FailingBatch(programs, true) => {
                self.batch(programs, Some(Moment::AfterApplied));
            }
            Event::FailingBatch(programs, false) => {
                self.batch(programs, Some(Moment::BeforeApplied));
            }
            Event::Restart => (self.core, self.faults) = World::start(&self.memory),
            Event::PowerCut => self.power_cut(),
        }
        self.check();
    }

    fn batch(&mut self, programs: Vec<Program>, fault: Option<Moment>) {
        if let Some(moment) = fault {
            self.faults.fail_commit(1, moment);
        }
        let first_tick = self.tick + 1;
        let mut jobs = Vec::new();
        let mut answers = Vec::new();
        for program in &programs {
            self.tick += 1;
            let (tick, steps) = (self.tick, program.steps.clone());
            let trace = Arc::new(Mutex::new(Trace::default()));
            let durability = if program.is_stable { Durability::Stable } else { PROCESS };
            let written = trace.clone();
            let (job, answer) = job(durability, None, move |txn| {
                *written.lock().unwrap() = run(&steps, tick, txn)?;
                Ok(())
            });
            jobs.push(job);
            answers.push((answer, trace));
        }
        self.core.run_batch(jobs);
        let mut applied = Vec::new();
        for (index, (mut answer, trace)) in answers.into_iter().enumerate() {
            let program = &programs[index];
            let trace = trace.lock().unwrap().clone();
            if let Some(is_stable) = outcome(&mut answer, program, fault) {
                applied.push((trace, first_tick + index as u64, &program.steps, is_stable));
            }
        }
        self.replay(applied);
        // A fault that no commit met must not wait for the next batch.
        self.faults.forget();
    }

    fn replay(&mut self, mut applied: Vec<(Trace, u64, &Vec<Step>, bool)>) {
        applied.sort_by_key(|(trace, ..)| trace.sequence);
        for (trace, tick, steps, is_stable) in applied {
            assert!(trace.sequence > self.last, "{} after {}", trace.sequence, self.last);
            self.last = trace.sequence;
            let mut state = self.history.last().unwrap().clone();
            assert_eq!(trace.seen, replay(steps, tick, &mut state), "at {}", trace.sequence);
            self.history.push(state);
            if is_stable {
                self.history.drain(..self.history.len() - 1);
            }
        }
    }

    fn power_cut(&mut self) {
        self.memory = Arc::new(self.memory.crash_image());
        (self.core, self.faults) = World::start(&self.memory);
        let found = self.state();
        let kept = self.history.iter().position(|state| *state == found);
        let kept = kept.unwrap_or_else(|| panic!("{found:?} is none of {:?}", self.history));
        self.history = vec![self.history[kept].clone()];
    }

    fn state(&mut self) -> State {
        let (job, mut answer) = job(PROCESS, None, |txn| {
            let mut state = State::new();
            for row in 0..=TICK {
                if let Some(found) = txn.get(&key(row))? {
                    state.insert(row, found.0);
                }
            }
            Ok(state)
        });
        self.core.run_batch(vec![job]);
        answer.try_recv().unwrap().result.unwrap()
    }

    fn check(&mut self) {
        let found = self.state();
        assert_eq!(Some(&found), self.history.last());
    }
}

/// Whether the program's changes were made, and if so, whether they are stable.
fn outcome(answer: &mut Answer<()>, program: &Program, fault: Option<Moment>) -> Option<bool> {
    let fails = program.steps.iter().any(|step| matches!(step, Step::Fail));
    match answer.try_recv().unwrap().result {
        Ok(()) => {
            assert!(!fails);
            Some(program.is_stable)
        }
        Err(FsError::NotEmpty) => {
            assert!(fails);
            None
        }
        Err(FsError::Internal { .. }) => {
            assert!(fault.is_some(), "an engine without faults");
            // Applied all the same, but not known to be stable.
            let is_applied = fault == Some(Moment::AfterApplied) && !fails;
            assert!(!is_applied || program.is_stable, "told as failed, but was applied");
            is_applied.then_some(false)
        }
        Err(other) => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn jobs_see_and_leave_what_the_model_does(
        is_range_new in any::<bool>(),
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = World::new();
        if is_range_new {
            world.begin_range();
        }
        for event in events {
            world.apply(event);
        }
    }
}
