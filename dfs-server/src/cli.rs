//! The command line of `dfs-server`: the verbs that touch a data directory.

mod notify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use dfs_proto::clock::SystemClock;
use dfs_proto::credential::Secret;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{ConfigError, RawConfig, ServeConfig};
use crate::server::{Server, StartError};
use notify::{State, notify};

/// DFS servers: directory, lock, auth and file.
#[derive(Debug, Parser)]
#[command(
    name = "dfs-server",
    version,
    after_help = "Exit codes: 0 ended by a signal, \
    1 could not start, 2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run server roles until SIGTERM or SIGINT.
    Serve(ServeArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Directory that everything is kept in; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:7400].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// What this process does: all, or some of auth,directory,lock,file [default: all].
    #[arg(long)]
    roles: Option<String>,
    /// File nodes in this process [default: 2].
    #[arg(long, value_name = "COUNT")]
    file_nodes: Option<u32>,
    /// Name or address under which other hosts reach this process.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Join token from `dfs admin token new`; better in DFS_JOIN_TOKEN: `ps` shows arguments.
    #[arg(long, value_name = "TOKEN", env = "DFS_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// TOML file with the same settings (data, listen, roles, file_nodes, advertise).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ServeArgs {
    fn meant(self) -> Result<ServeConfig, ConfigError> {
        let file = self.config.as_deref().map(RawConfig::load).transpose()?.unwrap_or_default();
        let typed = RawConfig {
            data: self.data,
            listen: self.listen,
            roles: self.roles,
            file_nodes: self.file_nodes,
            advertise: self.advertise,
            join: self.join.map(Secret::new),
        };
        typed.over(file).meant()
    }
}

/// Exit codes, as `--help` lists them.
const CANNOT_START: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let Verb::Serve(args) = Cli::parse().verb;
    let config = match args.meant() {
        Ok(config) => config,
        Err(error) => return complain(&error, WRONG_USAGE),
    };
    start_logging();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, CANNOT_START),
    };
    match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, CANNOT_START),
    }
}

/// Half the cores serve the network: disk work, hashing and the metadata writer have threads of
/// their own, and a second worker on a small machine mostly wakes up for nothing.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1);
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

async fn serve(config: ServeConfig) -> Result<(), StartError> {
    let fault = |source| StartError::DataDir { path: config.data_dir.clone(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    let has_auth = config.roles.contains(&dfs_proto::admin::Role::Auth);
    let server = tokio::select! {
        started = Server::start(config, Arc::new(SystemClock)) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    announce(&server, has_auth);
    notify(State::Ready);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    notify(State::Stopping);
    server.stop().await;
    Ok(())
}

/// The one line that people wait for.
fn announce(server: &Server, has_auth: bool) {
    let login = server.data_dir().join("bootstrap.toml");
    let login = if has_auth {
        format!("; log in with: dfs login --bootstrap {}", login.display())
    } else {
        String::new()
    };
    // Nobody reading it is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "dfs-server listens on {}{login}", server.address());
    let _ = std::io::stdout().flush();
}

fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let mut text = format!("dfs-server: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}
