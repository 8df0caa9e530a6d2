mod account;

use super::*;
use crate::cell::{Cell, Wanted};
use crate::durable_file::failpoint;
use crate::ledger::{LedgerRow, VANISHED_KEPT};
use crate::meta::memory::MemoryEngine;
use crate::meta::{Engine, Space};
use crate::rpc::Router;
use dfs_proto::admin::Role;
use dfs_proto::client::hostile::{HostileDialer, Odds, Weather};
use dfs_proto::client::{CallError, Client, Dial, InProcess, Peer as Address};
use dfs_proto::clock::ManualClock;
use dfs_proto::credential::ActAs;
use dfs_proto::id::{NodeId, OpId, SessionId};
use dfs_proto::rpc::Envelope;
use std::path::Path;
use std::time::Duration;

const URL: &str = "dfs://127.0.0.1:7400";
const DAY: Duration = Duration::from_secs(86_400);

/// A cell's auth service on a memory engine, with its first accounts.
struct World {
    dir: tempfile::TempDir,
    engine: Arc<MemoryEngine>,
    clock: ManualClock,
    auth: AuthService,
}

async fn open(dir: &Path, engine: Arc<dyn Engine>, clock: &ManualClock) -> AuthService {
    let wanted = Wanted { roles: &Role::ALL, file_nodes: 2 };
    let cell = Cell::open(dir, wanted, clock.wall()).unwrap();
    let store = Store::open(engine, Space::AUTH, NodeId(3)).unwrap();
    let clock = Arc::new(clock.clone());
    let parts = AuthParts { store, dir: cell.dir().clone(), cell: cell.id(), clock };
    AuthService::open(parts).await.unwrap()
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let (engine, clock) = (Arc::new(MemoryEngine::new()), ManualClock::default());
        let auth = open(dir.path(), engine.clone(), &clock).await;
        let world = World { dir, engine, clock, auth };
        world.first_start().await.unwrap();
        world
    }

    async fn first_start(&self) -> Result<(), AuthStartError> {
        first_start(&self.auth, self.dir.path()).await
    }

    /// The same cell after a restart of its process.
    async fn restart(self) -> World {
        let World { dir, engine, clock, auth } = self;
        auth.store.close().await;
        drop(auth);
        let auth = open(dir.path(), engine.clone(), &clock).await;
        World { dir, engine, clock, auth }
    }

    fn bootstrap(&self) -> Bootstrap {
        read_bootstrap(self.dir.path())
    }

    async fn login(&self, user: &str, password: &str) -> Result<LoginReply, FsError> {
        let password = Secret::new(password);
        self.auth.login(&from(1), Login { user: user.into(), password }).await
    }

    async fn renew(&self, renewal: &Secret) -> Result<RenewReply, FsError> {
        self.auth.renew(Renew { renewal: renewal.clone() }).await
    }

    /// As a command does it: under an op id of its own.
    async fn add_user(&self, request: AddUser) -> Result<Identity, FsError> {
        self.add_user_as(OpId { session: SessionId(secret::random()), number: 1 }, request).await
    }

    async fn add_user_as(&self, op: OpId, request: AddUser) -> Result<Identity, FsError> {
        self.auth.add_user(&Context { op: Some(op), ..from(1) }, request).await
    }

    fn check(&self, ticket: &Ticket) -> Result<(), FsError> {
        self.auth.verifier().verify(ticket, self.clock.wall()).map(|_| ())
    }
}

async fn first_start(auth: &AuthService, dir: &Path) -> Result<(), AuthStartError> {
    let ca = Fingerprint::of_pem(&std::fs::read(dir.join("cell/ca.pem")).unwrap()).unwrap();
    auth.first_start(&BootstrapFile::of(dir), URL, ca).await
}

fn read_bootstrap(dir: &Path) -> Bootstrap {
    toml::from_str(&std::fs::read_to_string(dir.join("bootstrap.toml")).unwrap()).unwrap()
}

