//! Opening files: which bytes a handle is over, and how it comes to them.
//!
//! Every open asks the directory once: permission, the current version, and for writing the lock.
//! Then, under the file's gate, the handle gets the working copy of this client if there is one,
//! else the cached version, fetched first if it is not the current one. All handles of a node are
//! over one cache file; an open that meets handles over another gives the file a fresh node and
//! answers `Stale`, upon which the kernel looks the path up again and opens that one.
//!
//! The request is sent outside the gate, since it may wait a minute for another client's lock, and
//! what was decided before it is decided again inside. The handle is counted before the working
//! copy is begun: from then on no other open can choose another cache file for this node.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::admin::Role;
use dfs_proto::directory::{LockWait, Open, OpenAccess, OpenReply};
use dfs_proto::error::FsError;
use dfs_proto::version::DataVersion;

use super::io::FileHandle;
use super::mode::Way;
use super::node::{Node, OpenVersion, Pending};
use super::walk::Walk;
use super::{Caller, Error, Vfs};
use crate::cache::record::Origin;
use crate::cache::{CacheFile, CleanFile};
use crate::writeback::{Begin, Working, WriteIntent};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    pub read: bool,
    pub write: bool,
    /// The file is cut to nothing; implies `write`.
    pub truncate: bool,
    /// Another client's lock is not waited for.
    pub nonblock: bool,
}

/// An open file.
#[derive(Debug)]
pub struct Opened {
    pub handle: u64,
    pub nodeid: u64,
    /// What the kernel may read itself, if `way` says so.
    pub file: Arc<CacheFile>,
    pub way: Way,
}

/// What this client had of a file before it asked the server.
struct Held {
    live: Option<Working>,
    clean: Option<CleanFile>,
}

impl Held {
    fn version(&self) -> Option<DataVersion> {
        match (&self.live, &self.clean) {
            (Some(live), _) => Some(live.base()),
            (None, clean) => clean.as_ref().map(|clean| clean.version),
        }
    }
}

/// How often an open asks again because its answer was overtaken by a change made here. Why so
/// few: each repetition needs a commit of this client to fall between answer and gate.
pub(super) const OVERTAKEN_MAX: u32 = 8;

impl Vfs {
    /// Opens a file.
    ///
    /// # Errors
    /// `AccessDenied`, `IsDirectory`, `LockBusy`, `LockTimeout`; `Stale` if the nodeid shows a
    /// version that is not the current one, or is gone; those of fetching.
    pub async fn open(&self, caller: &Caller, nodeid: u64, how: OpenHow) -> Result<Opened, Error> {
        let node = self.node(nodeid)?;
        self.send_first(&node).await;
        let walk = node.walks.end(caller.pid, self.clock().boottime());
        if walk.is_none() && self.is_to_look_again(caller, &node) {
            return Err(FsError::Stale.into());
        }
        let opened = if how.write {
            self.open_write(caller, node.clone(), how).await
        } else {
            self.open_read(caller, &node, walk).await
        };
        if opened.is_ok() {
            self.opened(&node);
        }
        if let (Some(walk), Err(Error::Fs(FsError::Stale))) = (walk, &opened) {
            node.walks.refuse(walk, self.clock().boottime());
        }
        opened
    }

    async fn held(&self, node: &Node) -> Held {
        let live = self.writeback().before_open(node.fid).await;
        let live = live.filter(|live| !live.is_detached());
        if let Some(live) = &live {
            // What is merely mapped may be so no more.
            live.ask_to_look();
        }
        let clean = match live {
            Some(_) => None,
            None => self.cache().clean(node.fid).await,
        };
        Held { live, clean }
    }

    async fn open_read(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        walk: Option<Walk>,
    ) -> Result<Opened, Error> {
        for _ in 0..OVERTAKEN_MAX {
            let held = self.held(node).await;
            if let Some(clean) = &held.clean
                && let Some(opened) = self.open_known(caller, node, clean).await
            {
                return Ok(opened);
            }
            let request = Open { fid: node.fid, access: OpenAccess::Read, have: held.version() };
            let asked_at = self.clock().boottime();
            let reply = self.ask(caller, &request).await?;
            let how = OpenHow { read: true, ..OpenHow::default() };
            let reply = &reply;
            let opening = Opening { caller, node, how, reply, asked_at, walk, is_new: false };
            if let Some(opened) = self.read_as_answered(opening, held.clean).await? {
                return Ok(opened);
            }
        }
        Err(Error::Fs(FsError::unavailable("file changes here too often to be opened")))
    }

