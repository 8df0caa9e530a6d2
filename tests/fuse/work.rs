//! Programs that people live with, on one mount and checked from the other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::{Client, Mount, Server, shell};

fn with_mounts(test: impl FnOnce(&Mount<'_>, &Mount<'_>, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let (a, b) =
        (Client::new(&dir.path().join("a"), &server), Client::new(&dir.path().join("b"), &server));
    let local = dir.path().join("local");
    fs::create_dir(&local).unwrap();
    test(&a.mount(&server, &[]), &b.mount(&server, &[]), &local);
}

#[test]
fn a_c_project_is_built_by_two_jobs_and_runs_on_the_other_mount() {
    with_mounts(|a, b, _| {
        a.shell(
            r#"mkdir project; cd project
            for i in $(seq 12); do
                printf 'int part%d(void) { return %d; }\n' $i $i >part$i.c
            done
            {
                for i in $(seq 12); do echo "int part$i(void);"; done
                printf '#include <stdio.h>\nint main(void) { int sum = 0;\n'
                for i in $(seq 12); do echo "sum += part$i();"; done
                printf 'printf("%%d\\n", sum); return 0; }\n'
            } >main.c
            printf 'OBJECTS := $(patsubst %%.c,%%.o,$(wildcard *.c))\n' >Makefile
            printf 'sum: $(OBJECTS)\n\t$(CC) -o $@ $^\n' >>Makefile
            make -j2 >/dev/null
            test "$(./sum)" = 78
            make -j2 | grep -q 'up to date'
            sed -i 's/return 7;/return 107;/' part7.c
            make -j2 | grep -c part | grep -qx 2
            test "$(./sum)" = 178"#,
        );
        assert_eq!(b.shell("project/sum"), "178\n");
        assert_eq!(b.shell("cd project; make -q && echo built"), "built\n");
    });
}

#[test]
fn a_rust_crate_is_built_with_its_target_in_the_mount() {
    with_mounts(|a, b, _| {
        a.shell(
            r#"cargo init --quiet --offline --vcs none --name sum sum 2>/dev/null; cd sum
            printf 'pub fn twice(n: u32) -> u32 { n * 2 }\n' >src/lib.rs
            printf 'fn main() { println!("{}", sum::twice(21)); }\n' >src/main.rs
            export CARGO_TARGET_DIR=$PWD/target
            cargo build --quiet --offline
            test "$(target/debug/sum)" = 42
            sed -i 's/21/4/' src/main.rs
            cargo build --quiet --offline
            test "$(target/debug/sum)" = 8"#,
        );
        assert_eq!(b.shell("sum/target/debug/sum"), "8\n");
    });
}

/// A tree with all that archives keep: hard links, symbolic links, holes, times, modes.
fn make_archive_tree(at: &Path) {
    shell(
        at,
        r"mkdir -p tree/deep/empty; cd tree
        for i in $(seq 40); do head -c $((i * 700)) /dev/urandom >deep/file$i; done
        ln deep/file1 linked; ln deep/file1 deep/linked_too
        ln -s deep/file2 link; ln -s nowhere broken
        truncate -s 3M sparse; printf end | dd of=sparse bs=1 seek=2000000 conv=notrunc 2>/dev/null
        printf odd >'name with spaces
and a line'
        chmod 0751 deep; chmod 0600 deep/file3; chmod 4755 deep/file4
        touch -d '2001-02-03 04:05:06.123456789' deep/file5
        touch -d '1970-01-01 00:00:01' deep/file6
        find . -exec touch -h -d '2020-05-06 07:08:09.987654321' {} + -name never
        touch -d '2001-02-03 04:05:06.123456789' deep/file5",
    );
}

/// Everything of a tree that archives keep, and where hard links lead.
const FACTS: &str = r"find . -type d -printf '%p %m %n %T+\n' -o \
        -printf '%p %y %m %n %s %T+ %l\n' | sort; \
    find . -links +1 -type f -printf '%i\n' | sort | uniq -c | awk '{print $1}'; \
    find . -type f -print0 | sort -z | xargs -0 sha256sum";

/// Fails with the first fact that differs.
fn assert_same(found: &str, expected: &str) {
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert_eq!(differs, None);
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn tar_and_rsync_bring_trees_in_and_out_unchanged() {
    with_mounts(|a, b, local| {
        make_archive_tree(local);
        let facts = shell(&local.join("tree"), FACTS);
        let (here, there) = (local.display(), b.dir.display());
        a.shell(&format!("tar -C {here} --format=posix -cSf - tree | tar -xpSf -"));
        assert_same(&shell(&b.at("tree"), FACTS), &facts);
        assert!(fs::metadata(b.at("tree/sparse")).unwrap().blocks() * 512 < 1 << 20, "holes stay");
        a.shell(
            "tar --format=posix -cSf archive.tar tree; mkdir out; tar -C out -xpSf archive.tar",
        );
        assert_same(&shell(&b.at("out/tree"), FACTS), &facts);

        a.shell(&format!("rsync -aHS --modify-window=-1 --checksum {here}/tree/ copy/"));
        assert_same(&shell(&b.at("copy"), FACTS), &facts);
        let again = a.shell(&format!(
            "rsync -aHS --modify-window=-1 --checksum --itemize-changes {here}/tree/ copy/"
        ));
        assert_eq!(again, "", "nothing is left to be done");
        fs::write(local.join("tree/deep/file9"), "changed").unwrap();
        fs::remove_file(local.join("tree/link")).unwrap();
        // Without the window rsync takes times of the same second for equal, on any file system.
        a.shell(&format!("rsync -aHS --modify-window=-1 --delete {here}/tree/ copy/"));
        let facts = shell(&local.join("tree"), FACTS);
        assert_same(&shell(&b.at("copy"), FACTS), &facts);
        shell(local, &format!("rsync -aHS --modify-window=-1 --checksum {there}/copy/ back/"));
        assert_same(&shell(&local.join("back"), FACTS), &facts);
    });
}

#[test]
fn two_processes_write_one_sqlite_database_with_either_journal() {
    with_mounts(|a, b, _| {
        for journal in ["delete", "wal"] {
            let shown = a.shell(&format!(
                r#"sqlite3 {journal}.db >/dev/null \
                    'PRAGMA journal_mode={journal}; CREATE TABLE t (who, n);'
                write() {{
                    for i in $(seq 25); do
                        sqlite3 -cmd '.timeout 60000' {journal}.db \
                            "BEGIN IMMEDIATE; INSERT INTO t VALUES ('$1', $i);
                             INSERT INTO t VALUES ('$1', -$i); COMMIT;"
                    done
                }}
                write x & first=$!; write y & second=$!
                wait $first; wait $second
                sqlite3 {journal}.db 'SELECT who, count(*), sum(n) FROM t GROUP BY who;
                    PRAGMA integrity_check; PRAGMA wal_checkpoint(TRUNCATE);' | head -3"#
            ));
            assert_eq!(shown, "x|50|0\ny|50|0\nok\n", "{journal}");
            let elsewhere =
                b.shell(&format!("sqlite3 -readonly {journal}.db 'SELECT count(*) FROM t;'"));
            assert_eq!(elsewhere, "100\n", "{journal}");
        }
    });
}

#[test]
fn a_python_environment_is_made_filled_and_used() {
    with_mounts(|a, b, _| {
        a.shell(
            r#"python3 -m venv env
            python3 - <<'END'
import zipfile
name = "greet-1.0"
info = "greet-1.0.dist-info/"
with zipfile.ZipFile(name + "-py3-none-any.whl", "w") as wheel:
    wheel.writestr("greet/__init__.py", "def word():\n    return 'hello'\n")
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
    about = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel.writestr(info + "WHEEL", about)
    wheel.writestr(info + "RECORD", "")
END
            env/bin/pip install --quiet --no-index --disable-pip-version-check \
                ./greet-1.0-py3-none-any.whl
            test "$(env/bin/python -c 'import greet; print(greet.word())')" = hello"#,
        );
        let seen =
            b.shell("env/bin/python -c 'import greet, sys; print(greet.word(), sys.prefix)'");
        assert!(seen.starts_with("hello ") && seen.trim().ends_with("/env"), "{seen}");
    });
}

/// Editors' ways to save, by hand where the editor is not there.
const SAVES: &str = r"printf 'one\n' >nano; chmod 0640 nano; ln nano nano-link
    printf 'one\n' >emacs; chmod 0640 emacs
    # nano: a backup by copying, then the file itself is cut and written.
    cp -p nano nano~; printf 'two\n' | dd of=nano status=none
    # emacs: the file becomes the backup, a new one takes its name.
    mv emacs emacs~; (umask 077; printf 'two\n' >emacs); chmod --reference=emacs~ emacs
    # Many others: a new file beside it, synced, renamed over it.
    printf 'one\n' >other; printf 'two\n' >.other.tmp; sync .other.tmp; mv .other.tmp other
    vim -Nes -u NONE -c 's/two/three/' -c 'set backup backupcopy=yes' -c 'wq' nano
    vim -Nes -u NONE -c 's/two/three/' -c 'set writebackup backupcopy=no' -c 'wq' emacs";

#[test]
fn editors_save_in_their_ways_as_on_a_local_disk() {
    with_mounts(|a, b, local| {
        a.shell(SAVES);
        shell(local, SAVES);
        let facts = "ls -A; stat -c '%n %a %h %s' *; tail -n 9 *";
        let expected = shell(local, facts);
        assert!(expected.contains("three") && expected.contains("nano-link 640 2"), "{expected}");
        assert_same(&b.shell(facts), &expected);
    });
}

#[test]
fn a_maildir_takes_mail_from_several_and_is_read_from_both_mounts() {
    with_mounts(|a, b, _| {
        let deliver = r"
import mailbox, os, sys
box = mailbox.Maildir('box', create=True)
for number in range(5):
    box.add(f'Subject: {sys.argv[1]} {number}\n\nbody\n')
";
        fs::write(a.at("deliver.py"), deliver).unwrap();
        a.shell("python3 -c \"import mailbox; mailbox.Maildir('box', create=True)\"");
        std::thread::scope(|scope| {
            for (mount, names) in [(a, "p q"), (b, "r s")] {
                scope.spawn(move || {
                    mount.shell(&format!(
                        "for name in {names}; do python3 deliver.py $name & done; \
                         for job in $(jobs -p); do wait $job; done"
                    ))
                });
            }
        });
        let read = r"
import collections, mailbox
box = mailbox.Maildir('box')
count = collections.Counter(message['Subject'].split()[0] for message in box)
for key, message in list(box.iteritems()):
    message.set_subdir('cur'); message.add_flag('S'); box[key] = message
print(sorted(count.items()), len(box))
";
        fs::write(b.at("read.py"), read).unwrap();
        let expected = "[('p', 5), ('q', 5), ('r', 5), ('s', 5)] 20\n";
        assert_eq!(b.shell("python3 read.py"), expected);
        assert_eq!(a.shell("find box/new box/tmp -type f | wc -l; ls box/cur | wc -l"), "0\n20\n");
    });
}

#[test]
fn find_du_and_cp_agree_on_both_mounts() {
    with_mounts(|a, b, local| {
        make_archive_tree(local);
        a.shell(&format!("cp -a {}/tree . ; cp -a tree again", local.display()));
        assert_same(&shell(&b.at("again"), FACTS), &shell(&local.join("tree"), FACTS));
        for ask in [
            "find . -type f | wc -l",
            "find . -name 'file1*' -newermt 2019-01-01 | sort",
            "find . -links +1 | sort",
            "du -s --apparent-size tree/deep",
            "find tree -type d -empty",
        ] {
            assert_eq!(a.shell(ask), b.shell(ask), "{ask}");
        }
        b.shell("find again -depth -delete");
        assert_eq!(a.shell("ls"), "tree\n");
    });
}

#[test]
fn eight_processes_append_under_flock_and_lose_nothing() {
    with_mounts(|a, b, _| {
        a.shell(
            r#"append() {
                for i in $(seq 20); do
                    flock log sh -c "wc -l <log | tr -d '\n' >>log; echo ' $1' >>log"
                done
            }
            touch log; jobs=
            for name in 1 2 3 4 5 6 7 8; do append $name & jobs="$jobs $!"; done
            for job in $jobs; do wait $job; done"#,
        );
        // Each line tells how many were there before it: under the lock nobody came between.
        let log = b.shell("cat log");
        let numbers: Vec<usize> =
            log.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..160).collect::<Vec<usize>>());
    });
}

