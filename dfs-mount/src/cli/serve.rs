//! `dfs serve`: becomes the `dfs-server` that was installed with this program.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::ServeArgs;
use super::failure::{Context, Failure};

/// Runs `dfs-server serve` in place of this process; returns only if that is not possible.
///
/// # Errors
/// A [`Failure`] that names the program.
pub fn serve(arguments: &ServeArgs) -> Result<(), Failure> {
    let program = server_program()?;
    let error = Command::new(&program).arg("serve").args(&arguments.arguments).exec();
    let what = format!("cannot run {}", program.display());
    Err(Failure::failed(what, error).remedy("install dfs-server beside dfs"))
}

/// Beside this program, and nowhere else: client and server of one installation belong together.
fn server_program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().about(|| "cannot find this program".to_owned())?;
    Ok(own.with_file_name("dfs-server"))
}
