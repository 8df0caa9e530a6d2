//! The ledger's row: one for each session and space. STORAGE.md describes it.

use std::collections::BTreeMap;

use dfs_proto::version::Sequence;
use serde::{Deserialize, Serialize};

use crate::meta::Record;

/// What became of a session's mutations that it may ask about again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// Ops below are settled: answered, or never to be run.
    pub watermark: u64,
    pub entries: BTreeMap<u64, LedgerEntry>,
    /// Ops at or above the watermark that were committed and whose answers are dropped.
    ///
    /// Shape: a bit for each op, by page; page p has those from p * [`OPS_PER_PAGE`] on.
    pub forgotten: BTreeMap<u64, [u64; 8]>,
}

/// Ops of one page of [`LedgerRow::forgotten`].
const OPS_PER_PAGE: u64 = 512;

/// Where in [`LedgerRow::forgotten`] an op is: the page, its word, and the word's bit.
fn place_of(number: u64) -> (u64, usize, u64) {
    let index = number % OPS_PER_PAGE;
    (page_of(number), (index / 64) as usize, 1 << (index % 64))
}

/// The page of [`LedgerRow::forgotten`] that has an op.
pub(super) fn page_of(number: u64) -> u64 {
    number / OPS_PER_PAGE
}

impl LedgerRow {
    /// Whether the op was committed and its answer dropped.
    pub fn is_forgotten(&self, number: u64) -> bool {
        let (page, word, bit) = place_of(number);
        self.forgotten.get(&page).is_some_and(|words| words[word] & bit != 0)
    }

    /// Keeps of a committed op only that it was.
    pub(super) fn forget(&mut self, number: u64) {
        self.entries.remove(&number);
        let (page, word, bit) = place_of(number);
        self.forgotten.entry(page).or_default()[word] |= bit;
    }
}

impl Record for LedgerRow {
    const VERSION: u8 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerEntry {
    /// Committed at this sequence; the encoded answer.
    Done { sequence: Sequence, answer: Vec<u8> },
    /// Not run when somebody asked for its outcome, and so never to be run.
    Refused,
}
