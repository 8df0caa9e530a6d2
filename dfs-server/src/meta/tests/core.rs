//! The writer's core, driven by hand: one batch at a time, no thread.

use std::sync::Arc;

use dfs_proto::FsError;

use super::support::{Count, HOLDER, PROCESS, SPACE, Text, count, faulty, sequence, text};
use crate::meta::faulty::{Faults, Moment};
use crate::meta::memory::MemoryEngine;
use crate::meta::record::ROW_BYTES_MAX;
use crate::meta::writer::{Answer, Core, Job, job};
use crate::meta::{Abort, CacheBound, Durability, Engine, Key, Record, Space, Txn};

type Work<T> = Result<T, Abort>;
type Settled<T> = Result<T, FsError>;

fn core(engine: &Arc<impl Engine>) -> Core {
    Core::open(engine.clone(), SPACE, HOLDER, CacheBound::default()).unwrap()
}

fn faulty_core() -> (Core, Faults) {
    let (engine, faults) = faulty();
    (core(&engine), faults)
}

/// Collects jobs, so that a test can run them as one batch.
#[derive(Default)]
struct Jobs(Vec<Box<dyn Job>>);

impl Jobs {
    fn add<T: Send + 'static>(
        &mut self,
        durability: Durability,
        work: impl FnMut(&mut Txn<'_>) -> Work<T> + Send + 'static,
    ) -> Answer<T> {
        let (job, answer) = job(durability, None, work);
        self.0.push(job);
        answer
    }

    fn put(&mut self, name: &'static str, value: u64) -> Answer<()> {
        self.add(PROCESS, move |txn| {
            txn.put(&count(name), Count(value));
            Ok(())
        })
    }

    fn run(self, core: &mut Core) {
        core.run_batch(self.0);
    }
}

fn settled<T>(mut answer: Answer<T>) -> Settled<T> {
    answer.try_recv().expect("a batch that has run is answered").result
}

fn run_one<T: Send + 'static>(
    core: &mut Core,
    work: impl FnMut(&mut Txn<'_>) -> Work<T> + Send + 'static,
) -> Settled<T> {
    run_with(core, PROCESS, work)
}

fn run_with<T: Send + 'static>(
    core: &mut Core,
    durability: Durability,
    work: impl FnMut(&mut Txn<'_>) -> Work<T> + Send + 'static,
) -> Settled<T> {
    let mut jobs = Jobs::default();
    let answer = jobs.add(durability, work);
    jobs.run(core);
    settled(answer)
}

fn put_one(core: &mut Core, durability: Durability, name: &'static str, value: u64) -> Settled<()> {
    run_with(core, durability, move |txn| {
        txn.put(&count(name), Count(value));
        Ok(())
    })
}

fn value(core: &mut Core, name: &'static str) -> Settled<Option<u64>> {
    run_one(core, move |txn| Ok(txn.get(&count(name))?.map(|row| row.0)))
}

fn is_internal<T>(settled: &Settled<T>) -> bool {
    matches!(settled, Err(FsError::Internal { incident }) if incident.len() == 16)
}

fn is_unavailable<T>(settled: &Settled<T>) -> bool {
    matches!(settled, Err(FsError::Unavailable { .. }))
}

#[test]
fn a_job_sees_those_before_it_and_gets_a_later_sequence() {
    let (mut core, faults) = faulty_core();
    let mut jobs = Jobs::default();
    let raise = |txn: &mut Txn<'_>| {
        let value = txn.get(&count("n"))?.map_or(0, |row| row.0) + 1;
        txn.put(&count("n"), Count(value));
        Ok((value, txn.sequence()))
    };
    let answers = [(); 3].map(|()| jobs.add(PROCESS, raise));
    let looks = jobs.add(PROCESS, |txn| Ok(txn.get(&count("n"))?.map(|row| row.0)));
    // All four miss: the row is known to be absent only after the first load.
    jobs.run(&mut core);
    let expected = [1, 2, 3].map(|number| (number, sequence(1, number)));
    assert_eq!(answers.map(|answer| settled(answer).unwrap()), expected);
    assert_eq!(settled(looks), Ok(Some(3)));
    assert_eq!(faults.commits(), 1);
    assert_eq!(core.rows().sequence(), sequence(1, 3));
}

#[test]
fn a_job_that_fails_changes_nothing_and_spoils_nobody() {
    let (mut core, faults) = faulty_core();
    let mut jobs = Jobs::default();
    let first = jobs.put("a", 1);
    let failed = jobs.add(PROCESS, |txn| -> Work<()> {
        txn.put(&count("a"), Count(9));
        txn.delete(&count("c"));
        Err(FsError::NotEmpty)?
    });
    let last = jobs.put("c", 3);
    jobs.run(&mut core);
    assert_eq!(settled(failed), Err(FsError::NotEmpty));
    assert_eq!((settled(first), settled(last)), (Ok(()), Ok(())));
    assert_eq!((value(&mut core, "a"), value(&mut core, "c")), (Ok(Some(1)), Ok(Some(3))));
    assert_eq!((faults.commits(), core.rows().sequence()), (1, sequence(1, 2)));
}

