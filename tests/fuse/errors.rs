//! What programs get to see when something cannot be done. The whole table is in SEMANTICS.md.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknod};
use nix::unistd::{Whence, lseek, mkfifo};

use crate::support::{Client, Holder, Server, eventually, run, signal, waits};

/// Most names of one file. Source: PROTOCOL.md, `LINK_COUNT_MAX`.
const LINK_COUNT_MAX: usize = 1024;

#[track_caller]
fn fails<T>(wanted: Errno, result: std::io::Result<T>) {
    match result {
        Ok(_) => panic!("succeeded; {wanted} was due"),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(wanted as i32), "{error}, not {wanted}")
        }
    }
}

fn in_words<T>(result: nix::Result<T>) -> std::io::Result<T> {
    result.map_err(Into::into)
}

/// Opens with flags that the standard library has no words for.
fn open(path: &Path, flags: OFlag) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path)
}

#[test]
fn errors_of_names_are_those_of_a_local_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    let at = |name: &str| mount.at(name);
    fs::create_dir_all(at("d/full/below")).unwrap();
    fs::write(at("f"), "x").unwrap();
    symlink("loop", at("loop")).unwrap();

    fails(Errno::ENOENT, fs::metadata(at("none")));
    fails(Errno::ENOENT, fs::rename(at("none"), at("other")));
    fails(Errno::EEXIST, fs::create_dir(at("f")));
    fails(Errno::EEXIST, fs::hard_link(at("f"), at("d")));
    let no_replace = RenameFlags::RENAME_NOREPLACE;
    let renamed = renameat2(AT_FDCWD, &at("f"), AT_FDCWD, &at("d"), no_replace);
    fails(Errno::EEXIST, in_words(renamed));
    fails(Errno::ENOTDIR, fs::metadata(at("f/below")));
    fails(Errno::ENOTDIR, fs::rename(at("d"), at("f")));
    fails(Errno::ENOTDIR, fs::remove_dir(at("f")));
    fails(Errno::EISDIR, File::create(at("d")));
    fails(Errno::EISDIR, fs::remove_file(at("d")));
    fails(Errno::EISDIR, fs::rename(at("f"), at("d")));
    fails(Errno::ENOTEMPTY, fs::remove_dir(at("d")));
    fails(Errno::ENOTEMPTY, fs::rename(at("d/full/below"), at("d")));
    fails(Errno::EINVAL, fs::rename(at("d"), at("d/full/below/d")));
    fails(Errno::EINVAL, fs::read_link(at("f")));
    fails(Errno::ELOOP, fs::metadata(at("loop")));
    fails(Errno::EXDEV, fs::hard_link(at("f"), dir.path().join("outside")));
    fails(Errno::EXDEV, fs::rename(at("f"), dir.path().join("outside")));

    let long = "n".repeat(256);
    fails(Errno::ENAMETOOLONG, File::create(at(&long)));
    fails(Errno::ENAMETOOLONG, fs::rename(at("f"), at(&long)));
    fails(Errno::ENAMETOOLONG, symlink("t".repeat(4096), at("s")));
    for number in 1..LINK_COUNT_MAX {
        fs::hard_link(at("f"), at(&format!("d/f{number}"))).unwrap();
    }
    fails(Errno::EMLINK, fs::hard_link(at("f"), at("more")));
    fs::remove_file(at("d/f1")).unwrap();
    fs::hard_link(at("f"), at("more")).unwrap();
}

