use super::*;
use crate::durable_file::failpoint;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

const NOW: Timestamp = Timestamp::new(1_750_000_000, 0);
const ALL: Wanted<'static> = Wanted { roles: &Role::ALL, file_nodes: 2 };
const FILE_ONLY: Wanted<'static> = Wanted { roles: &[Role::File], file_nodes: 2 };

#[test]
fn the_founder_is_the_node_after_its_file_nodes_and_stays_itself() {
    let dir = tempfile::tempdir().unwrap();
    let founded = Cell::open(dir.path(), ALL, NOW).unwrap();
    assert_eq!(founded.file_nodes(), [NodeId(1), NodeId(2)]);
    assert_eq!(founded.node(), NodeId(3));
    assert_eq!(founded.roles(), Role::ALL);
    let again = Cell::open(dir.path(), ALL, NOW).unwrap();
    assert_eq!(again.node(), founded.node());
    assert_eq!(again.id(), founded.id());
    assert_eq!(again.tls_identity().pem, founded.tls_identity().pem);
}

#[test]
fn everything_with_a_key_in_it_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::open(dir.path(), ALL, NOW).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(cell.dir().path()), 0o700);
    for entry in std::fs::read_dir(cell.dir().path()).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read_to_string(&path).unwrap().contains("PRIVATE KEY") {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    assert!(!format!("{cell:?}").contains("PRIVATE"));
}

#[test]
fn a_founding_that_crashes_anywhere_is_completed_by_the_next_start() {
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        failpoint::crash_after(Some(steps));
        let first = Cell::open(dir.path(), ALL, NOW);
        failpoint::crash_after(None);
        let files_before = keys_of(dir.path());
        let second = Cell::open(dir.path(), ALL, NOW).unwrap();
        assert_eq!(second.node(), NodeId(3), "step {steps}");
        let files_after = keys_of(dir.path());
        for (name, bytes) in files_before {
            assert_eq!(files_after[&name], bytes, "{name} was replaced after a crash at {steps}");
        }
        if first.is_ok() {
            break;
        }
        steps += 1;
    }
    assert!(steps > 12, "only {steps} steps were tried");
}

/// Whatever has its final name and must stay as it is.
fn keys_of(data_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    ["ca.pem", "ca.key", "node.key", "node.toml"]
        .into_iter()
        .filter_map(|name| {
            Some((name.to_owned(), std::fs::read(data_dir.join("cell").join(name)).ok()?))
        })
        .collect()
}

#[test]
fn a_process_without_the_auth_role_needs_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let error = Cell::open(dir.path(), FILE_ONLY, NOW).unwrap_err();
    assert!(matches!(error, CellError::NotMember { .. }), "{error}");
    assert!(error.to_string().contains("--join TOKEN"), "{error}");
}

#[test]
fn the_founder_may_change_its_roles_but_not_lose_its_file_nodes() {
    let dir = tempfile::tempdir().unwrap();
    Cell::open(dir.path(), ALL, NOW).unwrap();
    let fewer = Wanted { roles: &[Role::Auth, Role::Directory, Role::Lock], file_nodes: 2 };
    let cell = Cell::open(dir.path(), fewer, NOW).unwrap();
    assert!(!cell.roles().contains(&Role::File));
    let cell = Cell::open(dir.path(), ALL, NOW).unwrap();
    assert_eq!(cell.file_nodes(), [NodeId(1), NodeId(2)]);
    let three = Wanted { roles: &Role::ALL, file_nodes: 3 };
    let error = Cell::open(dir.path(), three, NOW).unwrap_err();
    assert!(error.to_string().contains("--file-nodes 2"), "{error}");
    let without_auth = Cell::open(dir.path(), FILE_ONLY, NOW).unwrap_err();
    assert!(matches!(without_auth, CellError::RolesDiffer { .. }), "{without_auth}");
}

#[test]
fn a_replaced_or_lost_ca_is_an_error_and_nothing_is_made_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let cell = Cell::open(dir.path(), ALL, NOW).unwrap();
    let foreign = Cell::open(other.path(), ALL, NOW).unwrap();
    for name in ["ca.pem", "ca.key"] {
        let from = foreign.dir().path().join(name);
        std::fs::copy(from, cell.dir().path().join(name)).unwrap();
    }
    let error = Cell::open(dir.path(), ALL, NOW).unwrap_err();
    assert!(matches!(error, CellError::Damaged { .. }), "{error}");
    std::fs::remove_file(cell.dir().ca_certificate()).unwrap();
    let error = Cell::open(dir.path(), ALL, NOW).unwrap_err();
    assert!(matches!(error, CellError::Missing { .. }), "{error}");
    assert!(!cell.dir().ca_certificate().exists());
}

#[test]
fn a_damaged_identity_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let cell = Cell::open(dir.path(), ALL, NOW).unwrap();
    for text in ["", "version = 1\nnode = \"x\"", "\u{0}", "version = 9"] {
        std::fs::write(cell.dir().member(), text).unwrap();
        let error = Cell::open(dir.path(), ALL, NOW).unwrap_err();
        assert!(error.to_string().contains("node.toml is damaged"), "{error}");
    }
}

#[test]
fn too_many_file_nodes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let many = Wanted { roles: &Role::ALL, file_nodes: FILE_NODES_MAX + 1 };
    let error = Cell::open(dir.path(), many, NOW).unwrap_err();
    assert!(matches!(error, CellError::TooManyFileNodes(_)), "{error}");
    assert!(
        !CellDir::of(dir.path()).ca_certificate().exists()
            || Cell::open(dir.path(), ALL, NOW).is_ok()
    );
}