/// A stranger's request from the host 10.0.0.`host`.
fn from(host: u8) -> Context {
    Context {
        peer: Peer::Anonymous,
        identity: Identity { uid: 65534, gid: 65534, groups: vec![] },
        session: None,
        op: None,
        lowest_unanswered: 0,
        deadline: Duration::MAX,
        address: Some(IpAddr::from([10, 0, 0, host])),
        news: crate::request::NewsCell::default(),
    }
}

fn user(name: &str, uid: Option<u32>) -> AddUser {
    let password = Secret::new("correct horse");
    AddUser { user: name.into(), password, uid, groups: vec![7, 5, 7], is_admin: false }
}

#[tokio::test]
async fn the_bootstrap_file_logs_in_the_administrator_and_the_machine() {
    let world = World::new().await;
    let bootstrap = world.bootstrap();
    let admin = world.login(&bootstrap.user, bootstrap.password.expose()).await.unwrap();
    assert!(admin.holder.is_admin);
    assert_eq!(admin.holder.identity(None), Identity::ROOT);
    world.check(&admin.ticket).unwrap();
    let machine = world.renew(&bootstrap.machine_secret).await.unwrap();
    assert_eq!(machine.holder.act_as, ActAs::Machine { squash_root: false });
    assert!(!machine.holder.is_admin);
    world.check(&machine.ticket).unwrap();
}

#[tokio::test]
async fn a_restart_keeps_accounts_logins_and_tickets() {
    let world = World::new().await;
    world.add_user(user("anna", None)).await.unwrap();
    let login = world.login("anna", "correct horse").await.unwrap();
    let before = world.bootstrap();
    let world = world.restart().await;
    world.first_start().await.unwrap();
    assert_eq!(world.bootstrap(), before);
    world.check(&login.ticket).unwrap();
    world.renew(&login.renewal).await.unwrap();
    world.login("anna", "correct horse").await.unwrap();
}

#[tokio::test]
async fn a_first_start_that_crashes_anywhere_is_completed_with_working_secrets() {
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let (engine, clock) = (Arc::new(MemoryEngine::new()), ManualClock::default());
        let auth = open(dir.path(), engine.clone(), &clock).await;
        failpoint::crash_after(Some(steps));
        let first = first_start(&auth, dir.path()).await;
        failpoint::crash_after(None);
        let published = dir.path().join("bootstrap.toml").exists();
        // The crash takes the process; what the engine made stable stays.
        auth.store.close().await;
        drop(auth);
        let auth = open(dir.path(), engine.clone(), &clock).await;
        let before = published.then(|| read_bootstrap(dir.path()));
        first_start(&auth, dir.path()).await.unwrap();
        let bootstrap = read_bootstrap(dir.path());
        assert!(before.is_none_or(|before| before == bootstrap), "step {steps}");
        let world = World { dir, engine, clock, auth };
        world.login(&bootstrap.user, bootstrap.password.expose()).await.unwrap();
        world.renew(&bootstrap.machine_secret).await.unwrap();
        if first.is_ok() {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 5, "only {steps} steps were tried");
}

#[tokio::test]
async fn a_deleted_bootstrap_file_makes_no_new_administrator() {
    let world = World::new().await;
    let before = world.bootstrap();
    std::fs::remove_file(world.dir.path().join("bootstrap.toml")).unwrap();
    let world = world.restart().await;
    world.first_start().await.unwrap();
    assert!(!world.dir.path().join("bootstrap.toml").exists());
    world.login("admin", before.password.expose()).await.unwrap();
}

#[tokio::test]
async fn lost_accounts_are_an_error_not_a_new_beginning() {
    let world = World::new().await;
    let empty: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let auth = open(world.dir.path(), empty, &world.clock).await;
    let error = first_start(&auth, world.dir.path()).await.unwrap_err();
    assert!(matches!(error, AuthStartError::AccountsLost), "{error}");
}

#[tokio::test]
async fn wrong_password_unknown_user_and_no_user_name_are_one_error() {
    let world = World::new().await;
    let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
    for (user, password) in
        [("admin", "wrong"), ("nobody-here", "wrong"), ("No Name\0", ""), ("admin", &long)]
    {
        assert_eq!(world.login(user, password).await, Err(FsError::LoginRefused), "{user}");
    }
}

