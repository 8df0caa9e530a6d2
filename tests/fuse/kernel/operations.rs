//! What programs do to files, on one mount of any kind: the operations take a directory and know
//! nothing of what is below it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, SpliceFFlags, copy_file_range, fallocate, splice};
use nix::libc;
use nix::sys::sendfile::sendfile;
use nix::unistd::{Whence, lseek};

type Operation = fn(&Path);

/// Every operation, with the name of the directory that it gets.
pub const ALL: &[(&str, Operation)] = &[
    ("appends", appends_cuts_and_seeks_through_one_handle),
    ("creation", exclusive_creation_and_truncating_opens),
    ("threads", many_threads_make_and_read_files),
    ("allocate", space_is_allocated_cleared_and_punched),
    ("refused", modes_that_move_content_are_refused),
    ("copy", copies_between_handles_keep_holes),
    ("copy-rules", copies_obey_the_rules),
    ("cp", cp_keeps_holes),
    ("direct", direct_io_of_any_alignment),
    ("tmpfile", files_without_a_name_are_made_by_other_means),
    ("sync", directories_and_data_are_synced),
    ("cut", a_file_is_cut_by_name_while_it_is_open),
    ("removed", files_live_on_when_their_name_is_gone),
    ("splice", sendfile_and_splice_both_ways),
    ("exec", what_was_just_written_runs),
    ("large", files_beyond_four_gib),
    ("mapped", mappings_and_calls_see_one_content),
];

/// Runs every operation in a directory of its own below `dir`.
pub fn run_all(dir: &Path) {
    for (name, operation) in ALL {
        let own = dir.join(name);
        fs::create_dir(&own).unwrap();
        operation(&own);
        fs::remove_dir_all(&own).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

fn sh(dir: &Path, script: &str) -> String {
    let mut shell = Command::new("timeout");
    shell.args(["-s", "KILL", "60", "bash", "-euc", script]).current_dir(dir);
    let output = shell.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The stretches of data that SEEK_DATA and SEEK_HOLE find.
fn data_of(file: &File) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Ok(start) = lseek(file, offset, Whence::SeekData) {
        offset = lseek(file, start, Whence::SeekHole).unwrap();
        found.push((start, offset));
    }
    found
}

fn appends_cuts_and_seeks_through_one_handle(dir: &Path) {
    let path = dir.join("file");
    let mut append = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    append.write_all(b"one").unwrap();
    let mut reader = File::open(&path).unwrap();
    append.write_all(b"two").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "onetwo");
    assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), 6);
    append.set_len(4).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 4);
    append.write_all(b"!").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "onet!");
    drop(append);
    assert_eq!(fs::metadata(&path).unwrap().len(), 5);
    fs::remove_file(&path).unwrap();
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
}

fn exclusive_creation_and_truncating_opens(dir: &Path) {
    let path = dir.join("file");
    let exclusive = || OpenOptions::new().write(true).create_new(true).open(&path);
    exclusive().unwrap().write_all(b"abc").unwrap();
    assert_eq!(exclusive().unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
    File::create(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}

fn many_threads_make_and_read_files(dir: &Path) {
    let name = |thread: u32, number: u32| dir.join(format!("{thread}-{number}"));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for number in 0..10 {
                    fs::write(name(thread, number), format!("{thread} {number}")).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir).unwrap().count(), 40);
    for thread in 0..4 {
        assert_eq!(fs::read_to_string(name(thread, 7)).unwrap(), format!("{thread} 7"));
    }
}

const MIB: i64 = 1 << 20;

fn space_is_allocated_cleared_and_punched(dir: &Path) {
    let file = read_write(&dir.join("file"));
    let size = || file.metadata().unwrap().len();
    let kept = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, FallocateFlags::empty(), 0, 4 * MIB).unwrap();
    assert_eq!(size(), 4 << 20);
    assert_eq!(data_of(&file), [], "what was only allocated is a hole");
    fallocate(&file, kept, 0, 8 * MIB).unwrap();
    assert_eq!(size(), 4 << 20, "KEEP_SIZE");

    file.write_all_at(&[b'x'; 4 << 20], 0).unwrap();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | kept;
    fallocate(&file, hole, MIB, MIB).unwrap();
    assert_eq!(data_of(&file), [(0, MIB), (2 * MIB, 4 * MIB)]);
    fallocate(&file, hole, 4 * MIB - 10, MIB).unwrap();
    assert_eq!(size(), 4 << 20);
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    fallocate(&file, zero | kept, 3 * MIB, 9 * MIB).unwrap();
    assert_eq!(size(), 4 << 20, "ZERO_RANGE | KEEP_SIZE");
    fallocate(&file, zero, 5, 5 * MIB).unwrap();
    assert_eq!(size(), (5 << 20) + 5);
    let mut bytes = vec![1; 16];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, *b"xxxxx\0\0\0\0\0\0\0\0\0\0\0");
    drop(file);
    let bytes = fs::read(dir.join("file")).unwrap();
    assert!(bytes[..5] == *b"xxxxx" && bytes[5..].iter().all(|byte| *byte == 0));
    assert_eq!(bytes.len(), (5 << 20) + 5);
}

