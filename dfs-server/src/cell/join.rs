//! Entering a cell with a join token: the token's text form, and the joining process's side.
//!
//! A token names the cell's address, the fingerprint of its CA and a secret that works once. The
//! joining process fetches the CA from a server that it cannot verify yet, compares it with the
//! fingerprint, and only then sends the secret, over a connection that this CA vouches for. So
//! somebody in between learns nothing and can give nothing. What a crash interrupts is repeated
//! with the same key, which the cell recognises: neither a crash nor a lost reply uses a token up.
//! The cell's side is `admin::registry`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::{Join, JoinReply, Role};
use dfs_proto::client::retry::{RetryPolicy, retry};
use dfs_proto::client::{
    CallError, Client, Dial, HttpDialer, Peer, TransportError, fetch_unverified,
};
use dfs_proto::clock::Clock;
use dfs_proto::credential::Secret;
use dfs_proto::rpc::Envelope;

use super::ca::{self, Fingerprint};
use super::member::{Member, certificate_names};
use super::tls::Credentials;
use super::{Cell, CellDir, CellError, Wanted, map, read_text, write_file};
use crate::durable_file::{self, Access};

/// What every token begins with; its number is the version of the form.
const TOKEN_PREFIX: &str = "dfs1:";

/// Random part of a token. Units: bytes.
pub const TOKEN_SECRET_BYTES: usize = 16;

/// Where servers show the CA's certificate.
pub const CA_PATH: &str = "/ca.pem";

/// A one-time right to enter a cell. Text form: `dfs1:HOST:PORT:FINGERPRINT:SECRET`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub host: String,
    pub port: u16,
    pub fingerprint: Fingerprint,
    pub secret: Secret,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}:{}, {})", self.host, self.port, self.fingerprint)
    }
}

impl JoinToken {
    /// The text that people pass on. All of it is secret.
    pub fn to_text(&self) -> Secret {
        let JoinToken { host, port, fingerprint, secret } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Secret::new(format!("{TOKEN_PREFIX}{host}:{port}:{fingerprint}:{}", secret.expose()))
    }
}

/// What is wrong with the text of a join token. Never shows the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    #[error("join token does not begin with `{TOKEN_PREFIX}`")]
    Prefix,
    #[error("join token is cut short: it has less than host, port, fingerprint and secret")]
    Short,
    #[error("join token names no host")]
    Host,
    #[error("join token's port is not a number from 1 to 65535")]
    Port,
    #[error("join token's fingerprint is not 64 hexadecimal digits: was it copied whole?")]
    Fingerprint,
    #[error(
        "join token's secret is not {} hexadecimal digits: was it copied whole?",
        2 * TOKEN_SECRET_BYTES
    )]
    Secret,
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<JoinToken, JoinTokenError> {
        // Terminals and mail break long lines.
        let text: String = text.split_whitespace().collect();
        let rest = text.strip_prefix(TOKEN_PREFIX).ok_or(JoinTokenError::Prefix)?;
        // From the right: only the host may contain colons.
        let mut parts = rest.rsplitn(4, ':');
        let mut next = || parts.next().ok_or(JoinTokenError::Short);
        let (secret, fingerprint, port, host) = (next()?, next()?, next()?, next()?);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(JoinTokenError::Host);
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(JoinTokenError::Port)?;
        let fingerprint = fingerprint.parse().map_err(|_| JoinTokenError::Fingerprint)?;
        let is_secret = secret.len() == 2 * TOKEN_SECRET_BYTES
            && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_secret {
            return Err(JoinTokenError::Secret);
        }
        let secret = Secret::new(secret.to_ascii_lowercase());
        Ok(JoinToken { host: host.to_owned(), port, fingerprint, secret })
    }
}

