//! Accounts: their rows, and what a name and a uid may be.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use dfs_proto::FsError;
use dfs_proto::auth::AddUser;
use dfs_proto::credential::{ActAs, Identity, NOBODY, TicketHolder};
use dfs_proto::limits::WORD_BYTES_MAX;

use super::key;
use super::password::PasswordText;
use crate::meta::{Abort, ReadTxn, Record, Txn};

/// The first uid that is handed out by itself. Why: local accounts of most systems end below.
const UID_FIRST: u32 = 10_000;

/// Most supplementary groups of an account. Why: they are in each of its tickets, which has room
/// for about twice as many.
pub const ACCOUNT_GROUPS_MAX: usize = 128;

/// The id that system calls read as "leave as it is". Source: chown(2).
const NO_ID: u32 = u32::MAX;

/// An account. Its primary group has the number of its uid, as most systems do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRow {
    pub uid: u32,
    pub groups: Vec<u32>,
    pub is_admin: bool,
    pub password: PasswordText,
    /// Units: wall-clock seconds since 1970.
    pub created: i64,
}

impl Record for AccountRow {
    const VERSION: u8 = 1;
}

impl AccountRow {
    pub fn identity(&self) -> Identity {
        Identity { uid: self.uid, gid: self.uid, groups: self.groups.clone() }
    }

    /// What a ticket of this account says.
    pub fn holder(&self, user: &str) -> TicketHolder {
        let act_as = ActAs::Personal { identity: self.identity() };
        TicketHolder { user: user.to_owned(), act_as, is_admin: self.is_admin }
    }
}

/// Whose a uid is, or last was: it outlives the account, so that nobody is given the files of
/// somebody who is gone, but by an administrator who names the uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRow {
    pub user: String,
}

impl Record for UidRow {
    const VERSION: u8 = 1;
}

/// What the service knows of itself. It exists exactly if the first accounts do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthStateRow {
    /// No uid from here on was handed out by itself. Never goes back: a uid outlives its account in
    /// the files that it owns.
    pub next_uid: u32,
}

impl Record for AuthStateRow {
    const VERSION: u8 = 1;
}

impl Default for AuthStateRow {
    fn default() -> AuthStateRow {
        AuthStateRow { next_uid: UID_FIRST }
    }
}

/// Whether `name` has the form of an account's name: lower-case letters, digits, `.`, `_`, `-`,
/// with a letter or digit in front.
pub fn is_user_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= WORD_BYTES_MAX
        && bytes.first().is_some_and(|first| is_word(*first))
        && bytes.iter().all(|byte| is_word(*byte) || b"._-".contains(byte))
}

/// Whether an account can be made as asked, but for its password and for what exists already.
///
/// # Errors
/// `InvalidArgument` says what cannot be.
pub fn check(request: &AddUser) -> Result<(), FsError> {
    if !is_user_name(&request.user) {
        return Err(FsError::invalid(format!(
            "user name (1 to {WORD_BYTES_MAX} of a-z, 0-9, `.`, `_`, `-`, no sign in front)"
        )));
    }
    // Uid 0 is the administrator's that the cell began with.
    if request.uid.is_some_and(|uid| [0, NOBODY, NO_ID].contains(&uid)) {
        return Err(FsError::invalid(
            "uid: 0, nobody's and the largest are not given to users; it",
        ));
    }
    if request.groups.len() > ACCOUNT_GROUPS_MAX {
        return Err(FsError::TooLarge {
            what: "number of groups of a user".to_owned(),
            limit: ACCOUNT_GROUPS_MAX as u64,
        });
    }
    if request.groups.contains(&NO_ID) {
        return Err(FsError::invalid("group 4294967295"));
    }
    Ok(())
}

/// The account of a name; `None` also for what cannot be a name.
pub fn find(txn: &mut ReadTxn<'_>, name: &str) -> Result<Option<Arc<AccountRow>>, Abort> {
    if !is_user_name(name) {
        return Ok(None);
    }
    txn.get(&key::account(name))
}

/// Makes an account under its uid, or the next free one if that is `None`.
///
/// # Errors
/// `Exists` if name or uid are taken; `Unavailable` while logins of an earlier account of the name
/// are being ended.
pub fn add(
    txn: &mut Txn<'_>,
    name: &str,
    uid: Option<u32>,
    account: AccountRow,
) -> Result<Identity, Abort> {
    if txn.get(&key::account(name))?.is_some() {
        return Err(FsError::Exists.into());
    }
    require_unmarked(txn, name)?;
    let uid = match uid {
        Some(uid) => uid,
        None => take_uid(txn)?,
    };
    if is_taken(txn, uid)? {
        return Err(FsError::Exists.into());
    }
    let account = AccountRow { uid, ..account };
    let identity = account.identity();
    txn.put(&key::uid(uid), UidRow { user: name.to_owned() });
    txn.put(&key::account(name), account);
    Ok(identity)
}

