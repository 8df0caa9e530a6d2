//! The auth service: accounts, logins, tickets.

use serde::{Deserialize, Serialize};

use crate::credential::{Identity, Secret, Ticket, TicketHolder};
use crate::directory::rpc;
use crate::rpc::{Access, Rpc};

/// Proves a password. Errors: `LoginRefused`, `RateLimited`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Login {
    pub user: String,
    pub password: Secret,
}

/// A login's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginReply {
    pub ticket: Ticket,
    pub holder: TicketHolder,
    /// Units: seconds the ticket is valid for, from its making.
    pub lifetime_secs: u32,
    /// Gets the next ticket without the password.
    pub renewal: Secret,
}
rpc!(Login => LoginReply, "auth.login", Public);

/// A fresh ticket for a renewal secret (a login's, or a machine's). Errors: `LoginRefused`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renew {
    pub renewal: Secret,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewReply {
    pub ticket: Ticket,
    pub holder: TicketHolder,
    pub lifetime_secs: u32,
}
rpc!(Renew => RenewReply, "auth.renew", Public);

/// Ends a login: its renewal secret and its tickets. An unknown secret is no error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logout {
    pub renewal: Secret,
}
rpc!(Logout => (), "auth.logout", Public);

/// Whom the server takes the bearer of the ticket for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhoAmI {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmIReply {
    pub holder: TicketHolder,
    /// As whom a request of this caller acts.
    pub identity: Identity,
}
rpc!(WhoAmI => WhoAmIReply, "auth.whoami", User);

/// What servers need to check tickets without asking.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Keys {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReply {
    /// The Ed25519 public key tickets are signed with.
    pub ticket_key: [u8; 32],
    /// Logins that were ended while tickets of theirs may still be valid.
    pub revoked: Vec<LoginId>,
}
rpc!(Keys => KeysReply, "auth.keys", Node);

/// Names one login; every ticket that comes of it carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoginId(pub [u8; 16]);

/// Makes an account. Errors: `Exists`, `InvalidArgument` (name, password, uid).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddUser {
    pub user: String,
    pub password: Secret,
    /// `None`: the next free one.
    pub uid: Option<u32>,
    pub groups: Vec<u32>,
    pub is_admin: bool,
}
rpc!(AddUser => Identity, "auth.add_user", Admin, mutates);

/// A page of the accounts, in order of names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Users {
    /// The last name of the page before; `None` for the first page.
    pub after: Option<String>,
}

/// An account, without what proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEntry {
    pub user: String,
    pub identity: Identity,
    pub is_admin: bool,
    /// Units: wall-clock seconds since 1970.
    pub created_secs: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsersReply {
    /// Bounds: at most [`crate::limits::USER_PAGE_ENTRIES_MAX`].
    pub users: Vec<UserEntry>,
    pub is_last: bool,
}
rpc!(Users => UsersReply, "auth.users", Admin);

/// Removes an account and ends its logins. Its files stay, and its uid is not given to others by
/// itself. Errors: `NotFound`, `InvalidArgument` (the account with uid 0).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveUser {
    pub user: String,
}
rpc!(RemoveUser => (), "auth.remove_user", Admin, mutates);

/// Gives an account another password and ends its logins. Errors: `NotFound`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetPassword {
    pub user: String,
    pub password: Secret,
}
rpc!(SetPassword => (), "auth.set_password", Admin, mutates);

/// Gives the caller's own account another password; its logins go on. Errors: `LoginRefused` if
/// `old` is wrong, `RateLimited`, `InvalidArgument`; `NotPermitted` for a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangePassword {
    pub old: Secret,
    pub new: Secret,
}
rpc!(ChangePassword => (), "auth.change_password", User, mutates);
