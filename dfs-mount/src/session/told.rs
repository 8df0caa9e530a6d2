//! What the owner tells, passed on to who must act before it is acknowledged, and to who looks on.
//!
//! The single upward edge, beside recalls: events, no calls. The mount is the one *keeper* of what
//! it holds outside of this program (the kernel's caches): each break, and the loss of all
//! promises, waits until it says that nothing of that is used any more. *Watchers* are told, and
//! waited for by nobody; one that is too slow misses some and is told that it has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::id::FileId;
use dfs_proto::promise::{Break, DirChange};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Events that may wait for the keeper. Why: it takes each at once; more than that many means that
/// it is stuck, and the stream then waits.
const KEEPER_EVENTS_MAX: usize = 1024;

/// Changes that a watcher may be behind. Why: a person reads a screenful, and a program that reads
/// all the time is behind by far less; each takes a KiB or less.
const WATCHER_CHANGES_MAX: usize = 4096;

/// What happened to what is held.
#[derive(Clone, Debug)]
pub enum What {
    /// Others changed directories.
    Break(Arc<Break>),
    /// Nothing is promised any more.
    Lost,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Change(Arc<DirChange>),
    /// The directory is not promised any more: no change of it is told from here on.
    Ended(FileId),
    /// None is promised any more.
    Lost,
}

/// An event for the keeper. To drop it is to say that it is done.
#[derive(Debug)]
pub struct Told {
    pub what: What,
    pub done: oneshot::Sender<()>,
}

/// Resolves when the keeper has done what an event asks for.
pub(super) type Done = oneshot::Receiver<()>;

/// Who is told.
#[derive(Debug)]
pub(super) struct Listeners {
    keeper: Mutex<Option<mpsc::Sender<Told>>>,
    watchers: broadcast::Sender<Seen>,
}

impl Default for Listeners {
    fn default() -> Listeners {
        let (watchers, _) = broadcast::channel(WATCHER_CHANGES_MAX);
        Listeners { keeper: Mutex::default(), watchers }
    }
}

impl Listeners {
    fn keeper(&self) -> MutexGuard<'_, Option<mpsc::Sender<Told>>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the taker of what is returned is the keeper.
    pub(super) fn keep(&self) -> mpsc::Receiver<Told> {
        let (sender, receiver) = mpsc::channel(KEEPER_EVENTS_MAX);
        *self.keeper() = Some(sender);
        receiver
    }

    pub(super) fn watch(&self) -> broadcast::Receiver<Seen> {
        self.watchers.subscribe()
    }

    /// Others changed directories.
    pub(super) async fn broken(&self, told: Break) -> Done {
        if self.watchers.receiver_count() > 0 {
            let changes = told.changes.iter().map(|it| Seen::Change(Arc::new(it.clone())));
            let ended = told.ended.iter().map(|dir| Seen::Ended(*dir));
            changes.chain(ended).for_each(|seen| self.show(seen));
        }
        self.tell(What::Break(Arc::new(told))).await
    }

    /// Nothing is promised any more.
    pub(super) async fn lost(&self) -> Done {
        self.show(Seen::Lost);
        self.tell(What::Lost).await
    }

    fn show(&self, seen: Seen) {
        // An error means that nobody watches.
        let _ = self.watchers.send(seen);
    }

    /// Tells the keeper, if there is one.
    async fn tell(&self, what: What) -> Done {
        let (done, receiver) = oneshot::channel();
        let keeper = self.keeper().clone();
        if let Some(keeper) = keeper {
            // One that is gone holds nothing.
            let _ = keeper.send(Told { what, done }).await;
        }
        receiver
    }
}
