//! Who somebody is, and how they prove it. `Debug` of a secret never shows it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A secret in text form: a password, a renewal secret, a join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself. Callers send it, hash it or store it with mode 0600, nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A signed, short-lived proof of login, in text form. Only the auth service and the verifier in
/// the servers look inside.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(String);

impl Ticket {
    pub fn new(text: impl Into<String>) -> Ticket {
        Ticket(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// A user as permission checks see one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; at most [`crate::limits::GROUP_COUNT_MAX`].
    pub groups: Vec<u32>,
}

/// The uid and gid of somebody nobody knows.
pub const NOBODY: u32 = 65534;

impl Identity {
    pub const ROOT: Identity = Identity { uid: 0, gid: 0, groups: Vec::new() };

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// For whom the bearer of a ticket may act.
///
/// Not tagged inside: the codec reads no form that describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActAs {
    /// Only as the account itself; what uid the client names does not matter.
    Personal { identity: Identity },
    /// As any local user of a host an administrator trusts; with `squash_root` root is nobody.
    Machine { squash_root: bool },
}

/// What a verified ticket says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketHolder {
    /// The account's name, or the machine's.
    pub user: String,
    pub act_as: ActAs,
    pub is_admin: bool,
}

impl TicketHolder {
    /// The identity a request acts under, given what the client says of its local caller.
    pub fn identity(&self, caller: Option<&Identity>) -> Identity {
        let nobody = || Identity { uid: NOBODY, gid: NOBODY, groups: Vec::new() };
        match &self.act_as {
            ActAs::Personal { identity } => identity.clone(),
            ActAs::Machine { squash_root: true } => {
                caller.filter(|caller| !caller.is_root()).cloned().unwrap_or_else(nobody)
            }
            ActAs::Machine { squash_root: false } => caller.cloned().unwrap_or_else(nobody),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(act_as: ActAs) -> TicketHolder {
        TicketHolder { user: "u".into(), act_as, is_admin: false }
    }

    #[test]
    fn a_personal_ticket_acts_as_its_account_whoever_asks() {
        let identity = Identity { uid: 1000, gid: 100, groups: vec![7] };
        let holder = holder(ActAs::Personal { identity: identity.clone() });
        assert_eq!(holder.identity(Some(&Identity::ROOT)), identity);
    }

    #[test]
    fn a_machine_ticket_acts_as_the_caller_and_squashes_root_where_told() {
        let caller = Identity { uid: 5, gid: 6, groups: vec![] };
        let trusted = holder(ActAs::Machine { squash_root: false });
        assert_eq!(trusted.identity(Some(&caller)), caller);
        assert!(trusted.identity(Some(&Identity::ROOT)).is_root());
        assert_eq!(trusted.identity(None).uid, NOBODY);
        let squashed = holder(ActAs::Machine { squash_root: true });
        assert_eq!(squashed.identity(Some(&Identity::ROOT)).uid, NOBODY);
    }

    #[test]
    fn a_holder_of_either_kind_passes_the_codec() {
        for act_as in [
            ActAs::Personal { identity: Identity { uid: 1, gid: 2, groups: vec![3] } },
            ActAs::Machine { squash_root: true },
        ] {
            let holder = holder(act_as);
            let bytes = crate::codec::encode(&holder, 256).unwrap();
            assert_eq!(crate::codec::decode::<TicketHolder>(&bytes, 256).unwrap(), holder);
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let text = format!("{:?} {:?}", Secret::new("hunter2"), Ticket::new("v4.public.x"));
        assert!(!text.contains("hunter2") && !text.contains("v4"), "{text}");
    }
}
