//! Promises and breaks through the service: who is told what of every mutation, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind};
use dfs_proto::clock::Clock;
use dfs_proto::directory::{GetAttr, Lookup, ReadDir, RenameRule, XattrRule};
use dfs_proto::id::FileId;
use dfs_proto::limits::SESSION_LEASE;
use dfs_proto::name::Name;
use dfs_proto::promise::{Break, DirChange, Promise, StreamNumber};
use dfs_proto::session::{Acknowledge, SessionEvent};
use dfs_proto::version::{DirVersion, Sequence};
use futures_util::FutureExt;
use proptest::prelude::{ProptestConfig, any, proptest};
use tokio::sync::mpsc;

use super::cell::{Cell, User, name};
use super::model::{Op, Real, USERS, ops, settled};
use crate::request::NewsCell;

type Entries = BTreeMap<Name, Attr>;

/// A directory as somebody holds it, or as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dir {
    attr: Attr,
    entries: Entries,
}

/// A client that holds directories by promises and knows of changes by breaks and news alone.
struct Holder {
    user: User,
    stream: mpsc::Receiver<SessionEvent>,
    number: StreamNumber,
    held: BTreeMap<FileId, (Sequence, Dir)>,
    breaks: Vec<Break>,
    /// Whether it says that it has used what breaks tell of.
    is_using: bool,
}

/// What is promised of an entry's attributes.
fn shown(attr: Attr) -> Attr {
    Attr { dir_version: DirVersion::default(), ..attr }
}

async fn read(user: &User, fid: FileId) -> Result<Dir, FsError> {
    let attr = user.getattr(fid).await?;
    let request = ReadDir { fid, after: None, limit: 4096 };
    let page = user.cell.directory.readdir(user.context(), request).await?.page;
    let entries = page.entries.into_iter().map(|entry| (entry.name, shown(entry.attr)));
    Ok(Dir { attr, entries: entries.collect() })
}

impl Holder {
    async fn new(user: User) -> Holder {
        let mut stream = user.cell.directory.events(&user.context()).await.unwrap();
        let Some(SessionEvent::Started { stream: number, .. }) = stream.recv().await else {
            panic!("the stream does not begin");
        };
        let (held, breaks) = (BTreeMap::new(), Vec::new());
        let user = User { news: NewsCell::beside(Some(number)), ..user };
        Holder { user, stream, number, held, breaks, is_using: true }
    }

    /// Reads a directory and holds it from here on.
    async fn hold(&mut self, dir: FileId) {
        let found = read(&self.user, dir).await.unwrap();
        let promise = self.user.news.take().promise.unwrap();
        assert_eq!((promise.stream, &promise.dirs[..]), (self.number, &[dir][..]));
        self.held.insert(dir, (promise.sequence, found));
    }

    fn learn(&mut self, changes: &[DirChange]) {
        for change in changes {
            let Some((sequence, dir)) = self.held.get_mut(&change.dir) else { continue };
            if change.sequence <= *sequence {
                continue;
            }
            *sequence = change.sequence;
            let Some(attr) = change.attr.clone().filter(|_| !change.is_cut) else {
                self.held.remove(&change.dir);
                continue;
            };
            dir.attr = attr;
            for (name, attr) in &change.names {
                match attr {
                    Some(attr) => dir.entries.insert(name.clone(), shown(attr.clone())),
                    None => dir.entries.remove(name),
                };
            }
        }
    }

    fn take(&mut self, event: SessionEvent) {
        if let SessionEvent::Break(told) = event {
            self.learn(&told.changes);
            told.ended.iter().for_each(|dir| drop(self.held.remove(dir)));
            self.acknowledge(&told);
            self.breaks.push(told);
        }
    }

    fn acknowledge(&self, told: &Break) {
        let used = told.changes.iter().map(|change| change.dir).filter(|_| self.is_using);
        let request = Acknowledge { number: told.number, used: used.collect() };
        let directory = &self.user.cell.directory;
        let done = directory.acknowledge(self.user.context(), request).now_or_never();
        done.expect("to acknowledge waits for nothing").unwrap();
    }

    async fn next_break(&mut self) -> Break {
        loop {
            if let SessionEvent::Break(told) = self.stream.recv().await.unwrap() {
                return told;
            }
        }
    }

