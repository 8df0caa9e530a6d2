//! The rows of the cell's space, and the decision who may enter.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::id::NodeId;

use crate::meta::key::{prefix, prefix_end};
use crate::meta::{Abort, Key, KeyBytes, ReadTxn, Record, Space, Txn};

const CELL: u8 = 1;
const NODE: u8 = 2;
const TOKEN: u8 = 3;

/// Whose rows these are, and which node id comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CellRow {
    /// The cell's id.
    pub cell: [u8; 32],
    /// Ids from here on were never handed out.
    pub next_node: NodeId,
}

impl Record for CellRow {
    const VERSION: u8 = 1;
}

/// A process that has announced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeRow {
    pub node: NodeId,
    pub roles: Vec<Role>,
    pub host: Option<String>,
    pub port: u16,
    pub file_nodes: Vec<NodeId>,
}

impl Record for NodeRow {
    const VERSION: u8 = 1;
}

/// A join token, found by the hash of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TokenRow {
    pub roles: Vec<Role>,
    /// Units: wall-clock seconds since 1970.
    pub expires: i64,
    /// By whom, and what it got.
    pub used: Option<(Wish, Admission)>,
}

impl Record for TokenRow {
    const VERSION: u8 = 1;
}

/// What a joining process asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    /// The hash of its public key.
    pub key: [u8; 32],
    pub roles: Vec<Role>,
    pub file_nodes: u32,
}

/// The node ids that a joining process got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Admission {
    pub node: NodeId,
    pub file_nodes: Vec<NodeId>,
}

pub(super) fn cell() -> Key<CellRow> {
    Key::new(Space::CELL, CELL, &[])
}

pub(super) fn node(node: NodeId) -> Key<NodeRow> {
    Key::new(Space::CELL, NODE, &[&node.0.to_be_bytes()])
}

pub(super) fn token(hash: &[u8; 32]) -> Key<TokenRow> {
    Key::new(Space::CELL, TOKEN, &[hash])
}

pub(super) fn nodes() -> (KeyBytes, KeyBytes) {
    range(NODE)
}

pub(super) fn tokens() -> (KeyBytes, KeyBytes) {
    range(TOKEN)
}

fn range(tag: u8) -> (KeyBytes, KeyBytes) {
    let start = prefix(Space::CELL, tag, &[]);
    let end = prefix_end(&start);
    (start, end)
}

/// Writes a node's row and makes sure that its ids are never handed out. They usually were; but a
/// cell whose metadata came from an older backup learns here of nodes that joined after it.
pub(super) fn put_node(txn: &mut Txn<'_>, row: NodeRow) -> Result<(), Abort> {
    let state = read_cell(txn)?;
    let highest = row.file_nodes.iter().copied().chain([row.node]).max().unwrap_or(row.node);
    if highest >= state.next_node {
        let next_node = NodeId(highest.0.checked_add(1).ok_or_else(no_ids)?);
        txn.put(&cell(), CellRow { next_node, ..state });
    }
    txn.put(&node(row.node), row);
    Ok(())
}

/// The token with this hash, if it may still be shown.
pub(super) fn valid_token(
    txn: &mut ReadTxn<'_>,
    hash: &[u8; 32],
    now: i64,
) -> Result<Arc<TokenRow>, Abort> {
    let row = txn.get(&token(hash))?.ok_or_else(|| refused("it is not one of this cell"))?;
    if row.expires <= now {
        return Err(refused("it has expired; ask for a new one"));
    }
    Ok(row)
}

/// Lets a process in and uses the token up; the same process with the same wish gets what it got
/// before.
pub(super) fn admit(
    txn: &mut Txn<'_>,
    hash: &[u8; 32],
    wish: &Wish,
    now: i64,
) -> Result<Admission, Abort> {
    let row = valid_token(txn, hash, now)?;
    match &row.used {
        Some((before, admission)) if before == wish => return Ok(admission.clone()),
        Some((before, _)) if before.key == wish.key => {
            return Err(refused("this process used it with other roles or file nodes"));
        }
        Some(_) => return Err(refused("it was used; ask for a new one")),
        None => {}
    }
    if wish.roles.is_empty() {
        return Err(refused("no role is asked for"));
    }
    if let Some(role) = wish.roles.iter().find(|role| !row.roles.contains(role)) {
        return Err(refused(&format!("it does not allow the role {}", role.name())));
    }
    let admission = allocate(txn, wish.file_nodes)?;
    let used = Some((wish.clone(), admission.clone()));
    txn.put(&token(hash), TokenRow { used, ..(*row).clone() });
    Ok(admission)
}

fn allocate(txn: &mut Txn<'_>, file_nodes: u32) -> Result<Admission, Abort> {
    let state = read_cell(txn)?;
    let first = state.next_node.0;
    let node = first.checked_add(file_nodes).ok_or_else(no_ids)?;
    let next_node = NodeId(node.checked_add(1).ok_or_else(no_ids)?);
    txn.put(&cell(), CellRow { next_node, ..state });
    Ok(Admission { node: NodeId(node), file_nodes: (first..node).map(NodeId).collect() })
}

fn read_cell(txn: &mut ReadTxn<'_>) -> Result<CellRow, Abort> {
    let row = txn.get(&cell())?;
    row.map(|row| *row)
        .ok_or_else(|| FsError::unavailable("the cell's rows are not made yet").into())
}

fn no_ids() -> Abort {
    FsError::NoSpace { what: "every node id was handed out".to_owned() }.into()
}

fn refused(why: &str) -> Abort {
    FsError::JoinRefused { why: why.to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::record;

    #[test]
    fn golden_bytes_do_not_move() {
        let cell = CellRow { cell: [9; 32], next_node: NodeId(4) };
        assert_eq!(record::encode(&cell).unwrap(), [&[1][..], &[9; 32], &[4]].concat());
        let node = NodeRow {
            node: NodeId(3),
            roles: vec![Role::File],
            host: Some("h".into()),
            port: 7,
            file_nodes: vec![NodeId(1)],
        };
        assert_eq!(record::encode(&node).unwrap(), [1, 3, 1, 3, 1, 1, b'h', 7, 1, 1]);
        let wish = Wish { key: [8; 32], roles: vec![Role::Lock], file_nodes: 0 };
        let admission = Admission { node: NodeId(5), file_nodes: vec![] };
        let token = TokenRow { roles: vec![Role::Lock], expires: 2, used: Some((wish, admission)) };
        let golden = [&[1, 1, 2, 4, 1][..], &[8; 32], &[1, 2, 0, 5, 0]].concat();
        assert_eq!(record::encode(&token).unwrap(), golden);
    }
}
