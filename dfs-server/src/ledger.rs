//! The op-id ledger: a mutation is run once, however often its request arrives.
//!
//! Rules, for an op with number n of a session:
//! 1. A row with n: its answer again (or, if it was refused, refused again).
//! 2. No row, n below the session's watermark (the highest that any of its requests carried): it
//!    was answered before, or given up by the client; it is refused, for running it now would be
//!    running it late.
//! 3. Otherwise it is run, and its answer becomes part of the row in the same transaction.
//!
//! A row keeps a bounded number of answers: the oldest, for what holds the watermark back is an op
//! without an answer, and the newest, whose replies may be on their way. One op that takes long
//! lets thousands of others in between be answered: of these only the fact that they were
//! committed is kept, as one bit each. Ranges would be shorter, if it were not for the ops that
//! fail: each leaves a gap, and a gap must stay one, for the slow op is one too.
//!
//! Only changes leave rows: an operation that failed, or found nothing to do, may be run again.
//!
//! **How long a row is kept.** Its client may ask what became of an op long after: a laptop with
//! unsent data in its outbox comes back from a journey and asks as the session it had then. But
//! sessions come and go, so rows must go as well:
//!
//! 4. A session that is closed says below which number its client knows the outcome of every op.
//!    If all ops of the row are below, the row is *closed*. Otherwise (an unmount that gave up on
//!    its outbox) it stays as it is, as does the row of a session that just vanished.
//! 5. A row goes [`CLOSED_KEPT`] after it was closed, and [`VANISHED_KEPT`] after its last change
//!    if it never was, unless its session lives. A row that changes again is not closed any more.
//!
//! By rule 4 nobody has a question left that a closed row answers, with two exceptions that need
//! it for a while, unchanged: requests still under way, which without it would be run late; and
//! clients whose journal lost its end in a power cut and who ask again. Whoever asks later than
//! rule 5 allows is told that nothing was committed, and finds a conflict: no bytes are lost.
//!
//! Removal is a transaction of its own that looks at the row again, so neither a crash nor a
//! second sweep does harm.
//!
//! Used by every service whose operations change rows. Where in its space the rows lie is the
//! service's business, as is whose session an op id may name.

mod row;
mod sweep;
#[cfg(test)]
mod tests;

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::codec;
use dfs_proto::directory::OutcomeReply;
use dfs_proto::id::SessionId;
use dfs_proto::limits::{HEAD_BYTES_MAX, OPS_IN_FLIGHT_MAX};
use dfs_proto::version::Sequence;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::meta::{Abort, Key, ReadTxn, Txn};
use crate::request::Context;
pub use row::{LedgerEntry, LedgerRow};
pub use sweep::{CLOSED_KEPT, VANISHED_KEPT, sweep};

/// Answers kept for one session, and how many of them are the oldest.
///
/// Why 128: each half is more than a client has unanswered after a server's restart, and the row
/// small enough to be written with every batch.
const ANSWERS_KEPT_MAX: usize = 128;
const OLDEST_KEPT: usize = ANSWERS_KEPT_MAX / 2;

/// Refusals kept for one session. Why: a client asks for outcomes of what it has in flight only.
const REFUSALS_MAX: usize = 4 * OPS_IN_FLIGHT_MAX;

/// Pages of forgotten ops of one session.
///
/// Why 4,096: two million ops behind one that is not answered, more than come in the time that any
/// op may take; and the row stays in the hundreds of kilobytes whatever numbers a client invents.
const FORGOTTEN_PAGES_MAX: usize = 4096;

/// A mutation's place in its session.
#[derive(Clone, Debug)]
pub struct OpTag {
    /// The row of its session.
    pub row: Key<LedgerRow>,
    pub number: u64,
    pub watermark: u64,
    /// The server's wall clock: rows are kept for a time.
    pub now: Timestamp,
}

impl OpTag {
    /// `row` gives the key of a session's row.
    ///
    /// # Errors
    /// `Malformed` without an op id (the router checks before).
    pub fn of(
        context: &Context,
        row: impl FnOnce(SessionId) -> Key<LedgerRow>,
        now: Timestamp,
    ) -> Result<OpTag, FsError> {
        let op = context.op.ok_or_else(|| FsError::malformed("mutation without an op id"))?;
        let watermark = context.lowest_unanswered;
        Ok(OpTag { row: row(op.session), number: op.number, watermark, now })
    }
}

/// What a mutation did.
pub enum Ran<T> {
    Changed(T),
    /// Nothing: needs no row.
    Unchanged(T),
}

