//! The cell's certificate authority: one ECDSA P-256 key, made at the first start.
//!
//! It signs certificates for nodes of this cell only, and chooses every name in them itself: of a
//! signing request it takes nothing but the public key. The key leaves neither DIR/cell/ca.key nor
//! this module. An existing CA is never replaced: clients everywhere have pinned it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use webpki::EndEntityCert;

use dfs_proto::attr::Timestamp;
use dfs_proto::id::{ParseIdError, parse_hex};

use super::tls::{Credentials, verify_chain};
use super::{CellDir, CellError, read_text, write_file};
use crate::durable_file::{self, Access};
use crate::secret;

/// How long the CA lives. Why: changing it means visiting every client.
const CA_LIFETIME: Duration = Duration::days(3650);

/// How long a node's certificate lives.
const NODE_LIFETIME: Duration = Duration::days(365);

/// A certificate that ends sooner than this is due to be renewed.
///
/// Why a third of its life: a node that was switched off for months comes back with one that still
/// serves, and an auth server that is away leaves everybody time to mend it.
const RENEW_BEFORE: Duration = Duration::days(120);

/// Certificates are valid from this long before they are made: the clocks of a cell differ.
const BACKDATED: Duration = Duration::hours(1);

/// The clock of a machine that says an earlier time was never set. Units: seconds since 1970; this
/// is the beginning of 2020.
const CLOCK_SECS_MIN: i64 = 1_577_836_800;

/// Longest signing request. Units: bytes. Why: one with a P-256 key has under 1 KiB.
pub(super) const REQUEST_BYTES_MAX: usize = 8 << 10;

