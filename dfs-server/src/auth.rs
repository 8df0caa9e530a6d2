//! The auth service: accounts, logins and tickets.
//!
//! Owns the rows of `Space::AUTH` and the key tickets are signed with. Promises: a wrong password,
//! a user that does not exist and an ended login are refused with one error, after the same work;
//! what a call answered survives power loss; no password and no renewal secret is stored in a form
//! that can be used. The router calls the handlers; every process checks tickets through its
//! [`TicketVerifier`]. It knows no files and no sessions.

mod account;
mod key;
mod limit;
mod login;
mod password;
pub mod ticket;
mod user;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::FsError;
use dfs_proto::auth::{
    AddUser, Keys, KeysReply, Login, LoginId, LoginReply, Logout, Renew, RenewReply, WhoAmIReply,
};
use dfs_proto::clock::Clock;
use dfs_proto::credential::{Identity, Secret, Ticket};
use dfs_proto::limits::{PASSWORD_BYTES_MAX, TICKET_LIFETIME};

use crate::cell::bootstrap::{Bootstrap, BootstrapFile};
use crate::cell::ca::Fingerprint;
use crate::cell::{CellDir, CellError};
use crate::ledger::{self, OpTag, Ran, run_once};
use crate::meta::key::after;
use crate::meta::{Durability, Key, ReadTxn, Store, Txn};
use crate::request::{Context, Peer};
use crate::secret;
use limit::{Attempt, LoginLimit};
use login::{LoginRight, LoginRow, RevokedRow};
use password::HashDesk;
use ticket::{TicketSigner, TicketVerifier};
use user::{AccountRow, AuthStateRow, UidRow};

/// The name of the machine whose secret the first start makes.
const FIRST_MACHINE: &str = "machine";

/// Most ended logins that are remembered at once. Why: their list, 16 bytes each, must fit a reply.
const REVOKED_MAX: usize = 100_000;

/// Rows looked at in one step of [`AuthService::sweep`].
const SWEEP_ROWS: usize = 1024;

/// Why the auth service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuthStartError {
    #[error(transparent)]
    Cell(#[from] CellError),
    #[error("cannot read the accounts")]
    Store(#[from] FsError),
    #[error(
        "the cell has been set up, but its metadata has no accounts: the metadata file was lost or \
         replaced; restore it from a backup"
    )]
    AccountsLost,
    #[error("the first start was interrupted with another CA; {} does not fit", file.display())]
    PendingOfOtherCa { file: std::path::PathBuf },
}

/// What the service stands on.
#[derive(Debug)]
pub struct AuthParts {
    /// The store of `Space::AUTH`.
    pub store: Store,
    pub dir: CellDir,
    /// The cell's id.
    pub cell: Fingerprint,
    pub clock: Arc<dyn Clock>,
}

/// The auth service of one process.
#[derive(Debug)]
pub struct AuthService {
    store: Store,
    signer: TicketSigner,
    verifier: Arc<TicketVerifier>,
    limit: Arc<LoginLimit>,
    desk: HashDesk,
    /// Ended logins, and until when their tickets matter. Units: wall-clock seconds.
    revoked: Mutex<HashMap<LoginId, i64>>,
    clock: Arc<dyn Clock>,
}

impl AuthService {
    /// Opens the service on its rows; makes the ticket key if there is none.
    ///
    /// # Errors
    /// `Cell` if the ticket key cannot be read or made, `Store` if the rows cannot be read.
    pub async fn open(parts: AuthParts) -> Result<AuthService, AuthStartError> {
        let AuthParts { store, dir, cell, clock } = parts;
        let signer = TicketSigner::load_or_make(&dir.ticket_key(), cell)?;
        let (from, to) = key::all_revoked();
        let rows = store.scan::<RevokedRow>(from, to, REVOKED_MAX).await?;
        let revoked = rows.iter().map(|(_, row)| (row.login, row.until)).collect();
        let service = AuthService {
            store,
            signer,
            verifier: Arc::new(TicketVerifier::new(cell)),
            limit: Arc::default(),
            desk: HashDesk::default(),
            revoked: Mutex::new(revoked),
            clock,
        };
        // What a crash left to do, before anybody is let in.
        if let Err(error) = service.end_marked_logins().await {
            tracing::warn!(%error, "logins of some users are still to be ended");
        }
        service.verifier.set_keys(service.keys(&Keys {}));
        Ok(service)
    }

