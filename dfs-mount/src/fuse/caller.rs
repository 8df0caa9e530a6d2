//! Who asks: the uid and gid that the kernel names, and the groups that it does not.
//!
//! Supplementary groups are read from `/proc`, which costs more than the rest of a warm request
//! does; so they are kept for a second, by thread, uid and gid. A program that changes its groups
//! changes its uid or gid with them (login, su, sudo), or is root, of whom no groups are asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::limits::GROUP_COUNT_MAX;

use crate::sys::ProcessStatus;
use crate::vfs::Caller;

/// How long groups are believed.
const BELIEVED: Duration = Duration::from_secs(1);

/// Most callers remembered. Why: a build starts thousands of short programs a second.
const CALLERS_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    uid: u32,
    gid: u32,
}

#[derive(Debug)]
struct Known {
    groups: Vec<u32>,
    until: Duration,
}

/// The callers of the last second.
#[derive(Debug)]
pub(super) struct Callers {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Key, Known>>,
}

impl Callers {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Callers {
        Callers { clock, known: Mutex::default() }
    }

    /// The caller that the kernel names by these.
    pub(super) fn caller(&self, uid: u32, gid: u32, pid: u32) -> Caller {
        let groups = if uid == 0 { Vec::new() } else { self.groups(Key { pid, uid, gid }) };
        Caller { identity: Identity { uid, gid, groups }, pid }
    }

    fn groups(&self, key: Key) -> Vec<u32> {
        let now = self.clock.boottime();
        if let Some(known) = self.lock().get(&key).filter(|known| known.until > now) {
            return known.groups.clone();
        }
        let mut groups = ProcessStatus::of(key.pid).map(|it| it.groups).unwrap_or_default();
        // The server refuses longer lists: better some rights too few than none.
        groups.truncate(GROUP_COUNT_MAX);
        let mut known = self.lock();
        if known.len() >= CALLERS_MAX {
            known.retain(|_, known| known.until > now);
        }
        if known.len() < CALLERS_MAX {
            known.insert(key, Known { groups: groups.clone(), until: now + BELIEVED });
        }
        groups
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::clock::ManualClock;

    use super::*;

    fn own_groups() -> Vec<u32> {
        ProcessStatus::of(std::process::id()).unwrap().groups
    }

    #[test]
    fn a_caller_has_the_groups_of_its_process_and_root_none() {
        let callers = Callers::new(Arc::new(ManualClock::default()));
        let pid = std::process::id();
        assert_eq!(callers.caller(1000, 100, pid).identity.groups, own_groups());
        assert_eq!(callers.caller(0, 0, pid).identity, Identity::ROOT);
        assert!(callers.caller(1000, 100, 0).identity.groups.is_empty());
    }

    #[test]
    fn groups_are_believed_for_a_second_and_then_read_again() {
        let clock = ManualClock::default();
        let callers = Callers::new(Arc::new(clock.clone()));
        let key = Key { pid: std::process::id(), uid: 1000, gid: 100 };
        let until = clock.boottime() + BELIEVED;
        callers.lock().insert(key, Known { groups: vec![4242], until });
        assert_eq!(callers.groups(key), [4242]);
        clock.advance(BELIEVED);
        assert_eq!(callers.groups(key), own_groups());
    }

    #[test]
    fn the_number_of_callers_remembered_is_bounded() {
        let clock = ManualClock::default();
        let callers = Callers::new(Arc::new(clock.clone()));
        for gid in 0..2 * CALLERS_MAX as u32 {
            callers.groups(Key { pid: 0, uid: 1, gid });
        }
        assert_eq!(callers.lock().len(), CALLERS_MAX);
        clock.advance(2 * BELIEVED);
        callers.groups(Key { pid: 0, uid: 2, gid: 0 });
        assert_eq!(callers.lock().len(), 1);
    }
}
