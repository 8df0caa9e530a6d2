//! Which cell a command speaks to, and as whom.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::client::retry::RetryPolicy;
use dfs_proto::clock::{Clock, SystemClock};
use dfs_proto::credential::Identity;
use dfs_proto::limits::{GROUP_COUNT_MAX, WORD_BYTES_MAX};

use super::exit::Exit;
use super::failure::{Context, Failure};
use crate::config::{CellAddress, process_environment};
use crate::credential::{Credential, CredentialError, CredentialStore, LoginKind};
use crate::session::connection::Connection;

/// How long a command tries to reach a server. Why shorter than a mount's: somebody is waiting.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);

/// When a command's requests are repeated.
pub fn policy() -> RetryPolicy {
    RetryPolicy { give_up_after: Some(COMMAND_PATIENCE), ..RetryPolicy::default() }
}

pub fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

impl From<CredentialError> for Failure {
    fn from(error: CredentialError) -> Failure {
        let remedy = match &error {
            CredentialError::Exposed(path) => Some(format!("chmod 600 {}", path.display())),
            CredentialError::Broken { path, .. } => {
                Some(format!("remove {} and log in again", path.display()))
            }
            CredentialError::Directory(path) => {
                Some(format!("move {} away and log in again", path.display()))
            }
            CredentialError::NotOwn { owner, .. } => Some(format!(
                "run the command as user {owner} (without sudo, if that is how it was run), or set \
                 DFS_CONFIG_DIR to a directory of your own and log in there"
            )),
            CredentialError::NoDirectory => Some("set DFS_CONFIG_DIR".to_owned()),
            CredentialError::Io { .. } => None,
        };
        let failure = Failure::new(Exit::Usage, "cannot use the stored login", error);
        Failure { remedy, ..failure }
    }
}

/// Where logins are kept.
///
/// # Errors
/// A [`Failure`] if the environment names no directory.
pub fn store() -> Result<CredentialStore, Failure> {
    Ok(CredentialStore::from_env(&process_environment)?)
}

/// The login at `cell`, or at the only cell there is a login for.
///
/// # Errors
/// A [`Failure`] if there is none, or more than one to choose from.
pub fn credential(cell: Option<&CellAddress>) -> Result<Credential, Failure> {
    let store = store()?;
    match cell {
        Some(cell) => credential_in(&store, cell),
        None => only_one(store.list()?),
    }
}

/// The login at `cell` that `store` has.
///
/// # Errors
/// A [`Failure`] if there is none, or none that can be used.
pub fn credential_in(store: &CredentialStore, cell: &CellAddress) -> Result<Credential, Failure> {
    let found = store.load(&cell.host, cell.port)?;
    found.ok_or_else(|| {
        let cause = format!("there is no stored login for it in {}", store.dir().display());
        let failure = not_logged_in(&format!("dfs://{cell}"));
        Failure { cause: cause.into(), ..failure }
    })
}

fn only_one(mut credentials: Vec<Credential>) -> Result<Credential, Failure> {
    match credentials.len() {
        0 => Err(not_logged_in("any cell")),
        1 => Ok(credentials.remove(0)),
        _ => {
            let urls: Vec<String> =
                credentials.iter().map(|known| format!("dfs://{}", address(known))).collect();
            let cause = format!("there are logins for {}", urls.join(", "));
            Err(Failure::usage("which cell is meant is not clear", cause).remedy("name one"))
        }
    }
}

pub fn address(credential: &Credential) -> CellAddress {
    CellAddress { host: credential.host.clone(), port: credential.port }
}

pub fn not_logged_in(place: &str) -> Failure {
    Failure::new(Exit::Refused, format!("not logged in to {place}"), "there is no stored login")
        .remedy("dfs login dfs://HOST:PORT --user USER, or dfs login --bootstrap FILE")
}

/// The login that commands other than `mount` act with: the person's, else the machine's.
pub fn command_login(credential: &Credential) -> LoginKind {
    match credential.personal {
        Some(_) => LoginKind::Personal,
        None => LoginKind::Machine,
    }
}

