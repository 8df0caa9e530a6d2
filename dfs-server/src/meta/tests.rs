//! The engines against their conformance suite; the rest of the tests by subject below.

use std::sync::Arc;

use super::faulty::FaultyEngine;
use super::memory::MemoryEngine;
use super::sqlite::SqliteEngine;
use super::{Engine, conformance};

mod core;
mod model;
mod store;
mod support;
mod watch;

macro_rules! engines_conform {
    ($($claim:ident)*) => {
        mod memory_engine { $(
            #[test]
            fn $claim() {
                super::with_memory(super::conformance::$claim);
            }
        )* }
        mod sqlite_engine { $(
            #[test]
            fn $claim() {
                super::with_sqlite(super::conformance::$claim);
            }
        )* }
        mod faulty_engine_without_orders { $(
            #[test]
            fn $claim() {
                super::with_faulty(super::conformance::$claim);
            }
        )* }
    };
}

engines_conform! {
    loads_answer_for_every_key
    scans_are_ordered_and_half_open
    scans_end_with_their_space
    a_batch_replaces_adds_and_deletes
    scans_see_batches_whole
    a_claim_raises_the_epoch_for_good
    an_old_owner_is_fenced
    rows_outlive_the_engine
    large_values_are_kept
    many_keys_are_scanned_in_pages
    an_empty_batch_is_taken
}

type Claim = fn(conformance::Opener<'_>);

fn with_memory(claim: Claim) {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    claim(&|| engine.clone());
}

fn with_sqlite(claim: Claim) {
    let dir = tempfile::tempdir().unwrap();
    claim(&|| Arc::new(SqliteEngine::open(dir.path().join("meta.db")).unwrap()));
}

fn with_faulty(claim: Claim) {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    claim(&|| FaultyEngine::new(engine.clone()).0);
}
