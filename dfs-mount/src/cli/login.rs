//! `dfs login`, `logout`, `whoami`.
//!
//! Before a password goes anywhere, the server has to prove that it belongs to the cell meant: its
//! CA certificate is fetched, and must have the fingerprint given, or be the file given, or the one
//! of the last login, or be confirmed by a person who is shown its fingerprint.

mod bootstrap;
mod fingerprint;

use std::path::Path;

use dfs_proto::admin::Role;
use dfs_proto::auth::{Login, Logout, Renew, WhoAmI, WhoAmIReply};
use dfs_proto::client::fetch_unverified;
use dfs_proto::credential::{ActAs, Secret};
use serde::Serialize;

use super::cell;
use super::exit::Exit;
use super::failure::{Context, Failure};
use super::output::{Output, Report, Table};
use super::password;
use super::{CellArgs, LoginArgs};
use crate::config::CellAddress;
use crate::credential::{Credential, Machine, Personal};
use crate::session::connection::Connection;
use bootstrap::Bootstrap;

pub use fingerprint::Fingerprint;

/// Where every server publishes its cell's CA certificate.
const CA_PATH: &str = "/ca.pem";

/// A cell whose CA we trust.
struct Trusted {
    ca_pem: String,
    fingerprint: Fingerprint,
}

/// What was done, as it is shown.
#[derive(Debug, Serialize)]
struct LoggedIn {
    url: String,
    user: String,
    fingerprint: String,
    machine: bool,
    volume: Option<String>,
}

impl Report for LoggedIn {
    fn table(&self) -> Table {
        let also = if self.machine { ", and this machine may mount for its users" } else { "" };
        let mut lines = vec![format!("logged in to {} as {}{also}", self.url, self.user)];
        lines.extend(
            self.volume.iter().map(|volume| format!("mount: dfs mount {}/{volume} DIR", self.url)),
        );
        Table::lines(lines)
    }
}

/// # Errors
/// A [`Failure`]: the server is not of the cell, the password is wrong, nobody answers.
pub async fn login(arguments: &LoginArgs, output: &mut Output) -> Result<(), Failure> {
    if let Some(path) = &arguments.bootstrap {
        return login_with_bootstrap(path, output).await;
    }
    let cell = arguments.url.as_ref().ok_or_else(|| Failure::usage("cannot log in", "no url"))?;
    let user = match &arguments.user {
        Some(user) => user.clone(),
        None => local_user()?,
    };
    let trusted = trust(cell, arguments, output).await?;
    let password = password::read(&user)?;
    let personal = log_in(cell, &trusted, &user, password).await?;
    let store = cell::store()?;
    // What a machine may do at a cell stays, as long as it is the same cell.
    let known = store.load(&cell.host, cell.port)?;
    let same = known.filter(|known| known.fingerprint == trusted.fingerprint.to_string());
    let machine = same.and_then(|known| known.machine);
    let report = LoggedIn {
        url: format!("dfs://{cell}"),
        user,
        fingerprint: trusted.fingerprint.to_string(),
        machine: machine.is_some(),
        volume: None,
    };
    store.save(&credential(cell, trusted, personal, machine))?;
    output.show(&report)
}

async fn login_with_bootstrap(path: &Path, output: &mut Output) -> Result<(), Failure> {
    let bootstrap = Bootstrap::read(path)?;
    let cell = bootstrap.cell;
    let trusted = fetch_trusted(&cell, bootstrap.ca_fingerprint).await?;
    let personal = log_in(&cell, &trusted, &bootstrap.user, bootstrap.password).await?;
    let renewal = bootstrap.machine_secret;
    public(&cell, &trusted)?
        .call(Role::Auth, None, &Renew { renewal: renewal.clone() })
        .await
        .about(|| format!("the machine's login at dfs://{cell} does not work"))?;
    let report = LoggedIn {
        url: format!("dfs://{cell}"),
        user: bootstrap.user,
        fingerprint: trusted.fingerprint.to_string(),
        machine: true,
        volume: Some(bootstrap.volume),
    };
    let machine = Some(Machine { renewal });
    cell::store()?.save(&credential(&cell, trusted, personal, machine))?;
    output.show(&report)
}

