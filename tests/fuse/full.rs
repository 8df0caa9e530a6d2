//! A server whose disk is full: what was acknowledged stays, and people can go on working.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::support::{Client, Mount, Server, attempt, eventually, run, shell};

/// A small disk of its own: an image with ext4, mounted through a loop device.
struct Disk {
    dir: PathBuf,
}

/// A file of the disk's that no server knows. Units: MiB.
const BALLAST_MIB: u32 = 50;

impl Disk {
    fn new(home: &Path, size_mib: u32) -> Disk {
        let dir = home.join("disk");
        fs::create_dir(&dir).unwrap();
        shell(home, &format!("truncate -s {size_mib}M image; mkfs.ext4 -q -F -m 0 image"));
        run(Command::new("mount").args(["-o", "loop"]).arg(home.join("image")).arg(&dir));
        shell(&dir, &format!("fallocate -l {BALLAST_MIB}M ballast"));
        Disk { dir }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = attempt(Command::new("umount").arg("-l").arg(&self.dir));
    }
}

/// Writes a file and says what close said.
fn store(path: &Path, bytes: &[u8]) -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(path, flags, Mode::from_bits_truncate(0o644))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[nix::unistd::write(&file, rest)?..];
    }
    nix::unistd::close(file.into_raw_fd())
}

/// Bytes that no other file has.
fn content(number: usize, length: usize) -> Vec<u8> {
    let word = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..length as u64 / 8 + 1)
        .flat_map(|index| (word ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93)).to_le_bytes())
        .take(length)
        .collect()
}

/// Writes files of `length` until the disk is full. Adds those whose close succeeded.
fn fill(mount: &Mount<'_>, length: usize, acknowledged: &mut BTreeMap<String, usize>) {
    for number in acknowledged.len()..20_000 {
        let name = format!("f{number}");
        match store(&mount.at(&name), &content(number, length)) {
            Ok(()) => acknowledged.insert(name, length),
            Err(errno) => {
                assert_eq!(errno, Errno::ENOSPC);
                // What is left behind waits in the outbox, and would get in the way of the next.
                fs::remove_file(mount.at(&name)).unwrap();
                return;
            }
        };
    }
    panic!("the disk does not get full");
}

fn check(mount: &Mount<'_>, acknowledged: &BTreeMap<String, usize>) {
    for (name, length) in acknowledged {
        let number = name[1..].parse().unwrap();
        let found = fs::read(mount.at(name)).unwrap();
        assert!(found == content(number, *length), "{name} is not what was acknowledged");
    }
}

/// What `df` shows as available.
fn free_mib(mount: &Mount<'_>) -> u64 {
    let space = nix::sys::statvfs::statvfs(&mount.dir).unwrap();
    (space.blocks_available() * space.fragment_size()) >> 20
}

/// What people do to make room, and beside.
fn tidy_up(mount: &Mount<'_>, acknowledged: &mut BTreeMap<String, usize>) {
    for _ in 0..10 {
        let (name, _) = acknowledged.pop_first().unwrap();
        fs::remove_file(mount.at(&name)).unwrap();
    }
    let script = "mkdir d; ln -s d link; chmod 600 LAST; mv LAST d/moved; mv d/moved LAST; \
                  rm link; rmdir d";
    let (last, _) = acknowledged.last_key_value().unwrap();
    mount.shell(&script.replace("LAST", last));
}

#[test]
fn a_full_disk_refuses_content_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let disk = Disk::new(home.path(), 150);
    let mut server = Server::start(&disk.dir.join("data"), &[]);
    let (a, b) = (
        Client::new(&home.path().join("a"), &server),
        Client::new(&home.path().join("b"), &server),
    );
    let mount = a.mount(&server, &[]);
    let mut acknowledged = BTreeMap::new();
    fill(&mount, 256 << 10, &mut acknowledged);
    fill(&mount, 4 << 10, &mut acknowledged);
    assert!(acknowledged.len() > 50, "only {} files", acknowledged.len());
    eventually("df shows that it is full", || (free_mib(&mount) < 4).then_some(()));
    assert_eq!(store(&mount.at("late"), &content(0, 4 << 20)), Err(Errno::ENOSPC));
    tidy_up(&mount, &mut acknowledged);
    check(&mount, &acknowledged);

    server.kill_9();
    server.resume();
    let other = b.mount(&server, &[]);
    check(&other, &acknowledged);
    tidy_up(&other, &mut acknowledged);
    server.terminate();
    server.resume();
    check(&other, &acknowledged);

    // Others take what chunks leave to the metadata: then nothing new is made, not even a name.
    let script = "free=$(($(stat -f -c '%a * %S' .) >> 20)); fallocate -l $((free - 9))M others";
    shell(&disk.dir, script);
    let refused = fs::create_dir(mount.at("new")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::ENOSPC as i32));
    let (name, _) = acknowledged.pop_first().unwrap();
    fs::remove_file(mount.at(&name)).unwrap();
    server.kill_9();
    server.resume();
    let (name, _) = acknowledged.pop_first().unwrap();
    eventually("names can be removed", || fs::remove_file(mount.at(&name)).ok());
    fs::remove_file(disk.dir.join("others")).unwrap();
    fs::create_dir(mount.at("new")).unwrap();

    let outbox = || a.ask(&["outbox", "list", "--json", mount.dir.to_str().unwrap()]);
    assert!(outbox().contains("late"), "{}", outbox());
    fs::remove_file(disk.dir.join("ballast")).unwrap();
    eventually("what was kept goes out by itself", || (!outbox().contains("late")).then_some(()));
    eventually("df shows what was freed", || (free_mib(&mount) > 20).then_some(()));
    assert!(fs::read(other.at("late")).unwrap() == content(0, 4 << 20));
    check(&mount, &acknowledged);
    other.umount();
    mount.umount();
}
