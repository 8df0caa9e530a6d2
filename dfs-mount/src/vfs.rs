//! The file system, without the kernel: operations on nodeids and handles, for a caller.
//!
//! An operation's life: `fuse` names the caller and calls a verb here; the verb asks the directory
//! once (`session`), brings content here if an open needs it (`fetch`), reads and writes the cache
//! file, and commits it (`writeback`). It returns plain structs. What the owner has promised to
//! tell of answers without a request (`held`), and the kernel may use it for as long (`lifetime`);
//! else what the server said last is kept only to answer for files that are open here.
//!
//! Promises:
//! - Every open asks the server which version is current, and all handles of one file on this
//!   client share one cache file: the working copy, while somebody writes.
//! - A handle keeps its version. If the server has another one, new opens get another nodeid.
//! - `Stale` (the kernel then looks the path up again) is answered to operations on names and
//!   nodeids only, never to one that came through a handle.
//! - Operations may be dropped at any await: what they took (counts, handles, intents) is given
//!   back, and what was written stays in the journal.
//!
//! Called by `fuse` only. Knows nothing of FUSE, of threads, or of mounts.

mod attr;
mod create;
mod handle_table;
mod held;
mod inode_table;
mod io;
mod kernel;
mod lifetime;
mod lock;
mod lookup;
mod mapped;
mod mode;
mod namespace;
mod node;
mod open;
mod readdir;
mod removed;
mod share;
mod space;
mod statfs;
mod walk;
mod watch;
mod xattr;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use dfs_proto::admin::Role;
use dfs_proto::attr::{Attr, Timestamp};
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::error::FsError;
use dfs_proto::name::NameError;
use dfs_proto::rpc::Rpc;
use dfs_proto::xattr::XattrError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, CacheError, ContentError};
use crate::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::session::Session;
use crate::writeback::Writeback;
use handle_table::HandleTable;
use inode_table::InodeTable;
use kernel::KernelCache;
use lifetime::Changing;
use node::Node;

pub use attr::Change;
pub use create::{CreateHow, Created};
pub use io::{Seek, WriteTo};
pub use kernel::{Names, StaleName, Way as TakeBack};
pub use lifetime::Lifetimes;
pub use lock::{FoundLock, LockAsk};
pub use mode::Way;
pub use namespace::{At, NodeHow};
pub use open::{OpenHow, Opened};
pub use readdir::Listed;
pub use share::DropPages;
pub use space::Side;
pub use watch::{Sight, Watching};
pub use xattr::NewXattr;

/// For whom an operation is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub identity: Identity,
    /// The thread that waits; 0 if none of ours does.
    pub pid: u32,
}

/// An inode that was named to the kernel, which now holds one lookup of it more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub nodeid: u64,
    pub attr: Attr,
    pub lifetimes: Lifetimes,
}

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Xattr(#[from] XattrError),
    /// The cache failed, or the disk under it.
    #[error("cannot {what}")]
    Local { what: String, source: std::io::Error },
    #[error("caller was interrupted")]
    Interrupted,
    /// The file is shared, and the change needs its write lock first: `Vfs::with_lock`.
    #[error("the file's write lock is not here")]
    Shared,
    /// The handle is not open, or not for this.
    #[error("handle is not open for this")]
    BadHandle,
}

impl Error {
    fn local(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Local { what: what.to_owned(), source }
    }

    /// As it is told through a handle: the kernel would answer ESTALE to the program.
    fn through_handle(self) -> Error {
        match self {
            Error::Fs(FsError::Stale) => Error::Fs(FsError::NotFound),
            other => other,
        }
    }
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Error {
        Error::Local { what: "use the cache".to_owned(), source: error.into_io() }
    }
}

impl From<ContentError> for Error {
    fn from(error: ContentError) -> Error {
        match error {
            ContentError::Fs(error) => error.into(),
            ContentError::Cache(error) => error.into(),
        }
    }
}

/// What a mount's user chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the kernel may read cache files itself.
    pub passthrough: bool,
    /// How long an open for writing waits for another client's lock.
    pub lock_timeout: std::time::Duration,
    /// Whether the kernel judges by mode bits, and so asks for the attributes of a directory before
    /// it looks a name up there.
    pub kernel_judges: bool,
    /// Whether device files may be made: where they could not be opened, they are not.
    pub devices: bool,
}

