//! Credentials: what `dfs login` keeps for a cell, and the ticket that is current.
//!
//! [`CredentialStore`] owns the configuration directory: one file for each cell, readable by its
//! owner only, who is the one who runs us (any other is refused: others may read it, or have
//! written it). [`TicketSource`] owns the ticket of one running client and renews it in time; many
//! requests that find it old cause one renewal. Neither knows how servers are reached: the renewal
//! itself is passed in.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dfs_proto::auth::RenewReply;
use dfs_proto::client::CallError;
use dfs_proto::clock::Clock;
use dfs_proto::credential::{Identity, Secret, Ticket, TicketHolder};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

/// What is known of a cell, and the logins there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    pub host: String,
    pub port: u16,
    /// SHA-256 of the cell's CA certificate, in hexadecimal: the cell's identity.
    pub fingerprint: String,
    pub ca_pem: String,
    pub personal: Option<Personal>,
    pub machine: Option<Machine>,
}

/// A login as a user of the cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personal {
    pub user: String,
    pub renewal: Secret,
}

/// The right to speak for the users of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub renewal: Secret,
}

/// Which of a cell's logins to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginKind {
    Personal,
    Machine,
}

impl Credential {
    pub fn renewal(&self, kind: LoginKind) -> Option<&Secret> {
        match kind {
            LoginKind::Personal => self.personal.as_ref().map(|login| &login.renewal),
            LoginKind::Machine => self.machine.as_ref().map(|login| &login.renewal),
        }
    }
}

/// Why a credential cannot be read or kept. What to do about it is the command's to say.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("none of DFS_CONFIG_DIR, XDG_CONFIG_HOME and HOME is set")]
    NoDirectory,
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is a directory, not a credential file", .0.display())]
    Directory(PathBuf),
    /// Root, too, uses its own only: whoever wrote another's chose the cell and its CA.
    #[error("{} belongs to user {owner}, and this command runs as user {user}", path.display())]
    NotOwn { path: PathBuf, owner: u32, user: u32 },
    #[error("{} can be read by others", .0.display())]
    Exposed(PathBuf),
    #[error("{} is not a credential file: {why}", path.display())]
    Broken { path: PathBuf, why: String },
}

/// The directory with one credential file for each cell.
#[derive(Clone, Debug)]
pub struct CredentialStore {
    dir: PathBuf,
}

const SUFFIX: &str = "toml";

impl CredentialStore {
    /// The directory that the environment names: `DFS_CONFIG_DIR`, else `dfs` below
    /// `XDG_CONFIG_HOME`, else below `~/.config`.
    ///
    /// # Errors
    /// `NoDirectory` if none of the three is set.
    pub fn from_env(
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<CredentialStore, CredentialError> {
        let dir = variable("DFS_CONFIG_DIR")
            .map(PathBuf::from)
            .or_else(|| variable("XDG_CONFIG_HOME").map(|dir| Path::new(&dir).join("dfs")))
            .or_else(|| variable("HOME").map(|dir| Path::new(&dir).join(".config/dfs")));
        dir.map(CredentialStore::at).ok_or(CredentialError::NoDirectory)
    }

    pub fn at(dir: impl Into<PathBuf>) -> CredentialStore {
        CredentialStore { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The credential of a cell; `None` if nobody logged in there.
    ///
    /// # Errors
    /// `Directory`; `NotOwn` if it is another user's, `Exposed` if others may read it, `Broken` if
    /// it is not a credential, `Io`.
    pub fn load(&self, host: &str, port: u16) -> Result<Option<Credential>, CredentialError> {
        read(&self.path(host, port))
    }

    /// Keeps a credential, in place of the one before, readable by the owner only.
    ///
    /// # Errors
    /// `Io`; the one before then stays.
    pub fn save(&self, credential: &Credential) -> Result<(), CredentialError> {
        let path = self.path(&credential.host, credential.port);
        let text = toml::to_string(credential).map_err(|error| CredentialError::Broken {
            path: path.clone(),
            why: error.to_string(),
        })?;
        write_private(&self.dir, &path, text.as_bytes()).map_err(|source| CredentialError::Io {
            what: "cannot write",
            path,
            source,
        })
    }

    /// Forgets a cell; says whether it was known.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(&self, host: &str, port: u16) -> Result<bool, CredentialError> {
        let path = self.path(host, port);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(CredentialError::Io { what: "cannot remove", path, source }),
        }
    }

    /// All cells, by file name.
    ///
    /// # Errors
    /// As [`CredentialStore::load`], for the first file that is not right.
    pub fn list(&self) -> Result<Vec<Credential>, CredentialError> {
        let failed =
            |source| CredentialError::Io { what: "cannot list", path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<PathBuf>>>()
            .map_err(failed)?;
        paths.retain(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX));
        paths.sort();
        paths.iter().filter_map(|path| read(path).transpose()).collect()
    }

    fn path(&self, host: &str, port: u16) -> PathBuf {
        // A host is a name or an address; whatever else somebody types must not leave the
        // directory.
        let host: String = host
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' })
            .collect();
        self.dir.join(format!("{host}_{port}.{SUFFIX}"))
    }
}

fn read(path: &Path) -> Result<Option<Credential>, CredentialError> {
    let failed = |source| CredentialError::Io { what: "cannot read", path: path.into(), source };
    // A pipe in its place is not waited for.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    check(path, &file.metadata().map_err(failed)?, nix::unistd::geteuid().as_raw())?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    let credential = toml::from_str(&text).map_err(|error| CredentialError::Broken {
        path: path.into(),
        // Only the first line: the rest of the message shows the file's text, secrets and all.
        why: error.message().lines().next().unwrap_or_default().to_owned(),
    })?;
    Ok(Some(credential))
}

