//! A client on a fake cell: what a mount assembles, and the opens and closes of a program.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::Timestamp;
use dfs_proto::client::Dial;
use dfs_proto::client::retry::RetryPolicy;
use dfs_proto::clock::Clock;
use dfs_proto::credential::Secret;
use dfs_proto::directory::{CommitAttr, Create, Durability, LockWait, Open, OpenAccess, OpenReply};
use dfs_proto::id::{FileId, InodeNo, VolumeId};
use dfs_proto::manifest::Manifest;
use dfs_proto::name::Name;
use dfs_proto::version::Epoch;

use crate::cache::record::Origin;
use crate::cache::{Belongs, Cache, CleanFile, ContentError, Limits};
use crate::credential::TicketSource;
use crate::fetch::Fetcher;
use crate::session::Session;
use crate::session::connection::{Connection, Way};
use crate::writeback::{Begin, Commit, Working, Writeback};

use super::fake_cell::VOLUME;

/// A client with a cache.
#[derive(Clone, Debug)]
pub struct TestClient {
    pub session: Session,
    pub cache: Cache,
    pub fetcher: Fetcher,
    pub writeback: Writeback,
}

/// The cache of tests: small, and no free space kept for others.
pub const TEST_LIMITS: Limits =
    Limits { size_bytes: 256 << 20, keep_free_bytes: 0, keep_free_percent: 0 };

/// Gives up soon.
pub fn soft() -> RetryPolicy {
    RetryPolicy {
        first_delay: Duration::from_millis(1),
        delay_max: Duration::from_millis(20),
        give_up_after: Some(Duration::from_millis(300)),
    }
}

pub fn belongs() -> Belongs {
    Belongs { cell: "fake".into(), volume: "main".into() }
}

pub fn connect(dial: Arc<dyn Dial>, clock: Arc<dyn Clock>) -> Connection {
    let tickets = TicketSource::renewing(Secret::new("renewal"), Arc::clone(&clock));
    let policy = soft();
    let way = Way { host: "cell".into(), port: 7400, dial, tickets, policy, clock };
    Connection::new(way).expect("random numbers")
}

impl TestClient {
    pub async fn start(dir: &Path, dial: Arc<dyn Dial>, clock: Arc<dyn Clock>) -> TestClient {
        TestClient::with_limits(dir, dial, clock, TEST_LIMITS).await
    }