/// What the file system is made of.
pub struct Parts {
    pub session: Session,
    pub cache: Cache,
    pub fetcher: Fetcher,
    pub writeback: Writeback,
}

/// A mounted volume. Cheap to clone.
#[derive(Clone)]
pub struct Vfs {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    options: Options,
    /// Whether the kernel has refused to read a cache file, or mappings of them would be unseen.
    passthrough_refused: AtomicBool,
    inodes: InodeTable,
    kernel: KernelCache,
    files: HandleTable<io::FileHandle>,
    directories: HandleTable<readdir::DirHandle>,
    /// Tasks that look after files that are mapped and not open.
    mapped: TaskTracker,
    mapped_stop: CancellationToken,
    /// Absent until the kernel is there.
    drop_pages: OnceLock<DropPages>,
}

impl Vfs {
    pub fn new(parts: Parts, options: Options) -> Vfs {
        let root = parts.session.root().fid;
        let is_blind = options.passthrough && !parts.cache.tells_of_mappings();
        if is_blind {
            let dir = parts.cache.dir().display();
            tracing::info!(%dir, "not on a disk that tells of mappings; serving all reads");
        }
        Vfs {
            inner: Arc::new(Inner {
                parts,
                options,
                passthrough_refused: AtomicBool::new(is_blind),
                inodes: InodeTable::new(root),
                kernel: KernelCache::default(),
                files: HandleTable::default(),
                directories: HandleTable::default(),
                mapped: TaskTracker::new(),
                mapped_stop: CancellationToken::new(),
                drop_pages: OnceLock::new(),
            }),
        }
    }

    /// Lookups taken back by the kernel.
    pub fn forget(&self, nodeid: u64, count: u64) {
        let inodes = &self.inner.inodes;
        if inodes.forget(nodeid, count) {
            let is_known = |nodeid| inodes.get(nodeid).is_some();
            self.inner.kernel.forgot(nodeid, inodes.len(), is_known);
        }
    }

    /// How many inodes the kernel knows, and how many files are open.
    pub fn counts(&self) -> (usize, usize) {
        (self.inner.inodes.len(), self.inner.files.len())
    }

    /// The wall clock, for times that mean "now".
    pub fn now(&self) -> Timestamp {
        self.session().clock().wall()
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        self.session().clock()
    }

    /// Commits and closes every file that is still open, and commits those that are mapped: the
    /// kernel sends nothing any more.
    pub async fn close_all(&self) {
        for number in self.inner.files.numbers() {
            if let Err(error) = self.release(number).await {
                tracing::warn!(%error, "a file open at the end of the mount was not committed");
            }
        }
        self.leave_mapped().await;
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        self.session().metrics()
    }

    fn session(&self) -> &Session {
        &self.inner.parts.session
    }

    fn cache(&self) -> &Cache {
        &self.inner.parts.cache
    }

    fn fetcher(&self) -> &Fetcher {
        &self.inner.parts.fetcher
    }

    fn writeback(&self) -> &Writeback {
        &self.inner.parts.writeback
    }

    /// Whether the kernel reads cache files itself: wanted, and not refused so far.
    pub fn passes_through(&self) -> bool {
        self.inner.options.passthrough && !self.inner.passthrough_refused.load(Ordering::Relaxed)
    }

    /// The inode of a nodeid. The kernel names none that it has forgotten, except after a lookup
    /// that we took back: it then looks the path up again.
    fn node(&self, nodeid: u64) -> Result<Arc<Node>, Error> {
        let node = self.inner.inodes.get(nodeid).ok_or(Error::Fs(FsError::Stale))?;
        node.saw();
        Ok(node)
    }

    /// Asks the directory.
    async fn ask<R: Rpc>(&self, caller: &Caller, request: &R) -> Result<R::Reply, Error> {
        let reply = self.session().call(Role::Directory, Some(&caller.identity), request).await?;
        Ok(reply)
    }
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (inodes, files) = self.counts();
        write!(f, "Vfs({} known inodes, {} open files)", inodes, files)
    }
}

#[cfg(test)]
mod tests;
