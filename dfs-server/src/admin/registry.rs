//! The auth role's list of the cell's processes: who they are, where they are, who may enter.
//!
//! Owns the rows of `Space::CELL`. Node ids are handed out once and never again, in the transaction
//! that uses a join token up. A process is on the map once it has announced itself; what it says of
//! itself must be in its certificate. When a process was last heard of is kept in memory only.

mod row;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::{
    Announce, CellMap, Join, JoinReply, Map, NewJoinToken, NodeEntry, RenewCertificate,
    RenewCertificateReply, Role,
};
use dfs_proto::clock::Clock;
use dfs_proto::credential::Secret;
use dfs_proto::id::NodeId;

use crate::cell::ca::{CertificateAuthority, Fingerprint, ProvenKey};
use crate::cell::join::{JoinToken, TOKEN_SECRET_BYTES};
use crate::cell::member::certificate_names;
use crate::cell::{Cell, CellError, FILE_NODES_MAX};
use crate::meta::{Abort, Durability, Key, ReadTxn, Store, Txn};
use crate::request::{Context, Peer};
use crate::secret;
use row::{Admission, CellRow, NodeRow, TokenRow, Wish};

/// How long a join token is good for. Units: seconds.
pub const TOKEN_LIFETIME_SECS: i64 = 24 * 3600;

/// Most processes of a cell, and most join tokens that wait for use.
const NODES_MAX: usize = 10_000;
const TOKENS_MAX: usize = 1000;

/// Longest host name. Units: bytes. Source: RFC 1035, section 2.3.4.
const HOST_BYTES_MAX: usize = 253;

/// Why the registry cannot open.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot read the cell's nodes")]
    Store(#[from] FsError),
    #[error(
        "the metadata is of the cell {metadata}, this data directory of {directory}: a file was \
         replaced; restore both from one backup"
    )]
    OtherCell { metadata: Fingerprint, directory: Fingerprint },
    #[error("this process has no CA: only the founder of a cell keeps its list of nodes")]
    NotFounder,
}

/// What the registry stands on.
#[derive(Debug)]
pub struct RegistryParts<'a> {
    /// The store of `Space::CELL`.
    pub store: Store,
    /// The founder's place in the cell.
    pub cell: &'a Cell,
    /// Where other hosts reach this process: join tokens name it.
    pub host: String,
    pub port: u16,
    pub clock: Arc<dyn Clock>,
}

/// The cell's processes.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    authority: Arc<CertificateAuthority>,
    own: NodeId,
    host: String,
    port: u16,
    clock: Arc<dyn Clock>,
    /// On the boottime clock. Nobody was heard of before.
    opened: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<NodeId, NodeRow>,
    /// On the boottime clock.
    heard: HashMap<NodeId, Duration>,
}

impl Registry {
    /// Opens the list; the own process is on it at once.
    ///
    /// # Errors
    /// `OtherCell` if rows and data directory do not belong together; `NotFounder`; `Store`.
    pub async fn open(parts: RegistryParts<'_>) -> Result<Registry, RegistryError> {
        let RegistryParts { store, cell, host, port, clock } = parts;
        let authority = cell.authority().ok_or(RegistryError::NotFounder)?;
        let (from, to) = row::nodes();
        let rows = store.scan::<NodeRow>(from, to, NODES_MAX).await?;
        let nodes = rows.iter().map(|(_, row)| (row.node, (**row).clone())).collect();
        let own = NodeRow {
            node: cell.node(),
            roles: cell.roles().to_vec(),
            host: None,
            port,
            file_nodes: cell.file_nodes().to_vec(),
        };
        let registry = Registry {
            store,
            authority,
            own: own.node,
            host,
            port,
            opened: clock.boottime(),
            clock,
            known: Mutex::new(Known { nodes, heard: HashMap::new() }),
        };
        registry.claim(cell.id()).await?;
        registry.put_node(own).await?;
        Ok(registry)
    }

