//! The kernel's table of mounts, as `/proc/self/mountinfo` tells it.
//!
//! Reading it never touches a mount. Source: proc(5), `proc_pid_mountinfo`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Type of our mounts in the table.
pub const DFS_TYPE: &str = "fuse.dfs";

/// Type of an automount trap: something is mounted there, and more is meant to be.
const AUTOFS_TYPE: &str = "autofs";

/// A mount's device number; no two living mounts have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.major, self.minor)
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub device: Device,
    /// What of the file system is visible here: `/` unless it is a bind mount.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub kind: String,
    pub source: OsString,
    /// Options of the file system, such as `user_id=1000`.
    pub super_options: String,
}

impl Mount {
    pub fn is_dfs(&self) -> bool {
        self.kind == DFS_TYPE
    }

    pub fn is_autofs(&self) -> bool {
        self.kind == AUTOFS_TYPE
    }

    /// Whose daemon serves a FUSE mount.
    pub fn owner_uid(&self) -> Option<u32> {
        self.super_options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id="))
            .and_then(|uid| uid.parse().ok())
    }
}

/// The mounts of the process's namespace, later ones on top of earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable {
    pub mounts: Vec<Mount>,
}

impl MountTable {
    /// # Errors
    /// What reading `/proc/self/mountinfo` reports.
    pub fn of_this_process() -> io::Result<MountTable> {
        Ok(MountTable::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Reads the table's text. A line that has another shape is left out: the kernel may add kinds
    /// of mounts, and none of those is ours.
    pub fn parse(text: &[u8]) -> MountTable {
        let lines = text.split(|byte| *byte == b'\n');
        MountTable { mounts: lines.filter_map(parse_line).collect() }
    }

    /// The visible mount at exactly this directory.
    pub fn at(&self, mount_point: &Path) -> Option<&Mount> {
        self.mounts.iter().rev().find(|mount| mount.mount_point == mount_point)
    }

    /// The visible mount that a path lies in.
    pub fn containing(&self, path: &Path) -> Option<&Mount> {
        let depth = |mount: &Mount| mount.mount_point.components().count();
        // max_by_key returns the last of equals: the one mounted on top.
        self.mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.mount_point))
            .max_by_key(|mount| depth(mount))
    }

    pub fn dfs(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(|mount| mount.is_dfs())
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = parse_device(fields.nth(2)?)?;
    let root = unescape(fields.next()?).into();
    let mount_point = unescape(fields.next()?).into();
    fields.find(|field| *field == b"-")?;
    let kind = unescape(fields.next()?).to_string_lossy().into_owned();
    let source = unescape(fields.next()?);
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { device, root, mount_point, kind, source, super_options })
}

fn parse_device(text: &[u8]) -> Option<Device> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some(Device { major: parse(major)?, minor: parse(minor)? })
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Undoes the kernel's `\040`: space, tab, newline and backslash come as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = text.get(..4)? else {
        return None;
    };
    let digits = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
    u8::from_str_radix(digits, 8).ok()
}

/// `path`, absolute, with `.` and empty parts taken out, and without asking any file system.
///
/// # Errors
/// If the path is empty or the working directory is gone.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut whole = std::path::absolute(path)?;
    if whole.as_os_str().as_bytes().ends_with(b"/") && whole.parent().is_some() {
        whole = whole.components().collect();
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        27 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,discard\n\
        90 27 0:61 / /mnt/a\\040b\\011\\012\\134c rw,nosuid - fuse.dfs \
        dfs://h:7400/main rw,user_id=1000,group_id=100\n\
        91 27 0:62 / /mnt/x rw - autofs systemd-1 rw,fd=30\n\
        92 91 0:63 /sub /mnt/x rw - fuse.dfs dfs://[::1]:7401/v rw,user_id=0\n\
        93 92 0:64 / /mnt/x/deep rw - tmpfs tmpfs rw\n\
        nonsense\n\
        94 27 x:1 / /bad rw - ext4 s rw\n";

    #[test]
    fn lines_are_read_with_their_escapes_and_optional_fields() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.mounts.len(), 6);
        let mount = &table.mounts[2];
        assert_eq!(mount.mount_point, Path::new("/mnt/a b\t\n\\c"));
        assert_eq!(mount.device.to_string(), "0-61");
        assert_eq!(mount.owner_uid(), Some(1000));
        assert_eq!(mount.source, "dfs://h:7400/main");
        assert_eq!(table.mounts[1].kind, "ext4");
    }

    #[test]
    fn the_topmost_mount_at_a_directory_is_found() {
        let table = MountTable::parse(TABLE);
        let mount = table.at(Path::new("/mnt/x")).unwrap();
        assert!(mount.is_dfs());
        assert_eq!(mount.root, Path::new("/sub"));
        assert_eq!(table.at(Path::new("/mnt")), None);
    }

    #[test]
    fn a_path_belongs_to_the_deepest_mount_above_it() {
        let table = MountTable::parse(TABLE);
        let kind = |path: &str| table.containing(Path::new(path)).unwrap().kind.clone();
        assert_eq!(kind("/mnt/x/file"), DFS_TYPE);
        assert_eq!(kind("/mnt/x/deep/file"), "tmpfs");
        assert_eq!(kind("/mnt/xy"), "ext4");
        assert_eq!(table.dfs().count(), 2);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        for (text, plain) in [("a\\", "a\\"), ("\\08x", "\\08x"), ("\\+40", "\\+40")] {
            assert_eq!(unescape(text.as_bytes()), plain);
        }
        assert_eq!(unescape(b"\\040\\040"), "  ");
        assert_eq!(unescape(b"\\777"), "\\777");
    }

    #[test]
    fn the_table_of_this_process_has_a_root() {
        let table = MountTable::of_this_process().unwrap();
        assert!(table.containing(Path::new("/any/where")).is_some());
    }

    #[test]
    fn absolute_paths_lose_what_means_nothing() {
        assert_eq!(absolute(Path::new("/a//b/./c/")).unwrap().as_os_str(), "/a/b/c");
        assert_eq!(absolute(Path::new("/")).unwrap().as_os_str(), "/");
        assert!(absolute(Path::new("")).is_err());
    }
}
