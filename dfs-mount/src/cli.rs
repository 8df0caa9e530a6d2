//! The command line: what can be typed, and which file does it.
//!
//! Declarations only; each verb family has its file under `cli/`. A verb gets its arguments and an
//! [`output::Output`], and returns a [`failure::Failure`] that says what, why, what to try and with
//! which exit code. Only `output` prints.

mod account;
mod admin;
mod args;
mod bench;
mod cache;
mod cell;
mod exit;
mod failure;
mod file;
mod flush;
mod generate;
mod login;
mod mount;
mod mount_dfs;
mod mounts;
mod outbox;
mod output;
mod password;
mod serve;
mod show;
mod status;
mod umount;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use args::{
    AdminCommand, BenchArgs, CacheCommand, CellArgs, CompletionsArgs, CopyArgs, EditArgs,
    FlushArgs, LockCommand, LoginArgs, LsArgs, ManArgs, MkdirArgs, MountArgs, MountPointArgs,
    MvArgs, OutboxCommand, PasswdArgs, PathsArgs, RmArgs, ServeArgs, StatusArgs, TokenCommand,
    UmountArgs, UserAddArgs, UserArgs, UserCommand, WatchArgs,
};
use exit::Exit;
use failure::Failure;
use output::Output;

#[derive(Debug, Parser)]
#[command(
    name = "dfs",
    version,
    about = "DFS: a network file system. Mount it, or work with its files directly.",
    after_help = exit::help(),
    max_term_width = 100,
    infer_long_args = false
)]
struct Cli {
    /// Print data as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a volume
    Mount(MountArgs),
    /// Unmount, after everything unsent was sent
    Umount(UmountArgs),
    /// Log in to a cell and keep the login
    Login(LoginArgs),
    /// End a login and forget it
    Logout(CellArgs),
    /// Show as whom the cell sees you
    Whoami(CellArgs),
    /// Change your password
    Passwd(PasswdArgs),
    /// List a directory
    Ls(LsArgs),
    /// Write files to standard output
    Cat(PathsArgs),
    /// Copy local files into a volume
    Put(CopyArgs),
    /// Copy files of a volume to here
    Get(CopyArgs),
    /// Make directories
    Mkdir(MkdirArgs),
    /// Remove files, or trees of directories
    Rm(RmArgs),
    /// Move or rename files and directories within a volume
    Mv(MvArgs),
    /// Change a file with your editor ($VISUAL, $EDITOR or vi)
    Edit(EditArgs),
    /// Show the attributes of files
    Stat(PathsArgs),
    /// Show which nodes hold a file, or each file directly in a directory
    Where(PathsArgs),
    /// Show who has and who wants the locks of files, and since when
    Lock(PathsArgs),
    /// What waits to be sent
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Send everything unsent now, and wait for it
    Flush(FlushArgs),
    /// What mounts keep on the local disk
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Show what other clients change in a directory, as they do
    Watch(WatchArgs),
    /// State of mounts and of the cell
    Status(StatusArgs),
    /// Measure how fast a directory is
    Bench(BenchArgs),
    /// Administer the cell
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Print a script that completes this program's arguments
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManArgs),
    /// Run a server: hands over to dfs-server with the same arguments
    #[command(disable_help_flag = true)]
    Serve(ServeArgs),
}

/// Runs the command that `arguments` (program name first) say.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.first().is_some_and(|name| mount_dfs::is_meant(name)) {
        return mount_dfs::main(arguments);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return explain_usage(&error).into(),
    };
    let mut output = Output::standard(cli.json);
    match run(cli.command, &mut output) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            output.fail(&failure);
            failure.exit.into()
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        exit.code().into()
    }
}

/// Help and version are results; anything else is wrong usage.
fn explain_usage(error: &clap::Error) -> Exit {
    let mut output = Output::standard(false);
    let text = error.render().to_string();
    match output.usage(&text, error.use_stderr()) {
        Ok(()) if !error.use_stderr() => Exit::Done,
        _ => Exit::Usage,
    }
}

fn run(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        // These two become another process: no thread may run before.
        Command::Serve(arguments) => return serve::serve(&arguments),
        Command::Mount(arguments) => return mount::mount(&arguments, output),
        _ => {}
    }
    let runtime = runtime()?;
    let result = runtime.block_on(run_async(command, output));
    // A thread that waits for standard input or for a dead mount must not keep the command alive.
    runtime.shutdown_background();
    result
}

/// Half the cores for the network: disk work and hashing have threads of their own, and a second
/// worker on a small machine mostly wakes up for nothing.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("cannot start", error))
}

async fn run_async(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Umount(arguments) => umount::umount(&arguments, output).await,
        Command::Login(arguments) => login::login(&arguments, output).await,
        Command::Logout(arguments) => login::logout(&arguments, output).await,
        Command::Whoami(arguments) => login::whoami(&arguments, output).await,
        Command::Passwd(arguments) => account::passwd(&arguments, output).await,
        Command::Ls(arguments) => file::ls(&arguments, output).await,
        Command::Cat(arguments) => file::cat(&arguments.paths, output).await,
        Command::Put(arguments) => file::put(&arguments, output).await,
        Command::Get(arguments) => file::get(&arguments, output).await,
        Command::Mkdir(arguments) => file::mkdir(&arguments, output).await,
        Command::Rm(arguments) => file::rm(&arguments, output).await,
        Command::Mv(arguments) => file::mv(&arguments, output).await,
        Command::Edit(arguments) => file::edit(&arguments, output).await,
        Command::Stat(arguments) => file::stat(&arguments.paths, output).await,
        Command::Where(arguments) => file::locate(&arguments.paths, output).await,
        Command::Lock(arguments) => file::lock(&arguments.paths, output).await,
        Command::Outbox(OutboxCommand::List(arguments)) => outbox::list(&arguments, output).await,
        Command::Outbox(OutboxCommand::Retry(arguments)) => outbox::retry(&arguments, output).await,
        Command::Flush(arguments) => flush::flush(&arguments, output).await,
        Command::Cache(CacheCommand::Ls(arguments)) => cache::ls(&arguments, output).await,
        Command::Cache(CacheCommand::Clear(arguments)) => cache::clear(&arguments, output).await,
        Command::Watch(arguments) => watch::watch(&arguments, output).await,
        Command::Bench(arguments) => bench::bench(&arguments, output).await,
        Command::Completions(arguments) => generate::completions(&arguments, output),
        Command::Man(arguments) => generate::man(&arguments),
        Command::Status(arguments) => status::status(&arguments, output).await,
        Command::Admin(AdminCommand::User(command)) => account::administer(command, output).await,
        Command::Admin(AdminCommand::Token(TokenCommand::New { roles, cell })) => {
            admin::new_token(roles, cell.as_ref(), output).await
        }
        Command::Admin(AdminCommand::Lock(LockCommand::List { cell })) => {
            admin::locks(cell.as_ref(), output).await
        }
        Command::Admin(AdminCommand::Lock(LockCommand::Break { path, yes })) => {
            file::break_locks(&path, yes, output).await
        }
        Command::Serve(_) | Command::Mount(_) => unreachable!("run before the runtime started"),
    }
}

#[cfg(test)]
mod tests;
