//! What the JSON face shows: attributes, pages of entries, logins.
//!
//! A name is shown twice: as text, with what is no UTF-8 replaced, and percent-encoded, which is
//! exact and goes into URLs as it is.

use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::auth::LoginReply;
use dfs_proto::credential::{Secret, Ticket, TicketHolder};
use dfs_proto::dirent::{DirEntry, DirPage};
use dfs_proto::name::Name;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What is written as it is: the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Attributes of an inode.
#[derive(Debug, Serialize)]
pub struct Shown {
    kind: FileKind,
    size: u64,
    /// Octal.
    mode: String,
    uid: u32,
    gid: u32,
    nlink: u32,
    atime: Option<String>,
    mtime: Option<String>,
    ctime: Option<String>,
    /// Of a file the version of its content, of a directory that of its entries.
    version: String,
    file_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl Shown {
    pub fn new(attr: &Attr) -> Shown {
        let version = match attr.kind {
            FileKind::Directory => attr.dir_version.to_string(),
            _ => attr.data_version.to_string(),
        };
        Shown {
            kind: attr.kind,
            size: attr.size,
            mode: format!("{:04o}", attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            atime: text_of(attr.atime),
            mtime: text_of(attr.mtime),
            ctime: text_of(attr.ctime),
            version,
            file_id: attr.fid.to_string(),
            target: None,
        }
    }

    /// With what a symbolic link points to, percent-encoded but for slashes.
    pub fn with_target(self, target: &[u8]) -> Shown {
        let target = percent_encode(target, const { &ENCODED.remove(b'/') }).to_string();
        Shown { target: Some(target), ..self }
    }
}

/// A time with its zone; absent for years that the format cannot write.
fn text_of(at: Timestamp) -> Option<String> {
    let second = OffsetDateTime::from_unix_timestamp(at.secs).ok()?;
    second.replace_nanosecond(at.nanos).ok()?.format(&Rfc3339).ok()
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    name_encoded: String,
    #[serde(flatten)]
    attr: Shown,
}

/// A page of a directory.
#[derive(Debug, Serialize)]
pub struct Listing {
    entries: Vec<Entry>,
    version: String,
    is_last: bool,
    /// The value of `after` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Listing {
    pub fn new(page: &DirPage) -> Listing {
        let entry = |entry: &DirEntry| Entry {
            name: entry.name.to_string(),
            name_encoded: encoded(&entry.name),
            attr: Shown::new(&entry.attr),
        };
        let last = page.entries.last().filter(|_| !page.is_last);
        Listing {
            entries: page.entries.iter().map(entry).collect(),
            version: page.version.to_string(),
            is_last: page.is_last,
            next: last.map(|entry| encoded(&entry.name)),
        }
    }
}

fn encoded(name: &Name) -> String {
    percent_encode(name.as_bytes(), ENCODED).to_string()
}

/// A ticket, and for a login also what gets the next one.
#[derive(Serialize)]
pub struct Granted<'a> {
    ticket: &'a str,
    expires_in_secs: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    renewal: Option<&'a str>,
    user: &'a str,
    is_admin: bool,
}

impl<'a> Granted<'a> {
    pub fn new(ticket: &'a Ticket, lifetime_secs: u32, holder: &'a TicketHolder) -> Granted<'a> {
        Granted {
            ticket: ticket.expose(),
            expires_in_secs: lifetime_secs,
            renewal: None,
            user: &holder.user,
            is_admin: holder.is_admin,
        }
    }

    pub fn of_login(login: &'a LoginReply) -> Granted<'a> {
        let granted = Granted::new(&login.ticket, login.lifetime_secs, &login.holder);
        Granted { renewal: Some(Secret::expose(&login.renewal)), ..granted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::id::{FileId, InodeNo, VolumeId};
    use dfs_proto::version::{DataVersion, DirVersion, Epoch};

    fn attr() -> Attr {
        Attr {
            fid: FileId::new(VolumeId(1), InodeNo(2), Epoch(3)),
            kind: FileKind::File,
            mode: 0o640,
            nlink: 1,
            uid: 1000,
            gid: 100,
            size: 5,
            stored_bytes: 5,
            atime: Timestamp::new(i64::MAX, 0),
            mtime: Timestamp::new(86_400, 5),
            ctime: Timestamp::new(-1, 500_000_000),
            rdev: 0,
            data_version: DataVersion::new(Epoch(1), 9),
            dir_version: DirVersion::new(Epoch(1), 8),
            xattr_bytes: 0,
        }
    }

    #[test]
    fn attributes_show_times_with_their_zone_and_a_version() {
        let shown = serde_json::to_value(Shown::new(&attr())).unwrap();
        assert_eq!(shown["mtime"], "1970-01-02T00:00:00.000000005Z");
        assert_eq!(shown["ctime"], "1969-12-31T23:59:59.5Z");
        assert!(shown["atime"].is_null());
        assert_eq!(
            (shown["mode"].as_str(), shown["version"].as_str()),
            (Some("0640"), Some("1.9"))
        );
        assert_eq!(
            (shown["kind"].as_str(), shown["file_id"].as_str()),
            (Some("file"), Some("1:2.3"))
        );
        assert!(shown.get("target").is_none());
        let link = serde_json::to_value(Shown::new(&attr()).with_target(b"../\xff a")).unwrap();
        assert_eq!(link["target"], "../%FF%20a");
    }

    #[test]
    fn any_name_has_an_exact_form_that_comes_back_as_a_path() {
        let names = [&b"\xff a%/"[..4], b"\xe2\x82\xac", b"?#&=+", b"~x-1._"];
        for bytes in names {
            let name = Name::parse(bytes).unwrap();
            let encoded = encoded(&name);
            let path = format!("/v1/files/main/{encoded}");
            let back = super::super::target::Target::parse(&path, "").unwrap();
            assert_eq!(back.path, [name], "{encoded}");
        }
    }

    #[test]
    fn a_page_says_where_the_next_one_begins() {
        let entry = DirEntry { name: Name::parse(b"\xffz").unwrap(), attr: attr() };
        let version = DirVersion::new(Epoch(1), 8);
        let page = DirPage { entries: vec![entry], version, is_last: false };
        let shown = serde_json::to_value(Listing::new(&page)).unwrap();
        assert_eq!(
            (shown["next"].as_str(), shown["is_last"].as_bool()),
            (Some("%FFz"), Some(false))
        );
        assert_eq!(shown["entries"][0]["name"], "\u{fffd}z");
        let last = serde_json::to_value(Listing::new(&DirPage { is_last: true, ..page })).unwrap();
        assert!(last.get("next").is_none());
    }
}
