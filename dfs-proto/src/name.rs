//! `Name`: one component of a path, parsed once at the edge and valid ever after.

use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::limits::NAME_BYTES_MAX;

/// A directory entry's name: any bytes but `/` and NUL, and neither empty, `.` nor `..`.
///
/// Shape: 1 to [`NAME_BYTES_MAX`] bytes. Order: by bytes, the order of a directory's pages.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Box<[u8]>", into = "Box<[u8]>")]
pub struct Name(Box<[u8]>);

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("name is empty")]
    Empty,
    #[error("name has {0} bytes, more than {NAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("name contains `/` or a NUL byte")]
    ForbiddenByte,
    #[error("`.` and `..` are not names of entries")]
    Dots,
}

impl Name {
    /// Reads a name from outside bytes.
    ///
    /// # Errors
    /// [`NameError`], in the order: empty, too long, forbidden byte, dots.
    pub fn parse(bytes: &[u8]) -> Result<Name, NameError> {
        check(bytes).map(|()| Name(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

fn check(bytes: &[u8]) -> Result<(), NameError> {
    if bytes.is_empty() {
        return Err(NameError::Empty);
    }
    if bytes.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(bytes.len()));
    }
    if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(NameError::ForbiddenByte);
    }
    if matches!(bytes, b"." | b"..") {
        return Err(NameError::Dots);
    }
    Ok(())
}

impl TryFrom<Box<[u8]>> for Name {
    type Error = NameError;

    fn try_from(bytes: Box<[u8]>) -> Result<Name, NameError> {
        check(&bytes).map(|()| Name(bytes))
    }
}

impl From<Name> for Box<[u8]> {
    fn from(name: Name) -> Box<[u8]> {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_but_slash_and_nul_are_a_name() {
        for bytes in [&b"a"[..], b"...", b" ", b"\xff\xfe", b"-rf", &[b'x'; NAME_BYTES_MAX]] {
            assert_eq!(Name::parse(bytes).unwrap().as_bytes(), bytes);
        }
    }

    #[test]
    fn what_could_escape_a_directory_is_no_name() {
        for bytes in [&b""[..], b".", b"..", b"/", b"a/b", b"../x", b"a\0b"] {
            assert!(Name::parse(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(Name::parse(&[b'x'; 256]), Err(NameError::TooLong(256)));
    }
}
