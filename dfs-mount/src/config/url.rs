//! `dfs://HOST:PORT/VOLUME/PATH`: where a cell is, which of its volumes, which file in it.
//!
//! Parsed once, where it is typed; every error names the text. There is no percent-encoding: the
//! bytes after the volume are the path, as in `scp`. `..` is refused, not resolved, so that no
//! path can lead above the volume's root, whatever links are on the way.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use dfs_proto::limits::WORD_BYTES_MAX;
use dfs_proto::name::{Name, NameError};

/// Port of a cell's server when the url names none.
pub const DEFAULT_PORT: u16 = 7400;

/// Volume when the url names none.
pub const DEFAULT_VOLUME: &str = "main";

/// How every url begins.
pub const SCHEME: &str = "dfs://";

/// Why a text is no url.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not dfs://HOST:PORT/VOLUME/PATH: {fault}")]
pub struct UrlError {
    pub text: String,
    #[source]
    pub fault: UrlFault,
}

/// What is wrong with a url.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlFault {
    #[error("it does not begin with dfs://")]
    Scheme,
    #[error("it names no host")]
    NoHost,
    #[error("`{0}` is not a host name or address")]
    Host(String),
    #[error("`{0}` is not a port (1 to 65535)")]
    Port(String),
    #[error("a user does not belong into a url; give it to dfs login --user")]
    User,
    #[error("volume `{0}` has characters other than letters, digits, `-`, `_` and `.`")]
    VolumeAlphabet(String),
    #[error("the volume's name is longer than {WORD_BYTES_MAX} bytes")]
    VolumeTooLong,
    #[error("`..` is not allowed; write the path without it")]
    Parent,
    #[error("`{name}` in the path: {source}")]
    Name { name: String, source: NameError },
    #[error("a path inside the volume is not wanted here")]
    PathNotWanted,
}

/// Where a cell's server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CellAddress {
    /// Name or address, without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for CellAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for CellAddress {
    type Err = UrlError;

    /// Reads `HOST`, `HOST:PORT`, `[V6]:PORT`, each with or without `dfs://` before it.
    fn from_str(text: &str) -> Result<CellAddress, UrlError> {
        let bare = text.strip_prefix(SCHEME).unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        parse_address(bare).map_err(|fault| UrlError { text: text.to_owned(), fault })
    }
}

/// A volume of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeUrl {
    pub cell: CellAddress,
    pub volume: String,
}

impl fmt::Display for VolumeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cell, self.volume)
    }
}

impl FromStr for VolumeUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<VolumeUrl, UrlError> {
        let url: FileUrl = text.parse()?;
        if url.path.is_empty() {
            return Ok(url.volume);
        }
        Err(UrlError { text: text.to_owned(), fault: UrlFault::PathNotWanted })
    }
}

/// What is to be mounted: a volume, in the words of whoever asks. `mount -a` compares the words of
/// fstab(5) with those of the kernel's table, so that these must not be tidied up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSource {
    pub text: String,
    pub url: VolumeUrl,
}

impl FromStr for MountSource {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<MountSource, UrlError> {
        Ok(MountSource { text: text.to_owned(), url: text.parse()? })
    }
}

/// A file or directory of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileUrl {
    pub volume: VolumeUrl,
    /// From the volume's root, which is the empty path.
    pub path: Vec<Name>,
}

impl FileUrl {
    /// Reads a url that may hold any bytes in its path.
    ///
    /// # Errors
    /// [`UrlError`] with the whole text.
    pub fn parse(text: &OsStr) -> Result<FileUrl, UrlError> {
        parse_url(text.as_bytes())
            .map_err(|fault| UrlError { text: text.to_string_lossy().into_owned(), fault })
    }

    /// The path as it is shown: `/` for the root.
    pub fn path_text(&self) -> String {
        if self.path.is_empty() {
            return "/".to_owned();
        }
        self.path.iter().map(|name| format!("/{name}")).collect()
    }
}

impl fmt::Display for FileUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.volume, self.path_text())
    }
}

impl FromStr for FileUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<FileUrl, UrlError> {
        FileUrl::parse(OsStr::new(text))
    }
}

