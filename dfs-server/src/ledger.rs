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
//! Used by every service whose operations change rows. Where in its space the rows lie is the
//! service's business, as is whose session an op id may name.

mod row;

use dfs_proto::FsError;
use dfs_proto::codec;
use dfs_proto::directory::OutcomeReply;
use dfs_proto::id::SessionId;
use dfs_proto::limits::{HEAD_BYTES_MAX, OPS_IN_FLIGHT_MAX};
use dfs_proto::version::Sequence;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::meta::{Abort, Key, Txn};
use crate::request::Context;
pub use row::{LedgerEntry, LedgerRow};

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
}

impl OpTag {
    /// `row` gives the key of a session's row.
    ///
    /// # Errors
    /// `Malformed` without an op id (the router checks before).
    pub fn of(
        context: &Context,
        row: impl FnOnce(SessionId) -> Key<LedgerRow>,
    ) -> Result<OpTag, FsError> {
        let op = context.op.ok_or_else(|| FsError::malformed("mutation without an op id"))?;
        let watermark = context.lowest_unanswered;
        Ok(OpTag { row: row(op.session), number: op.number, watermark })
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

fn extended(mut row: LedgerRow, tag: &OpTag, entry: LedgerEntry) -> Result<LedgerRow, FsError> {
    row.watermark = row.watermark.max(tag.watermark);
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
