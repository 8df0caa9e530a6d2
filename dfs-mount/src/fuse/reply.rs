//! The life of a request: from the FUSE thread into a task, and its answer back to the kernel.
//!
//! A FUSE thread never waits. It polls an operation once, which is all that one needs whose
//! answer is known here, and hands it to the runtime if that was not enough. Requests are bounded
//! by the callers that the kernel lets wait; how many of them are on their way to the servers at
//! once is bounded by permits. FLUSH, RELEASE and opens that may wait for a lock need none: what
//! they wait for may itself need one.
//!
//! A caller with a pending signal is answered EINTR while the operation goes on; when that ends,
//! what it made for the caller (a handle, a lookup) is taken back. So nothing is ever left half
//! done, and nothing leaks.
//!
//! This is the only place where an operation's error leaves for the kernel, and so is logged.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::errno::errno;
use super::interrupt::{Wakes, interrupted};
use super::notify::Notifier;
use crate::metrics::{Counter, Metrics};
use crate::vfs::Error;
use dfs_proto::error::FsError;

/// Most requests that wait for the servers at the same time. Why 256: as many as one session may
/// have mutations in flight.
const IN_FLIGHT_MAX: usize = dfs_proto::limits::OPS_IN_FLIGHT_MAX;

/// A reply that can say no.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )*};
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// What kind of wait a request is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// For the log.
    pub(super) op: &'static str,
    pub(super) nodeid: u64,
    /// The thread that waits; 0 if nobody does.
    pub(super) pid: u32,
    pub(super) wakes: Wakes,
    pub(super) needs_permit: bool,
}

/// Runs operations and answers for them.
#[derive(Clone, Debug)]
pub(super) struct Server {
    runtime: Handle,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    notifier: Arc<OnceLock<Arc<Notifier>>>,
    metrics: Arc<Metrics>,
}

impl Server {
    pub(super) fn new(runtime: Handle, metrics: Arc<Metrics>) -> Server {
        let permits = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        Server { runtime, permits, tasks: TaskTracker::new(), notifier: Arc::default(), metrics }
    }

    /// By whom the kernel is told what is stale. To be said before it asks for anything.
    pub(super) fn tell_by(&self, notifier: Arc<Notifier>) {
        if self.notifier.set(notifier).is_err() {
            unreachable!("a connection has one notifier");
        }
    }

    /// Starts `operation` and answers `reply` when it is done: with `accept` or an errno. If the
    /// caller was sent away before, `undo` takes back what a late success made.
    pub(super) fn serve<T, R, Op, Undo>(
        &self,
        request: Request,
        reply: R,
        operation: Op,
        (accept, undo): (
            impl FnOnce(R, T) + Send + 'static,
            impl FnOnce(T) -> Undo + Send + 'static,
        ),
    ) where
        T: Send + 'static,
        R: Refuse,
        Op: Future<Output = Result<T, Error>> + Send + 'static,
        Undo: Future<Output = ()> + Send + 'static,
    {
        let never = CancellationToken::new();
        self.serve_until(request, reply, operation, (accept, undo, never));
    }

    /// As [`Server::serve`]; an operation whose caller was sent away is told to stop.
    pub(super) fn serve_until<T, R, Op, Undo>(
        &self,
        request: Request,
        reply: R,
        operation: Op,
        (accept, undo, stop): (
            impl FnOnce(R, T) + Send + 'static,
            impl FnOnce(T) -> Undo + Send + 'static,
            CancellationToken,
        ),
    ) where
        T: Send + 'static,
        R: Refuse,
        Op: Future<Output = Result<T, Error>> + Send + 'static,
        Undo: Future<Output = ()> + Send + 'static,
    {
        let permits = request.needs_permit.then(|| self.permits.clone());
        let notifier = self.notifier.clone();
        let whole = async move {
            let mut operation = std::pin::pin!(with_permit(permits, operation));
            let outcome = tokio::select! {
                biased;
                outcome = &mut operation => Some(outcome),
                () = interrupted(request.pid, request.wakes) => None,
            };
            // What the operation made stale the program must not meet any more.
            if let Some(notifier) = notifier.get() {
                notifier.take_attrs_back();
            }
            match outcome {
                Some(Ok(value)) => accept(reply, value),
                Some(Err(error)) => refuse(request, reply, &error),
                None => {
                    refuse(request, reply, &Error::Interrupted);
                    stop.cancel();
                    if let Ok(value) = operation.await {
                        undo(value).await;
                    }
                }
            }
        };
        self.start(Box::pin(whole));
    }

