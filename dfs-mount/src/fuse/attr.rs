//! Attributes between the protocol's form and the kernel's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_proto::attr::{Attr, FileKind, SetTime, Timestamp};
use fuser::{FileAttr, FileType, Generation, INodeNo, TimeOrNow};
use nix::sys::stat::SFlag;

use crate::vfs::Entry;

/// Unit of `st_blocks`, whatever the file system's own block is.
const STAT_BLOCK_BYTES: u64 = 512;

/// What `st_blksize` advises programs to use. Why 128 KiB: a request of that size costs little
/// more than one of 4 KiB, and coreutils use it for everything.
const IO_BYTES: u32 = 128 << 10;

/// The attributes of an inode under its nodeid.
pub(super) fn file_attr(entry: &Entry) -> FileAttr {
    let attr = &entry.attr;
    let ctime = system_time(attr.ctime);
    FileAttr {
        ino: INodeNo(entry.nodeid),
        size: attr.size,
        blocks: attr.stored_bytes.div_ceil(STAT_BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime,
        crtime: ctime,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).expect("twelve bits"),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: IO_BYTES,
        flags: 0,
    }
}

pub(super) fn generation(attr: &Attr) -> Generation {
    Generation(u64::from(attr.fid.generation.0))
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in a mode of mknod(2); no kind bits mean a regular file.
pub(super) fn file_kind(mode: u32) -> Option<FileKind> {
    match SFlag::from_bits_retain(mode) & SFlag::S_IFMT {
        kind if kind.is_empty() => Some(FileKind::File),
        SFlag::S_IFREG => Some(FileKind::File),
        SFlag::S_IFIFO => Some(FileKind::Fifo),
        SFlag::S_IFSOCK => Some(FileKind::Socket),
        SFlag::S_IFCHR => Some(FileKind::CharDevice),
        SFlag::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// A time for fuser; one that no `SystemTime` can hold becomes the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let start =
        if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let fraction = Duration::from_nanos(u64::from(time.nanos));
    start.and_then(|start| start.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// A time from fuser, which (in 0.18) counts the nanoseconds of a time before 1970 backwards
/// although the kernel counts them forwards: the same mistake, made in reverse, mends it.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp::new(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos())
        }
        Err(error) => {
            let before = error.duration();
            let secs = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            Timestamp::new(-secs, before.subsec_nanos())
        }
    }
}

pub(super) fn set_time(time: TimeOrNow, now: impl FnOnce() -> Timestamp) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now(now()),
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_fuser_unchanged_also_before_1970() {
        for (secs, nanos) in [(0, 0), (1_700_000_000, 999_999_999), (-2, 800_000_000), (-1, 0)] {
            let time = system_time(Timestamp::new(secs, nanos));
            let exact = match time.duration_since(UNIX_EPOCH) {
                Ok(after) => i128::try_from(after.as_nanos()).unwrap(),
                Err(error) => -i128::try_from(error.duration().as_nanos()).unwrap(),
            };
            assert_eq!(exact, i128::from(secs) * 1_000_000_000 + i128::from(nanos));
        }
    }

    #[test]
    fn a_time_before_1970_comes_back_from_fuser_as_the_kernel_sent_it() {
        // What fuser 0.18 makes of the kernel's (-2 s, 800_000_000 ns).
        let garbled = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(timestamp(garbled), Timestamp::new(-2, 800_000_000));
        let plain = UNIX_EPOCH + Duration::new(5, 7);
        assert_eq!(timestamp(plain), Timestamp::new(5, 7));
    }

    #[test]
    fn a_time_out_of_range_does_not_panic() {
        system_time(Timestamp::new(i64::MAX, 999_999_999));
        system_time(Timestamp::new(i64::MIN, 0));
    }

    #[test]
    fn kinds_of_mknod_are_told_apart() {
        assert_eq!(file_kind(0o644), Some(FileKind::File));
        assert_eq!(file_kind(SFlag::S_IFIFO.bits() | 0o600), Some(FileKind::Fifo));
        assert_eq!(file_kind(SFlag::S_IFDIR.bits()), None);
    }
}
