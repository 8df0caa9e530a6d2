//! What a mount is to be: raw, as typed somewhere, then meant, once.
//!
//! Four layers say it, the later one winning: defaults, `dfs.conf` (TOML) in the configuration
//! directory (table `[mount]`), environment, flags; `-o` options are flags in another spelling.
//! [`RawMount`] is one layer: every field may be absent. [`MountConfig`] is what is meant: nothing
//! is absent, nothing needs another check, and it holds no secret. Later code never asks where a
//! value came from.
//!
//! Read by `cli`; the fuse side takes a [`MountConfig`]. Nothing here talks to a server.

mod options;
mod quantity;
mod url;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfs_proto::chunk::ChunkHash;
use serde::Deserialize;

pub use options::{OptionFault, known_options, parse_options};
pub use quantity::{ByteSize, QuantityError, Span};
pub(crate) use url::parse_path;
pub use url::{
    CellAddress, DEFAULT_PORT, FileUrl, MountSource, SCHEME, UrlError, UrlFault, VolumeUrl,
};

/// Bytes of content kept in the cache, unless told otherwise. Why: large enough for a home
/// directory's working set, small enough for a laptop's disk.
pub const CACHE_SIZE_DEFAULT: ByteSize = ByteSize(10 << 30);

/// How long an operation waits for a server that does not answer, unless told otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How long an open waits for another writer, unless told otherwise.
pub const LOCK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Name of the configuration file in the configuration directory. Not `*.toml`: those are
/// credentials, one for each cell.
pub const CONFIG_FILE: &str = "dfs.conf";

/// A layer that cannot be read, or a value that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not a configuration", path.display())]
    Broken { path: PathBuf, source: Box<toml::de::Error> },
    #[error("environment variable {name}: {why}")]
    Environment { name: &'static str, why: String },
    #[error("-o {text}")]
    Option { text: String, source: OptionFault },
    #[error("cache size {given} is less than {minimum}")]
    CacheTooSmall { given: ByteSize, minimum: ByteSize },
}

/// One layer's word on a mount; `None` leaves a value to the layer below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawMount {
    /// Where logins and the configuration file lie: not that file's to say.
    #[serde(skip)]
    pub config_dir: Option<PathBuf>,
    pub cache_dir: Option<PathBuf>,
    pub cache_size: Option<ByteSize>,
    pub log_file: Option<PathBuf>,
    pub read_only: Option<bool>,
    pub allow_other: Option<bool>,
    pub default_permissions: Option<bool>,
    pub hard: Option<bool>,
    pub timeout: Option<Span>,
    pub lock_timeout: Option<Span>,
    pub suid: Option<bool>,
    pub dev: Option<bool>,
    pub exec: Option<bool>,
    pub atime: Option<bool>,
}

impl RawMount {
    /// This layer with `upper` on top of it.
    pub fn overlaid_by(self, upper: RawMount) -> RawMount {
        RawMount {
            config_dir: upper.config_dir.or(self.config_dir),
            cache_dir: upper.cache_dir.or(self.cache_dir),
            cache_size: upper.cache_size.or(self.cache_size),
            log_file: upper.log_file.or(self.log_file),
            read_only: upper.read_only.or(self.read_only),
            allow_other: upper.allow_other.or(self.allow_other),
            default_permissions: upper.default_permissions.or(self.default_permissions),
            hard: upper.hard.or(self.hard),
            timeout: upper.timeout.or(self.timeout),
            lock_timeout: upper.lock_timeout.or(self.lock_timeout),
            suid: upper.suid.or(self.suid),
            dev: upper.dev.or(self.dev),
            exec: upper.exec.or(self.exec),
            atime: upper.atime.or(self.atime),
        }
    }
}

/// The configuration file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFile {
    mount: RawMount,
}

/// The layer of the configuration file; a file that is not there says nothing.
///
/// # Errors
/// [`ConfigError::Unreadable`], [`ConfigError::Broken`] (not TOML, unknown key, wrong value).
pub fn file_layer(config_dir: &Path) -> Result<RawMount, ConfigError> {
    let path = config_dir.join(CONFIG_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RawMount::default()),
        Err(source) => return Err(ConfigError::Unreadable { path, source }),
    };
    match toml::from_str::<RawFile>(&text) {
        Ok(file) => Ok(file.mount),
        Err(source) => Err(ConfigError::Broken { path, source: Box::new(source) }),
    }
}

/// Where environment variables come from: the process's, or a test's.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The process's environment; an empty variable counts as absent. `HOME` is always there: systemd
/// mounts without one, and then the user's entry in passwd(5) says it.
pub fn process_environment(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    match name {
        "HOME" => value.or_else(home_of_user),
        _ => value,
    }
}

fn home_of_user() -> Option<OsString> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map(|user| user.dir.into_os_string())
}

