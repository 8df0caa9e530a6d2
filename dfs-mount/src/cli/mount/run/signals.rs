//! What ends a mount from outside: TERM and INT unmount it.
//!
//! In use, it leaves the tree at once and is given a moment; whoever still uses it then gets
//! errors. A second signal does not wait. HUP means nothing: the daemon has no terminal.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Watches for signals until aborted.
pub fn obey(mount_point: PathBuf, give_up: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = watch(mount_point, give_up).await {
            tracing::error!(%error, "signals cannot be obeyed");
        }
    })
}

async fn watch(mount_point: PathBuf, give_up: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => continue,
        }
        unmount(mount_point.clone(), &give_up).await;
    }
}

async fn unmount(mount_point: PathBuf, give_up: &CancellationToken) {
    tracing::info!("asked to end");
    let place = mount_point.clone();
    let plain = tokio::task::spawn_blocking(move || crate::sys::unmount(&place, false)).await;
    if matches!(plain, Ok(Ok(()))) {
        return;
    }
    let lazy = tokio::task::spawn_blocking(move || crate::sys::unmount(&mount_point, true)).await;
    if let Ok(Err(error)) = lazy {
        tracing::warn!(%error, "could not unmount");
    }
    give_up.cancel();
}
