//! Removing the rows that nobody will ask about (rule 5 of the ledger).

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::id::SessionId;

use super::LedgerRow;
use crate::meta::key::{after, parts};
use crate::meta::{Abort, Durability, Key, KeyBytes, Store, Txn};

/// How long the row of a closed session is kept.
///
/// Why 3 days: a request may be under way for a quarter of an hour; a client that lost power just
/// after it closed a session asks again at its next start, and that may be after a weekend. Not
/// longer: a script that runs a command a second leaves some 100 MB.
pub const CLOSED_KEPT: Duration = Duration::from_secs(3 * 86_400);

/// How long the row of a session is kept that vanished, from its last change on.
///
/// Why 90 days: longer than a laptop with unsent data stays in a drawer; a thousand mounts a day
/// that all end badly leave some 50 MB.
pub const VANISHED_KEPT: Duration = Duration::from_secs(90 * 86_400);

/// Rows looked at in one step, and so the most that one commit removes.
///
/// Why 64: a commit of some milliseconds between those of clients; and rows that a hostile client
/// made as large as they get are no more than some 20 MB in memory.
pub const STEP_ROWS: usize = 64;

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Its age is not known (it is of an older version, or the clock was set back): it counts from
    /// this sweep on.
    Dated,
    Goes,
}

fn fate(row: &LedgerRow, now: i64) -> Fate {
    if !(1..=now).contains(&row.changed) {
        return Fate::Dated;
    }
    let kept = if row.is_closed { CLOSED_KEPT } else { VANISHED_KEPT };
    let age = (now - row.changed).unsigned_abs();
    if age < kept.as_secs() { Fate::Stays } else { Fate::Goes }
}

/// Removes what rule 5 removes of the rows between the two keys of `range`. `is_live` says whether
/// a session lives.
///
/// # Errors
/// What the store reports; what was removed stays removed.
pub async fn sweep(
    store: &Store,
    range: (KeyBytes, KeyBytes),
    now: Timestamp,
    is_live: impl Fn(SessionId) -> bool,
) -> Result<(), FsError> {
    let (mut from, to) = range;
    loop {
        let rows = store.scan::<LedgerRow>(from, to.clone(), STEP_ROWS).await?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        from = after(last);
        let due = rows.iter().filter(|(_, row)| fate(row, now.secs) != Fate::Stays);
        let dead = due.filter(|(key, _)| session_of(key).is_none_or(|id| !is_live(id)));
        let keys = dead.map(|(key, _)| Key::from_bytes(key.as_slice())).collect::<Vec<_>>();
        if !keys.is_empty() {
            let step = move |txn: &mut Txn<'_>| apply(txn, &keys, now.secs);
            store.write(Durability::Process, step).await?;
        }
    }
}

fn session_of(key: &[u8]) -> Option<SessionId> {
    parts(key).try_into().ok().map(SessionId)
}

fn apply(txn: &mut Txn<'_>, keys: &[Key<LedgerRow>], now: i64) -> Result<(), Abort> {
    for (key, row) in keys.iter().zip(txn.get_all(keys)?) {
        let Some(row) = row else { continue };
        match fate(&row, now) {
            Fate::Stays => {}
            Fate::Dated => txn.put(key, LedgerRow { changed: now, ..LedgerRow::clone(&row) }),
            Fate::Goes => txn.delete(key),
        }
    }
    Ok(())
}
