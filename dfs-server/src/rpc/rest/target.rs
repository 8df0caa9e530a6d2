//! What a request is about: the resource, the volume, the path inside it, the query.
//!
//! Everything is percent-decoded once and parsed into names here, so that nothing behind this file
//! ever sees a `..`, an empty name, a NUL or a slash inside a name.

use dfs_proto::FsError;
use dfs_proto::limits::{DIR_PAGE_ENTRIES_MAX, WORD_BYTES_MAX};
use dfs_proto::name::Name;
use percent_encoding::percent_decode_str;

/// Where the JSON face begins. Its version is in the path: another one may stand beside it.
pub const PREFIX: &str = "/v1/";

/// Longest path and query, as they come. Units: bytes.
///
/// Why 16 KiB: a path of 4,096 bytes (PATH_MAX), each of them percent-encoded, and a query.
const TARGET_BYTES_MAX: usize = 16 << 10;

/// Entries of a page if the query names no limit. Why: some hundred kilobytes of JSON.
const LIST_LIMIT_DEFAULT: u32 = 1000;

/// Largest mode that a query may give: permission bits. Set-id bits are for who owns the file.
const MODE_MAX: u32 = 0o777;

/// How much of a wrong value an error shows. Units: characters.
const SHOWN_MAX: usize = 80;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Login,
    Renew,
    Logout,
    Files,
    Directories,
    Stat,
}

impl Resource {
    fn parse(word: &str) -> Option<Resource> {
        Some(match word {
            "login" => Resource::Login,
            "renew" => Resource::Renew,
            "logout" => Resource::Logout,
            "files" => Resource::Files,
            "directories" => Resource::Directories,
            "stat" => Resource::Stat,
            _ => return None,
        })
    }

    fn has_path(self) -> bool {
        matches!(self, Resource::Files | Resource::Directories | Resource::Stat)
    }

    /// The methods it takes, as the header `Allow` lists them.
    pub fn methods(self) -> &'static str {
        match self {
            Resource::Login | Resource::Renew | Resource::Logout => "POST",
            Resource::Files => "GET, HEAD, PUT, DELETE",
            Resource::Directories => "GET, PUT, DELETE",
            Resource::Stat => "GET",
        }
    }
}

/// A parsed request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub resource: Resource,
    /// Empty for resources without a path.
    pub volume: String,
    pub path: Vec<Name>,
    pub query: Query,
}

/// What may stand behind the question mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub after: Option<Name>,
    limit: Option<u32>,
    pub mode: Option<u32>,
}

impl Query {
    /// Entries of a page.
    pub fn limit(&self) -> u32 {
        self.limit.unwrap_or(LIST_LIMIT_DEFAULT)
    }
}

impl Target {
    /// # Errors
    /// `UnknownOperation` for what is no resource; `InvalidArgument` names the part that is wrong;
    /// `TooLarge`.
    pub fn parse(path: &str, query: &str) -> Result<Target, FsError> {
        if path.len() + query.len() > TARGET_BYTES_MAX {
            let (what, limit) = ("path and query of the URL".into(), TARGET_BYTES_MAX as u64);
            return Err(FsError::TooLarge { what, limit });
        }
        let unknown = || FsError::UnknownOperation { path: shown(path) };
        let rest = path.strip_prefix(PREFIX).ok_or_else(unknown)?;
        let (word, rest) = match rest.split_once('/') {
            Some((word, rest)) => (word, Some(rest)),
            None => (rest, None),
        };
        let resource = Resource::parse(word).ok_or_else(unknown)?;
        let query = parse_query(query)?;
        if !resource.has_path() {
            return match rest {
                None => Ok(Target { resource, volume: String::new(), path: Vec::new(), query }),
                Some(_) => Err(unknown()),
            };
        }
        let (volume, names) = rest
            .and_then(|rest| {
                let (volume, names) = rest.split_once('/').unwrap_or((rest, ""));
                (!volume.is_empty()).then_some((volume, names))
            })
            .ok_or_else(|| FsError::invalid(format!("path `{}` without a volume", shown(path))))?;
        Ok(Target { resource, volume: parse_volume(volume)?, path: parse_names(names)?, query })
    }
}

fn parse_volume(text: &str) -> Result<String, FsError> {
    let wrong = || FsError::invalid(format!("volume name `{}`", shown(text)));
    let name = percent_decode_str(text).decode_utf8().map_err(|_| wrong())?;
    let is_word = name.len() <= WORD_BYTES_MAX && !name.contains(char::is_control);
    if is_word { Ok(name.into_owned()) } else { Err(wrong()) }
}

/// The names of a path. One slash at its end is allowed: directories are often written so.
fn parse_names(text: &str) -> Result<Vec<Name>, FsError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.strip_suffix('/').unwrap_or(text).split('/').map(parse_name).collect()
}