#[test]
fn errors_of_open_files_are_those_of_a_local_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    fs::write(mount.at("f"), "content").unwrap();

    let (reader, writer) =
        (File::open(mount.at("f")).unwrap(), open(&mount.at("f"), OFlag::empty()));
    let writer = writer.unwrap();
    fails(Errno::EBADF, reader.write_at(b"x", 0));
    fails(Errno::EINVAL, reader.set_len(0));
    fails(Errno::EFBIG, writer.set_len(1 << 60));
    fails(Errno::EFBIG, writer.write_at(b"x", 1 << 60));
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"content", "nothing of it was done");
    fails(Errno::ENXIO, in_words(lseek(&writer, 100, Whence::SeekData)));
    fails(Errno::ENOTTY, in_words(nix::sys::termios::tcgetattr(&writer).map(drop)));
    // tmpfile(3) and its like make a file with a name instead, and remove that.
    fails(Errno::EOPNOTSUPP, open(&mount.dir, OFlag::O_TMPFILE));

    fs::copy("/bin/sleep", mount.at("program")).unwrap();
    let mut running = Command::new(mount.at("program")).arg("60").spawn().unwrap();
    fails(Errno::ETXTBSY, open(&mount.at("program"), OFlag::empty()));
    running.kill().unwrap();
    running.wait().unwrap();
    let writing = open(&mount.at("program"), OFlag::empty()).unwrap();
    fails(Errno::ETXTBSY, Command::new(mount.at("program")).arg("0").spawn());
    drop(writing);
    run(Command::new(mount.at("program")).arg("0"));
}

#[test]
fn errors_of_rights_tell_whose_right_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["--allow-other"]);
    mount.shell("mkdir -m 1777 shared; mkdir -m 700 closed; echo x > shared/f; echo y > closed/f");
    let as_another = |script: &str| {
        let mut another = Command::new("setpriv");
        another.args(["--reuid=1234", "--regid=1234", "--clear-groups", "bash", "-c", script]);
        let output = crate::support::attempt(another.current_dir(&mount.dir).env("LC_ALL", "C"));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (script, said) in [
        ("cat closed/f", "Permission denied"),
        ("echo z > shared/f", "Permission denied"),
        ("touch new", "Permission denied"),
        ("rm -f shared/f", "Operation not permitted"),
        ("chmod 777 shared/f", "Operation not permitted"),
        ("chown 1234 shared/f", "Operation not permitted"),
    ] {
        let stderr = as_another(script);
        assert!(stderr.contains(said), "{script}: {stderr}");
    }
    let node = mknod(&mount.at("null"), SFlag::S_IFCHR, Mode::empty(), 0x103);
    fails(Errno::EPERM, in_words(node));
    mkfifo(&mount.at("fifo"), Mode::S_IRWXU).unwrap();

    let reader = Client::new(&dir.path().join("b"), &server);
    let read_only = reader.mount(&server, &["--read-only", "--allow-other"]);
    assert_eq!(fs::read_to_string(read_only.at("shared/f")).unwrap(), "x\n");
    fails(Errno::EROFS, File::create(read_only.at("new")));
    fails(Errno::EROFS, fs::write(read_only.at("shared/f"), "y"));
    fails(Errno::EROFS, fs::create_dir(read_only.at("new")));
    fails(Errno::EROFS, fs::remove_file(read_only.at("shared/f")));
    fails(Errno::EROFS, fs::rename(read_only.at("shared"), read_only.at("other")));
    let mode = fs::Permissions::from_mode(0o600);
    fails(Errno::EROFS, fs::set_permissions(read_only.at("shared/f"), mode));
}

#[test]
fn waiting_for_another_writer_ends_by_a_signal_or_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    let writer = Holder::of(&a.at("f"));
    let script = r#"use Fcntl; $SIG{TERM} = sub {};
        sysopen(my $file, "f", O_WRONLY) and die "opened"; exit $!;"#;
    let mut perl = Command::new("perl");
    let mut opener = perl.args(["-e", script]).current_dir(&b.dir).spawn().unwrap();
    eventually("it waits", || waits(&opener).then_some(()));
    // Looked at while nothing but the open can be under way, the wait is the lock's.
    signal(opener.id(), "TERM");
    assert_eq!(opener.wait().unwrap().code(), Some(Errno::EINTR as i32));
    fails(Errno::EAGAIN, open(&b.at("f"), OFlag::O_NONBLOCK));
    drop(writer);
    // The kernel tells of the last close after close has returned.
    eventually("it is free", || open(&b.at("f"), OFlag::O_NONBLOCK).ok());
}

