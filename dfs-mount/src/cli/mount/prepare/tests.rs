use super::*;
use crate::config::RawMount;

fn table(lines: &[(&Path, &str, &str)]) -> MountTable {
    let line = |(dir, kind, source): &(&Path, &str, &str)| {
        format!("9 1 0:9 / {} rw - {kind} {source} rw,user_id=0\n", dir.display())
    };
    MountTable::parse(lines.iter().map(line).collect::<String>().as_bytes())
}

struct World {
    _home: tempfile::TempDir,
    root: PathBuf,
}

impl World {
    fn new() -> World {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        World { _home: home, root }
    }

    fn refusal(&self, name: &str, table: &MountTable) -> Failure {
        let failure = check_mount_point(&self.root.join(name), table).unwrap_err();
        assert_eq!(failure.exit, Exit::MountPoint);
        assert!(failure.what.contains(name), "{}", failure.what);
        failure
    }
}

#[test]
fn an_existing_directory_is_taken_and_named_without_links() {
    let world = World::new();
    std::os::unix::fs::symlink(world.root.join("dir"), world.root.join("link")).unwrap();
    for name in ["dir", "dir/", "./dir", "link"] {
        let found = check_mount_point(&world.root.join(name), &MountTable::default()).unwrap();
        assert_eq!(found, world.root.join("dir"), "{name}");
    }
}

#[test]
fn a_missing_mount_point_is_refused_with_the_remedy() {
    let world = World::new();
    for name in ["none", "none/deeper"] {
        let failure = world.refusal(name, &MountTable::default());
        assert!(failure.causes().contains("No such file"), "{}", failure.causes());
        assert!(failure.remedy.unwrap().starts_with("mkdir -p"));
    }
}

#[test]
fn a_file_is_no_mount_point() {
    let world = World::new();
    fs::write(world.root.join("file"), "x").unwrap();
    let failure = world.refusal("file", &MountTable::default());
    assert!(failure.causes().contains("not a directory"));
}

#[test]
fn a_busy_mount_point_is_refused_with_what_is_there() {
    let world = World::new();
    let dir = world.root.join("dir");
    let failure = world.refusal("dir", &table(&[(&dir, "fuse.dfs", "dfs://h/main")]));
    assert!(failure.causes().contains("dfs://h/main is mounted there"));
    assert!(failure.remedy.unwrap().starts_with("dfs umount"));
    let failure = world.refusal("dir", &table(&[(&dir, "ext4", "/dev/sdx")]));
    assert!(failure.remedy.unwrap().starts_with("umount"));
}

#[test]
fn a_link_to_a_busy_mount_point_is_refused_too() {
    let world = World::new();
    let dir = world.root.join("dir");
    std::os::unix::fs::symlink(&dir, world.root.join("link")).unwrap();
    let busy = table(&[(&dir, "fuse.dfs", "dfs://h/main")]);
    assert!(check_mount_point(&world.root.join("link"), &busy).is_err());
}

#[test]
fn an_automount_trap_may_be_mounted_over() {
    let world = World::new();
    let dir = world.root.join("dir");
    let trap = table(&[(&dir, "autofs", "systemd-1")]);
    assert_eq!(check_mount_point(&dir, &trap).unwrap(), dir);
}

fn config(world: &World, cache_dir: &Path) -> MountConfig {
    let raw = RawMount { cache_dir: Some(cache_dir.to_owned()), ..RawMount::default() };
    let place = Place {
        source: "dfs://h/main".parse().unwrap(),
        mount_point: world.root.join("dir"),
        cell_fingerprint: "0123456789".into(),
        cache_base: "/unused".into(),
        is_root: true,
    };
    MountConfig::mean(raw, place).unwrap()
}

#[test]
fn users_do_not_choose_what_is_roots() {
    let world = World::new();
    let usual = MountConfig { suid: false, ..config(&world, Path::new("/c")) };
    assert!(check_flags(&usual, false).is_ok());
    let careful = MountConfig { exec: false, atime: false, ..usual.clone() };
    assert!(check_flags(&careful, false).is_ok());
    for (suid, dev) in [(true, false), (false, true)] {
        let asked = MountConfig { suid, dev, ..usual.clone() };
        assert!(check_flags(&asked, true).is_ok());
        assert_eq!(check_flags(&asked, false).unwrap_err().exit, Exit::Usage);
    }
}

#[test]
fn a_cache_on_dfs_or_below_the_mount_point_is_refused() {
    let world = World::new();
    let other = world.root.join("other");
    fs::create_dir(&other).unwrap();
    std::os::unix::fs::symlink(&other, world.root.join("link")).unwrap();
    let table = table(&[(&other, "fuse.dfs", "dfs://h/other")]);
    for (cache_dir, reason) in [
        ("other/cache/deep", "on a DFS mount"),
        ("link/cache", "on a DFS mount"),
        ("dir/cache", "below the mount point"),
    ] {
        let config = config(&world, &world.root.join(cache_dir));
        let failure = check_cache_dir(&config, &table).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.causes().contains(reason), "{cache_dir}: {}", failure.causes());
    }
    assert!(check_cache_dir(&config(&world, &world.root.join("cache")), &table).is_ok());
}
