//! Passwords: Argon2id, one cost for everybody.
//!
//! A check does the same work whether the account exists or not, so time does not tell. Both
//! functions take tens of milliseconds and [`MEMORY_KIB`] of memory: callers run them on threads
//! that may block, and bound how many run at once.

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use dfs_proto::FsError;
use dfs_proto::credential::Secret;
use dfs_proto::limits::{PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN};

/// Cost of one hash. Source: OWASP Password Storage Cheat Sheet, Argon2id with 19 MiB, 2 passes.
pub const MEMORY_KIB: u32 = 19 * 1024;
pub const PASSES: u32 = 2;
pub const LANES: u32 = 1;

/// Units: bytes. Source: RFC 9106, section 3.1.
pub const SALT_BYTES: usize = 16;

/// A password's hash in PHC text form, which names its salt and cost.
pub type PasswordText = String;

/// Whether a password may be an account's.
///
/// # Errors
/// `InvalidArgument` tells the bounds.
pub fn check_strength(password: &Secret) -> Result<(), FsError> {
    match password.expose().len() {
        PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX => Ok(()),
        _ => Err(FsError::invalid(format!(
            "password: its length in bytes is not {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX}; it"
        ))),
    }
}

/// What is stored of a password. Blocks.
pub fn hash(password: &Secret, salt: [u8; SALT_BYTES]) -> PasswordText {
    let hashed: PasswordHash = argon2id()
        .hash_password_with_salt(password.expose().as_bytes(), &salt)
        .expect("cost, salt and password are within Argon2's bounds");
    hashed.to_string()
}

/// Whether `password` is the one that was stored; `None` for an account that does not exist, which
/// costs as much. Blocks.
pub fn verify(password: &Secret, stored: Option<&str>) -> bool {
    let parsed = stored.and_then(|text| PasswordHash::new(text).ok());
    match parsed {
        Some(parsed) => argon2id().verify_password(password.expose().as_bytes(), &parsed).is_ok(),
        None => {
            // Hidden from the optimiser: work whose result nobody reads might be left out.
            std::hint::black_box(hash(password, [0; SALT_BYTES]));
            false
        }
    }
}

/// Most hashes at once. Why: they must leave the machine to the other services, and memory to all.
const HASHES_AT_ONCE: usize = 2;

/// Most callers that wait for their turn. Why: the last of them waits about two seconds.
const WAITING_MAX: usize = 128;

/// Where hashing happens: a few at once, some waiting, more are told to come back.
#[derive(Clone, Debug)]
pub struct HashDesk {
    entrance: Arc<Semaphore>,
    seats: Arc<Semaphore>,
}

impl Default for HashDesk {
    fn default() -> HashDesk {
        HashDesk {
            entrance: Arc::new(Semaphore::new(HASHES_AT_ONCE + WAITING_MAX)),
            seats: Arc::new(Semaphore::new(HASHES_AT_ONCE)),
        }
    }
}

impl HashDesk {
    /// Runs `work`, which hashes, on a thread that may block. Once begun it runs to its end also if
    /// this future is dropped, and keeps its seat until then.
    ///
    /// # Errors
    /// `RateLimited` if too many wait; `Unavailable` if the server is ending.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FsError> {
        let ending = || FsError::unavailable("this server is ending");
        let entered = Arc::clone(&self.entrance).try_acquire_owned();
        let entered = entered.map_err(|_| FsError::RateLimited { retry_after_secs: 2 })?;
        let seat = Arc::clone(&self.seats).acquire_owned().await.map_err(|_| ending())?;
        let seated = move || {
            let done = work();
            drop((seat, entered));
            done
        };
        tokio::task::spawn_blocking(seated).await.map_err(|_| ending())
    }
}

fn argon2id() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the constants are in bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_verifies_against_its_own_hash_only() {
        let stored = hash(&Secret::new("correct horse"), [7; SALT_BYTES]);
        assert!(verify(&Secret::new("correct horse"), Some(&stored)));
        assert!(!verify(&Secret::new("correct hors"), Some(&stored)));
        assert!(!verify(&Secret::new("correct horse"), None));
        assert!(!verify(&Secret::new(""), Some("not a hash")));
    }

    #[test]
    fn the_stored_form_names_algorithm_and_cost() {
        let stored = hash(&Secret::new("p"), [1; SALT_BYTES]);
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert_ne!(stored, hash(&Secret::new("p"), [2; SALT_BYTES]));
    }

    #[test]
    fn lengths_out_of_bounds_are_told() {
        for length in [0, PASSWORD_BYTES_MIN - 1, PASSWORD_BYTES_MAX + 1] {
            assert!(check_strength(&Secret::new("x".repeat(length))).is_err());
        }
        assert!(check_strength(&Secret::new("x".repeat(PASSWORD_BYTES_MIN))).is_ok());
    }
}
