//! Walking a path name by name, symbolic links followed inside the volume only.
//!
//! For who works without a kernel that resolves paths: commands and the JSON face. Decides only;
//! the looking up is its caller's, so that every name is judged by the directory service.

use std::collections::VecDeque;

use crate::attr::{Attr, FileKind};
use crate::error::FsError;
use crate::id::FileId;
use crate::name::Name;

/// Most symbolic links on the way to one file. Source: path_resolution(7).
const LINKS_FOLLOWED_MAX: usize = 40;

/// A walk along a path: decides, and leaves the asking to its caller.
#[derive(Debug)]
pub struct Walk {
    /// The directories from the root to here, then, at the end, what was found.
    trail: Vec<Attr>,
    rest: VecDeque<Part>,
    links_followed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Name(Name),
    Up,
}

/// The next lookup.
#[derive(Clone, Debug)]
pub struct Step {
    pub dir: FileId,
    pub name: Name,
}

impl Walk {
    /// Begins at the root of a volume.
    pub fn new(root: Attr, path: &[Name]) -> Walk {
        let rest = path.iter().cloned().map(Part::Name).collect();
        Walk { trail: vec![root], rest, links_followed: 0 }
    }

    fn here(&self) -> &Attr {
        self.trail.last().expect("a walk begins at the root")
    }

    /// What is to be looked up next; `None` at the end.
    ///
    /// # Errors
    /// `NotDirectory`; `InvalidArgument` for `..` above the root.
    pub fn next_step(&mut self) -> Result<Option<Step>, FsError> {
        loop {
            match self.rest.pop_front() {
                None => return Ok(None),
                Some(_) if self.here().kind != FileKind::Directory => {
                    return Err(FsError::NotDirectory);
                }
                Some(Part::Up) if self.trail.len() == 1 => {
                    return Err(FsError::invalid("a path that leads out of the volume"));
                }
                Some(Part::Up) => drop(self.trail.pop()),
                Some(Part::Name(name)) => {
                    return Ok(Some(Step { dir: self.here().fid, name }));
                }
            }
        }
    }

    /// Whether what was looked up last is the last name.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Goes on at what the last step found.
    pub fn enter(&mut self, attr: Attr) {
        self.trail.push(attr);
    }

    /// Puts a link's target before the rest of the path.
    ///
    /// # Errors
    /// `InvalidArgument` for too many links, or one that leads out of the volume.
    pub fn follow(&mut self, link: &Name, target: &[u8]) -> Result<(), FsError> {
        self.links_followed += 1;
        if self.links_followed > LINKS_FOLLOWED_MAX {
            return Err(FsError::invalid(format!(
                "a chain of more than {LINKS_FOLLOWED_MAX} links"
            )));
        }
        if target.first() == Some(&b'/') {
            return Err(FsError::invalid(format!("link `{link}`, which leads out of the volume,")));
        }
        let parts = target.split(|byte| *byte == b'/');
        for part in parts.rev().filter(|part| !matches!(*part, b"" | b".")) {
            let part = match part {
                b".." => Part::Up,
                name => Part::Name(Name::parse(name).map_err(|error| {
                    FsError::invalid(format!("target of link `{link}` ({error})"))
                })?),
            };
            self.rest.push_front(part);
        }
        Ok(())
    }

    /// What the path leads to.
    pub fn into_end(mut self) -> Attr {
        self.trail.pop().expect("a walk begins at the root")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Timestamp;
    use crate::id::{InodeNo, VolumeId};
    use crate::version::{DataVersion, DirVersion, Epoch};

    fn attr(kind: FileKind, mode: u32) -> Attr {
        Attr {
            fid: FileId::new(VolumeId(1), InodeNo(2), Epoch(3)),
            kind,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            stored_bytes: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            rdev: 0,
            data_version: DataVersion::default(),
            dir_version: DirVersion::default(),
            xattr_bytes: 0,
        }
    }

    fn names(path: &str) -> Vec<Name> {
        path.split('/').map(|part| Name::parse(part.as_bytes()).unwrap()).collect()
    }

    /// Walks as a volume does, where each name is a directory, `file` is a file, and `links` says
    /// which names are links; gives the names looked up.
    fn walk(path: &str, links: &[(&str, &str)]) -> Result<Vec<String>, FsError> {
        let mut seen = Vec::new();
        let mut walk = Walk::new(attr(FileKind::Directory, 0o755), &names(path));
        while let Some(step) = walk.next_step()? {
            let name = step.name.to_string();
            let link = links.iter().find(|(link, _)| *link == name);
            seen.push(name.clone());
            match link {
                Some((_, target)) => walk.follow(&step.name, target.as_bytes())?,
                None if name == "file" => walk.enter(attr(FileKind::File, 0o644)),
                None => walk.enter(attr(FileKind::Directory, 0o755)),
            }
        }
        Ok(seen)
    }

    #[test]
    fn links_are_followed_inside_the_volume() {
        assert_eq!(walk("a/b", &[]).unwrap(), ["a", "b"]);
        assert_eq!(walk("a/l/x", &[("l", "b//./c")]).unwrap(), ["a", "l", "b", "c", "x"]);
        assert_eq!(walk("a/l/x", &[("l", "../c")]).unwrap(), ["a", "l", "c", "x"]);
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        for target in ["/etc/passwd", "/", "..", "../..", "b/../../.."] {
            let error = walk("l", &[("l", target)]).unwrap_err();
            assert!(matches!(error, FsError::InvalidArgument { .. }), "{target}: {error}");
        }
    }

    #[test]
    fn a_circle_of_links_ends() {
        let error = walk("a", &[("a", "b"), ("b", "a")]).unwrap_err();
        assert!(error.to_string().contains("more than 40 links"), "{error}");
    }

    #[test]
    fn nothing_is_below_a_file() {
        assert_eq!(walk("file/x", &[]).unwrap_err(), FsError::NotDirectory);
        assert_eq!(walk("l", &[("l", "file/..")]).unwrap_err(), FsError::NotDirectory);
    }

    #[test]
    fn a_target_with_an_impossible_name_is_refused() {
        assert!(walk("l", &[("l", "a\0b")]).is_err());
        assert!(walk("l", &[("l", &"x".repeat(256))]).is_err());
    }
}