    /// Makes sure that the rows are this cell's; new rows become it.
    async fn claim(&self, directory: Fingerprint) -> Result<(), RegistryError> {
        let claim = move |txn: &mut Txn<'_>| match txn.get(&row::cell())? {
            Some(row) => Ok(row.cell),
            None => {
                txn.put(&row::cell(), CellRow { cell: directory.to_bytes(), next_node: NodeId(1) });
                Ok(directory.to_bytes())
            }
        };
        let claimed = self.store.write(Durability::Stable, claim).await?;
        let metadata = Fingerprint::from_bytes(claimed);
        if metadata == directory {
            return Ok(());
        }
        Err(RegistryError::OtherCell { metadata, directory })
    }

    /// Writes a node's row if it says something new; no id of it will be handed out again.
    async fn put_node(&self, node: NodeRow) -> Result<(), FsError> {
        if self.known().nodes.get(&node.node) == Some(&node) {
            return Ok(());
        }
        let written = node.clone();
        let put = move |txn: &mut Txn<'_>| row::put_node(txn, written.clone());
        self.store.write(Durability::Stable, put).await?;
        self.known().nodes.insert(node.node, node);
        Ok(())
    }

    /// `admin.map`.
    pub fn map(&self, _request: &Map) -> CellMap {
        let (known, now) = (self.known(), self.clock.boottime());
        let silence = |node| match known.heard.get(&node) {
            _ if node == self.own => Duration::ZERO,
            heard => now.saturating_sub(*heard.unwrap_or(&self.opened)),
        };
        let entry = |row: &NodeRow| NodeEntry {
            node: row.node,
            roles: row.roles.clone(),
            host: row.host.clone(),
            port: row.port,
            file_nodes: row.file_nodes.clone(),
            silent_ms: u64::try_from(silence(row.node).as_millis()).unwrap_or(u64::MAX),
        };
        CellMap { nodes: known.nodes.values().map(entry).collect() }
    }

    /// `admin.announce`. A host that the node does not name is the address it calls from; on this
    /// host it stays open, and whoever asks takes the host by which he reached us.
    ///
    /// # Errors
    /// `NotPermitted` if its certificate does not say what it says; `InvalidArgument` for a host or
    /// port that is none.
    pub async fn announce(&self, context: &Context, request: Announce) -> Result<CellMap, FsError> {
        let NodeEntry { node, mut roles, host, port, file_nodes, .. } = request.entry;
        roles.sort_unstable();
        roles.dedup();
        context.require_node(node)?;
        roles.iter().try_for_each(|role| context.require_role(*role))?;
        if file_nodes.len() > FILE_NODES_MAX as usize {
            return Err(FsError::invalid("number of file nodes"));
        }
        file_nodes.iter().try_for_each(|node| context.require_node(*node))?;
        let host = host.or_else(|| {
            let address = context.address?.to_canonical();
            (!address.is_loopback()).then(|| address.to_string())
        });
        if port == 0 || !host.as_deref().is_none_or(is_host) {
            return Err(FsError::invalid("host or port of the node"));
        }
        let is_new = !self.known().nodes.contains_key(&node);
        if is_new && self.known().nodes.len() >= NODES_MAX {
            let what = "nodes of the cell".to_owned();
            return Err(FsError::TooLarge { what, limit: NODES_MAX as u64 });
        }
        self.put_node(NodeRow { node, roles, host, port, file_nodes }).await?;
        self.known().heard.insert(node, self.clock.boottime());
        Ok(self.map(&Map {}))
    }

    /// `admin.join_token`: the text of a new token.
    ///
    /// # Errors
    /// `InvalidArgument` if it is for no role, or for the auth role: the CA and the ticket key do
    /// not leave the founder.
    pub async fn join_token(&self, request: NewJoinToken) -> Result<Secret, FsError> {
        let mut roles = request.roles;
        roles.sort_unstable();
        roles.dedup();
        if roles.is_empty() {
            return Err(FsError::invalid("join token for no role"));
        }
        if roles.contains(&Role::Auth) {
            return Err(FsError::invalid("join token for the auth role, which cannot be joined,"));
        }
        let secret = secret::random_hex::<TOKEN_SECRET_BYTES>();
        let hash = secret::stored_form(&secret);
        let now = self.clock.wall().secs;
        let over = self.tokens_over(now).await?;
        let token = TokenRow { roles, expires: now + TOKEN_LIFETIME_SECS, used: None };
        let put = move |txn: &mut Txn<'_>| {
            over.iter().for_each(|key| txn.delete(key));
            txn.put(&row::token(&hash), token.clone());
            Ok(())
        };
        self.store.write(Durability::Stable, put).await?;
        let fingerprint = self.authority.fingerprint();
        let (host, port) = (self.host.clone(), self.port);
        Ok(JoinToken { host, port, fingerprint, secret }.to_text())
    }

    /// The tokens whose time is over.
    async fn tokens_over(&self, now: i64) -> Result<Vec<Key<TokenRow>>, FsError> {
        let (from, to) = row::tokens();
        let rows = self.store.scan::<TokenRow>(from, to, TOKENS_MAX).await?;
        let is_over = |row: &TokenRow| row.expires <= now;
        if rows.len() == TOKENS_MAX && !rows.iter().any(|(_, row)| is_over(row)) {
            return Err(FsError::unavailable("too many join tokens wait for use"));
        }
        let over = rows.into_iter().filter(|(_, row)| is_over(row));
        Ok(over.map(|(key, _)| Key::from_bytes(key)).collect())
    }

    /// `admin.join`. Asked again by the holder of the same key with the same token and wishes, it
    /// answers with the same node ids: a lost reply does not use the token up.
    ///
    /// # Errors
    /// `JoinRefused` if the token is unknown, used, expired or not for these roles; `Malformed` if
    /// the signing request is none.
    pub async fn join(&self, request: Join) -> Result<JoinReply, FsError> {
        let Join { secret, request_pem, mut roles, file_nodes } = request;
        roles.sort_unstable();
        roles.dedup();
        if file_nodes > FILE_NODES_MAX {
            let what = "number of file nodes".to_owned();
            return Err(FsError::TooLarge { what, limit: u64::from(FILE_NODES_MAX) });
        }
        if file_nodes > 0 && !roles.contains(&Role::File) {
            return Err(FsError::invalid("file nodes without the file role"));
        }
        // By its hash: how long the search takes tells nothing of any secret.
        let hash = secret::stored_form(&secret);
        let now = self.clock.wall();
        let look = |txn: &mut ReadTxn<'_>| -> Result<(), Abort> {
            row::valid_token(txn, &hash, now.secs).map(|_| ())
        };
        // Strangers get no signature checked.
        self.store.read(look).await?;
        let key = ProvenKey::from_request(&request_pem).map_err(FsError::malformed)?;
        let wish = Wish { key: key.hash(), roles: roles.clone(), file_nodes };
        let admit = move |txn: &mut Txn<'_>| row::admit(txn, &hash, &wish, now.secs);
        let Admission { node, file_nodes } = self.store.write(Durability::Stable, admit).await?;
        let names = certificate_names(&roles, node, &file_nodes);
        let certificate_pem = self.authority.certify(&names, &key, now).map_err(internal)?;
        tracing::info!(%node, ?roles, "a process entered the cell");
        Ok(JoinReply { node, file_nodes, certificate_pem, map: self.map(&Map {}) })
    }

    /// `admin.renew_certificate`. Who asks has shown a certificate of the cell; the fresh one has
    /// the names that are on the list, if the old one has them too.
    ///
    /// # Errors
    /// `NotPermitted` if it is not on the list, the list has more than its certificate, or its
    /// certificate has ended or is for another key; `Malformed` if the signing request is none.
    pub fn renew_certificate(
        &self,
        context: &Context,
        request: &RenewCertificate,
    ) -> Result<RenewCertificateReply, FsError> {
        let node = request.node;
        context.require_node(node)?;
        let listed = self.known().nodes.get(&node).cloned();
        let NodeRow { roles, file_nodes, .. } = listed.ok_or(FsError::NotPermitted)?;
        roles.iter().try_for_each(|role| context.require_role(*role))?;
        file_nodes.iter().try_for_each(|node| context.require_node(*node))?;
        let key = ProvenKey::from_request(&request.request_pem).map_err(FsError::malformed)?;
        let now = self.clock.wall();
        if let Peer::Node(proof) = &context.peer {
            let checked = self.authority.check_renewal(&proof.certificate, &key, now);
            checked.map_err(|why| {
                tracing::warn!(%node, why, "certificate is not renewed");
                FsError::NotPermitted
            })?;
        }
        let names = certificate_names(&roles, node, &file_nodes);
        let certificate_pem = self.authority.certify(&names, &key, now).map_err(internal)?;
        tracing::info!(%node, "renewed a node's certificate");
        Ok(RenewCertificateReply { certificate_pem })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_host(host: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(is_part)
}

fn internal(error: CellError) -> FsError {
    let incident = secret::hex(&secret::random::<8>());
    tracing::error!(%incident, %error, "cannot certify a node");
    FsError::Internal { incident }
}

#[cfg(test)]
mod tests;
