//! The command `dfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfs_mount::cli::main(std::env::args_os())
}
