//! The control socket: how commands talk to the mount daemon of a mount point.
//!
//! Each daemon listens on one unix socket named after its mount's device number, so a command finds
//! it from `/proc/self/mountinfo` without touching the mount, which may hang or be dead, and from
//! any network namespace. One connection carries one request and its replies, as JSON lines with a
//! version; the kernel vouches for the peer, which must be the daemon's user or root.
//!
//! [`server`] runs in the daemon, [`client`] in commands; [`message`] is what they say; [`place`]
//! is where sockets lie; [`mountinfo`] reads the kernel's table. What a request *does* is behind
//! [`server::Daemon`].

pub mod client;
pub mod message;
pub mod mountinfo;
pub mod place;
pub mod server;
