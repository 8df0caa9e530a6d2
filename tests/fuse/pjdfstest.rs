//! pjdfstest, the POSIX test suite, on a mount. What a local ext4 directory passes, a mount passes.
//!
//! `make test` installs the suite. It runs in parts, side by side, each on a cell of its own; the
//! counts show that no case is lost between them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Group, User};

use crate::support::{Client, Server, attempt_within, tool};

/// The longest that a part may take. Why: some of its cases walk paths of 4,095 bytes, name by
/// name; an idle machine with two cores needs a minute, one shared by five people eight.
const PART_PATIENCE: std::time::Duration = std::time::Duration::from_secs(840);

/// Users beside root, of those that every Debian has.
const USERS: [&str; 2] = ["nobody", "daemon"];

/// What the suite may count on. As for ext4, but for what only other systems have.
const FEATURES: [&str; 5] =
    ["posix_fallocate", "rename_ctime", "stat_st_birthtime", "utime_now", "utimensat"];

/// Cases that are skipped, with the reason; all others must pass. The first thirteen are skipped
/// on ext4 too.
const SKIPPED: [(&str, &str); 14] = [
    ("chmod::erofs_named", REMOUNT),
    ("chown::erofs_named", REMOUNT),
    ("chown::lchown::erofs_named", REMOUNT),
    ("link::erofs_named", REMOUNT),
    ("mkdir::erofs_new_file", REMOUNT),
    ("mkfifo::erofs_new_file", REMOUNT),
    ("open::erofs_named", REMOUNT),
    ("open::erofs_new_file", REMOUNT),
    ("rename::erofs_named", REMOUNT),
    ("rmdir::erofs_named", REMOUNT),
    ("symlink::erofs_new_file", REMOUNT),
    ("truncate::erofs_named", REMOUNT),
    ("unlink::erofs_named", REMOUNT),
    ("link::link_count_max", NO_LINK_MAX),
];
const REMOUNT: &str = "wants to remount; EROFS has a test of ours";
const NO_LINK_MAX: &str = "glibc knows the limit of some file systems by name, and of no FUSE one; \
                           EMLINK has a test of ours";

/// Cases of a part, by what their names contain, and how many pass.
struct Part {
    patterns: &'static [&'static str],
    passed: usize,
}

const RENAMES: Part = Part { patterns: &["rename::"], passed: 59 };
/// Also `unlink::` and `symlink::`.
const LINKS: Part = Part { patterns: &["link::"], passed: 95 };
const MAKERS: Part =
    Part { patterns: &["mkdir::", "mkfifo::", "mknod::", "open::", "rmdir::"], passed: 125 };
/// Also `ftruncate::`.
const ATTRIBUTES: Part = Part {
    patterns: &["chmod::", "chown::", "truncate::", "utimensat::", "posix_fallocate::"],
    passed: 105,
};
const CASES: usize = 398;

#[test]
fn pjdfstest_passes_as_on_ext4_renames() {
    pass(&RENAMES);
}

#[test]
fn pjdfstest_passes_as_on_ext4_links() {
    pass(&LINKS);
}

#[test]
fn pjdfstest_passes_as_on_ext4_makers() {
    pass(&MAKERS);
}

#[test]
fn pjdfstest_passes_as_on_ext4_attributes() {
    pass(&ATTRIBUTES);
}

#[test]
fn the_parts_of_pjdfstest_are_the_whole() {
    let parts = [RENAMES, LINKS, MAKERS, ATTRIBUTES];
    let passed: usize = parts.iter().map(|part| part.passed).sum();
    assert_eq!(passed + SKIPPED.len(), CASES);
    for (case, reason) in SKIPPED {
        let count = parts.iter().filter(|part| part.has(case)).count();
        assert_eq!(count, 1, "{case} ({reason}) is in {count} parts");
    }
}

impl Part {
    fn has(&self, case: &str) -> bool {
        self.patterns.iter().any(|pattern| case.contains(pattern))
    }
}

fn pass(part: &Part) {
    let dir = tempfile::tempdir().unwrap();
    // The suite's users walk through it to the mount.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["-o", "allow_other,dev"]);
    let configuration = dir.path().join("pjdfstest.toml");
    fs::write(&configuration, configured()).unwrap();
    let other_file_system = tempfile::tempdir().unwrap();
    let mut suite = Command::new(tool("pjdfstest"));
    suite.arg("-c").arg(&configuration).arg("-p").arg(&mount.dir);
    suite.arg("-s").arg(other_file_system.path()).args(part.patterns).env("NO_COLOR", "1");
    let output = attempt_within(&mut suite, PART_PATIENCE);
    let text = String::from_utf8_lossy(&output.stdout);
    let (passed, skipped) = (cases(&text, "ok"), cases(&text, "skipped"));
    let failed = cases(&text, "FAILED");
    assert!(output.status.success() && failed.is_empty(), "{failed:?}\n{text}");
    let may_skip = SKIPPED.map(|(case, _)| case).into_iter().filter(|case| part.has(case));
    assert_eq!(skipped, may_skip.collect::<BTreeSet<_>>(), "{text}");
    assert_eq!(passed.len(), part.passed, "{passed:?}");
    assert!(nothing_left(&mount.dir), "the suite takes away what it makes");
    mount.umount();
}

/// The suite's configuration, with the groups that its users have here.
fn configured() -> String {
    let user = |name: &str| {
        let user = User::from_name(name).unwrap().unwrap_or_else(|| panic!("no user {name}"));
        let group = Group::from_gid(user.gid).unwrap().expect("its group has a name");
        format!("[\"{name}\", \"{}\"]", group.name)
    };
    let entries = USERS.map(user).join(", ");
    let features = FEATURES.map(|feature| format!("{feature} = {{}}\n")).concat();
    // Times count nanoseconds; the kernel's clock of files moves every 4 ms.
    format!("[features]\n{features}[settings]\nnaptime = 0.01\n[dummy_auth]\nentries = [{entries}]")
}

/// The cases that ended in `state`.
fn cases<'a>(text: &'a str, state: &str) -> BTreeSet<&'a str> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (case, said) = (words.next()?, words.next()?);
        (case.contains("::") && said == state && words.next().is_none()).then_some(case)
    });
    lines.collect()
}

fn nothing_left(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}
