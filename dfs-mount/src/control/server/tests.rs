use super::*;
use crate::control::client::{ControlClient, ControlError};
use crate::control::message::{CachedFile, OutboxEntry, SeenEvent};
use crate::control::mountinfo::{Device, Mount};
use crate::control::place;
use crate::writeback::OutboxState;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;

struct Scripted {
    end: CancellationToken,
}

fn entry() -> OutboxEntry {
    OutboxEntry {
        id: 1,
        path: "/a b".into(),
        fid: "1:2.3".into(),
        size_bytes: 7,
        state: OutboxState::Unsent,
        why: "not available".into(),
        since_secs: 9,
    }
}

impl Daemon for Scripted {
    fn status(&self) -> BoxFuture<'_, MountStatus> {
        let rpcs = [("directory.open".to_owned(), 3)].into();
        Box::pin(async { MountStatus { pid: 42, rpcs, ..MountStatus::default() } })
    }

    fn outbox(&self) -> BoxFuture<'_, OutboxReport> {
        Box::pin(async { OutboxReport { entries: vec![entry()] } })
    }

    fn retry(&self) -> BoxFuture<'_, OutboxReport> {
        Box::pin(async { OutboxReport::default() })
    }

    fn drain(&self, _deadline: Duration, progress: Progress) -> BoxFuture<'_, OutboxReport> {
        Box::pin(async move {
            for file_count in [2, 1] {
                progress.report(Unsent { file_count, bytes: 10 * file_count });
                tokio::task::yield_now().await;
            }
            OutboxReport { entries: vec![entry()] }
        })
    }

    fn cache(&self) -> BoxFuture<'_, CacheListing> {
        let file = CachedFile { path: "kept".into(), disk_bytes: 4096, ..CachedFile::default() };
        Box::pin(std::future::ready(CacheListing::of([file])))
    }

    fn clear_cache(&self, _fid: Option<String>) -> BoxFuture<'_, (u64, u64)> {
        Box::pin(std::future::ready((1, 4096)))
    }

    fn watch(&self, path: String) -> BoxFuture<'_, Result<BoxStream<'static, Seen>, String>> {
        let seen = Seen {
            event: SeenEvent::Removed,
            name: "f".into(),
            kind: None,
            size_bytes: None,
            mode: None,
        };
        let seen: BoxStream<'static, Seen> = futures_util::stream::iter([seen]).boxed();
        Box::pin(std::future::ready((path == "/d").then_some(seen).ok_or("no such".to_owned())))
    }

    fn stop(&self, _detach: bool) {
        self.end.cancel();
    }
}

/// A daemon on a socket where a command finds it.
struct World {
    dir: tempfile::TempDir,
    end: CancellationToken,
}

/// Not root's, whose place is `/run/dfs`; the directory is still checked to be ours.
const DEVICE: Device = Device { major: 0, minor: 77 };

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(dir.path().join("dfs")).unwrap();
        World { dir, end: CancellationToken::new() }
    }

    fn socket_path(&self) -> PathBuf {
        self.dir.path().join("dfs").join(place::socket_name(DEVICE))
    }

    fn start(&self) -> tokio::task::JoinHandle<()> {
        let socket = ControlSocket::bind(&self.socket_path()).unwrap();
        let daemon = Arc::new(Scripted { end: self.end.clone() });
        tokio::spawn(serve(socket, daemon, self.end.clone()))
    }

    fn client(&self) -> ControlClient {
        ControlClient::at(self.socket_path())
    }
}

#[tokio::test]
async fn a_watcher_is_told_what_is_seen_or_why_not() {
    let world = World::new();
    let served = world.start();
    let client = world.client();
    let mut watched = client.watch("/d".to_owned()).await.unwrap();
    assert_eq!(watched.next().await.unwrap().name, "f");
    assert!(matches!(watched.next().await, Err(ControlError::Ended)));
    let refused = client.watch("/e".to_owned()).await;
    assert!(matches!(refused, Err(ControlError::Refused(why)) if why == "no such"));
    world.end.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn every_verb_makes_the_round_trip() {
    let world = World::new();
    let served = world.start();
    let client = world.client();
    let status = client.status().await.unwrap();
    assert_eq!((status.pid, status.rpcs["directory.open"]), (42, 3));
    assert_eq!(client.outbox().await.unwrap().entries, [entry()]);
    assert!(client.retry(Duration::from_secs(5)).await.unwrap().entries.is_empty());
    let mut seen = Vec::new();
    let report = client.drain(Duration::from_secs(5), |left| seen.push(left.file_count)).await;
    assert_eq!(report.unwrap().unsent().count(), 1);
    assert_eq!(seen, [2, 1]);
    client.stop(false, Duration::from_secs(5)).await.unwrap();
    served.await.unwrap();
    assert!(!world.socket_path().exists());
}

#[tokio::test]
async fn a_daemon_that_was_killed_is_known_to_be_dead() {
    let world = World::new();
    // A socket file without a listener is what kill -9 leaves.
    drop(std::os::unix::net::UnixListener::bind(world.socket_path()).unwrap());
    assert!(matches!(world.client().status().await, Err(ControlError::Dead)));
    // The next daemon of that device takes the place.
    let served = world.start();
    assert!(world.client().status().await.is_ok());
    world.end.cancel();
    served.await.unwrap();
}

#[test]
fn a_mount_without_a_socket_says_so() {
    let world = World::new();
    let runtime = world.dir.path().as_os_str().to_owned();
    let environment =
        move |name: &str| (name == "XDG_RUNTIME_DIR").then(|| OsString::from(&runtime));
    let mount = Mount {
        device: DEVICE,
        root: "/".into(),
        mount_point: "/mnt".into(),
        kind: "fuse.dfs".into(),
        source: "dfs://h/v".into(),
        super_options: "rw,user_id=4242".into(),
    };
    let found = ControlClient::of_mount(&mount, &environment);
    assert!(matches!(found, Err(ControlError::NoSocket)));
}

#[test]
fn only_the_daemons_user_and_root_may_control_it() {
    assert!(may_control(1000, 1000));
    assert!(may_control(0, 1000));
    assert!(!may_control(1000, 0));
    assert!(!may_control(1000, 1001));
}

async fn raw_exchange(request: &[u8]) -> String {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = Scripted { end: CancellationToken::new() };
    let served = async { serve_connection(theirs, &daemon).await };
    let (mut reader, mut writer) = ours.into_split();
    let asked = async {
        writer.write_all(request).await.unwrap();
        drop(writer);
        let mut reply = String::new();
        reader.read_to_string(&mut reply).await.unwrap();
        reply
    };
    let (served, reply) = tokio::join!(served, asked);
    served.unwrap();
    reply
}

#[tokio::test]
async fn a_socketpair_of_the_same_user_is_served() {
    let reply = raw_exchange(b"{\"version\":1,\"verb\":\"outbox-retry\"}\n").await;
    assert_eq!(reply, "{\"version\":1,\"reply\":\"outbox\",\"entries\":[]}\n");
}

#[tokio::test]
async fn garbage_and_other_versions_are_refused_with_a_reason() {
    for (request, reason) in [
        (&b"\n"[..], "malformed"),
        (b"GET / HTTP/1.1\r\n", "malformed"),
        (b"{\"version\":9,\"verb\":\"status\"}\n", "version 9"),
        (b"", "malformed"),
    ] {
        let reply = raw_exchange(request).await;
        assert!(reply.contains("refused") && reply.contains(reason), "{reply}");
    }
}
