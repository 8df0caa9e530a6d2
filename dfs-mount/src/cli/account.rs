//! `dfs passwd` and `dfs admin user`: accounts and their passwords.
//!
//! Passwords are typed or piped in, each time anew: `DFS_PASSWORD_FILE` is the password of whoever
//! logs in, and must not become somebody else's by accident.

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::auth::{AddUser, ChangePassword, RemoveUser, SetPassword, UserEntry, Users};
use dfs_proto::rpc::Rpc;
use serde::Serialize;

use super::cell;
use super::exit::Exit;
use super::failure::{Context, Failure};
use super::output::{Output, Report, Table};
use super::password;
use super::show;
use super::{PasswdArgs, UserAddArgs, UserArgs, UserCommand};
use crate::config::CellAddress;
use crate::session::connection::Connection;

/// Changes the password of the own account.
///
/// # Errors
/// A [`Failure`] if there is no personal login, the old password is wrong, the new one cannot be,
/// or nobody answers.
pub async fn passwd(arguments: &PasswdArgs, output: &mut Output) -> Result<(), Failure> {
    let credential = cell::credential(arguments.url.as_ref())?;
    let url = format!("dfs://{}", cell::address(&credential));
    let personal = credential.personal.as_ref().ok_or_else(|| cell::not_logged_in(&url))?;
    let user = &personal.user;
    let (old, new) = password::read_change(user, arguments.stdin)?;
    let at = At { connection: cell::connect(&credential)?, url: url.clone() };
    at.ask(&ChangePassword { old, new }).await.map_err(|error| {
        let is_wrong = error == FsError::LoginRefused;
        let failure = Failure::fs(format!("the password of {user} at {url} stays"), error);
        match is_wrong {
            true => failure.remedy(format!(
                "type the old password again; if it is lost, an administrator can set another \
                 one: dfs admin user passwd {user}"
            )),
            false => failure,
        }
    })?;
    output.note(&format!("changed the password of {user} at {url}"));
    Ok(())
}

/// # Errors
/// A [`Failure`] if the login is no administrator's, the account is not as the verb needs it, or
/// nobody answers.
pub async fn administer(command: UserCommand, output: &mut Output) -> Result<(), Failure> {
    match command {
        UserCommand::Add(arguments) => add(arguments, output).await,
        UserCommand::List { cell } => list(cell.as_ref(), output).await,
        UserCommand::Remove { whom, yes } => remove(&whom, yes, output).await,
        UserCommand::Passwd { whom, stdin } => set_password(&whom, stdin, output).await,
    }
}

/// A cell that is spoken to.
struct At {
    connection: Connection,
    url: String,
}

impl At {
    fn new(cell: Option<&CellAddress>) -> Result<At, Failure> {
        let credential = cell::credential(cell)?;
        let url = format!("dfs://{}", cell::address(&credential));
        Ok(At { connection: cell::connect(&credential)?, url })
    }

    async fn ask<R: Rpc>(&self, request: &R) -> Result<R::Reply, FsError> {
        self.connection.call(Role::Auth, Some(&cell::own_identity()), request).await
    }
}

/// The account that was made.
#[derive(Debug, Serialize)]
struct Made {
    user: String,
    uid: u32,
    groups: Vec<u32>,
    is_admin: bool,
}

impl Report for Made {
    fn table(&self) -> Table {
        Table::lines([format!("made {} with uid {}", self.user, self.uid)])
    }
}

async fn add(arguments: UserAddArgs, output: &mut Output) -> Result<(), Failure> {
    let UserAddArgs { whom: UserArgs { name: user, cell }, uid, groups, admin, stdin } = arguments;
    let at = At::new(cell.as_ref())?;
    let password = password::read_new(&user, stdin)?;
    let request = AddUser { user: user.clone(), password, uid, groups, is_admin: admin };
    let made = at.ask(&request).await.map_err(|error| {
        let is_taken = error == FsError::Exists;
        let failure = Failure::fs(format!("cannot make {user} at {}", at.url), error);
        match is_taken {
            true => failure.remedy("see which names and uids are taken: dfs admin user list"),
            false => failure,
        }
    })?;
    output.show(&Made { user, uid: made.uid, groups: made.groups, is_admin: admin })
}

/// The accounts of a cell.
#[derive(Debug, Default, Serialize)]
struct Accounts {
    users: Vec<Account>,
}

#[derive(Debug, Serialize)]
struct Account {
    user: String,
    uid: u32,
    groups: Vec<u32>,
    is_admin: bool,
    created_secs: i64,
}

impl From<UserEntry> for Account {
    fn from(entry: UserEntry) -> Account {
        let UserEntry { user, identity, is_admin, created_secs } = entry;
        Account { user, uid: identity.uid, groups: identity.groups, is_admin, created_secs }
    }
}

