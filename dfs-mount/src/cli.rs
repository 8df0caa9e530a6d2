//! The command line: what can be typed, and which file does it.
//!
//! Declarations only; each verb family has its file under `cli/`. A verb gets its arguments and an
//! [`output::Output`], and returns a [`failure::Failure`] that says what, why, what to try and with
//! which exit code. Only `output` prints.

mod account;
mod admin;
mod cell;
mod exit;
mod failure;
mod file;
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

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ByteSize, CellAddress, MountSource, Span};
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
    /// Show the attributes of files
    Stat(PathsArgs),
    /// Show which nodes hold a file, or each file directly in a directory
    Where(PathsArgs),
    /// What waits to be sent
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// State of mounts and of the cell
    Status(StatusArgs),
    /// Administer the cell
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Run a server: hands over to dfs-server with the same arguments
    #[command(disable_help_flag = true)]
    Serve(ServeArgs),
}

#[derive(Clone, Debug, Args)]
struct MountArgs {
    /// dfs://HOST:PORT/VOLUME (default port 7400, default volume main)
    #[arg(value_name = "URL")]
    source: MountSource,
    /// Existing directory to mount at
    dir: PathBuf,
    /// Options as of mount(8): ro, allow_other, cache_size=10G, timeout=30s, hard, ...
    #[arg(short = 'o', value_name = "OPTION,...")]
    options: Vec<String>,
    /// Directory with logins and dfs.conf [default: DFS_CONFIG_DIR or ~/.config/dfs]
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Directory for the cache [default: one for each mount under DFS_CACHE_DIR or ~/.cache/dfs]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Most content kept in the cache, such as 10G [default: 10G]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<ByteSize>,
    /// Where the daemon logs [default: the cache directory's name with .log]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// How long an operation waits for a server that does not answer [default: 30s]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// How long an open waits for another writer [default: 60s]
    #[arg(long, value_name = "TIME")]
    lock_timeout: Option<Span>,
    /// Wait for ever for a server that does not answer
    #[arg(long)]
    hard: bool,
    /// Let other users of this machine in [default: for root]
    #[arg(long)]
    allow_other: bool,
    /// Let the kernel check modes first [default: for root]
    #[arg(long)]
    default_permissions: bool,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    foreground: bool,
    /// Say on stdout when the mount is ready, then become a daemon
    #[arg(long, hide = true, env = "DFS_MOUNT_ANNOUNCE")]
    announce: bool,
}

#[derive(Debug, Args)]
struct UmountArgs {
    /// The mount point
    dir: PathBuf,
    /// How long to go on sending what is unsent
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: Span,
    /// Unmount even if data is unsent or the mount is in use; unsent data stays in the cache
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").args(["url", "bootstrap"]).required(true))]
struct LoginArgs {
    /// dfs://HOST:PORT
    url: Option<CellAddress>,
    /// File that the server wrote at its first start: logs in as the administrator
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "fingerprint", "ca"])]
    bootstrap: Option<PathBuf>,
    /// User of the cell [default: your local name]
    #[arg(long)]
    user: Option<String>,
    /// SHA-256 of the cell's CA certificate, as its administrator told you
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<login::Fingerprint>,
    /// The cell's CA certificate
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CellArgs {
    /// dfs://HOST:PORT [default: the only cell you are logged in to]
    url: Option<CellAddress>,
}

#[derive(Debug, Args)]
struct PasswdArgs {
    /// dfs://HOST:PORT [default: the only cell you are logged in to]
    url: Option<CellAddress>,
    /// Read the old and the new one from standard input, a line each, instead of asking
    #[arg(long)]
    stdin: bool,
}

#[derive(Debug, Args)]
struct PathsArgs {
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(required = true, value_name = "FILE")]
    paths: Vec<OsString>,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Show modes, owners, sizes and times
    #[arg(short = 'l', long)]
    long: bool,
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

