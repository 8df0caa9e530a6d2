//! Calls between roles that live in one process: the same frames, without a socket.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::transport::{Call, Dial, Peer, ReplyBody, Transport, TransportError, TransportFault};

/// The receiving end: a server's router.
pub trait Local: Send + Sync {
    /// Answers a call of the own process. Failures of the operation are part of the reply.
    fn answer(
        &self,
        path: &str,
        frame: Bytes,
        payload: Vec<Bytes>,
    ) -> BoxFuture<'static, ReplyBody>;
}

/// Carries calls to a router of the same process. Made before the router is, bound once it exists.
#[derive(Clone, Default)]
pub struct InProcess {
    local: Arc<OnceLock<Arc<dyn Local>>>,
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl InProcess {
    /// Sets the receiver. A second call changes nothing.
    pub fn bind(&self, local: Arc<dyn Local>) {
        // The first binding stays: there is one router in a process.
        let _ = self.local.set(local);
    }
}

impl Transport for InProcess {
    fn send(&self, call: Call) -> BoxFuture<'static, Result<ReplyBody, TransportError>> {
        let local = self.local.get().cloned();
        Box::pin(async move {
            let whom = "own process";
            let Some(local) = local else {
                let what = "the services are not started yet";
                return Err(TransportError::new(TransportFault::Unreachable, whom, what));
            };
            let answer = local.answer(call.path, call.frame, call.payload);
            tokio::time::timeout(call.timeout, answer).await.map_err(|_| {
                TransportError::new(TransportFault::TimedOut, whom, "no answer in time")
            })
        })
    }
}

impl Dial for InProcess {
    fn dial(&self, _peer: &Peer) -> Result<Arc<dyn Transport>, TransportError> {
        Ok(Arc::new(self.clone()))
    }
}
