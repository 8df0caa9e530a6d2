//! `bootstrap.toml`: what a server writes at its first start, so that somebody can log in.

use std::path::Path;

use dfs_proto::credential::Secret;
use serde::Deserialize;

use super::fingerprint::Fingerprint;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context, Failure};
use crate::cli::password;
use crate::config::CellAddress;

/// The file as written.
#[derive(Deserialize)]
struct RawBootstrap {
    url: String,
    ca_fingerprint: String,
    user: String,
    password: Secret,
    machine_secret: Secret,
    #[serde(default = "default_volume")]
    volume: String,
}

fn default_volume() -> String {
    "main".to_owned()
}

/// The file as meant.
#[derive(Debug)]
pub struct Bootstrap {
    pub cell: CellAddress,
    pub ca_fingerprint: Fingerprint,
    pub user: String,
    pub password: Secret,
    pub machine_secret: Secret,
    pub volume: String,
}

impl Bootstrap {
    /// # Errors
    /// A [`Failure`] that names the file: not readable, readable by others, not complete.
    pub fn read(path: &Path) -> Result<Bootstrap, Failure> {
        let what = || format!("cannot use bootstrap file {}", path.display());
        let remedy = "it is DIR/bootstrap.toml, DIR as of dfs-server serve --data DIR";
        let text = std::fs::read_to_string(path)
            .about(what)
            .map_err(|failure| Failure { exit: Exit::Usage, ..failure }.remedy(remedy))?;
        if password::is_exposed(path).about(what)? {
            let cause = "others can read it, and it holds the administrator's password";
            let remedy = format!("chmod 600 {}", path.display());
            return Err(Failure::usage(what(), cause).remedy(remedy));
        }
        Bootstrap::parse(&text).map_err(|cause| Failure::usage(what(), cause).remedy(remedy))
    }

    /// An error never shows the file's text: its lines are secrets.
    fn parse(text: &str) -> Result<Bootstrap, String> {
        let raw: RawBootstrap = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        Ok(Bootstrap {
            cell: raw.url.parse().map_err(|error| format!("url: {error}"))?,
            ca_fingerprint: raw
                .ca_fingerprint
                .parse()
                .map_err(|error| format!("ca_fingerprint: {error}"))?,
            user: raw.user,
            password: raw.password,
            machine_secret: raw.machine_secret,
            volume: raw.volume,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn text() -> String {
        format!(
            "url = \"dfs://h:7401\"\nca_fingerprint = \"{}\"\nuser = \"admin\"\n\
             password = \"hunter2hunter2\"\nmachine_secret = \"m4chine\"\n",
            "ab".repeat(32)
        )
    }

    #[test]
    fn a_bootstrap_file_is_read() {
        let bootstrap = Bootstrap::parse(&text()).unwrap();
        assert_eq!(bootstrap.cell.to_string(), "h:7401");
        assert_eq!(bootstrap.volume, "main");
        assert_eq!(bootstrap.password.expose(), "hunter2hunter2");
        assert!(!format!("{bootstrap:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_shown() {
        let without = |key: &str| -> String {
            text().lines().filter(|line| !line.starts_with(key)).map(|l| format!("{l}\n")).collect()
        };
        for (broken, reason) in [
            (without("url"), "missing field `url`"),
            (without("machine_secret"), "missing field `machine_secret`"),
            (text().replace("abab", "xyxy"), "ca_fingerprint"),
            (text().replace("dfs://h:7401", "dfs://h:0"), "`0` is not a port"),
            (text().replace("\"hunter2", "hunter2"), ""),
        ] {
            let error = Bootstrap::parse(&broken).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("m4chine"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bootstrap.toml");
        fs::write(&path, text()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let failure = Bootstrap::read(&path).unwrap_err();
        assert!(failure.remedy.unwrap().starts_with("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Bootstrap::read(&path).is_ok());
        let missing = Bootstrap::read(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.exit, Exit::Usage);
        assert!(missing.what.contains("none"));
    }
}
