use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shell_tools_work_on_both_kinds_of_mount() {
    let (_cell, a, b) = two_mounts().await;
    for mount in [&a, &b] {
        mount
            .sh("mkdir -p $M/d/e; echo hello > $M/d/e/f; cat $M/d/e/f | grep -qx hello
                cp -a /usr/share/common-licenses $M/lic; diff -r /usr/share/common-licenses $M/lic
                mv $M/d/e/f $M/g; test ! -e $M/d/e/f; ln $M/g $M/h; ln -s g $M/s
                test \"$(readlink $M/s)\" = g; test \"$(stat -c %h $M/g)\" = 2
                rm $M/g; cat $M/s 2>/dev/null && exit 1; cat $M/h | grep -qx hello
                chmod 600 $M/h; test \"$(stat -c %a $M/h)\" = 600
                rm -r $M/d $M/lic $M/s $M/h; test -z \"$(ls -A $M)\"
                df $M | grep -q dfs://; mkfifo $M/p; rm $M/p; stat -f $M > /dev/null")
            .await;
    }
    a.unmount().await;
    b.unmount().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_keep_every_byte() {
    let (_cell, a, b) = two_mounts().await;
    let sum = a
        .sh("dd if=/dev/urandom of=$M/big bs=1M count=40 conv=fsync status=none
            printf xyz | dd of=$M/big bs=1 seek=12345678 conv=notrunc status=none
            truncate -s +1234567 $M/big; md5sum < $M/big")
        .await;
    assert_eq!(b.sh("md5sum < $M/big").await, sum);
    let appended = b.sh("for i in 1 2 3; do echo line >> $M/big; done; md5sum < $M/big").await;
    assert_eq!(a.sh("md5sum < $M/big").await, appended);
    assert_ne!(sum, appended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_works_in_a_mount() {
    let (_cell, a, b) = two_mounts().await;
    for mount in [&a, &b] {
        mount
            .sh("export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a
                export GIT_COMMITTER_EMAIL=a@b HOME=/tmp
                mkdir $M/r; cd $M/r; git init -q .; cp -r /usr/share/common-licenses src
                git add .; git commit -qm one; echo x >> src/GPL-3; git commit -qam two
                git fsck --strict; git status --porcelain | wc -l | grep -qx 0
                cd $M; git clone -q r c; cd c; git log --oneline | wc -l | grep -qx 2
                diff -r $M/r/src $M/c/src; git gc -q; git fsck; cd /; rm -rf $M/r $M/c")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_run_from_a_mount_and_map_files() {
    let (_cell, a, b) = two_mounts().await;
    a.sh("cp /bin/ls $M/ls; $M/ls / > /dev/null").await;
    for mount in [&a, &b] {
        mount.sh("$M/ls -l $M > /dev/null; cp /bin/cat $M/c; $M/c /dev/null; rm $M/c").await;
        mount
            .sh("cat > $M/map.py <<'END'
import mmap, os, sys
path = os.path.join(os.environ['M'], 'mapped')
with open(path, 'wb') as f: f.write(b'a' * 10000)
with open(path, 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0)
    m[5000:5003] = b'XYZ'
    m.flush()
    m.close()
assert open(path, 'rb').read()[4999:5004] == b'aXYZa'
END
                if command -v python3 > /dev/null; then python3 $M/map.py; fi")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissions_of_others_are_judged() {
    let (_cell, a, _b) = two_mounts().await;
    a.sh("chmod 755 $M; mkdir -m 700 $M/private; echo x > $M/private/f; echo y > $M/f
        chmod 640 $M/f; chgrp 4242 $M/f
        as() { setpriv --reuid=1234 --regid=1234 \"$@\"; }
        if as --clear-groups cat $M/private/f 2>/dev/null; then exit 1; fi
        if as --clear-groups cat $M/f 2>/dev/null; then exit 1; fi
        as --groups=4242 cat $M/f | grep -qx y
        if as --clear-groups touch $M/new 2>/dev/null; then exit 1; fi
        chmod 1777 $M; as --clear-groups touch $M/new; test $(stat -c %u $M/new) = 1234")
        .await;
}