fn modes_that_move_content_are_refused(dir: &Path) {
    let file = read_write(&dir.join("file"));
    file.set_len(4 << 20).unwrap();
    for flags in [
        FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
        FallocateFlags::FALLOC_FL_INSERT_RANGE,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        FallocateFlags::FALLOC_FL_UNSHARE_RANGE,
    ] {
        assert_eq!(fallocate(&file, flags, 0, MIB), Err(Errno::EOPNOTSUPP), "{flags:?}");
    }
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 0), Err(Errno::EINVAL));
    let reader = File::open(dir.join("file")).unwrap();
    assert_eq!(fallocate(&reader, FallocateFlags::empty(), 0, MIB), Err(Errno::EBADF));
    let more_than_any_disk = 1 << 45;
    let refused = fallocate(&file, FallocateFlags::empty(), 0, more_than_any_disk);
    assert_eq!(refused, Err(Errno::ENOSPC), "the cache cannot hold it");
    assert_eq!(file.metadata().unwrap().len(), 4 << 20);
}

/// Copies as long as the call copies something; how much that was.
fn copy_all(from: &File, to: &File, (mut start, mut place): (i64, i64), length: i64) -> i64 {
    let (begin, end) = (start, start + length);
    while start < end {
        let rest = usize::try_from(end - start).unwrap();
        let copied = copy_file_range(from, Some(&mut start), to, Some(&mut place), rest).unwrap();
        if copied == 0 {
            break;
        }
    }
    start - begin
}

fn copies_between_handles_keep_holes(dir: &Path) {
    let from = read_write(&dir.join("from"));
    from.set_len(100 << 20).unwrap();
    from.write_all_at(&[b'a'; 1 << 20], 10 << 20).unwrap();
    from.write_all_at(&[b'z'; 1 << 20], 99 << 20).unwrap();
    let to = read_write(&dir.join("to"));
    to.write_all_at(&[b'o'; 2 << 20], 0).unwrap();
    assert_eq!(copy_all(&from, &to, (0, 0), 200 * MIB), 100 * MIB, "up to the end");
    assert_eq!(data_of(&to), data_of(&from));
    assert_eq!(data_of(&to), [(10 * MIB, 11 * MIB), (99 * MIB, 100 * MIB)]);
    let reader = File::open(dir.join("from")).unwrap();
    assert_eq!(copy_all(&reader, &to, (10 * MIB - 3, 1), 6), 6);
    drop((from, to));
    let [from, to] = ["from", "to"].map(|name| fs::read(dir.join(name)).unwrap());
    assert_eq!(to[..8], *b"\0\0\0\0aaa\0");
    assert!(from[8..] == to[8..]);
}

fn copies_obey_the_rules(dir: &Path) {
    let path = dir.join("file");
    let file = read_write(&path);
    file.write_all_at(b"0123456789", 0).unwrap();
    let copy = |from: &File, to: &File, at: (i64, i64), length| {
        let (mut start, mut place) = at;
        copy_file_range(from, Some(&mut start), to, Some(&mut place), length)
    };
    assert_eq!(copy(&file, &file, (0, 5), 6), Err(Errno::EINVAL), "they overlap");
    assert_eq!(copy(&file, &file, (0, 5), 5), Ok(5));
    assert_eq!(copy(&file, &file, (10, 20), 5), Ok(0), "at the end");
    assert_eq!(fs::read(&path).unwrap(), b"0123401234");
    let reader = File::open(&path).unwrap();
    assert_eq!(copy(&file, &reader, (0, 5), 5), Err(Errno::EBADF), "read only");
    let append = OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(copy(&file, &append, (0, 0), 5), Err(Errno::EBADF), "append");
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(copy(&writer, &file, (0, 5), 5), Err(Errno::EBADF), "write only");
}

