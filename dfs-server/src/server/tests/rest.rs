//! The JSON face of a whole cell in this process: every answer by the real services.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::rpc::rest::Rest;
use dfs_proto::clock::SystemClock;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap};
use hyper::{Request, StatusCode};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_oneof, proptest,
};
use serde_json::Value;

/// A cell with all roles, and its administrator's ticket.
struct Face {
    rest: Arc<Rest>,
    ticket: String,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    workers: JoinSet<()>,
    services: Services,
}

/// An answer, all of it.
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status and error name.
    fn refused(&self) -> (u16, String) {
        let body = self.json();
        let name = body["error"]["name"].as_str().unwrap_or_else(|| panic!("{self:?}"));
        (self.status.as_u16(), name.to_owned())
    }

    fn tag(&self) -> &str {
        self.headers[ETAG].to_str().unwrap()
    }
}

impl std::fmt::Debug for Got {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.bytes))
    }
}

fn refusal(status: u16, name: &str) -> (u16, String) {
    (status, name.to_owned())
}

impl Face {
    async fn start() -> Face {
        Face::start_with(Arc::new(SystemClock)).await
    }

    async fn start_with(clock: Arc<dyn Clock>) -> Face {
        let dir = tempfile::tempdir().unwrap();
        let config = ServeConfig {
            data_dir: dir.path().to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            roles: vec![Role::Auth, Role::Directory, Role::Lock, Role::File],
            file_nodes: 2,
            advertise: None,
            join: None,
        };
        let cell = enter_cell(&config, &*clock).await.unwrap();
        let network = Network::new(&cell, map::load(cell.dir()).unwrap().unwrap_or_default());
        let ground = Ground { config, cell, clock, network, port: 1 };
        let services = ground.build().await.unwrap();
        let verifier = ground.verifier(&services);
        let router = ground.routes(&services, Arc::clone(&verifier));
        let rest = ground.http(router).unwrap().rest;
        let (stop, mut workers) = (CancellationToken::new(), JoinSet::new());
        ground.spawn_workers(&services, verifier, &mut workers, &stop);
        let mut face = Face { rest, ticket: String::new(), dir, stop, workers, services };
        let text = std::fs::read_to_string(face.dir.path().join("bootstrap.toml")).unwrap();
        let Bootstrap { user, password, .. } = toml::from_str(&text).unwrap();
        let login = serde_json::json!({ "user": user, "password": password.expose() });
        let granted = face.send("POST", "/v1/login", &[], login.to_string()).await;
        face.ticket = granted.json()["ticket"].as_str().unwrap().to_owned();
        face.wait_for_nodes().await;
        face
    }