    /// What it holds is what somebody else finds who asks.
    async fn check(&self, probe: &User) {
        for (fid, (_, dir)) in &self.held {
            assert_eq!(Ok(dir), read(probe, *fid).await.as_ref(), "{fid}");
        }
    }
}

/// Runs `work` while the holders take what they are told.
async fn during<T>(holders: &mut [&mut Holder], work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        for holder in holders.iter_mut() {
            while let Poll::Ready(Some(event)) = holder.stream.poll_recv(context) {
                holder.take(event);
            }
        }
        work.as_mut().poll(context)
    })
    .await
}

/// `d/f`, `d/g`, `d/sub/x`, `e/f2` (another name of `d/f`), `e/h`, `empty`; Ann and Bob hold all.
struct Tree {
    cell: Cell,
    probe: User,
    ann: Holder,
    bob: Holder,
    dirs: [FileId; 5],
    file: FileId,
}

impl Tree {
    async fn new() -> Tree {
        let cell = Cell::new().await;
        let (root, probe) = (cell.root, cell.user(9, 0).await);
        let mut make = BTreeMap::new();
        let user = cell.user(1, 1000).await;
        for (at, text) in [("", "d"), ("", "e"), ("", "empty"), ("d", "sub")] {
            let parent = *make.get(at).unwrap_or(&root);
            make.insert(text, user.mkdir(parent, text, 0o755).await.unwrap().attr.fid);
        }
        let [d, e, empty, sub] = ["d", "e", "empty", "sub"].map(|text| make[text]);
        let file = user.file(d, "f", 0o644).await.unwrap().attr.fid;
        user.set_xattr(file, "user.kept", b"1", XattrRule::Any).await.unwrap();
        user.file(d, "g", 0o644).await.unwrap();
        user.file(sub, "x", 0o644).await.unwrap();
        user.link(file, e, "f2").await.unwrap();
        user.file(e, "h", 0o644).await.unwrap();
        let dirs = [root, d, e, empty, sub];
        let bob = cell.user(2, 1000).await;
        let (ann, bob) = (Holder::new(user).await, Holder::new(bob).await);
        let mut tree = Tree { cell, probe, ann, bob, dirs, file };
        for dir in dirs {
            tree.ann.hold(dir).await;
            tree.bob.hold(dir).await;
        }
        tree
    }

    async fn snapshot(&self) -> BTreeMap<FileId, Option<Dir>> {
        let mut found = BTreeMap::new();
        for dir in self.dirs {
            found.insert(dir, read(&self.probe, dir).await.ok());
        }
        found
    }

    /// Runs mutation `which` of those below.
    fn mutate(&self, which: usize) -> impl Future<Output = Result<(), FsError>> + use<> {
        let (ann, file, [root, d, e, ..]) = (self.ann.user.clone(), self.file, self.dirs);
        let sub = self.dirs[4];
        use RenameRule::{Exchange, NoReplace, Replace};
        async move {
            match which {
                0 => ann.mkdir(d, "new", 0o755).await.map(drop),
                1 => ann.file(sub, "new", 0o644).await.map(drop),
                2 => ann.symlink(root, "new", "x").await.map(drop),
                3 => ann.mknod(e, "new", FileKind::Fifo, 0o644).await.map(drop),
                4 => ann.create(d, "new", true).await.map(drop),
                5 => ann.link(file, sub, "new").await.map(drop),
                6 => ann.unlink(d, "f").await.map(drop),
                7 => ann.unlink(d, "g").await.map(drop),
                8 => ann.rmdir(root, "empty").await.map(drop),
                9 => ann.rename((d, "g"), (d, "new"), NoReplace).await.map(drop),
                10 => ann.rename((d, "f"), (e, "new"), Replace).await.map(drop),
                11 => ann.rename((d, "g"), (e, "h"), Replace).await.map(drop),
                12 => ann.rename((d, "g"), (e, "f2"), Replace).await.map(drop),
                13 => ann.rename((d, "sub"), (e, "new"), Replace).await.map(drop),
                14 => ann.rename((d, "sub"), (root, "empty"), Replace).await.map(drop),
                15 => ann.rename((d, "sub"), (e, "h"), Exchange).await.map(drop),
                16 => ann.rename((d, "f"), (d, "g"), Exchange).await.map(drop),
                17 => ann.chmod(file, 0o600).await.map(drop),
                18 => ann.chmod(sub, 0o700).await.map(drop),
                19 => ann.chown(file, None, Some(100)).await.map(drop),
                20 => ann.set_xattr(file, "user.new", b"2", XattrRule::Any).await.map(drop),
                21 => ann.set_xattr(d, "user.new", b"2", XattrRule::Any).await.map(drop),
                22 => ann.remove_xattr(file, "user.kept").await.map(drop),
                _ => {
                    let grant = ann.open_to_write(file).await?;
                    ann.store(&grant.capability, &[b"content"]).await.map(drop)
                }
            }
        }
    }
}