    /// A handle for reading the cached version without a request: if it is known to be the newest,
    /// and that the caller may read it.
    async fn open_known(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        clean: &CleanFile,
    ) -> Option<Opened> {
        let _gate = node.gate.lock().await;
        let asked_at = self.clock().boottime();
        let (attr, sequence) = self.known_to_reader(caller, node)?;
        let is_newest = attr.data_version == clean.version && self.working(node).is_none();
        let file = clean.file.clone();
        let wanted = OpenVersion {
            file: file.clone(),
            version: clean.version,
            attr,
            sequence,
            asked_at,
            pending: Pending::default(),
        };
        let way = is_newest.then(|| self.add_handle(node, wanted, false).ok())??;
        let handle = self.inner.files.insert(FileHandle::reading(node.clone(), file.clone()));
        Some(Opened { handle, nodeid: node.nodeid, file, way })
    }

    /// A handle for reading, or `None` if the answer fits no longer what is held.
    pub(super) async fn read_as_answered(
        &self,
        opening: Opening<'_>,
        clean: Option<CleanFile>,
    ) -> Result<Option<Opened>, Error> {
        let Opening { caller, node, reply, .. } = opening;
        let _gate = node.gate.lock().await;
        let (file, version) = match self.working(node) {
            Some(live) if !self.freshen(caller, node, &live, reply).await? => return Ok(None),
            Some(live) => (live.file().clone(), live.base()),
            None => match self.current(caller, node, reply, clean).await? {
                Some(clean) => (clean.file, clean.version),
                None => return Ok(None),
            },
        };
        let (file, way) = match self.add_handle(node, opening.shows(&file, version), false) {
            Ok(way) => (file, way),
            Err(refused) => self.add_to_shown(opening).ok_or(refused)?,
        };
        let handle = self.inner.files.insert(FileHandle::reading(node.clone(), file.clone()));
        Ok(Some(Opened { handle, nodeid: node.nodeid, file, way }))
    }

    /// The version that the server's answer names, brought here if it is not. `None` if the server
    /// left the manifest out for a version that is not held any more, or if a newer one that was
    /// made here is damaged.
    async fn current(
        &self,
        caller: &Caller,
        node: &Node,
        reply: &OpenReply,
        clean: Option<CleanFile>,
    ) -> Result<Option<CleanFile>, Error> {
        if self.has_newer(node, reply) {
            let newer = self.cache().clean(node.fid).await;
            return Ok(newer.filter(|newer| newer.version > reply.attr.data_version));
        }
        let is_held = clean.as_ref().is_some_and(|it| it.version == reply.attr.data_version);
        if reply.manifest.is_none() && !is_held {
            return Ok(None);
        }
        let identity = Some(&caller.identity);
        let fetched = self.fetcher().fetch(self.cache(), identity, reply, clean.as_ref()).await?;
        Ok(Some(fetched))
    }

    /// Whether this client has committed a version since the answer was made. It is as good as the
    /// answer's: for a writer nobody else can have changed the file since, because the lock that
    /// came with the answer was not given back; a reader may get any version that was current
    /// after it asked.
    fn has_newer(&self, node: &Node, reply: &OpenReply) -> bool {
        let cached = self.cache().version(node.fid);
        cached.is_some_and(|cached| cached > reply.attr.data_version)
    }

    pub(super) async fn open_write(
        &self,
        caller: &Caller,
        node: Arc<Node>,
        how: OpenHow,
    ) -> Result<Opened, Error> {
        let intent = self.writeback().intend(node.fid).await;
        for _ in 0..OVERTAKEN_MAX {
            let held = self.held(&node).await;
            let access = self.access(how);
            let request = Open { fid: node.fid, access, have: held.version() };
            let identity = Some(&caller.identity);
            let wait = self.lock_wait(how);
            let session = self.session();
            let asked_at = self.clock().boottime();
            let reply = session.call_waiting(Role::Directory, identity, &request, wait).await?;
            let (node, reply) = (&node, &reply);
            let opening = Opening { caller, node, how, reply, asked_at, walk: None, is_new: false };
            if let Some(opened) = self.write_as_answered(opening, &intent, held.clean).await? {
                return Ok(opened);
            }
        }
        Err(Error::Fs(FsError::unavailable("file changes here too often to be opened")))
    }

