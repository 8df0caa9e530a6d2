//! Logins: who may renew tickets with which secret, and which logins have ended.
//!
//! A login begins with a password (or, for a machine, with the cell) and is known by a renewal
//! secret, of which only the hash is stored. Ending it deletes the secret and puts the login on the
//! revoked list for as long as a ticket of it may live; every server learns that list.

use serde::{Deserialize, Serialize};

use dfs_proto::auth::LoginId;
use dfs_proto::credential::{ActAs, TicketHolder};
use dfs_proto::limits::TICKET_LIFETIME;

use super::ticket::CLOCK_SKEW_SECS;
use super::{key, user};
use crate::meta::{Abort, Key, ReadTxn, Record, Txn};

const DAY_SECS: i64 = 24 * 3600;

/// A personal login that was not used for so long has ended. A machine's never does: a host that
/// was off for a while must mount again without anybody's help.
const IDLE_SECS_MAX: i64 = 30 * DAY_SECS;

/// A login's last use is written no more often than this: renewing costs no commit.
const LAST_USE_STEP_SECS: i64 = DAY_SECS;

/// For whom a login's tickets speak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginRight {
    /// The account as it is when a ticket is made: its groups and rights are not frozen here.
    Personal {
        user: String,
    },
    Machine {
        name: String,
        squash_root: bool,
    },
}

/// A login, found by the hash of its renewal secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginRow {
    pub login: LoginId,
    pub right: LoginRight,
    /// Units of both: wall-clock seconds since 1970.
    pub created: i64,
    pub last_used: i64,
}

impl Record for LoginRow {
    const VERSION: u8 = 1;
}

impl LoginRow {
    pub fn new(login: LoginId, right: LoginRight, now: i64) -> LoginRow {
        LoginRow { login, right, created: now, last_used: now }
    }

    pub fn has_ended(&self, now: i64) -> bool {
        matches!(self.right, LoginRight::Personal { .. }) && now - self.last_used >= IDLE_SECS_MAX
    }

    /// Whether it is a login with this user's password.
    pub fn is_of(&self, name: &str) -> bool {
        matches!(&self.right, LoginRight::Personal { user } if user == name)
    }

    /// Whether its last use should be written down.
    pub fn is_use_due(&self, now: i64) -> bool {
        now - self.last_used >= LAST_USE_STEP_SECS
    }

    /// What a ticket of this login says; `None` if its account is gone, or its logins are being
    /// ended.
    pub fn holder(&self, txn: &mut ReadTxn<'_>) -> Result<Option<TicketHolder>, Abort> {
        match &self.right {
            LoginRight::Personal { user } => {
                if txn.get(&key::ending(user))?.is_some() {
                    return Ok(None);
                }
                Ok(user::find(txn, user)?.map(|account| account.holder(user)))
            }
            LoginRight::Machine { name, squash_root } => Ok(Some(TicketHolder {
                user: name.clone(),
                act_as: ActAs::Machine { squash_root: *squash_root },
                is_admin: false,
            })),
        }
    }
}

/// A login that was ended while a ticket of it may still be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRow {
    pub login: LoginId,
    /// Units: wall-clock seconds since 1970. From then on no ticket of the login is valid.
    pub until: i64,
}

impl Record for RevokedRow {
    const VERSION: u8 = 1;
}

/// Marks a user whose logins are being ended; the argument is in `account`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndingRow {
    /// Units: wall-clock seconds since 1970.
    pub since: i64,
}

impl Record for EndingRow {
    const VERSION: u8 = 1;
}

/// Ends a login; `None` if there is none.
pub fn end(txn: &mut Txn<'_>, key: &Key<LoginRow>, now: i64) -> Result<Option<RevokedRow>, Abort> {
    let Some(row) = txn.get(key)? else {
        return Ok(None);
    };
    let lifetime = i64::try_from(TICKET_LIFETIME.as_secs()).unwrap_or(i64::MAX / 2);
    // Servers accept a ticket for one skew longer, and a renewal under way may have made one with a
    // clock that is another ahead.
    let until = now + lifetime + 2 * CLOCK_SKEW_SECS;
    let revoked = RevokedRow { login: row.login, until };
    txn.delete(key);
    txn.put(&key::revoked(row.login), revoked);
    Ok(Some(revoked))
}

/// Notes that a login was used, if it still exists.
pub fn note_use(txn: &mut Txn<'_>, hash: &[u8; 32], now: i64) -> Result<(), Abort> {
    if let Some(row) = txn.get(&key::login(hash))? {
        txn.put(&key::login(hash), LoginRow { last_used: now, ..(*row).clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::record;

    #[test]
    fn golden_bytes_do_not_move() {
        let right = LoginRight::Machine { name: "m".into(), squash_root: true };
        let row = LoginRow::new(LoginId([5; 16]), right, 1);
        let golden = [&[1][..], &[5; 16], &[1, 1, b'm', 1, 2, 2]].concat();
        assert_eq!(record::encode(&row).unwrap(), golden);
        let revoked = RevokedRow { login: LoginId([6; 16]), until: 3 };
        assert_eq!(record::encode(&revoked).unwrap(), [&[1][..], &[6; 16], &[6]].concat());
        assert_eq!(record::encode(&EndingRow { since: 4 }).unwrap(), [1, 8]);
    }

    #[test]
    fn a_personal_login_ends_after_thirty_idle_days_and_a_machines_never() {
        let personal = LoginRight::Personal { user: "anna".into() };
        let personal = LoginRow::new(LoginId([1; 16]), personal, 0);
        assert!(!personal.has_ended(30 * DAY_SECS - 1) && personal.has_ended(30 * DAY_SECS));
        let machine = LoginRight::Machine { name: "m".into(), squash_root: false };
        assert!(!LoginRow::new(LoginId([1; 16]), machine, 0).has_ended(i64::MAX));
    }
}