    /// Checks tickets in this process; knows at once what this service decides.
    pub fn verifier(&self) -> Arc<TicketVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Makes the first accounts and `bootstrap.toml`, or completes what a crash interrupted; at
    /// every later start only keeps the file's `url` current. The order is argued in
    /// `cell::bootstrap`.
    ///
    /// # Errors
    /// `AccountsLost` if the cell was set up and the accounts are gone; `Cell` and `Store` if files
    /// or rows cannot be read or written.
    pub async fn first_start(
        &self,
        file: &BootstrapFile,
        url: &str,
        ca: Fingerprint,
    ) -> Result<(), AuthStartError> {
        let has_accounts = self.store.read(|txn| Ok(txn.get(&key::state())?.is_some())).await?;
        let bootstrap = match file.load_pending()? {
            Some(pending) if pending.ca_fingerprint != ca => {
                return Err(AuthStartError::PendingOfOtherCa { file: file.path().to_owned() });
            }
            Some(pending) => Bootstrap { url: url.to_owned(), ..pending },
            None if has_accounts => return Ok(file.update_url(url)?),
            None if file.is_published() => return Err(AuthStartError::AccountsLost),
            None => Bootstrap::make(url.to_owned(), ca),
        };
        file.store_pending(&bootstrap)?;
        self.install(&bootstrap).await?;
        file.publish()?;
        tracing::info!(file = %file.path().display(), "made the first administrator");
        Ok(())
    }