#[test]
fn a_job_that_panics_is_an_internal_error_of_its_own() {
    let (mut core, _) = faulty_core();
    let mut jobs = Jobs::default();
    let first = jobs.put("a", 1);
    let panics = jobs.add(PROCESS, |txn| -> Work<()> {
        txn.put(&count("a"), Count(9));
        panic!("a bug")
    });
    jobs.run(&mut core);
    assert!(is_internal(&settled(panics)));
    assert_eq!(settled(first), Ok(()));
    assert_eq!(value(&mut core, "a"), Ok(Some(1)));
}

#[test]
fn a_row_that_does_not_encode_fails_its_own_job_only() {
    let (mut core, _) = faulty_core();
    let mut jobs = Jobs::default();
    let first = jobs.put("a", 1);
    let huge = jobs.add(PROCESS, |txn| {
        txn.put(&text("huge"), Text("x".repeat(ROW_BYTES_MAX)));
        Ok(())
    });
    let last = jobs.put("b", 2);
    jobs.run(&mut core);
    assert!(is_internal(&settled(huge)));
    assert_eq!((settled(first), settled(last)), (Ok(()), Ok(())));
    assert_eq!((value(&mut core, "a"), value(&mut core, "b")), (Ok(Some(1)), Ok(Some(2))));
    let huge = run_one(&mut core, |txn| Ok(txn.get(&text("huge"))?.is_some()));
    assert_eq!(huge, Ok(false));
}

#[test]
fn a_cold_row_does_not_delay_the_jobs_beside_it() {
    let (mut core, _) = faulty_core();
    let mut jobs = Jobs::default();
    let cold = jobs.add(PROCESS, |txn| {
        txn.get(&count("cold"))?;
        txn.put(&count("cold"), Count(1));
        Ok(txn.sequence())
    });
    let warm = jobs.add(PROCESS, |txn| {
        txn.put(&count("warm"), Count(1));
        Ok(txn.sequence())
    });
    jobs.run(&mut core);
    assert_eq!(settled(warm), Ok(sequence(1, 1)));
    assert_eq!(settled(cold), Ok(sequence(1, 2)));
}

#[test]
fn a_miss_that_a_closure_swallows_is_loaded_and_run_again() {
    let engine = Arc::new(MemoryEngine::new());
    put_one(&mut core(&engine), PROCESS, "a", 7).unwrap();
    let mut core = core(&engine);
    let found = run_one(&mut core, |txn| {
        let found = txn.get(&count("a")).ok().flatten().map(|row| row.0);
        txn.put(&count("copy"), Count(found.unwrap_or(0)));
        Ok(found)
    });
    assert_eq!(found, Ok(Some(7)));
    assert_eq!(value(&mut core, "copy"), Ok(Some(7)));
}

#[test]
fn a_miss_without_a_row_is_an_internal_error_and_not_a_loop() {
    let (mut core, _) = faulty_core();
    assert!(is_internal(&run_one(&mut core, |_| -> Work<()> { Err(Abort::Miss) })));
}

#[test]
fn a_row_of_another_type_or_space_is_an_internal_error() {
    let (mut core, _) = faulty_core();
    put_one(&mut core, PROCESS, "a", 1).unwrap();
    let wrong: Key<Text> = Key::from_bytes(count("a").bytes().clone());
    assert!(is_internal(&run_one(&mut core, move |txn| Ok(txn.get(&wrong)?.is_some()))));
    let foreign: Key<Count> = Key::new(Space(6), 1, &[b"a"]);
    let read = foreign.clone();
    assert!(is_internal(&run_one(&mut core, move |txn| Ok(txn.get(&read)?.is_some()))));
    let write = run_one(&mut core, move |txn| {
        txn.put(&foreign, Count(1));
        Ok(())
    });
    assert!(is_internal(&write));
}

#[test]
fn bytes_that_do_not_decode_fail_the_jobs_that_want_them() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Newer(u64);
    impl Record for Newer {
        const VERSION: u8 = 2;
    }
    let engine = Arc::new(MemoryEngine::new());
    let newer: Key<Newer> = Key::from_bytes(count("a").bytes().clone());
    let written = run_one(&mut core(&engine), move |txn| {
        txn.put(&newer, Newer(1));
        Ok(())
    });
    assert_eq!(written, Ok(()));
    let mut core = core(&engine);
    let mut jobs = Jobs::default();
    let other = jobs.add(PROCESS, |txn| Ok(txn.get(&count("b"))?.is_some()));
    let damaged = jobs.add(PROCESS, |txn| Ok(txn.get(&count("a"))?.is_some()));
    jobs.run(&mut core);
    assert!(is_internal(&settled(damaged)));
    assert_eq!(settled(other), Ok(false));
}

