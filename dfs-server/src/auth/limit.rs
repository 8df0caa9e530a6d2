//! How often somebody may guess: failed logins are counted for each user and for each peer, and
//! after a few free ones every further guess has to wait longer.
//!
//! Names of users that do not exist are counted like any other, so the limit tells nobody who
//! exists. A guess is counted before it is judged and forgiven if it was right: guesses made at
//! once, or cut off by their sender, count as well. A user under attack waits at most
//! [`DELAY_SECS_MAX`] between tries: that is the price, and no way to lock somebody out for good.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;

use crate::secret;

/// Failures without a delay. A peer may be many users behind one address.
const USER_FREE: u32 = 5;
const PEER_FREE: u32 = 20;

/// Longest delay; the first is one second, and each is twice the one before.
pub const DELAY_SECS_MAX: u64 = 60;

/// After so long without a failure the earlier ones are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// Most users and peers that failures are remembered of.
///
/// Why: 16 Ki entries are 1 MiB. If there are more, the one that failed longest ago is forgotten;
/// pushing an entry out takes as many password checks, minutes of work for this server, by when its
/// delay is over anyway.
const ENTRIES_MAX: usize = 16 << 10;

/// One guess: as whom, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    user: EntryKey,
    peer: EntryKey,
}

/// Of fixed size, whatever the peer sent as a name.
type EntryKey = [u8; 32];

impl Attempt {
    pub fn new(user: &str, peer: IpAddr) -> Attempt {
        let key = |kind: &[u8], what: &[u8]| secret::sha256(&[kind, what].concat());
        let peer = match peer.to_canonical() {
            IpAddr::V4(address) => key(b"v4:", &address.octets()),
            // One household or host has all of a /64.
            IpAddr::V6(address) => key(b"v6:", &network(address)),
        };
        Attempt { user: key(b"user:", user.as_bytes()), peer }
    }

    fn limits(&self) -> [(EntryKey, u32); 2] {
        [(self.user, USER_FREE), (self.peer, PEER_FREE)]
    }
}

fn network(address: Ipv6Addr) -> [u8; 8] {
    *address.octets().first_chunk().expect("an IPv6 address has 16 bytes")
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// On the boottime clock.
    last: Duration,
}

impl Failures {
    /// When the next guess is allowed.
    fn next(&self, free: u32) -> Duration {
        match self.count.checked_sub(free) {
            None => Duration::ZERO,
            Some(beyond) => {
                let secs = 1u64.checked_shl(beyond).unwrap_or(u64::MAX).min(DELAY_SECS_MAX);
                self.last + Duration::from_secs(secs)
            }
        }
    }

    fn is_forgotten(&self, now: Duration) -> bool {
        now >= self.last + FORGOTTEN_AFTER
    }
}

/// Counts failed logins.
#[derive(Debug, Default)]
pub struct LoginLimit {
    entries: Mutex<HashMap<EntryKey, Failures>>,
}

impl LoginLimit {
    /// Whether a guess is allowed at `now` (boottime).
    ///
    /// # Errors
    /// `RateLimited` with the time until it is.
    pub fn check(&self, attempt: &Attempt, now: Duration) -> Result<(), FsError> {
        check(&self.entries(), attempt, now)
    }

    /// As [`LoginLimit::check`]; if the guess is allowed it is counted as failed.
    pub fn begin(&self, attempt: &Attempt, now: Duration) -> Result<(), FsError> {
        let mut entries = self.entries();
        check(&entries, attempt, now)?;
        for (key, _) in attempt.limits() {
            make_room(&mut entries, &key, now);
            let entry = entries.entry(key).or_insert(Failures { count: 0, last: now });
            let before = if entry.is_forgotten(now) { 0 } else { entry.count };
            *entry = Failures { count: before.saturating_add(1), last: now };
        }
        Ok(())
    }

