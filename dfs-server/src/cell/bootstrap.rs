//! `bootstrap.toml`: what the first start of a cell leaves for its first user.
//!
//! The order that survives a crash at any point: the secrets are made and written to
//! `bootstrap.toml.pending`; the accounts are made from that file; the file gets its final name.
//! So `bootstrap.toml` exists only when everything in it works, a start that finds a pending file
//! goes on with the secrets in it, and secrets are made only while there are no accounts: nobody
//! who deletes `bootstrap.toml`, as one should after use, gets a new administrator for it.
//! The accounts' part of this is `auth`'s; this module knows the files only.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use dfs_proto::credential::Secret;

use super::ca::Fingerprint;
use super::{CellError, read_text};
use crate::durable_file::{self, Access};
use crate::secret;

/// The name of the first administrator.
pub const ADMINISTRATOR: &str = "admin";

/// The volume that every cell has.
pub const FIRST_VOLUME: &str = "main";

/// The shape of `bootstrap.toml`. The client has a reader of its own with the same names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Bootstrap {
    /// `dfs://HOST:PORT`
    pub url: String,
    pub ca_fingerprint: Fingerprint,
    pub user: String,
    pub password: Secret,
    /// A renewal secret for a machine whose root is trusted.
    pub machine_secret: Secret,
    pub volume: String,
}

impl Bootstrap {
    /// A bootstrap with new secrets.
    pub fn make(url: String, ca_fingerprint: Fingerprint) -> Bootstrap {
        Bootstrap {
            url,
            ca_fingerprint,
            user: ADMINISTRATOR.to_owned(),
            password: secret::random_password(),
            machine_secret: secret::random_hex::<32>(),
            volume: FIRST_VOLUME.to_owned(),
        }
    }

    fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        format!(
            "# How to enter this cell for the first time: dfs login --bootstrap THIS_FILE\n\
             # Whoever reads this file administers the cell. Delete it when you do not need it.\n\
             \n\
             url = {}\n\
             # SHA-256 of the CA's certificate: clients trust no other.\n\
             ca_fingerprint = {}\n\
             volume = {}\n\
             \n\
             # The first administrator.\n\
             user = {}\n\
             password = {}\n\
             \n\
             # For a mount by root that speaks for all users of its machine.\n\
             machine_secret = {}\n",
            quoted(&self.url),
            quoted(&self.ca_fingerprint.to_string()),
            quoted(&self.volume),
            quoted(&self.user),
            quoted(self.password.expose()),
            quoted(self.machine_secret.expose()),
        )
    }
}

/// `bootstrap.toml` of a data directory.
#[derive(Clone, Debug)]
pub struct BootstrapFile {
    published: PathBuf,
    pending: PathBuf,
}

impl BootstrapFile {
    pub fn of(data_dir: &Path) -> BootstrapFile {
        BootstrapFile {
            published: data_dir.join("bootstrap.toml"),
            pending: data_dir.join("bootstrap.toml.pending"),
        }
    }

    pub fn path(&self) -> &Path {
        &self.published
    }

    pub fn is_published(&self) -> bool {
        self.published.exists()
    }

    /// What an interrupted first start has made.
    ///
    /// # Errors
    /// `File`, `Damaged` if it cannot be read.
    pub fn load_pending(&self) -> Result<Option<Bootstrap>, CellError> {
        load(&self.pending)
    }

    /// # Errors
    /// `File` if it cannot be written.
    pub fn store_pending(&self, bootstrap: &Bootstrap) -> Result<(), CellError> {
        store(&self.pending, bootstrap)
    }

    /// Gives the pending file its final name. The accounts in it must be stable.
    ///
    /// # Errors
    /// `File` if it cannot be renamed.
    pub fn publish(&self) -> Result<(), CellError> {
        durable_file::rename(&self.pending, &self.published)
            .map_err(CellError::file("write", &self.published))
    }

    /// Tells the cell's new address, if the file is still there and says another.
    ///
    /// # Errors
    /// `File`, `Damaged` if it cannot be read or written.
    pub fn update_url(&self, url: &str) -> Result<(), CellError> {
        match load(&self.published)? {
            Some(bootstrap) if bootstrap.url != url => {
                store(&self.published, &Bootstrap { url: url.to_owned(), ..bootstrap })
            }
            _ => Ok(()),
        }
    }
}

fn load(path: &Path) -> Result<Option<Bootstrap>, CellError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    // `message` does not quote the text, which holds secrets.
    toml::from_str(&text).map(Some).map_err(|error| CellError::damaged(path, error.message()))
}

fn store(path: &Path, bootstrap: &Bootstrap) -> Result<(), CellError> {
    durable_file::write(path, bootstrap.to_toml().as_bytes(), Access::Private)
        .map_err(CellError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sample() -> Bootstrap {
        Bootstrap::make("dfs://127.0.0.1:7400".into(), Fingerprint::of_der(b"ca"))
    }

    #[test]
    fn the_file_reads_back_and_is_private_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let file = BootstrapFile::of(dir.path());
        let made = sample();
        file.store_pending(&made).unwrap();
        assert_eq!(file.load_pending().unwrap(), Some(made.clone()));
        assert!(!file.is_published());
        file.publish().unwrap();
        assert_eq!(load(file.path()).unwrap(), Some(made));
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(file.load_pending().unwrap(), None);
    }

    #[test]
    fn a_changed_address_is_told_without_touching_the_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let file = BootstrapFile::of(dir.path());
        file.update_url("dfs://a:1").unwrap();
        assert!(!file.is_published(), "a deleted file stays deleted");
        let made = sample();
        file.store_pending(&made).unwrap();
        file.publish().unwrap();
        file.update_url("dfs://other:7401").unwrap();
        let updated = load(file.path()).unwrap().unwrap();
        assert_eq!(updated, Bootstrap { url: "dfs://other:7401".into(), ..made });
    }

    #[test]
    fn a_damaged_file_is_named_and_its_secrets_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = BootstrapFile::of(dir.path());
        std::fs::write(file.path(), "password = \"hunter2hunter2\"\nurl = 7").unwrap();
        let error = file.update_url("dfs://a:1").unwrap_err().to_string();
        assert!(error.contains("bootstrap.toml is damaged"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let made = sample();
        let text = format!("{made:?}");
        assert!(!text.contains(made.password.expose()));
        assert!(!text.contains(made.machine_secret.expose()));
    }
}