fn parse_name(text: &str) -> Result<Name, FsError> {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    Name::parse(&bytes)
        .map_err(|error| FsError::invalid(format!("name `{}` ({error})", shown(text))))
}

fn parse_query(text: &str) -> Result<Query, FsError> {
    let mut query = Query::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = || FsError::invalid(format!("`{}` of the query", shown(pair)));
        match key {
            "after" if query.after.is_none() => query.after = Some(parse_name(value)?),
            "limit" if query.limit.is_none() => {
                let limit = value.parse().ok();
                let is_possible = |limit: &u32| (1..=DIR_PAGE_ENTRIES_MAX).contains(limit);
                query.limit = Some(limit.filter(is_possible).ok_or_else(|| {
                    let value = shown(value);
                    FsError::invalid(format!("limit `{value}` (1 to {DIR_PAGE_ENTRIES_MAX})"))
                })?);
            }
            "mode" if query.mode.is_none() => {
                let mode = u32::from_str_radix(value, 8).ok();
                let is_octal = value.len() <= 4 && value.bytes().all(|byte| byte.is_ascii_digit());
                let mode = mode.filter(|mode| is_octal && *mode <= MODE_MAX);
                query.mode = Some(mode.ok_or_else(|| {
                    FsError::invalid(format!("mode `{}` (octal, 0 to 777)", shown(value)))
                })?);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(query)
}

/// The beginning of a value from outside, without what terminals obey.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Result<Target, FsError> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Target::parse(path, query)
    }

    fn names(path: &str) -> Vec<Vec<u8>> {
        parse(path).unwrap().path.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    #[test]
    fn paths_are_decoded_into_exact_names() {
        assert_eq!(names("/v1/files/main/a/b"), [b"a", b"b"]);
        assert_eq!(names("/v1/files/main/a%20b"), [b"a b"]);
        assert_eq!(names("/v1/files/main/%ff%FE+"), [b"\xff\xfe+"]);
        assert_eq!(names("/v1/files/main/100%"), [b"100%"]);
        for root in ["/v1/directories/main", "/v1/directories/main/"] {
            assert!(names(root).is_empty(), "{root}");
        }
        assert_eq!(names("/v1/directories/main/a/"), [b"a"]);
        assert_eq!(parse("/v1/stat/m%61in/a").unwrap().volume, "main");
    }

    #[test]
    fn names_that_no_entry_has_are_refused_and_named() {
        let long = "x".repeat(256);
        for name in ["..", ".", "%2e%2e", "%2E", "a%2fb", "a%00b", &long] {
            let error = parse(&format!("/v1/files/main/d/{name}/f")).unwrap_err();
            let FsError::InvalidArgument { what } = error else { panic!("{error}") };
            assert!(what.contains(&shown(name)), "{what}");
        }
        for path in ["/v1/files/main//a", "/v1/files/main/a//b", "/v1/files/main/a//"] {
            assert!(matches!(parse(path), Err(FsError::InvalidArgument { .. })), "{path}");
        }
    }

    #[test]
    fn what_is_no_resource_is_unknown_and_a_path_needs_a_volume() {
        for path in ["/", "/v1", "/v1/", "/v2/files/main/a", "/v1/nodes", "/v1/login/a"] {
            assert!(matches!(parse(path), Err(FsError::UnknownOperation { .. })), "{path}");
        }
        let long = format!("/v1/files/{}", "v".repeat(65));
        for path in ["/v1/files", "/v1/files/", "/v1/files//a", "/v1/stat/%ff", &long] {
            assert!(matches!(parse(path), Err(FsError::InvalidArgument { .. })), "{path}");
        }
        let long = format!("/v1/files/main/{}", "x/".repeat(9000));
        assert!(matches!(parse(&long), Err(FsError::TooLarge { .. })));
    }

    #[test]
    fn queries_are_read_once_each_and_within_their_bounds() {
        let query = parse("/v1/directories/main?after=%ff&limit=4096&mode=0750").unwrap().query;
        assert_eq!(query.after.as_ref().unwrap().as_bytes(), b"\xff");
        assert_eq!((query.limit(), query.mode), (4096, Some(0o750)));
        assert_eq!(parse("/v1/stat/main").unwrap().query.limit(), LIST_LIMIT_DEFAULT);
        for wrong in [
            "limit=0",
            "limit=4097",
            "limit=-1",
            "limit=",
            "limit=1&limit=2",
            "after=",
            "after=..",
            "mode=8",
            "mode=1777",
            "mode=",
            "mode=+7",
            "mode=00777",
            "other=1",
            "after",
        ] {
            let error = parse(&format!("/v1/directories/main?{wrong}")).unwrap_err();
            assert!(matches!(error, FsError::InvalidArgument { .. }), "{wrong}: {error}");
        }
    }
}
