//! Bringing a file to be read as if for the first time.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::cli::mounts;
use crate::control::client::ControlClient;
use crate::control::message::CachedFile;

/// How long a file that was closed may take until the daemon can drop it, and how often it is
/// asked: the kernel does not say when it has told the daemon of the last close.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
const DROP_PAUSE: Duration = Duration::from_millis(20);

/// Who has to forget a file.
pub enum Cold {
    /// The kernel, which drops what it has read.
    Kernel,
    /// The daemon of its mount as well.
    Daemon(ControlClient, tokio::runtime::Handle),
    /// It cannot be had, for this reason.
    Not(String),
}

impl Cold {
    /// For files in `dir`.
    pub fn of(dir: &Path) -> Cold {
        let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let Ok(table) = mounts::table() else { return Cold::Kernel };
        match table.containing(&real).filter(|mount| mount.is_dfs()).map(mounts::daemon) {
            None => Cold::Kernel,
            Some(Ok(daemon)) => Cold::Daemon(daemon, tokio::runtime::Handle::current()),
            Some(Err(error)) => Cold::Not(error.to_string()),
        }
    }

    /// Has a closed file forgotten. Blocking.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn apply(&self, path: &Path) -> Result<(), String> {
        match self {
            Cold::Kernel => {}
            Cold::Daemon(daemon, runtime) => runtime.block_on(dropped(daemon, path))?,
            Cold::Not(why) => return Err(why.clone()),
        }
        let file = File::open(path).map_err(|error| error.to_string())?;
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        posix_fadvise(&file, 0, 0, advice).map_err(|errno| errno.to_string())
    }
}

/// Has the daemon drop what it keeps of a file.
async fn dropped(daemon: &ControlClient, path: &Path) -> Result<(), String> {
    let attempts = async {
        loop {
            let listing = daemon.cache_list().await.map_err(|error| error.to_string())?;
            let is_it = |cached: &&CachedFile| path.ends_with(last_two(&cached.path));
            let Some(cached) = listing.files.iter().find(is_it) else {
                return Err("the mount does not list the file".to_owned());
            };
            let fid = cached.fid.clone();
            if daemon.cache_drop(fid).await.map_err(|error| error.to_string())? {
                return Ok(());
            }
            tokio::time::sleep(DROP_PAUSE).await;
        }
    };
    let attempts = tokio::time::timeout(DROP_PATIENCE, attempts).await;
    attempts.unwrap_or_else(|_| Err("the mount goes on using the file".to_owned()))
}

/// The file and the directory that it is in: what is above is not always known.
fn last_two(path: &str) -> &Path {
    let above = path.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    Path::new(&path[above..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_file_is_known_by_its_name_and_its_directory() {
        let path = Path::new("/mnt/deep/.dfs-bench-7/large");
        for listed in ["/deep/.dfs-bench-7/large", ".../.dfs-bench-7/large", ".dfs-bench-7/large"] {
            assert!(path.ends_with(last_two(listed)), "{listed}");
        }
        assert!(!path.ends_with(last_two("/deep/.dfs-bench-71/large")));
    }
}
