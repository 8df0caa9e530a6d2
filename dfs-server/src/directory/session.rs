//! The session service: served by the directory, for its volumes.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::capability::MacKey;
use dfs_proto::directory::{Durability, NodeHeartbeat, NodeHeartbeatReply};
use dfs_proto::id::SessionId;
use dfs_proto::limits::{SESSION_LEASE, WORD_BYTES_MAX};
use dfs_proto::lock::EndSession;
use dfs_proto::rpc::Envelope;
use dfs_proto::session::{
    Acknowledge, Heartbeat, HeartbeatReply, OpenSession, OpenVolume, SessionEvent, SessionReply,
    VolumeReply,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::rows::{SessionRow, ledger_key, ledgers, session_key};
use super::volume::Volume;
use super::{Directory, lookup};
use crate::ledger;
use crate::meta::Txn;
use crate::request::Context;

/// How often expired sessions are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often rows of sessions that are over are looked for.
///
/// Why an hour: they are kept for days. The first look comes only after the same time, when every
/// session that lives has been opened again.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

fn lease_ms() -> u32 {
    u32::try_from(SESSION_LEASE.as_millis()).expect("the lease is some seconds")
}

impl Directory {
    fn volume_named(&self, name: &str) -> Result<&Volume, FsError> {
        let found = self.volumes.values().find(|volume| &*volume.name == name);
        found.ok_or_else(|| FsError::UnknownVolume { name: name.to_owned() })
    }

    pub async fn open_volume(&self, request: OpenVolume) -> Result<VolumeReply, FsError> {
        let volume = self.volume_named(&request.name)?;
        let root = volume.root;
        let reply = volume.store.read(move |txn| lookup::getattr(txn, root)).await?;
        Ok(VolumeReply { root: reply.attr, wall: self.clock.wall() })
    }

    pub async fn open_session(
        &self,
        context: Context,
        request: OpenSession,
    ) -> Result<SessionReply, FsError> {
        let id = context.session()?;
        let is_word = !request.host.is_empty() && request.host.len() <= WORD_BYTES_MAX;
        // Others see it on their terminals.
        if !is_word || request.host.contains(char::is_control) {
            return Err(FsError::invalid("host name of the client"));
        }
        let epoch = self.volume_named(&request.volume)?.store.epoch();
        let volume = self.open_volume(OpenVolume { name: request.volume }).await?;
        let key = self.sessions.open(id, &context.peer, &request.host, random_key()?)?;
        Ok(SessionReply { volume, key, lease_ms: lease_ms(), epoch })
    }

    pub async fn heartbeat(
        &self,
        context: Context,
        request: Heartbeat,
    ) -> Result<HeartbeatReply, FsError> {
        let id = context.session()?;
        let promised = self.sessions.renew(id, context.user())?;
        for (fid, token) in request.yielded {
            self.unlock(id, fid, token).await;
        }
        let epoch = self.volumes.values().map(|volume| volume.store.epoch()).max();
        Ok(HeartbeatReply { lease_ms: lease_ms(), epoch: epoch.unwrap_or_default(), promised })
    }

    /// A session knows of its breaks. Waits for nothing: others wait for it.
    pub async fn acknowledge(&self, context: Context, request: Acknowledge) -> Result<(), FsError> {
        self.sessions.acknowledge(context.session()?, context.user(), &request)
    }

    /// A file node lives, and gets what it needs to check capabilities.
    pub async fn node_heartbeat(
        &self,
        context: Context,
        mut request: NodeHeartbeat,
    ) -> Result<NodeHeartbeatReply, FsError> {
        context.require_role(Role::File)?;
        context.require_node(request.address.node)?;
        if request.address.host.is_none() {
            request.address.host = context.address.map(|address| address.to_string());
        }
        self.file_nodes.heard(request);
        Ok(NodeHeartbeatReply { capability_key: self.capability_key.clone() })
    }

    /// Ends a session. Its client, or the one that came after it, says with its watermark below
    /// which op it has no question left.
    pub async fn close_session(&self, context: Context) -> Result<(), FsError> {
        let id = context.session()?;
        if self.sessions.is_foreign(id, context.user()) {
            return Ok(());
        }
        if self.sessions.close(id, context.user()) {
            self.end_locks(id).await;
        }
        self.grace.settle(id);
        self.erase(id).await?;
        let (watermark, now) = (context.lowest_unanswered, self.clock.wall());
        for volume in self.volumes.values() {
            let row = ledger_key(volume.id, id);
            let close = move |txn: &mut Txn| ledger::close(txn, &row, watermark, now);
            volume.store.write(Durability::Process, close).await?;
        }
        Ok(())
    }

    /// Gives a session its event stream. Before the first, its row is synced: should this owner
    /// die, the next one waits for it.
    pub async fn events(&self, context: &Context) -> Result<mpsc::Receiver<SessionEvent>, FsError> {
        let (id, user) = (context.session()?, context.user());
        self.record(id, user).await?;
        let epoch = self.volumes.values().map(|volume| volume.store.epoch()).max();
        let stream = self.sessions.listen(id, user, epoch.unwrap_or_default())?;
        self.grace.settle(id);
        Ok(stream)
    }

    async fn record(&self, id: SessionId, user: &str) -> Result<(), FsError> {
        let _making = self.records.read().await;
        let Some(host) = self.sessions.unrecorded(id, user)? else { return Ok(()) };
        for volume in self.volumes.values() {
            // What is there already was synced by whoever wrote it.
            if volume.listeners.contains(&id) {
                continue;
            }
            let (row, host) = (session_key(volume.id, id), host.clone());
            let record = move |txn: &mut Txn| {
                txn.put(&row, SessionRow { host: host.clone() });
                Ok(())
            };
            volume.store.write(Durability::Stable, record).await?;
        }
        self.sessions.set_recorded(id, user)
    }

    /// Removes the row of a session, unless it lives (again).
    async fn erase(&self, id: SessionId) -> Result<(), FsError> {
        let _going = self.records.write().await;
        if self.sessions.is_live(id) {
            return Ok(());
        }
        for volume in self.volumes.values() {
            let row = session_key(volume.id, id);
            let erase = move |txn: &mut Txn| {
                if txn.get(&row)?.is_some() {
                    txn.delete(&row);
                }
                Ok(())
            };
            volume.store.write(Durability::Process, erase).await?;
        }
        Ok(())
    }

    /// Removes the row of a session that is over. If that fails, the next owner waits for it once.
    async fn forget(&self, session: SessionId) {
        if let Err(error) = self.erase(session).await {
            tracing::warn!(%session, %error, "the row of an ended session was not removed");
        }
    }

    async fn end_locks(&self, session: SessionId) {
        let ended = match self.peers.lock() {
            Ok(client) => client
                .call(&Envelope::default(), &EndSession { session }, Vec::new())
                .await
                .map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::warn!(%session, %error, "locks of an ended session were not released");
        }
    }

    /// Ends sessions whose lease is over, and shows listeners that the stream lives.
    pub async fn run_expiry(self, stop: CancellationToken) {
        loop {
            let next = self.clock.boottime() + EXPIRY_INTERVAL;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(next) => {}
            }
            for session in self.sessions.expire() {
                tracing::info!(%session, "session ended: no heartbeat within its lease");
                self.end_locks(session).await;
                self.forget(session).await;
            }
            for session in self.grace.take_missing() {
                tracing::info!(%session, "session did not come back after the start");
                // A lock service that runs apart may have outlived the owner before.
                self.end_locks(session).await;
                self.forget(session).await;
            }
            self.sessions.tell_idle();
        }
    }

    /// Removes the ledger rows of sessions that are over, now and then.
    pub async fn run_sweep(self, stop: CancellationToken) {
        let again = async {
            loop {
                self.clock.sleep_until(self.clock.boottime() + SWEEP_INTERVAL).await;
                if let Err(error) = self.sweep_ledgers().await {
                    tracing::warn!(%error, "rows of ended sessions were not removed");
                }
            }
        };
        stop.run_until_cancelled(again).await;
    }

    /// One sweep. Cancel-safe.
    ///
    /// # Errors
    /// What the store reports; what was removed stays removed.
    pub(super) async fn sweep_ledgers(&self) -> Result<(), FsError> {
        let now = self.clock.wall();
        for volume in self.volumes.values() {
            let is_live = |session| self.sessions.is_live(session);
            ledger::sweep(&volume.store, ledgers(volume.id), now, is_live).await?;
        }
        Ok(())
    }
}

fn random_key() -> Result<MacKey, FsError> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|_| FsError::Internal { incident: "random".into() })?;
    Ok(MacKey(key))
}
