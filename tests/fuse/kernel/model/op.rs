//! What programs do to files, at random.

use proptest::prelude::{Just, Strategy, any, prop};
use proptest::prop_oneof;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, XattrFlags};

/// How many handles a sequence keeps open.
pub const SLOTS: usize = 3;

/// Names meet each other often, and no path leads above the directory that a sequence works in.
const PATHS: [&str; 12] =
    ["a", "a", "b", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/b/c", "b/a/b"];

/// What names are seldom: the directory itself, none, not there, too long.
const ODD_PATHS: [&str; 5] = [".", "", "a/.", "none/a", TOO_LONG];

/// 256 bytes.
const TOO_LONG: &str = concat!(
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
);

const XATTRS: [&str; 3] = ["user.a", "user.b", "trusted.a"];

/// Permission bits, those of set-id and sticky among them.
const MODES: [u32; 8] = [0o755, 0o644, 0o777, 0o600, 0o000, 0o1777, 0o2775, 0o6755];

/// Seconds of times that are set: before 1970, long ago, beyond 32 bits; none close to our time.
const TIMES: [i64; 3] = [-5, 1_000_000_000, 5_000_000_000];

/// A path, below an open directory if there is one.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub slot: Option<usize>,
    pub path: &'static str,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum When {
    At(i64, i64),
    Now,
    Omit,
}

/// An operation on a path.
#[derive(Clone, Debug)]
pub enum OnPath {
    Open { slot: usize, flags: OFlags, mode: u32 },
    Mkdir(u32),
    Mkfifo(u32),
    Rmdir,
    Unlink,
    Rename(At, RenameFlags),
    Link(At),
    Symlink(&'static str),
    Readlink,
    Chmod(u32),
    Chown(Option<u32>, Option<u32>),
    SetTimes(When, When),
    Stat,
    StatLink,
}

/// An operation on a path that system calls know without an open directory.
#[derive(Clone, Debug)]
pub enum OnName {
    Truncate(u64),
    ReadDir,
    SetXattr(&'static str, Vec<u8>, XattrFlags),
    GetXattr(&'static str),
    RemoveXattr(&'static str),
    ListXattrs,
    Map,
}

/// An operation on an open file.
#[derive(Clone, Debug)]
pub enum OnHandle {
    Close,
    Read(usize),
    ReadAt(u64, usize),
    Write(u8, usize),
    WriteAt(u64, u8, usize),
    Seek(u64),
    SeekData(u64),
    SeekHole(u64),
    Truncate(u64),
    Allocate(FallocateFlags, u64, u64),
    /// From an offset there to an offset of another handle.
    Copy(u64, usize, u64, usize),
    Fsync,
    Fdatasync,
    Stat,
    Chmod(u32),
    Chown(Option<u32>, Option<u32>),
    SetTimes(When, When),
}

#[derive(Clone, Debug)]
pub enum Call {
    Path(At, OnPath),
    Name(&'static str, OnName),
    Handle(usize, OnHandle),
    /// Into what is mapped.
    Store(usize, u8, usize),
    Unmap,
}

#[derive(Clone, Debug)]
pub struct Op {
    /// Whether an ordinary user calls, and not root.
    pub by_user: bool,
    pub call: Call,
}

fn path() -> impl Strategy<Value = &'static str> {
    prop_oneof![19 => prop::sample::select(&PATHS[..]), 1 => prop::sample::select(&ODD_PATHS[..])]
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn at() -> impl Strategy<Value = At> {
    let slot = prop_oneof![9 => Just(None), 1 => slot().prop_map(Some)];
    (slot, path()).prop_map(|(slot, path)| At { slot, path })
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0o755), 1 => prop::sample::select(&MODES[..])]
}

/// Owners and groups: root, the user, others.
fn owner() -> impl Strategy<Value = Option<u32>> {
    prop::sample::select(&[None, Some(0), Some(super::world::USER), Some(77)][..])
}

fn when() -> impl Strategy<Value = When> {
    let set = (prop::sample::select(&TIMES[..]), 0..1_000_000_000_i64);
    prop_oneof![4 => set.prop_map(|(secs, nanos)| When::At(secs, nanos)), 1 => Just(When::Now),
        1 => Just(When::Omit)]
}

/// Places in a file: anywhere near its begin, at pages, and several chunks away.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..20_000_u64, 3 => (0..20_u64).prop_map(|page| page * 4096),
        1 => 0..2_000_000_u64]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 8 => 1..10_000_usize, 4 => Just(4096), 2 => 1..400_000_usize]
}

fn flags() -> impl Strategy<Value = OFlags> {
    let access = prop_oneof![1 => Just(OFlags::RDONLY), 1 => Just(OFlags::WRONLY),
        4 => Just(OFlags::RDWR)];
    let some = |flag, percent| {
        prop::bool::weighted(percent).prop_map(move |on| if on { flag } else { OFlags::empty() })
    };
    let how = (some(OFlags::CREATE, 0.7), some(OFlags::EXCL, 0.1), some(OFlags::TRUNC, 0.15));
    let rest = (some(OFlags::APPEND, 0.2), some(OFlags::NOFOLLOW, 0.1), some(OFlags::SYNC, 0.05));
    let directory = some(OFlags::DIRECTORY, 0.03);
    // No open waits for the other side of a fifo.
    (access, how, rest, directory).prop_map(|(access, (a, b, c), (d, e, f), g)| {
        access | a | b | c | d | e | f | g | OFlags::NONBLOCK | OFlags::CLOEXEC
    })
}

fn rename_flags() -> impl Strategy<Value = RenameFlags> {
    prop_oneof![4 => Just(RenameFlags::empty()), 1 => Just(RenameFlags::NOREPLACE),
        1 => Just(RenameFlags::EXCHANGE)]
}