#[test]
fn in_a_directory_that_another_client_removed_nothing_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let (a, b) = (a.mount(&server, &[]), b.mount(&server, &[]));
    fs::create_dir(a.at("gone")).unwrap();
    let gone = File::open(a.at("gone")).unwrap();
    fs::remove_dir(b.at("gone")).unwrap();
    let made = mkdirat(&gone, "below", Mode::S_IRWXU);
    fails(Errno::ESTALE, in_words(made));
    fails(Errno::ENOENT, fs::create_dir(a.at("gone/below")));
}

/// M2: "Device files are made by root, on a mount that was asked to have them."
#[test]
fn devices_are_made_by_root_where_the_mount_has_them_and_work() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &["-o", "dev,allow_other"]);
    mount.shell("mknod -m 666 null c 1 3; echo gone > null; test -z \"$(cat null)\"");
    let as_another = "setpriv --reuid=1 --regid=1 --clear-groups mknod d/null c 1 3";
    mount.shell(&format!("mkdir -m 777 d; if {as_another}; then exit 1; fi"));
    let other = Client::new(&dir.path().join("b"), &server);
    let without = other.mount(&server, &[]);
    assert_eq!(without.shell("stat -c '%F %t %T' null"), "character special file 1 3\n");
    fails(Errno::EACCES, File::open(without.at("null")));
    fails(Errno::EPERM, in_words(mknod(&without.at("zero"), SFlag::S_IFCHR, Mode::empty(), 0x105)));
}

#[test]
fn fifos_and_sockets_connect_the_programs_of_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    assert_eq!(mount.shell("mkfifo p; echo through > p & cat p; wait"), "through\n");
    let listener = UnixListener::bind(mount.at("s")).unwrap();
    UnixStream::connect(mount.at("s")).unwrap().write_all(b"through").unwrap();
    let mut said = String::new();
    listener.accept().unwrap().0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "through");
    // The name outlives the listener, as everywhere.
    drop(listener);
    fails(Errno::ECONNREFUSED, UnixStream::connect(mount.at("s")));
}

#[test]
fn names_are_any_bytes_and_paths_are_as_long_as_the_kernel_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let client = Client::new(&dir.path().join("a"), &server);
    let mount = client.mount(&server, &[]);
    // Every byte that a name may have, 253 of them, and two more.
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let odd: Vec<u8> = bytes.iter().copied().chain([0xff]).collect();
    assert_eq!(odd.len(), 255);
    let names = [odd, vec![0xff; 255], b" ".to_vec(), b"\n".to_vec(), b"...".to_vec()];
    for name in &names {
        fs::write(mount.dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for name in &names {
        assert_eq!(fs::read(mount.dir.join(OsStr::from_bytes(name))).unwrap(), *name);
    }
    let listed = fs::read_dir(&mount.dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut listed: Vec<_> = listed.collect();
    listed.sort();
    let mut wanted: Vec<_> = names.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    wanted.sort();
    assert_eq!(listed, wanted);

    // PATH_MAX counts the NUL: 4,095 bytes of path, deeper than that by relative ones.
    let deep = "d".repeat(255);
    let mut path = mount.dir.clone();
    while path.as_os_str().len() + 256 < 4095 {
        path.push(&deep);
    }
    fs::create_dir_all(&path).unwrap();
    let rest = 4095 - path.as_os_str().len() - 1;
    let longest = path.join("f".repeat(rest));
    assert_eq!(longest.as_os_str().len(), 4095);
    fs::write(&longest, "deep").unwrap();
    assert_eq!(fs::read_to_string(&longest).unwrap(), "deep");
    fails(Errno::ENAMETOOLONG, fs::metadata(path.join("f".repeat(rest + 1))));
    let below = format!("cd {}; mkdir -p {deep}; cd {deep}; echo x > y; cat y", path.display());
    assert_eq!(mount.shell(&below), "x\n");
}
