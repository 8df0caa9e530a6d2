//! The file system without the kernel, against a whole cell.

#[path = "../support/cell.rs"]
mod support;

mod attr;
mod lifetime;
mod lock;
mod namespace;
mod open;
mod walk;
mod xattr;

use std::sync::Arc;

use dfs_mount::vfs::{At, Caller, CreateHow, Created, Entry, Error, OpenHow, Opened, Vfs, WriteTo};
use dfs_proto::credential::Identity;
use dfs_proto::error::FsError;

const ROOT: u64 = 1;

const READ: OpenHow = OpenHow { read: true, write: false, truncate: false, nonblock: false };
const WRITE: OpenHow = OpenHow { read: true, write: true, truncate: false, nonblock: false };
const CUT: OpenHow = OpenHow { read: false, write: true, truncate: true, nonblock: false };

fn root() -> Caller {
    Caller { identity: Identity::ROOT, pid: 0 }
}

fn at(parent: u64, name: &str) -> At {
    At { parent, name: name.as_bytes().into() }
}

async fn create(vfs: &Vfs, name: &str) -> Created {
    let how = CreateHow { mode: 0o644, exclusive: true, open: WRITE };
    vfs.create(&root(), at(ROOT, name), how).await.unwrap()
}

/// Makes a file with content, closed.
async fn put(vfs: &Vfs, name: &str, content: &[u8]) -> Entry {
    let created = create(vfs, name).await;
    vfs.write(created.opened.handle, WriteTo::Offset(0), content, false).unwrap();
    close(vfs, created.opened.handle).await;
    vfs.lookup(&root(), at(ROOT, name)).await.unwrap()
}

async fn close(vfs: &Vfs, handle: u64) {
    vfs.flush(handle).await.unwrap();
    vfs.release(handle).await.unwrap();
}

/// Opens a name as the kernel does: on ESTALE it looks the name up again, once.
async fn open(vfs: &Vfs, name: &str, how: OpenHow) -> Opened {
    let nodeid = vfs.lookup(&root(), at(ROOT, name)).await.unwrap().nodeid;
    match vfs.open(&root(), nodeid, how).await {
        Err(Error::Fs(FsError::Stale)) => {
            let nodeid = vfs.lookup(&root(), at(ROOT, name)).await.unwrap().nodeid;
            vfs.open(&root(), nodeid, how).await.unwrap()
        }
        result => result.unwrap(),
    }
}

fn content(vfs: &Vfs, handle: u64) -> Vec<u8> {
    let mut buffer = vec![0; 4 << 20];
    let count = vfs.read(handle, 0, &mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

async fn read(vfs: &Vfs, name: &str) -> Vec<u8> {
    let opened = open(vfs, name, READ).await;
    let bytes = content(vfs, opened.handle);
    vfs.release(opened.handle).await.unwrap();
    bytes
}

/// Replaces a file's content in place.
async fn rewrite(vfs: &Vfs, name: &str, bytes: &[u8]) {
    let opened = open(vfs, name, CUT).await;
    vfs.write(opened.handle, WriteTo::Offset(0), bytes, false).unwrap();
    close(vfs, opened.handle).await;
}
