//! Random sequences of everything programs do to files, on a mount and on a local directory.
//!
//! The model is a local directory (ext4 on our machines), driven with the same calls, and not a
//! tree in memory. What programs expect is what a local file system does in this very kernel: error
//! numbers and the order of checks, what set-id bits, sticky directories, mappings and removed
//! files do. A model of ours would say it once more, in our words and with our mistakes; that one
//! exists where it tells more, in the directory service's tests.
//!
//! After each operation its result or errno must be the same. After each sequence, when all is
//! closed, the whole trees must: on the mount, on another one, and at the end on a mount made anew.
//! Compared is what [`world`] can see: not access times, times of change, sizes of directories, and
//! times of modification only as far as they were set. Left out is what SEMANTICS.md says differs:
//! `O_TMPFILE`, `O_DIRECT`, extended attributes of removed files, where `lseek` finds holes.
//!
//! A run is named by its seed. A failure prints it, and the shortest sequence that still fails.

mod mapping;
mod op;
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::mapping::Mapping;
use self::op::Op;
use self::world::{Tree, World, tree};
use super::fsx::soak_end;
use super::*;

/// Operations in one sequence, after those that all begin with.
const OPS_MAX: usize = 150;

/// Sequences of a run of `make test`. Chosen for a few seconds on each kind of mount.
const SEQUENCES: u32 = 10;

/// Sequences of a run of `make soak`; after each run the mount is made anew.
const SOAK_SEQUENCES: u32 = 100;

/// Attempts at a shorter sequence. Why so many: each takes a tenth of a second.
const SHRINKS_MAX: u32 = 1000;

/// Seeds of `make test`.
const SEEDS: [u64; 2] = [1, 20_261_121];

/// Where sequences run, and what was there after each.
struct Place {
    mount: PathBuf,
    other: PathBuf,
    local: TempDir,
    mappings: (Mapping, Mapping),
    name_count: u32,
    kept: Vec<(String, Tree)>,
}

impl Place {
    fn new(mount: &Mount, other: &Mount) -> Place {
        let local = tempfile::tempdir().unwrap();
        // So that the ordinary user comes as far as in the mount.
        fs::set_permissions(local.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mappings = (Mapping::start(), Mapping::start());
        let (mount, other) = (mount.path().to_owned(), other.path().to_owned());
        Place { mount, other, local, mappings, name_count: 0, kept: Vec::new() }
    }

    /// Does everything twice.
    fn check(&mut self, ops: &[Op]) -> Result<(), TestCaseError> {
        self.name_count += 1;
        let name = format!("sequence{}", self.name_count);
        let (here, model) = (self.mount.join(&name), self.local.path().join(&name));
        let mut mounted = World::new(here.clone(), &mut self.mappings.0);
        let mut local = World::new(model.clone(), &mut self.mappings.1);
        let mut result = Ok(());
        for (step, op) in op::prelude().iter().chain(ops).enumerate() {
            let (found, expected) = (mounted.apply(op), local.apply(op));
            if found != expected {
                let what = format!("step {step}, {op:?}: {found:?}, locally {expected:?}");
                result = Err(TestCaseError::fail(what));
                break;
            }
        }
        mounted.rest();
        local.rest();
        result?;
        let expected = tree(&model);
        same("the mount", &tree(&here), &expected)?;
        same("the other mount", &tree(&self.other.join(&name)), &expected)?;
        fs::remove_dir_all(&model).unwrap();
        self.kept.push((name, expected));
        Ok(())
    }

    /// A run.
    fn run(&mut self, seed: u64, sequences: u32) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config {
            cases: sequences,
            failure_persistence: None,
            max_shrink_iters: SHRINKS_MAX,
            ..Config::default()
        };
        let place = std::cell::RefCell::new(self);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let run = runner.run(&op::sequence(OPS_MAX), |ops| place.borrow_mut().check(&ops));
        match run {
            Ok(()) => (),
            Err(TestError::Fail(reason, ops)) => {
                let ops: Vec<_> = ops.iter().map(|op| format!("  {op:?}\n")).collect();
                panic!("SEED={seed}: {reason}\n{}", ops.concat());
            }
            Err(error @ TestError::Abort(_)) => panic!("SEED={seed}: {error}"),
        }
    }
}

/// Whether a tree is as it must be; if not, where it differs first.
fn same(place: &str, found: &Tree, expected: &Tree) -> Result<(), TestCaseError> {
    for path in expected.keys().chain(found.keys()) {
        let (found, expected) = (found.get(path), expected.get(path));
        if found != expected {
            let what = format!("{place}, {path:?}: {found:#?}, locally {expected:#?}");
            return Err(TestCaseError::fail(what));
        }
    }
    Ok(())
}

/// Runs on `mount`, looks from `other`, and once more when the mount was made anew.
async fn pass(cell: &Cell, mount: Mount, other: &Mount, runs: &[(u64, u32)]) -> Mount {
    let mut place = Place::new(&mount, other);
    let runs = runs.to_vec();
    let place = files(move || {
        runs.into_iter().for_each(|(seed, sequences)| place.run(seed, sequences));
        place
    });
    let place = place.await;
    let passthrough = mount.client.vfs.passes_through();
    mount.unmount().await;
    let anew = Mount::of(cell.client(passthrough).await).await;
    let root = anew.path().to_owned();
    files(move || {
        for (name, expected) in &place.kept {
            same("made anew", &tree(&root.join(name)), expected).unwrap();
            fs::remove_dir_all(root.join(name)).unwrap();
        }
    })
    .await;
    anew
}

/// The fixed runs.
async fn agrees(passthrough: bool) {
    let (cell, a, b) = two_mounts().await;
    assert!(a.client.vfs.passes_through() && !b.client.vfs.passes_through());
    let (mount, other) = if passthrough { (a, b) } else { (b, a) };
    pass(&cell, mount, &other, &SEEDS.map(|seed| (seed, SEQUENCES))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_do_what_they_do_on_a_local_file_system_with_passthrough() {
    agrees(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_do_what_they_do_on_a_local_file_system_without_passthrough() {
    agrees(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for minutes with seeds of the moment; make soak runs it"]
async fn soak_model() {
    let end = soak_end();
    let (cell, mut mount, mut other) = two_mounts().await;
    let first = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for seed in first.. {
        if Instant::now() > end {
            return;
        }
        eprintln!("model SEED={seed} passthrough={}", mount.client.vfs.passes_through());
        mount = pass(&cell, mount, &other, &[(seed, SOAK_SEQUENCES)]).await;
        std::mem::swap(&mut mount, &mut other);
    }
}
