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

use super::MountArgs;
use super::failure::{Context, Failure};
use super::output::Output;
use crate::config::{ConfigError, RawMount, parse_options};
use daemonise::Announcer;

/// # Errors
/// A [`Failure`]: from the checks, or as the daemon announced it.
pub fn mount(arguments: &MountArgs, output: &mut Output) -> Result<(), Failure> {
    let plan = prepare::plan(arguments)?;
    if !arguments.announce {
        prepare::ask_server(&plan)?;
    }
    if arguments.foreground {
        log::to_stderr();
        return run::run(plan, Announcer::silent(), output);
    }
    if !arguments.announce {
        return daemonise::start(&plan.config, output);
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

impl MountArgs {
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
