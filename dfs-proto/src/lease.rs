//! Leases: time-limited rights of a client, and the arithmetic both sides do on them.

use std::time::Duration;

use crate::limits::LEASE_USE_PERCENT;

/// The end of a lease as its *holder* may use it.
///
/// Counted from the sending of the request that renewed it, less the drift allowance: so it ends
/// before the giver's, who counts from the sending of the reply.
pub fn holder_deadline(sent_at: Duration, lease: Duration) -> Duration {
    sent_at + lease * LEASE_USE_PERCENT / 100
}

/// How often a holder renews: three renewals may be lost before the lease ends.
pub fn heartbeat_interval(lease: Duration) -> Duration {
    lease / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_stops_before_the_giver_does() {
        let (sent, answered) = (Duration::from_secs(100), Duration::from_secs(100));
        let lease = Duration::from_secs(10);
        assert!(holder_deadline(sent, lease) + Duration::from_millis(999) < answered + lease);
        assert!(heartbeat_interval(lease) * 2 < holder_deadline(Duration::ZERO, lease));
    }
}