const MUTATIONS: usize = 24;

type Told = BTreeMap<FileId, BTreeSet<Name>>;

fn told(changes: &[DirChange]) -> Told {
    let names = |change: &DirChange| change.names.iter().map(|(name, _)| name.clone()).collect();
    changes.iter().map(|change| (change.dir, names(change))).collect()
}

/// What differs between two states: directories, and the names in them.
fn differences(
    before: &BTreeMap<FileId, Option<Dir>>,
    after: &BTreeMap<FileId, Option<Dir>>,
) -> Told {
    let mut found = Told::new();
    for (fid, before) in before {
        let (before, after) = (before.as_ref().unwrap(), &after[fid]);
        let empty = Entries::new();
        let entries = after.as_ref().map_or(&empty, |dir| &dir.entries);
        let all = before.entries.keys().chain(entries.keys());
        let differ = all.filter(|name| before.entries.get(*name) != entries.get(*name));
        if Some(before) != after.as_ref() {
            found.insert(*fid, differ.cloned().collect());
        }
    }
    found
}

#[tokio::test]
async fn every_mutation_breaks_exactly_what_it_changes_before_it_is_answered() {
    for which in 0..MUTATIONS {
        let mut tree = Tree::new().await;
        tree.cell.clock.advance(Duration::from_millis(1));
        let before = tree.snapshot().await;
        let mut mutation = pin!(tree.mutate(which));
        let event = tokio::select! {
            biased;
            result = &mut mutation => panic!("{which} is answered before its break: {result:?}"),
            event = tree.bob.next_break() => event,
        };
        // The writer has answered when it has answered the next one.
        tree.cell.volume.store.stable().await.unwrap();
        assert!((&mut mutation).now_or_never().is_none(), "{which} waits for Bob");
        let after = tree.snapshot().await;
        assert_eq!(told(&event.changes), differences(&before, &after), "{which}");
        tree.bob.take(SessionEvent::Break(event.clone()));
        mutation.await.unwrap();
        let changes = tree.ann.user.news.take().changes;
        let (made, changes): (Vec<_>, Vec<_>) = changes.into_iter().partition(|it| it.is_made);
        assert_eq!(changes, event.changes, "{which}: what Ann is told");
        for made in made {
            let dir = read(&tree.probe, made.dir).await.unwrap();
            assert_eq!((Some(dir.attr), dir.entries.len()), (made.attr, 0), "{which}");
        }
        tree.ann.learn(&changes);
        assert_eq!(tree.ann.held.len(), tree.bob.held.len(), "{which}");
        tree.ann.check(&tree.probe).await;
        tree.bob.check(&tree.probe).await;
        assert!(tree.bob.stream.try_recv().is_err() && tree.ann.stream.try_recv().is_err());
    }
}

#[tokio::test]
async fn what_changes_nothing_that_is_seen_breaks_nothing() {
    let mut tree = Tree::new().await;
    let Tree { ann, bob, file, dirs: [root, d, ..], .. } = &mut tree;
    ann.user.open_to_write(*file).await.unwrap();
    ann.user.unlink(*d, "none").await.unwrap_err();
    ann.user.rmdir(*root, "d").await.unwrap_err();
    ann.user.rename((*d, "f"), (*d, "f"), RenameRule::Replace).await.unwrap();
    assert!(bob.stream.try_recv().is_err());
    assert_eq!(ann.user.news.take().changes, []);
}

