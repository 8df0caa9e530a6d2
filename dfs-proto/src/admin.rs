//! The cell: its nodes, how one joins, and what operators ask.

use serde::{Deserialize, Serialize};

use crate::credential::Secret;
use crate::directory::rpc;
use crate::id::NodeId;
use crate::rpc::{Access, Rpc};

/// What a server process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Auth,
    Directory,
    Lock,
    File,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Auth, Role::Directory, Role::Lock, Role::File];

    pub fn name(self) -> &'static str {
        match self {
            Role::Auth => "auth",
            Role::Directory => "directory",
            Role::Lock => "lock",
            Role::File => "file",
        }
    }

    /// The DNS name that certificates of nodes with this role carry.
    pub fn tls_name(self) -> &'static str {
        match self {
            Role::Auth => "auth.dfs",
            Role::Directory => "directory.dfs",
            Role::Lock => "lock.dfs",
            Role::File => "file.dfs",
        }
    }
}

/// The DNS name in the certificate of every node of a cell.
pub const CELL_TLS_NAME: &str = "cell.dfs";

/// The DNS name in the certificate of the process that speaks for a node.
pub fn node_tls_name(node: NodeId) -> String {
    format!("{node}.dfs")
}

/// One server process of the cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    pub node: NodeId,
    pub roles: Vec<Role>,
    /// Name or address without port; `None` means the host by which the asker reached this node's
    /// informant.
    pub host: Option<String>,
    pub port: u16,
    /// The file nodes that live in it.
    pub file_nodes: Vec<NodeId>,
    /// Units: milliseconds since the auth service last heard of it.
    pub silent_ms: u64,
}

/// Who is in the cell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellMap {
    pub nodes: Vec<NodeEntry>,
}

impl CellMap {
    /// The processes that have a role.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.iter().filter(move |entry| entry.roles.contains(&role))
    }
}

/// The cell's map. Any node answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Map {}
rpc!(Map => CellMap, "admin.map", Public);

/// A node tells the auth service where it is, and gets the map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Announce {
    pub entry: NodeEntry,
}
rpc!(Announce => CellMap, "admin.announce", Node);

/// Makes a join token: text that names the cell's address, the hash of its CA and a secret that
/// works once. Errors: `InvalidArgument` (no roles).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewJoinToken {
    pub roles: Vec<Role>,
}
rpc!(NewJoinToken => Secret, "admin.join_token", Admin);

/// Enters the cell with a join token's secret. Errors: `JoinRefused`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    pub secret: Secret,
    /// PEM of a certificate signing request made with the node's own key.
    pub request_pem: String,
    pub roles: Vec<Role>,
    /// How many file nodes will live in the process.
    pub file_nodes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    pub node: NodeId,
    pub file_nodes: Vec<NodeId>,
    pub certificate_pem: String,
    pub map: CellMap,
}
rpc!(Join => JoinReply, "admin.join", Public);

/// A fresh certificate for a process that calls with one that still serves. Its names are those
/// that the cell has on its list, its key is that of the certificate it calls with.
///
/// Errors: `NotPermitted` (not on the list, more on the list than in the certificate, or another
/// key), `Malformed` (no signing request).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewCertificate {
    /// The process, not one of its file nodes.
    pub node: NodeId,
    /// PEM of a certificate signing request, as for [`Join`].
    pub request_pem: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewCertificateReply {
    pub certificate_pem: String,
}
rpc!(RenewCertificate => RenewCertificateReply, "admin.renew_certificate", Node);

/// What a server process says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    pub version: String,
    pub node: NodeId,
    pub roles: Vec<Role>,
    /// Units: milliseconds since it was ready.
    pub uptime_ms: u64,
    pub sessions: u64,
    pub volumes: Vec<String>,
    pub file_nodes: Vec<FileNodeState>,
}
rpc!(Status => StatusReply, "admin.status", User);

/// A file node as the directory sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileNodeState {
    pub node: NodeId,
    pub is_live: bool,
    pub total_bytes: u64,
    pub free_bytes: u64,
}
