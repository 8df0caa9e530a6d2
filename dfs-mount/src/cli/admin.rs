//! `dfs admin`: what administrators do to the cell.

use std::str::FromStr;

use dfs_proto::FsError;
use dfs_proto::admin::{NewJoinToken, Role};
use dfs_proto::directory::lock::AllLocks;
use serde::Serialize;

use super::cell;
use super::failure::{Context, Failure};
use super::file::locks::Locks;
use super::output::{Output, Report, Table};
use crate::config::CellAddress;

/// The roles of a node, as typed: a list, or `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles(Vec<Role>);

impl FromStr for Roles {
    type Err = String;

    fn from_str(text: &str) -> Result<Roles, String> {
        if text == "all" {
            return Ok(Roles(Role::ALL.to_vec()));
        }
        let mut roles = text.split(',').map(parse_role).collect::<Result<Vec<Role>, String>>()?;
        roles.sort();
        roles.dedup();
        Ok(Roles(roles))
    }
}

fn parse_role(text: &str) -> Result<Role, String> {
    let known = Role::ALL.into_iter().find(|role| role.name() == text.trim());
    known.ok_or_else(|| format!("`{text}` is not a role (auth, directory, lock, file, all)"))
}

#[derive(Debug, Serialize)]
struct TokenReport {
    token: String,
    roles: Vec<Role>,
}

impl Report for TokenReport {
    fn table(&self) -> Table {
        Table::lines([self.token.clone()])
    }
}

/// # Errors
/// A [`Failure`] if the login is no administrator's, or nobody answers.
pub async fn new_token(
    roles: Roles,
    cell: Option<&CellAddress>,
    output: &mut Output,
) -> Result<(), Failure> {
    let credential = cell::credential(cell)?;
    let request = NewJoinToken { roles: roles.0.clone() };
    let token = cell::connect(&credential)?
        .call(Role::Auth, Some(&cell::own_identity()), &request)
        .await
        .about(|| format!("cannot make a join token for dfs://{}", cell::address(&credential)))?;
    output.show(&TokenReport { token: token.expose().to_owned(), roles: roles.0 })
}

/// Lists the locks of all files.
///
/// # Errors
/// A [`Failure`] if the login is no administrator's, or nobody answers.
pub async fn locks(cell: Option<&CellAddress>, output: &mut Output) -> Result<(), Failure> {
    let credential = cell::credential(cell)?;
    let connection = cell::connect(&credential)?;
    let what = || format!("cannot list the locks of dfs://{}", cell::address(&credential));
    let (mut locks, mut after) = (Locks::default(), None);
    loop {
        let (identity, request) = (cell::own_identity(), AllLocks { after });
        let page = connection.call(Role::Directory, Some(&identity), &request).await.about(what)?;
        let last = page.files.last().map(|file| file.fid);
        page.files.into_iter().for_each(|file| locks.add(file, None));
        if page.is_last {
            return output.show(&locks);
        }
        // A server whose pages do not advance would be asked for ever.
        if last <= after {
            return Err(FsError::malformed("page of locks does not advance")).about(what);
        }
        after = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_a_list_or_all() {
        assert_eq!("all".parse(), Ok(Roles(Role::ALL.to_vec())));
        assert_eq!("lock,auth,lock".parse(), Ok(Roles(vec![Role::Auth, Role::Lock])));
        for text in ["", "files", "auth,", "all,file"] {
            assert!(text.parse::<Roles>().unwrap_err().contains("is not a role"), "{text}");
        }
    }
}
