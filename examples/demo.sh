#!/usr/bin/env bash
# Starts a cell on this machine, mounts it twice, and shows that it keeps what it is given.
# Usage: examples/demo.sh start | stop       (make demo | make demo-stop)
# DFS_BIN_DIR names a directory with built programs; without it they are built here.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
demo=$root/target/demo
data=$demo/data
log=$demo/server.log
bin=${DFS_BIN_DIR:-${CARGO_TARGET_DIR:-$root/target}/release}
# Files small enough for one request each, and one of several chunks.
small_count=50
large_mib=32

say() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
fail() {
    printf '\ndemo: %s\n' "$*" >&2
    exit 1
}

# Runs the command line client as one of the two users of this machine, "a" or "b".
client() {
    local who=$1
    shift
    DFS_CONFIG_DIR=$demo/config-$who DFS_CACHE_DIR=$demo/cache-$who \
        timeout --kill-after=5 90 "$bin/dfs" "$@"
}

# The same, showing what is run and what it says. Through a file: a pipe would wait for the
# daemon that a mount leaves behind, if that kept it open.
show() {
    local status=0
    printf '   [%s] $ dfs %s\n' "$1" "${*:2}"
    client "$@" >"$demo/output" 2>&1 </dev/null || status=$?
    sed 's/^/       /' "$demo/output"
    return "$status"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local tenths=$(($1 * 10)) what=$2
    shift 2
    until "$@"; do
        if [ "$tenths" -le 0 ]; then
            fail "waited too long for $what"
        fi
        tenths=$((tenths - 1))
        sleep 0.1
    done
}

is_mounted() { grep -qsF " $1 fuse" /proc/self/mounts; }
is_unmounted() { ! is_mounted "$1"; }
is_port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The server's process, if the one we started still runs: a reused number is not believed.
server_pid() {
    local pid
    pid=$(cat "$demo/server.pid" 2>/dev/null) || return 1
    case $(readlink "/proc/$pid/exe" 2>/dev/null) in
    */dfs-server*) echo "$pid" ;;
    *) return 1 ;;
    esac
}

is_server_gone() { ! server_pid >/dev/null; }

# Prints the processes of our two clients.
client_pids() {
    local process
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null) in
        */dfs | */"dfs (deleted)") ;;
        *) continue ;;
        esac
        if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qF "DFS_CACHE_DIR=$demo/"; then
            echo "${process#/proc/}"
        fi
    done
}

are_clients_gone() { [ -z "$(client_pids)" ]; }

is_server_up() {
    kill -0 "$(cat "$demo/server.pid")" 2>/dev/null || fail "the server ended at its start"
    [ -s "$data/bootstrap.toml" ] && is_port_open "$port"
}

start_server() {
    setsid "$bin/dfs-server" serve --data "$data" --listen "127.0.0.1:$port" \
        >>"$log" 2>&1 </dev/null &
    echo $! >"$demo/server.pid"
    disown
    wait_for 60 "the server to answer at port $port" is_server_up
    note "dfs-server is process $(server_pid), at 127.0.0.1:$port"
}

# Keeps the port of an earlier run, because its data directory names it.
choose_port() {
    if [ -s "$demo/port" ] && [ -d "$data" ]; then
        port=$(cat "$demo/port")
        if is_port_open "$port"; then
            fail "port $port of the earlier demo is in use; free it, or rm -r $demo"
        fi
        return
    fi
    for port in $(seq 7400 7449); do
        if ! is_port_open "$port"; then
            echo "$port" >"$demo/port"
            return
        fi
    done
    fail "ports 7400 to 7449 are all in use"
}

unmount() {
    local who=$1
    is_mounted "$demo/$who" || return 0
    if ! client "$who" umount "$demo/$who" --timeout 30s; then
        note "the orderly way failed; detaching $demo/$who"
        fusermount3 -u -z "$demo/$who" 2>/dev/null || umount -l "$demo/$who" || true
    fi
    wait_for 10 "$demo/$who to be unmounted" is_unmounted "$demo/$who"
}

wait_for_clients_gone() {
    local pid tenths=150
    until are_clients_gone; do
        if [ "$tenths" -eq 0 ]; then
            for pid in $(client_pids); do
                note "client process $pid did not end by itself: terminating it"
                kill -TERM "$pid" 2>/dev/null || true
            done
            wait_for 10 "the client processes to end" are_clients_gone
        fi
        tenths=$((tenths - 1))
        sleep 0.1
    done
}

stop_all() {
    local pid tenths=300
    unmount a
    unmount b
    wait_for_clients_gone
    if pid=$(server_pid); then
        kill -TERM "$pid"
        until is_server_gone; do
            if [ "$tenths" -eq 0 ]; then
                note "the server did not end by itself: killing it"
                kill -KILL "$pid" 2>/dev/null || true
                wait_for 10 "the server to end" is_server_gone
            fi
            tenths=$((tenths - 1))
            sleep 0.1
        done
    fi
    rm -f "$demo/server.pid"
}