    /// File nodes announce themselves in their own time.
    async fn wait_for_nodes(&self) {
        let ready = async {
            while self.send("PUT", "/v1/files/main/first", &[], "x").await.status != 201 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ready).await.unwrap();
        assert_eq!(self.send("DELETE", "/v1/files/main/first", &[], "").await.status, 204);
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Got {
        self.stream(method, path, headers, Full::new(body.into())).await
    }

    async fn stream<B>(&self, method: &str, path: &str, headers: &[(&str, &str)], body: B) -> Got
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display,
    {
        let mut request = Request::builder().method(method).uri(path);
        if !self.ticket.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {}", self.ticket));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.answer(request.body(body).unwrap()).await
    }

    async fn answer<B>(&self, request: Request<B>) -> Got
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::fmt::Display,
    {
        let response = self.rest.answer([127, 0, 0, 1].into(), request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Got { status: parts.status, headers: parts.headers, bytes }
    }

    async fn get(&self, path: &str) -> Got {
        self.send("GET", path, &[], "").await
    }

    async fn end(mut self) {
        self.rest.drain(Duration::from_secs(10)).await;
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

const FILE: &str = "/v1/files/main/f";

#[tokio::test]
async fn a_content_goes_in_and_out_whole_and_in_parts() {
    let face = Face::start().await;
    let content = noise(5_300_000);
    let put = face.send("PUT", FILE, &[], content.clone()).await;
    assert_eq!((put.status.as_u16(), put.json()["size"].as_u64()), (201, Some(5_300_000)));
    let got = face.get(FILE).await;
    assert!(got.bytes == content && got.status == 200 && got.tag() == put.tag());
    for (range, start, end) in [("0-0", 0, 1), ("1048570-3000000", 1_048_570, 3_000_001)] {
        let part = face.send("GET", FILE, &[("range", &format!("bytes={range}"))], "").await;
        assert!(part.status == 206 && part.bytes == content[start..end], "{range}");
        let expected = format!("bytes {start}-{}/5300000", end - 1);
        assert_eq!(part.headers[CONTENT_RANGE], *expected);
    }
    let beyond = face.send("GET", FILE, &[("range", "bytes=5300000-")], "").await;
    assert_eq!(beyond.refused(), refusal(416, "invalid-argument"));
    let other = [("range", "bytes=0-0"), ("if-range", "\"9.9\"")];
    assert_eq!(face.send("GET", FILE, &other, "").await.bytes.len(), content.len());
    let head = face.send("HEAD", FILE, &[], "").await;
    assert!(head.headers["content-length"] == "5300000" && head.bytes.is_empty());
    let again = face.send("GET", FILE, &[("if-none-match", put.tag())], "").await;
    assert_eq!((again.status.as_u16(), again.bytes.len()), (304, 0));
    let empty = face.send("PUT", FILE, &[], "").await;
    assert_eq!((empty.status.as_u16(), empty.json()["size"].as_u64()), (200, Some(0)));
    assert!(face.get(FILE).await.bytes.is_empty());
    face.end().await;
}

#[tokio::test]
async fn a_change_meets_the_version_that_was_seen_or_nothing() {
    let face = Face::start().await;
    let one = face.send("PUT", FILE, &[("if-none-match", "*")], "one").await;
    assert_eq!(one.status, 201);
    let twice = face.send("PUT", FILE, &[("if-none-match", "*")], "two").await;
    assert_eq!(twice.refused(), refusal(412, "conflict"));
    // Both saw the same version: one of them wins.
    let seen = [("if-match", one.tag())];
    let (a, b) =
        tokio::join!(face.send("PUT", FILE, &seen, "a"), face.send("PUT", FILE, &seen, "b"));
    let mut statuses = [a.status.as_u16(), b.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{a:?} {b:?}");
    let winner = if a.status == 200 { "a" } else { "b" };
    assert_eq!(face.get(FILE).await.bytes, winner);
    let gone = face.send("PUT", "/v1/files/main/none", &[("if-match", "*")], "x").await;
    assert_eq!(gone.refused(), refusal(412, "not-found"));
    let unread = face.send("PUT", FILE, &[("if-match", "7.7")], "x").await;
    assert_eq!(unread.refused(), refusal(400, "invalid-argument"));
    let removal = face.send("DELETE", FILE, &[("if-match", "*")], "").await;
    assert_eq!(removal.refused(), refusal(400, "invalid-argument"));
    assert_eq!(face.get(FILE).await.bytes, winner);
    face.end().await;
}

#[tokio::test]
async fn a_repeated_change_with_its_key_is_the_same_change() {
    let face = Face::start().await;
    let key = ("idempotency-key", "00112233445566778899aabbccddeeff");
    let first = face.send("PUT", FILE, &[key, ("if-none-match", "*")], "one").await;
    assert_eq!(first.status, 201);
    let again = face.send("PUT", FILE, &[key, ("if-none-match", "*")], "one").await;
    assert_eq!((again.status.as_u16(), again.tag()), (200, first.tag()), "{again:?}");
    let bare = face.send("PUT", FILE, &[key], "one").await;
    assert_eq!((bare.status.as_u16(), bare.tag()), (200, first.tag()), "{bare:?}");
    assert_eq!(face.send("PUT", FILE, &[], "two").await.status, 200);
    let late = face.send("PUT", FILE, &[key, ("if-none-match", "*")], "one").await;
    assert_eq!(late.refused(), refusal(409, "op-settled"));
    assert_eq!(face.get(FILE).await.bytes, "two");
    let key = ("idempotency-key", "ff112233445566778899aabbccddeeff");
    let dir = "/v1/directories/main/d";
    for _ in 0..2 {
        assert_eq!(face.send("PUT", dir, &[key], "").await.status, 201);
    }
    assert_eq!(face.send("PUT", dir, &[], "").await.refused(), refusal(409, "exists"));
    let key = ("idempotency-key", "ee112233445566778899aabbccddeeff");
    for _ in 0..2 {
        assert_eq!(face.send("DELETE", FILE, &[key], "").await.status, 204);
    }
    assert_eq!(face.send("DELETE", FILE, &[], "").await.refused(), refusal(404, "not-found"));
    face.end().await;
}

/// Sends `content` and breaks off.
fn broken(content: &'static [u8]) -> impl Body<Data = Bytes, Error = String> + Unpin {
    let sent = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(content)))]);
    let cut = futures_util::stream::iter([Err("connection lost".to_owned())]);
    StreamBody::new(sent.chain(cut))
}

#[tokio::test]
async fn a_content_that_breaks_off_changes_nothing_and_leaves_no_lock() {
    const HALF: &[u8] = &[7; 3 << 20];
    let face = Face::start().await;
    let lost = face.stream("PUT", FILE, &[], broken(HALF)).await;
    assert_eq!(lost.refused(), refusal(400, "malformed"));
    assert_eq!(face.get(FILE).await.refused(), refusal(404, "not-found"));
    assert_eq!(face.send("PUT", FILE, &[], "whole").await.status, 201);
    let lost = face.stream("PUT", FILE, &[], broken(HALF)).await;
    assert_eq!(lost.refused(), refusal(400, "malformed"));
    assert_eq!(face.get(FILE).await.bytes, "whole");
    assert_eq!(face.send("PUT", FILE, &[], "next").await.status, 200);
    face.end().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_empty_file_behind() {
    let face = Face::start().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, String>>(1);
    let put = face.stream("PUT", FILE, &[], StreamBody::new(crate::rpc::stream_of(receiver)));
    let hang_up = async {
        // Some windows, so that the file is there.
        for _ in 0..6 {
            sender.send(Ok(Frame::data(Bytes::from(vec![7; 1 << 20])))).await.unwrap();
        }
    };
    tokio::select! {
        got = put => panic!("answered before the end: {got:?}"),
        () = hang_up => {}
    }
    let half = face.get(FILE).await;
    assert_eq!((half.status.as_u16(), half.bytes.len()), (200, 0), "{half:?}");
    // The change goes on without its client, until it finds that the rest does not come.
    sender.send(Err("connection lost".to_owned())).await.unwrap();
    let gone = async {
        while face.get(FILE).await.status != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
    face.end().await;
}

#[tokio::test]
async fn any_name_is_listed_page_by_page_in_a_form_that_goes_into_urls() {
    let face = Face::start().await;
    let names = ["%FF%FE", "%20%25%3F%23", "a", "%E2%82%AC"];
    for name in names {
        let put = face.send("PUT", &format!("/v1/files/main/{name}"), &[], name).await;
        assert_eq!(put.status, 201, "{put:?}");
    }
    let (mut found, mut query) = (Vec::new(), "limit=1".to_owned());
    loop {
        let page = face.get(&format!("/v1/directories/main/?{query}")).await.json();
        let entries = page["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 1, "{page}");
        found.push(entries[0]["name_encoded"].as_str().unwrap().to_owned());
        let Some(next) = page["next"].as_str() else { break };
        query = format!("limit=1&after={next}");
    }
    assert_eq!(found, ["%20%25%3F%23", "a", "%E2%82%AC", "%FF%FE"]);
    for name in found {
        assert_eq!(face.get(&format!("/v1/files/main/{name}")).await.bytes, name);
    }
    face.end().await;
}

#[tokio::test]
async fn the_operations_judge_who_may() {
    let mut face = Face::start().await;
    assert_eq!(face.send("PUT", &format!("{FILE}?mode=600"), &[], "x").await.status, 201);
    assert_eq!(face.get("/v1/files/none/f").await.refused(), refusal(404, "unknown-volume"));
    assert_eq!(face.get("/v1/files/main").await.refused(), refusal(400, "is-directory"));
    assert_eq!(face.get("/v1/directories/main/f").await.refused(), refusal(400, "not-directory"));
    let wrong = serde_json::json!({ "user": "admin", "password": "not this one" }).to_string();
    let login = face.send("POST", "/v1/login", &[], wrong).await;
    assert_eq!(login.refused(), refusal(401, "login-refused"));
    face.ticket = "v4.public.forged".to_owned();
    let forged = face.get(FILE).await;
    assert_eq!(forged.refused(), refusal(401, "ticket-refused"));
    assert!(forged.headers.contains_key("www-authenticate"));
    let put = face.send("PUT", FILE, &[], "y").await;
    assert_eq!(put.refused(), refusal(401, "ticket-refused"));
    face.ticket = String::new();
    assert_eq!(face.get(FILE).await.refused(), refusal(401, "unauthenticated"));
    face.end().await;
}

/// A body that says how long it is and never comes.
struct Announced(u64);

impl Body for Announced {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, String>>> {
        std::task::Poll::Pending
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn what_is_announced_too_large_is_refused_before_it_comes() {
    let face = Face::start().await;
    let huge = face.stream("PUT", FILE, &[], Announced(1 << 40)).await;
    assert_eq!(huge.refused(), refusal(413, "too-large"));
    assert_eq!(face.get(FILE).await.status, 404);
    let login = face.stream("POST", "/v1/login", &[], Announced(17 << 10)).await;
    assert_eq!(login.refused(), refusal(413, "too-large"));
    let login = face.send("POST", "/v1/login", &[], vec![b' '; 17 << 10]).await;
    assert_eq!(login.refused(), refusal(413, "too-large"));
    face.end().await;
}

#[tokio::test]
async fn a_condition_is_judged_again_under_the_lock() {
    let face = Face::start().await;
    let seen = face.send("PUT", FILE, &[], "seen").await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, String>>(1);
    let first = face.stream("PUT", FILE, &[], StreamBody::new(crate::rpc::stream_of(receiver)));
    let second = async {
        // Two windows and more: the first has the lock.
        for _ in 0..6 {
            sender.send(Ok(Frame::data(Bytes::from(vec![7; 1 << 20])))).await.unwrap();
        }
        let conditions = [("if-match", seen.tag())];
        let second = face.send("PUT", FILE, &conditions, "second");
        let end = async {
            let sessions = &face.services.directory.as_ref().unwrap().sessions;
            while sessions.count() < 2 {
                tokio::task::yield_now().await;
            }
            drop(sender);
        };
        tokio::join!(second, end).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status.as_u16(), second.refused()), (200, refusal(412, "conflict")));
    assert_eq!(face.get(FILE).await.bytes.len(), 6 << 20);
    face.end().await;
}

#[tokio::test]
async fn a_slow_reader_outlives_its_capability() {
    let clock = ManualClock::default();
    let face = Face::start_with(Arc::new(clock.clone())).await;
    let content = noise(4 << 20);
    assert_eq!(face.send("PUT", FILE, &[], content.clone()).await.status, 201);
    let request = Request::get(FILE).header(AUTHORIZATION, format!("Bearer {}", face.ticket));
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let response = face.rest.answer([127, 0, 0, 1].into(), request).await;
    // The first batch is there.
    clock.advance(dfs_proto::limits::CAPABILITY_LIFETIME * 2);
    assert!(response.into_body().collect().await.unwrap().to_bytes() == content);
    face.end().await;
}

/// The files of one node's chunk store.
fn chunk_files(node: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![node.join("chunks")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found
}

#[tokio::test]
async fn a_content_comes_from_the_replica_that_has_it_sound() {
    let face = Face::start().await;
    let content = noise(3 << 20);
    assert_eq!(face.send("PUT", FILE, &[], content.clone()).await.status, 201);
    let node = |name: &str| chunk_files(&face.dir.path().join(name));
    let (one, two) = (node("node-1"), node("node-2"));
    assert!(one.len() == two.len() && one.len() > 3, "{one:?}");
    // Each node lacks what the other has: no replica has all.
    for path in one.iter().step_by(2) {
        std::fs::write(path, "damaged").unwrap();
        std::fs::remove_file(path).unwrap();
    }
    let name = |path: &PathBuf| {
        path.strip_prefix(face.dir.path()).unwrap().components().skip(1).collect::<PathBuf>()
    };
    let lost: Vec<PathBuf> = one.iter().step_by(2).map(name).collect();
    for path in two.iter().filter(|path| !lost.contains(&name(path))) {
        std::fs::write(path, "damaged").unwrap();
    }
    let got = face.get(FILE).await;
    assert!(got.status == 200 && got.bytes == content, "{}", got.status);
    for path in &two {
        std::fs::remove_file(path).unwrap();
    }
    let (status, name) = face.get(FILE).await.refused();
    assert!(status == 503 && name.starts_with("chunk-"), "{status} {name}");
    face.end().await;
}

/// Words that lead deep into the parsers, and some that lead nowhere.
fn word() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "v1",
        "files",
        "directories",
        "stat",
        "login",
        "renew",
        "main",
        "f",
        "d",
        "..",
        ".",
        "",
        "%2e%2e",
        "%00",
        "%ff",
        "%",
        "a%2fb",
        "dfs",
        "\u{7f}",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => "[!-~]{0,20}", 1 => "x{250,260}"]
}

fn header() -> impl Strategy<Value = (String, String)> {
    let name = prop::sample::select(vec![
        "range",
        "if-match",
        "if-none-match",
        "if-range",
        "idempotency-key",
        "expect",
        "content-type",
        "authorization",
    ]);
    let value = prop_oneof![
        Just("*".to_owned()),
        Just("bytes=0-".to_owned()),
        Just("\"1.1\"".to_owned()),
        Just("00112233445566778899aabbccddeeff".to_owned()),
        "[ -~]{0,40}",
        "bytes=[0-9]{0,22}-[0-9]{0,22}",
    ];
    (name.prop_map(str::to_owned), value)
}

fn request() -> impl Strategy<Value = Option<Request<Full<Bytes>>>> {
    let method = prop::sample::select(vec!["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "X"]);
    let path = prop_oneof![
        4 => prop::collection::vec(word(), 0..5)
            .prop_map(|words| format!("/v1/{}", words.join("/"))),
        1 => "/[!-~]{0,40}",
    ];
    let query = prop_oneof![
        3 => Just(String::new()),
        2 => "\\?(after|limit|mode|x)=[!-~]{0,6}(&limit=[0-9]{1,5})?",
    ];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "\\{\"(user|renewal)\":\"[ -~]{0,9}\"(,\"password\":\"[a-z]{0,9}\")?\\}"
            .prop_map(String::into_bytes),
    ];
    (method, path, query, prop::collection::vec(header(), 0..4), body).prop_map(
        |(method, path, query, headers, body)| {
            let mut builder = Request::builder().method(method).uri(format!("{path}{query}"));
            for (name, value) in headers {
                builder = builder.header(name, value);
            }
            // What is no HTTP does not come so far.
            builder.body(Full::new(body.into())).ok()
        },
    )
}

#[test]
fn whatever_is_asked_an_error_is_json_and_the_face_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let face = runtime.block_on(Face::start());
    let errors = AtomicU32::new(0);
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() };
    proptest!(config, |(request in request(), has_ticket in any::<bool>())| {
        let Some(mut request) = request else { return Ok(()) };
        if has_ticket {
            let value = format!("Bearer {}", face.ticket).parse().unwrap();
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let is_head = request.method() == hyper::Method::HEAD;
        let got = runtime.block_on(face.answer(request));
        prop_assert!(!got.status.is_server_error(), "{got:?}");
        if got.status.is_client_error() && !is_head {
            errors.fetch_add(1, Ordering::Relaxed);
            let error = &got.json()["error"];
            prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{got:?}");
            for key in ["name", "message", "remedy"] {
                prop_assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{got:?}");
            }
        }
    });
    assert!(errors.load(Ordering::Relaxed) > 100);
    runtime.block_on(async {
        assert_eq!(face.send("PUT", "/v1/files/main/after", &[], "x").await.status, 201);
        face.end().await;
    });
}