/// The login that a mount acts with: root mounts for all users of the machine, if it may.
pub fn mount_login(credential: &Credential, is_root: bool) -> LoginKind {
    match (is_root, &credential.machine) {
        (true, Some(_)) => LoginKind::Machine,
        _ => LoginKind::Personal,
    }
}

/// A connection for one command.
///
/// # Errors
/// A [`Failure`] if the credential has no such login.
pub fn connect(credential: &Credential) -> Result<Connection, Failure> {
    let kind = command_login(credential);
    Connection::to_cell(credential, kind, policy(), clock())
        .about(|| format!("cannot speak to dfs://{}", address(credential)))
}

/// As whom this process acts, for servers that believe its machine.
pub fn own_identity() -> Identity {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    Identity {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(|gid| gid.as_raw()).take(GROUP_COUNT_MAX).collect(),
    }
}

/// What others are told of this machine.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let mut name = name.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "unnamed".into());
    let end = (0..=WORD_BYTES_MAX.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.truncate(end.unwrap_or(0));
    name
}

/// Whether an error means that a login is over or was never good.
pub fn is_login_gone(error: &FsError) -> bool {
    matches!(
        error,
        FsError::LoginRefused | FsError::Unauthenticated | FsError::TicketRefused { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{Machine, Personal};
    use dfs_proto::credential::Secret;

    fn credential(host: &str, personal: bool, machine: bool) -> Credential {
        let renewal = Secret::new("r");
        Credential {
            host: host.into(),
            port: 7400,
            fingerprint: "00".into(),
            ca_pem: String::new(),
            personal: personal.then(|| Personal { user: "u".into(), renewal: renewal.clone() }),
            machine: machine.then_some(Machine { renewal }),
        }
    }

    #[test]
    fn a_login_that_cannot_be_used_comes_with_its_remedy_once() {
        let path = || std::path::PathBuf::from("/c/h_1.toml");
        let errors = [
            (CredentialError::NoDirectory, "set DFS_CONFIG_DIR"),
            (CredentialError::Directory(path()), "move /c/h_1.toml away"),
            (CredentialError::NotOwn { path: path(), owner: 7, user: 0 }, "as user 7"),
            (CredentialError::Exposed(path()), "chmod 600 /c/h_1.toml"),
            (CredentialError::Broken { path: path(), why: "no".into() }, "remove /c/h_1.toml"),
        ];
        for (error, remedy) in errors {
            let failure = Failure::from(error);
            assert!(failure.remedy.as_ref().is_some_and(|it| it.contains(remedy)), "{failure:?}");
            let words = ["log in again", "chmod", "remove", "move", "run the", "DFS_CONFIG_DIR to"];
            let causes = failure.causes();
            assert!(!words.iter().any(|word| causes.contains(word)), "{causes}");
        }
    }

    #[test]
    fn a_command_without_a_url_needs_exactly_one_login() {
        assert_eq!(only_one(vec![]).unwrap_err().exit, Exit::Refused);
        assert_eq!(only_one(vec![credential("a", true, false)]).unwrap().host, "a");
        let both = vec![credential("a", true, false), credential("b", true, false)];
        let failure = only_one(both).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.causes().contains("dfs://a:7400, dfs://b:7400"), "{}", failure.causes());
    }

    #[test]
    fn root_mounts_for_the_machine_if_it_may_and_others_for_themselves() {
        let both = credential("a", true, true);
        assert_eq!(mount_login(&both, true), LoginKind::Machine);
        assert_eq!(mount_login(&both, false), LoginKind::Personal);
        assert_eq!(mount_login(&credential("a", true, false), true), LoginKind::Personal);
    }

    #[test]
    fn commands_act_for_the_person_first() {
        assert_eq!(command_login(&credential("a", true, true)), LoginKind::Personal);
        assert_eq!(command_login(&credential("a", false, true)), LoginKind::Machine);
    }
}
