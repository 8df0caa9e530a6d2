//! Mounts in the kernel, of a whole cell in this process. Needs /dev/fuse and root.

#[path = "../support/cell.rs"]
mod support;

mod data;
mod files;
mod fsx;
mod mapped;
mod model;
pub mod operations;
mod programs;

use std::path::Path;
use std::process::{Command, Output};

use dfs_mount::fuse::{MountOptions, Mounted, mount};
use support::{Cell, Client};
use tempfile::TempDir;

/// How long a script may take before it counts as stuck. Why so long: git calls fsync hundreds of
/// times, and machines have other work to do.
const SCRIPT_SECONDS_MAX: &str = "240";

/// A mounted client. Dropping it takes the mount away, whoever uses it.
struct Mount {
    dir: TempDir,
    mounted: Option<Mounted>,
    client: Client,
}

impl Mount {
    async fn of(client: Client) -> Mount {
        let dir = tempfile::tempdir().unwrap();
        let options = MountOptions {
            source: "dfs://127.0.0.1:1/main".to_owned(),
            allow_other: true,
            default_permissions: true,
            read_only: false,
            exec: true,
            atime: true,
        };
        let (vfs, path) = (client.vfs.clone(), dir.path().to_owned());
        let runtime = tokio::runtime::Handle::current();
        let mounted = tokio::task::spawn_blocking(move || mount(vfs, &path, &options, &runtime));
        Mount { mounted: Some(mounted.await.unwrap().unwrap()), dir, client }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a shell script in the mount, in a process of its own.
    async fn try_sh(&self, script: &str) -> Output {
        let mut shell = Command::new("timeout");
        shell.args(["-s", "KILL", SCRIPT_SECONDS_MAX, "bash", "-euc", script]).current_dir("/");
        shell.env("M", self.path()).env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
        tokio::task::spawn_blocking(move || shell.output()).await.unwrap().unwrap()
    }

    /// As `try_sh`; the script must succeed.
    async fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}\n{out}\n{err}\n{:?}", output.status);
        out
    }

    async fn unmount(mut self) {
        let mounted = self.mounted.take().unwrap();
        mounted.unmount(false).unwrap();
        mounted.ended().await.unwrap();
        // As the daemon does; else others would wait for what this client was promised.
        self.client.session.close().await;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mounted) = &self.mounted {
            let _ = mounted.unmount(true);
        }
    }
}

/// Two mounts of one volume, with and without passthrough.
async fn two_mounts() -> (Cell, Mount, Mount) {
    let cell = Cell::start().await;
    let a = Mount::of(cell.client(true).await).await;
    let b = Mount::of(cell.client(false).await).await;
    (cell, a, b)
}

/// Runs file operations off the runtime, whose threads serve them.
async fn files<T: Send + 'static>(operations: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(operations).await.unwrap()
}
