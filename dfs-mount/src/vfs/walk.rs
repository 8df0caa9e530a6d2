//! When the opens of a file began: the lookups that led to them.
//!
//! An open that cannot have the version which its node shows is answered `Stale`, and the kernel
//! tries it again, once, from the lookup. A file that changes all the time may be opened by another
//! reader in between, with yet another version, and the program would see the error. But for a
//! reader any version is good that was current at some time after its open had begun; so it may
//! have the one that the other reader found, if that one asked later than this open's first lookup.
//! One of these for each file, shared by its nodes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest time between a lookup and the open that it was for, or between a refusal and the next
/// lookup. Why: within one system call the kernel asks at once; what comes later is another call.
const WALK_TIME_MAX: Duration = Duration::from_millis(100);

/// Walks remembered for one file. Why so few: each ends within a moment.
const WALKS_MAX: usize = 32;

/// One thread on its way to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    pid: u32,
    /// No later than its first lookup was answered, and after the open had begun. On
    /// `Clock::boottime`.
    pub(crate) since: Duration,
    last: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LookedUp,
    /// Its open was refused: the next lookup belongs to it.
    Refused,
    /// That lookup has come. The kernel gives up after this try.
    LookedUpAgain,
}

/// The walks to one file.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    walks: Mutex<VecDeque<Walk>>,
}

impl Walks {
    /// Thread `pid` was told of the file at the time `now`.
    pub(crate) fn looked_up(&self, pid: u32, now: Duration) {
        if pid == 0 {
            return;
        }
        let mut walks = self.walks();
        let earlier = take(&mut walks, pid, now).filter(|walk| walk.state == State::Refused);
        let walk = match earlier {
            Some(walk) => Walk { last: now, state: State::LookedUpAgain, ..walk },
            None => Walk { pid, since: now, last: now, state: State::LookedUp },
        };
        if walks.len() >= WALKS_MAX {
            walks.pop_front();
        }
        walks.push_back(walk);
    }

    /// The walk that ends with an open by thread `pid`.
    pub(crate) fn end(&self, pid: u32, now: Duration) -> Option<Walk> {
        take(&mut self.walks(), pid, now).filter(|walk| walk.state != State::Refused)
    }

    /// The open was answered `Stale`.
    pub(crate) fn refuse(&self, walk: Walk, now: Duration) {
        if walk.state == State::LookedUp {
            self.walks().push_back(Walk { last: now, state: State::Refused, ..walk });
        }
    }

    fn walks(&self) -> MutexGuard<'_, VecDeque<Walk>> {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(walks: &mut VecDeque<Walk>, pid: u32, now: Duration) -> Option<Walk> {
    let at = walks.iter().position(|walk| walk.pid == pid)?;
    walks.remove(at).filter(|walk| now < walk.last + WALK_TIME_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn an_open_belongs_to_the_lookup_of_its_own_thread_just_before() {
        let walks = Walks::default();
        walks.looked_up(7, ms(1));
        walks.looked_up(8, ms(2));
        assert_eq!(walks.end(7, ms(3)).unwrap().since, ms(1));
        assert_eq!(walks.end(7, ms(3)), None, "the next open has had no lookup");
        assert_eq!(walks.end(8, ms(2) + WALK_TIME_MAX), None, "that was another call");
        walks.looked_up(0, ms(1));
        assert_eq!(walks.end(0, ms(1)), None, "the kernel itself is many");
    }

    #[test]
    fn a_second_try_began_with_the_first_and_a_third_is_another_call() {
        let walks = Walks::default();
        walks.looked_up(7, ms(1));
        walks.refuse(walks.end(7, ms(2)).unwrap(), ms(2));
        walks.looked_up(7, ms(3));
        let again = walks.end(7, ms(4)).unwrap();
        assert_eq!(again.since, ms(1));
        walks.refuse(again, ms(5));
        walks.looked_up(7, ms(6));
        assert_eq!(walks.end(7, ms(7)).unwrap().since, ms(6));
    }

    #[test]
    fn walks_that_never_end_are_forgotten() {
        let walks = Walks::default();
        (1..=10 * WALKS_MAX as u32).for_each(|pid| walks.looked_up(pid, ms(1)));
        assert_eq!(walks.walks().len(), WALKS_MAX);
    }
}
