//! What an earlier run of the client left in the journal.
//!
//! | entry | file has | becomes |
//! |---|---|---|
//! | `Working` | its base | `Clean` |
//! | `Working` | something else | `Interrupted` |
//! | `Sending`, `Unsent` | what was closed | an unsent working copy, sent as soon as may be |
//! | `Sending`, `Unsent` | something else (a writer went on) | `Interrupted` |
//! | `Conflict`, `Interrupted` | anything | what it is |
//!
//! An unsent copy keeps the op under which it was sent last: its outcome is asked for, as the
//! session that sent it, before it is sent under a new one. When no such op is open any more, the
//! earlier sessions are closed, so that their locks need not wait for the end of their leases: the
//! cache directory was theirs, so they are dead.

use std::collections::HashSet;
use std::sync::Arc;

use dfs_proto::id::SessionId;

use crate::cache::record::{Closed, Content, Entry, EntryId, State};
use crate::cache::{Cache, CacheError, CacheFile};
use crate::metrics::Counter;

use super::Writeback;
use super::working::{Copy, Mark, Pending, Standing, Unsent};

/// What is to be done with an entry.
enum Found {
    Nothing,
    Interrupted,
    Unsent { file: Arc<CacheFile>, base: Content, closed: Closed },
}

pub(super) async fn take_up(writeback: &Writeback) -> Result<(), CacheError> {
    let own = writeback.inner.session.id();
    let mut former: HashSet<SessionId> = HashSet::new();
    former.extend(writeback.inner.cache.replace_session(own));
    take_up_entries(writeback).await?;
    let copies: Vec<Arc<Copy>> = writeback.live().values().cloned().collect();
    for copy in copies {
        let mut right = copy.right.lock().await;
        let Some(op) = right.pending.as_ref().map(|pending| pending.op) else { continue };
        if let Err(error) = writeback.settle_pending(&copy, &mut right).await {
            tracing::warn!(%op, %error, "what became of an earlier store is not known yet");
            return Ok(());
        }
        former.insert(op.session);
    }
    former.remove(&own);
    for session in former {
        if let Err(error) = writeback.inner.session.close_former(session).await {
            tracing::debug!(%session, %error, "earlier session is left to its lease");
        }
    }
    Ok(())
}

async fn take_up_entries(writeback: &Writeback) -> Result<(), CacheError> {
    for (id, entry) in writeback.inner.cache.unclean() {
        let cache = writeback.inner.cache.clone();
        let copied = entry.clone();
        let found = tokio::task::spawn_blocking(move || judge(&cache, id, &copied)).await;
        let found = found.map_err(|error| CacheError::Io {
            what: "cannot check cache entry in",
            path: writeback.inner.cache.dir().into(),
            source: std::io::Error::other(error),
        })??;
        match found {
            Found::Nothing => {}
            Found::Interrupted => {
                tracing::warn!(fid = %entry.fid, hint = entry.origin.hint, "interrupted");
                writeback.inner.session.metrics().count(Counter::Interrupted);
            }
            Found::Unsent { file, base, closed } => {
                take_up_unsent(writeback, &entry, file, base, closed).await;
            }
        }
    }
    Ok(())
}

/// Looks at what the file has. Blocking.
fn judge(cache: &Cache, id: EntryId, entry: &Entry) -> Result<Found, CacheError> {
    let (base, closed) = match &entry.state {
        State::Clean(_) | State::Conflict { .. } | State::Interrupted { .. } => {
            return Ok(Found::Nothing);
        }
        State::Working { base, .. } => (base, None),
        State::Sending { base, closed, .. } | State::Unsent { base, closed, .. } => {
            (base, Some(closed))
        }
    };
    let file = match cache.open_entry(id) {
        Ok(file) => file,
        Err(error) => {
            tracing::error!(fid = %entry.fid, hint = entry.origin.hint, %error, "change is lost");
            cache.remove(id);
            return Ok(Found::Nothing);
        }
    };
    let failed = |source| CacheError::Io {
        what: "cannot read cache file",
        path: file.path().into(),
        source,
    };
    let expected = closed.map_or(&base.manifest, |closed| &closed.manifest);
    let stamp = file.stamp().ok();
    let is_expected = file.holds(expected).map_err(failed)?;
    let found = match closed {
        Some(closed) if is_expected => {
            return Ok(Found::Unsent { file, base: base.clone(), closed: closed.clone() });
        }
        None if is_expected => {
            cache.record(&file, &entry.origin, State::Clean(base.clone()), stamp)?;
            Found::Nothing
        }
        _ => {
            let state = State::Interrupted { base: base.clone() };
            cache.record(&file, &entry.origin, state, None)?;
            Found::Interrupted
        }
    };
    Ok(found)
}

async fn take_up_unsent(
    writeback: &Writeback,
    entry: &Entry,
    file: Arc<CacheFile>,
    base: Content,
    closed: Closed,
) {
    let clock = writeback.inner.cache.clock();
    let copy = Copy::new(writeback.inner.cache.clone(), file, entry.origin.clone(), base);
    let mark = copy.mark();
    {
        let mut facts = copy.facts();
        facts.committed = Mark::NEVER;
        facts.standing = Standing::Unsent(Unsent {
            why: "the client ended before it was answered".to_owned(),
            since: entry.since,
            mark,
            attr: closed.attr.clone(),
            durability: closed.durability,
            next_try: clock.boottime(),
            delay: super::commit::RETRY_DELAY_FIRST,
        });
    }
    if let Some(op) = closed.op {
        let manifest = Arc::clone(&closed.manifest);
        copy.right.lock().await.pending = Some(Pending { op, guard: None, manifest, mark });
    }
    writeback.live().insert(entry.fid, Arc::new(copy));
}
