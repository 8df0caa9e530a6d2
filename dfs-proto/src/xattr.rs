//! Names and values of extended attributes, parsed once at the edge and valid ever after.
//!
//! Two namespaces are kept: `user.`, for programs, and `trusted.`, for root. The kernel's own
//! (`security.`, `system.`) have effects on the host that reads them; a name of theirs is no
//! [`XattrName`].

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};

const USER: &[u8] = b"user.";
const TRUSTED: &[u8] = b"trusted.";
const SECURITY: &[u8] = b"security.";

/// What names begin with that DFS keeps for itself, to show its own state of a file.
const RESERVED: &[u8] = b"user.dfs.";

/// An extended attribute's name with its namespace: any bytes but NUL.
///
/// Shape: more than its namespace, at most [`XATTR_NAME_BYTES_MAX`] bytes. Order: by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Box<[u8]>", into = "Box<[u8]>")]
pub struct XattrName(Box<[u8]>);

/// An extended attribute's value: any bytes, also none.
///
/// Shape: at most [`XATTR_VALUE_BYTES_MAX`] bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Box<[u8]>", into = "Box<[u8]>")]
pub struct XattrValue(Box<[u8]>);

/// Whose attributes they are; xattr(7) has the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrNamespace {
    /// Judged by the permission bits of files and directories; other kinds have none.
    User,
    /// Seen and changed by root only.
    Trusted,
}

/// Why bytes are not an extended attribute's name, or value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    #[error("name of an extended attribute has {0} bytes, more than {XATTR_NAME_BYTES_MAX}")]
    NameTooLong(usize),
    #[error("name of an extended attribute is empty, only a namespace, or has a NUL byte")]
    Malformed,
    #[error("extended attributes of `security.` are not kept; use `user.` or `trusted.`")]
    Security,
    #[error("no extended attributes of the namespace of `{0}` are kept; use `user.`")]
    Namespace(String),
    #[error("value of an extended attribute has {0} bytes, more than {XATTR_VALUE_BYTES_MAX}")]
    ValueTooLong(usize),
}

impl XattrName {
    /// Reads a name from outside bytes.
    ///
    /// # Errors
    /// [`XattrError`], but not that of a value.
    pub fn parse(bytes: &[u8]) -> Result<XattrName, XattrError> {
        check(bytes).map(|()| XattrName(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    pub fn namespace(&self) -> XattrNamespace {
        if self.0.starts_with(USER) { XattrNamespace::User } else { XattrNamespace::Trusted }
    }

    /// Whether DFS keeps this name for what it shows of a file: nobody sets it.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED)
    }
}

fn check(bytes: &[u8]) -> Result<(), XattrError> {
    if bytes.len() > XATTR_NAME_BYTES_MAX {
        return Err(XattrError::NameTooLong(bytes.len()));
    }
    if bytes.is_empty() || bytes.contains(&0) || bytes == USER || bytes == TRUSTED {
        return Err(XattrError::Malformed);
    }
    if bytes.starts_with(SECURITY) {
        return Err(XattrError::Security);
    }
    if bytes.starts_with(USER) || bytes.starts_with(TRUSTED) {
        return Ok(());
    }
    Err(XattrError::Namespace(String::from_utf8_lossy(bytes).into_owned()))
}

impl TryFrom<Box<[u8]>> for XattrName {
    type Error = XattrError;

    fn try_from(bytes: Box<[u8]>) -> Result<XattrName, XattrError> {
        check(&bytes).map(|()| XattrName(bytes))
    }
}

impl From<XattrName> for Box<[u8]> {
    fn from(name: XattrName) -> Box<[u8]> {
        name.0
    }
}

impl fmt::Display for XattrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl fmt::Debug for XattrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl XattrValue {
    /// Reads a value from outside bytes.
    ///
    /// # Errors
    /// `ValueTooLong`.
    pub fn parse(bytes: &[u8]) -> Result<XattrValue, XattrError> {
        XattrValue::try_from(Box::from(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Box<[u8]>> for XattrValue {
    type Error = XattrError;

    fn try_from(bytes: Box<[u8]>) -> Result<XattrValue, XattrError> {
        if bytes.len() > XATTR_VALUE_BYTES_MAX {
            return Err(XattrError::ValueTooLong(bytes.len()));
        }
        Ok(XattrValue(bytes))
    }
}

impl From<XattrValue> for Box<[u8]> {
    fn from(value: XattrValue) -> Box<[u8]> {
        value.0
    }
}

/// Values may be secrets of programs: only the length is shown.
impl fmt::Debug for XattrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XattrValue({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn any_bytes_behind_a_kept_namespace_are_a_name() {
        let longest = [b"user.".to_vec(), vec![0xff; XATTR_NAME_BYTES_MAX - 5]].concat();
        for bytes in [&b"user.a"[..], b"user. /..", b"user.dfs", b"trusted.overlay.x", &longest] {
            let name = XattrName::parse(bytes).unwrap();
            assert!(name.as_bytes() == bytes && !name.is_reserved(), "{name}");
        }
        assert_eq!(XattrName::parse(b"user.a").unwrap().namespace(), XattrNamespace::User);
        assert_eq!(XattrName::parse(b"trusted.a").unwrap().namespace(), XattrNamespace::Trusted);
        assert!(XattrName::parse(b"user.dfs.state").unwrap().is_reserved());
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        for bytes in [&b""[..], b"user.", b"trusted.", b"user.a\0b"] {
            assert_eq!(XattrName::parse(bytes), Err(XattrError::Malformed), "{bytes:?}");
        }
        let long = [b"user.".to_vec(), vec![b'x'; 251]].concat();
        assert_eq!(XattrName::parse(&long), Err(XattrError::NameTooLong(256)));
        assert_eq!(XattrName::parse(b"security.capability"), Err(XattrError::Security));
        for other in ["system.posix_acl_access", "com.apple.x", "USER.a", "user"] {
            let refused = XattrName::parse(other.as_bytes());
            assert_eq!(refused, Err(XattrError::Namespace(other.to_owned())));
        }
    }

    #[test]
    fn what_comes_from_the_wire_is_checked_too() {
        let encode = |bytes: &[u8]| codec::encode(&Box::<[u8]>::from(bytes), 1 << 20).unwrap();
        let name = codec::decode::<XattrName>(&encode(b"user.a"), 1 << 20).unwrap();
        assert_eq!(name, XattrName::parse(b"user.a").unwrap());
        assert!(codec::decode::<XattrName>(&encode(b"security.selinux"), 1 << 20).is_err());
        let full = vec![7; XATTR_VALUE_BYTES_MAX];
        let value = codec::decode::<XattrValue>(&encode(&full), 1 << 20).unwrap();
        assert_eq!(value.as_bytes(), full);
        let long = vec![7; XATTR_VALUE_BYTES_MAX + 1];
        assert!(codec::decode::<XattrValue>(&encode(&long), 1 << 20).is_err());
        assert_eq!(XattrValue::parse(&long), Err(XattrError::ValueTooLong(65_537)));
    }
}
