//! Receiving request bodies: small ones at once, large ones only from those who may send them.
//!
//! A body that fits [`FRONT_BYTES_MAX`] is simply received: everything that strangers may ask fits.
//! Of a larger one the front is received and its envelope judged; then memory for all of it is
//! taken from a budget, and the rest received. So nobody without a ticket or a node's certificate
//! can hold the budget, by announcing bodies that never come or in any other way.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::FsError;
use dfs_proto::limits::{HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use dfs_proto::rpc::{FRAME_PREFIX_BYTES, envelope_in_front};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Channel, Router};

/// What is received of a body before its sender is judged. Units: bytes.
///
/// Why 16 KiB: the largest envelope (a ticket, a thousand groups) fits, and every connection may
/// hold this much.
const FRONT_BYTES_MAX: usize = 16 << 10;

/// Memory for larger bodies that are being received or worked on. Units: bytes.
///
/// Why 256 MiB: 32 of the largest requests, or some thousands of ordinary ones.
const BODY_BYTES_BUDGET: usize = 256 << 20;

/// What one permit of the budget stands for. Units: bytes.
const BODY_PERMIT_BYTES: usize = 4096;

const BODY_BYTES_MAX: usize = FRAME_PREFIX_BYTES + HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX;

/// How long the front and the rest of a body may take, the rest with the wait for memory.
const FRONT_TIMEOUT: Duration = Duration::from_secs(10);
const REST_TIMEOUT: Duration = Duration::from_secs(60);

/// Memory for bodies. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct BodyBudget {
    permits: Arc<Semaphore>,
}

/// A body, and the memory it was granted until this is dropped.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for BodyBudget {
    fn default() -> BodyBudget {
        BodyBudget { permits: Arc::new(Semaphore::new(BODY_BYTES_BUDGET / BODY_PERMIT_BYTES)) }
    }
}

impl BodyBudget {
    /// Receives the body of a request to `path`.
    ///
    /// # Errors
    /// `Malformed` without a length, or if the body ends before it; `TooLarge`; those of judging
    /// the sender of a large body; `TimedOut`.
    pub(super) async fn receive(
        &self,
        router: &Router,
        channel: &Channel,
        path: &str,
        mut body: Incoming,
    ) -> Result<Received, FsError> {
        let length = length_of(&body)?;
        let mut bytes = BytesMut::with_capacity(length.min(FRONT_BYTES_MAX));
        in_time(FRONT_TIMEOUT, read(&mut body, &mut bytes, length.min(FRONT_BYTES_MAX))).await?;
        if length <= FRONT_BYTES_MAX {
            return Ok(Received { bytes: bytes.freeze(), _permit: None });
        }
        router.admit_body(channel, path, &envelope_in_front(&bytes)?)?;
        let permits = u32::try_from(length / BODY_PERMIT_BYTES + 1).unwrap_or(u32::MAX);
        let rest = async {
            let permit = Arc::clone(&self.permits).acquire_many_owned(permits).await;
            bytes.reserve(length - bytes.len());
            read(&mut body, &mut bytes, length).await?;
            Ok(permit.ok())
        };
        let permit = in_time(REST_TIMEOUT, rest).await?;
        Ok(Received { bytes: bytes.freeze(), _permit: permit })
    }
}

fn length_of(body: &Incoming) -> Result<usize, FsError> {
    match body.size_hint().exact() {
        Some(length) if length <= BODY_BYTES_MAX as u64 => Ok(length as usize),
        Some(_) => {
            Err(FsError::TooLarge { what: "request body".into(), limit: BODY_BYTES_MAX as u64 })
        }
        None => Err(FsError::malformed("request without Content-Length")),
    }
}

/// Reads until at least `wanted` bytes are there.
async fn read(body: &mut Incoming, bytes: &mut BytesMut, wanted: usize) -> Result<(), FsError> {
    let failed = |error: &dyn std::fmt::Display| FsError::malformed(format!("body: {error}"));
    while bytes.len() < wanted {
        let frame = body.frame().await.ok_or_else(|| failed(&"it ends too early"))?;
        let frame = frame.map_err(|error| failed(&error))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(())
}

async fn in_time<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, FsError>>,
) -> Result<T, FsError> {
    let late = |_| Err(FsError::TimedOut { whom: "client's request body".into() });
    tokio::time::timeout(timeout, work).await.unwrap_or_else(late)
}
