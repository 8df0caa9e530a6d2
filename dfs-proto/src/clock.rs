//! Time as a seam: the only reader of clocks in all three crates.
//!
//! Leases run on CLOCK_BOOTTIME, which goes on during suspend; file times are wall-clock.

use std::fmt::Debug;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::attr::Timestamp;

#[cfg(feature = "client")]
pub use sleep::Sleep;

/// Where time comes from.
pub trait Clock: Send + Sync + Debug + 'static {
    /// Time since the machine was started, suspend included. Only differences mean something.
    fn boottime(&self) -> Duration;

    /// Wall-clock time.
    fn wall(&self) -> Timestamp;

    /// Waits until `boottime` has reached `deadline`. Cancel-safe.
    #[cfg(feature = "client")]
    fn sleep_until(&self, deadline: Duration) -> Sleep;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boottime(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME").into()
    }

    fn wall(&self) -> Timestamp {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("Linux has CLOCK_REALTIME");
        Timestamp::new(now.tv_sec(), u32::try_from(now.tv_nsec()).unwrap_or(0))
    }

    #[cfg(feature = "client")]
    fn sleep_until(&self, deadline: Duration) -> Sleep {
        let clock = *self;
        Box::pin(async move {
            loop {
                let left = deadline.saturating_sub(clock.boottime());
                if left.is_zero() {
                    return;
                }
                // tokio's timer stands still during suspend: look at the real clock now and then.
                tokio::time::sleep(left.min(SLEEP_STEP_MAX)).await;
            }
        })
    }
}

/// Longest sleep between two looks at the clock.
#[cfg(feature = "client")]
const SLEEP_STEP_MAX: Duration = Duration::from_secs(5);

#[cfg(feature = "client")]
mod sleep {
    /// A wait for a point in time.
    pub type Sleep = futures_util::future::BoxFuture<'static, ()>;
}

#[cfg(feature = "testing")]
pub use manual::ManualClock;

#[cfg(feature = "testing")]
mod manual {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::{Clock, Sleep};
    use crate::attr::Timestamp;

    /// A clock that stands still until a test moves it.
    #[derive(Clone, Debug)]
    pub struct ManualClock {
        now: Arc<watch::Sender<Duration>>,
        /// What the sleepers wait for, one entry for each.
        deadlines: Arc<watch::Sender<Vec<Duration>>>,
    }

    /// Wall-clock seconds at boottime zero of every manual clock.
    const WALL_START_SECS: i64 = 1_700_000_000;

    impl Default for ManualClock {
        fn default() -> ManualClock {
            let now = watch::Sender::new(Duration::from_secs(1000));
            ManualClock { now: Arc::new(now), deadlines: Arc::default() }
        }
    }

    impl ManualClock {
        /// Moves time forward and wakes every sleeper whose deadline has come.
        pub fn advance(&self, step: Duration) {
            self.now.send_modify(|now| *now += step);
        }

        /// Waits, at most ten seconds, until somebody sleeps until exactly `deadline`: a task that
        /// does nothing else meanwhile will not act sooner.
        pub async fn sleeper_until(&self, deadline: Duration) {
            let mut deadlines = self.deadlines.subscribe();
            let seen = deadlines.wait_for(|deadlines| deadlines.contains(&deadline));
            let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
            seen.expect("somebody sleeps within 10 s").expect("this clock keeps the sender");
        }
    }

    /// Takes its deadline out of the list when the sleep is over or given up.
    struct Sleeper {
        deadlines: Arc<watch::Sender<Vec<Duration>>>,
        deadline: Duration,
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.deadlines.send_modify(|deadlines| {
                let own = deadlines.iter().position(|deadline| *deadline == self.deadline);
                deadlines.swap_remove(own.expect("a sleeper is in the list"));
            });
        }
    }

    impl Clock for ManualClock {
        fn boottime(&self) -> Duration {
            *self.now.borrow()
        }

        fn wall(&self) -> Timestamp {
            let now = self.boottime();
            let secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX / 2);
            Timestamp::new(WALL_START_SECS + secs, now.subsec_nanos())
        }

        fn sleep_until(&self, deadline: Duration) -> Sleep {
            let mut now = self.now.subscribe();
            let deadlines = Arc::clone(&self.deadlines);
            Box::pin(async move {
                deadlines.send_modify(|deadlines| deadlines.push(deadline));
                let _sleeper = Sleeper { deadlines, deadline };
                // An error means that the clock is gone, and with it everybody who could wake us.
                if now.wait_for(|now| *now >= deadline).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        }
    }
}
