//! Files that several clients have open for writing.
//!
//! A lock that another client waits for goes back as soon as there is nothing to commit, also while
//! programs here have the file open for writing. From then on the file is *shared*: their handles
//! stay, and the first change asks for the lock again, brings the newest version into the working
//! copy, and is made on top of that. Nothing is lost by giving the lock away: what is not changed
//! has no claim to be newer. What is stored to through a mapping keeps the lock, for such stores
//! cannot be held back; and a handle that a program has closed and the kernel keeps may be mapped.
//!
//! A lock that was asked for while there was something to commit goes back with the fsync, the
//! release of a program's lock, or the last close that commits it. A mere flush does so only in a
//! file that is shared already: every child that inherits a file flushes it.
//!
//! The working copy is changed in place: all handles and mappings of this client are over that one
//! file, and see others' changes as they would see those of a program on this machine.

use std::collections::HashMap;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::directory::OpenReply;
use dfs_proto::id::FileId;
use dfs_proto::manifest::{Extent, Manifest};

use crate::cache::record::{Content, State};
use crate::cache::{CacheError, CacheFile, CleanFile, ContentError};
use crate::lease::Event;
use crate::metrics::Counter;

use super::working::Copy;
use super::{Working, WriteIntent, Writeback};

/// Who asks for a lock to be let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Another client only: a file that may be mapped keeps its lock.
    ByOthers,
    /// A program that goes by locks of its own.
    ByProgram,
}

impl Writeback {
    /// A program releases a lock, or waits for one, and everything written to the file before is
    /// committed: whoever waits for the write lock gets it.
    pub async fn share_as_told(&self, fid: FileId) {
        self.share(fid, Asked::ByProgram).await;
    }

    /// Lets the lock of a file go if another client waits for it and nothing has to be committed.
    pub(super) async fn share(&self, fid: FileId, asked: Asked) {
        if !self.inner.locks.is_wanted(fid) {
            return;
        }
        let Some(Working { copy }) = self.working(fid) else { return };
        // No commit is under way meanwhile, and no open takes the lock up.
        let mut right = copy.right.lock().await;
        if right.pending.is_some() || !self.inner.locks.is_wanted(fid) || !copy.let_go(asked) {
            return;
        }
        right.grant = None;
        self.inner.session.metrics().count(Counter::FileShared);
        self.inner.locks.settle(fid, Event::LetGo).await;
    }

    /// Takes the lock of a shared file up again; its working copy must be of the version that the
    /// answer names. False if it is not, or does not stand for its file any more.
    ///
    /// # Errors
    /// `Malformed`; `Unavailable` if the outcome of an earlier commit cannot be found out.
    pub async fn take_up(
        &self,
        intent: &WriteIntent,
        working: &Working,
        reply: &OpenReply,
    ) -> Result<bool, FsError> {
        let Some(grant) = &reply.write else {
            return Err(FsError::malformed("open for writing brought no lock"));
        };
        let copy = &working.copy;
        let mut right = copy.right.lock().await;
        self.settle_pending(copy, &mut right).await?;
        if !self.is_live(copy) || reply.attr.data_version > working.base() {
            return Ok(false);
        }
        right.grant = Some(grant.clone());
        right.placement = Some(reply.placement.clone());
        copy.set_has_lock();
        self.lock_event(intent.fid(), Event::Granted(grant.token));
        Ok(true)
    }

    /// The file of a shared working copy is gone everywhere: changes go nowhere, and that is right.
    pub async fn give_up_removed(&self, working: &Working) {
        let _right = working.copy.right.lock().await;
        self.vanish(&working.copy);
        working.copy.set_has_lock();
    }

    /// Brings a newer version into the working copy of a shared file. False if the copy does not
    /// stand for the file any more: what was stored to it through a mapping meanwhile has become a
    /// conflict.
    ///
    /// # Errors
    /// Those of the cache. The copy is then not to be used before it is refreshed.
    pub async fn refresh(
        &self,
        working: &Working,
        newest: CleanFile,
    ) -> Result<bool, ContentError> {
        let copy = &working.copy;
        let mut right = copy.right.lock().await;
        self.settle_pending(copy, &mut right).await?;
        if !self.is_live(copy) {
            return Ok(false);
        }
        if copy.has_lock() || newest.version <= working.base() {
            return Ok(true);
        }
        let base = Content { version: newest.version, manifest: Arc::clone(&newest.manifest) };
        let (current, fresh) = (newest.version, base.clone());
        let changing = Arc::clone(copy);
        let change = move || {
            let known = changing.known();
            changing.replace(fresh, || patch(&changing, &known, &newest))
        };
        let replaced = tokio::task::spawn_blocking(change).await;
        let replaced = replaced.map_err(|error| FsError::unavailable(error.to_string()))?;
        match replaced {
            Ok(true) => {}
            Ok(false) => {
                self.detach(copy, FsError::Conflict { current })?;
                return Ok(false);
            }
            // Tried again by the next open, lock or write, none of which succeeds before.
            Err(error) => return Err(error.into()),
        }
        self.inner.session.metrics().count(Counter::SharedRefreshed);
        let state = State::Working { base, token: Default::default() };
        self.inner.cache.record(&copy.file, &copy.origin, state, None)?;
        Ok(true)
    }
}

impl Working {
    /// The version that the changes are on top of, whole.
    pub fn base_file(&self) -> CleanFile {
        let Content { version, manifest } = self.copy.facts().base.clone();
        CleanFile { file: Arc::clone(&self.copy.file), version, manifest }
    }
}

impl Copy {
    /// What of its content is known to be where.
    fn known(&self) -> HashMap<u64, Extent> {
        let facts = self.facts();
        if facts.is_torn { HashMap::new() } else { placed(&facts.base.manifest).collect() }
    }
}

/// Writes what is new of a version into a copy of the one before.
fn patch(copy: &Copy, known: &HashMap<u64, Extent>, newest: &CleanFile) -> Result<(), CacheError> {
    for (offset, extent) in placed(&newest.manifest) {
        if known.get(&offset) == Some(&extent) {
            continue;
        }
        let stretch = offset..offset + extent.length();
        copy.cache.copy((&newest.file, stretch), (&copy.file, offset))?;
    }
    cut(&copy.file, newest.manifest.size())
}

fn placed(manifest: &Manifest) -> impl Iterator<Item = (u64, Extent)> + '_ {
    manifest.extents.iter().scan(0, |offset, extent| {
        let place = *offset;
        *offset += extent.length();
        Some((place, *extent))
    })
}

fn cut(file: &CacheFile, size: u64) -> Result<(), CacheError> {
    let result = file.writer().and_then(|writer| writer.set_len(size));
    let path = file.path().to_owned();
    result.map_err(|source| CacheError::Io { what: "cannot size cache file", path, source })
}
