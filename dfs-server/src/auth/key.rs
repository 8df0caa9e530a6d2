//! The keys of the auth service's rows.

use dfs_proto::auth::LoginId;
use dfs_proto::id::SessionId;

use super::login::{EndingRow, LoginRow, RevokedRow};
use super::user::{AccountRow, AuthStateRow, UidRow};
use crate::ledger::LedgerRow;
use crate::meta::key::{parts, prefix, prefix_end};
use crate::meta::{Key, KeyBytes, Space};

const STATE: u8 = 1;
const ACCOUNT: u8 = 2;
const UID: u8 = 3;
const LOGIN: u8 = 4;
const REVOKED: u8 = 5;
const LEDGER: u8 = 6;
const ENDING: u8 = 7;

pub(super) fn state() -> Key<AuthStateRow> {
    Key::new(Space::AUTH, STATE, &[])
}

/// `name` is a valid user name.
pub(super) fn account(name: &str) -> Key<AccountRow> {
    Key::new(Space::AUTH, ACCOUNT, &[name.as_bytes()])
}

/// The name of an account by its key, or by the key of its mark.
pub(super) fn account_name(key: &[u8]) -> String {
    String::from_utf8_lossy(parts(key)).into_owned()
}

/// The mark of a user whose logins are being ended. `name` is a valid user name.
pub(super) fn ending(name: &str) -> Key<EndingRow> {
    Key::new(Space::AUTH, ENDING, &[name.as_bytes()])
}

pub(super) fn uid(uid: u32) -> Key<UidRow> {
    Key::new(Space::AUTH, UID, &[&uid.to_be_bytes()])
}

/// By the hash of its renewal secret.
pub(super) fn login(hash: &[u8; 32]) -> Key<LoginRow> {
    Key::new(Space::AUTH, LOGIN, &[hash])
}

pub(super) fn revoked(login: LoginId) -> Key<RevokedRow> {
    Key::new(Space::AUTH, REVOKED, &[&login.0])
}

/// What became of a session's operations.
pub(super) fn ledger(session: SessionId) -> Key<LedgerRow> {
    Key::new(Space::AUTH, LEDGER, &[&session.0])
}

/// Where the ledgers begin and end.
pub(super) fn ledgers() -> (KeyBytes, KeyBytes) {
    range(LEDGER)
}

/// Where the accounts begin and end.
pub(super) fn accounts() -> (KeyBytes, KeyBytes) {
    range(ACCOUNT)
}

/// Where the marks begin and end.
pub(super) fn endings() -> (KeyBytes, KeyBytes) {
    range(ENDING)
}

/// Where the logins begin and end.
pub(super) fn logins() -> (KeyBytes, KeyBytes) {
    range(LOGIN)
}

/// Where the revoked logins begin and end.
pub(super) fn all_revoked() -> (KeyBytes, KeyBytes) {
    range(REVOKED)
}

fn range(tag: u8) -> (KeyBytes, KeyBytes) {
    let start = prefix(Space::AUTH, tag, &[]);
    let end = prefix_end(&start);
    (start, end)
}