/// Why a process did not enter the cell.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Cell(#[from] CellError),
    #[error(
        "the server at {whom} is not of the token's cell: its CA has the fingerprint {found}, the \
         token names {expected}"
    )]
    WrongCa { whom: String, expected: Fingerprint, found: Fingerprint },
    #[error("the server at {whom} shows no CA certificate")]
    NoCa { whom: String },
    #[error("this data directory is of the cell {has} already, the token is for {token}")]
    OtherCell { has: Fingerprint, token: Fingerprint },
    #[error("the cell did not let this process in: {0}")]
    Refused(#[source] FsError),
    #[error("cannot reach the cell")]
    Transport(#[source] TransportError),
    #[error("the cell's answer does not fit what was asked: {0}")]
    BadReply(&'static str),
}

impl From<CallError> for JoinError {
    fn from(error: CallError) -> JoinError {
        match error {
            CallError::Fs(error) => JoinError::Refused(error),
            CallError::Transport(error) => JoinError::Transport(error),
        }
    }
}

/// How a process that is of no cell yet wants to enter one.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub token: &'a JoinToken,
    pub data_dir: &'a Path,
    pub wanted: Wanted<'a>,
    pub clock: &'a dyn Clock,
}

/// How often an unreachable cell is asked again: for ever, since nodes start in any order.
const RETRY: RetryPolicy = RetryPolicy {
    first_delay: Duration::from_millis(200),
    delay_max: Duration::from_secs(10),
    give_up_after: None,
};

/// Enters the cell, or opens the place in it that an earlier call got. Waits while the cell cannot
/// be reached, and says so in the log. Cancel-safe: calling it again goes on where it was.
///
/// # Errors
/// `WrongCa`, `NoCa` if the server is not of the token's cell (nothing secret was sent); `Refused`
/// if the token is used, expired or for other roles; `OtherCell` if the data directory is of
/// another cell; `Cell` if files cannot be read or written.
pub async fn enter(entry: Entry<'_>) -> Result<Cell, JoinError> {
    let dir = CellDir::of(entry.data_dir);
    let token = entry.token;
    if let Some(member) = Member::load(&dir)? {
        if member.cell != token.fingerprint {
            return Err(JoinError::OtherCell { has: member.cell, token: token.fingerprint });
        }
        return Ok(Cell::open(entry.data_dir, entry.wanted, entry.clock.wall())?);
    }
    durable_file::create_dir(dir.path()).map_err(CellError::file("make", dir.path()))?;
    refuse_founder(&dir)?;
    let ca_pem = fetch_ca(entry).await?;
    let key = ca::load_or_make_key(&dir.node_key())?;
    let request = Join {
        secret: token.secret.clone(),
        request_pem: ca::signing_request(&key)?,
        roles: entry.wanted.sorted_roles(),
        file_nodes: entry.wanted.file_node_count()?,
    };
    let reply = ask(entry, &ca_pem, &request).await?;
    let key_pem = Secret::new(key.serialize_pem());
    check_reply(&reply, &request)?;
    let credentials = Credentials::new(ca_pem, reply.certificate_pem.clone(), key_pem)?;
    let names = certificate_names(&request.roles, reply.node, &reply.file_nodes);
    credentials.check(&names, entry.clock.wall())?;
    settle(&dir, token, &credentials, reply, request.roles)?;
    Ok(Cell::open(entry.data_dir, entry.wanted, entry.clock.wall())?)
}

/// A directory with a CA's key is a founder's whose `node.toml` was lost: joining would bury it.
fn refuse_founder(dir: &CellDir) -> Result<(), JoinError> {
    if read_text(&dir.ca_key())?.is_none() {
        return Ok(());
    }
    let remedy = "this data directory has founded a cell; start it with the auth role";
    Err(CellError::Missing { path: dir.member(), remedy }.into())
}

/// PEM of the cell's CA certificate, compared with the token.
async fn fetch_ca(entry: Entry<'_>) -> Result<String, JoinError> {
    let JoinToken { host, port, fingerprint, .. } = entry.token;
    let whom = format!("{host}:{port}");
    let pem = retry(entry.clock, RETRY, |_| async {
        let fetched = fetch_unverified(host, *port, CA_PATH).await;
        fetched.map_err(CallError::from).inspect_err(|error| log_wait(&whom, error))
    })
    .await?;
    let found = Fingerprint::of_pem(&pem).ok_or(JoinError::NoCa { whom: whom.clone() })?;
    if found != *fingerprint {
        return Err(JoinError::WrongCa { whom, expected: *fingerprint, found });
    }
    String::from_utf8(pem.to_vec()).map_err(|_| JoinError::NoCa { whom })
}

async fn ask(entry: Entry<'_>, ca_pem: &str, request: &Join) -> Result<JoinReply, JoinError> {
    let JoinToken { host, port, .. } = entry.token;
    let whom = format!("{host}:{port}");
    let peer = Peer { role: Some(Role::Auth), node: None, host: host.clone(), port: *port };
    let dialer = HttpDialer::new(ca_pem.to_owned(), None);
    let client = Client::new(dialer.dial(&peer).map_err(JoinError::Transport)?);
    let envelope = Envelope::default();
    let answer = retry(entry.clock, RETRY, |_| async {
        let answered = client.call(&envelope, request, Vec::new()).await;
        answered.inspect_err(|error| log_wait(&whom, error))
    })
    .await?;
    Ok(answer.reply)
}

fn log_wait(whom: &str, error: &CallError) {
    if error.is_transient() {
        tracing::warn!(whom, %error, "waiting for the cell to join");
    }
}

fn check_reply(reply: &JoinReply, request: &Join) -> Result<(), JoinError> {
    if reply.file_nodes.len() != request.file_nodes as usize {
        return Err(JoinError::BadReply("it has another number of file nodes"));
    }
    if reply.file_nodes.contains(&reply.node) {
        return Err(JoinError::BadReply("it gives one node id twice"));
    }
    Ok(())
}

/// Writes what was got; `node.toml` last, since it says that all is there.
fn settle(
    dir: &CellDir,
    token: &JoinToken,
    credentials: &Credentials,
    reply: JoinReply,
    roles: Vec<Role>,
) -> Result<(), CellError> {
    let JoinReply { node, file_nodes, certificate_pem, map: mut cell_map } = reply;
    write_file(&dir.ca_certificate(), credentials.ca_pem().as_bytes(), Access::Public)?;
    write_file(&dir.node_certificate(), certificate_pem.as_bytes(), Access::Public)?;
    map::resolve_hosts(&mut cell_map, &token.host);
    map::store(dir, &cell_map)?;
    Member::new(token.fingerprint, node, file_nodes, roles).store(dir)?;
    tracing::info!(%node, "entered the cell");
    Ok(())
}

#[cfg(test)]
mod tests;
