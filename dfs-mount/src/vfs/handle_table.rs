//! Open handles by the number the kernel knows them by.
//!
//! Numbers are never handed out twice, so a late request with an old number meets `None` and never
//! somebody else's file. Nobody waits while holding the table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The handles of one kind.
#[derive(Debug)]
pub(crate) struct HandleTable<T> {
    by_number: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for HandleTable<T> {
    fn default() -> HandleTable<T> {
        HandleTable { by_number: RwLock::default(), next: AtomicU64::new(1) }
    }
}

impl<T> HandleTable<T> {
    /// Keeps a handle and says its number.
    pub(crate) fn insert(&self, handle: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut by_number = self.by_number.write().unwrap_or_else(PoisonError::into_inner);
        by_number.insert(number, Arc::new(handle));
        number
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        let by_number = self.by_number.read().unwrap_or_else(PoisonError::into_inner);
        by_number.get(&number).cloned()
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        let mut by_number = self.by_number.write().unwrap_or_else(PoisonError::into_inner);
        by_number.remove(&number)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_number.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Every number in use, in no order.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let by_number = self.by_number.read().unwrap_or_else(PoisonError::into_inner);
        by_number.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_handle_is_gone_and_its_number_never_returns() {
        let table = HandleTable::default();
        let first = table.insert("a");
        assert_eq!(table.get(first).as_deref(), Some(&"a"));
        assert_eq!(table.remove(first).as_deref(), Some(&"a"));
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_ne!(table.insert("b"), first);
    }
}
