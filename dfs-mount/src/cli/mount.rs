//! `dfs mount`: checks, then a daemon that serves the mount.
//!
//! Whatever can be refused is refused by the command itself: what needs no server first, then login
//! and volume by one question to the server, with a command's patience and not a mount's. Then it
//! starts itself again as the daemon and waits for one line from it: ready, or why not. Ctrl-C
//! until then ends both. With `--foreground` the command is the daemon.

mod daemonise;
mod log;
mod prepare;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;

use super::MountArgs;
use super::failure::{Context, Failure};
use super::output::Output;
use crate::config::{ConfigError, MountSource, RawMount, parse_options};
use daemonise::{Announcer, Mounted};

/// # Errors
/// A [`Failure`]: from the checks, or as the daemon announced it.
pub fn mount(arguments: &MountArgs, output: &mut Output) -> Result<(), Failure> {
    if !arguments.announce && !arguments.foreground {
        let command_line: Vec<OsString> = std::env::args_os().skip(1).collect();
        return output.show(&start(arguments, &command_line)?);
    }
    let plan = prepare::plan(arguments)?;
    if arguments.foreground {
        if !arguments.announce {
            prepare::ask_server(&plan)?;
        }
        log::to_stderr();
        return run::run(plan, Announcer::silent(), output);
    }
    let mut announcer = Announcer::to_parent();
    let done = log::to_file(&plan.config.log_file)
        .about(|| format!("cannot write the log {}", plan.config.log_file.display()))
        .and_then(|()| run::run(plan, announcer.clone(), output));
    match done {
        // The parent shows it; nobody else would see it.
        Err(failure) if announcer.is_awaited() => {
            announcer.failed(&failure, output)?;
            std::process::exit(failure.exit.code().into())
        }
        done => done,
    }
}

/// Checks, then leaves a daemon behind that has read `command_line` as `arguments`.
///
/// # Errors
/// As [`mount`].
pub(super) fn start(arguments: &MountArgs, command_line: &[OsString]) -> Result<Mounted, Failure> {
    let plan = prepare::plan(arguments)?;
    prepare::ask_server(&plan)?;
    daemonise::start(&plan.config, command_line)
}

/// The checks that need no server.
///
/// # Errors
/// As [`mount`].
pub(super) fn check(arguments: &MountArgs) -> Result<(), Failure> {
    prepare::plan(arguments).map(drop)
}

impl MountArgs {
    /// Nothing but options.
    pub(super) fn new(source: MountSource, dir: PathBuf, options: Vec<String>) -> MountArgs {
        MountArgs {
            source,
            dir,
            options,
            config_dir: None,
            cache_dir: None,
            cache_size: None,
            log_file: None,
            timeout: None,
            lock_timeout: None,
            hard: false,
            allow_other: false,
            default_permissions: false,
            read_only: false,
            foreground: false,
            announce: false,
        }
    }

    /// The flags as a layer: `-o` options, and over them the long flags.
    pub(super) fn layer(&self) -> Result<RawMount, ConfigError> {
        let mut layer = RawMount::default();
        for text in &self.options {
            let options = parse_options(text)
                .map_err(|source| ConfigError::Option { text: text.clone(), source })?;
            layer = layer.overlaid_by(options);
        }
        let flag = |is_set: bool| is_set.then_some(true);
        Ok(layer.overlaid_by(RawMount {
            config_dir: self.config_dir.clone(),
            cache_dir: self.cache_dir.clone(),
            cache_size: self.cache_size,
            log_file: self.log_file.clone(),
            read_only: flag(self.read_only),
            allow_other: flag(self.allow_other),
            default_permissions: flag(self.default_permissions),
            hard: flag(self.hard),
            timeout: self.timeout,
            lock_timeout: self.lock_timeout,
            ..RawMount::default()
        }))
    }
}
