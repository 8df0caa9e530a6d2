//! What a server process is told: command line over environment over file over defaults.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use dfs_proto::admin::Role;
use dfs_proto::credential::Secret;
use serde::Deserialize;

pub const LISTEN_DEFAULT: &str = "127.0.0.1:7400";
pub const FILE_NODES_DEFAULT: u32 = 2;

/// Largest configuration file. Units: bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Settings as typed, from one source; absent where it says nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub data: Option<PathBuf>,
    pub listen: Option<String>,
    pub roles: Option<String>,
    pub file_nodes: Option<u32>,
    pub advertise: Option<String>,
    /// Not from a file that others may read: see [`RawConfig::load`].
    pub join: Option<Secret>,
}

/// Settings as meant.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    pub data_dir: PathBuf,
    /// HOST:PORT; port 0 takes a free one.
    pub listen: String,
    pub roles: Vec<Role>,
    /// File nodes in this process; meant only with the file role.
    pub file_nodes: u32,
    /// Name or address under which other hosts reach this process.
    pub advertise: Option<String>,
    pub join: Option<Secret>,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no data directory: give --data DIR")]
    NoDataDir,
    #[error("`{text}` is no address to listen on; give HOST:PORT, such as {LISTEN_DEFAULT}")]
    Listen { text: String },
    #[error("`{text}` is no role; roles are all, or some of auth,directory,lock,file")]
    Role { text: String },
    #[error("no file node at all: --file-nodes must be at least 1 with the file role")]
    NoFileNodes,
    #[error("configuration file {} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("configuration file {} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("configuration file {} is not valid", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
}

impl RawConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// `Read`, `TooLarge`, `Parse`: each names the file; `Parse` the line and the key.
    pub fn load(path: &Path) -> Result<RawConfig, ConfigError> {
        let fault = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(fault)?.len();
        if size > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(fault)?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// These settings, and where they say nothing those of `below`.
    #[must_use]
    pub fn over(self, below: RawConfig) -> RawConfig {
        RawConfig {
            data: self.data.or(below.data),
            listen: self.listen.or(below.listen),
            roles: self.roles.or(below.roles),
            file_nodes: self.file_nodes.or(below.file_nodes),
            advertise: self.advertise.or(below.advertise),
            join: self.join.or(below.join),
        }
    }

    /// The settings as meant.
    ///
    /// # Errors
    /// The first setting that is missing or means nothing.
    pub fn meant(self) -> Result<ServeConfig, ConfigError> {
        let listen = self.listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
        let port = listen.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(_))) {
            return Err(ConfigError::Listen { text: listen });
        }
        let roles = parse_roles(self.roles.as_deref().unwrap_or("all"))?;
        let file_nodes = self.file_nodes.unwrap_or(FILE_NODES_DEFAULT);
        if roles.contains(&Role::File) && file_nodes == 0 {
            return Err(ConfigError::NoFileNodes);
        }
        Ok(ServeConfig {
            data_dir: self.data.ok_or(ConfigError::NoDataDir)?,
            listen,
            roles,
            file_nodes,
            advertise: self.advertise,
            join: self.join,
        })
    }
}

/// Reads `all` or a comma-separated list of roles. Order and repetition do not matter.
///
/// # Errors
/// [`ConfigError::Role`] names the first word that is none.
pub fn parse_roles(text: &str) -> Result<Vec<Role>, ConfigError> {
    if text == "all" {
        return Ok(Role::ALL.to_vec());
    }
    let parse = |word: &str| {
        let found = Role::ALL.into_iter().find(|role| role.name() == word.trim());
        found.ok_or_else(|| ConfigError::Role { text: word.to_owned() })
    };
    let mut roles = text.split(',').map(parse).collect::<Result<Vec<Role>, _>>()?;
    roles.sort();
    roles.dedup();
    Ok(roles)
}

impl ServeConfig {
    fn listen_host(&self) -> &str {
        let host = self.listen.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The host other nodes are told; `None` if this process listens everywhere and was not told
    /// its name: they then use the address they see.
    pub fn announced_host(&self) -> Option<String> {
        if self.advertise.is_some() {
            return self.advertise.clone();
        }
        let host = self.listen_host();
        let is_everywhere = host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        (!host.is_empty() && !is_everywhere).then(|| host.to_owned())
    }

    /// The host for people: what `bootstrap.toml` and join tokens name.
    pub fn public_host(&self) -> String {
        self.announced_host().unwrap_or_else(|| {
            let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
            name.unwrap_or_else(|| "localhost".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawConfig {
        RawConfig { data: Some("/d".into()), ..RawConfig::default() }
    }

    #[test]
    fn defaults_are_one_process_with_two_file_nodes_on_loopback() {
        let config = raw().meant().unwrap();
        assert_eq!(config.listen, LISTEN_DEFAULT);
        assert_eq!(config.roles, Role::ALL);
        assert_eq!(config.file_nodes, 2);
        assert_eq!(config.public_host(), "127.0.0.1");
    }

    #[test]
    fn what_is_typed_goes_over_the_file() {
        let typed = RawConfig { listen: Some("1.2.3.4:5".into()), ..RawConfig::default() };
        let file = RawConfig { listen: Some("9.9.9.9:9".into()), file_nodes: Some(3), ..raw() };
        let config = typed.over(file).meant().unwrap();
        assert_eq!((config.listen.as_str(), config.file_nodes), ("1.2.3.4:5", 3));
        assert_eq!(config.announced_host().as_deref(), Some("1.2.3.4"));
    }

    #[test]
    fn bad_settings_are_refused_with_the_value_in_the_message() {
        assert!(matches!(RawConfig::default().meant(), Err(ConfigError::NoDataDir)));
        for listen in ["", "host", "host:", "host:99999", "7400x"] {
            let config = RawConfig { listen: Some(listen.into()), ..raw() };
            let error = config.meant().unwrap_err().to_string();
            assert!(error.contains(&format!("`{listen}`")), "{error}");
        }
        let config = RawConfig { roles: Some("auth,king".into()), ..raw() };
        assert!(config.meant().unwrap_err().to_string().contains("`king`"));
        let config = RawConfig { file_nodes: Some(0), ..raw() };
        assert!(matches!(config.meant(), Err(ConfigError::NoFileNodes)));
    }

    #[test]
    fn a_server_that_listens_everywhere_announces_no_address() {
        for listen in ["0.0.0.0:7400", "[::]:7400"] {
            let config = RawConfig { listen: Some(listen.into()), ..raw() }.meant().unwrap();
            assert_eq!(config.announced_host(), None);
            assert!(!config.public_host().is_empty());
        }
        let advertise = Some("files.example".to_owned());
        let config = RawConfig { listen: Some("0.0.0.0:1".into()), advertise, ..raw() };
        assert_eq!(config.meant().unwrap().public_host(), "files.example");
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cell.toml");
        std::fs::write(&path, "listen = \"a:1\"\ncolour = 3\n").unwrap();
        let error = RawConfig::load(&path).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains("cell.toml") && cause.contains("colour"), "{cause}");
        assert!(matches!(RawConfig::load(dir.path()), Err(ConfigError::Read { .. })));
        assert!(RawConfig::load(&dir.path().join("none")).is_err());
    }
}