fn cp_keeps_holes(dir: &Path) {
    let script =
        "truncate -s 64M f; printf data | dd of=f bs=1 seek=30000000 conv=notrunc status=none
        for how in '--reflink=auto' '--sparse=always' '--reflink=auto --sparse=always'; do
            cp $how f g; cmp f g; test $(stat -c %b g) -lt 10000; rm g
        done
        head -c 8M /dev/zero > zeros; cp --sparse=always zeros g; cmp zeros g
        test $(stat -c %b g) -lt 1000";
    sh(dir, script);
}

fn direct_io_of_any_alignment(dir: &Path) {
    let path = dir.join("file");
    let direct = |options: &mut OpenOptions| options.custom_flags(libc::O_DIRECT).open(&path);
    let writer = direct(OpenOptions::new().write(true).create_new(true)).unwrap();
    writer.write_all_at(b"odd bytes", 3).unwrap();
    writer.write_all_at(&[b'x'; 4096], 4096).unwrap();
    let both = direct(OpenOptions::new().read(true).write(true)).unwrap();
    let mut bytes = [0; 7];
    both.read_exact_at(&mut bytes, 5).unwrap();
    assert_eq!(&bytes, b"d bytes");
    let plain = File::open(&path).unwrap();
    plain.read_exact_at(&mut bytes, 5).unwrap();
    assert_eq!(&bytes, b"d bytes");
    writer.write_all_at(b"D", 5).unwrap();
    plain.read_exact_at(&mut bytes, 5).unwrap();
    assert_eq!(&bytes, b"D bytes", "what went past the page cache is in it");
    drop((writer, both, plain));
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
}

fn files_without_a_name_are_made_by_other_means(dir: &Path) {
    let unnamed = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(dir);
    assert_eq!(errno(unnamed), Errno::EOPNOTSUPP);
    let script = "import os, tempfile
with tempfile.TemporaryFile(dir='.') as f:
    f.write(b'kept'); f.flush(); f.seek(0)
    assert f.read() == b'kept' and os.fstat(f.fileno()).st_nlink == 0
with tempfile.NamedTemporaryFile(dir='.') as f:
    f.write(b'kept'); f.flush()
    assert open(f.name, 'rb').read() == b'kept'
assert os.listdir('.') == []";
    sh(dir, &format!("python3 - <<'END'\n{script}\nEND"));
}

fn directories_and_data_are_synced(dir: &Path) {
    let mut file = read_write(&dir.join("file"));
    file.write_all(b"synced").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    File::open(dir).unwrap().sync_all().unwrap();
    File::open(dir.join("sub")).unwrap().sync_data().unwrap();
    File::open(dir.join("file")).unwrap().sync_all().unwrap();
    fs::remove_file(dir.join("file")).unwrap();
    file.sync_all().unwrap();
    for flags in [libc::O_SYNC, libc::O_DSYNC] {
        let path = dir.join("each");
        let mut each =
            OpenOptions::new().create(true).append(true).custom_flags(flags).open(&path).unwrap();
        each.write_all(b"one").unwrap();
        each.write_all(b"two").unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("onetwo"));
    }
    assert_eq!(fs::read_to_string(dir.join("each")).unwrap(), "onetwoonetwo");
}

fn a_file_is_cut_by_name_while_it_is_open(dir: &Path) {
    let path = dir.join("file");
    let writer = read_write(&path);
    writer.write_all_at(b"0123456789", 0).unwrap();
    let mut reader = File::open(&path).unwrap();
    sh(dir, "truncate -s 4 file");
    assert_eq!(writer.metadata().unwrap().len(), 4);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123");
    sh(dir, "truncate -s 8 file");
    let mut bytes = [1; 8];
    writer.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"0123\0\0\0\0", "no old bytes come back");
    writer.set_len(2).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2);
    drop(writer);
    sh(dir, "truncate -s 1 file");
    assert_eq!(reader.metadata().unwrap().len(), 1);
    assert_eq!(fs::read(&path).unwrap(), b"0");
}

fn files_live_on_when_their_name_is_gone(dir: &Path) {
    let (path, other) = (dir.join("file"), dir.join("other"));
    let writer = read_write(&path);
    writer.write_all_at(b"first", 0).unwrap();
    fs::remove_file(&path).unwrap();
    writer.write_all_at(b" more", 5).unwrap();
    let mut bytes = [0; 10];
    writer.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"first more");
    fallocate(&writer, FallocateFlags::empty(), 0, MIB).unwrap();
    assert_eq!(
        (writer.metadata().unwrap().nlink(), writer.metadata().unwrap().len()),
        (0, 1 << 20)
    );

    fs::write(&path, "old").unwrap();
    fs::write(&other, "new").unwrap();
    let old = read_write(&path);
    fs::rename(&other, &path).unwrap();
    old.write_all_at(b"OLD", 0).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    let mut bytes = [0; 3];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"OLD");
    drop((old, writer));
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    let moved = read_write(&path);
    fs::rename(&path, &other).unwrap();
    moved.write_all_at(b"N", 0).unwrap();
    drop(moved);
    assert_eq!(fs::read_to_string(&other).unwrap(), "New");
}