fn credential(
    cell: &CellAddress,
    trusted: Trusted,
    personal: Personal,
    machine: Option<Machine>,
) -> Credential {
    Credential {
        host: cell.host.clone(),
        port: cell.port,
        fingerprint: trusted.fingerprint.to_string(),
        ca_pem: trusted.ca_pem,
        personal: Some(personal),
        machine,
    }
}

fn local_user() -> Result<String, Failure> {
    let uid = nix::unistd::geteuid();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => Ok(user.name),
        _ => {
            let cause = format!("local user {uid} has no name");
            Err(Failure::usage("cannot log in", cause).remedy("name the cell's user with --user"))
        }
    }
}

/// The cell's CA certificate, once there is a reason to believe that it is the cell's.
async fn trust(
    cell: &CellAddress,
    arguments: &LoginArgs,
    output: &mut Output,
) -> Result<Trusted, Failure> {
    if let Some(expected) = arguments.fingerprint {
        return fetch_trusted(cell, expected).await;
    }
    if let Some(path) = &arguments.ca {
        let pem = std::fs::read_to_string(path)
            .about(|| format!("cannot read CA certificate {}", path.display()))?;
        return trusted(pem, &path.display().to_string());
    }
    if let Some(known) = cell::store()?.load(&cell.host, cell.port)? {
        return trusted(known.ca_pem, "the stored login");
    }
    let found = fetch(cell).await?;
    output.note(&format!("The cell at {cell} is not known. The SHA-256 of its CA certificate is"));
    output.note(&format!("  {}", found.fingerprint));
    output.note("Compare it with what the cell's administrator says.");
    let refuse = || Failure::new(Exit::Refused, format!("not logged in to {cell}"), "not trusted");
    match password::confirm("Is it the same?") {
        Ok(true) => Ok(found),
        Ok(false) => Err(refuse()),
        Err(failure) => Err(Failure {
            exit: Exit::Refused,
            remedy: Some("say which cell is meant with --fingerprint or --ca".into()),
            ..failure
        }),
    }
}

fn trusted(ca_pem: String, source: &str) -> Result<Trusted, Failure> {
    match Fingerprint::of_pem(ca_pem.as_bytes()) {
        Ok(fingerprint) => Ok(Trusted { ca_pem, fingerprint }),
        Err(error) => Err(Failure::usage(format!("no CA certificate in {source}"), error)),
    }
}

async fn fetch(cell: &CellAddress) -> Result<Trusted, Failure> {
    let what = || format!("cannot fetch the CA certificate of dfs://{cell}");
    let bytes = fetch_unverified(&cell.host, cell.port, CA_PATH)
        .await
        .map_err(|error| Failure::fs(what(), error.into()))?;
    let pem = String::from_utf8(bytes.to_vec())
        .map_err(|error| Failure::failed(what(), error).remedy("is it a DFS server?"))?;
    trusted(pem, &format!("the answer of {cell}"))
}

/// Fetches the CA certificate and compares it, before anything else is sent.
async fn fetch_trusted(cell: &CellAddress, expected: Fingerprint) -> Result<Trusted, Failure> {
    let found = fetch(cell).await?;
    if found.fingerprint == expected {
        return Ok(found);
    }
    let cause = format!(
        "its CA certificate has fingerprint {}, not {expected}; nothing was sent",
        found.fingerprint
    );
    let what = format!("dfs://{cell} is not the cell that is meant");
    Err(Failure::new(Exit::Refused, what, cause).remedy("check address and fingerprint"))
}

fn public(cell: &CellAddress, trusted: &Trusted) -> Result<Connection, Failure> {
    let entry = (cell.host.as_str(), cell.port);
    Connection::public(entry, &trusted.ca_pem, cell::policy(), cell::clock())
        .about(|| format!("cannot speak to dfs://{cell}"))
}

async fn log_in(
    cell: &CellAddress,
    trusted: &Trusted,
    user: &str,
    password: Secret,
) -> Result<Personal, Failure> {
    let request = Login { user: user.to_owned(), password };
    let reply = public(cell, trusted)?
        .call(Role::Auth, None, &request)
        .await
        .about(|| format!("cannot log in to dfs://{cell} as {user}"))?;
    Ok(Personal { user: user.to_owned(), renewal: reply.renewal })
}

