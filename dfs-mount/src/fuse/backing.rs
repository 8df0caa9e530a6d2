//! Cache files that the kernel reads itself, and the answers to open and create that say so.
//!
//! All open handles of an inode must name one registration of its cache file with the kernel
//! (FUSE.md section 9). It is made by the first handle, shared by the others, and ends when the
//! last of them is released: each handle holds it, the inode only knows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, ReplyCreate, ReplyOpen};

use super::attr::{file_attr, generation};
use crate::cache::CacheFile;
use crate::vfs::{Created, Opened, Vfs, Way};

#[derive(Debug, Default)]
struct Registered {
    of_node: HashMap<u64, Weak<BackingId>>,
    of_handle: HashMap<u64, (u64, Arc<BackingId>)>,
}

/// The registrations of one mount.
#[derive(Debug, Default)]
pub(super) struct Backings {
    registered: Mutex<Registered>,
}

/// How long the kernel may use what the answer to a create says: fuser knows one lifetime for the
/// name and for attributes, and those of a file that is written change all the time.
const LIFETIME: Duration = Duration::ZERO;

/// What the reply to an open names.
struct Shape {
    flags: FopenFlags,
    backing: Option<Arc<BackingId>>,
}

impl Backings {
    /// Answers an open.
    pub(super) fn answer_open(&self, vfs: &Vfs, reply: ReplyOpen, opened: &Opened) {
        let handle = FileHandle(opened.handle);
        match self.shape(vfs, opened, |file| reply.open_backing(file)) {
            Some(Shape { flags, backing: Some(id) }) => {
                reply.opened_passthrough(handle, flags, &id);
            }
            Some(Shape { flags, backing: None }) => reply.opened(handle, flags),
            None => reply.error(Errno::EBADF),
        }
    }

    /// Answers a create.
    pub(super) fn answer_create(&self, vfs: &Vfs, reply: ReplyCreate, created: &Created) {
        let Created { entry, opened } = created;
        let (attr, generation) = (file_attr(entry), generation(&entry.attr));
        let handle = FileHandle(opened.handle);
        match self.shape(vfs, opened, |file| reply.open_backing(file)) {
            Some(Shape { flags, backing: Some(id) }) => {
                reply.created_passthrough(&LIFETIME, &attr, generation, handle, flags, &id);
            }
            Some(Shape { flags, backing: None }) => {
                reply.created(&LIFETIME, &attr, generation, handle, flags);
            }
            None => reply.error(Errno::EBADF),
        }
    }

    /// Lets go of what a released handle held.
    pub(super) fn forget_handle(&self, handle: u64) {
        let mut registered = self.lock();
        let Some((nodeid, id)) = registered.of_handle.remove(&handle) else { return };
        if Arc::strong_count(&id) == 1 {
            registered.of_node.remove(&nodeid);
        }
        // The last one tells the kernel: not under the lock.
        drop(registered);
        drop(id);
    }

    fn shape(
        &self,
        vfs: &Vfs,
        opened: &Opened,
        register: impl FnOnce(&CacheFile) -> std::io::Result<BackingId>,
    ) -> Option<Shape> {
        let flags = match opened.way {
            Way::Passthrough => FopenFlags::empty(),
            Way::Beside => FopenFlags::FOPEN_DIRECT_IO,
            Way::Served { keep_cache } => return Some(served(keep_cache)),
        };
        match self.backing(opened, register) {
            Ok(id) => Some(Shape { flags, backing: Some(id) }),
            Err(error) => {
                tracing::info!(%error, "the kernel does not read cache files itself; serving them");
                match vfs.refuse_passthrough(opened.handle) {
                    Ok(Way::Served { keep_cache }) => Some(served(keep_cache)),
                    _ => None,
                }
            }
        }
    }

    /// The node's registration, made if there is none. Under the lock, so that two first handles
    /// make one.
    fn backing(
        &self,
        opened: &Opened,
        register: impl FnOnce(&CacheFile) -> std::io::Result<BackingId>,
    ) -> std::io::Result<Arc<BackingId>> {
        let mut registered = self.lock();
        let known = registered.of_node.get(&opened.nodeid).and_then(Weak::upgrade);
        let id = match known {
            Some(id) => id,
            None => Arc::new(register(&opened.file)?),
        };
        registered.of_node.insert(opened.nodeid, Arc::downgrade(&id));
        registered.of_handle.insert(opened.handle, (opened.nodeid, id.clone()));
        Ok(id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registered> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn served(keep_cache: bool) -> Shape {
    let flags = if keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    Shape { flags, backing: None }
}