#[tokio::test]
async fn guessing_is_slowed_down_and_the_right_password_waits_as_well() {
    let world = World::new().await;
    let password = world.bootstrap().password;
    for _ in 0..5 {
        assert_eq!(world.login("admin", "guess").await, Err(FsError::LoginRefused));
    }
    let limited = Err(FsError::RateLimited { retry_after_secs: 1 });
    assert_eq!(world.login("admin", "guess").await, limited);
    assert_eq!(world.login("admin", password.expose()).await, limited);
    world.clock.advance(Duration::from_secs(1));
    world.login("admin", password.expose()).await.unwrap();
    assert_eq!(world.login("admin", "guess").await, Err(FsError::LoginRefused));
}

#[tokio::test]
async fn users_that_do_not_exist_are_limited_like_others() {
    let world = World::new().await;
    for _ in 0..5 {
        assert_eq!(world.login("ghost", "guess").await, Err(FsError::LoginRefused));
    }
    let limited = Err(FsError::RateLimited { retry_after_secs: 1 });
    assert_eq!(world.login("ghost", "guess").await, limited);
}

#[tokio::test]
async fn logout_ends_the_secret_and_the_tickets_also_after_a_restart() {
    let world = World::new().await;
    let password = world.bootstrap().password;
    let ended = world.login("admin", password.expose()).await.unwrap();
    let other = world.login("admin", password.expose()).await.unwrap();
    world.check(&ended.ticket).unwrap();
    world.auth.logout(Logout { renewal: ended.renewal.clone() }).await.unwrap();
    world.auth.logout(Logout { renewal: ended.renewal.clone() }).await.unwrap();
    let world = world.restart().await;
    assert!(matches!(world.check(&ended.ticket), Err(FsError::TicketRefused { .. })));
    assert_eq!(world.renew(&ended.renewal).await, Err(FsError::LoginRefused));
    world.check(&other.ticket).unwrap();
    world.renew(&other.renewal).await.unwrap();
    assert_eq!(world.auth.keys(&Keys {}).revoked.len(), 1);
    world.clock.advance(2 * TICKET_LIFETIME);
    assert_eq!(world.auth.keys(&Keys {}).revoked.len(), 0);
    world.auth.sweep().await.unwrap();
    assert_eq!(world.restart().await.auth.revoked().len(), 0);
}

#[tokio::test]
async fn an_idle_login_ends_and_a_used_one_does_not() {
    let world = World::new().await;
    let bootstrap = world.bootstrap();
    let idle = world.login("admin", bootstrap.password.expose()).await.unwrap();
    let used = world.login("admin", bootstrap.password.expose()).await.unwrap();
    for _ in 0..4 {
        world.clock.advance(10 * DAY);
        world.renew(&used.renewal).await.unwrap();
    }
    assert_eq!(world.renew(&idle.renewal).await, Err(FsError::LoginRefused));
    world.auth.sweep().await.unwrap();
    let (from, to) = key::logins();
    assert_eq!(world.auth.store.scan::<LoginRow>(from, to, 9).await.unwrap().len(), 2);
    world.clock.advance(400 * DAY);
    world.renew(&bootstrap.machine_secret).await.unwrap();
}

#[tokio::test]
async fn accounts_get_unique_uids_from_ten_thousand() {
    let world = World::new().await;
    let anna = world.add_user(user("anna", None)).await.unwrap();
    assert_eq!(anna, Identity { uid: 10_000, gid: 10_000, groups: vec![5, 7] });
    assert_eq!(world.add_user(user("ben", Some(10_001))).await.unwrap().uid, 10_001);
    assert_eq!(world.add_user(user("carl", None)).await.unwrap().uid, 10_002);
    for taken in [user("anna", None), user("dora", Some(10_001)), user("admin", Some(5))] {
        assert_eq!(world.add_user(taken).await, Err(FsError::Exists));
    }
    let mut weak = user("emil", None);
    weak.password = Secret::new("short");
    assert!(matches!(world.add_user(weak).await, Err(FsError::InvalidArgument { .. })));
    let login = world.login("anna", "correct horse").await.unwrap();
    assert_eq!(login.holder.act_as, ActAs::Personal { identity: anna });
}