#[test]
fn only_what_changes_something_or_must_be_stable_is_committed() {
    let (mut core, faults) = faulty_core();
    value(&mut core, "a").unwrap();
    assert_eq!(faults.commits(), 0, "nothing was changed");
    put_one(&mut core, PROCESS, "a", 1).unwrap();
    run_with(&mut core, Durability::Stable, |_| Ok(())).unwrap();
    assert_eq!(faults.commits(), 2, "the change before it is to be stable");
    run_with(&mut core, Durability::Stable, |_| Ok(())).unwrap();
    assert_eq!(faults.commits(), 2, "everything is stable already");
    assert_eq!(core.rows().sequence(), sequence(1, 1));
}

#[test]
fn a_commit_that_fails_is_told_to_all_its_jobs_and_publishes_nothing() {
    let (mut core, faults) = faulty_core();
    put_one(&mut core, PROCESS, "a", 1).unwrap();
    faults.fail_commit(1, Moment::BeforeApplied);
    let mut jobs = Jobs::default();
    let write = jobs.put("a", 2);
    let looks = jobs.add(PROCESS, |txn| Ok(txn.get(&count("a"))?.map(|row| row.0)));
    let refused = jobs.add(PROCESS, |txn| -> Work<()> {
        txn.get(&count("a"))?;
        Err(FsError::Exists)?
    });
    jobs.run(&mut core);
    // The last two found what the first wrote, which never came to be.
    assert!(is_internal(&settled(write)));
    assert!(is_internal(&settled(looks)) && is_internal(&settled(refused)));
    assert_eq!(value(&mut core, "a"), Ok(Some(1)));
    let next = run_one(&mut core, |txn| {
        txn.put(&count("a"), Count(3));
        Ok(txn.sequence())
    });
    assert_eq!(next, Ok(sequence(1, 2)), "the sequence was never used");
}

#[test]
fn a_commit_that_was_applied_though_it_failed_is_found_out() {
    let (mut core, faults) = faulty_core();
    faults.fail_commit(1, Moment::AfterApplied);
    let mut jobs = Jobs::default();
    let process = jobs.put("a", 1);
    let stable = jobs.add(Durability::Stable, |txn| {
        txn.put(&count("b"), Count(2));
        Ok(())
    });
    jobs.run(&mut core);
    assert_eq!(settled(process), Ok(()));
    assert!(is_internal(&settled(stable)), "nobody knows whether it would survive power loss");
    assert_eq!((value(&mut core, "a"), value(&mut core, "b")), (Ok(Some(1)), Ok(Some(2))));
    assert_eq!(core.rows().sequence(), sequence(1, 2), "not given out again");
    run_with(&mut core, Durability::Stable, |_| Ok(())).unwrap();
    assert_eq!(faults.commits(), 2, "stable only now");
}

#[test]
fn a_commit_of_unknown_outcome_stops_writing_until_it_is_known() {
    for (moment, found) in [(Moment::AfterApplied, 2), (Moment::BeforeApplied, 1)] {
        let (mut core, faults) = faulty_core();
        put_one(&mut core, PROCESS, "a", 1).unwrap();
        faults.fail_commit(1, moment);
        faults.fail_reads(true);
        assert!(is_internal(&put_one(&mut core, PROCESS, "a", 2)));
        assert!(is_unavailable(&put_one(&mut core, PROCESS, "b", 1)));
        assert_eq!(core.rows().sequence(), sequence(1, 1));
        faults.fail_reads(false);
        assert_eq!(put_one(&mut core, PROCESS, "b", 1), Ok(()));
        assert_eq!(value(&mut core, "a"), Ok(Some(found)), "{moment:?}");
        assert_eq!(core.rows().sequence(), sequence(1, found + 1), "{moment:?}");
    }
}

#[test]
fn a_load_that_fails_fails_the_job_that_needs_it() {
    let (mut core, faults) = faulty_core();
    faults.fail_reads(true);
    let mut jobs = Jobs::default();
    let cold = jobs.add(PROCESS, |txn| Ok(txn.get(&count("a"))?.is_some()));
    let blind = jobs.put("b", 1);
    jobs.run(&mut core);
    assert!(is_internal(&settled(cold)));
    assert_eq!(settled(blind), Ok(()));
}

#[test]
fn a_writer_that_was_succeeded_writes_nothing_more() {
    let engine = Arc::new(MemoryEngine::new());
    let mut old = core(&engine);
    put_one(&mut old, PROCESS, "a", 1).unwrap();
    let mut new = core(&engine);
    assert_eq!((old.epoch().0, new.epoch().0), (1, 2));
    assert!(is_unavailable(&put_one(&mut old, PROCESS, "a", 2)));
    assert!(is_unavailable(&value(&mut old, "a")));
    assert_eq!(value(&mut new, "a"), Ok(Some(1)));
    let first = run_one(&mut new, |txn| {
        txn.put(&count("a"), Count(3));
        Ok(txn.sequence())
    });
    assert_eq!(first, Ok(sequence(2, 2)));
}
