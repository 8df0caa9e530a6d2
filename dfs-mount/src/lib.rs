//! The DFS client: what is mounted, and what `dfs` does without a mount.

pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod credential;
pub mod fetch;
pub mod fuse;
pub mod lease;
pub mod metrics;
pub mod placement;
pub mod session;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
pub mod vfs;
pub mod writeback;