fn sendfile_and_splice_both_ways(dir: &Path) {
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let from = read_write(&dir.join("from"));
    from.write_all_at(&bytes, 0).unwrap();
    let reader = File::open(dir.join("from")).unwrap();
    for (name, source) in [("from-reader", &reader), ("from-writer", &from)] {
        let to = read_write(&dir.join(name));
        let mut offset = 0;
        while sendfile(&to, source, Some(&mut offset), 1 << 20).unwrap() > 0 {}
        drop(to);
        assert!(fs::read(dir.join(name)).unwrap() == bytes, "{name}");
    }
    let to = read_write(&dir.join("spliced"));
    let (out, into) = nix::unistd::pipe().unwrap();
    let (mut from_offset, mut to_offset) = (0, 0);
    loop {
        let flags = SpliceFFlags::empty();
        let taken =
            splice(reader.as_fd(), Some(&mut from_offset), &into, None, 64 << 10, flags).unwrap();
        if taken == 0 {
            break;
        }
        let mut left = taken;
        while left > 0 {
            left -= splice(&out, None, to.as_fd(), Some(&mut to_offset), left, flags).unwrap();
        }
    }
    drop(to);
    assert!(fs::read(dir.join("spliced")).unwrap() == bytes);
}

fn what_was_just_written_runs(dir: &Path) {
    let path: PathBuf = dir.join("program");
    let bytes = fs::read("/bin/true").unwrap();
    let mut writer =
        OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
    writer.write_all(&bytes).unwrap();
    let busy = Command::new(&path).status().unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY), "somebody writes to it");
    drop(writer);
    assert!(Command::new(&path).status().unwrap().success());

    let sleeper = dir.join("sleeper");
    fs::copy("/bin/cat", &sleeper).unwrap();
    fs::set_permissions(&sleeper, fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = Command::new(&sleeper).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let refused = OpenOptions::new().write(true).open(&sleeper);
    assert_eq!(errno(refused), Errno::ETXTBSY, "it runs");
    drop(running.stdin.take());
    assert!(running.wait().unwrap().success());
    OpenOptions::new().write(true).open(&sleeper).unwrap();
}

fn files_beyond_four_gib(dir: &Path) {
    const FAR: u64 = (4 << 30) + 12_345;
    let path = dir.join("file");
    let file = read_write(&path);
    file.write_all_at(b"far", FAR).unwrap();
    file.set_len(FAR + (1 << 30)).unwrap();
    drop(file);
    let file = read_write(&path);
    assert_eq!(file.metadata().unwrap().len(), FAR + (1 << 30));
    assert!(file.metadata().unwrap().blocks() < 1000, "sparse");
    let mut bytes = [1; 5];
    file.read_exact_at(&mut bytes, FAR - 1).unwrap();
    assert_eq!(&bytes, b"\0far\0");
    let far = i64::try_from(FAR).unwrap();
    assert_eq!(copy_all(&file, &file, (far, far + MIB), 3), 3);
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, far, 3).unwrap();
    drop(file);
    let file = File::open(&path).unwrap();
    file.read_exact_at(&mut bytes, FAR + (1 << 20)).unwrap();
    assert_eq!(&bytes, b"far\0\0");
    file.read_exact_at(&mut bytes, FAR).unwrap();
    assert_eq!(bytes, [0; 5]);
}

fn mappings_and_calls_see_one_content(dir: &Path) {
    let script = "import mmap, os
fd = os.open('file', os.O_RDWR | os.O_CREAT)
os.write(fd, b'-' * 20000)
with mmap.mmap(fd, 20000) as m:
    m[9000:9003] = b'map'
    assert os.pread(fd, 5, 8999) == b'-map-'
    os.pwrite(fd, b'call', 15000)
    assert m[14999:15005] == b'-call-'
    os.fsync(fd)
    m[9000:9003] = b'MAP'
    os.close(fd)
    m[0:4] = b'late'
text = open('file', 'rb').read()
assert text[:5] == b'late-' and text[8999:9004] == b'-MAP-', text[8990:9010]";
    sh(dir, &format!("python3 - <<'END'\n{script}\nEND"));
}