#[derive(Debug, Args)]
struct CopyArgs {
    /// Copy directories with all they hold
    #[arg(short = 'r', long)]
    recursive: bool,
    /// Replace files that exist
    #[arg(long)]
    overwrite: bool,
    /// What to copy, then where to; on the DFS side dfs://HOST:PORT/VOLUME/PATH or a path inside a
    /// mount
    #[arg(required = true, num_args = 2.., value_name = "SRC... DEST")]
    paths: Vec<OsString>,
}

#[derive(Debug, Args)]
struct MkdirArgs {
    /// Make missing directories on the way too, and be content with what exists
    #[arg(short = 'p', long)]
    parents: bool,
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Remove directories with all they hold
    #[arg(short = 'r', long)]
    recursive: bool,
    /// Be content if there is nothing to remove
    #[arg(short = 'f', long)]
    force: bool,
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount; of a link the link itself
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

#[derive(Debug, Args)]
struct MvArgs {
    /// What to move, then into which directory or under which name; what has that name is
    /// replaced. dfs://HOST:PORT/VOLUME/PATH, or paths inside a mount
    #[arg(required = true, num_args = 2.., value_name = "SRC... DEST")]
    paths: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// List files whose new content the servers do not have
    List(MountPointArgs),
    /// Try to send them now
    Retry(MountPointArgs),
}

#[derive(Debug, Args)]
struct MountPointArgs {
    /// A mount point [default: every mount]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// A mount point or dfs://HOST:PORT [default: every mount and every cell you are logged in to]
    target: Option<OsString>,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Accounts of the cell
    #[command(subcommand)]
    User(UserCommand),
    /// Tokens with which nodes join the cell
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Make an account; asks for its password
    Add(UserAddArgs),
    /// List the accounts
    List {
        /// dfs://HOST:PORT [default: the only cell you are logged in to]
        #[arg(long)]
        cell: Option<CellAddress>,
    },
    /// Remove an account and end its logins; its files stay
    Remove {
        #[command(flatten)]
        whom: UserArgs,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Give an account another password and end its logins
    Passwd {
        #[command(flatten)]
        whom: UserArgs,
        /// Read the new one from standard input instead of asking
        #[arg(long)]
        stdin: bool,
    },
}

#[derive(Debug, Args)]
struct UserArgs {
    /// Name of the account
    name: String,
    /// dfs://HOST:PORT [default: the only cell you are logged in to]
    #[arg(long)]
    cell: Option<CellAddress>,
}

#[derive(Debug, Args)]
struct UserAddArgs {
    #[command(flatten)]
    whom: UserArgs,
    /// Number that its files belong to; also that of its group [default: the next free one]
    #[arg(long)]
    uid: Option<u32>,
    /// Number of another group it is in; may be repeated
    #[arg(long = "group", value_name = "GID")]
    groups: Vec<u32>,
    /// Let it administer the cell
    #[arg(long)]
    admin: bool,
    /// Read its password from standard input instead of asking
    #[arg(long)]
    stdin: bool,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a join token; it works once
    New {
        /// What the node will do: a list of auth, directory, lock, file; or all
        #[arg(long, value_name = "ROLE,...")]
        roles: admin::Roles,
        /// dfs://HOST:PORT [default: the only cell you are logged in to]
        #[arg(long)]
        cell: Option<CellAddress>,
    },
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Arguments of dfs-server serve
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
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
        Command::Stat(arguments) => file::stat(&arguments.paths, output).await,
        Command::Where(arguments) => file::locate(&arguments.paths, output).await,
        Command::Outbox(OutboxCommand::List(arguments)) => outbox::list(&arguments, output).await,
        Command::Outbox(OutboxCommand::Retry(arguments)) => outbox::retry(&arguments, output).await,
        Command::Status(arguments) => status::status(&arguments, output).await,
        Command::Admin(AdminCommand::User(command)) => account::administer(command, output).await,
        Command::Admin(AdminCommand::Token(TokenCommand::New { roles, cell })) => {
            admin::new_token(roles, cell.as_ref(), output).await
        }
        Command::Serve(_) | Command::Mount(_) => unreachable!("run before the runtime started"),
    }
}

#[cfg(test)]
mod tests;
