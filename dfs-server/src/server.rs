//! The composition root: what runs in a server process, in the order in which it starts.
//!
//! [`Server::start`] reads as the start-up story: bind, lock the data directory, take the place in
//! the cell, open the stores, build the services of the roles, serve, and keep the workers running.
//! A role that is not here is reached through [`network::Network`]; nobody waits for anybody at
//! start, so processes may start in any order.

mod network;
mod renewer;
pub(crate) mod routes;
mod workers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::{NodeEntry, Role};
use dfs_proto::capability::MacKey;
use dfs_proto::clock::Clock;
use dfs_proto::id::VolumeId;
use dfs_proto::limits::SESSION_LEASE;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::registry::{Registry, RegistryError, RegistryParts};
use crate::admin::{Admin, Figures};
use crate::auth::ticket::TicketVerifier;
use crate::auth::{AuthParts, AuthService, AuthStartError};
use crate::cell::bootstrap::BootstrapFile;
use crate::cell::join::{self, JoinError, JoinToken, JoinTokenError};
use crate::cell::tls::PeerCertificate;
use crate::cell::{Cell, CellDir, CellError, Wanted, map};
use crate::chunk_store::{ChunkError, LocalChunkStore, ReservedStore};
use crate::config::ServeConfig;
use crate::directory::{Directory, Volume};
use crate::durable_file::{self, Access};
use crate::file::heartbeat::Heartbeat;
use crate::file::{CapabilityKey, FileNode, FileNodes, Parts};
use crate::lock::LockService;
use crate::meta::sqlite::SqliteEngine;
use crate::meta::{Engine, EngineError, Space, Store};
use crate::rpc::Router;
use crate::rpc::http::HttpServer;
use crate::rpc::rest::Rest;
use network::Network;
use renewer::Renewer;

/// The volume every cell has.
const FIRST_VOLUME: (VolumeId, &str) = (VolumeId(1), "main");

