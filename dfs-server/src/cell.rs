//! A process's place in the cell: the CA, its certificate and key, its node ids.
//!
//! Owns DIR/cell. The process with the auth role founds the cell at its first start and keeps the
//! CA; others enter with a join token ([`join`]). Opening is idempotent: whatever a crash left
//! undone is completed by the next start, an existing CA is never replaced, and a certificate that
//! ends soon or no longer fits the roles is issued anew by whoever has the CA's key. While they
//! run, all processes renew theirs in time ([`renew`]).
//!
//! ```text
//! DIR/cell/ca.pem      the CA's certificate            ca.key     its key (founder only, 0600)
//! DIR/cell/node.pem    this process's certificate      node.key   its key (0600)
//! DIR/cell/node.toml   who this process is; written last: with it the process is of the cell
//! DIR/cell/map.json    where the other nodes were last (joined processes)
//! ```
//!
//! It knows no accounts and no metadata engine: the list of the cell's nodes, which the auth role
//! keeps, is `admin::registry`.

pub mod bootstrap;
pub mod ca;
pub mod join;
pub mod map;
pub mod member;
pub mod renew;
pub mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_proto::admin::Role;
use dfs_proto::attr::Timestamp;
use dfs_proto::client::TlsIdentity;
use dfs_proto::id::NodeId;

use crate::durable_file::{self, Access};
use ca::{CertificateAuthority, Fingerprint};
use member::Member;
use renew::Renewal;

/// Where the cell's files are in a data directory.
#[derive(Clone, Debug)]
pub struct CellDir(PathBuf);

impl CellDir {
    /// The cell's directory in the data directory `data_dir`.
    pub fn of(data_dir: &Path) -> CellDir {
        CellDir(data_dir.join("cell"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn ca_certificate(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    pub fn ca_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    pub fn node_certificate(&self) -> PathBuf {
        self.0.join("node.pem")
    }

    pub fn node_key(&self) -> PathBuf {
        self.0.join("node.key")
    }

    pub fn member(&self) -> PathBuf {
        self.0.join("node.toml")
    }

    pub fn map(&self) -> PathBuf {
        self.0.join("map.json")
    }

    /// The key tickets are signed with.
    pub fn ticket_key(&self) -> PathBuf {
        self.0.join("ticket.key")
    }
}

/// Why a process cannot take its place in the cell.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged: {why}; restore it from a backup", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} is missing: {remedy}", path.display())]
    Missing { path: PathBuf, remedy: &'static str },
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    #[error("certificate does not serve: {0}")]
    CertificateUnfit(String),
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error(
        "{} is of no cell yet: give --join TOKEN (`dfs admin token new` makes one), \
         or start it with the auth role to found a cell", data_dir.display()
    )]
    NotMember { data_dir: PathBuf },
    #[error(
        "this process entered the cell with the roles {entered}, not {wanted}; start it with \
         --roles {entered}, or let another data directory join with a new token"
    )]
    RolesDiffer { entered: String, wanted: String },
    #[error(
        "this data directory has {has} file nodes, not {wanted}; start it with --file-nodes {has}, \
         or let another data directory join with a new token"
    )]
    FileNodesDiffer { has: usize, wanted: usize },
    #[error("the clock says {secs} s after 1970; set it before certificates are made")]
    ClockUnset { secs: i64 },
    #[error("{0} is over the limit of {FILE_NODES_MAX} file nodes in one process")]
    TooManyFileNodes(u32),
}

impl CellError {
    fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CellError {
        let path = path.to_owned();
        move |source| CellError::File { what, path, source }
    }

    fn damaged(path: &Path, why: impl ToString) -> CellError {
        CellError::Damaged { path: path.to_owned(), why: why.to_string() }
    }
}

/// Most file nodes in one process. Why: each has a name in the process's certificate.
pub const FILE_NODES_MAX: u32 = 64;

/// Largest certificate, key or description of a node. Units: bytes.
const CELL_FILE_BYTES_MAX: usize = 256 << 10;

/// What the command line wants this process to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub roles: &'a [Role],
    /// How many file nodes live in the process; meant only with the file role.
    pub file_nodes: u32,
}

impl Wanted<'_> {
    /// The roles in order, each once.
    fn sorted_roles(&self) -> Vec<Role> {
        let mut roles = self.roles.to_vec();
        roles.sort_unstable();
        roles.dedup();
        roles
    }

    /// How many file nodes there will really be.
    fn file_node_count(&self) -> Result<u32, CellError> {
        match self.file_nodes {
            count if count > FILE_NODES_MAX => Err(CellError::TooManyFileNodes(count)),
            count if self.roles.contains(&Role::File) => Ok(count),
            _ => Ok(0),
        }
    }
}

