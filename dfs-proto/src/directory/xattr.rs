//! Extended attributes of an inode.

use serde::{Deserialize, Serialize};

use super::{AttrReply, rpc};
use crate::id::FileId;
use crate::rpc::{Access, Rpc};
use crate::xattr::{XattrName, XattrValue};

/// The value of an extended attribute.
///
/// Errors: `NoAttribute` (also if the caller may not know of it), `AccessDenied` (no read
/// permission), `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetXattr {
    pub fid: FileId,
    pub name: XattrName,
}
rpc!(GetXattr => XattrValue, "directory.get_xattr", User);

/// The names of an inode's extended attributes that the caller may know of, in order.
///
/// Shape: with a NUL behind each at most `XATTR_LIST_BYTES_MAX` bytes. Errors: `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListXattr {
    pub fid: FileId,
}
rpc!(ListXattr => Vec<XattrName>, "directory.list_xattr", User);

/// What must be there for an extended attribute to be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrRule {
    #[default]
    Any,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

/// Sets an extended attribute. Moves ctime.
///
/// Errors: `Exists` and `NoAttribute` (by the rule), `NoSpace` (with the others of the inode too
/// much, or nothing new is made at present), `Unsupported` (a reserved name), `AccessDenied`,
/// `NotPermitted` (`trusted.` by others than root; `user.` on what is neither file nor directory,
/// or on somebody else's sticky directory), `Stale`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetXattr {
    pub fid: FileId,
    pub name: XattrName,
    pub value: XattrValue,
    pub rule: XattrRule,
}
rpc!(SetXattr => AttrReply, "directory.set_xattr", User, mutates);

/// Removes an extended attribute. Moves ctime.
///
/// Errors: `NoAttribute`, and as [`SetXattr`] who may not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveXattr {
    pub fid: FileId,
    pub name: XattrName,
}
rpc!(RemoveXattr => AttrReply, "directory.remove_xattr", User, mutates);
