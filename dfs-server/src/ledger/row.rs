//! The ledger's row: one for each session and space. STORAGE.md describes it.

use std::collections::BTreeMap;

use dfs_proto::version::Sequence;
use serde::{Deserialize, Serialize};

use crate::meta::record::from_previous;
use crate::meta::{Record, RecordError};

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
    /// When the row last changed. Units: wall-clock seconds since 1970; 0: not known.
    pub changed: i64,
    /// The session was closed, and its client knows what became of every op of the row.
    pub is_closed: bool,
}

/// A row without its age.
#[derive(Serialize, Deserialize)]
struct LedgerRowV1 {
    watermark: u64,
    entries: BTreeMap<u64, LedgerEntry>,
    forgotten: BTreeMap<u64, [u64; 8]>,
}

impl Record for LedgerRowV1 {
    const VERSION: u8 = 1;
}

impl From<LedgerRowV1> for LedgerRow {
    fn from(row: LedgerRowV1) -> LedgerRow {
        let LedgerRowV1 { watermark, entries, forgotten } = row;
        LedgerRow { watermark, entries, forgotten, ..LedgerRow::default() }
    }
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

    /// Whether every op that the row speaks of is below `watermark`.
    pub(super) fn is_settled_below(&self, watermark: u64) -> bool {
        let is_forgotten_above = |page: &u64| {
            let first = page * OPS_PER_PAGE;
            let mut ops = first.max(watermark)..=first + (OPS_PER_PAGE - 1);
            ops.any(|op| self.is_forgotten(op))
        };
        let mut pages = self.forgotten.range(page_of(watermark)..).map(|(page, _)| page);
        self.entries.range(watermark..).next().is_none() && !pages.any(is_forgotten_above)
    }

    /// Keeps of a committed op only that it was.
    pub(super) fn forget(&mut self, number: u64) {
        self.entries.remove(&number);
        let (page, word, bit) = place_of(number);
        self.forgotten.entry(page).or_default()[word] |= bit;
    }
}

impl Record for LedgerRow {
    const VERSION: u8 = 2;

    fn from_older(version: u8, body: &[u8]) -> Result<LedgerRow, RecordError> {
        from_previous::<LedgerRowV1, LedgerRow>(version, body)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerEntry {
    /// Committed at this sequence; the encoded answer.
    Done { sequence: Sequence, answer: Vec<u8> },
    /// Not run when somebody asked for its outcome, and so never to be run.
    Refused,
}
