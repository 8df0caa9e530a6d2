//! `dfs completions`, `dfs man`: what shells and man(1) know of the commands, out of their
//! declarations.

use std::fs::File;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

pub use clap_complete::Shell;

use super::args::{CompletionsArgs, ManArgs};
use super::failure::{Context, Failure};
use super::output::Output;
use super::{Cli, mount_dfs};

/// Section of the manual for commands that administrators and mount(8) call.
const HELPER_SECTION: &str = "8";

/// # Errors
/// A [`Failure`] if standard output takes nothing.
pub fn completions(arguments: &CompletionsArgs, output: &mut Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "dfs", &mut script);
    output.bytes(&script)
}

/// # Errors
/// A [`Failure`] if a page cannot be written.
pub fn man(arguments: &ManArgs) -> Result<(), Failure> {
    let what = || format!("cannot write manual pages to {}", arguments.dir.display());
    clap_mangen::generate_to(Cli::command(), &arguments.dir).about(what)?;
    helper_page(mount_dfs::command(), &arguments.dir).about(what)
}

fn helper_page(command: Command, dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!("{}.{HELPER_SECTION}", command.get_name()));
    Man::new(command).section(HELPER_SECTION).render(&mut File::create(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::captured;

    #[test]
    fn completions_of_every_shell_know_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let (mut output, text, _) = captured(false);
            completions(&CompletionsArgs { shell }, &mut output).unwrap();
            let script = text.text();
            for verb in ["mount", "umount", "outbox", "whoami"] {
                assert!(script.contains(verb), "{shell}: {verb}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page_and_a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: dir.path().to_owned() }).unwrap();
        for page in ["dfs.1", "dfs-mount.1", "dfs-outbox-list.1", "mount.dfs.8"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(".SH NAME"), "{page}");
        }
        let missing = dir.path().join("missing");
        let failure = man(&ManArgs { dir: missing.clone() }).unwrap_err();
        assert!(failure.what.contains(&missing.display().to_string()), "{}", failure.what);
    }
}
