//! `-o k=v,...`: the options of mount(8), read into the same layer as flags.
//!
//! The list is written out: an option is translated, or ignored because it speaks to somebody
//! else (mount(8), systemd, fstab), or refused by its name. Nothing is passed on unseen.

use std::str::FromStr;

use super::RawMount;
use super::quantity::QuantityError;

/// Options for others than the file system, or that ask for what is done anyway.
const IGNORED: [&str; 26] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "nofail",
    "async",
    "silent",
    "loud",
    "nomand",
    "symfollow",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
];

/// Options of those kinds that have a value or a free ending.
const IGNORED_PREFIXES: [&str; 5] = ["x-", "X-", "comment=", "x_", "user="];

/// Why an option is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionFault {
    #[error("option `{0}` is not known")]
    Unknown(String),
    #[error("option `{0}` needs a value: {0}=...")]
    NoValue(String),
    #[error("option `{name}` takes true or false, not `{value}`")]
    NotBoolean { name: String, value: String },
    #[error("option `{0}` takes no value")]
    ValueNotWanted(String),
    #[error("option `{name}`: {source}")]
    Quantity { name: String, source: QuantityError },
}

/// Reads options; of one that comes twice the last counts. `\,` is a comma inside a value, and
/// `-` in a name means `_`.
///
/// # Errors
/// [`OptionFault`] names the first option that is not taken.
pub fn parse_options(text: &str) -> Result<RawMount, OptionFault> {
    let mut layer = RawMount::default();
    for option in split_options(text) {
        apply(&mut layer, &option)?;
    }
    Ok(layer)
}

/// `text` without the options that are not known: `mount -s` asks for that. Known ones stay, also
/// those whose value is not taken.
pub fn known_options(text: &str) -> String {
    let is_known = |option: &String| {
        !matches!(apply(&mut RawMount::default(), option), Err(OptionFault::Unknown(_)))
    };
    let known = split_options(text).into_iter().filter(is_known);
    known.map(|option| option.replace(',', "\\,")).collect::<Vec<_>>().join(",")
}

/// Cuts at commas that no backslash precedes; empty pieces mean nothing.
fn split_options(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let last = options.len() - 1;
        match letter {
            ',' => options.push(String::new()),
            '\\' if letters.next_if_eq(&',').is_some() => options[last].push(','),
            other => options[last].push(other),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

fn apply(layer: &mut RawMount, option: &str) -> Result<(), OptionFault> {
    if IGNORED.contains(&option) || IGNORED_PREFIXES.iter().any(|start| option.starts_with(start)) {
        return Ok(());
    }
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let given = Given { name, value };
    match name.replace('-', "_").as_str() {
        "ro" => layer.read_only = given.bare(true)?,
        "rw" => layer.read_only = given.bare(false)?,
        "read_only" => layer.read_only = given.boolean()?,
        "allow_other" => layer.allow_other = given.boolean()?,
        "default_permissions" => layer.default_permissions = given.boolean()?,
        "hard" => layer.hard = given.bare(true)?,
        "soft" => layer.hard = given.bare(false)?,
        "suid" => layer.suid = given.bare(true)?,
        "nosuid" => layer.suid = given.bare(false)?,
        "dev" => layer.dev = given.bare(true)?,
        "nodev" => layer.dev = given.bare(false)?,
        "exec" => layer.exec = given.bare(true)?,
        "noexec" => layer.exec = given.bare(false)?,
        "atime" => layer.atime = given.bare(true)?,
        "noatime" => layer.atime = given.bare(false)?,
        "timeout" => layer.timeout = given.quantity()?,
        "lock_timeout" => layer.lock_timeout = given.quantity()?,
        "cache_size" => layer.cache_size = given.quantity()?,
        "config_dir" => layer.config_dir = Some(given.text()?.into()),
        "cache_dir" => layer.cache_dir = Some(given.text()?.into()),
        "log_file" => layer.log_file = Some(given.text()?.into()),
        _ => return Err(OptionFault::Unknown(name.to_owned())),
    }
    Ok(())
}

/// One option as typed.
struct Given<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl Given<'_> {
    fn bare(&self, meaning: bool) -> Result<Option<bool>, OptionFault> {
        match self.value {
            None => Ok(Some(meaning)),
            Some(_) => Err(OptionFault::ValueNotWanted(self.name.to_owned())),
        }
    }

    fn boolean(&self) -> Result<Option<bool>, OptionFault> {
        match self.value {
            None | Some("true" | "yes" | "on" | "1") => Ok(Some(true)),
            Some("false" | "no" | "off" | "0") => Ok(Some(false)),
            Some(value) => {
                Err(OptionFault::NotBoolean { name: self.name.to_owned(), value: value.to_owned() })
            }
        }
    }

    fn text(&self) -> Result<&str, OptionFault> {
        let value = self.value.filter(|value| !value.is_empty());
        value.ok_or_else(|| OptionFault::NoValue(self.name.to_owned()))
    }

    fn quantity<T: FromStr<Err = QuantityError>>(&self) -> Result<Option<T>, OptionFault> {
        let parsed = self.text()?.parse();
        parsed
            .map(Some)
            .map_err(|source| OptionFault::Quantity { name: self.name.to_owned(), source })
    }
}