/// A process's place in the cell, ready to serve and to dial.
#[derive(Debug)]
pub struct Cell {
    dir: CellDir,
    member: Member,
    credentials: tls::Credentials,
    shown: Arc<tls::Shown>,
    authority: Option<Arc<CertificateAuthority>>,
}

impl Cell {
    /// Opens the process's place in the cell. A process with the auth role founds the cell if there
    /// is none.
    ///
    /// # Errors
    /// `NotMember` if the process is of no cell and cannot found one; `RolesDiffer`,
    /// `FileNodesDiffer` if the command line wants something else than what the cell knows;
    /// `Missing`, `Damaged`, `File` if a file of the place is not as it must be.
    pub fn open(data_dir: &Path, wanted: Wanted<'_>, now: Timestamp) -> Result<Cell, CellError> {
        let dir = CellDir::of(data_dir);
        if wanted.roles.contains(&Role::Auth) {
            return Cell::found(dir, wanted, now);
        }
        let Some(member) = Member::load(&dir)? else {
            return Err(CellError::NotMember { data_dir: data_dir.to_owned() });
        };
        member.check_roles(&wanted.sorted_roles())?;
        member.check_file_nodes(wanted.file_node_count()?)?;
        let credentials = tls::Credentials::load(&dir)?;
        member.check_cell(&dir, credentials.ca_fingerprint())?;
        credentials.check(&member.names(), now)?;
        let shown = Arc::new(credentials.shown()?);
        Ok(Cell { dir, member, credentials, shown, authority: None })
    }

    /// Founds the cell, or completes or opens what was founded.
    fn found(dir: CellDir, wanted: Wanted<'_>, now: Timestamp) -> Result<Cell, CellError> {
        durable_file::create_dir(dir.path()).map_err(CellError::file("make", dir.path()))?;
        let before = Member::load(&dir)?;
        let authority = match &before {
            Some(member) => {
                if !member.roles.contains(&Role::Auth) {
                    member.check_roles(&wanted.sorted_roles())?;
                }
                let authority = CertificateAuthority::load(&dir)?;
                member.check_cell(&dir, authority.fingerprint())?;
                authority
            }
            None => CertificateAuthority::load_or_make(&dir, now)?,
        };
        let member = Member::found(&dir, before, authority.fingerprint(), wanted)?;
        let credentials = authority.certify_own(&dir, &member.names(), now)?;
        let (shown, authority) = (Arc::new(credentials.shown()?), Some(Arc::new(authority)));
        Ok(Cell { dir, member, credentials, shown, authority })
    }

    pub fn dir(&self) -> &CellDir {
        &self.dir
    }

    /// Names the cell: the hash of its CA's certificate.
    pub fn id(&self) -> Fingerprint {
        self.member.cell
    }

    /// This process's node id.
    pub fn node(&self) -> NodeId {
        self.member.node
    }

    /// The file nodes that live in this process, in order.
    pub fn file_nodes(&self) -> &[NodeId] {
        &self.member.file_nodes
    }

    pub fn roles(&self) -> &[Role] {
        &self.member.roles
    }

    /// PEM of the CA's certificate: what clients fetch at `/ca.pem`.
    pub fn ca_pem(&self) -> &str {
        self.credentials.ca_pem()
    }

    pub fn ca_fingerprint(&self) -> Fingerprint {
        self.credentials.ca_fingerprint()
    }

    /// The CA itself, in the process that founded the cell.
    pub fn authority(&self) -> Option<Arc<CertificateAuthority>> {
        self.authority.clone()
    }

    /// How this process proves itself to the nodes that it dials.
    pub fn tls_identity(&self) -> TlsIdentity {
        self.credentials.tls_identity()
    }

    /// How this process accepts connections. A renewal changes what it shows.
    ///
    /// # Errors
    /// `Tls` if the CA's certificate cannot be trusted.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, CellError> {
        self.credentials.server_config(Arc::clone(&self.shown))
    }

    /// Keeps this process's certificate fresh.
    pub fn renewal(&self) -> Renewal {
        Renewal::new(self)
    }
}

/// Writes one of the cell's files durably.
fn write_file(path: &Path, bytes: &[u8], access: Access) -> Result<(), CellError> {
    durable_file::write(path, bytes, access).map_err(CellError::file("write", path))
}

/// Reads one of the cell's files as text.
fn read_text(path: &Path) -> Result<Option<String>, CellError> {
    let bytes =
        durable_file::read(path, CELL_FILE_BYTES_MAX).map_err(CellError::file("read", path))?;
    bytes
        .map(|bytes| String::from_utf8(bytes).map_err(|_| CellError::damaged(path, "not text")))
        .transpose()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
