//! A directory that operations are done in, and everything that can be seen there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};

use super::mapping::Mapping;
use super::op::{At, Call, OnHandle, OnName, OnPath, Op, SLOTS, When};

/// The ordinary user, and that user's group.
pub const USER: u32 = 4242;

/// Times of our own days: whoever set another one used [`super::op`]'s.
const RECENT_SECS: std::ops::Range<i64> = 1_700_000_000..3_000_000_000;

/// Room for any extended attribute, and for the names of all.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// What an operation gave, as far as it must be the same everywhere.
#[derive(Debug, PartialEq)]
pub enum Seen {
    Done,
    Count(u64),
    Content(Content),
    Text(Vec<u8>),
    Names(Vec<(OsString, FileType)>),
    Attributes(Attributes),
    /// What must not be, wherever it is seen.
    Wrong(String),
}

/// Bytes that were read.
#[derive(PartialEq, Debug)]
pub struct Content {
    bytes: usize,
    hash: u64,
}

impl Content {
    fn of(bytes: &[u8]) -> Content {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Content { bytes: bytes.len(), hash: hasher.finish() }
    }
}

/// A modification time: as it was set, or of a change during the test.
#[derive(PartialEq, Debug)]
enum Modified {
    Set(i64, i64),
    Recently,
}

#[derive(PartialEq, Debug)]
pub struct Attributes {
    kind: FileType,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    /// Directories have what size they like.
    size: Option<i64>,
    modified: Modified,
}

impl Attributes {
    fn of(stat: &Stat) -> Attributes {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (secs, nanos) = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap());
        let is_recent = RECENT_SECS.contains(&secs);
        Attributes {
            kind,
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            links: stat.st_nlink,
            size: (kind != FileType::Directory).then_some(stat.st_size),
            modified: if is_recent { Modified::Recently } else { Modified::Set(secs, nanos) },
        }
    }
}

/// One name of a tree: what it is and what it holds.
#[derive(PartialEq, Debug)]
pub struct Entry {
    attributes: Attributes,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    same_as: PathBuf,
}

pub type Tree = BTreeMap<PathBuf, Entry>;

/// Makes this thread, and no other, act as the ordinary user, until it is dropped.
struct AsUser;

impl AsUser {
    fn begin() -> AsUser {
        set_thread_res_gid(None, Gid::from_raw(USER), None).unwrap();
        set_thread_res_uid(None, Uid::from_raw(USER), None).unwrap();
        AsUser
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        set_thread_res_uid(None, Uid::ROOT, None).unwrap();
        set_thread_res_gid(None, Gid::ROOT, None).unwrap();
    }
}

type Outcome = Result<Seen, Errno>;

fn done<T>(result: Result<T, Errno>) -> Outcome {
    result.map(|_| Seen::Done)
}

fn count(result: Result<usize, Errno>) -> Outcome {
    result.map(|count| Seen::Count(count as u64))
}

pub struct World<'a> {
    root: PathBuf,
    dir: OwnedFd,
    handles: [Option<OwnedFd>; SLOTS],
    mapping: &'a mut Mapping,
}

