//! Tickets: who signs them, and how every server checks them without asking.
//!
//! A ticket is a PASETO v4.public text (Ed25519): version and algorithm are fixed by its form, so
//! nothing in it can choose how it is checked. The cell's id is signed with it: a ticket of another
//! cell never verifies, even under the same key. One RPC in flight costs no signature check:
//! verified tickets are remembered by the hash of their text, and what can change (expiry,
//! revocation) is judged anew at every use.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pasetors::keys::{AsymmetricKeyPair, AsymmetricPublicKey, AsymmetricSecretKey, Generate};
use pasetors::token::UntrustedToken;
use pasetors::version4::{PublicToken, V4};
use pasetors::{Public, errors};
use serde::{Deserialize, Serialize};

use dfs_proto::FsError;
use dfs_proto::attr::Timestamp;
use dfs_proto::auth::{KeysReply, LoginId};
use dfs_proto::credential::{Ticket, TicketHolder};
use dfs_proto::id::parse_hex;
use dfs_proto::limits::{TICKET_BYTES_MAX, TICKET_LIFETIME};

use crate::cell::CellError;
use crate::cell::ca::Fingerprint;
use crate::durable_file::{self, Access};
use crate::secret;

/// How far the clocks of a cell's servers may be apart. Units: seconds.
pub const CLOCK_SKEW_SECS: i64 = 60;

/// Most tickets remembered as verified, in each of two generations.
///
/// Why: a ticket for each of 16,384 clients at about 500 bytes is 8 MiB; more clients cost more
/// signature checks and nothing else.
const REMEMBERED_MAX: usize = 16 << 10;

/// Version of the claims' shape.
const CLAIMS_VERSION: u32 = 1;

/// What a ticket says, as JSON. Times are wall-clock seconds since 1970.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    version: u32,
    cell: Fingerprint,
    holder: TicketHolder,
    /// Hexadecimal.
    login: String,
    issued: i64,
    expires: i64,
}

/// A ticket that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedTicket {
    pub holder: Arc<TicketHolder>,
    pub login: LoginId,
    pub expires: Timestamp,
}

/// Signs tickets. Only the auth service has one.
pub struct TicketSigner {
    secret: AsymmetricSecretKey<V4>,
    public: [u8; 32],
    cell: Fingerprint,
}

impl fmt::Debug for TicketSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketSigner(cell {})", self.cell)
    }
}

/// Largest key file. Units: bytes.
const KEY_FILE_BYTES_MAX: usize = 1024;

impl TicketSigner {
    /// Loads the key tickets are signed with, or makes one. A new key in place of a lost one ends
    /// all tickets, and clients renew: nothing else is lost.
    ///
    /// # Errors
    /// `File`, `Damaged` if the key cannot be read or written.
    pub fn load_or_make(path: &Path, cell: Fingerprint) -> Result<TicketSigner, CellError> {
        let file = |what, source| CellError::File { what, path: path.to_owned(), source };
        let damaged = || CellError::Damaged {
            path: path.to_owned(),
            why: "it is not a ticket key".to_owned(),
        };
        let stored =
            durable_file::read(path, KEY_FILE_BYTES_MAX).map_err(|error| file("read", error))?;
        if let Some(bytes) = stored {
            let text = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
            let bytes: [u8; 64] = parse_hex(text.trim_end()).ok_or_else(damaged)?;
            return TicketSigner::new(&bytes, cell).map_err(|_| damaged());
        }
        let pair = AsymmetricKeyPair::<V4>::generate().map_err(|_| damaged())?;
        let text = format!("{}\n", secret::hex(pair.secret.as_bytes()));
        durable_file::create_new(path, text.as_bytes(), Access::Private)
            .map_err(|error| file("write", error))?;
        TicketSigner::load_or_make(path, cell)
    }

    fn new(bytes: &[u8; 64], cell: Fingerprint) -> Result<TicketSigner, errors::Error> {
        // The library panics at this seed; a disk may well give zeros.
        if bytes[..32] == [0; 32] {
            return Err(errors::Error::Key);
        }
        let secret = AsymmetricSecretKey::from(bytes)?;
        let public = AsymmetricPublicKey::try_from(&secret)?;
        let public = public.as_bytes().try_into().map_err(|_| errors::Error::Key)?;
        Ok(TicketSigner { secret, public, cell })
    }

    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// A ticket for `holder`, valid from `now` for [`TICKET_LIFETIME`].
    ///
    /// # Errors
    /// `TooLarge` if the holder has more groups than a ticket can name.
    pub fn sign(
        &self,
        holder: &TicketHolder,
        login: LoginId,
        now: Timestamp,
    ) -> Result<Ticket, FsError> {
        let claims = Claims {
            version: CLAIMS_VERSION,
            cell: self.cell,
            holder: holder.clone(),
            login: secret::hex(&login.0),
            issued: now.secs,
            expires: now.secs + lifetime_secs(),
        };
        let message = serde_json::to_vec(&claims).expect("claims have string keys only");
        let text = PublicToken::sign(&self.secret, &message, None, Some(&assertion(self.cell)))
            .expect("the message is not empty and the key was checked");
        if text.len() > TICKET_BYTES_MAX {
            let what = "ticket of a user with so many groups".to_owned();
            return Err(FsError::TooLarge { what, limit: TICKET_BYTES_MAX as u64 });
        }
        Ok(Ticket::new(text))
    }
}