/// The layer of the environment: `DFS_MOUNT_OPTIONS` as for `-o`, then `DFS_CACHE_SIZE`.
///
/// # Errors
/// [`ConfigError::Environment`] names the variable.
pub fn environment_layer(environment: Environment<'_>) -> Result<RawMount, ConfigError> {
    let mut layer = RawMount::default();
    if let Some(options) = environment("DFS_MOUNT_OPTIONS") {
        let name = "DFS_MOUNT_OPTIONS";
        let options = options.to_string_lossy();
        layer = parse_options(&options)
            .map_err(|why| ConfigError::Environment { name, why: why.to_string() })?;
    }
    if let Some(size) = environment("DFS_CACHE_SIZE") {
        let name = "DFS_CACHE_SIZE";
        let size = size.to_string_lossy().parse().map_err(|why: QuantityError| {
            ConfigError::Environment { name, why: why.to_string() }
        })?;
        layer.cache_size = Some(size);
    }
    Ok(layer)
}

/// The directory under which each mount has its cache: `DFS_CACHE_DIR`, `$XDG_CACHE_HOME/dfs` or
/// `~/.cache/dfs`.
pub fn cache_base(environment: Environment<'_>) -> PathBuf {
    if let Some(dir) = environment("DFS_CACHE_DIR") {
        return dir.into();
    }
    let cache_home = environment("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let home = environment("HOME").unwrap_or_else(|| "/root".into());
        PathBuf::from(home).join(".cache")
    });
    cache_home.join("dfs")
}

/// What decides the defaults of one mount.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: MountSource,
    /// Absolute, without links.
    pub mount_point: PathBuf,
    /// Of the cell's CA, in hexadecimal.
    pub cell_fingerprint: String,
    pub cache_base: PathBuf,
    pub is_root: bool,
}

impl Place {
    /// Another cell, volume or mount point has another cache: two mounts never meet in one.
    fn cache_dir(&self) -> PathBuf {
        let mount_point = ChunkHash::of(self.mount_point.as_os_str().as_bytes()).to_string();
        let cell: String = self.cell_fingerprint.chars().take(8).collect();
        self.cache_base.join(format!("{cell}-{}-{}", self.source.url.volume, &mount_point[..8]))
    }
}

/// How long an operation is tried while no server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Then the caller gets an error.
    Soft(Duration),
    /// For ever; a signal to the caller ends the wait.
    Hard,
}

impl Patience {
    /// `None`: without end.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Patience::Soft(limit) => Some(limit),
            Patience::Hard => None,
        }
    }
}

/// A mount as it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountConfig {
    pub url: VolumeUrl,
    /// The url as typed.
    pub source: String,
    /// Absolute, without links.
    pub mount_point: PathBuf,
    pub cache_dir: PathBuf,
    /// Units: bytes of content.
    pub cache_bytes_max: u64,
    pub log_file: PathBuf,
    pub read_only: bool,
    /// Whether users other than the one who mounts may enter.
    pub allow_other: bool,
    /// Whether the kernel checks modes before it asks.
    pub default_permissions: bool,
    pub patience: Patience,
    /// How long an open for writing waits for another writer.
    pub lock_timeout: Duration,
    /// As of mount(8): set-user-id, device files, programs, access times.
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    pub atime: bool,
}

/// Smallest cache. Why: one large file under edit beside what is being sent.
const CACHE_SIZE_MIN: ByteSize = ByteSize(16 << 20);

impl MountConfig {
    /// Gives every value that `raw` leaves open its default.
    ///
    /// # Errors
    /// [`ConfigError::CacheTooSmall`].
    pub fn mean(raw: RawMount, place: Place) -> Result<MountConfig, ConfigError> {
        let cache_size = raw.cache_size.unwrap_or(CACHE_SIZE_DEFAULT);
        if cache_size < CACHE_SIZE_MIN {
            let minimum = CACHE_SIZE_MIN;
            return Err(ConfigError::CacheTooSmall { given: cache_size, minimum });
        }
        let cache_dir = raw.cache_dir.unwrap_or_else(|| place.cache_dir());
        let patience = match raw.hard {
            Some(true) => Patience::Hard,
            _ => Patience::Soft(raw.timeout.map_or(TIMEOUT_DEFAULT, |span| span.0)),
        };
        Ok(MountConfig {
            log_file: raw.log_file.unwrap_or_else(|| log_beside(&cache_dir)),
            cache_dir,
            cache_bytes_max: cache_size.0,
            read_only: raw.read_only.unwrap_or(false),
            allow_other: raw.allow_other.unwrap_or(place.is_root),
            default_permissions: raw.default_permissions.unwrap_or(place.is_root),
            patience,
            lock_timeout: raw.lock_timeout.map_or(LOCK_TIMEOUT_DEFAULT, |span| span.0),
            // Another user's set-user-id programs and devices are trusted by root only.
            suid: raw.suid.unwrap_or(place.is_root),
            dev: raw.dev.unwrap_or(false),
            exec: raw.exec.unwrap_or(true),
            atime: raw.atime.unwrap_or(true),
            url: place.source.url,
            source: place.source.text,
            mount_point: place.mount_point,
        })
    }
}

/// The log lies beside the cache, not in it: whoever deletes a cache keeps the log, and the cache
/// holds nothing it did not make.
fn log_beside(cache_dir: &Path) -> PathBuf {
    let mut path = cache_dir.as_os_str().to_owned();
    path.push(".log");
    path.into()
}

#[cfg(test)]
mod tests;