/// Whether an account has this uid.
fn is_taken(txn: &mut ReadTxn<'_>, uid: u32) -> Result<bool, Abort> {
    let Some(owner) = txn.get(&key::uid(uid))? else {
        return Ok(false);
    };
    Ok(txn.get(&key::account(&owner.user))?.is_some_and(|account| account.uid == uid))
}

/// Removes an account.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for uid 0: without it nobody administers the cell's files.
pub fn remove(txn: &mut Txn<'_>, name: &str) -> Result<(), Abort> {
    let account = find(txn, name)?.ok_or(FsError::NotFound)?;
    if account.uid == 0 {
        return Err(
            FsError::invalid("removal of the administrator that the cell began with").into()
        );
    }
    txn.delete(&key::account(name));
    Ok(())
}

/// Gives an account another password.
///
/// # Errors
/// `NotFound`.
pub fn put_password(txn: &mut Txn<'_>, name: &str, password: PasswordText) -> Result<(), Abort> {
    let account = find(txn, name)?.ok_or(FsError::NotFound)?;
    txn.put(&key::account(name), AccountRow { password, ..AccountRow::clone(&account) });
    Ok(())
}

/// Checks that what a password was found right against is still so: hashing takes a while.
///
/// # Errors
/// `LoginRefused` if the account is gone or has another password; `Unavailable` while its logins
/// are being ended.
pub fn require_current(
    txn: &mut ReadTxn<'_>,
    name: &str,
    judged: &PasswordText,
) -> Result<(), Abort> {
    require_unmarked(txn, name)?;
    match find(txn, name)? {
        Some(account) if account.password == *judged => Ok(()),
        _ => Err(FsError::LoginRefused.into()),
    }
}

fn require_unmarked(txn: &mut ReadTxn<'_>, name: &str) -> Result<(), Abort> {
    match txn.get(&key::ending(name))? {
        None => Ok(()),
        Some(_) => Err(FsError::unavailable("the user's earlier logins are being ended").into()),
    }
}

fn take_uid(txn: &mut Txn<'_>) -> Result<u32, Abort> {
    let mut state = txn.get(&key::state())?.map(|row| *row).unwrap_or_default();
    let is_nobodys = |uid: u32| uid == NOBODY || uid == NO_ID;
    while is_nobodys(state.next_uid) || txn.get(&key::uid(state.next_uid))?.is_some() {
        state.next_uid = state
            .next_uid
            .checked_add(1)
            .ok_or(FsError::NoSpace { what: "every uid is taken".to_owned() })?;
    }
    let uid = state.next_uid;
    state.next_uid = uid + 1;
    txn.put(&key::state(), state);
    Ok(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::record;
    use dfs_proto::credential::Secret;

    #[test]
    fn names_are_lower_case_words_without_a_sign_in_front() {
        for name in ["a", "0", "anna", "b.c_d-e", &"x".repeat(WORD_BYTES_MAX)] {
            assert!(is_user_name(name), "{name}");
        }
        for name in ["", ".a", "-a", "_a", "A", "a b", "a/b", "\u{e4}", "a\0", &"x".repeat(65)] {
            assert!(!is_user_name(name), "{name}");
        }
    }

    #[test]
    fn reserved_uids_and_absurd_groups_are_refused() {
        let sane = AddUser {
            user: "anna".into(),
            password: Secret::new("12345678"),
            uid: Some(1000),
            groups: vec![0, 5],
            is_admin: false,
        };
        assert_eq!(check(&sane), Ok(()));
        for uid in [0, NOBODY, NO_ID] {
            assert!(check(&AddUser { uid: Some(uid), ..sane.clone() }).is_err());
        }
        assert!(check(&AddUser { groups: vec![1; 129], ..sane.clone() }).is_err());
        assert!(check(&AddUser { groups: vec![NO_ID], ..sane }).is_err());
    }

    #[test]
    fn golden_bytes_do_not_move() {
        let row = AccountRow {
            uid: 7,
            groups: vec![8],
            is_admin: true,
            password: "$a".into(),
            created: -1,
        };
        assert_eq!(record::encode(&row).unwrap(), [1, 7, 1, 8, 1, 2, b'$', b'a', 1]);
        assert_eq!(record::encode(&UidRow { user: "a".into() }).unwrap(), [1, 1, b'a']);
        assert_eq!(record::encode(&AuthStateRow { next_uid: 9 }).unwrap(), [1, 9]);
    }
}