const OP: OpId = OpId { session: SessionId([3; 16]), number: 1 };

#[tokio::test]
async fn an_account_whose_answer_was_lost_is_made_once_and_answered_again() {
    let World { auth, clock, .. } = World::new().await;
    let mut router = Router::new(auth.verifier(), Arc::new(clock));
    let auth = Arc::new(auth);
    router.unary(move |context, request: AddUser| {
        let auth = Arc::clone(&auth);
        async move { auth.add_user(&context, request).await }
    });
    let transport = InProcess::default();
    transport.bind(Arc::new(router));
    let weather = Weather::new(1, Odds { reply_lost: 100, ..Odds::default() });
    let dialer = HostileDialer { inner: Arc::new(transport), weather: weather.clone() };
    let peer = Address { role: None, node: None, host: "auth".into(), port: 1 };
    let client = Client::new(dialer.dial(&peer).unwrap());
    let envelope = Envelope { op: Some(OP), lowest_unanswered: 1, ..Envelope::default() };
    let request = user("anna", None);
    let lost = client.call(&envelope, &request, Vec::new()).await;
    assert!(matches!(lost, Err(CallError::Transport(_))), "{lost:?}");
    weather.set_odds(Odds { delivered_twice: 100, ..Odds::default() });
    let anna = client.call(&envelope, &request, Vec::new()).await.unwrap().reply;
    assert_eq!(anna.uid, 10_000);
    let next = Envelope { op: Some(OpId { number: 2, ..OP }), lowest_unanswered: 2, ..envelope };
    let again = client.call(&next, &request, Vec::new()).await;
    assert!(matches!(again, Err(CallError::Fs(FsError::Exists))), "another request: {again:?}");
    let ben = client.call(&next, &user("ben", None), Vec::new()).await.unwrap().reply;
    assert_eq!(ben.uid, 10_001, "no uid was used up");
}

#[tokio::test]
async fn the_answer_to_a_new_account_is_remembered_through_a_restart_for_its_time() {
    let world = World::new().await;
    let anna = world.add_user_as(OP, user("anna", None)).await.unwrap();
    let world = world.restart().await;
    world.clock.advance(VANISHED_KEPT - DAY);
    world.auth.sweep().await.unwrap();
    assert_eq!(world.add_user_as(OP, user("anna", None)).await, Ok(anna));
    world.clock.advance(DAY);
    world.auth.sweep().await.unwrap();
    let (from, to) = key::ledgers();
    assert_eq!(world.auth.store.scan::<LedgerRow>(from, to, 9).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_refused_account_may_be_asked_for_again_under_its_op_id() {
    let world = World::new().await;
    let taken = AddUser { uid: Some(10_000), ..user("ben", None) };
    world.add_user(user("anna", None)).await.unwrap();
    assert_eq!(world.add_user_as(OP, taken.clone()).await, Err(FsError::Exists));
    let free = AddUser { uid: Some(10_001), ..taken };
    assert_eq!(world.add_user_as(OP, free).await.unwrap().uid, 10_001);
}

#[tokio::test]
async fn no_secret_is_stored_as_it_is() {
    let world = World::new().await;
    let bootstrap = world.bootstrap();
    let login = world.login("admin", bootstrap.password.expose()).await.unwrap();
    let rows = world.engine.scan(&[], &[0xff; 8], 1000).unwrap();
    let stored: Vec<u8> = rows.into_iter().flat_map(|(key, row)| [key, row].concat()).collect();
    for secret in [&bootstrap.password, &bootstrap.machine_secret, &login.renewal] {
        let text = secret.expose().as_bytes();
        assert!(!stored.windows(text.len()).any(|bytes| bytes == text));
    }
}

#[tokio::test]
async fn whoami_needs_a_ticket() {
    let world = World::new().await;
    assert_eq!(world.auth.whoami(&from(1)), Err(FsError::Unauthenticated));
    let holder = Arc::new(world.renew(&world.bootstrap().machine_secret).await.unwrap().holder);
    let context = Context { peer: Peer::User(holder.clone()), ..from(1) };
    assert_eq!(world.auth.whoami(&context).unwrap().holder, *holder);
}