/// Runs `work`, unless it was run before.
///
/// # Errors
/// `OpSettled` by rules 1 and 2; whatever `work` reports.
pub fn run_once<T: Serialize + DeserializeOwned>(
    txn: &mut Txn,
    tag: &OpTag,
    work: impl FnOnce(&mut Txn) -> Result<Ran<T>, Abort>,
) -> Result<T, Abort> {
    let row = txn.get(&tag.row)?;
    let number = tag.number;
    match row.as_ref().and_then(|row| row.entries.get(&number)) {
        Some(LedgerEntry::Done { answer, .. }) => return Ok(decode(answer)?),
        Some(LedgerEntry::Refused) => return Err(FsError::OpSettled.into()),
        None => {}
    }
    let is_forgotten = row.as_ref().is_some_and(|row| row.is_forgotten(number));
    let watermark = row.as_ref().map_or(0, |row| row.watermark).max(tag.watermark);
    if is_forgotten || number < watermark {
        return Err(FsError::OpSettled.into());
    }
    let answer = match work(txn)? {
        Ran::Unchanged(answer) => return Ok(answer),
        Ran::Changed(answer) => answer,
    };
    let entry = LedgerEntry::Done { sequence: txn.sequence(), answer: encode(&answer)? };
    let row = row.map(|row| LedgerRow::clone(&row)).unwrap_or_default();
    txn.put(&tag.row, extended(row, tag, entry)?);
    Ok(answer)
}

/// The answer that an op got, if it was run and the answer is kept: for work that has to look at
/// what the op itself has changed since.
///
/// # Errors
/// Those of reading the row.
pub fn answer_of<T: DeserializeOwned>(txn: &mut ReadTxn, tag: &OpTag) -> Result<Option<T>, Abort> {
    let row = txn.get(&tag.row)?;
    match row.as_ref().and_then(|row| row.entries.get(&tag.number)) {
        Some(LedgerEntry::Done { answer, .. }) => Ok(Some(decode(answer)?)),
        Some(LedgerEntry::Refused) | None => Ok(None),
    }
}

/// Settles an op whose answer was lost: what has not run never will.
///
/// # Errors
/// `OpSettled` below the watermark: the session said that it knows.
pub fn outcome(txn: &mut Txn, tag: &OpTag) -> Result<OutcomeReply, Abort> {
    let row = txn.get(&tag.row)?.map(|row| LedgerRow::clone(&row)).unwrap_or_default();
    match row.entries.get(&tag.number) {
        Some(LedgerEntry::Done { sequence, .. }) => Ok(OutcomeReply::Committed(*sequence)),
        Some(LedgerEntry::Refused) => Ok(OutcomeReply::Refused),
        // Its place went with its answer. What is said instead must be no commit's: the client may
        // take it for the version of what it stored, and then others' bytes for its own.
        None if row.is_forgotten(tag.number) => Ok(OutcomeReply::Committed(Sequence::default())),
        None if tag.number < row.watermark => Err(FsError::OpSettled.into()),
        None => {
            txn.put(&tag.row, extended(row, tag, LedgerEntry::Refused)?);
            Ok(OutcomeReply::Refused)
        }
    }
}

/// Notes that a session was closed whose client knows the outcome of every op below `watermark`
/// (rule 4).
pub fn close(
    txn: &mut Txn,
    key: &Key<LedgerRow>,
    watermark: u64,
    now: Timestamp,
) -> Result<(), Abort> {
    let Some(row) = txn.get(key)? else { return Ok(()) };
    if !row.is_closed && row.is_settled_below(watermark) {
        txn.put(key, LedgerRow { is_closed: true, changed: now.secs, ..LedgerRow::clone(&row) });
    }
    Ok(())
}

fn extended(mut row: LedgerRow, tag: &OpTag, entry: LedgerEntry) -> Result<LedgerRow, FsError> {
    row.watermark = row.watermark.max(tag.watermark);
    row.changed = tag.now.secs;
    row.is_closed = false;
    row.entries = row.entries.split_off(&row.watermark);
    row.forgotten = row.forgotten.split_off(&row::page_of(row.watermark));
    row.entries.insert(tag.number, entry);
    while row.entries.len() > ANSWERS_KEPT_MAX
        && let Some(number) = done_between(&row)
    {
        row.forget(number);
    }
    if row.entries.len() > REFUSALS_MAX || row.forgotten.len() > FORGOTTEN_PAGES_MAX {
        return Err(FsError::unavailable("too many operations after one without an answer"));
    }
    Ok(row)
}

/// The committed op whose answer goes next; refusals stay, for nothing else says that they must not
/// run.
fn done_between(row: &LedgerRow) -> Option<u64> {
    let done = |entry: &LedgerEntry| matches!(entry, LedgerEntry::Done { .. });
    let mut numbers =
        row.entries.iter().filter(|(_, entry)| done(entry)).map(|(number, _)| *number);
    let first = numbers.next()?;
    Some(numbers.nth(OLDEST_KEPT - 1).unwrap_or(first))
}

fn encode<T: Serialize>(answer: &T) -> Result<Vec<u8>, FsError> {
    codec::encode(answer, HEAD_BYTES_MAX).map_err(|error| fault(&error))
}

fn decode<T: DeserializeOwned>(answer: &[u8]) -> Result<T, FsError> {
    codec::decode(answer, HEAD_BYTES_MAX).map_err(|error| fault(&error))
}

fn fault(error: &codec::CodecError) -> FsError {
    tracing::error!(%error, "answer of the ledger does not encode or decode");
    FsError::Internal { incident: "ledger-answer".into() }
}