/// Whether what lies at `path` is a file of `user` that nobody else can read.
fn check(path: &Path, found: &fs::Metadata, user: u32) -> Result<(), CredentialError> {
    let (path, owner) = (path.to_owned(), found.uid());
    if found.is_dir() {
        return Err(CredentialError::Directory(path));
    }
    if owner != user {
        return Err(CredentialError::NotOwn { path, owner, user });
    }
    if found.mode() & 0o077 != 0 {
        return Err(CredentialError::Exposed(path));
    }
    Ok(())
}

fn write_private(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

/// The ticket of one running client.
#[derive(Debug)]
pub struct TicketSource {
    renewal: Option<Secret>,
    clock: Arc<dyn Clock>,
    /// Held across a renewal: whoever comes meanwhile waits for it and uses its ticket.
    held: Mutex<Option<Held>>,
    /// Whom the last ticket is for, and until when.
    bearer: RwLock<Option<(TicketHolder, Duration)>>,
}

#[derive(Debug)]
struct Held {
    ticket: Ticket,
    /// On `Clock::boottime`, counted from before the renewal was sent.
    renew_at: Duration,
    ends_at: Duration,
}

impl TicketSource {
    /// Tickets come from a renewal secret.
    pub fn renewing(renewal: Secret, clock: Arc<dyn Clock>) -> TicketSource {
        TicketSource::with(Some(renewal), clock)
    }

    /// There is no login: only public operations will be answered.
    pub fn anonymous(clock: Arc<dyn Clock>) -> TicketSource {
        TicketSource::with(None, clock)
    }

    fn with(renewal: Option<Secret>, clock: Arc<dyn Clock>) -> TicketSource {
        TicketSource { renewal, clock, held: Mutex::default(), bearer: RwLock::default() }
    }

    /// As whom the servers let a local caller act; `None` if no ticket is good now.
    pub fn identity(&self, caller: &Identity) -> Option<Identity> {
        let bearer = self.bearer.read().unwrap_or_else(PoisonError::into_inner);
        let (holder, ends_at) = bearer.as_ref()?;
        (self.clock.boottime() < *ends_at).then(|| holder.identity(Some(caller)))
    }

    /// The current ticket; renewed with `renew` if less than a quarter of its life is left, or if
    /// it is `refused`: the one that a server called expired.
    ///
    /// A renewal that fails while the ticket still lives is not an error: the next request tries
    /// again.
    ///
    /// # Errors
    /// Those of `renew`, if there is no ticket that may still be good.
    pub async fn current<F>(
        &self,
        refused: Option<&Ticket>,
        renew: impl FnOnce(Secret) -> F,
    ) -> Result<Option<Ticket>, CallError>
    where
        F: Future<Output = Result<RenewReply, CallError>>,
    {
        let Some(renewal) = &self.renewal else {
            return Ok(None);
        };
        let mut held = self.held.lock().await;
        let sent_at = self.clock.boottime();
        let good = held.as_ref().filter(|held| refused != Some(&held.ticket));
        if let Some(held) = good.filter(|held| sent_at < held.renew_at) {
            return Ok(Some(held.ticket.clone()));
        }
        match renew(renewal.clone()).await {
            Ok(reply) => {
                let life = Duration::from_secs(reply.lifetime_secs.into());
                let (renew_at, ends_at) = (sent_at + life * 3 / 4, sent_at + life);
                *held = Some(Held { ticket: reply.ticket.clone(), renew_at, ends_at });
                let mut bearer = self.bearer.write().unwrap_or_else(PoisonError::into_inner);
                *bearer = Some((reply.holder, ends_at));
                Ok(Some(reply.ticket))
            }
            Err(error) => match good.filter(|held| sent_at < held.ends_at) {
                Some(held) if error.is_transient() => Ok(Some(held.ticket.clone())),
                _ => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests;
