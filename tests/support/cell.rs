//! A whole cell in this process, and clients of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dfs_mount::cache::{Belongs, Cache, Limits};
use dfs_mount::credential::{Credential, LoginKind, Machine};
use dfs_mount::fetch::Fetcher;
use dfs_mount::session::Session;
use dfs_mount::session::connection::Connection;
use dfs_mount::vfs::{Options, Parts, Vfs};
use dfs_mount::writeback::Writeback;
use dfs_proto::admin::Role;
use dfs_proto::client::retry::RetryPolicy;
use dfs_proto::clock::{Clock, SystemClock};
use dfs_server::config::ServeConfig;
use dfs_server::server::Server;
use tempfile::TempDir;

/// A running cell with one volume and two file nodes.
pub struct Cell {
    _server: Server,
    credential: Credential,
    _dir: TempDir,
}

/// One client of a cell, as a mount daemon has it.
pub struct Client {
    pub vfs: Vfs,
    pub session: Session,
    _cache_dir: TempDir,
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

impl Cell {
    pub async fn start() -> Cell {
        let dir = tempfile::tempdir().unwrap();
        let config = ServeConfig {
            data_dir: dir.path().join("data"),
            listen: "127.0.0.1:0".to_owned(),
            roles: vec![Role::Auth, Role::Directory, Role::Lock, Role::File],
            file_nodes: 2,
            advertise: None,
            join: None,
        };
        let data = config.data_dir.clone();
        let server = Server::start(config, clock()).await.unwrap();
        let credential = machine_credential(&data, server.address().port());
        Cell { _server: server, credential, _dir: dir }
    }

    pub async fn client(&self, passthrough: bool) -> Client {
        self.client_at(clock(), passthrough).await
    }

    /// A client with a clock of its own.
    pub async fn client_at(&self, clock: Arc<dyn Clock>, passthrough: bool) -> Client {
        self.client_with(clock, options(passthrough)).await
    }

    pub async fn client_with(&self, clock: Arc<dyn Clock>, options: Options) -> Client {
        let policy =
            RetryPolicy { give_up_after: Some(Duration::from_secs(5)), ..RetryPolicy::default() };
        let kind = LoginKind::Machine;
        let connection = Connection::to_cell(&self.credential, kind, policy, clock.clone());
        let connection = connection.unwrap();
        let session = Session::open(connection, "main", "testhost").await.unwrap();
        let recalls = session.listen().await;
        let cache_dir = tempfile::tempdir().unwrap();
        let belongs =
            Belongs { cell: self.credential.fingerprint.clone(), volume: "main".to_owned() };
        let metrics = session.metrics().clone();
        let limits = Limits::new(10 << 30);
        let cache = Cache::open(cache_dir.path(), &belongs, limits, clock, metrics).unwrap();
        let fetcher = Fetcher::new(session.clone());
        let writeback = Writeback::start(session.clone(), cache.clone(), recalls).await.unwrap();
        let parts = Parts { session: session.clone(), cache, fetcher, writeback };
        Client { vfs: Vfs::new(parts, options), session, _cache_dir: cache_dir }
    }
}

/// What a mount's user chose, but for one thing.
pub fn options(passthrough: bool) -> Options {
    let lock_timeout = Duration::from_secs(5);
    Options { passthrough, lock_timeout, kernel_judges: true, devices: false }
}

impl Client {
    /// How many requests of one kind were sent.
    pub fn rpc_count(&self, path: &str) -> u64 {
        self.session.metrics().rpc_counts().get(path).copied().unwrap_or(0)
    }
}

fn machine_credential(data: &Path, port: u16) -> Credential {
    let text = std::fs::read_to_string(data.join("bootstrap.toml")).unwrap();
    let bootstrap: toml::Table = text.parse().unwrap();
    let word = |key: &str| bootstrap[key].as_str().unwrap().to_owned();
    Credential {
        host: "127.0.0.1".to_owned(),
        port,
        fingerprint: word("ca_fingerprint"),
        ca_pem: std::fs::read_to_string(data.join("cell/ca.pem")).unwrap(),
        personal: None,
        machine: Some(Machine {
            renewal: dfs_proto::credential::Secret::new(word("machine_secret")),
        }),
    }
}
