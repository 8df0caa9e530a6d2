//! `node.toml`: who this process is in the cell, written once it is of the cell.

use serde::{Deserialize, Serialize};

use dfs_proto::admin::{CELL_TLS_NAME, Role, node_tls_name};
use dfs_proto::id::NodeId;

use super::ca::Fingerprint;
use super::{CellDir, CellError, Wanted, read_text, write_file};
use crate::durable_file::Access;

/// Version of `node.toml`'s shape.
const MEMBER_VERSION: u32 = 1;

/// A process's identity. Node ids are never reused in a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    version: u32,
    /// The hash of the CA's certificate with which the cell was founded: derived, so that it cannot
    /// disagree with the CA, and a joining process learns it from what it verifies anyway.
    pub cell: Fingerprint,
    pub node: NodeId,
    pub file_nodes: Vec<NodeId>,
    pub roles: Vec<Role>,
}

impl Member {
    pub(super) fn new(
        cell: Fingerprint,
        node: NodeId,
        file_nodes: Vec<NodeId>,
        roles: Vec<Role>,
    ) -> Member {
        Member { version: MEMBER_VERSION, cell, node, file_nodes, roles }
    }

    /// `None`: this process is of no cell yet.
    pub(super) fn load(dir: &CellDir) -> Result<Option<Member>, CellError> {
        let path = dir.member();
        let Some(text) = read_text(&path)? else {
            return Ok(None);
        };
        let member: Member =
            toml::from_str(&text).map_err(|error| CellError::damaged(&path, error.message()))?;
        if member.version != MEMBER_VERSION {
            let why = format!("version {} is not known to this program", member.version);
            return Err(CellError::damaged(&path, why));
        }
        Ok(Some(member))
    }

    pub(super) fn store(&self, dir: &CellDir) -> Result<(), CellError> {
        let text = toml::to_string(self).expect("numbers, hexadecimal and role names are TOML");
        write_file(&dir.member(), text.as_bytes(), Access::Public)
    }

    /// The founder's identity: nodes 1 to n are its file nodes, n + 1 is the process. Its roles may
    /// change from start to start (it has the CA and certifies itself), its nodes may not.
    pub(super) fn found(
        dir: &CellDir,
        before: Option<Member>,
        cell: Fingerprint,
        wanted: Wanted<'_>,
    ) -> Result<Member, CellError> {
        let count = wanted.file_node_count()?;
        let roles = wanted.sorted_roles();
        let member = match before {
            Some(member) if member.roles == roles => {
                member.check_file_nodes(count)?;
                return Ok(member);
            }
            Some(member) => {
                if roles.contains(&Role::File) {
                    member.check_file_nodes(count)?;
                }
                Member { roles, ..member }
            }
            None => {
                let file_nodes = (1..=count).map(NodeId).collect();
                Member::new(cell, NodeId(count + 1), file_nodes, roles)
            }
        };
        member.store(dir)?;
        Ok(member)
    }

    /// The DNS names in this process's certificate.
    pub fn names(&self) -> Vec<String> {
        certificate_names(&self.roles, self.node, &self.file_nodes)
    }

    pub(super) fn check_roles(&self, wanted: &[Role]) -> Result<(), CellError> {
        if self.roles == wanted {
            return Ok(());
        }
        Err(CellError::RolesDiffer { entered: list(&self.roles), wanted: list(wanted) })
    }

    pub(super) fn check_file_nodes(&self, wanted: u32) -> Result<(), CellError> {
        let (has, wanted) = (self.file_nodes.len(), wanted as usize);
        if has == wanted {
            return Ok(());
        }
        Err(CellError::FileNodesDiffer { has, wanted })
    }

    pub(super) fn check_cell(&self, dir: &CellDir, ca: Fingerprint) -> Result<(), CellError> {
        if self.cell == ca {
            return Ok(());
        }
        let why = format!("its CA has the fingerprint {ca}, the cell's is {}", self.cell);
        Err(CellError::damaged(&dir.ca_certificate(), why))
    }
}

/// The DNS names in the certificate of a process: the cell's, its roles', its nodes'.
pub fn certificate_names(roles: &[Role], node: NodeId, file_nodes: &[NodeId]) -> Vec<String> {
    let mut names = vec![CELL_TLS_NAME.to_owned()];
    names.extend(roles.iter().map(|role| role.tls_name().to_owned()));
    names.push(node_tls_name(node));
    names.extend(file_nodes.iter().copied().map(node_tls_name));
    names
}

/// Roles as the command line writes them.
fn list(roles: &[Role]) -> String {
    roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(",")
}
