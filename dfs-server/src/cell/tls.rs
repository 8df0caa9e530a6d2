//! TLS for servers: TLS 1.3 only, this cell's CA as the only trust root.
//!
//! A connection may come with a client certificate or without. One that comes with a certificate of
//! another CA, or an expired one, ends in the handshake; so a [`PeerCertificate`] is always one
//! that this cell's CA signed, and only asks which names it has.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use dfs_proto::admin::{Role, node_tls_name};
use dfs_proto::attr::Timestamp;
use dfs_proto::client::TlsIdentity;
use dfs_proto::credential::Secret;
use dfs_proto::id::NodeId;

use super::ca::Fingerprint;
use super::{CellDir, CellError, read_text};
use crate::request::NodeProof;

/// What the connection is for, in the handshake. Source: RFC 7301; the protocol is HTTP/1.1.
const ALPN: &[u8] = b"http/1.1";

/// The cell's CA certificate, this process's certificate and its key.
#[derive(Clone)]
pub struct Credentials {
    ca_pem: String,
    certificate_pem: String,
    key_pem: Secret,
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials(ca {})", self.ca_fingerprint())
    }
}

impl Credentials {
    pub(super) fn load(dir: &CellDir) -> Result<Credentials, CellError> {
        let read = |path: std::path::PathBuf| {
            let remedy = "enter the cell again with a new join token";
            read_text(&path)?.ok_or(CellError::Missing { path, remedy })
        };
        let ca_pem = read(dir.ca_certificate())?;
        let certificate_pem = read(dir.node_certificate())?;
        let key_pem = Secret::new(read(dir.node_key())?);
        Credentials::new(ca_pem, certificate_pem, key_pem)
    }

    /// # Errors
    /// `CertificateUnfit` if one of them is no certificate.
    pub fn new(
        ca_pem: String,
        certificate_pem: String,
        key_pem: Secret,
    ) -> Result<Credentials, CellError> {
        // Exactly one each: a second CA certificate in the file would be trusted as well.
        let parse = |what: &str, pem: &str| {
            let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
            match (found.next(), found.next()) {
                (Some(Ok(only)), None) => Ok(only),
                _ => Err(CellError::CertificateUnfit(format!("{what} is not one PEM certificate"))),
            }
        };
        let ca = parse("the CA's certificate", &ca_pem)?;
        let certificate = parse("this node's certificate", &certificate_pem)?;
        Ok(Credentials { ca_pem, certificate_pem, key_pem, ca, certificate })
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn ca_fingerprint(&self) -> Fingerprint {
        Fingerprint::of_der(&self.ca)
    }

    pub fn tls_identity(&self) -> TlsIdentity {
        let pem = format!("{}{}{}", self.certificate_pem, self.ca_pem, self.key_pem.expose());
        TlsIdentity { pem: pem.into() }
    }

    /// Whether the certificate is the CA's, valid at `at`, has all of `names` and fits its key.
    ///
    /// # Errors
    /// `CertificateUnfit` says which of these does not hold.
    pub(super) fn check(&self, names: &[String], at: Timestamp) -> Result<(), CellError> {
        let unfit = CellError::CertificateUnfit;
        verify_chain(&self.ca, &self.certificate, at).map_err(|error| unfit(error.to_string()))?;
        if let Some(name) = names.iter().find(|name| !has_name(&self.certificate, name)) {
            return Err(unfit(format!("it does not have the name {name}")));
        }
        self.certified_key().map(|_| ()).map_err(|error| unfit(error.to_string()))
    }

    /// The same process with another certificate for its key.
    ///
    /// # Errors
    /// `CertificateUnfit` if it is none.
    pub(super) fn with_certificate(&self, pem: String) -> Result<Credentials, CellError> {
        Credentials::new(self.ca_pem.clone(), pem, self.key_pem.clone())
    }

    fn certified_key(&self) -> Result<CertifiedKey, rustls::Error> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.expose().as_bytes())
            .map_err(|error| rustls::Error::General(format!("this node's key: {error}")))?;
        let chain = vec![self.certificate.clone(), self.ca.clone()];
        CertifiedKey::from_der(chain, key, &provider())
    }

    /// What a server shows with these credentials: the CA's certificate beside its own, so that a
    /// client that has not pinned it yet can show its fingerprint to its user.
    ///
    /// # Errors
    /// `Tls` if certificate and key do not go together.
    pub(super) fn shown(&self) -> Result<Shown, CellError> {
        let certified = self.certified_key().map_err(CellError::Tls)?;
        Ok(Shown(RwLock::new(Arc::new(certified))))
    }

    /// How a server accepts connections that shows `shown`.
    pub(super) fn server_config(&self, shown: Arc<Shown>) -> Result<Arc<ServerConfig>, CellError> {
        let provider = Arc::new(provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(CellError::Tls)?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| CellError::Tls(rustls::Error::General(error.to_string())))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CellError::Tls)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(shown);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

/// The certificate that a server shows. It may be exchanged while the server runs: handshakes from
/// then on show the other one.
#[derive(Debug)]
pub(super) struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    /// # Errors
    /// As [`Credentials::shown`]; what is shown stays as it was.
    pub fn exchange(&self, credentials: &Credentials) -> Result<(), CellError> {
        let certified = credentials.certified_key().map_err(CellError::Tls)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Whether `leaf` is a certificate of the CA for servers and clients that serves at `at`.
pub(super) fn verify_chain(
    ca: &CertificateDer<'_>,
    leaf: &CertificateDer<'_>,
    at: Timestamp,
) -> Result<(), webpki::Error> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.secs.max(0).unsigned_abs()));
    let anchors = [anchor_from_trusted_cert(ca)?];
    let leaf = EndEntityCert::try_from(leaf)?;
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        leaf.verify_for_usage(algorithms, &anchors, &[], at, usage, None, None)?;
    }
    Ok(())
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// A certificate that a peer has proved in a handshake with [`Credentials::server_config`].
#[derive(Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    der: CertificateDer<'static>,
    /// In order; judged once, because every request of the connection asks.
    roles: Vec<Role>,
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerCertificate({:?})", self.roles)
    }
}

impl PeerCertificate {
    /// `der` is the first of the certificates that the handshake verified.
    pub fn new(der: &CertificateDer<'_>) -> PeerCertificate {
        let der = der.clone().into_owned();
        let roles = Role::ALL.into_iter().filter(|role| has_name(&der, role.tls_name())).collect();
        PeerCertificate { der, roles }
    }

    /// The certificate a connection's client showed; `None` if it showed none.
    pub fn of_connection(connection: &rustls::ServerConnection) -> Option<PeerCertificate> {
        let leaf = connection.peer_certificates()?.first()?;
        Some(PeerCertificate::new(leaf))
    }

    /// The roles the CA has given the peer.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    pub fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether the peer's process is this node, or this file node lives in it.
    pub fn is_node(&self, node: NodeId) -> bool {
        has_name(&self.der, &node_tls_name(node))
    }

    /// The certificate as handlers ask it.
    pub fn into_proof(self) -> NodeProof {
        let (roles, der) = (self.roles.clone().into(), self.der.clone());
        NodeProof::new(roles, move |node| self.is_node(node)).with_certificate(&der)
    }
}

fn has_name(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else {
        return false;
    };
    EndEntityCert::try_from(certificate)
        .is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

#[cfg(test)]
mod tests;