/// SHA-256 of the DER form of a CA's certificate. Its text form is lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the certificate that `pem` is; `None` if it is not exactly one. With two
    /// the fingerprint would speak for one while whoever reads the PEM trusts both.
    pub fn of_pem(pem: &[u8]) -> Option<Fingerprint> {
        let mut certificates = CertificateDer::pem_slice_iter(pem);
        let only = certificates.next()?.ok()?;
        certificates.next().is_none().then(|| Fingerprint::of_der(&only))
    }

    pub fn of_der(der: &[u8]) -> Fingerprint {
        Fingerprint(secret::sha256(der))
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&secret::hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Fingerprint, ParseIdError> {
        parse_hex(text).map(Fingerprint).ok_or_else(|| ParseIdError {
            expected: "a fingerprint (64 hexadecimal digits)",
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Fingerprint, ParseIdError> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

/// A public key that its owner has proved to hold the private half of.
pub struct ProvenKey {
    key: rcgen::PublicKey,
}

impl ProvenKey {
    /// Reads a certificate signing request and checks its signature.
    ///
    /// # Errors
    /// What is wrong with the request, in words.
    pub fn from_request(pem: &str) -> Result<ProvenKey, String> {
        if pem.len() > REQUEST_BYTES_MAX {
            return Err(format!("signing request is over the limit of {REQUEST_BYTES_MAX} bytes"));
        }
        let request = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| format!("signing request: {error}"))?;
        let key = request.public_key;
        // The parser tells the kind of key by the signature; the length makes sure of the curve.
        let is_p256 = *key.algorithm() == PKCS_ECDSA_P256_SHA256
            && key.der_bytes().len() == P256_POINT_BYTES
            && key.der_bytes()[0] == P256_POINT_UNCOMPRESSED;
        if !is_p256 {
            return Err("signing request: its key is not ECDSA P-256".to_owned());
        }
        Ok(ProvenKey { key })
    }

    /// Whether a certificate is for this key.
    fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        let leaf = EndEntityCert::try_from(certificate);
        // The key's point ends the description of it.
        leaf.is_ok_and(|leaf| leaf.subject_public_key_info().ends_with(self.key.der_bytes()))
    }

    /// Tells keys apart.
    pub fn hash(&self) -> [u8; 32] {
        secret::sha256(self.key.der_bytes())
    }
}

/// Shape of an uncompressed point of P-256. Source: SEC 1, section 2.3.3.
const P256_POINT_BYTES: usize = 65;
const P256_POINT_UNCOMPRESSED: u8 = 4;

/// The CA with its key.
pub struct CertificateAuthority {
    pem: String,
    certificate: CertificateDer<'static>,
    fingerprint: Fingerprint,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateAuthority({})", self.fingerprint)
    }
}

impl CertificateAuthority {
    /// # Errors
    /// `Missing`, `Damaged` or `File` if certificate and key are not there as they were made.
    pub(super) fn load(dir: &CellDir) -> Result<CertificateAuthority, CellError> {
        let remedy = "the cell cannot be served without its CA; restore it from a backup";
        let missing = |path| CellError::Missing { path, remedy };
        let pem = read_text(&dir.ca_certificate())?.ok_or_else(|| missing(dir.ca_certificate()))?;
        let key = read_text(&dir.ca_key())?.ok_or_else(|| missing(dir.ca_key()))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| CellError::damaged(&dir.ca_certificate(), error))?;
        let key =
            KeyPair::from_pem(&key).map_err(|error| CellError::damaged(&dir.ca_key(), error))?;
        // A P-256 public key occurs in the certificate as it is: other tools may have swapped keys.
        let own = key.public_key_raw();
        if !certificate.windows(own.len()).any(|bytes| bytes == own) {
            return Err(CellError::damaged(&dir.ca_key(), "it is not the key of ca.pem"));
        }
        let fingerprint = Fingerprint::of_der(&certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| CellError::damaged(&dir.ca_certificate(), error))?;
        Ok(CertificateAuthority { pem, certificate, fingerprint, issuer })
    }

    /// Loads the CA, or makes it if there is no certificate yet.
    ///
    /// The key is written first: a key alone has certified nothing and is used again, while a
    /// certificate without its key is a loss that nothing here may cover up.
    pub(super) fn load_or_make(
        dir: &CellDir,
        now: Timestamp,
    ) -> Result<CertificateAuthority, CellError> {
        let path = dir.ca_certificate();
        if path.exists() {
            return CertificateAuthority::load(dir);
        }
        let key = load_or_make_key(&dir.ca_key())?;
        let certificate = ca_params(now)?.self_signed(&key).map_err(CellError::Certificate)?;
        durable_file::create_new(&path, certificate.pem().as_bytes(), Access::Public)
            .map_err(CellError::file("write", &path))?;
        let authority = CertificateAuthority::load(dir)?;
        tracing::info!(fingerprint = %authority.fingerprint, "made the cell's CA");
        Ok(authority)
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// PEM of a certificate for a node's key, with exactly these DNS names.
    ///
    /// # Errors
    /// `ClockUnset`; `Certificate` if a name is none.
    pub fn certify(
        &self,
        names: &[String],
        key: &ProvenKey,
        now: Timestamp,
    ) -> Result<String, CellError> {
        Ok(self.sign(names, &key.key, now)?.pem())
    }

    /// Whether `over` is a certificate of this CA for this key that serves: who has proved it in a
    /// handshake may have another one with no more names.
    ///
    /// # Errors
    /// What is wrong, in words. A connection may outlast the certificate that it was made with, and
    /// somebody who can make a node send a request does not have its key.
    pub fn check_renewal(
        &self,
        over: &[u8],
        key: &ProvenKey,
        now: Timestamp,
    ) -> Result<(), String> {
        let over = CertificateDer::from(over);
        verify_chain(&self.certificate, &over, now)
            .map_err(|error| format!("its certificate does not serve: {error}"))?;
        match key.is_of(&over) {
            true => Ok(()),
            false => Err("its certificate is for another key".to_owned()),
        }
    }

    fn sign(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<Certificate, CellError> {
        let params = node_params(names, now)?;
        params.signed_by(key, &self.issuer).map_err(CellError::Certificate)
    }

    /// The own process's credentials: those on disk if they serve for a while yet, else new ones
    /// for the same key. Only the certificate changes, so a crash leaves the old or the new one,
    /// never one that does not fit its key.
    pub(super) fn certify_own(
        &self,
        dir: &CellDir,
        names: &[String],
        now: Timestamp,
    ) -> Result<Credentials, CellError> {
        let key = load_or_make_key(&dir.node_key())?;
        if dir.node_certificate().exists() {
            let serving = Credentials::load(dir).and_then(|credentials| {
                credentials.check(names, now)?;
                credentials.check(names, renewal_horizon(now))?;
                Ok(credentials)
            });
            match serving {
                Ok(credentials) => return Ok(credentials),
                Err(error) => tracing::info!(%error, "this node's certificate is issued anew"),
            }
        }
        let certificate = self.sign(names, &key, now)?;
        write_file(&dir.node_certificate(), certificate.pem().as_bytes(), Access::Public)?;
        let credentials = Credentials::load(dir)?;
        credentials.check(names, now)?;
        Ok(credentials)
    }
}

/// A certificate that does not last until then is to be renewed.
pub(super) fn renewal_horizon(now: Timestamp) -> Timestamp {
    Timestamp::new(now.secs + RENEW_BEFORE.whole_seconds(), now.nanos)
}

/// The key at `path`.
pub(super) fn load_key(path: &Path) -> Result<KeyPair, CellError> {
    let remedy = "restore it from a backup, or enter the cell again with a new join token";
    let missing = || CellError::Missing { path: path.to_owned(), remedy };
    let pem = read_text(path)?.ok_or_else(missing)?;
    KeyPair::from_pem(&pem).map_err(|error| CellError::damaged(path, error))
}

/// A node's key for its signing request: the one on disk, or a new one.
pub(super) fn load_or_make_key(path: &Path) -> Result<KeyPair, CellError> {
    if path.exists() {
        return load_key(path);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CellError::Certificate)?;
    durable_file::create_new(path, key.serialize_pem().as_bytes(), Access::Private)
        .map_err(CellError::file("write", path))?;
    Ok(key)
}

/// PEM of a signing request for `key`. It names nothing: the CA chooses the names.
pub(super) fn signing_request(key: &KeyPair) -> Result<String, CellError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("DFS node");
    params.serialize_request(key).and_then(|request| request.pem()).map_err(CellError::Certificate)
}

fn ca_params(now: Timestamp) -> Result<CertificateParams, CellError> {
    let mut params = base_params(now, CA_LIFETIME)?;
    // Random, so that two cells' CAs are told apart by name as well.
    params.distinguished_name =
        common_name(&format!("DFS cell CA {}", secret::hex(&secret::random::<4>())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn node_params(names: &[String], now: Timestamp) -> Result<CertificateParams, CellError> {
    let mut params = base_params(now, NODE_LIFETIME)?;
    params.distinguished_name = common_name("DFS node");
    params.subject_alt_names =
        CertificateParams::new(names).map_err(CellError::Certificate)?.subject_alt_names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn base_params(now: Timestamp, lifetime: Duration) -> Result<CertificateParams, CellError> {
    let unset = CellError::ClockUnset { secs: now.secs };
    if now.secs < CLOCK_SECS_MIN {
        return Err(unset);
    }
    let now = OffsetDateTime::from_unix_timestamp(now.secs).map_err(|_| unset)?;
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATED;
    params.not_after = now + lifetime;
    // Random, not derived from the key as by default: a renewal keeps the key, and no two
    // certificates of a CA may have one number. The first bit is off because numbers are signed.
    let mut serial = secret::random::<16>();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

#[cfg(test)]
mod tests;
