//! Renewing this process's certificate, while it runs and over the one it has.
//!
//! The key stays: only `node.pem` changes, in one step, so a crash leaves the old certificate or
//! the fresh one, and both fit `node.key`. What the cell answers is believed as little as at
//! joining: it must be the CA's, for the own key, with all names, and last longer than what is
//! there. Then it is stored, shown to whoever connects from now on, and handed back for calls.
//! Whom to ask and when is the caller's business (`server::renewer`), who may have one is
//! `admin::registry`'s.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::admin::RenewCertificate;
use dfs_proto::attr::Timestamp;
use dfs_proto::client::TlsIdentity;
use dfs_proto::id::NodeId;

use super::tls::{Credentials, Shown};
use super::{Cell, CellDir, CellError, ca, write_file};
use crate::durable_file::Access;

/// One process's certificate, to be kept fresh.
#[derive(Debug)]
pub struct Renewal {
    dir: CellDir,
    node: NodeId,
    names: Vec<String>,
    shown: Arc<Shown>,
    credentials: Mutex<Credentials>,
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Fresh,
    /// It serves, but not for long enough.
    Due,
    /// It serves no longer: only connections made before are left.
    Ended,
}

impl Renewal {
    pub(super) fn new(cell: &Cell) -> Renewal {
        Renewal {
            dir: cell.dir.clone(),
            node: cell.member.node,
            names: cell.member.names(),
            shown: Arc::clone(&cell.shown),
            credentials: Mutex::new(cell.credentials.clone()),
        }
    }

    pub fn standing(&self, now: Timestamp) -> Standing {
        let credentials = self.credentials();
        if credentials.check(&self.names, now).is_err() {
            return Standing::Ended;
        }
        match credentials.check(&self.names, ca::renewal_horizon(now)) {
            Ok(()) => Standing::Fresh,
            Err(_) => Standing::Due,
        }
    }

    /// What to ask the cell for.
    ///
    /// # Errors
    /// `File`, `Damaged`, `Certificate` if the own key cannot be used.
    pub fn request(&self) -> Result<RenewCertificate, CellError> {
        let key = ca::load_key(&self.dir.node_key())?;
        Ok(RenewCertificate { node: self.node, request_pem: ca::signing_request(&key)? })
    }

    /// Takes the certificate that the cell gave: stores it and shows it. Returns how the process
    /// proves itself to others from now on.
    ///
    /// # Errors
    /// `CertificateUnfit` if it is not what was asked for, `File` if it cannot be stored: then all
    /// stays as it was.
    pub fn install(&self, pem: String, now: Timestamp) -> Result<TlsIdentity, CellError> {
        let mut credentials = self.credentials();
        let fresh = credentials.with_certificate(pem)?;
        fresh.check(&self.names, now)?;
        fresh.check(&self.names, ca::renewal_horizon(now))?;
        write_file(
            &self.dir.node_certificate(),
            fresh.certificate_pem().as_bytes(),
            Access::Public,
        )?;
        self.shown.exchange(&fresh)?;
        *credentials = fresh;
        Ok(credentials.tls_identity())
    }

    fn credentials(&self) -> MutexGuard<'_, Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
