//! Memory for contents that pass through the JSON face.
//!
//! A budget of its own: whatever is done with the face, mounts are not kept from storing. Taken
//! only for requesters whose ticket was accepted.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory for all contents that are being sent or received. Units: bytes.
///
/// Why 256 MiB: 32 uploads or 85 downloads at a time.
const BUDGET_BYTES: usize = 256 << 20;

/// What one permit stands for. Units: bytes.
const PERMIT_BYTES: usize = 4096;

/// How long a request waits for memory. Why: as long as for an operation.
const WAIT: Duration = Duration::from_secs(30);

/// Memory that requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    permits: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { permits: Arc::new(Semaphore::new(BUDGET_BYTES / PERMIT_BYTES)) }
    }
}

impl Budget {
    /// Memory for `bytes` bytes, until the permit is dropped.
    ///
    /// # Errors
    /// `Unavailable` if others hold too much for too long.
    pub async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, FsError> {
        let count = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.permits).acquire_many_owned(count);
        match tokio::time::timeout(WAIT, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                Err(FsError::unavailable("memory for another content: too many at once"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_the_budget_taken_waits_and_is_answered() {
        let budget = Budget::default();
        let all = budget.take(BUDGET_BYTES).await.unwrap();
        assert!(matches!(budget.take(1).await, Err(FsError::Unavailable { .. })));
        drop(all);
        drop(budget.take(BUDGET_BYTES).await.unwrap());
    }
}
