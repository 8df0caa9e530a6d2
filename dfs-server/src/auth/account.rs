//! What becomes of accounts once they are made: their list, other passwords, their end.
//!
//! Removal, and a password that an administrator sets, end the account's logins. Logins are found
//! by their secrets and not by their user: all of them have to be looked through, which is more
//! than one transaction may hold. So the transaction that changes the account leaves a mark:
//!
//! 1. While a user is marked, no login of theirs is begun or renewed, and no account of that name
//!    is made.
//! 2. Whoever finds the mark ends the user's logins, a batch at a time: the request itself, its
//!    repetition, the next start, the hourly sweep.
//! 3. The mark goes when a look through all logins has ended. By rule 1 none is left then.
//!
//! So a crash in between leaves no login that works, and none that a later account of the same name
//! would find again.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::auth::{ChangePassword, RemoveUser, SetPassword, UserEntry, Users, UsersReply};
use dfs_proto::credential::{ActAs, Secret};
use dfs_proto::limits::{PASSWORD_BYTES_MAX, USER_PAGE_ENTRIES_MAX};

use super::limit::Attempt;
use super::login::{self, EndingRow, LoginRow};
use super::password::{self, PasswordText};
use super::user::{self, AccountRow};
use super::{AuthService, SWEEP_ROWS, key};
use crate::ledger::{OpTag, Ran, answer_of, run_once};
use crate::meta::key::after;
use crate::meta::{Abort, Durability, Key, ReadTxn, Txn};
use crate::request::{Context, Peer};
use crate::secret;

/// Most users whose logins are ended at one start or in one sweep; the rest follows with the next.
const ENDINGS_MAX: usize = 1024;

impl AuthService {
    /// `auth.users`.
    ///
    /// # Errors
    /// `InvalidArgument` if the page is to begin after what is no name.
    pub async fn users(&self, request: Users) -> Result<UsersReply, FsError> {
        let (first, to) = key::accounts();
        let from = match &request.after {
            None => first,
            Some(name) if user::is_user_name(name) => after(key::account(name).bytes()),
            Some(_) => return Err(FsError::invalid("user name that the page begins after")),
        };
        let limit = USER_PAGE_ENTRIES_MAX + 1;
        let mut rows = self.store.scan::<AccountRow>(from, to, limit).await?;
        let is_last = rows.len() < limit;
        rows.truncate(USER_PAGE_ENTRIES_MAX);
        let entry = |(key, row): &(Vec<u8>, Arc<AccountRow>)| UserEntry {
            user: key::account_name(key),
            identity: row.identity(),
            is_admin: row.is_admin,
            created_secs: row.created,
        };
        Ok(UsersReply { users: rows.iter().map(entry).collect(), is_last })
    }

    /// `auth.remove_user`. Asked again under the same op id, it completes what is left to do.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for the administrator that the cell began with.
    pub async fn remove_user(&self, context: &Context, request: RemoveUser) -> Result<(), FsError> {
        self.change_ending_logins(context, &request.user, user::remove).await?;
        tracing::info!(user = request.user, by = context.user(), "removed an account");
        Ok(())
    }

    /// `auth.set_password`. Asked again under the same op id, it completes what is left to do.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what a password cannot be.
    pub async fn set_password(
        &self,
        context: &Context,
        request: SetPassword,
    ) -> Result<(), FsError> {
        let hashed = self.hashed(request.password).await?;
        let change =
            move |txn: &mut Txn<'_>, name: &str| user::put_password(txn, name, hashed.clone());
        self.change_ending_logins(context, &request.user, change).await?;
        tracing::info!(user = request.user, by = context.user(), "set a password");
        Ok(())
    }

    /// Changes an account once for its op id, and ends its logins.
    async fn change_ending_logins(
        &self,
        context: &Context,
        user: &str,
        change: impl Fn(&mut Txn<'_>, &str) -> Result<(), Abort> + Send + 'static,
    ) -> Result<(), FsError> {
        let tag = OpTag::of(context, key::ledger, self.clock.wall())?;
        let name = user.to_owned();
        let work = move |txn: &mut Txn<'_>| {
            run_once(txn, &tag, |txn| {
                change(txn, &name)?;
                txn.put(&key::ending(&name), EndingRow { since: tag.now.secs });
                Ok(Ran::Changed(()))
            })
        };
        self.store.write(Durability::Stable, work).await?;
        self.end_logins(user).await
    }