    /// The guess was right: the user has no failures, the peer one less.
    pub fn forgive(&self, attempt: &Attempt) {
        let mut entries = self.entries();
        entries.remove(&attempt.user);
        if let Some(peer) = entries.get_mut(&attempt.peer) {
            peer.count = peer.count.saturating_sub(1);
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<EntryKey, Failures>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(
    entries: &HashMap<EntryKey, Failures>,
    attempt: &Attempt,
    now: Duration,
) -> Result<(), FsError> {
    let waits = attempt.limits().into_iter().filter_map(|(key, free)| {
        let failures = entries.get(&key).filter(|failures| !failures.is_forgotten(now))?;
        Some(failures.next(free).saturating_sub(now))
    });
    let wait = waits.max().unwrap_or_default();
    if wait.is_zero() {
        return Ok(());
    }
    let retry_after_secs = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    Err(FsError::RateLimited { retry_after_secs })
}

fn make_room(entries: &mut HashMap<EntryKey, Failures>, key: &EntryKey, now: Duration) {
    if entries.len() < ENTRIES_MAX || entries.contains_key(key) {
        return;
    }
    entries.retain(|_, failures| !failures.is_forgotten(now));
    if entries.len() < ENTRIES_MAX {
        return;
    }
    let oldest = entries.iter().min_by_key(|(_, failures)| failures.last).map(|(key, _)| *key);
    if let Some(oldest) = oldest {
        entries.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const START: Duration = Duration::from_secs(1000);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn five_failures_are_free_and_then_the_delay_doubles_up_to_a_minute() {
        let limit = LoginLimit::default();
        let attempt = Attempt::new("anna", HOME);
        let mut now = START;
        for _ in 0..5 {
            assert_eq!(limit.begin(&attempt, now), Ok(()));
        }
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            let refused = Err(FsError::RateLimited { retry_after_secs: delay });
            assert_eq!(limit.begin(&attempt, now), refused);
            now += secs(u64::from(delay)) - Duration::from_millis(1);
            assert_eq!(
                limit.check(&attempt, now),
                Err(FsError::RateLimited { retry_after_secs: 1 })
            );
            now += Duration::from_millis(1);
            assert_eq!(limit.begin(&attempt, now), Ok(()));
        }
    }

    #[test]
    fn the_limit_follows_the_user_across_addresses() {
        let limit = LoginLimit::default();
        for last in 0..5 {
            let peer = IpAddr::from([10, 0, 0, last]);
            limit.begin(&Attempt::new("anna", peer), START).unwrap();
        }
        assert!(limit.begin(&Attempt::new("anna", IpAddr::from([10, 9, 9, 9])), START).is_err());
        assert!(limit.begin(&Attempt::new("ben", IpAddr::from([10, 9, 9, 9])), START).is_ok());
    }

    #[test]
    fn the_limit_follows_the_address_across_users() {
        let limit = LoginLimit::default();
        let home: IpAddr = "2001:db8::1".parse().unwrap();
        for user in 0..20 {
            limit.begin(&Attempt::new(&format!("u{user}"), home), START).unwrap();
        }
        let same_network: IpAddr = "2001:db8::ffff".parse().unwrap();
        let other_network: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        assert!(limit.begin(&Attempt::new("new", same_network), START).is_err());
        assert!(limit.begin(&Attempt::new("new", other_network), START).is_ok());
    }

    #[test]
    fn success_clears_the_user_and_time_clears_everything() {
        let limit = LoginLimit::default();
        let attempt = Attempt::new("anna", HOME);
        for _ in 0..50 {
            limit.begin(&attempt, START).unwrap();
            limit.forgive(&attempt);
        }
        for _ in 0..5 {
            limit.begin(&attempt, START).unwrap();
        }
        assert!(limit.check(&attempt, START).is_err());
        assert!(limit.check(&attempt, START + FORGOTTEN_AFTER).is_ok());
        limit.begin(&attempt, START + FORGOTTEN_AFTER).unwrap();
        assert!(limit.check(&attempt, START + FORGOTTEN_AFTER).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest_first() {
        let limit = LoginLimit::default();
        let (oldest, newest) = (Attempt::new("first", HOME), Attempt::new("last", HOME));
        limit.begin(&oldest, START).unwrap();
        // Distinct users from distinct addresses: two new entries each.
        for step in 1..=(ENTRIES_MAX / 2) as u32 {
            let now = START + Duration::from_millis(u64::from(step));
            let peer = IpAddr::V4(std::net::Ipv4Addr::from_bits(step));
            limit.begin(&Attempt::new(&format!("u{step}"), peer), now).unwrap();
        }
        limit.begin(&newest, START + secs(60)).unwrap();
        assert_eq!(limit.entries().len(), ENTRIES_MAX);
        assert!(!limit.entries().contains_key(&oldest.user));
        assert!(limit.entries().contains_key(&newest.user));
    }
}