fn parse_url(text: &[u8]) -> Result<FileUrl, UrlFault> {
    let rest = text.strip_prefix(SCHEME.as_bytes()).ok_or(UrlFault::Scheme)?;
    let mut parts = rest.splitn(3, |byte| *byte == b'/');
    let address = lossy(parts.next().unwrap_or_default());
    let cell = parse_address(&address)?;
    let volume = parse_volume(&lossy(parts.next().unwrap_or_default()))?;
    let path = parse_path(parts.next().unwrap_or_default())?;
    Ok(FileUrl { volume: VolumeUrl { cell, volume }, path })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse_address(text: &str) -> Result<CellAddress, UrlFault> {
    if text.contains('@') {
        return Err(UrlFault::User);
    }
    let (host, port) = split_port(text)?;
    if host.is_empty() {
        return Err(UrlFault::NoHost);
    }
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    if !host.bytes().all(is_host_byte) {
        return Err(UrlFault::Host(host.to_owned()));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(digits) => match digits.parse() {
            Ok(port) if port > 0 && !digits.starts_with('+') => port,
            _ => return Err(UrlFault::Port(digits.to_owned())),
        },
    };
    Ok(CellAddress { host: host.to_owned(), port })
}

/// Cuts `HOST:PORT`, `[V6]:PORT` or a bare host; a bare IPv6 address has no port.
fn split_port(text: &str) -> Result<(&str, Option<&str>), UrlFault> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (host, rest) =
            bracketed.split_once(']').ok_or_else(|| UrlFault::Host(text.to_owned()))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(UrlFault::Host(text.to_owned())),
        };
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        _ => Ok((text, None)),
    }
}

fn parse_volume(text: &str) -> Result<String, UrlFault> {
    if text.is_empty() {
        return Ok(DEFAULT_VOLUME.to_owned());
    }
    if text.len() > WORD_BYTES_MAX {
        return Err(UrlFault::VolumeTooLong);
    }
    let is_word_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_dots = matches!(text, "." | "..");
    if is_dots || !text.bytes().all(is_word_byte) {
        return Err(UrlFault::VolumeAlphabet(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// Cuts a path into names. Empty parts and `.` mean nothing.
pub(crate) fn parse_path(path: &[u8]) -> Result<Vec<Name>, UrlFault> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(|part| match part {
            b".." => Err(UrlFault::Parent),
            _ => Name::parse(part).map_err(|source| UrlFault::Name { name: lossy(part), source }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_their_defaults() {
        for (text, host, port, volume, path) in [
            ("dfs://h", "h", 7400, "main", "/"),
            ("dfs://h/", "h", 7400, "main", "/"),
            ("dfs://h:1/v", "h", 1, "v", "/"),
            ("dfs://127.0.0.1:7401/v/", "127.0.0.1", 7401, "v", "/"),
            ("dfs://[::1]:9/v/a//./b/", "::1", 9, "v", "/a/b"),
            ("dfs://[fe80::1%eth0]/v", "fe80::1%eth0", 7400, "v", "/"),
            ("dfs://h/v/a b?c#d%20", "h", 7400, "v", "/a b?c#d%20"),
            ("dfs://h/v/a:b@c", "h", 7400, "v", "/a:b@c"),
        ] {
            let url: FileUrl = text.parse().unwrap();
            let cell = CellAddress { host: host.into(), port };
            assert_eq!(url.volume, VolumeUrl { cell, volume: volume.into() }, "{text}");
            assert_eq!(url.path_text(), path, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_the_text_and_the_reason() {
        for (text, reason) in [
            ("/local", "does not begin"),
            ("http://h/v", "does not begin"),
            ("dfs://", "names no host"),
            ("dfs:///v", "names no host"),
            ("dfs://:1/v", "names no host"),
            ("dfs://h:0/v", "`0` is not a port"),
            ("dfs://h:65536/v", "`65536` is not a port"),
            ("dfs://h:+1/v", "`+1` is not a port"),
            ("dfs://h:x/v", "`x` is not a port"),
            ("dfs://[::1/v", "not a host name"),
            ("dfs://h h/v", "`h h` is not a host"),
            ("dfs://u@h/v", "dfs login --user"),
            ("dfs://h/v,ro", "`v,ro` has characters"),
            ("dfs://h/..", "has characters"),
            ("dfs://h/v/a/../../b", "`..` is not allowed"),
        ] {
            let error = text.parse::<FileUrl>().unwrap_err();
            let message = error.to_string();
            assert!(message.contains(&format!("`{text}`")), "{message}");
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_or_has_a_nul_is_refused() {
        let long = format!("dfs://h/v/{}", "x".repeat(256));
        assert!(long.parse::<FileUrl>().unwrap_err().to_string().contains("256 bytes"));
        assert!("dfs://h/v/a\0b".parse::<FileUrl>().is_err());
    }

    #[test]
    fn a_path_may_hold_any_bytes() {
        let url = FileUrl::parse(OsStr::from_bytes(b"dfs://h/v/\xff\xfe")).unwrap();
        assert_eq!(url.path[0].as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn a_volume_url_takes_no_path_and_comes_back_as_typed() {
        for text in ["dfs://h:7400/main", "dfs://[::1]:7400/v"] {
            assert_eq!(text.parse::<VolumeUrl>().unwrap().to_string(), text);
        }
        assert!("dfs://h/v/a".parse::<VolumeUrl>().is_err());
    }

    #[test]
    fn a_cell_address_is_read_with_and_without_scheme() {
        let expected = CellAddress { host: "h".into(), port: 7401 };
        for text in ["h:7401", "dfs://h:7401", "dfs://h:7401/"] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
        }
        assert_eq!("h".parse::<CellAddress>().unwrap().port, DEFAULT_PORT);
    }
}
