//! The watch of a store: told of each mutation once, in order, between publication and answer.

use std::sync::{Arc, Mutex};

use dfs_proto::FsError;
use dfs_proto::id::{OpId, SessionId};
use dfs_proto::version::Sequence;
use futures_util::FutureExt;

use super::support::{Count, HOLDER, PROCESS, SPACE, count, faulty, sequence};
use crate::meta::faulty::{Faults, Moment};
use crate::meta::watch::{Hold, Mutation, Watch};
use crate::meta::writer::{Answer, Core, Job, job};
use crate::meta::{CacheBound, Durability, Engine, Store};
use crate::request::{NewsCell, Origin};

/// What was told of one mutation: rows by name, before and after.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    rows: Vec<(Option<Option<u64>>, Option<u64>)>,
    sequence: Sequence,
    op: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Recorder {
    told: Arc<Mutex<Vec<Told>>>,
    /// Held until this is released.
    gate: Option<Arc<tokio::sync::Semaphore>>,
}

impl Watch for Recorder {
    fn committed(&self, mutation: &Mutation<'_>) -> Option<Hold> {
        let count = |row: Arc<Count>| row.0;
        let rows = mutation.changes.iter().map(|change| {
            let before = change.before::<Count>().map(|row| row.map(count));
            (before, change.after::<Count>().map(count))
        });
        let told = Told {
            rows: rows.collect(),
            sequence: mutation.sequence,
            op: mutation.origin.map(|origin| origin.op.number),
        };
        self.told.lock().unwrap().push(told);
        let gate = self.gate.clone()?;
        Some(async move { gate.acquire().await.unwrap().forget() }.boxed())
    }
}

impl Recorder {
    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

fn watched() -> (Core, Faults, Recorder) {
    let (engine, faults) = faulty();
    let core = Core::open(engine, SPACE, HOLDER, CacheBound::default()).unwrap();
    let recorder = Recorder::default();
    core.watch().set(Arc::new(recorder.clone())).unwrap();
    (core, faults, recorder)
}

fn origin(number: u64) -> Option<Origin> {
    let op = OpId { session: SessionId([1; 16]), number };
    Some(Origin { op, watermark: number, news: NewsCell::default() })
}

type Queued = (Box<dyn Job>, Answer<()>);

fn put(durability: Durability, number: u64, name: &'static str, value: Option<u64>) -> Queued {
    job(durability, origin(number), move |txn| {
        match value {
            Some(value) => txn.put(&count(name), Count(value)),
            None => txn.delete(&count(name)),
        }
        Ok(())
    })
}

fn run(core: &mut Core, jobs: Vec<Queued>) -> Vec<Result<(), FsError>> {
    let (jobs, answers): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    core.run_batch(jobs);
    answers.into_iter().map(|mut answer| answer.try_recv().unwrap().result).collect()
}

fn told(before: Option<u64>, after: Option<u64>, counter: u64, op: Option<u64>) -> Told {
    Told { rows: vec![(Some(before), after)], sequence: sequence(1, counter), op }
}

#[test]
fn each_mutation_of_a_batch_is_told_in_order_with_what_was_there_before_it() {
    let (mut core, _, recorder) = watched();
    let look = |core: &mut Core| {
        let (job, mut answer) = job(PROCESS, None, |txn| Ok(txn.get(&count("a"))?.is_some()));
        core.run_batch(vec![job]);
        answer.try_recv().unwrap().result.unwrap()
    };
    assert!(!look(&mut core));
    let failing = job(PROCESS, origin(9), |_| Err(FsError::Exists.into()));
    let jobs = vec![
        put(PROCESS, 1, "a", Some(1)),
        failing,
        put(PROCESS, 2, "a", Some(2)),
        put(PROCESS, 3, "a", None),
    ];
    let results = run(&mut core, jobs);
    assert_eq!(results, [Ok(()), Err(FsError::Exists), Ok(()), Ok(())]);
    let expected = [
        told(None, Some(1), 1, Some(1)),
        told(Some(1), Some(2), 2, Some(2)),
        told(Some(2), None, 3, Some(3)),
    ];
    assert_eq!(recorder.take(), expected);
}

#[test]
fn what_changes_nothing_is_told_for_those_who_have_an_origin() {
    let (mut core, _, recorder) = watched();
    run(&mut core, vec![job(PROCESS, None, |_| Ok(())), job(PROCESS, origin(4), |_| Ok(()))]);
    let told = recorder.take();
    assert_eq!((told.len(), told[0].rows.len(), told[0].op), (1, 0, Some(4)));
}

#[test]
fn a_batch_that_was_not_applied_is_not_told() {
    let (mut core, faults, recorder) = watched();
    faults.fail_commit(1, Moment::BeforeApplied);
    assert!(run(&mut core, vec![put(PROCESS, 1, "a", Some(1))])[0].is_err());
    run(&mut core, vec![job(PROCESS, None, |_| Ok(()))]);
    assert_eq!(recorder.take(), []);
}

#[test]
fn a_batch_that_was_applied_in_spite_of_an_error_is_told() {
    let (mut core, faults, recorder) = watched();
    faults.fail_commit(1, Moment::AfterApplied);
    let jobs = vec![put(PROCESS, 1, "a", Some(1)), put(Durability::Stable, 2, "a", Some(2))];
    let results = run(&mut core, jobs);
    assert!(results[0].is_ok() && results[1].is_err());
    let ops: Vec<_> = recorder.take().into_iter().map(|told| told.op).collect();
    assert_eq!(ops, [Some(1), None], "one whose answer is an error is nobody's");
}

#[test]
fn a_batch_whose_fate_comes_out_late_is_told_then_and_is_nobodys() {
    for (moment, count) in [(Moment::AfterApplied, 2), (Moment::BeforeApplied, 0)] {
        let (mut core, faults, recorder) = watched();
        faults.fail_commit(1, moment);
        faults.fail_reads(true);
        let results =
            run(&mut core, vec![put(PROCESS, 1, "a", Some(1)), put(PROCESS, 2, "b", Some(2))]);
        assert!(results.iter().all(Result::is_err));
        assert_eq!(recorder.take(), []);
        faults.fail_reads(false);
        run(&mut core, vec![put(PROCESS, 3, "c", Some(3))]);
        let mut told = recorder.take();
        assert_eq!(told.pop().unwrap().op, Some(3), "after those before it");
        assert_eq!(told.len(), count);
        assert!(told.iter().all(|told| told.op.is_none() && told.rows.len() == 1));
    }
}

#[tokio::test]
async fn an_answer_waits_for_what_the_watch_holds_it_for_and_readers_do_not() {
    let (engine, _) = faulty();
    let store = Store::open(engine as Arc<dyn Engine>, SPACE, HOLDER).unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let recorder = Recorder { gate: Some(gate.clone()), ..Recorder::default() };
    store.set_watch(Arc::new(recorder.clone()));
    let mut write = Box::pin(store.write_for(origin(1), PROCESS, |txn| {
        txn.put(&count("a"), Count(1));
        Ok(())
    }));
    assert!((&mut write).now_or_never().is_none());
    store.stable().await.unwrap();
    assert!((&mut write).now_or_never().is_none());
    assert_eq!(super::support::get(&store, "a").await, Some(1));
    gate.add_permits(1);
    write.await.unwrap();
}
