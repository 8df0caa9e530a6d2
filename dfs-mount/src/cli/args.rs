//! What can follow each verb on the command line. Declarations only.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{admin, generate, login};
use crate::config::{ByteSize, CellAddress, MountSource, Span};

#[derive(Clone, Debug, Args)]
pub struct MountArgs {
    /// dfs://HOST:PORT/VOLUME (default port 7400, default volume main)
    #[arg(value_name = "URL")]
    pub source: MountSource,
    /// Existing directory to mount at
    pub dir: PathBuf,
    /// Options as of mount(8): ro, allow_other, cache_size=10G, timeout=30s, hard, ...
    #[arg(short = 'o', value_name = "OPTION,...")]
    pub options: Vec<String>,
    /// Directory with logins and dfs.conf [default: DFS_CONFIG_DIR or ~/.config/dfs]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Directory for the cache [default: one for each mount under DFS_CACHE_DIR or ~/.cache/dfs]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Most content kept in the cache, such as 10G [default: 10G]
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<ByteSize>,
    /// Where the daemon logs [default: the cache directory's name with .log]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// How long an operation waits for a server that does not answer [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// How long an open waits for another writer [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub lock_timeout: Option<Span>,
    /// Wait for ever for a server that does not answer
    #[arg(long)]
    pub hard: bool,
    /// Let other users of this machine in [default: for root]
    #[arg(long)]
    pub allow_other: bool,
    /// Let the kernel check modes first [default: for root]
    #[arg(long)]
    pub default_permissions: bool,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    pub foreground: bool,
    /// Say on stdout when the mount is ready, then become a daemon
    #[arg(long, hide = true, env = "DFS_MOUNT_ANNOUNCE")]
    pub announce: bool,
}

#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mount point
    pub dir: PathBuf,
    /// How long to go on sending what is unsent
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub timeout: Span,
    /// Unmount even if data is unsent or the mount is in use; unsent data stays in the cache
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").args(["url", "bootstrap"]).required(true))]
pub struct LoginArgs {
    /// dfs://HOST:PORT
    pub url: Option<CellAddress>,
    /// File that the server wrote at its first start: logs in as the administrator
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "fingerprint", "ca"])]
    pub bootstrap: Option<PathBuf>,
    /// User of the cell [default: your local name]
    #[arg(long)]
    pub user: Option<String>,
    /// SHA-256 of the cell's CA certificate, as its administrator told you
    #[arg(long, value_name = "HEX")]
    pub fingerprint: Option<login::Fingerprint>,
    /// The cell's CA certificate
    #[arg(long, value_name = "FILE", conflicts_with = "fingerprint")]
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CellArgs {
    /// dfs://HOST:PORT [default: the only cell you are logged in to]
    pub url: Option<CellAddress>,
}

#[derive(Debug, Args)]
pub struct PasswdArgs {
    /// dfs://HOST:PORT [default: the only cell you are logged in to]
    pub url: Option<CellAddress>,
    /// Read the old and the new one from standard input, a line each, instead of asking
    #[arg(long)]
    pub stdin: bool,
}

#[derive(Debug, Args)]
pub struct PathsArgs {
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show modes, owners, sizes and times
    #[arg(short = 'l', long)]
    pub long: bool,
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Copy directories with all they hold
    #[arg(short = 'r', long)]
    pub recursive: bool,
    /// Replace files that exist
    #[arg(long)]
    pub overwrite: bool,
    /// What to copy, then where to; on the DFS side dfs://HOST:PORT/VOLUME/PATH or a path inside a
    /// mount
    #[arg(required = true, num_args = 2.., value_name = "SRC... DEST")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct MkdirArgs {
    /// Make missing directories on the way too, and be content with what exists
    #[arg(short = 'p', long)]
    pub parents: bool,
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Remove directories with all they hold
    #[arg(short = 'r', long)]
    pub recursive: bool,
    /// Be content if there is nothing to remove
    #[arg(short = 'f', long)]
    pub force: bool,
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount; of a link the link itself
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct MvArgs {
    /// What to move, then into which directory or under which name; what has that name is
    /// replaced. dfs://HOST:PORT/VOLUME/PATH, or paths inside a mount
    #[arg(required = true, num_args = 2.., value_name = "SRC... DEST")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// List files whose new content the servers do not have
    List(MountPointArgs),
    /// Try to send them now
    Retry(MountPointArgs),
}

#[derive(Debug, Args)]
pub struct MountPointArgs {
    /// A mount point [default: every mount]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A mount point or dfs://HOST:PORT [default: every mount and every cell you are logged in to]
    pub target: Option<OsString>,
}

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Accounts of the cell
    #[command(subcommand)]
    User(UserCommand),
    /// Tokens with which nodes join the cell
    #[command(subcommand)]
    Token(TokenCommand),
    /// Locks of files
    #[command(subcommand)]
    Lock(LockCommand),
}

#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// List the files of which somebody has or wants a lock
    List {
        /// dfs://HOST:PORT [default: the only cell you are logged in to]
        #[arg(long)]
        cell: Option<CellAddress>,
    },
    /// Take all locks of a file from those who hold them; what they still store may be refused
    Break {
        /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
        #[arg(value_name = "FILE")]
        path: OsString,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
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
pub struct UserArgs {
    /// Name of the account
    pub name: String,
    /// dfs://HOST:PORT [default: the only cell you are logged in to]
    #[arg(long)]
    pub cell: Option<CellAddress>,
}

#[derive(Debug, Args)]
pub struct UserAddArgs {
    #[command(flatten)]
    pub whom: UserArgs,
    /// Number that its files belong to; also that of its group [default: the next free one]
    #[arg(long)]
    pub uid: Option<u32>,
    /// Number of another group it is in; may be repeated
    #[arg(long = "group", value_name = "GID")]
    pub groups: Vec<u32>,
    /// Let it administer the cell
    #[arg(long)]
    pub admin: bool,
    /// Read its password from standard input instead of asking
    #[arg(long)]
    pub stdin: bool,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
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
pub struct ServeArgs {
    /// Arguments of dfs-server serve
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct EditArgs {
    /// dfs://HOST:PORT/VOLUME/PATH, or a path inside a mount
    #[arg(value_name = "FILE")]
    pub path: OsString,
}

#[derive(Debug, Args)]
pub struct FlushArgs {
    /// A mount point [default: every mount]
    pub dir: Option<PathBuf>,
    /// How long to go on sending
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub timeout: Span,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// A directory inside a mount
    pub path: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the files of which there is content in the cache
    Ls(MountPointArgs),
    /// Give back the space of what the servers have too and nobody has open
    Clear(MountPointArgs),
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A directory to work in, in a mount or anywhere else
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Size of the large file
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub size: ByteSize,
    /// Number of small files
    #[arg(long, value_name = "COUNT", default_value_t = 500)]
    pub files: u32,
    /// A directory on a local disk to compare with [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    pub native: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: generate::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory for the pages; it must exist
    pub dir: PathBuf,
}
