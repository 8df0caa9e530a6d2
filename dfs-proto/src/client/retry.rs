//! Repeating calls: with jittered, growing delays, until a deadline.
//!
//! Safe because of the protocol: an operation either changes nothing, or carries an op id under
//! which the server runs it once, or (locks) means the same when repeated.

use std::future::Future;
use std::time::Duration;

use super::CallError;
use crate::clock::Clock;

/// When to try again, and when to stop.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    pub first_delay: Duration,
    pub delay_max: Duration,
    /// Counted from the first try; `None` tries for ever (a `hard` mount).
    pub give_up_after: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            first_delay: Duration::from_millis(20),
            delay_max: Duration::from_secs(2),
            give_up_after: Some(Duration::from_secs(30)),
        }
    }
}

/// Calls `attempt` until it succeeds, fails for good, or the policy ends. Gives it the time left
/// (at most `u32::MAX` milliseconds) so that it can set its own deadline.
///
/// # Errors
/// The last attempt's error.
pub async fn retry<T, F>(
    clock: &dyn Clock,
    policy: RetryPolicy,
    mut attempt: impl FnMut(Duration) -> F,
) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let give_up_at = policy.give_up_after.map(|wait| clock.boottime() + wait);
    let left = |now: Duration| give_up_at.map_or(ATTEMPT_MAX, |at| at.saturating_sub(now));
    let mut delay = policy.first_delay;
    loop {
        let error = match attempt(left(clock.boottime()).clamp(ATTEMPT_MIN, ATTEMPT_MAX)).await {
            Err(error) if error.is_transient() => error,
            settled => return settled,
        };
        let now = clock.boottime();
        if left(now) <= delay {
            return Err(error);
        }
        tracing::debug!(%error, ?delay, "call failed, trying again");
        clock.sleep_until(now + jitter(delay)).await;
        delay = (delay * 2).min(policy.delay_max);
    }
}

/// Shortest and longest time one attempt is given.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
const ATTEMPT_MAX: Duration = Duration::from_secs(120);

/// Half to all of `delay`, at random: so that many clients do not come back in step.
fn jitter(delay: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    delay / 2 + (delay / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