fn lifetime_secs() -> i64 {
    i64::try_from(TICKET_LIFETIME.as_secs()).expect("a ticket lives less than an age")
}

/// What is signed with every ticket and not in it.
fn assertion(cell: Fingerprint) -> Vec<u8> {
    format!("dfs ticket of cell {cell}").into_bytes()
}

/// Checks tickets. One for each process; cheap when a ticket was seen before.
pub struct TicketVerifier {
    cell: Fingerprint,
    state: Mutex<Known>,
}

impl fmt::Debug for TicketVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketVerifier(cell {})", self.cell)
    }
}

/// What a verifier was told, and what it has verified under that.
#[derive(Default)]
struct Known {
    key: Option<[u8; 32]>,
    revoked: HashSet<LoginId>,
    /// Verified under `key`; when the young are too many they become the old, and the old go.
    young: HashMap<[u8; 32], Arc<VerifiedTicket>>,
    old: HashMap<[u8; 32], Arc<VerifiedTicket>>,
}

impl Known {
    fn recall(&mut self, hash: &[u8; 32]) -> Option<Arc<VerifiedTicket>> {
        if let Some(verified) = self.young.get(hash) {
            return Some(Arc::clone(verified));
        }
        let verified = self.old.remove(hash)?;
        self.remember(*hash, Arc::clone(&verified));
        Some(verified)
    }

    fn remember(&mut self, hash: [u8; 32], verified: Arc<VerifiedTicket>) {
        if self.young.len() >= REMEMBERED_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, verified);
    }

    /// What may change after a ticket was verified.
    fn judge(
        &self,
        verified: Arc<VerifiedTicket>,
        now: Timestamp,
    ) -> Result<Arc<VerifiedTicket>, FsError> {
        if now.secs >= verified.expires.secs + CLOCK_SKEW_SECS {
            return Err(FsError::TicketExpired);
        }
        if self.revoked.contains(&verified.login) {
            return Err(refused("its login has ended: log in again"));
        }
        Ok(verified)
    }
}

impl TicketVerifier {
    /// A verifier for tickets of `cell`; it knows no keys yet.
    pub fn new(cell: Fingerprint) -> TicketVerifier {
        TicketVerifier { cell, state: Mutex::default() }
    }

    /// Takes over what the auth service says. A change takes effect with the next check.
    pub fn set_keys(&self, keys: KeysReply) {
        let mut known = self.known();
        if known.key != Some(keys.ticket_key) {
            known.young.clear();
            known.old.clear();
            known.key = Some(keys.ticket_key);
        }
        known.revoked = keys.revoked.into_iter().collect();
    }

    /// Refuses the tickets of a login from now on, until the next [`TicketVerifier::set_keys`].
    pub fn revoke(&self, login: LoginId) {
        self.known().revoked.insert(login);
    }

    /// Checks a ticket.
    ///
    /// # Errors
    /// `TicketExpired`; `TicketRefused` if it is forged, of another cell, revoked or no ticket;
    /// `Unavailable` if this process has not learned the keys yet.
    pub fn verify(&self, ticket: &Ticket, now: Timestamp) -> Result<Arc<VerifiedTicket>, FsError> {
        let text = ticket.expose();
        if text.len() > TICKET_BYTES_MAX {
            return Err(refused("it is too long"));
        }
        let hash = secret::sha256(text.as_bytes());
        let key = {
            let mut known = self.known();
            if let Some(verified) = known.recall(&hash) {
                return known.judge(verified, now);
            }
            known.key.ok_or_else(|| FsError::unavailable("this server has no ticket keys yet"))?
        };
        let verified = Arc::new(open(text, &key, self.cell, now)?);
        let mut known = self.known();
        // A ticket that was verified under a key that is gone must not be remembered.
        if known.key == Some(key) {
            known.remember(hash, Arc::clone(&verified));
        }
        known.judge(verified, now)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(why: &str) -> FsError {
    FsError::TicketRefused { why: why.to_owned() }
}

/// Checks signature and claims, but not what may change later.
fn open(
    text: &str,
    key: &[u8; 32],
    cell: Fingerprint,
    now: Timestamp,
) -> Result<VerifiedTicket, FsError> {
    let forged = |_| refused("it was not made by this cell's auth service");
    let key = AsymmetricPublicKey::<V4>::from(key).map_err(forged)?;
    let token = UntrustedToken::<Public, V4>::try_from(text)
        .map_err(|_| refused("it does not have the form of a ticket"))?;
    let trusted =
        PublicToken::verify(&key, &token, None, Some(&assertion(cell))).map_err(forged)?;
    let claims: Claims = serde_json::from_str(trusted.payload())
        .map_err(|_| refused("this server does not know its claims"))?;
    let login = parse_hex(&claims.login).map(LoginId);
    let (Some(login), CLAIMS_VERSION) = (login, claims.version) else {
        return Err(refused("this server does not know its claims"));
    };
    if claims.cell != cell {
        return Err(refused("it is of another cell"));
    }
    if claims.issued > now.secs + CLOCK_SKEW_SECS {
        let ahead = claims.issued - now.secs;
        let why = format!("it was made in the future: the servers' clocks differ by {ahead} s");
        return Err(refused(&why));
    }
    let expires = Timestamp::new(claims.expires, 0);
    Ok(VerifiedTicket { holder: Arc::new(claims.holder), login, expires })
}

#[cfg(test)]
mod tests;