impl World<'_> {
    /// Makes the directory.
    pub fn new(root: PathBuf, mapping: &mut Mapping) -> World<'_> {
        fs::create_dir(&root).unwrap();
        rustix::fs::chmod(&root, Mode::from_raw_mode(0o777)).unwrap();
        let dir = File::open(&root).unwrap().into();
        World { root, dir, handles: [const { None }; SLOTS], mapping }
    }

    pub fn apply(&mut self, op: &Op) -> Outcome {
        let _user = op.by_user.then(AsUser::begin);
        match &op.call {
            Call::Path(at, OnPath::Open { slot, flags, mode }) => {
                let mode = Mode::from_raw_mode(*mode & 0o777);
                let opened = rustix::fs::openat(self.base(*at)?, at.path, *flags, mode)?;
                self.handles[*slot] = Some(opened);
                Ok(Seen::Done)
            }
            Call::Path(at, what) => self.on_path(*at, what),
            Call::Name(path, what) => self.on_name(&self.root.join(path), what),
            Call::Handle(slot, OnHandle::Close) => {
                self.handles[*slot] = None;
                Ok(Seen::Done)
            }
            Call::Handle(slot, what) => self.on_handle(self.handle(*slot)?, what),
            Call::Store(at, byte, length) => done(self.mapping.store(*at, *byte, *length)),
            Call::Unmap => done(self.mapping.unmap()),
        }
    }

    /// Closes and unmaps all.
    pub fn rest(mut self) {
        self.mapping.unmap().unwrap();
        self.handles = [const { None }; SLOTS];
    }

    fn handle(&self, slot: usize) -> Result<BorrowedFd<'_>, Errno> {
        self.handles[slot].as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    fn base(&self, at: At) -> Result<BorrowedFd<'_>, Errno> {
        at.slot.map_or(Ok(self.dir.as_fd()), |slot| self.handle(slot))
    }

    fn on_path(&self, at: At, what: &OnPath) -> Outcome {
        use rustix::fs as call;
        let (base, path) = (self.base(at)?, at.path);
        match what {
            OnPath::Open { .. } => unreachable!("it changes the handles"),
            OnPath::Mkdir(mode) => done(call::mkdirat(base, path, Mode::from_raw_mode(*mode))),
            OnPath::Mkfifo(mode) => {
                let mode = Mode::from_raw_mode(*mode);
                done(call::mknodat(base, path, FileType::Fifo, mode, 0))
            }
            OnPath::Rmdir => done(call::unlinkat(base, path, AtFlags::REMOVEDIR)),
            OnPath::Unlink => done(call::unlinkat(base, path, AtFlags::empty())),
            OnPath::Rename(to, flags) => {
                done(call::renameat_with(base, path, self.base(*to)?, to.path, *flags))
            }
            OnPath::Link(to) => {
                done(call::linkat(base, path, self.base(*to)?, to.path, AtFlags::empty()))
            }
            OnPath::Symlink(target) => done(call::symlinkat(*target, base, path)),
            OnPath::Readlink => {
                call::readlinkat(base, path, Vec::new()).map(|text| Seen::Text(text.into_bytes()))
            }
            OnPath::Chmod(mode) => {
                done(call::chmodat(base, path, Mode::from_raw_mode(*mode), AtFlags::empty()))
            }
            OnPath::Chown(uid, gid) => {
                let (uid, gid) = owner(*uid, *gid);
                done(call::chownat(base, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
            }
            OnPath::SetTimes(atime, mtime) => {
                let times = times(*atime, *mtime);
                done(call::utimensat(base, path, &times, AtFlags::SYMLINK_NOFOLLOW))
            }
            OnPath::Stat => stat(call::statat(base, path, AtFlags::empty())),
            OnPath::StatLink => stat(call::statat(base, path, AtFlags::SYMLINK_NOFOLLOW)),
        }
    }

    fn on_name(&mut self, path: &Path, what: &OnName) -> Outcome {
        use rustix::fs as call;
        match what {
            OnName::Truncate(size) => {
                let cut = nix::unistd::truncate(path, (*size).cast_signed());
                done(cut.map_err(|errno| Errno::from_raw_os_error(errno as i32)))
            }
            OnName::ReadDir => list(path).map(Seen::Names),
            OnName::SetXattr(name, value, rule) => done(call::lsetxattr(path, *name, value, *rule)),
            OnName::GetXattr(name) => xattr(path, name.as_bytes()).map(Seen::Text),
            OnName::RemoveXattr(name) => done(call::lremovexattr(path, *name)),
            OnName::ListXattrs => {
                let names = xattr_names(path)?;
                Ok(Seen::Text(names.join(&b'\n')))
            }
            OnName::Map => done(self.mapping.map(path)),
        }
    }

    fn on_handle(&self, file: BorrowedFd<'_>, what: &OnHandle) -> Outcome {
        use rustix::fs as call;
        match what {
            OnHandle::Close => unreachable!("it changes the handles"),
            OnHandle::Read(length) => read(*length, |buffer| rustix::io::read(file, buffer)),
            OnHandle::ReadAt(at, length) => {
                read(*length, |buffer| rustix::io::pread(file, buffer, *at))
            }
            OnHandle::Write(byte, length) => {
                count(rustix::io::write(file, &pattern(*byte, *length)))
            }
            OnHandle::WriteAt(at, byte, length) => {
                count(rustix::io::pwrite(file, &pattern(*byte, *length), *at))
            }
            OnHandle::Seek(at) => call::seek(file, SeekFrom::Start(*at)).map(Seen::Count),
            OnHandle::SeekData(at) => seek(file, *at, true),
            OnHandle::SeekHole(at) => seek(file, *at, false),
            OnHandle::Truncate(size) => done(call::ftruncate(file, *size)),
            OnHandle::Allocate(mode, at, length) => {
                done(call::fallocate(file, *mode, *at, *length))
            }
            OnHandle::Copy(from, slot, to, length) => {
                copy((file, *from), (self.handle(*slot)?, *to), *length)
            }
            OnHandle::Fsync => done(call::fsync(file)),
            OnHandle::Fdatasync => done(call::fdatasync(file)),
            OnHandle::Stat => stat(call::fstat(file)),
            OnHandle::Chmod(mode) => done(call::fchmod(file, Mode::from_raw_mode(*mode))),
            OnHandle::Chown(uid, gid) => {
                let (uid, gid) = owner(*uid, *gid);
                done(call::fchown(file, uid, gid))
            }
            OnHandle::SetTimes(atime, mtime) => done(call::futimens(file, &times(*atime, *mtime))),
        }
    }
}

fn owner(uid: Option<u32>, gid: Option<u32>) -> (Option<Uid>, Option<Gid>) {
    (uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

fn times(atime: When, mtime: When) -> Timestamps {
    let time = |when| match when {
        When::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
        When::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        When::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    };
    Timestamps { last_access: time(atime), last_modification: time(mtime) }
}

fn stat(result: Result<Stat, Errno>) -> Outcome {
    result.map(|stat| Seen::Attributes(Attributes::of(&stat)))
}

/// Bytes that differ from place to place.
fn pattern(byte: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| byte.wrapping_add((at / 251).to_le_bytes()[0])).collect()
}

fn read(length: usize, call: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Outcome {
    let mut buffer = vec![0; length];
    let bytes = call(&mut buffer)?;
    Ok(Seen::Content(Content::of(&buffer[..bytes])))
}

/// Copies all there is to copy: the kernel may do so in parts.
fn copy(
    (from, mut from_at): (BorrowedFd<'_>, u64),
    (to, mut to_at): (BorrowedFd<'_>, u64),
    length: usize,
) -> Outcome {
    let mut copied = 0;
    loop {
        let (from_at, to_at) = (Some(&mut from_at), Some(&mut to_at));
        match rustix::fs::copy_file_range(from, from_at, to, to_at, length - copied)? {
            0 => return Ok(Seen::Count(copied as u64)),
            more => copied += more,
        }
    }
}

/// Where data and holes begin is the file system's choice: a hole may be told as data, but what
/// is told as a hole reads as zeroes.
fn seek(file: BorrowedFd<'_>, at: u64, for_data: bool) -> Outcome {
    let stat = rustix::fs::fstat(file)?;
    let is_readable = rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE != OFlags::WRONLY;
    let whence = if for_data { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
    let place = rustix::fs::tell(file);
    let found = rustix::fs::seek(file, whence);
    if let Ok(place) = place {
        rustix::fs::seek(file, SeekFrom::Start(place))?;
    }
    let size = stat.st_size.cast_unsigned();
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || at >= size || !is_readable {
        // A directory's data is its own affair.
        return if is_file && at >= size { done(found) } else { Ok(Seen::Done) };
    }
    let hole = match (found, for_data) {
        (Ok(data), true) => at..data,
        (Err(Errno::NXIO), true) => at..size,
        (Ok(hole), false) => hole..(hole + 1).min(size),
        (Err(errno), _) => return Err(errno),
    };
    let mut bytes = vec![1; usize::try_from(hole.end - hole.start).unwrap()];
    let read = rustix::io::pread(file, &mut bytes, hole.start)?;
    if read == bytes.len() && bytes.iter().all(|byte| *byte == 0) && hole.start >= at {
        return Ok(Seen::Done);
    }
    Ok(Seen::Wrong(format!("told as a hole of {size} bytes: {hole:?}")))
}

fn list(path: &Path) -> Result<Vec<(OsString, FileType)>, Errno> {
    let entries = fs::read_dir(path).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let kinds = [
            (kind.is_dir(), FileType::Directory),
            (kind.is_file(), FileType::RegularFile),
            (kind.is_symlink(), FileType::Symlink),
        ];
        let kind = kinds.into_iter().find(|(is_it, _)| *is_it);
        (entry.file_name(), kind.map_or(FileType::Fifo, |(_, kind)| kind))
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

fn xattr(path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; XATTR_BYTES_MAX];
    let bytes = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(bytes);
    Ok(value)
}

/// Those that programs and root set. A machine's security module may add its own to local files.
fn xattr_names(path: &Path) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let bytes = rustix::fs::llistxattr(path, &mut names[..])?;
    let all = names[..bytes].split(|byte| *byte == 0);
    let ours = |name: &&[u8]| name.starts_with(b"user.") || name.starts_with(b"trusted.");
    let mut names: Vec<Vec<u8>> = all.filter(ours).map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}

/// Everything below a directory.
pub fn tree(root: &Path) -> Tree {
    let (mut found, mut first) = (Tree::new(), BTreeMap::new());
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let whole = root.join(&path);
        let stat = rustix::fs::lstat(&whole).unwrap();
        let attributes = Attributes::of(&stat);
        let content = match attributes.kind {
            FileType::RegularFile => Content::of(&fs::read(&whole).unwrap()),
            FileType::Symlink => Content::of(fs::read_link(&whole).unwrap().as_os_str().as_bytes()),
            FileType::Directory => {
                let mut names = list(&whole).unwrap();
                names.reverse();
                left.extend(names.into_iter().map(|(name, _)| path.join(name)));
                Content::of(b"")
            }
            _ => Content::of(b""),
        };
        let names = xattr_names(&whole).unwrap();
        let xattr = |name: Vec<u8>| (name.clone(), xattr(&whole, &name).unwrap());
        let xattrs = names.into_iter().map(xattr).collect();
        let same_as = first.entry(stat.st_ino).or_insert_with(|| path.clone()).clone();
        found.insert(path, Entry { attributes, content, xattrs, same_as });
    }
    found
}
