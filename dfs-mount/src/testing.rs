//! Doubles for tests of the client: a cell in memory, and clients assembled on it.
//!
//! Only under feature `testing`. The cell keeps the rules that the client relies on (versions and
//! base checks, fences, capabilities and MACs, the op-id ledger) and lets a test break everything
//! else.

pub mod client;
pub mod fake_cell;
mod fake_files;
mod fake_opens;