/// Largest capability key file. Units: bytes.
const KEY_FILE_BYTES_MAX: usize = 64;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "cannot listen on {address}; choose another address with --listen, or end what uses it"
    )]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("data directory {} cannot be used", path.display())]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "data directory {} is in use by another dfs-server; end it, or choose another with --data",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("data directory {} is on a FUSE file system; choose a local disk", path.display())]
    OnDfs { path: PathBuf },
    #[error(
        "this process is of no cell yet: give it --join TOKEN (from `dfs admin token new`), or \
         the auth role to found a cell"
    )]
    NoCell,
    #[error("file {} is damaged; restore it from a backup", path.display())]
    DamagedKey { path: PathBuf },
    #[error(transparent)]
    Cell(#[from] CellError),
    #[error(transparent)]
    JoinToken(#[from] JoinTokenError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Auth(#[from] AuthStartError),
    #[error(transparent)]
    Meta(#[from] EngineError),
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    #[error("cannot open the volume")]
    Volume(#[source] FsError),
}

/// A running server process.
pub struct Server {
    address: SocketAddr,
    data_dir: PathBuf,
    stop: CancellationToken,
    workers: JoinSet<()>,
    stores: Vec<Store>,
    /// Held until the process ends: nobody else uses the data directory.
    _lock: nix::fcntl::Flock<std::fs::File>,
}

/// What the services are built from.
struct Ground {
    config: ServeConfig,
    cell: Cell,
    clock: Arc<dyn Clock>,
    network: Network,
    port: u16,
}

/// The services of this process; absent where the role is another's.
#[derive(Default)]
struct Services {
    auth: Option<(Arc<AuthService>, Arc<Registry>)>,
    lock: Option<LockService>,
    directory: Option<Directory>,
    file: Option<Arc<FileNodes>>,
    stores: Vec<Store>,
}

impl Server {
    /// Starts all roles of `config`. Returns when the server answers.
    ///
    /// # Errors
    /// [`StartError`] says what and how to mend it; nothing of the data directory is lost.
    pub async fn start(config: ServeConfig, clock: Arc<dyn Clock>) -> Result<Server, StartError> {
        let listen = config.listen.clone();
        let listener = TcpListener::bind(&listen)
            .await
            .map_err(|source| StartError::Listen { address: listen, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address: config.listen.clone(), source })?;
        let data_dir = config.data_dir.clone();
        let lock = lock_data_dir(&data_dir)?;
        let cell = enter_cell(&config, &*clock).await?;
        let known = map::load(cell.dir())?.unwrap_or_default();
        let network = Network::new(&cell, known);
        let ground = Ground { config, cell, clock, network, port: address.port() };
        let services = ground.build().await?;
        let verifier = ground.verifier(&services);
        let router = ground.routes(&services, Arc::clone(&verifier));
        let stop = CancellationToken::new();
        let mut workers = JoinSet::new();
        let http = ground.http(router)?;
        workers.spawn(http.run(listener, stop.clone()));
        ground.spawn_workers(&services, verifier, &mut workers, &stop);
        let stores = services.stores;
        Ok(Server { address, data_dir, stop, workers, stores, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Finishes what is being answered, then ends everything.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        for store in &self.stores {
            store.close().await;
        }
    }
}

/// Makes the data directory if it is missing, and takes it for this process alone.
fn lock_data_dir(path: &Path) -> Result<nix::fcntl::Flock<std::fs::File>, StartError> {
    let fault = |source| StartError::DataDir { path: path.to_owned(), source };
    durable_file::create_dir(path).map_err(fault)?;
    if is_fuse(path) {
        return Err(StartError::OnDfs { path: path.to_owned() });
    }
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("lock"))
        .map_err(fault)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| StartError::InUse { path: path.to_owned() })
}

fn is_fuse(path: &Path) -> bool {
    let found = nix::sys::statfs::statfs(path);
    found.is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::FUSE_SUPER_MAGIC)
}

/// Founds a cell, takes the place in it up again, or enters one with a join token.
async fn enter_cell(config: &ServeConfig, clock: &dyn Clock) -> Result<Cell, StartError> {
    let wanted = Wanted { roles: &config.roles, file_nodes: config.file_nodes };
    let data_dir = &config.data_dir;
    let is_member = CellDir::of(data_dir).member().exists();
    match &config.join {
        Some(token) => {
            let token: JoinToken = token.expose().parse()?;
            Ok(join::enter(join::Entry { token: &token, data_dir, wanted, clock }).await?)
        }
        None if is_member || config.roles.contains(&Role::Auth) => {
            Ok(Cell::open(data_dir, wanted, clock.wall())?)
        }
        None => Err(StartError::NoCell),
    }
}

impl Ground {
    fn has(&self, role: Role) -> bool {
        self.config.roles.contains(&role)
    }

    async fn build(&self) -> Result<Services, StartError> {
        let mut services = Services::default();
        let needs_rows = [Role::Auth, Role::Lock, Role::Directory].iter().any(|r| self.has(*r));
        if needs_rows {
            let path = self.config.data_dir.join("meta.db");
            let engine: Arc<dyn Engine> = Arc::new(SqliteEngine::open(path)?);
            self.build_on_rows(&engine, &mut services).await?;
        }
        if self.has(Role::File) {
            services.file = Some(Arc::new(self.build_file_nodes()?));
        }
        Ok(services)
    }

    async fn build_on_rows(
        &self,
        engine: &Arc<dyn Engine>,
        services: &mut Services,
    ) -> Result<(), StartError> {
        let node = self.cell.node();
        let mut open = |space| -> Result<Store, StartError> {
            let store = Store::open(Arc::clone(engine), space, node)?;
            services.stores.push(store.clone());
            Ok(store)
        };
        if self.has(Role::Auth) {
            let (auth_rows, cell_rows) = (open(Space::AUTH)?, open(Space::CELL)?);
            services.auth = Some(self.build_auth(auth_rows, cell_rows).await?);
        }
        if self.has(Role::Lock) {
            let epoch = engine.claim(Space::LOCK, node)?;
            // With the directory in this process, its own grace keeps ranges for those of before.
            let is_apart = !self.has(Role::Directory);
            let grace = if is_apart { SESSION_LEASE } else { Duration::ZERO };
            services.lock = Some(LockService::new(epoch, grace, Arc::clone(&self.clock)));
        }
        if self.has(Role::Directory) {
            let (id, name) = FIRST_VOLUME;
            let store = open(Space::from(id))?;
            let volume = Volume::open(store, id, name, self.clock.wall())
                .await
                .map_err(StartError::Volume)?;
            let key = self.capability_key()?;
            let peers = Arc::new(self.network.clone());
            let clock = Arc::clone(&self.clock);
            services.directory = Some(Directory::new(vec![volume], key, peers, clock));
        }
        Ok(())
    }

    async fn build_auth(
        &self,
        auth_rows: Store,
        cell_rows: Store,
    ) -> Result<(Arc<AuthService>, Arc<Registry>), StartError> {
        let (cell, clock) = (&self.cell, Arc::clone(&self.clock));
        let parts = AuthParts { store: auth_rows, dir: cell.dir().clone(), cell: cell.id(), clock };
        let auth = AuthService::open(parts).await?;
        let host = self.config.public_host();
        let url = format!("dfs://{host}:{}", self.port);
        let file = BootstrapFile::of(&self.config.data_dir);
        auth.first_start(&file, &url, cell.ca_fingerprint()).await?;
        let (port, clock) = (self.port, Arc::clone(&self.clock));
        let parts = RegistryParts { store: cell_rows, cell, host, port, clock };
        Ok((Arc::new(auth), Arc::new(Registry::open(parts).await?)))
    }

    fn build_file_nodes(&self) -> Result<FileNodes, StartError> {
        let key = CapabilityKey::default();
        let mut nodes = Vec::new();
        for node in self.cell.file_nodes() {
            let local = LocalChunkStore::open(&self.config.data_dir.join(node.to_string()))?;
            let (clock, count) = (Arc::clone(&self.clock), self.cell.file_nodes().len());
            let parts = Parts {
                node: *node,
                store: Arc::new(ReservedStore::new(Arc::new(local), clock, count)),
                key: key.clone(),
                clock: Arc::clone(&self.clock),
                peers: Arc::new(self.network.clone()),
            };
            nodes.push(Arc::new(FileNode::new(parts)));
        }
        Ok(FileNodes::new(nodes))
    }

    /// The key the directory seals capabilities with: made once, kept for ever.
    fn capability_key(&self) -> Result<MacKey, StartError> {
        let path = self.cell.dir().path().join("capability.key");
        let fault = |source| StartError::DataDir { path: path.clone(), source };
        let found = durable_file::read(&path, KEY_FILE_BYTES_MAX).map_err(fault)?;
        if let Some(bytes) = found {
            let key =
                bytes.try_into().map_err(|_| StartError::DamagedKey { path: path.clone() })?;
            return Ok(MacKey(key));
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| fault(std::io::Error::other(error)))?;
        durable_file::write(&path, &key, Access::Private).map_err(fault)?;
        Ok(MacKey(key))
    }

    /// Checks tickets: with the auth service's own eyes where it is here.
    fn verifier(&self, services: &Services) -> Arc<TicketVerifier> {
        match &services.auth {
            Some((auth, _)) => auth.verifier(),
            None => Arc::new(TicketVerifier::new(self.cell.id())),
        }
    }

    fn routes(&self, services: &Services, verifier: Arc<TicketVerifier>) -> Arc<Router> {
        let mut router = Router::new(verifier, Arc::clone(&self.clock));
        if let Some((auth, registry)) = &services.auth {
            routes::auth(&mut router, auth);
            routes::registry(&mut router, registry, &self.network);
        } else {
            routes::map(&mut router, &self.network);
        }
        if let Some(lock) = &services.lock {
            routes::lock(&mut router, lock);
        }
        if let Some(directory) = &services.directory {
            routes::directory(&mut router, directory);
        }
        if let Some(file) = &services.file {
            routes::file(&mut router, file);
        }
        let roles = self.config.roles.clone();
        let directory = services.directory.clone();
        let figures = move || directory.as_ref().map(figures_of).unwrap_or_default();
        let admin = Admin::new(self.cell.node(), roles, figures, &self.clock);
        routes::admin(&mut router, &Arc::new(admin));
        let router = Arc::new(router);
        self.network.bind(Arc::clone(&router));
        router
    }

    fn http(&self, router: Arc<Router>) -> Result<HttpServer, StartError> {
        let peers = Arc::new(self.network.clone());
        let rest = Rest::new(Arc::clone(&router), peers, Arc::clone(&self.clock));
        Ok(HttpServer {
            router,
            rest,
            tls: self.cell.server_config()?,
            read_proof: Arc::new(|der| PeerCertificate::new(der).into_proof()),
            ca_pem: self.cell.ca_pem().to_owned().into(),
        })
    }

    /// This process, as it announces itself.
    fn entry(&self) -> NodeEntry {
        NodeEntry {
            node: self.cell.node(),
            roles: self.config.roles.clone(),
            host: self.config.announced_host(),
            port: self.port,
            file_nodes: self.cell.file_nodes().to_vec(),
            silent_ms: 0,
        }
    }

    fn spawn_workers(
        &self,
        services: &Services,
        verifier: Arc<TicketVerifier>,
        workers: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let clock = &self.clock;
        let (renewal, network) = (self.cell.renewal(), self.network.clone());
        let renewer = Renewer { renewal, network, clock: Arc::clone(clock) };
        workers.spawn(renewer.run(stop.clone()));
        if let Some(nodes) = &services.file {
            let host = self.config.announced_host();
            let (nodes, clock) = (Arc::clone(nodes), Arc::clone(clock));
            let heartbeat = Heartbeat { nodes, host, port: self.port, clock };
            workers.spawn(heartbeat.run(stop.clone()));
        }
        if let Some(directory) = &services.directory {
            workers.spawn(directory.clone().run_expiry(stop.clone()));
            workers.spawn(directory.clone().run_lock_events(stop.clone()));
            workers.spawn(directory.clone().run_sweep(stop.clone()));
        }
        if let Some(lock) = &services.lock {
            workers.spawn(lock.clone().run_expiry(stop.clone()));
        }
        match &services.auth {
            Some((auth, _)) => {
                let sweep = workers::sweep(Arc::clone(auth), Arc::clone(clock), stop.clone());
                workers.spawn(sweep);
            }
            None => {
                let announcer = workers::Announcer {
                    entry: self.entry(),
                    network: self.network.clone(),
                    dir: self.cell.dir().clone(),
                    verifier,
                    clock: Arc::clone(clock),
                };
                workers.spawn(announcer.run(stop.clone()));
            }
        }
    }
}

fn figures_of(directory: &Directory) -> Figures {
    Figures {
        sessions: directory.sessions.count(),
        volumes: directory.volume_names(),
        file_nodes: directory.file_nodes.states(),
    }
}

#[cfg(test)]
mod tests;