#[tokio::test]
async fn a_repeated_mutation_is_told_again_what_the_first_changed() {
    let mut tree = Tree::new().await;
    let (ann, root) = (tree.ann.user.clone(), tree.cell.root);
    let context = ann.context();
    let request = dfs_proto::directory::MakeDir { parent: root, name: name("new"), mode: 0o755 };
    let directory = tree.cell.directory.clone();
    let first = directory.mkdir(context.clone(), request.clone());
    during(&mut [&mut tree.bob], first).await.unwrap();
    let changes = ann.news.take().changes;
    assert!(!changes[0].is_made && changes[1].is_made, "{changes:?}");
    directory.mkdir(context, request).await.unwrap();
    assert_eq!(ann.news.take().changes, changes);
}

#[tokio::test]
async fn a_repeated_mutation_waits_for_those_that_the_first_told() {
    let mut tree = Tree::new().await;
    let (ann, root) = (tree.ann.user.clone(), tree.cell.root);
    let context = ann.context();
    let request = dfs_proto::directory::MakeDir { parent: root, name: name("new"), mode: 0o755 };
    let directory = tree.cell.directory.clone();
    let event = {
        let mut lost = pin!(directory.mkdir(context.clone(), request.clone()));
        tokio::select! {
            _ = &mut lost => panic!("it waits for Bob"),
            event = tree.bob.next_break() => event,
        }
    };
    let mut again = pin!(directory.mkdir(context, request));
    assert!((&mut again).now_or_never().is_none());
    tree.cell.volume.store.stable().await.unwrap();
    assert!((&mut again).now_or_never().is_none(), "Bob does not know yet");
    tree.bob.take(SessionEvent::Break(event));
    again.await.unwrap();
}

#[tokio::test]
async fn a_silent_client_delays_a_change_by_its_lease_and_the_next_not_at_all() {
    let mut tree = Tree::new().await;
    let root = tree.cell.root;
    let ends = tree.cell.clock.boottime() + SESSION_LEASE;
    let ann = tree.ann.user.clone();
    let change = tokio::spawn({
        let ann = ann.clone();
        async move { ann.mkdir(root, "new", 0o755).await }
    });
    tree.cell.clock.sleeper_until(ends).await;
    tree.cell.clock.advance(SESSION_LEASE - Duration::from_millis(1));
    let beat = dfs_proto::session::Heartbeat { yielded: Vec::new() };
    let reply = tree.cell.directory.heartbeat(ann.context(), beat).await.unwrap();
    assert_eq!(reply.promised, Some(tree.ann.number));
    assert!(!change.is_finished());
    tree.cell.clock.advance(Duration::from_millis(1));
    change.await.unwrap().unwrap();
    tree.bob.next_break().await;
    assert_eq!(tree.bob.stream.recv().await, None, "its stream has ended");
    ann.rmdir(root, "new").await.unwrap();
}

async fn promised<T>(holder: &Holder, work: impl Future<Output = T>) -> (T, Option<Promise>) {
    holder.user.news.take();
    let result = work.await;
    (result, holder.user.news.take().promise)
}

#[tokio::test]
async fn reading_a_directory_promises_it_and_nothing_else_does() {
    let tree = Tree::new().await;
    let (bob, [_, d, .., sub]) = (&tree.bob, tree.dirs);
    let (user, directory) = (&bob.user, &tree.cell.directory);
    let lookup =
        |parent, text: &str| directory.lookup(user.context(), Lookup { parent, name: name(text) });
    let getattr = |fid| directory.getattr(user.context(), GetAttr { fid });
    let dirs_of = |promise: Option<Promise>| promise.map(|promise| promise.dirs);
    let (found, promise) = promised(bob, lookup(d, "f")).await;
    let sequence = promise.as_ref().map(|promise| promise.sequence);
    assert_eq!(sequence, Some(found.unwrap().sequence));
    assert_eq!(dirs_of(promise), Some(vec![d]));
    let (absent, promise) = promised(bob, lookup(d, "none")).await;
    assert_eq!(absent, Err(FsError::NotFound));
    assert_eq!(promise.as_ref().map(|it| it.sequence), Some(tree.cell.volume.store.sequence()));
    assert_eq!(dirs_of(promise), Some(vec![d]));
    let (_, promise) = promised(bob, lookup(tree.file, "x")).await;
    assert_eq!(dirs_of(promise), None, "no directory");
    assert_eq!(dirs_of(promised(bob, getattr(sub)).await.1), Some(vec![sub]));
    assert_eq!(dirs_of(promised(bob, getattr(tree.file)).await.1), None);
    let gone = FileId { generation: dfs_proto::version::Epoch(77), ..d };
    assert_eq!(dirs_of(promised(bob, getattr(gone)).await.1), None);
    let mut ann = Holder { is_using: false, ..tree.ann };
    let holders = &mut [&mut ann];
    let changed = during(holders, user.chmod(d, 0o755));
    assert_eq!(promised(bob, changed).await.1, None);
}