/// Ends the person's login. What the machine may do stays.
///
/// # Errors
/// A [`Failure`] if there is no login, or the server was not told; it is forgotten here even then.
pub async fn logout(arguments: &CellArgs, output: &mut Output) -> Result<(), Failure> {
    let mut credential = cell::credential(arguments.url.as_ref())?;
    let url = format!("dfs://{}", cell::address(&credential));
    let personal = credential.personal.take().ok_or_else(|| cell::not_logged_in(&url))?;
    let store = cell::store()?;
    match credential.machine {
        Some(_) => store.save(&credential)?,
        None => {
            store.remove(&credential.host, credential.port)?;
        }
    }
    let entry = (credential.host.as_str(), credential.port);
    let request = Logout { renewal: personal.renewal };
    let told = async {
        Connection::public(entry, &credential.ca_pem, cell::policy(), cell::clock())?
            .call(Role::Auth, None, &request)
            .await
    };
    match told.await {
        Err(error) if !cell::is_login_gone(&error) => {
            let what = format!("forgot the login at {url}, but could not tell the server");
            return Err(Failure::fs(what, error));
        }
        _ => output.note(&format!("logged out of {url}")),
    }
    Ok(())
}

/// Whom the cell takes us for.
#[derive(Debug, Serialize)]
struct WhoReport {
    url: String,
    user: String,
    login: &'static str,
    is_admin: bool,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl WhoReport {
    fn new(url: String, reply: WhoAmIReply) -> WhoReport {
        let login = match reply.holder.act_as {
            ActAs::Personal { .. } => "personal",
            ActAs::Machine { .. } => "machine",
        };
        WhoReport {
            url,
            user: reply.holder.user,
            login,
            is_admin: reply.holder.is_admin,
            uid: reply.identity.uid,
            gid: reply.identity.gid,
            groups: reply.identity.groups,
        }
    }
}

impl Report for WhoReport {
    fn table(&self) -> Table {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let role = if self.is_admin { " (administrator)" } else { "" };
        Table::pairs([
            ("cell", self.url.clone()),
            ("user", format!("{}{role}", self.user)),
            ("login", self.login.to_owned()),
            ("uid", self.uid.to_string()),
            ("gid", self.gid.to_string()),
            ("groups", groups.join(" ")),
        ])
    }
}

/// # Errors
/// A [`Failure`] if there is no login, it is over, or nobody answers.
pub async fn whoami(arguments: &CellArgs, output: &mut Output) -> Result<(), Failure> {
    let credential = cell::credential(arguments.url.as_ref())?;
    let url = format!("dfs://{}", cell::address(&credential));
    let caller = cell::own_identity();
    let reply = cell::connect(&credential)?
        .call(Role::Auth, Some(&caller), &WhoAmI {})
        .await
        .about(|| format!("cannot ask {url} who you are"))?;
    output.show(&WhoReport::new(url, reply))
}

#[cfg(test)]
mod tests {
    use super::super::output::tests::captured;
    use super::*;
    use dfs_proto::credential::{Identity, TicketHolder};

    fn reply() -> WhoAmIReply {
        let identity = Identity { uid: 1000, gid: 100, groups: vec![7, 8] };
        let act_as = ActAs::Personal { identity: identity.clone() };
        WhoAmIReply {
            holder: TicketHolder { user: "ann".into(), act_as, is_admin: true },
            identity,
        }
    }

    #[test]
    fn whoami_is_shown_as_table_and_as_json() {
        let report = || WhoReport::new("dfs://h:7400".into(), reply());
        let (mut output, out, _) = captured(false);
        output.show(&report()).unwrap();
        let expected = "cell:    dfs://h:7400\nuser:    ann (administrator)\nlogin:   personal\n\
            uid:     1000\ngid:     100\ngroups:  7 8\n";
        assert_eq!(out.text(), expected);
        let (mut output, out, _) = captured(true);
        output.show(&report()).unwrap();
        assert_eq!(
            out.text(),
            "{\"url\":\"dfs://h:7400\",\"user\":\"ann\",\"login\":\"personal\",\"is_admin\":true,\
             \"uid\":1000,\"gid\":100,\"groups\":[7,8]}\n"
        );
    }
}