    pub(super) fn access(&self, how: OpenHow) -> OpenAccess {
        if !how.write {
            return OpenAccess::Read;
        }
        let wait_ms = u32::try_from(self.lock_wait(how).as_millis()).unwrap_or(u32::MAX);
        let wait = if how.nonblock { LockWait::No } else { LockWait::UpTo(wait_ms) };
        OpenAccess::Write { wait, read: how.read }
    }

    pub(super) fn lock_wait(&self, how: OpenHow) -> Duration {
        if how.nonblock || !how.write { Duration::ZERO } else { self.inner.options.lock_timeout }
    }

    /// A handle for writing, or `None` if the answer fits no longer what is held.
    pub(super) async fn write_as_answered(
        &self,
        opening: Opening<'_>,
        intent: &WriteIntent,
        clean: Option<CleanFile>,
    ) -> Result<Option<Opened>, Error> {
        let Opening { caller, node, reply, .. } = opening;
        let _gate = node.gate.lock().await;
        if let Some(live) = self.working(node)
            && !self.freshen(caller, node, &live, reply).await?
        {
            return Ok(None);
        }
        if let Some(working) = self.writeback().join(intent, opening.reply).await? {
            return self.write_jointly(opening, working).await.map(Some);
        }
        match self.base(opening, clean).await? {
            Some(base) => self.write_on(opening, intent, base).await.map(Some),
            None => Ok(None),
        }
    }

    /// One more writer of the working copy that this client has.
    async fn write_jointly(&self, opening: Opening<'_>, working: Working) -> Result<Opened, Error> {
        let Opening { node, how, .. } = opening;
        let file = working.file().clone();
        let result =
            self.add_handle(node, opening.shows(&file, working.base()), true).and_then(|way| {
                match how.truncate.then(|| working.set_len(0)) {
                    Some(Err(error)) => {
                        node.state().remove_handle();
                        Err(error.into())
                    }
                    _ => Ok(way),
                }
            });
        match result {
            Ok(way) => Ok(self.opened_for_writing(opening, working, way)),
            Err(error) => {
                self.release_working(node, working).await;
                Err(error)
            }
        }
    }

    /// What a new working copy starts from.
    async fn base(
        &self,
        opening: Opening<'_>,
        clean: Option<CleanFile>,
    ) -> Result<Option<Base>, Error> {
        let Opening { caller, node, how, reply, .. } = opening;
        let has_newer = self.has_newer(node, reply);
        if !has_newer && node.state().has_newer_version(&reply.attr, reply.sequence) {
            return Ok(None);
        }
        let is_first = !node.is_open();
        let is_empty = reply.manifest.as_ref().is_some_and(|it| it.size() == 0);
        if is_first && (how.truncate || is_empty) && !has_newer {
            // Nothing of the old content is needed but its manifest, which tells what the file's
            // chunks are.
            let version = reply.attr.data_version;
            let known = clean.filter(|clean| clean.version == version);
            let manifest = match (&reply.manifest, known) {
                (Some(manifest), _) => Arc::new(manifest.clone()),
                (None, Some(clean)) => clean.manifest,
                (None, None) => return Ok(None),
            };
            let file = self.cache().create(node.fid)?;
            return Ok(Some(Base { file, version, manifest, is_dirty: how.truncate }));
        }
        let current = self.current(caller, node, reply, clean).await?;
        Ok(current.map(|CleanFile { file, version, manifest }| Base {
            file,
            version,
            manifest,
            is_dirty: false,
        }))
    }

    /// The first writer here: begins the working copy.
    async fn write_on(
        &self,
        opening: Opening<'_>,
        intent: &WriteIntent,
        base: Base,
    ) -> Result<Opened, Error> {
        let Opening { caller, node, how, reply, .. } = opening;
        let Some(grant) = reply.write.clone() else {
            return Err(FsError::malformed("open for writing was answered without a grant").into());
        };
        let way = self.add_handle(node, opening.shows(&base.file, base.version), true)?;
        let counted = CountedHandle { node: Some(node) };
        let begin = Begin {
            file: base.file.clone(),
            base: base.version,
            base_manifest: base.manifest,
            grant,
            placement: reply.placement.clone(),
            origin: Origin {
                hint: self.inner.inodes.path(node.nodeid),
                caller: Some(caller.identity.clone()),
            },
            is_dirty: base.is_dirty,
            is_new: opening.is_new,
        };
        let working = self.writeback().begin(intent, begin).await?;
        if how.truncate
            && !base.is_dirty
            && let Err(error) = working.set_len(0)
        {
            self.release_working(node, working).await;
            return Err(error.into());
        }
        counted.keep();
        Ok(self.opened_for_writing(opening, working, way))
    }

