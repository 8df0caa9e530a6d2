//! The DFS servers: directory, lock, auth and file, as roles of one binary.
//!
//! STORAGE.md beside this crate describes what is on disk. Start reading at `server`, the
//! composition root.

pub mod admin;
pub mod auth;
pub mod cell;
pub mod chunk_store;
pub mod cli;
pub mod config;
pub mod directory;
pub mod durable_file;
pub mod file;
pub mod ledger;
pub mod lock;
pub mod meta;
pub mod placement;
pub mod request;
pub mod rpc;
pub mod secret;
pub mod server;
pub mod session;