    pub async fn with_limits(
        dir: &Path,
        dial: Arc<dyn Dial>,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> TestClient {
        let connection = connect(dial, Arc::clone(&clock));
        let metrics = Arc::clone(connection.metrics());
        let session = Session::open(connection, "main", "test").await.expect("the cell answers");
        let recalls = session.listen().await;
        let cache = Cache::open(dir, &belongs(), limits, clock, metrics).expect("cache opens");
        let fetcher = Fetcher::new(session.clone());
        let writeback =
            Writeback::start(session.clone(), cache.clone(), recalls).await.expect("journal");
        TestClient { session, cache, fetcher, writeback }
    }

    /// Ends the client as an unmount does.
    pub async fn stop(self) {
        self.writeback.stop().await;
        self.session.close().await;
    }

    /// Ends the client as a kill does: nothing is said to anybody.
    pub async fn kill(self) {
        self.writeback.stop().await;
    }

    /// Creates a file and opens it for writing.
    pub async fn create(&self, name: &str) -> Result<Working, ContentError> {
        let access = OpenAccess::Write { wait: LockWait::No, read: true };
        let name = Name::parse(name.as_bytes()).expect("a name");
        let parent = FileId::new(VOLUME, dfs_proto::id::ROOT_INODE, Epoch(1));
        let request = Create { parent, name: name.clone(), mode: 0o644, exclusive: true, access };
        let reply = self.session.call(Role::Directory, None, &request).await?;
        let fid = reply.open.attr.fid;
        let intent = self.writeback.intend(fid).await;
        let begin = Begin {
            file: self.cache.create(fid)?,
            base: reply.open.attr.data_version,
            base_manifest: Arc::new(Manifest::default()),
            grant: reply.open.write.ok_or(FsError::Fenced)?,
            placement: reply.open.placement,
            origin: Origin { hint: name.to_string(), caller: None },
            is_dirty: false,
            is_new: true,
        };
        self.writeback.begin(&intent, begin).await
    }

    /// Opens a file for writing, waiting for its lock up to a second.
    pub async fn open_write(&self, fid: FileId) -> Result<Working, ContentError> {
        let live = self.writeback.before_open(fid).await;
        let intent = self.writeback.intend(fid).await;
        let clean = self.cache.clean(fid).await;
        let have = live.map(|live| live.base()).or(clean.as_ref().map(|clean| clean.version));
        let access = OpenAccess::Write { wait: LockWait::UpTo(1000), read: true };
        let reply = self.ask_open(fid, access, have).await?;
        if let Some(working) = self.writeback.join(&intent, &reply).await? {
            return Ok(working);
        }
        let clean = self.fetcher.fetch(&self.cache, None, &reply, clean.as_ref()).await?;
        let begin = Begin {
            file: clean.file,
            base: clean.version,
            base_manifest: clean.manifest,
            grant: reply.write.ok_or(FsError::Fenced)?,
            placement: reply.placement,
            origin: Origin { hint: fid.to_string(), caller: None },
            is_dirty: false,
            is_new: false,
        };
        self.writeback.begin(&intent, begin).await
    }

    /// Opens a file for reading and reads all of it.
    pub async fn read(&self, fid: FileId) -> Result<Vec<u8>, ContentError> {
        if let Some(live) = self.writeback.before_open(fid).await {
            return Ok(read_file(live.file()));
        }
        Ok(read_file(&self.open_read(fid).await?.file))
    }

    pub async fn open_read(&self, fid: FileId) -> Result<CleanFile, ContentError> {
        let clean = self.cache.clean(fid).await;
        let have = clean.as_ref().map(|clean| clean.version);
        let reply = self.ask_open(fid, OpenAccess::Read, have).await?;
        self.fetcher.fetch(&self.cache, None, &reply, clean.as_ref()).await
    }

    pub async fn ask_open(
        &self,
        fid: FileId,
        access: OpenAccess,
        have: Option<dfs_proto::version::DataVersion>,
    ) -> Result<OpenReply, FsError> {
        let request = Open { fid, access, have };
        let wait = Duration::from_secs(1);
        self.session.call_waiting(Role::Directory, None, &request, wait).await
    }

    /// What close does: flush, then release.
    pub async fn close(&self, working: Working) -> Result<Commit, ContentError> {
        let result = self.flush(&working).await;
        self.writeback.release(working).await;
        result
    }

    pub async fn flush(&self, working: &Working) -> Result<Commit, ContentError> {
        self.writeback.commit(working, attr_at(7), Durability::Process).await
    }

    /// Creates, writes and closes a file.
    pub async fn put(&self, name: &str, content: &[u8]) -> Result<FileId, ContentError> {
        let working = self.create(name).await?;
        let fid = working.fid();
        working.write_at(0, content)?;
        self.close(working).await?;
        Ok(fid)
    }
}

pub fn attr_at(secs: i64) -> CommitAttr {
    CommitAttr { mtime: Timestamp::new(secs, 0), ..CommitAttr::default() }
}

pub fn read_file(file: &crate::cache::CacheFile) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.size().expect("fstat")).expect("small")];
    let count = file.read_at(&mut content, 0).expect("pread");
    assert_eq!(count, content.len(), "a short read of a regular file");
    content
}

/// A file id that no cell has handed out.
pub fn unknown_fid() -> FileId {
    FileId::new(VolumeId(1), InodeNo(1), Epoch(77))
}