fn open() -> impl Strategy<Value = OnPath> {
    (slot(), flags(), mode()).prop_map(|(slot, flags, mode)| OnPath::Open { slot, flags, mode })
}

fn on_path() -> impl Strategy<Value = OnPath> {
    let target = prop_oneof![9 => path(), 1 => Just("b/../a")];
    prop_oneof![
        14 => open(),
        5 => mode().prop_map(OnPath::Mkdir),
        1 => mode().prop_map(OnPath::Mkfifo),
        1 => Just(OnPath::Rmdir),
        2 => Just(OnPath::Unlink),
        6 => (at(), rename_flags()).prop_map(|(to, flags)| OnPath::Rename(to, flags)),
        3 => at().prop_map(OnPath::Link),
        2 => target.prop_map(OnPath::Symlink),
        1 => Just(OnPath::Readlink),
        2 => mode().prop_map(OnPath::Chmod),
        2 => (owner(), owner()).prop_map(|(uid, gid)| OnPath::Chown(uid, gid)),
        2 => (when(), when()).prop_map(|(atime, mtime)| OnPath::SetTimes(atime, mtime)),
        2 => Just(OnPath::Stat),
        2 => Just(OnPath::StatLink),
    ]
}

fn on_name() -> impl Strategy<Value = OnName> {
    let xattr = || prop::sample::select(&XATTRS[..]);
    let rule = prop_oneof![2 => Just(XattrFlags::empty()), 1 => Just(XattrFlags::CREATE),
        1 => Just(XattrFlags::REPLACE)];
    let value = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        3 => offset().prop_map(OnName::Truncate),
        2 => Just(OnName::ReadDir),
        3 => (xattr(), value, rule)
            .prop_map(|(name, value, rule)| OnName::SetXattr(name, value, rule)),
        2 => xattr().prop_map(OnName::GetXattr),
        1 => xattr().prop_map(OnName::RemoveXattr),
        1 => Just(OnName::ListXattrs),
        3 => Just(OnName::Map),
    ]
}

fn allocate() -> impl Strategy<Value = OnHandle> {
    let keep = FallocateFlags::KEEP_SIZE;
    let modes = [
        FallocateFlags::empty(),
        keep,
        FallocateFlags::PUNCH_HOLE | keep,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | keep,
    ];
    let length = prop_oneof![1 => 0..20_000_u64, 1 => (1..9_u64).prop_map(|page| page * 4096)];
    (prop::sample::select(modes.to_vec()), offset(), length)
        .prop_map(|(mode, offset, length)| OnHandle::Allocate(mode, offset, length))
}

fn on_handle() -> impl Strategy<Value = OnHandle> {
    let copy = (offset(), slot(), offset(), length());
    prop_oneof![
        2 => Just(OnHandle::Close),
        3 => length().prop_map(OnHandle::Read),
        4 => (offset(), length()).prop_map(|(at, length)| OnHandle::ReadAt(at, length)),
        6 => (any::<u8>(), length()).prop_map(|(byte, length)| OnHandle::Write(byte, length)),
        6 => (offset(), any::<u8>(), length())
            .prop_map(|(at, byte, length)| OnHandle::WriteAt(at, byte, length)),
        1 => offset().prop_map(OnHandle::Seek),
        2 => offset().prop_map(OnHandle::SeekData),
        2 => offset().prop_map(OnHandle::SeekHole),
        3 => offset().prop_map(OnHandle::Truncate),
        3 => allocate(),
        3 => copy.prop_map(|(from, slot, to, length)| OnHandle::Copy(from, slot, to, length)),
        1 => Just(OnHandle::Fsync),
        1 => Just(OnHandle::Fdatasync),
        3 => Just(OnHandle::Stat),
        1 => mode().prop_map(OnHandle::Chmod),
        1 => (owner(), owner()).prop_map(|(uid, gid)| OnHandle::Chown(uid, gid)),
        1 => (when(), when()).prop_map(|(atime, mtime)| OnHandle::SetTimes(atime, mtime)),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        8 => (at(), on_path()).prop_map(|(at, what)| Call::Path(at, what)),
        3 => (path(), on_name()).prop_map(|(path, what)| Call::Name(path, what)),
        8 => (slot(), on_handle()).prop_map(|(slot, what)| Call::Handle(slot, what)),
        1 => (0..20_000_usize, any::<u8>(), 1..5000_usize)
            .prop_map(|(at, byte, length)| Call::Store(at, byte, length)),
        1 => Just(Call::Unmap),
    ]
}

/// What every sequence begins with: directories, and files with content, all of them open. Without
/// it most operations would find nothing to work on.
pub fn prelude() -> Vec<Op> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let on = |path, what| Call::Path(At { slot: None, path }, what);
    let open = |slot, path| on(path, OnPath::Open { slot, flags, mode: 0o666 });
    let write = |slot, length| Call::Handle(slot, OnHandle::Write(1, length));
    let calls = [
        on("a", OnPath::Mkdir(0o777)),
        on("b", OnPath::Mkdir(0o777)),
        on("a/a", OnPath::Mkdir(0o777)),
        open(0, "c"),
        open(1, "a/b"),
        open(2, "b/a"),
        write(0, 10_000),
        write(1, 700_000),
    ];
    calls.map(|call| Op { by_user: false, call }).into()
}

/// Sequences of up to `length_max` operations.
pub fn sequence(length_max: usize) -> impl Strategy<Value = Vec<Op>> {
    let op = (prop::bool::weighted(0.15), call()).prop_map(|(by_user, call)| Op { by_user, call });
    prop::collection::vec(op, 1..=length_max)
}
