//! What a process does by itself, beside answering.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::{Announce, NodeEntry, Role};
use dfs_proto::auth::Keys;
use dfs_proto::client::CallError;
use dfs_proto::clock::Clock;
use dfs_proto::rpc::Envelope;
use tokio_util::sync::CancellationToken;

use super::network::Network;
use crate::auth::AuthService;
use crate::auth::ticket::TicketVerifier;
use crate::cell::{CellDir, map};

/// How often a process tells the auth server where it is. Why 5 s: the answer brings new nodes'
/// addresses and revoked logins, which must be known within a minute.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// First and longest pause while the auth server does not answer.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

const ANNOUNCE_DEADLINE_MS: u32 = 5_000;

/// How often what has expired is removed from the accounts.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Keeps a process without the auth role in touch with it.
pub struct Announcer {
    pub entry: NodeEntry,
    pub network: Network,
    pub dir: CellDir,
    pub verifier: Arc<TicketVerifier>,
    pub clock: Arc<dyn Clock>,
}

impl Announcer {
    /// Announces until `stop`; logs once when the auth server goes silent and once when it is back.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY_MIN;
        let mut is_waiting = false;
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => return,
                told = self.announce() => told,
            };
            let wait = match told {
                Ok(()) => {
                    if std::mem::take(&mut is_waiting) {
                        tracing::info!("auth server is here");
                    }
                    pause = RETRY_MIN;
                    ANNOUNCE_INTERVAL
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        tracing::warn!(%error, "waiting for the auth server");
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                    pause
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(self.clock.boottime() + wait) => {}
            }
        }
    }

    async fn announce(&self) -> Result<(), FsError> {
        let auth = self.network.role(Role::Auth)?;
        let envelope = Envelope { deadline_ms: ANNOUNCE_DEADLINE_MS, ..Envelope::default() };
        let request = Announce { entry: self.entry.clone() };
        let found = auth.call(&envelope, &request, Vec::new()).await.map_err(CallError::into_fs)?;
        let known = self.network.map();
        let mut fresh = found.reply;
        // Nodes that name no host live where the auth server does: its own entry knows.
        let auth_host = known.with_role(Role::Auth).next().and_then(|entry| entry.host.clone());
        if let Some(host) = auth_host {
            map::resolve_hosts(&mut fresh, &host);
        }
        if !is_same(&known.nodes, &fresh.nodes) {
            map::store(&self.dir, &fresh).unwrap_or_else(|error| {
                tracing::warn!(%error, "the cell's map was not stored");
            });
        }
        self.network.set_map(fresh);
        let keys = auth.call(&envelope, &Keys {}, Vec::new()).await.map_err(CallError::into_fs)?;
        self.verifier.set_keys(keys.reply);
        Ok(())
    }
}

/// Whether two lists say the same but for the time since nodes were heard.
fn is_same(known: &[NodeEntry], fresh: &[NodeEntry]) -> bool {
    let quiet = |entries: &[NodeEntry]| -> Vec<NodeEntry> {
        entries.iter().map(|entry| NodeEntry { silent_ms: 0, ..entry.clone() }).collect()
    };
    quiet(known) == quiet(fresh)
}

/// Removes expired logins and join tokens now and then.
pub async fn sweep(auth: Arc<AuthService>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep_until(clock.boottime() + SWEEP_INTERVAL) => {}
        }
        if let Err(error) = auth.sweep().await {
            tracing::warn!(%error, "expired logins were not removed");
        }
    }
}
