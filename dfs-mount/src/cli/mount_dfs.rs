//! `mount.dfs`: the helper that mount(8) calls for `-t dfs`, fstab(5) and systemd's mount units.
//!
//! The same program under another name (a symlink), so that a mount is the same whoever asks for
//! it: the arguments become those of `dfs mount`, and the daemon that stays behind is `dfs mount`.
//! What differs is what mount(8) expects: its exit codes, silence unless `-v`, `-s` and `-f`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use super::MountArgs;
use super::exit::Exit;
use super::failure::Failure;
use super::mount;
use super::output::Output;
use crate::config::{MountSource, known_options};

/// File system types for which we are the helper.
const TYPES: [&str; 2] = ["dfs", "fuse.dfs"];

/// What mount(8) passes on.
///
/// Source: mount(8), "External helpers".
#[derive(Debug, Parser)]
#[command(
    name = "mount.dfs",
    version,
    about = "Mounts a DFS volume for mount(8): mount -t dfs dfs://HOST:PORT/VOLUME DIR",
    after_help = "Exit codes:\n   0  done\n   1  wrong usage, not logged in or not allowed\n  \
                  32  the mount failed",
    max_term_width = 100
)]
struct PassedArgs {
    /// dfs://HOST:PORT/VOLUME (default port 7400, default volume main)
    #[arg(value_name = "URL")]
    source: String,
    /// Existing directory to mount at
    dir: PathBuf,
    /// Options as of mount(8) and of dfs mount
    #[arg(short = 'o', value_name = "OPTION,...")]
    options: Vec<String>,
    /// Ignore options that are not known
    #[arg(short = 's')]
    is_sloppy: bool,
    /// Only check, do not mount
    #[arg(short = 'f')]
    is_fake: bool,
    /// Accepted: there is no mtab to write
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Say what was mounted
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbosity: u8,
    /// Another mount namespace: refused
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
    /// dfs or fuse.dfs
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// The helper's declaration, for its manual page.
pub fn command() -> clap::Command {
    PassedArgs::command()
}

/// Whether a program called `name` is the helper.
pub fn is_meant(name: &OsStr) -> bool {
    let called = Path::new(name).file_name().and_then(OsStr::to_str);
    let kind = called.and_then(|called| called.strip_prefix("mount."));
    kind.is_some_and(|kind| TYPES.contains(&kind))
}

/// Mounts as mount(8) asks for it.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let mut output = Output::standard(false);
    let exit = match PassedArgs::try_parse_from(arguments) {
        Ok(arguments) => match run(&arguments, &mut output) {
            Ok(()) => Exit::Done,
            Err(failure) => {
                output.fail(&failure);
                failure.exit
            }
        },
        Err(error) => super::explain_usage(&error),
    };
    exit_code(exit).into()
}

/// The exit code that mount(8) documents.
fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Done => 0,
        // "Incorrect invocation or permissions".
        Exit::Usage | Exit::Refused => 1,
        // "Mount failure".
        Exit::Failed | Exit::Unreachable | Exit::Unsent | Exit::MountPoint => 32,
    }
}

fn run(arguments: &PassedArgs, output: &mut Output) -> Result<(), Failure> {
    let asked = arguments.meant()?;
    if arguments.is_fake {
        return mount::check(&asked);
    }
    let mounted = mount::start(&asked, &command_line(&asked))?;
    match arguments.verbosity {
        0 => Ok(()),
        _ => output.show(&mounted),
    }
}

impl PassedArgs {
    /// The arguments of `dfs mount` that mean the same.
    fn meant(&self) -> Result<MountArgs, Failure> {
        let what = format!("cannot mount at {}", self.dir.display());
        if let Some(namespace) = &self.namespace {
            let namespace = namespace.to_string_lossy();
            return Err(Failure::usage(what, "-N: only the own mount namespace is mounted in")
                .remedy(format!("nsenter --mount={namespace} mount -t dfs URL DIR")));
        }
        if let Some(kind) = self.kind.as_ref().filter(|kind| !TYPES.contains(&kind.as_str())) {
            return Err(Failure::usage(what, format!("-t {kind}: this is the helper for dfs"))
                .remedy("mount -t dfs"));
        }
        let source: MountSource = self.source.parse().map_err(|error| {
            Failure::usage(what, error).remedy("mount -t dfs dfs://HOST:PORT/VOLUME DIR")
        })?;
        let options = match self.is_sloppy {
            true => self.options.iter().map(|text| known_options(text)).collect(),
            false => self.options.clone(),
        };
        Ok(MountArgs::new(source, self.dir.clone(), options))
    }
}

/// What a `dfs mount` that means `asked` is called with.
fn command_line(asked: &MountArgs) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["mount".into()];
    line.extend(asked.options.iter().map(|options| format!("-o{options}").into()));
    line.push("--".into());
    line.push(asked.source.text.clone().into());
    line.push(asked.dir.clone().into());
    line
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;

    fn parse(line: &str) -> PassedArgs {
        PassedArgs::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_name_selects_the_helper() {
        for (name, expected) in [
            ("mount.dfs", true),
            ("/sbin/mount.dfs", true),
            ("/usr/sbin/mount.fuse.dfs", true),
            ("dfs", false),
            ("mount.nfs", false),
            ("/mount.dfs/dfs", false),
        ] {
            assert_eq!(is_meant(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn what_mount_8_passes_becomes_the_same_dfs_mount() {
        let line = "mount.dfs dfs://h/main /mnt -v -n -s -o rw,nosuid,bogus=1,timeout=5s -o hard";
        let asked = parse(line).meant().unwrap();
        let typed = std::iter::once("dfs".into()).chain(command_line(&asked));
        let Command::Mount(read) = Cli::try_parse_from(typed).unwrap().command else {
            panic!("the daemon is dfs mount");
        };
        assert_eq!(read.source, asked.source);
        assert_eq!(read.dir, Path::new("/mnt"));
        assert_eq!(read.options, ["rw,nosuid,timeout=5s", "hard"]);
        assert_eq!(read.layer().unwrap(), asked.layer().unwrap());
    }

    #[test]
    fn flags_may_stand_together_and_anywhere() {
        let arguments = parse("mount.dfs -sfnv -t fuse.dfs dfs://h/main /mnt");
        assert!(arguments.is_sloppy && arguments.is_fake && arguments.no_mtab);
        assert_eq!(arguments.verbosity, 1);
        assert!(arguments.meant().is_ok());
    }

    #[test]
    fn what_cannot_be_mounted_is_wrong_usage_with_the_remedy() {
        for (line, named) in [
            ("mount.dfs server:/export /mnt", "server:/export"),
            ("mount.dfs dfs://h/v/deep /mnt", "a path inside the volume"),
            ("mount.dfs dfs://h/v /mnt -t nfs", "-t nfs"),
            ("mount.dfs dfs://h/v /mnt -N /proc/1/ns/mnt", "-N"),
        ] {
            let failure = parse(line).meant().unwrap_err();
            assert_eq!(exit_code(failure.exit), 1, "{line}");
            assert!(failure.causes().contains(named), "{line}: {}", failure.causes());
            assert!(failure.remedy.is_some(), "{line}");
        }
    }
}
