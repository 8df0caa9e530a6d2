//! Real processes and real mounts. Needs root, /dev/fuse and the built programs.

#[path = "../support/mod.rs"]
mod support;

mod accounts;
mod bad_input;
mod budget;
mod coherence;
mod crash;
mod directories;
mod errors;
mod full;
mod install;
mod json;
mod kernel;
mod lock;
mod mapper;
mod mount_dfs;
mod names;
mod pjdfstest;
mod program;
mod scenario;
mod signals;
mod split;
mod tools;
mod unprivileged;
mod watch;
mod work;
mod xattr;
