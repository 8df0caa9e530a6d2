//! Keeps the process's certificate fresh: asks the auth role for another one in time, wherever that
//! role lives. The founder asks itself.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::client::CallError;
use dfs_proto::clock::Clock;
use dfs_proto::rpc::Envelope;
use tokio_util::sync::CancellationToken;

use super::network::Network;
use crate::cell::CellError;
use crate::cell::renew::{Renewal, Standing};

/// How often the certificate is looked at. Why an hour: it is due for months.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// First pause after a failure; each further one is twice as long, up to the interval. Why so
/// short: at the start of a cell the auth server may be seconds behind, and a machine that is due
/// may not stay up for an hour.
const RETRY_MIN: Duration = Duration::from_secs(1);

const CALL_DEADLINE_MS: u32 = 10_000;

/// Why there is no fresh certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("the auth server gives none: {0}")]
    Refused(#[from] FsError),
    #[error(transparent)]
    Cell(#[from] CellError),
}

pub struct Renewer {
    pub renewal: Renewal,
    pub network: Network,
    pub clock: Arc<dyn Clock>,
}

impl Renewer {
    /// Renews until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let again = async {
            let mut pause = RETRY_MIN;
            loop {
                let is_fresh = self.look().await;
                let wait = if is_fresh { LOOK_INTERVAL } else { pause };
                pause = if is_fresh { RETRY_MIN } else { (pause * 2).min(LOOK_INTERVAL) };
                self.clock.sleep_until(self.clock.boottime() + wait).await;
            }
        };
        // A renewal given up half way is begun anew at the next start.
        stop.run_until_cancelled(again).await;
    }

    /// Renews the certificate if it is due; whether it is fresh then.
    pub(super) async fn look(&self) -> bool {
        let standing = self.renewal.standing(self.clock.wall());
        if standing == Standing::Fresh {
            return true;
        }
        match self.renew().await {
            Ok(()) => {
                tracing::info!("this node's certificate was renewed");
                true
            }
            Err(error) if standing == Standing::Due => {
                tracing::warn!(%error, "this node's certificate is not renewed yet");
                false
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "this node's certificate has ended and others refuse it: let another data \
                     directory join with a new token"
                );
                false
            }
        }
    }

    async fn renew(&self) -> Result<(), RenewError> {
        let request = self.renewal.request()?;
        let auth = self.network.role(Role::Auth)?;
        let envelope = Envelope { deadline_ms: CALL_DEADLINE_MS, ..Envelope::default() };
        let answer = auth.call(&envelope, &request, Vec::new()).await;
        let pem = answer.map_err(CallError::into_fs)?.reply.certificate_pem;
        self.network.set_identity(self.renewal.install(pem, self.clock.wall())?);
        Ok(())
    }
}
