//! How the roles of this process reach the others: in the process where they live here, else by
//! the cell's map.

use std::sync::{Arc, Mutex, PoisonError};

use dfs_proto::FsError;
use dfs_proto::admin::{CellMap, NodeEntry, Role};
use dfs_proto::client::{Client, Dial, HttpDialer, InProcess, Peer, TlsIdentity};
use dfs_proto::id::{NodeId, VolumeId};

use crate::cell::Cell;
use crate::rpc::Router;
use crate::rpc::rest::{self, To};
use crate::{directory, file};

/// Host of nodes that name none: they live on this machine.
const THIS_HOST: &str = "127.0.0.1";

/// Ways to every role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    roles: Vec<Role>,
    file_nodes: Vec<NodeId>,
    local: InProcess,
    dialer: HttpDialer,
    map: Mutex<CellMap>,
}

impl Network {
    pub fn new(cell: &Cell, map: CellMap) -> Network {
        let shared = Shared {
            roles: cell.roles().to_vec(),
            file_nodes: cell.file_nodes().to_vec(),
            local: InProcess::default(),
            dialer: HttpDialer::new(cell.ca_pem().to_owned(), Some(cell.tls_identity())),
            map: Mutex::new(map),
        };
        Network { shared: Arc::new(shared) }
    }

    /// Lets calls of the own process arrive.
    pub fn bind(&self, router: Arc<Router>) {
        self.shared.local.bind(router);
    }

    pub fn map(&self) -> CellMap {
        self.shared.map.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_map(&self, map: CellMap) {
        *self.shared.map.lock().unwrap_or_else(PoisonError::into_inner) = map;
    }

    /// Other processes are called with another certificate from here on.
    pub fn set_identity(&self, identity: TlsIdentity) {
        self.shared.dialer.set_identity(identity);
    }

    fn local(&self) -> Client {
        Client::new(Arc::new(self.shared.local.clone()))
    }

    fn dial(&self, role: Role, node: Option<NodeId>, at: &NodeEntry) -> Result<Client, FsError> {
        let host = at.host.clone().unwrap_or_else(|| THIS_HOST.to_owned());
        let peer = Peer { role: Some(role), node, host, port: at.port };
        Ok(Client::new(self.shared.dialer.dial(&peer)?))
    }

    /// Every process with a role: this one, or those of the map.
    fn all(&self, role: Role) -> Result<Vec<Client>, FsError> {
        if self.shared.roles.contains(&role) {
            return Ok(vec![self.local()]);
        }
        let map = self.map();
        let found: Vec<Client> =
            map.with_role(role).map(|at| self.dial(role, None, at)).collect::<Result<_, _>>()?;
        if found.is_empty() {
            let what = format!("no {} server is known yet", role.name());
            return Err(FsError::unavailable(what));
        }
        Ok(found)
    }

    /// A process with a role.
    ///
    /// # Errors
    /// `Unavailable` while nobody is known to have it.
    pub fn role(&self, role: Role) -> Result<Client, FsError> {
        let mut found = self.all(role)?;
        Ok(found.swap_remove(0))
    }

    fn node(&self, node: NodeId) -> Result<Client, FsError> {
        if self.shared.file_nodes.contains(&node) {
            return Ok(self.local());
        }
        let map = self.map();
        let at = map.nodes.iter().find(|entry| entry.file_nodes.contains(&node));
        let at = at.ok_or_else(|| FsError::unavailable(format!("{node} is not known yet")))?;
        self.dial(Role::File, Some(node), at)
    }
}

impl directory::Peers for Network {
    fn lock(&self) -> Result<Client, FsError> {
        self.role(Role::Lock)
    }

    fn file_node(&self, node: NodeId) -> Result<Client, FsError> {
        self.node(node)
    }
}

impl file::Peers for Network {
    fn file_node(&self, node: NodeId) -> Result<Client, FsError> {
        self.node(node)
    }

    fn directory(&self, _volume: VolumeId) -> Result<Client, FsError> {
        self.role(Role::Directory)
    }

    fn directories(&self) -> Result<Vec<Client>, FsError> {
        self.all(Role::Directory)
    }
}

impl rest::Peers for Network {
    fn find(&self, to: To) -> Result<Option<Client>, FsError> {
        match to {
            // Where the auth role is not, its operations are unknown, and the answer says so.
            To::Auth => Ok(None),
            To::Directory if self.shared.roles.contains(&Role::Directory) => Ok(None),
            To::Directory => self.role(Role::Directory).map(Some),
            To::Node(node) if self.shared.file_nodes.contains(&node) => Ok(None),
            To::Node(node) => self.node(node).map(Some),
        }
    }
}
