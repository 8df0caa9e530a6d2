//! How values look to people: times, modes, sizes of things.

use dfs_proto::attr::{Attr, FileKind, Timestamp};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// UTC to the minute, from seconds since 1970.
pub fn minute(secs: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    OffsetDateTime::from_unix_timestamp(secs)
        .ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_else(|| format!("@{secs}"))
}

/// UTC with all its digits, as of RFC 3339.
pub fn instant(time: Timestamp) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("@{}.{:09}", time.secs, time.nanos))
}

/// A length of time, to its largest unit.
pub fn age(millis: u64) -> String {
    let secs = millis / 1000;
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

pub fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}

/// Kind and permissions as `ls -l` writes them.
pub fn mode_text(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let mode = attr.mode;
    let triple = |shift: u32, special: u32, letters: (char, char)| {
        let bits = mode >> shift;
        let last = match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, false) => letters.1,
            (true, true) => letters.0,
        };
        [if bits & 4 != 0 { 'r' } else { '-' }, if bits & 2 != 0 { 'w' } else { '-' }, last]
    };
    std::iter::once(kind)
        .chain(triple(6, 0o4000, ('s', 'S')))
        .chain(triple(3, 0o2000, ('s', 'S')))
        .chain(triple(0, 0o1000, ('t', 'T')))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dfs_proto::id::{FileId, InodeNo, VolumeId};
    use dfs_proto::version::{DataVersion, DirVersion, Epoch};

    /// Attributes of a file, for tests of what is shown.
    pub(crate) fn attr(kind: FileKind, mode: u32) -> Attr {
        Attr {
            fid: FileId::new(VolumeId(1), InodeNo(2), Epoch(3)),
            kind,
            mode,
            nlink: 1,
            uid: 1000,
            gid: 100,
            size: 4096,
            stored_bytes: 4096,
            atime: Timestamp::new(0, 0),
            mtime: Timestamp::new(86_400, 5),
            ctime: Timestamp::new(86_400, 5),
            rdev: 0,
            data_version: DataVersion::new(Epoch(1), 9),
            dir_version: DirVersion::default(),
            xattr_bytes: 0,
        }
    }

    #[test]
    fn modes_look_as_ls_shows_them() {
        for (kind, mode, text) in [
            (FileKind::File, 0o644, "-rw-r--r--"),
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::Directory, 0o1770, "drwxrwx--T"),
            (FileKind::File, 0o6755, "-rwsr-sr-x"),
            (FileKind::File, 0o6644, "-rwSr-Sr--"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode_text(&attr(kind, mode)), text);
        }
    }

    #[test]
    fn times_are_utc_and_never_fail() {
        assert_eq!(minute(86_400), "1970-01-02 00:00");
        assert_eq!(minute(i64::MAX), format!("@{}", i64::MAX));
        assert_eq!(instant(Timestamp::new(1, 500_000_000)), "1970-01-01T00:00:01.5Z");
        assert_eq!(instant(Timestamp::new(-1, 0)), "1969-12-31T23:59:59Z");
        assert_eq!(instant(Timestamp::new(i64::MAX, 1)), format!("@{}.000000001", i64::MAX));
    }

    #[test]
    fn ages_are_short() {
        for (millis, text) in
            [(0, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_200_000, "2 h")]
        {
            assert_eq!(age(millis), text);
        }
        assert_eq!(age(172_800_000), "2 d");
    }
}
