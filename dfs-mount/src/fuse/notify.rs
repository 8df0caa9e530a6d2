//! Tells the kernel what it may not use any more: the only place that does.
//!
//! Attributes are taken back at once, by anybody: the kernel takes no lock for it. Names are
//! dropped under the lock of their directory, which may be held as long as a request of ours
//! lasts; so two threads of their own do that, which hold nothing that a request waits for. `vfs`
//! says what is to be taken back (`vfs/kernel.rs` has the argument), and is told when it is.
//!
//! The listener takes in what the owner tells, and lets it be acknowledged when the kernel knows.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dfs_proto::name::Name;
use fuser::{INodeNo, Session};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Fuse;
use crate::session::told::{Told, What};
use crate::vfs::{Names, StaleName, TakeBack, Vfs};

/// Threads that drop names. Why 2: while one waits for a directory the other drops in others. No
/// more are held up, for names in a directory that is known to be held are not dropped.
const THREADS: usize = 2;

/// The notification that names an entry, and the flag by which the kernel only asks again for it.
/// Source: `FUSE_NOTIFY_INVAL_ENTRY`, `FUSE_EXPIRE_ONLY` in linux/fuse.h. Kernels before 6.2 do not
/// know the flag and drop the name.
const INVALIDATE_ENTRY: i32 = 3;
const EXPIRE_ONLY: u32 = 1;

/// The kernel's ear.
pub(super) struct Notifier {
    vfs: Vfs,
    kernel: fuser::Notifier,
    /// The same connection, for what fuser cannot say.
    device: File,
    /// Held from the taking of attributes until they are taken back.
    attrs: Mutex<()>,
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notifier of {:?}", self.vfs)
    }
}

impl Notifier {
    pub(super) fn new(vfs: Vfs, session: &Session<Fuse>) -> io::Result<Notifier> {
        let device = session.as_fd().try_clone_to_owned()?.into();
        Ok(Notifier { vfs, kernel: session.notifier(), device, attrs: Mutex::default() })
    }

    /// Takes in what the owner told. Names are dropped by others; `Vfs::taken_back` waits for that.
    fn take_in(&self, what: &What) {
        self.vfs.take_in(what);
        self.take_attrs_back();
    }

    /// Takes attributes back that are stale, if there are any. When this returns, all that were
    /// stale when it began are, whoever did it.
    pub(super) fn take_attrs_back(&self) {
        let _one = self.attrs.lock().unwrap_or_else(PoisonError::into_inner);
        self.vfs.take_stale_attrs().into_iter().for_each(|nodeid| self.take_attr_back(nodeid));
    }

    fn take_attr_back(&self, nodeid: u64) {
        // An offset below zero leaves the pages alone: a nodeid shows one version only.
        note(self.kernel.inval_inode(INodeNo(nodeid), -1, 0));
    }

    fn take_names_back(&self, dir: u64, names: &[StaleName]) {
        for StaleName { name, child, way } in names {
            let result = match way {
                TakeBack::Drop => {
                    self.kernel.inval_entry(INodeNo(dir), OsStr::from_bytes(name.as_bytes()))
                }
                TakeBack::Expire => self.expire(dir, name),
            };
            note(result);
            self.take_attr_back(*child);
        }
    }

    fn expire(&self, dir: u64, name: &Name) -> io::Result<()> {
        match (&self.device).write(&expiry(dir, name.as_bytes())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map(drop),
        }
    }
}

/// The message that lets a name expire: a header without a request, the directory, the name.
fn expiry(dir: u64, name: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: usize = 16;
    const BODY_BYTES: usize = 16;
    let length = HEADER_BYTES + BODY_BYTES + name.len() + 1;
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).expect("a short message").to_ne_bytes());
    message.extend(INVALIDATE_ENTRY.to_ne_bytes());
    message.extend(0_u64.to_ne_bytes());
    message.extend(dir.to_ne_bytes());
    message.extend(u32::try_from(name.len()).expect("a short name").to_ne_bytes());
    message.extend(EXPIRE_ONLY.to_ne_bytes());
    message.extend(name);
    message.push(0);
    message
}

/// A kernel that has ended the connection keeps nothing.
fn note(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "the kernel was not told");
    }
}

/// Drops names until there is nothing to drop any more.
fn drop_names(notifier: &Notifier) {
    while let Some(names) = notifier.vfs.next_stale_names() {
        let Names { dir, names: stale, .. } = &names;
        notifier.take_names_back(*dir, stale);
        notifier.vfs.names_taken_back(&names);
    }
}

/// Starts the threads that drop names.
pub(super) fn start_threads(notifier: &Arc<Notifier>) -> io::Result<Vec<JoinHandle<()>>> {
    let start = |_| {
        let notifier = Arc::clone(notifier);
        let thread = std::thread::Builder::new().name("fuse-names".to_owned());
        thread.spawn(move || drop_names(&notifier))
    };
    (0..THREADS).map(start).collect()
}

/// Takes in what the owner tells, until it is cancelled.
pub(super) async fn listen(notifier: Arc<Notifier>, mut events: mpsc::Receiver<Told>) {
    let mut waiting = JoinSet::new();
    loop {
        let told = tokio::select! {
            told = events.recv() => told,
            Some(_) = waiting.join_next() => continue,
            () = notifier.vfs.lapsed() => {
                notifier.take_in(&What::Lost);
                continue;
            }
        };
        let Some(Told { what, done }) = told else { return };
        notifier.take_in(&what);
        let vfs = notifier.vfs.clone();
        waiting.spawn(async move {
            vfs.taken_back().await;
            // An error means that the session is over.
            let _ = done.send(());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_what_the_kernel_reads() {
        let message = expiry(0x42, b"abc");
        let expected: Vec<u8> = [
            &36_u32.to_ne_bytes()[..],
            &3_i32.to_ne_bytes(),
            &[0; 8],
            &0x42_u64.to_ne_bytes(),
            &3_u32.to_ne_bytes(),
            &1_u32.to_ne_bytes(),
            b"abc\0",
        ]
        .concat();
        assert_eq!(message, expected);
    }
}
