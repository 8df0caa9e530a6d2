//! What the client counts, and how the figures are called.
//!
//! Owns the counters of one connection and everything above it: requests on the wire by operation
//! (each attempt counts, so a test can assert a budget), cache drops and evictions by reason,
//! commits by outcome. Everybody adds; `dfs status` and tests read. Knows no meaning beyond names.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Requests sent, by operation.
pub const RPCS: &str = "dfs_client_rpcs_total";
/// Everything else that is counted, by [`Counter`].
pub const EVENTS: &str = "dfs_client_events_total";

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Something that happened; the reasons behind drops and retries are told apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            pub const ALL: &[Counter] = &[$(Counter::$name,)*];

            pub fn label(self) -> &'static str {
                match self {
                    $(Counter::$name => $label,)*
                }
            }
        }
    };
}

counters! {
    /// Units: bytes of chunks that came from file nodes.
    FetchedBytes => "fetched_bytes",
    /// Units: bytes of chunks that an older cached version had.
    CopiedBytes => "copied_bytes",
    /// Units: bytes of chunks that went to file nodes.
    StoredBytes => "stored_bytes",
    ReplicaLeft => "replica_left",
    CacheEvicted => "cache_evicted",
    CacheDropCorrupt => "cache_drop_corrupt",
    CacheDropMissing => "cache_drop_missing",
    CommitStored => "commit_stored",
    CommitUnchanged => "commit_unchanged",
    CommitVanished => "commit_vanished",
    CommitConflict => "commit_conflict",
    CommitUnsent => "commit_unsent",
    CommitFenced => "commit_fenced",
    OutcomeAsked => "outcome_asked",
    LockYielded => "lock_yielded",
    /// A write lock was let go while the file stayed open for writing.
    FileShared => "file_shared",
    /// A newer version was brought into such a file.
    SharedRefreshed => "shared_refreshed",
    /// What a program had locked, or some of it, went back.
    RangeGivenBack => "range_given_back",
    /// The last handle of a file was closed, and mappings of it lived on.
    MappingLeft => "mapping_left",
    SessionReopened => "session_reopened",
    TicketRenewed => "ticket_renewed",
    Interrupted => "interrupted",
    /// Requests of the kernel, but for those of reading, writing and letting go.
    KernelAsked => "kernel_asked",
}

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub name: &'static str,
    /// The operation's path, or the counter's label.
    pub label: &'static str,
    pub value: u64,
}

/// The counters of one client.
#[derive(Debug, Default)]
pub struct Metrics {
    rpcs: Mutex<BTreeMap<&'static str, u64>>,
    events: [AtomicU64; Counter::ALL.len()],
}

impl Metrics {
    pub fn count_rpc(&self, path: &'static str) {
        *self.rpcs.lock().unwrap_or_else(PoisonError::into_inner).entry(path).or_default() += 1;
    }

    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    pub fn add(&self, counter: Counter, value: u64) {
        self.events[counter as usize].fetch_add(value, Ordering::Relaxed);
    }

    pub fn value(&self, counter: Counter) -> u64 {
        self.events[counter as usize].load(Ordering::Relaxed)
    }

    /// Requests sent so far, by operation.
    pub fn rpc_counts(&self) -> BTreeMap<&'static str, u64> {
        self.rpcs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything else that is counted so far, by label.
    pub fn event_counts(&self) -> BTreeMap<String, u64> {
        let count = |counter: &Counter| (counter.label().to_owned(), self.value(*counter));
        Counter::ALL.iter().map(count).collect()
    }

    pub fn samples(&self) -> Vec<Sample> {
        let rpcs = self.rpc_counts();
        let rpcs = rpcs.into_iter().map(|(label, value)| Sample { name: RPCS, label, value });
        let events = Counter::ALL.iter().map(|&counter| Sample {
            name: EVENTS,
            label: counter.label(),
            value: self.value(counter),
        });
        rpcs.chain(events).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place_and_label() {
        let metrics = Metrics::default();
        metrics.add(Counter::Interrupted, 3);
        metrics.count_rpc("directory.open");
        let samples = metrics.samples();
        assert_eq!(samples[0], Sample { name: RPCS, label: "directory.open", value: 1 });
        let interrupted = samples.iter().find(|sample| sample.label == "interrupted").unwrap();
        assert_eq!(interrupted.value, 3);
        assert_eq!(samples.len(), 1 + Counter::ALL.len());
    }
}
