//! fsx: random operations on one file, each read compared with what must be there.
//!
//! `make test` installs it. A run is named by its profile and its seed; a failure prints both, with
//! all operations that led to it. Every run also has the other client read the outcome.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use super::*;
use crate::support::{attempt_within, tool};

/// What a run does: sizes, and how often each operation comes.
struct Profile {
    name: &'static str,
    /// Longest file and longest operation. Units: bytes.
    file_bytes_max: u32,
    op_bytes_max: u32,
    /// Operations in one run of `make test`. Chosen for a few seconds.
    ops: u32,
    weights: &'static [(&'static str, f32)],
}

const PLAIN: Profile = Profile {
    name: "plain",
    file_bytes_max: 256 << 10,
    op_bytes_max: 64 << 10,
    ops: 600,
    weights: &[
        ("close_open", 1.0),
        ("read", 10.0),
        ("write", 10.0),
        ("truncate", 5.0),
        ("fsync", 0.5),
        ("fdatasync", 0.5),
    ],
};

const MMAP: Profile = Profile {
    name: "mmap",
    weights: &[
        ("close_open", 1.0),
        ("read", 5.0),
        ("write", 5.0),
        ("mapread", 10.0),
        ("mapwrite", 10.0),
        ("truncate", 5.0),
        ("invalidate", 2.0),
        ("posix_fadvise", 2.0),
        ("fsync", 0.5),
    ],
    ..PLAIN
};

/// Whatever passes through the page cache beside read and write. Without stores into mappings,
/// which those miss: "Not yet" in SEMANTICS.md.
const CACHE: Profile = Profile {
    name: "cache",
    weights: &[
        ("close_open", 1.0),
        ("read", 5.0),
        ("write", 5.0),
        ("mapread", 5.0),
        ("truncate", 3.0),
        ("invalidate", 3.0),
        ("sendfile", 5.0),
        ("copy_file_range", 5.0),
        ("posix_fadvise", 5.0),
        ("fsync", 0.5),
    ],
    ..PLAIN
};

/// A file of many chunks, most of it holes at first.
const LARGE: Profile = Profile {
    name: "large",
    file_bytes_max: 64 << 20,
    op_bytes_max: 1 << 20,
    ops: 300,
    weights: &[
        ("close_open", 0.3),
        ("read", 10.0),
        ("write", 10.0),
        ("mapread", 5.0),
        ("mapwrite", 5.0),
        ("truncate", 1.0),
    ],
};

/// Holes made in the middle, and space taken at the end.
const PUNCH_HOLE: Profile = Profile {
    name: "punch-hole",
    weights: &[
        ("close_open", 1.0),
        ("read", 10.0),
        ("write", 10.0),
        ("mapread", 5.0),
        ("mapwrite", 5.0),
        ("truncate", 3.0),
        ("punch_hole", 8.0),
        ("posix_fallocate", 4.0),
        ("fsync", 0.5),
    ],
    ..PLAIN
};

/// Seeds of `make test`.
const SEEDS: [u64; 3] = [1, 7, 20_261_121];

/// The longest that a run may take. Why: the runs of `make test` take seconds on an idle machine,
/// those of `make soak` a minute.
const RUN_PATIENCE: Duration = Duration::from_secs(600);

impl Profile {
    /// fsx's configuration. What is not named does not happen.
    fn configured(&self) -> String {
        let Profile { file_bytes_max, op_bytes_max, .. } = self;
        let mut text = format!("flen = {file_bytes_max}\n[opsize]\nmax = {op_bytes_max}\n");
        text.push_str("[weights]\n");
        // These five are on if they are not mentioned.
        for name in ["read", "write", "mapread", "mapwrite", "truncate"] {
            if self.weights.iter().all(|(named, _)| *named != name) {
                writeln!(text, "{name} = 0.0").unwrap();
            }
        }
        for (name, weight) in self.weights {
            writeln!(text, "{name} = {weight:?}").unwrap();
        }
        text
    }

    /// One run on `mount`, checked from `other`.
    async fn run(&self, (mount, other): (&Mount, &Mount), ops: u32, seed: u64) {
        let scratch = tempfile::tempdir().unwrap();
        let configuration = scratch.path().join("fsx.toml");
        fs::write(&configuration, self.configured()).unwrap();
        let name = format!("{}-{seed}", self.name);
        let (file, there) = (mount.path().join(&name), other.path().join(&name));
        let mut fsx = Command::new(tool("fsx"));
        fsx.args(["-q", "-N", &ops.to_string(), "-S", &seed.to_string(), "-f"]);
        fsx.arg(&configuration).arg("-P").arg(scratch.path()).arg(&file);
        let what = format!("profile {}, seed {seed}, {ops} operations", self.name);
        let run = move || {
            let output = attempt_within(&mut fsx, RUN_PATIENCE);
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{what}\n{log}");
            assert_eq!(fs::read(&file).unwrap(), fs::read(&there).unwrap(), "{what}");
            fs::remove_file(&file).unwrap();
        };
        tokio::task::spawn_blocking(run).await.unwrap();
    }

    /// The fixed runs on both kinds of mount.
    async fn pass(&self) {
        let (_cell, a, b) = two_mounts().await;
        for (mount, other) in [(&a, &b), (&b, &a)] {
            for seed in SEEDS {
                self.run((mount, other), self.ops, seed).await;
            }
        }
        assert!(a.client.vfs.passes_through() && !b.client.vfs.passes_through());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsx_finds_every_byte_after_reads_writes_and_cuts() {
    PLAIN.pass().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsx_finds_every_byte_after_stores_into_mappings() {
    MMAP.pass().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsx_finds_every_byte_through_the_page_cache() {
    CACHE.pass().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsx_finds_every_byte_of_a_large_file() {
    LARGE.pass().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsx_finds_every_byte_around_punched_holes() {
    PUNCH_HOLE.pass().await;
}

/// How long `make soak` runs each kind of test, if `SOAK_SECS` does not say.
const SOAK_SECS: u64 = 600;

/// When a soak that begins now ends.
pub fn soak_end() -> Instant {
    let secs = match std::env::var("SOAK_SECS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("SOAK_SECS={text} is no number")),
        Err(_) => SOAK_SECS,
    };
    Instant::now() + Duration::from_secs(secs)
}

/// Operations in one run of a soak: long enough for states that short runs do not reach.
const SOAK_OPS: u32 = 3_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for minutes with seeds of the moment; make soak runs it"]
async fn soak_fsx() {
    let end = soak_end();
    let (_cell, a, b) = two_mounts().await;
    let first = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for seed in first.. {
        for profile in [&PLAIN, &MMAP, &CACHE, &LARGE, &PUNCH_HOLE] {
            for (mount, other) in [(&a, &b), (&b, &a)] {
                if Instant::now() > end {
                    return;
                }
                eprintln!("fsx {} SEED={seed}", profile.name);
                profile.run((mount, other), SOAK_OPS, seed).await;
            }
        }
    }
}
