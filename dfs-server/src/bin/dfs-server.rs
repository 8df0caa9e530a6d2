//! `dfs-server`: see `dfs_server::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfs_server::cli::run()
}