#[test]
fn postgresql_makes_a_cluster_and_serves_from_the_mount() {
    with_mounts(|a, _, local| {
        let bin = shell(local, "ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1");
        let script = format!(
            r#"export PATH={}:$PATH LC_ALL=C
            mkdir data; chown postgres: data; chmod 700 data
            socket=$(mktemp -d /tmp/dfs-pg-XXXXXX); chown postgres: $socket
            as() {{ setpriv --reuid postgres --regid postgres --clear-groups -- "$@"; }}
            end() {{ as pg_ctl -D data -m immediate stop >/dev/null 2>&1 || true; rm -rf $socket; }}
            trap end EXIT
            as initdb -D data --auth trust --no-locale -E UTF8 --wal-segsize 1 >initdb.log 2>&1 ||
                {{ cat initdb.log; exit 1; }}
            start() {{
                options="-k $socket -c listen_addresses='' -c shared_buffers=16MB"
                as pg_ctl -D data -w -t 120 -l data/log -o "$options" start >/dev/null ||
                    {{ cat data/log; exit 1; }}
            }}
            start
            export PGHOST=$socket PGUSER=postgres
            pgbench -i -s 1 --quiet postgres >/dev/null 2>&1
            pgbench -c 2 -j 2 -t 20 -n postgres 2>/dev/null | grep 'actually processed: 40/40'
            as pg_ctl -D data -m immediate stop >/dev/null
            start
            psql -Atc 'SELECT count(*) FROM pgbench_history' postgres
            as pg_ctl -D data -m fast stop >/dev/null"#,
            bin.trim()
        );
        let shown = a.shell(&script);
        assert!(shown.ends_with("\n40\n"), "{shown}");
    });
}