impl Report for Accounts {
    fn table(&self) -> Table {
        let row = |account: &Account| {
            let groups: Vec<String> = account.groups.iter().map(u32::to_string).collect();
            let role = if account.is_admin { "administrator" } else { "" };
            vec![
                account.user.clone(),
                account.uid.to_string(),
                groups.join(","),
                show::minute(account.created_secs),
                role.to_owned(),
            ]
        };
        let header = vec!["user", "uid", "groups", "made", "role"];
        Table { header, rows: self.users.iter().map(row).collect() }
    }
}

async fn list(cell: Option<&CellAddress>, output: &mut Output) -> Result<(), Failure> {
    let at = At::new(cell)?;
    let mut accounts = Accounts::default();
    let mut after: Option<String> = None;
    loop {
        let what = || format!("cannot list the accounts of {}", at.url);
        let page = at.ask(&Users { after: after.clone() }).await.about(what)?;
        let last = page.users.last().map(|entry| entry.user.clone());
        accounts.users.extend(page.users.into_iter().map(Account::from));
        if page.is_last {
            return output.show(&accounts);
        }
        // A server whose pages do not advance would be asked for ever.
        if last <= after {
            return Err(FsError::malformed("page of accounts does not advance")).about(what);
        }
        after = last;
    }
}

async fn remove(whom: &UserArgs, yes: bool, output: &mut Output) -> Result<(), Failure> {
    let (user, at) = (&whom.name, At::new(whom.cell.as_ref())?);
    let what = || format!("cannot remove {user} at {}", at.url);
    if !yes {
        let question = format!("Remove {user} at {} and end all logins? Files stay.", at.url);
        match password::confirm(&question) {
            Ok(true) => {}
            Ok(false) => return Err(Failure::new(Exit::Failed, what(), "not confirmed")),
            Err(failure) => {
                return Err(Failure { what: what(), ..failure }
                    .remedy("answer at a terminal, or say --yes"));
            }
        }
    }
    let request = RemoveUser { user: user.clone() };
    at.ask(&request).await.map_err(|error| about_user(what(), error))?;
    output.note(&format!("removed {user} at {}; files of theirs stay", at.url));
    Ok(())
}

async fn set_password(whom: &UserArgs, stdin: bool, output: &mut Output) -> Result<(), Failure> {
    let (user, at) = (&whom.name, At::new(whom.cell.as_ref())?);
    let password = password::read_new(user, stdin)?;
    let request = SetPassword { user: user.clone(), password };
    let what = || format!("cannot set the password of {user} at {}", at.url);
    at.ask(&request).await.map_err(|error| about_user(what(), error))?;
    output.note(&format!("set the password of {user} at {} and ended all logins", at.url));
    Ok(())
}

/// What an operation's error means where it is about an account and not about a file.
fn about_user(what: String, error: FsError) -> Failure {
    match error {
        FsError::NotFound => Failure::new(Exit::Failed, what, "there is no such account")
            .remedy("see which there are: dfs admin user list"),
        error => Failure::fs(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::tests::captured;
    use super::*;
    use dfs_proto::credential::Identity;

    fn accounts() -> Accounts {
        let entry = |user: &str, uid: u32, groups: Vec<u32>| UserEntry {
            user: user.into(),
            identity: Identity { uid, gid: uid, groups },
            is_admin: uid == 0,
            created_secs: 86_400,
        };
        let entries = [entry("admin", 0, vec![]), entry("ann", 10_000, vec![5, 7])];
        Accounts { users: entries.into_iter().map(Account::from).collect() }
    }

    #[test]
    fn accounts_are_shown_as_table_and_as_json() {
        let (mut output, out, _) = captured(false);
        output.show(&accounts()).unwrap();
        let expected = "USER   UID    GROUPS  MADE              ROLE\n\
            admin      0          1970-01-02 00:00  administrator\n\
            ann    10000  5,7     1970-01-02 00:00\n";
        assert_eq!(out.text(), expected);
        let (mut output, out, _) = captured(true);
        output.show(&accounts()).unwrap();
        let json = "{\"user\":\"ann\",\"uid\":10000,\"groups\":[5,7],\"is_admin\":false,\
            \"created_secs\":86400}]}\n";
        assert!(out.text().ends_with(json), "{}", out.text());
    }

    #[test]
    fn an_account_that_is_missing_is_not_called_a_file() {
        let failure = about_user("cannot".into(), FsError::NotFound);
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.causes().contains("account"), "{}", failure.causes());
        assert_eq!(about_user("cannot".into(), FsError::NotPermitted).exit, Exit::Refused);
    }
}
