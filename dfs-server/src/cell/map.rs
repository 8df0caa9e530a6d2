//! The cell's map on disk, for joined processes: after a restart they know whom to ask.

use dfs_proto::admin::CellMap;

use super::{CellDir, CellError, read_text, write_file};
use crate::durable_file::Access;

/// The map that was stored last; `None` before the first.
///
/// # Errors
/// `File`, `Damaged` if it cannot be read.
pub fn load(dir: &CellDir) -> Result<Option<CellMap>, CellError> {
    let path = dir.map();
    let Some(text) = read_text(&path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|error| CellError::damaged(&path, error))
}

/// # Errors
/// `File` if it cannot be written.
pub fn store(dir: &CellDir, map: &CellMap) -> Result<(), CellError> {
    let text = serde_json::to_string_pretty(map).expect("a map has string keys only");
    write_file(&dir.map(), text.as_bytes(), Access::Public)
}

/// Names the host of every node that a map leaves open: it is the one by which its informant was
/// reached. To be done before a map is stored or passed on, for there it would mean another host.
pub fn resolve_hosts(map: &mut CellMap, informant_host: &str) {
    for entry in &mut map.nodes {
        entry.host.get_or_insert_with(|| informant_host.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::admin::{NodeEntry, Role};
    use dfs_proto::id::NodeId;
    use std::path::Path;

    fn entry(node: u32, host: Option<&str>) -> NodeEntry {
        NodeEntry {
            node: NodeId(node),
            roles: vec![Role::File],
            host: host.map(str::to_owned),
            port: 7400,
            file_nodes: vec![NodeId(1)],
            silent_ms: 0,
        }
    }

    #[test]
    fn a_stored_map_reads_back_with_every_host_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = CellDir::of(Path::new(dir.path()));
        std::fs::create_dir(dir.path()).unwrap();
        assert_eq!(load(&dir).unwrap(), None);
        let mut map = CellMap { nodes: vec![entry(3, None), entry(5, Some("10.0.0.5"))] };
        resolve_hosts(&mut map, "10.0.0.1");
        store(&dir, &map).unwrap();
        let hosts =
            |map: &CellMap| -> Vec<_> { map.nodes.iter().map(|n| n.host.clone()).collect() };
        let back = load(&dir).unwrap().unwrap();
        assert_eq!(hosts(&back), [Some("10.0.0.1".into()), Some("10.0.0.5".into())]);
    }
}
