//! What is SQLite's own: its file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const SPACE: Space = Space(5);

/// Where SQLite keeps two numbers in the head of its file, big endian.
const USER_VERSION: std::ops::Range<usize> = 60..64;
const FILE_APPLICATION_ID: std::ops::Range<usize> = 68..72;

fn patch(path: &Path, at: std::ops::Range<usize>, number: u32) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    bytes[at].copy_from_slice(&number.to_be_bytes());
    fs::write(path, &bytes).unwrap();
    bytes
}

fn refusal(path: &Path) -> String {
    let error = SqliteEngine::open(path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "names the file: {text}");
    text
}

#[test]
fn a_file_of_a_newer_format_is_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    drop(SqliteEngine::open(&path).unwrap());
    patch(&path, USER_VERSION, 9);
    let text = refusal(&path);
    assert!(text.contains("format 9") && text.contains("formats up to 1"), "{text}");
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    fs::write(&path, [b'x'; 8192]).unwrap();
    let text = refusal(&path);
    assert!(text.contains("dfs-server restore"), "{text}");
    assert_eq!(fs::read(&path).unwrap(), [b'x'; 8192]);
}

#[test]
fn somebody_elses_database_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    drop(SqliteEngine::open(&path).unwrap());
    let before = patch(&path, FILE_APPLICATION_ID, 77);
    let text = refusal(&path);
    assert!(text.contains("not a DFS metadata file"), "{text}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn damage_inside_the_file_is_reported_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let engine = SqliteEngine::open(&path).unwrap();
    let epoch = engine.claim(SPACE, NodeId(1)).unwrap();
    let key = |index: u32| key::prefix(SPACE, 1, &[&index.to_be_bytes()]);
    let rows = (0..1000).map(|index| (key(index), Some(vec![7; 100]))).collect();
    let batch = Batch { space: SPACE, epoch, rows, durability: Durability::Stable };
    engine.commit(&batch).unwrap();
    drop(engine);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8192..].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let found = SqliteEngine::open(&path)
        .and_then(|engine| engine.scan(&key(0), &key(1000), 1000).map(drop));
    assert!(matches!(found, Err(EngineError::Unusable { .. })), "{found:?}");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let text = refusal(Path::new("/nonexistent/meta.db"));
    assert!(text.contains("check that its directory exists"), "{text}");
}

#[test]
fn only_its_user_may_read_the_file_and_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let engine = SqliteEngine::open(&path).unwrap();
    engine.claim(SPACE, NodeId(1)).unwrap();
    for name in ["meta.db", "meta.db-wal", "meta.db-shm"] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_stable_commit_writes_to_the_log_even_if_it_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.db");
    let engine = SqliteEngine::open(&path).unwrap();
    let epoch = engine.claim(SPACE, NodeId(1)).unwrap();
    let log = || fs::metadata(dir.path().join("meta.db-wal")).unwrap().len();
    let batch = Batch { space: SPACE, epoch, rows: Vec::new(), durability: Durability::Stable };
    let before = log();
    engine.commit(&batch).unwrap();
    assert!(log() > before, "without a write to the log SQLite does not sync it");
}