    fn opened_for_writing(&self, opening: Opening<'_>, working: Working, way: Way) -> Opened {
        let Opening { caller, node, how, .. } = opening;
        if how.truncate && !caller.identity.is_root() {
            self.note_set_id_cleared(node);
        }
        if how.read && way == Way::Beside {
            working.expect_stores();
        }
        self.begun_writing(node);
        let file = working.file().clone();
        let may_be_kept = how.read && matches!(way, Way::Served { .. });
        let handle = FileHandle::writing(node.clone(), working, may_be_kept);
        let handle = self.inner.files.insert(handle);
        Opened { handle, nodeid: node.nodeid, file, way }
    }

    /// Counts a handle on a node, if the node is the file's current one and shows no other version.
    ///
    /// # Errors
    /// `Stale`: the kernel's next lookup yields a node that can be opened.
    fn add_handle(&self, node: &Node, wanted: OpenVersion, may_write: bool) -> Result<Way, Error> {
        let may_pass = self.passes_through();
        let file = wanted.file.clone();
        let add = || node.state().add_handle(wanted, may_write, may_pass);
        let added = self.inner.inodes.if_current(node, &file, add);
        match added {
            Some(Ok(way)) => Ok(way),
            Some(Err(_)) => {
                self.inner.inodes.supersede(node);
                Err(FsError::Stale.into())
            }
            None => Err(FsError::Stale.into()),
        }
    }

    /// Counts a reader of the version that other handles of the node show, if that is as good as
    /// the newest for it.
    fn add_to_shown(&self, opening: Opening<'_>) -> Option<(Arc<CacheFile>, Way)> {
        let Opening { node, walk, .. } = opening;
        let since = walk?.since;
        let mut state = node.state();
        let shown = state.open().filter(|shown| shown.asked_at >= since)?;
        let shown = OpenVersion { attr: shown.attr.clone(), file: shown.file.clone(), ..*shown };
        let file = shown.file.clone();
        // It is over the same cache file: there is no other version to meet.
        let way = state.add_handle(shown, false, self.passes_through()).ok()?;
        Some((file, way))
    }

    /// The kernel refused to read a cache file: the mount serves everything from now on.
    pub fn refuse_passthrough(&self, handle: u64) -> Result<Way, Error> {
        self.inner.passthrough_refused.store(true, std::sync::atomic::Ordering::Relaxed);
        let way = self.file_handle(handle)?.node().state().refuse_passthrough();
        Ok(way)
    }
}

/// One open on its way.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    pub(super) caller: &'a Caller,
    pub(super) node: &'a Arc<Node>,
    pub(super) how: OpenHow,
    pub(super) reply: &'a OpenReply,
    /// When the question was sent. On `Clock::boottime`.
    pub(super) asked_at: Duration,
    pub(super) walk: Option<Walk>,
    /// The open made the file.
    pub(super) is_new: bool,
}

impl Opening<'_> {
    /// What the node shows from now on: `file`, which holds `version`.
    fn shows(&self, file: &Arc<CacheFile>, version: DataVersion) -> OpenVersion {
        OpenVersion {
            file: file.clone(),
            version,
            attr: self.reply.attr.clone(),
            sequence: self.reply.sequence,
            asked_at: self.asked_at,
            pending: Pending::default(),
        }
    }
}

/// What a working copy starts from.
struct Base {
    file: Arc<CacheFile>,
    version: DataVersion,
    manifest: Arc<dfs_proto::manifest::Manifest>,
    /// Whether it differs from the version it starts from.
    is_dirty: bool,
}

/// A counted handle that is uncounted unless it is kept.
struct CountedHandle<'a> {
    node: Option<&'a Node>,
}

impl CountedHandle<'_> {
    fn keep(mut self) {
        self.node = None;
    }
}

impl Drop for CountedHandle<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node {
            node.state().remove_handle();
        }
    }
}
