//! The words DFS clients and servers share: identifiers, attributes, versions, manifests, errors,
//! requests and replies. It keeps nothing, and decides only what all must decide alike: where
//! chunks end, and how a path is walked.
//!
//! The only input and output in this crate is the RPC client behind feature `client`; it is here
//! because servers are clients of each other too. PROTOCOL.md beside this crate is the prose form.

pub mod admin;
pub mod attr;
pub mod auth;
pub mod capability;
pub mod chunk;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod codec;
pub mod credential;
pub mod directory;
pub mod dirent;
pub mod error;
pub mod file;
pub mod id;
pub mod lease;
pub mod limits;
pub mod lock;
pub mod manifest;
pub mod name;
pub mod path;
pub mod permission;
pub mod promise;
pub mod range;
pub mod rpc;
pub mod session;
pub mod version;
pub mod xattr;

pub use error::FsError;
