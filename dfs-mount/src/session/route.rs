//! Which address answers for a role.
//!
//! Owns what is known of the cell's map, seen from the host by which the cell was reached. Before
//! the map is known, and when it names nobody for a role, the entry address stands for every role:
//! in a cell of one process that is right for ever. Whether an address lives is learnt by calls;
//! [`Route::failed`] turns to the next one. No input or output.

use std::collections::{HashMap, HashSet};

use dfs_proto::admin::{CellMap, NodeEntry, Role};
use dfs_proto::client::Peer;
use dfs_proto::directory::NodeAddress;

/// The cell as one client sees it.
#[derive(Debug)]
pub struct Route {
    host: String,
    port: u16,
    map: Option<CellMap>,
    /// How often the addresses of a role have failed: the index of the one to use, modulo.
    failures: HashMap<Role, usize>,
    /// Roles whose addresses have failed since the map was last asked for.
    doubted: HashSet<Role>,
}

impl Route {
    pub fn new(host: String, port: u16) -> Route {
        Route { host, port, map: None, failures: HashMap::new(), doubted: HashSet::new() }
    }

    /// Whether to ask for the map before a role is called. Asked once for each failure, so that
    /// an entry that is away does not slow down calls to roles that are not.
    pub fn takes_map(&mut self, role: Role) -> bool {
        self.doubted.remove(&role) || self.map.is_none()
    }

    /// Takes a map that came from the entry address.
    pub fn learn(&mut self, map: CellMap) {
        self.map = Some(map);
    }

    /// The entry: any node of the cell.
    pub fn entry(&self) -> Peer {
        Peer { role: None, node: None, host: self.host.clone(), port: self.port }
    }

    /// Whom to ask for a role.
    pub fn peer(&self, role: Role) -> Peer {
        let known: Vec<&NodeEntry> = self.map.iter().flat_map(|map| map.with_role(role)).collect();
        let Some(index) = self.failures.get(&role).unwrap_or(&0).checked_rem(known.len()) else {
            return Peer { role: Some(role), ..self.entry() };
        };
        let entry = known[index];
        let host = entry.host.clone().unwrap_or_else(|| self.host.clone());
        Peer { role: Some(role), node: Some(entry.node), host, port: entry.port }
    }

    /// A call to the role's address was not answered: the next call goes elsewhere, if there is
    /// an elsewhere.
    pub fn failed(&mut self, role: Role) {
        let failures = self.failures.entry(role).or_default();
        *failures = failures.wrapping_add(1);
        self.doubted.insert(role);
    }

    /// The peer that a placement's address stands for.
    pub fn file_node(&self, address: &NodeAddress) -> Peer {
        let host = address.host.clone().unwrap_or_else(|| self.host.clone());
        Peer { role: Some(Role::File), node: Some(address.node), host, port: address.port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::id::NodeId;

    fn entry(node: u32, role: Role, host: Option<&str>) -> NodeEntry {
        NodeEntry {
            node: NodeId(node),
            roles: vec![role],
            host: host.map(str::to_owned),
            port: 7000,
            file_nodes: vec![],
            silent_ms: 0,
        }
    }

    #[test]
    fn the_entry_stands_for_roles_nobody_else_has() {
        let mut route = Route::new("cell".into(), 7400);
        assert_eq!(route.peer(Role::Auth).port, 7400);
        route.learn(CellMap { nodes: vec![entry(1, Role::Directory, Some("d"))] });
        assert_eq!(route.peer(Role::Auth).host, "cell");
        assert_eq!(route.peer(Role::Directory).host, "d");
    }

    #[test]
    fn an_address_that_fails_makes_way_for_the_next_and_a_missing_host_is_the_entrys() {
        let mut route = Route::new("cell".into(), 7400);
        let nodes = vec![entry(1, Role::Auth, Some("a")), entry(2, Role::Auth, None)];
        route.learn(CellMap { nodes });
        assert_eq!(route.peer(Role::Auth).host, "a");
        route.failed(Role::Auth);
        assert_eq!(
            (route.peer(Role::Auth).host.as_str(), route.peer(Role::Auth).port),
            ("cell", 7000)
        );
        route.failed(Role::Auth);
        assert_eq!(route.peer(Role::Auth).host, "a");
    }
}
