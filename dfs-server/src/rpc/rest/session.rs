//! The session under which one request changes something.
//!
//! It lives as long as the request. Its id is the request's `Idempotency-Key`, if it has one: a
//! request that is repeated with the same key asks under the same op ids, and the servers answer
//! what they answered first. Closing the session gives its locks back.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::capability::MacKey;
use dfs_proto::clock::Clock;
use dfs_proto::id::SessionId;
use dfs_proto::limits::SESSION_LEASE;
use dfs_proto::session::{CloseSession, Heartbeat, OpenSession};
use hyper::HeaderMap;

use super::caller::{Caller, Request, To};
use super::refusal::Refusal;
use super::target::shown;
use crate::secret;

/// The header that makes a repeated change the same change.
const KEY_HEADER: &str = "idempotency-key";

/// Heartbeats in one lease. Why: two may be lost.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// An open session.
pub struct Standing {
    pub caller: Caller,
    pub key: MacKey,
    /// Whether the requester chose the id, so that the ops may have been run before.
    pub is_repeatable: bool,
    clock: Arc<dyn Clock>,
}

/// # Errors
/// `InvalidArgument` for a key of another form.
pub fn requested_key(headers: &HeaderMap) -> Result<Option<SessionId>, FsError> {
    let Some(value) = headers.get(KEY_HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or("(not ASCII)");
    let key = text.parse().map_err(|_| {
        let what = format!("Idempotency-Key `{}` (32 hexadecimal digits, at random)", shown(text));
        FsError::invalid(what)
    })?;
    Ok(Some(key))
}

impl Standing {
    /// # Errors
    /// Those of `session.open`.
    pub async fn open(
        caller: &Caller,
        key: Option<SessionId>,
        (volume, address): (&str, IpAddr),
        clock: Arc<dyn Clock>,
    ) -> Result<Standing, FsError> {
        let id = key.unwrap_or_else(|| SessionId(secret::random()));
        let caller = caller.in_session(id);
        let request = OpenSession { volume: volume.to_owned(), host: format!("http {address}") };
        let opened = caller.ask(To::Directory, &request).await?;
        Ok(Standing { caller, key: opened.key, is_repeatable: key.is_some(), clock })
    }

    /// Keeps the session while `work` runs, and closes it then.
    ///
    /// # Errors
    /// Those of `work`; `SessionUnknown` if the owner restarted meanwhile.
    pub async fn keep<T>(
        &self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let done = tokio::select! {
            done = work => done,
            error = self.heartbeats() => Err(error.into()),
        };
        let request =
            Request { watermark: u64::MAX, ..Request::new(To::Directory, &CloseSession {}) };
        if let Err(error) = self.caller.send(request).await {
            tracing::debug!(%error, "the session ends with its lease");
        }
        done
    }

    /// Ends only with an error that ends the session.
    async fn heartbeats(&self) -> FsError {
        loop {
            let next = self.clock.boottime() + SESSION_LEASE / HEARTBEATS_PER_LEASE;
            self.clock.sleep_until(next).await;
            let beat = Heartbeat { yielded: Vec::new() };
            match self.caller.ask(To::Directory, &beat).await {
                Err(error) if !error.is_transient() => return error,
                Err(error) => tracing::debug!(%error, "heartbeat of a request"),
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_session_id_or_refused() {
        let of = |text: &str| {
            requested_key(&HeaderMap::from_iter([(
                KEY_HEADER.parse().unwrap(),
                text.parse().unwrap(),
            )]))
        };
        assert_eq!(requested_key(&HeaderMap::new()), Ok(None));
        let key = "00112233445566778899aabbccddeeff";
        assert_eq!(of(key).unwrap().unwrap().to_string(), key);
        for wrong in ["", "1", "zz112233445566778899aabbccddeeff", &key[1..]] {
            assert!(matches!(of(wrong), Err(FsError::InvalidArgument { .. })), "{wrong}");
        }
    }
}
