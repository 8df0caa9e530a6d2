//! What a path argument names: a url, or a path inside a mount, which is turned into one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::cli::failure::{Context, Failure};
use crate::config::{FileUrl, SCHEME, UrlError, UrlFault, VolumeUrl, parse_path};
use crate::control::mountinfo::{Mount, MountTable, absolute};

/// # Errors
/// A [`Failure`] if the argument is no url and lies in no DFS mount.
pub fn resolve(argument: &OsStr, table: &MountTable) -> Result<FileUrl, Failure> {
    let what = || format!("cannot use {}", argument.to_string_lossy());
    if is_url(argument) {
        return FileUrl::parse(argument).map_err(|error| Failure::usage(what(), error));
    }
    let plain = without_parents(Path::new(argument)).about(what)?;
    if let Some(mount) = table.containing(&plain).filter(|mount| mount.is_dfs()) {
        return in_mount(&plain, mount).map_err(|error| Failure::usage(what(), error));
    }
    // A link elsewhere may lead into a mount; only then is anything mounted touched.
    let real = plain.canonicalize().unwrap_or_else(|_| real_entry(plain));
    in_some_mount(&real, argument, table)
}

/// As [`resolve`], for a name that is meant itself: if it is a link, then the link.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_entry(argument: &OsStr, table: &MountTable) -> Result<FileUrl, Failure> {
    let what = || format!("cannot use {}", argument.to_string_lossy());
    if is_url(argument) {
        return resolve(argument, table);
    }
    let plain = without_parents(Path::new(argument)).about(what)?;
    match table.containing(&plain).filter(|mount| mount.is_dfs()) {
        Some(_) => in_some_mount(&plain, argument, table),
        None => in_some_mount(&real_entry(plain), argument, table),
    }
}

/// The name with the real path of the directory that it is in.
fn real_entry(plain: PathBuf) -> PathBuf {
    match (plain.parent().map(Path::canonicalize), plain.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => plain,
    }
}

fn in_some_mount(real: &Path, argument: &OsStr, table: &MountTable) -> Result<FileUrl, Failure> {
    let what = || format!("cannot use {}", argument.to_string_lossy());
    match table.containing(real).filter(|mount| mount.is_dfs()) {
        Some(mount) => in_mount(real, mount).map_err(|error| Failure::usage(what(), error)),
        None => Err(Failure::usage(what(), "it is not inside a DFS mount")
            .remedy("write dfs://HOST:PORT/VOLUME/PATH")),
    }
}

pub fn is_url(argument: &OsStr) -> bool {
    argument.as_bytes().starts_with(SCHEME.as_bytes())
}

/// `path`, absolute. Where it goes up, the file system has to say what is above.
fn without_parents(path: &Path) -> std::io::Result<PathBuf> {
    let plain = absolute(path)?;
    if !plain.components().any(|part| part == Component::ParentDir) {
        return Ok(plain);
    }
    match (plain.parent(), plain.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => plain.canonicalize(),
    }
}

fn in_mount(path: &Path, mount: &Mount) -> Result<FileUrl, UrlError> {
    let volume: VolumeUrl = mount.source.to_string_lossy().parse()?;
    let below = path.strip_prefix(&mount.mount_point).unwrap_or(Path::new(""));
    let inside = mount.root.join(below);
    let parsed = parse_path(inside.as_os_str().as_bytes());
    let path = parsed.map_err(|fault: UrlFault| UrlError {
        text: inside.to_string_lossy().into_owned(),
        fault,
    })?;
    Ok(FileUrl { volume, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;

    fn table(dir: &Path) -> MountTable {
        let dir = dir.display();
        let text = format!(
            "1 0 0:1 / {dir}/mnt rw - fuse.dfs dfs://h:7401/v rw\n\
             2 0 0:2 /sub {dir}/bind rw - fuse.dfs dfs://h:7401/v rw\n"
        );
        MountTable::parse(text.as_bytes())
    }

    fn resolved(dir: &Path, path: &str) -> Result<String, Failure> {
        let argument = dir.join(path);
        resolve(argument.as_os_str(), &table(dir)).map(|url| url.to_string())
    }

    #[test]
    fn a_path_in_a_mount_becomes_a_url() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        for (path, url) in [
            ("mnt", "dfs://h:7401/v/"),
            ("mnt/", "dfs://h:7401/v/"),
            ("mnt/a b/./c", "dfs://h:7401/v/a b/c"),
            ("bind/x", "dfs://h:7401/v/sub/x"),
        ] {
            assert_eq!(resolved(&dir, path).unwrap(), url, "{path}");
        }
    }

    #[test]
    fn a_link_into_a_mount_is_followed_and_dots_are_real() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("mnt/deep")).unwrap();
        std::os::unix::fs::symlink(dir.join("mnt/deep"), dir.join("link")).unwrap();
        assert_eq!(resolved(&dir, "link").unwrap(), "dfs://h:7401/v/deep");
        assert_eq!(resolved(&dir, "mnt/deep/../x").unwrap(), "dfs://h:7401/v/x");
        // What is above a link's target is not what is above the link.
        assert_eq!(resolved(&dir, "link/../x").unwrap(), "dfs://h:7401/v/x");
    }

    #[test]
    fn a_link_that_is_meant_itself_is_not_followed_but_those_above_it_are() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("mnt/deep")).unwrap();
        std::os::unix::fs::symlink(dir.join("mnt/deep"), dir.join("link")).unwrap();
        let entry = |path: &str| {
            let argument = dir.join(path);
            resolve_entry(argument.as_os_str(), &table(&dir)).map(|url| url.to_string())
        };
        assert!(entry("link").unwrap_err().causes().contains("not inside"));
        for path in ["link/new", "mnt/deep/new"] {
            assert_eq!(entry(path).unwrap(), "dfs://h:7401/v/deep/new");
            assert_eq!(resolved(&dir, path).unwrap(), "dfs://h:7401/v/deep/new");
        }
    }

    #[test]
    fn a_path_outside_every_mount_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        for path in ["elsewhere", "mntx", "mnt/../elsewhere"] {
            std::fs::create_dir_all(dir.join("mnt")).unwrap();
            let failure = resolved(&dir, path).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.causes().contains("not inside"), "{}", failure.causes());
        }
    }

    #[test]
    fn a_url_is_taken_as_it_is() {
        let url = resolve(OsStr::new("dfs://h/v/a"), &MountTable::default()).unwrap();
        assert_eq!(url.to_string(), "dfs://h:7400/v/a");
        assert!(resolve(OsStr::new("dfs://h/v/../a"), &MountTable::default()).is_err());
    }
}