# One hash over names and contents of the demo's files as one client sees them.
hash_of() {
    (cd "$demo/$1/demo" && find . -type f -print0 | sort -z |
        timeout --kill-after=5 120 xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)
}

expect_same() {
    local a b
    a=$(hash_of a)
    b=$(hash_of b)
    note "SHA-256 over all names and contents:"
    note "  on a  $a"
    note "  on b  $b"
    [ "$a" = "$b" ] || fail "the two mounts differ"
    [ "$a" = "${1:-$a}" ] || fail "the files are not what they were before"
}

write_files() {
    local number
    mkdir -p "$demo/a/demo"
    printf 'written on a, %s\n' "$(date)" >"$demo/a/demo/hello.txt"
    head -c "$((large_mib << 20))" /dev/urandom >"$demo/a/demo/large.bin"
    for number in $(seq "$small_count"); do
        printf 'small file %s of %s\n' "$number" "$(date)" >"$demo/a/demo/small-$number.txt"
    done
}

mount_both() {
    local who
    for who in a b; do
        mkdir -p "$demo/$who"
        show "$who" login --bootstrap "$data/bootstrap.toml"
        show "$who" mount "dfs://127.0.0.1:$port/main" "$demo/$who"
        wait_for 10 "$demo/$who to be mounted" is_mounted "$demo/$who"
    done
}

crash_and_restart() {
    local before pid last
    before=$(hash_of a)
    pid=$(server_pid) || fail "the server is gone"
    last="closed on a right before the crash of process $pid"
    printf '%s\n' "$last" >"$demo/a/last.txt"
    kill -KILL "$pid"
    note "wrote last.txt on a and killed process $pid"
    wait_for 10 "the server to die" is_server_gone
    start_server
    expect_same "$before"
    [ "$(timeout 60 cat "$demo/b/last.txt")" = "$last" ] || fail "last.txt is lost or torn"
    note "last.txt is whole on b; nothing is lost, and the mounts went on by themselves"
    printf 'written on b after the restart\n' >"$demo/b/after.txt"
    note "after.txt, read on a: $(timeout 60 cat "$demo/a/after.txt")"
}

prepare() {
    say "Preparing"
    "$root/.ci/install-packages" cc:build-essential fusermount3:fuse3
    [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || fail "/dev/fuse is missing: this machine (or container) has no FUSE"
    if [ -z "${DFS_BIN_DIR:-}" ]; then
        note "building the release programs (the first time takes some minutes)"
        (cd "$root" && cargo build --release --workspace --bins --locked)
    fi
    mkdir -p "$demo"
    if server_pid >/dev/null || ! are_clients_gone || is_mounted "$demo/a" || is_mounted "$demo/b"; then
        note "ending the demo that still runs; its files stay"
        stop_all
    fi
    : >"$log"
}

what_next() {
    say "It is running. What to try next"
    cat <<END
   cp -a /etc $demo/a/etc-copy; diff -r /etc $demo/b/etc-copy
   export DFS_CONFIG_DIR=$demo/config-a DFS_CACHE_DIR=$demo/cache-a PATH=$bin:\$PATH
   dfs status
   dfs ls dfs://127.0.0.1:$port/main/demo
   dfs where $demo/a/demo/large.bin
   make demo-stop      ends it; the files stay in target/demo and the next make demo finds them
END
}

# Says where it broke, with the last words of the logs.
explain_failure() {
    local status=$? file
    [ "$status" -ne 0 ] || return 0
    printf '\ndemo: failed (exit code %s)\n' "$status" >&2
    for file in "$log" "$demo"/cache-?.log "$demo"/cache-?/*.log; do
        if [ -s "$file" ]; then
            printf '\n-- the end of %s\n' "$file" >&2
            tail -n 25 "$file" >&2
        fi
    done
    printf '\nmake demo-stop cleans up.\n' >&2
}

start() {
    prepare
    choose_port
    say "Starting a cell: all roles and two file nodes in one process"
    start_server
    say "Logging in and mounting, as two clients with a cache each"
    mount_both
    say "Writing on a: a line, $large_mib MiB of random bytes, $small_count small files"
    write_files
    say "Reading on b"
    note "demo/hello.txt says: $(timeout 60 cat "$demo/b/demo/hello.txt")"
    expect_same
    say "Where the bytes are: two nodes hold a copy each"
    show b where "$demo/b/demo/large.bin"
    [ "$(grep -o 'node-[0-9]*' "$demo/output" | sort -u | wc -l)" -ge 2 ] || fail "one copy only"
    say "Killing the server with -9 and starting it again"
    crash_and_restart
    what_next
}

case ${1:-} in
start)
    trap explain_failure EXIT
    start
    ;;
stop)
    stop_all
    echo "demo: nothing of it runs any more; its files are in $demo"
    ;;
*)
    echo "usage: examples/demo.sh start | stop" >&2
    exit 2
    ;;
esac