    /// Makes the accounts of a bootstrap, if there are none.
    async fn install(&self, bootstrap: &Bootstrap) -> Result<(), FsError> {
        let created = self.clock.wall().secs;
        let (password, salt) = (bootstrap.password.clone(), secret::random());
        let password = self.desk.run(move || password::hash(&password, salt)).await?;
        let administrator =
            AccountRow { uid: 0, groups: Vec::new(), is_admin: true, password, created };
        let right = LoginRight::Machine { name: FIRST_MACHINE.to_owned(), squash_root: false };
        let machine = LoginRow::new(LoginId(secret::random()), right, created);
        let machine_key = key::login(&secret::stored_form(&bootstrap.machine_secret));
        let user = bootstrap.user.clone();
        let work = move |txn: &mut Txn<'_>| {
            if txn.get(&key::state())?.is_some() {
                return Ok(());
            }
            txn.put(&key::uid(administrator.uid), UidRow { user: user.clone() });
            txn.put(&key::account(&user), administrator.clone());
            txn.put(&machine_key, machine.clone());
            txn.put(&key::state(), AuthStateRow::default());
            Ok(())
        };
        self.store.write(Durability::Stable, work).await
    }

    /// `auth.login`.
    ///
    /// # Errors
    /// `LoginRefused` for whatever is wrong; `RateLimited` after too many failures of this user or
    /// from this peer.
    pub async fn login(&self, context: &Context, request: Login) -> Result<LoginReply, FsError> {
        let Login { user, password } = request;
        // A call of the own process comes from this host.
        let peer = context.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let attempt = Attempt::new(&user, peer);
        self.limit.check(&attempt, self.clock.boottime())?;
        if password.expose().len() > PASSWORD_BYTES_MAX {
            return Err(FsError::LoginRefused);
        }
        let account = self.store.read(|txn| user::find(txn, &user)).await?;
        let is_right = self.is_right(attempt, password, account.as_deref()).await?;
        let Some(account) = account.filter(|_| is_right) else {
            tracing::info!(user = known_form(&user), %peer, "login refused");
            return Err(FsError::LoginRefused);
        };
        let holder = account.holder(&user);
        let (login, ticket, renewal) = self.begin_login(&user, &account).await?;
        tracing::info!(user, %peer, login = secret::hex(&login.0), "logged in");
        Ok(LoginReply { ticket, holder, lifetime_secs: lifetime_secs(), renewal })
    }

    /// Checks a password where hashing happens. A guess counts from its beginning, so neither many
    /// at once nor a peer that hangs up gets more than its share.
    async fn is_right(
        &self,
        attempt: Attempt,
        password: Secret,
        account: Option<&AccountRow>,
    ) -> Result<bool, FsError> {
        let stored = account.map(|account| account.password.clone());
        let (limit, clock) = (Arc::clone(&self.limit), Arc::clone(&self.clock));
        let guess = move || {
            limit.begin(&attempt, clock.boottime())?;
            let is_right = password::verify(&password, stored.as_deref());
            if is_right {
                limit.forgive(&attempt);
            }
            Ok(is_right)
        };
        self.desk.run(guess).await?
    }

    async fn begin_login(
        &self,
        user: &str,
        account: &AccountRow,
    ) -> Result<(LoginId, Ticket, Secret), FsError> {
        let (login, renewal, now) =
            (LoginId(secret::random()), secret::random_hex::<32>(), self.clock.wall());
        let ticket = self.signer.sign(&account.holder(user), login, now)?;
        let row_key = key::login(&secret::stored_form(&renewal));
        let row = LoginRow::new(login, LoginRight::Personal { user: user.to_owned() }, now.secs);
        let (user, judged) = (user.to_owned(), account.password.clone());
        let work = move |txn: &mut Txn<'_>| {
            user::require_current(txn, &user, &judged)?;
            txn.put(&row_key, row.clone());
            Ok(())
        };
        self.store.write(Durability::Stable, work).await?;
        Ok((login, ticket, renewal))
    }

    /// `auth.renew`.
    ///
    /// # Errors
    /// `LoginRefused` if the secret is of no login, or of one that has ended.
    pub async fn renew(&self, request: Renew) -> Result<RenewReply, FsError> {
        let hash = secret::stored_form(&request.renewal);
        let now = self.clock.wall();
        let find = |txn: &mut ReadTxn<'_>| {
            let Some(row) = txn.get(&key::login(&hash))?.filter(|row| !row.has_ended(now.secs))
            else {
                return Ok(None);
            };
            Ok(row.holder(txn)?.map(|holder| (row, holder)))
        };
        let (row, holder) = self.store.read(find).await?.ok_or(FsError::LoginRefused)?;
        if row.is_use_due(now.secs) {
            // Lost in a power cut it is written by the next renewal.
            let note = move |txn: &mut Txn<'_>| login::note_use(txn, &hash, now.secs);
            self.store.write(Durability::Process, note).await?;
        }
        let ticket = self.signer.sign(&holder, row.login, now)?;
        Ok(RenewReply { ticket, holder, lifetime_secs: lifetime_secs() })
    }

    /// `auth.logout`. An unknown secret is no error.
    ///
    /// # Errors
    /// `Unavailable` if absurdly many logins were ended within the life of a ticket.
    pub async fn logout(&self, request: Logout) -> Result<(), FsError> {
        let hash = secret::stored_form(&request.renewal);
        let now = self.clock.wall().secs;
        self.require_room_for_revoked(1, now)?;
        let end = move |txn: &mut Txn<'_>| login::end(txn, &key::login(&hash), now);
        if let Some(ended) = self.store.write(Durability::Stable, end).await? {
            self.note_ended(ended);
        }
        Ok(())
    }

    fn require_room_for_revoked(&self, count: usize, now: i64) -> Result<(), FsError> {
        self.drop_old_revoked(now);
        if self.revoked().len() + count > REVOKED_MAX {
            return Err(FsError::unavailable("too many logins were ended within the hour"));
        }
        Ok(())
    }

    /// Refuses the tickets of a login that was ended.
    fn note_ended(&self, ended: RevokedRow) {
        self.revoked().insert(ended.login, ended.until);
        self.verifier.revoke(ended.login);
        tracing::info!(login = secret::hex(&ended.login.0), "logged out");
    }

    /// `auth.whoami`.
    ///
    /// # Errors
    /// `Unauthenticated` if a node asks: it has no ticket.
    pub fn whoami(&self, context: &Context) -> Result<WhoAmIReply, FsError> {
        let Peer::User(holder) = &context.peer else {
            return Err(FsError::Unauthenticated);
        };
        Ok(WhoAmIReply { holder: (**holder).clone(), identity: context.identity.clone() })
    }

    /// `auth.keys`. Answers from memory.
    pub fn keys(&self, _request: &Keys) -> KeysReply {
        self.drop_old_revoked(self.clock.wall().secs);
        let revoked = self.revoked().keys().copied().collect();
        KeysReply { ticket_key: self.signer.public_key(), revoked }
    }

    /// `auth.add_user`. Asked again under the same op id, it gives the first answer again.
    ///
    /// # Errors
    /// `InvalidArgument`, `TooLarge` for what an account cannot be; `Exists` if the name or the uid
    /// is taken.
    pub async fn add_user(&self, context: &Context, request: AddUser) -> Result<Identity, FsError> {
        let tag = OpTag::of(context, key::ledger, self.clock.wall())?;
        user::check(&request)?;
        password::check_strength(&request.password)?;
        let AddUser { user: name, password, uid, mut groups, is_admin } = request;
        groups.sort_unstable();
        groups.dedup();
        let salt = secret::random();
        let password = self.desk.run(move || password::hash(&password, salt)).await?;
        let created = tag.now.secs;
        let account = AccountRow { uid: 0, groups, is_admin, password, created };
        self.end_logins(&name).await?;
        let user = name.clone();
        let work = move |txn: &mut Txn<'_>| {
            run_once(txn, &tag, |txn| user::add(txn, &name, uid, account.clone()).map(Ran::Changed))
        };
        let identity = self.store.write(Durability::Stable, work).await?;
        tracing::info!(user, uid = identity.uid, is_admin, by = context.user(), "made an account");
        Ok(identity)
    }

    /// Ends the logins of marked users; deletes logins that ended by themselves, revocations that
    /// no ticket needs any more, and what is remembered of operations for too long. For a
    /// background worker; once an hour is often.
    ///
    /// # Errors
    /// What the store reports; what was deleted stays deleted.
    pub async fn sweep(&self) -> Result<(), FsError> {
        let now = self.clock.wall();
        self.end_marked_logins().await?;
        self.sweep_logins(now.secs).await?;
        // Those who administer open no sessions.
        let is_live = |_| false;
        ledger::sweep(&self.store, key::ledgers(), now, is_live).await
    }

    async fn sweep_logins(&self, now: i64) -> Result<(), FsError> {
        let (mut from, to) = key::logins();
        loop {
            let rows = self.store.scan::<LoginRow>(from, to.clone(), SWEEP_ROWS).await?;
            let Some((last, _)) = rows.last() else { break };
            from = after(last);
            let ended = rows.iter().filter(|(_, row)| row.has_ended(now));
            let keys = ended.map(|(key, _)| key.clone()).collect();
            self.delete_logins(keys, now).await?;
        }
        let (from, to) = key::all_revoked();
        let rows = self.store.scan::<RevokedRow>(from, to, REVOKED_MAX).await?;
        let over = rows.iter().filter(|(_, row)| row.until <= now);
        let over: Vec<LoginId> = over.map(|(_, row)| row.login).collect();
        if over.is_empty() {
            return Ok(());
        }
        let delete = move |txn: &mut Txn<'_>| {
            over.iter().for_each(|login| txn.delete(&key::revoked(*login)));
            Ok(())
        };
        self.store.write(Durability::Process, delete).await
    }

    /// Deletes those of the logins that are still over; one may have been used since it was found.
    async fn delete_logins(&self, keys: Vec<Vec<u8>>, now: i64) -> Result<(), FsError> {
        if keys.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = keys.into_iter().map(Key::<LoginRow>::from_bytes).collect();
        let delete = move |txn: &mut Txn<'_>| {
            for (key, row) in keys.iter().zip(txn.get_all(&keys)?) {
                if row.is_some_and(|row| row.has_ended(now)) {
                    txn.delete(key);
                }
            }
            Ok(())
        };
        self.store.write(Durability::Process, delete).await
    }

    fn drop_old_revoked(&self, now: i64) {
        self.revoked().retain(|_, until| *until > now);
    }

    fn revoked(&self) -> MutexGuard<'_, HashMap<LoginId, i64>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Units: seconds.
fn lifetime_secs() -> u32 {
    u32::try_from(TICKET_LIFETIME.as_secs()).unwrap_or(u32::MAX)
}

/// A name for the log: what is none may be anything, a password typed into the wrong field.
fn known_form(user: &str) -> &str {
    if user::is_user_name(user) { user } else { "(not a user name)" }
}

#[cfg(test)]
mod tests;