    /// As [`Server::serve`], for operations that leave nothing to take back.
    pub(super) fn answer<T, R, Op>(
        &self,
        request: Request,
        reply: R,
        operation: Op,
        accept: impl FnOnce(R, T) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Refuse,
        Op: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.serve(request, reply, operation, (accept, |_| std::future::ready(())));
    }

    /// Starts an operation that fills its reply itself. A caller with a pending signal ends it.
    pub(super) fn fill<R, Op>(
        &self,
        request: Request,
        reply: R,
        operation: impl FnOnce(Filling<R>) -> Op,
    ) where
        R: Refuse,
        Op: Future<Output = ()> + Send + 'static,
    {
        let operation = operation(Filling { reply: Some(reply), request });
        let permits = self.permits.clone();
        let whole = async move {
            tokio::select! {
                biased;
                () = async {
                    let _permit = permits.acquire().await;
                    operation.await;
                } => {}
                () = interrupted(request.pid, request.wakes) => {}
            }
        };
        self.start(Box::pin(whole));
    }

    fn start(&self, mut task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.metrics.count(Counter::KernelAsked);
        let _context = self.runtime.enter();
        let mut first_look = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut first_look) == Poll::Pending {
            self.tasks.spawn_on(task, &self.runtime);
        }
    }

    /// Runs something that spawns tasks.
    pub(super) fn enter(&self, spawns: impl FnOnce()) {
        let _context = self.runtime.enter();
        spawns();
    }

    /// Waits until every operation has ended. The kernel must not send any more.
    pub(super) async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A reply on its way; dropped, it says that the caller was interrupted.
pub(super) struct Filling<R: Refuse> {
    reply: Option<R>,
    request: Request,
}

impl<R: Refuse> Filling<R> {
    pub(super) fn reply(&mut self) -> &mut R {
        self.reply.as_mut().expect("a reply is taken by what consumes the filling")
    }

    pub(super) fn finish(mut self, result: Result<(), Error>, accept: impl FnOnce(R)) {
        match (self.reply.take(), result) {
            (Some(reply), Ok(())) => accept(reply),
            (Some(reply), Err(error)) => refuse(self.request, reply, &error),
            (None, _) => {}
        }
    }
}

impl<R: Refuse> Drop for Filling<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            refuse(self.request, reply, &Error::Interrupted);
        }
    }
}

async fn with_permit<T>(
    permits: Option<Arc<Semaphore>>,
    operation: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let _permit = match &permits {
        // An error means a closed semaphore; this one is never closed.
        Some(permits) => permits.acquire().await.ok(),
        None => None,
    };
    operation.await
}

/// Answers with an error. What a program meets every day is no news; what it cannot know is.
pub(super) fn refuse(request: Request, reply: impl Refuse, error: &Error) {
    let Request { op, nodeid, pid, .. } = request;
    if is_expected(error) {
        tracing::debug!(op, nodeid, pid, %error, "refused");
    } else {
        tracing::warn!(op, nodeid, pid, error = %Chain(error), "failed");
    }
    reply.refuse(errno(error));
}

fn is_expected(error: &Error) -> bool {
    let Error::Fs(error) = error else {
        return matches!(error, Error::Interrupted | Error::Name(_) | Error::Xattr(_));
    };
    matches!(
        error,
        FsError::NotFound
            | FsError::Exists
            | FsError::NotDirectory
            | FsError::IsDirectory
            | FsError::NotEmpty
            | FsError::AccessDenied
            | FsError::NotPermitted
            | FsError::InvalidArgument { .. }
            | FsError::Loop
            | FsError::Stale
            | FsError::LockBusy { .. }
            | FsError::NoAttribute
            // Programs try what a file system may have, and do without.
            | FsError::Unsupported { .. }
    )
}

/// An error with its causes, on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
