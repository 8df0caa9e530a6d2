//! Write locks on their way back to the owner, with heartbeats or in requests of their own.

use std::collections::HashSet;
use std::sync::Arc;

use dfs_proto::id::FileId;
use dfs_proto::version::FencingToken;

use super::{Core, Session};

/// Locks that go back with heartbeats.
#[derive(Debug, Default)]
pub(super) struct Yielded {
    pub(super) waiting: Vec<(FileId, FencingToken)>,
    /// In the heartbeat that is under way.
    pub(super) travelling: HashSet<FileId>,
    /// In requests of their own that are under way.
    pub(super) returning: HashSet<FileId>,
    /// Creations under way, and the files whose locks were on their way back meanwhile.
    creations: usize,
    since_creations: HashSet<FileId>,
}

/// Creations under way: which locks go back meanwhile is remembered.
///
/// Why: a creation may find an existing file and be answered with its lock, and only the answer
/// says which file that is. A lock that is on its way back by then is not to be relied on.
#[derive(Debug)]
pub struct Creating {
    core: Arc<Core>,
}

impl Creating {
    /// Whether a lock of the file was on its way back at some time since this creation began.
    pub fn has_gone_back(&self, fid: FileId) -> bool {
        self.core.yielded().since_creations.contains(&fid)
    }
}

impl Drop for Creating {
    fn drop(&mut self) {
        let mut yielded = self.core.yielded();
        yielded.creations -= 1;
        if yielded.creations == 0 {
            yielded.since_creations.clear();
        }
    }
}

impl Yielded {
    pub(super) fn depart(&mut self) -> Vec<(FileId, FencingToken)> {
        let departing = std::mem::take(&mut self.waiting);
        self.travelling = departing.iter().map(|(fid, _)| *fid).collect();
        departing.iter().for_each(|(fid, _)| self.note(*fid));
        departing
    }

    pub(super) fn note(&mut self, fid: FileId) {
        if self.creations > 0 {
            self.since_creations.insert(fid);
        }
    }
}

impl Session {
    /// To be called before a creation is sent, and kept until its answer is acted on.
    pub fn begin_creation(&self) -> Creating {
        let mut yielded = self.core.yielded();
        yielded.creations += 1;
        let Yielded { travelling, returning, since_creations, .. } = &mut *yielded;
        since_creations.extend(travelling.iter().chain(&*returning));
        drop(yielded);
        Creating { core: Arc::clone(&self.core) }
    }
}