#[tokio::test]
async fn without_a_live_stream_nothing_is_promised() {
    let mut tree = Tree::new().await;
    let d = tree.dirs[1];
    let (_, promise) = promised(&tree.ann, tree.probe.getattr(d)).await;
    assert_eq!((promise, tree.probe.news.take().promise), (None, None));
    tree.bob.stream.close();
    let (_, promise) = promised(&tree.bob, tree.bob.user.getattr(d)).await;
    assert_eq!(promise, None);
    let bob = Holder::new(tree.bob.user.clone()).await;
    assert!(promised(&bob, bob.user.getattr(d)).await.1.is_some());
    assert!(bob.number > tree.bob.number);
}

#[tokio::test]
async fn names_in_a_private_directory_are_told_to_those_who_may_read_it() {
    let mut tree = Tree::new().await;
    let d = tree.dirs[1];
    during(&mut [&mut tree.bob], tree.ann.user.chmod(d, 0o700)).await.unwrap();
    let mut eve = Holder::new(tree.cell.user(3, 2000).await).await;
    eve.user.getattr(d).await.unwrap();
    assert!(eve.user.news.take().promise.is_some());
    let made = tree.ann.user.mkdir(d, "secret", 0o755);
    during(&mut [&mut tree.bob, &mut eve], made).await.unwrap();
    let change = &eve.breaks[0].changes[0];
    assert_eq!((change.dir, &change.names[..], change.is_cut), (d, &[][..], true));
    assert_eq!(change.attr.as_ref().unwrap().size, 4);
    assert!(tree.bob.held[&d].1.entries.contains_key(&name("secret")));
}

/// A step of a history: who does what, and whether the holders then use what they are told of.
type Step = (usize, Op, bool, bool);

/// Opens what is a file for writing and stores something in it.
async fn write(real: &Real, user: usize, node: usize) {
    let (user, fid) = (&real.users[user], real.fids[node % real.fids.len()]);
    if let Ok(grant) = user.open_to_write(fid).await {
        let _ = user.store(&grant.capability, &[b"something"]).await;
        user.give_back(&grant).await;
    }
}

/// Root (who also changes things) and a bystander hold every directory they can.
async fn mirror(history: Vec<Step>) {
    let mut real = Real::new().await;
    let probe = real.cell.user(8, 0).await;
    let mut root = Holder::new(real.users[0].clone()).await;
    let mut other = Holder::new(real.cell.user(9, 0).await).await;
    for (step, (user, op, is_using, is_write)) in history.into_iter().enumerate() {
        for fid in real.fids.clone() {
            for holder in [&mut root, &mut other] {
                let attr = probe.getattr(fid).await;
                let is_dir = attr.is_ok_and(|attr| attr.kind == FileKind::Directory);
                if is_dir && !holder.held.contains_key(&fid) {
                    holder.hold(fid).await;
                }
            }
        }
        (root.is_using, other.is_using) = (true, is_using);
        let op = settled(op, real.fids.len());
        root.user.news.take();
        let holders = &mut [&mut root, &mut other];
        if is_write {
            during(holders, write(&real, user, step)).await;
        } else {
            let _ = during(holders, real.run(user, &op)).await;
        }
        let changes = root.user.news.take().changes;
        assert!(user == 0 || changes.is_empty());
        root.learn(&changes);
        root.check(&probe).await;
        other.check(&probe).await;
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_held_by_promises_is_what_is_there(
        history in proptest::collection::vec((0..USERS, ops(), any::<bool>(), any::<bool>()), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(mirror(history));
    }
}
