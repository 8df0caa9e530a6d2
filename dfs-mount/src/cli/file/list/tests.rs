use super::*;
use crate::cli::output::tests::captured;
use crate::cli::show::tests::attr;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::directory::NodeAddress;
use dfs_proto::id::NodeId;

fn listings(is_long: bool) -> Listings {
    let entries = vec![
        Node::new(b"dir", attr(FileKind::Directory, 0o755), None),
        Node::new(b"a b", attr(FileKind::File, 0o644), None),
        Node::new(b"link", attr(FileKind::Symlink, 0o777), Some(b"dir".to_vec())),
        Node::new(b"\xff", attr(FileKind::File, 0o600), None),
    ];
    Listings { listings: vec![Listing { path: "dfs://h:1/v/".into(), entries }], is_long }
}

#[test]
fn a_short_listing_has_one_name_a_line() {
    let (mut output, out, _) = captured(false);
    output.show(&listings(false)).unwrap();
    assert_eq!(out.text(), "dir\na b\nlink\n\u{fffd}\n");
}

#[test]
fn a_long_listing_is_aligned() {
    let (mut output, out, _) = captured(false);
    output.show(&listings(true)).unwrap();
    let expected = "\
MODE        LINKS  UID   GID  SIZE  MODIFIED          NAME
drwxr-xr-x      1  1000  100  4096  1970-01-02 00:00  dir
-rw-r--r--      1  1000  100  4096  1970-01-02 00:00  a b
lrwxrwxrwx      1  1000  100  4096  1970-01-02 00:00  link -> dir
-rw-------      1  1000  100  4096  1970-01-02 00:00  \u{fffd}
";
    assert_eq!(out.text(), expected);
}

#[test]
fn json_says_what_a_name_that_is_no_text_is() {
    let (mut output, out, _) = captured(true);
    output.show(&listings(false)).unwrap();
    let value: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
    let entries = &value["listings"][0]["entries"];
    assert_eq!(entries[3]["name_hex"], "ff");
    assert_eq!(entries[1].get("name_hex"), None);
    assert_eq!(entries[2]["target"], "dir");
    assert_eq!(
        entries[1],
        serde_json::json!({
            "name": "a b", "kind": "file", "mode": "0644", "nlink": 1, "uid": 1000, "gid": 100,
            "size_bytes": 4096, "stored_bytes": 4096, "atime": "1970-01-01T00:00:00Z",
            "mtime": "1970-01-02T00:00:00.000000005Z", "ctime": "1970-01-02T00:00:00.000000005Z",
            "fid": "1:2.3", "version": "1.9"
        })
    );
}

#[test]
fn stat_shows_pairs() {
    let (mut output, out, _) = captured(false);
    let node = Node::new(b"a", attr(FileKind::File, 0o644), None);
    output
        .show(&Attributes { files: vec![StatNode { path: "dfs://h:1/v/a".into(), node }] })
        .unwrap();
    let expected = "\
path:      dfs://h:1/v/a
kind:      file
mode:      0644 (-rw-r--r--)
owner:     1000:100
links:     1
size:      4096 bytes, 4096 stored
accessed:  1970-01-01T00:00:00Z
modified:  1970-01-02T00:00:00.000000005Z
changed:   1970-01-02T00:00:00.000000005Z
file id:   1:2.3
version:   1.9
";
    assert_eq!(out.text(), expected);
}

#[test]
fn where_names_every_node_and_what_it_holds() {
    let state = |node, chunks_held| ReplicaState {
        address: NodeAddress { node: NodeId(node), host: None, port: 7400 },
        chunks_held,
    };
    let reply = WhereReply {
        attr: attr(FileKind::File, 0o644),
        manifest_hash: ChunkHash::of(b""),
        chunks_total: 3,
        replicas: vec![state(1, Ok(3)), state(2, Err("no answer".into()))],
    };
    let url = "dfs://h:1/v/a".parse().unwrap();
    let places = Places { files: vec![Place::new(&url, reply)] };
    let (mut output, out, _) = captured(false);
    output.show(&places).unwrap();
    let expected = "\
NODE    ROLE     ADDRESS  HOLDS          FILE
node-1  primary  *:7400   3 of 3 chunks  dfs://h:1/v/a
node-2  replica  *:7400   no answer      dfs://h:1/v/a
";
    assert_eq!(out.text(), expected);
    let (mut output, out, _) = captured(true);
    output.show(&places).unwrap();
    let value: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
    assert_eq!(value["files"][0]["replicas"][1]["error"], "no answer");
    assert_eq!(value["files"][0]["replicas"][0]["chunks_held"], 3);
}
