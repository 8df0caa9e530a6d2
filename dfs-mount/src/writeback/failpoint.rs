//! Named points at which a test may stop the world, as a kill of the process would.
//!
//! The journal's order is the crash contract; these are the places between its steps. Without
//! feature `testing` nothing of this exists at run time.

#[cfg(feature = "testing")]
use std::sync::{Arc, Mutex, PoisonError};

/// A step of write-back after which a kill may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The working copy is journalled, nobody was told.
    AfterWorking,
    /// The closed content is journalled, nothing final was sent.
    AfterSending,
    /// The commit was answered, the answer is not journalled.
    AfterStore,
    /// The answer is journalled, nobody was told.
    AfterRecord,
}

/// The armed point, if any. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FailPoints {
    #[cfg(feature = "testing")]
    armed: Arc<Mutex<Option<Point>>>,
    #[cfg(feature = "testing")]
    reached: Arc<tokio::sync::Notify>,
}

impl FailPoints {
    /// Whoever comes to `point` from now on stays there for ever.
    #[cfg(feature = "testing")]
    pub fn arm(&self, point: Point) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(point);
    }

    #[cfg(feature = "testing")]
    pub fn disarm(&self) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until somebody stays at the armed point.
    #[cfg(feature = "testing")]
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    #[cfg(feature = "testing")]
    pub(super) async fn pass(&self, point: Point) {
        let armed = *self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if armed == Some(point) {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }

    #[cfg(not(feature = "testing"))]
    pub(super) async fn pass(&self, _point: Point) {}
}