    /// `auth.change_password`: for the bearer's own account, whose logins go on.
    ///
    /// # Errors
    /// `LoginRefused` if the old password is wrong; `RateLimited` as a login; `InvalidArgument` for
    /// what a password cannot be; `NotPermitted` for a machine, which has none.
    pub async fn change_password(
        &self,
        context: &Context,
        request: ChangePassword,
    ) -> Result<(), FsError> {
        let name = personal_name(context)?;
        let tag = OpTag::of(context, key::ledger, self.clock.wall())?;
        let peer = context.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let attempt = Attempt::new(&name, peer);
        self.limit.check(&attempt, self.clock.boottime())?;
        // Of one state: done before, the old password is not the account's any more.
        let find =
            |txn: &mut ReadTxn<'_>| Ok((answer_of::<()>(txn, &tag)?, user::find(txn, &name)?));
        let (answer, account) = self.store.read(find).await?;
        if answer.is_some() {
            return Ok(());
        }
        let ChangePassword { old, new } = request;
        password::check_strength(&new)?;
        let judged = account.as_ref().map(|account| account.password.clone());
        let is_right = old.expose().len() <= PASSWORD_BYTES_MAX
            && self.is_right(attempt, old, account.as_deref()).await?;
        let Some(judged) = judged.filter(|_| is_right) else {
            tracing::info!(user = name, %peer, "password change refused");
            return Err(FsError::LoginRefused);
        };
        let hashed = self.hashed(new).await?;
        let user = name.clone();
        let work = move |txn: &mut Txn<'_>| {
            run_once(txn, &tag, |txn| {
                user::require_current(txn, &user, &judged)?;
                user::put_password(txn, &user, hashed.clone()).map(Ran::Changed)
            })
        };
        self.store.write(Durability::Stable, work).await?;
        tracing::info!(user = name, %peer, "changed the password");
        Ok(())
    }

    /// What is stored of a password that an account may have.
    async fn hashed(&self, password: Secret) -> Result<PasswordText, FsError> {
        password::check_strength(&password)?;
        let salt = secret::random();
        self.desk.run(move || password::hash(&password, salt)).await
    }

    /// Ends the logins of every marked user.
    pub(super) async fn end_marked_logins(&self) -> Result<(), FsError> {
        let (from, to) = key::endings();
        for (key, _) in self.store.scan::<EndingRow>(from, to, ENDINGS_MAX).await? {
            self.end_logins(&key::account_name(&key)).await?;
        }
        Ok(())
    }

    /// Ends the logins of a user if they are marked, and takes the mark away (rules 2 and 3).
    pub(super) async fn end_logins(&self, user: &str) -> Result<(), FsError> {
        let mark = key::ending(user);
        if self.store.read(|txn| txn.get(&mark)).await?.is_none() {
            return Ok(());
        }
        let (mut from, to) = key::logins();
        loop {
            let rows = self.store.scan::<LoginRow>(from, to.clone(), SWEEP_ROWS).await?;
            let Some((last, _)) = rows.last() else { break };
            from = after(last);
            let theirs = rows.into_iter().filter(|(_, row)| row.is_of(user));
            self.end_batch(theirs.map(|(key, _)| Key::from_bytes(key)).collect()).await?;
        }
        let unmark = move |txn: &mut Txn<'_>| {
            txn.delete(&mark);
            Ok(())
        };
        self.store.write(Durability::Stable, unmark).await
    }

    async fn end_batch(&self, keys: Vec<Key<LoginRow>>) -> Result<(), FsError> {
        if keys.is_empty() {
            return Ok(());
        }
        let now = self.clock.wall().secs;
        self.require_room_for_revoked(keys.len(), now)?;
        let end = move |txn: &mut Txn<'_>| {
            keys.iter().for_each(|key| txn.want(key));
            let ended = keys.iter().map(|key| login::end(txn, key, now));
            ended.collect::<Result<Vec<_>, _>>()
        };
        let ended = self.store.write(Durability::Stable, end).await?;
        ended.into_iter().flatten().for_each(|ended| self.note_ended(ended));
        Ok(())
    }
}

/// The account that the bearer of a personal ticket has.
fn personal_name(context: &Context) -> Result<String, FsError> {
    match &context.peer {
        Peer::User(holder) if matches!(holder.act_as, ActAs::Personal { .. }) => {
            Ok(holder.user.clone())
        }
        Peer::User(_) | Peer::Node(_) | Peer::Local | Peer::Anonymous => Err(FsError::NotPermitted),
    }
}
