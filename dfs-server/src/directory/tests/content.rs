//! Commits: what they change, and every reason to refuse one.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::admin::Role;
use dfs_proto::attr::Timestamp;
use dfs_proto::capability::{CapabilityFault, MacKey, WriteCapability};
use dfs_proto::chunk::ChunkHash;
use dfs_proto::clock::Clock;
use dfs_proto::credential::Identity;
use dfs_proto::directory::{
    Commit, CommitReply, Durability, FirstAttr, Open, OpenAccess, OutcomeReply, RenewWrite,
};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::{CAPABILITY_LIFETIME, SESSION_LEASE};
use dfs_proto::manifest::{Extent, Manifest};
use dfs_proto::session::Heartbeat;

use super::cell::{Cell, NOW, ONE, TWO, User, VOLUME, manifest};
use super::check::check;
use crate::directory::rows::{self, InodeRow};
use crate::request::{NodeProof, Peer};

/// A file that its maker has open for writing.
async fn opened() -> (Cell, User, WriteCapability) {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let made = ann.create(cell.root, "f", true).await.unwrap();
    let capability = made.open.write.unwrap().capability;
    (cell, ann, capability)
}

async fn row(cell: &Cell, fid: FileId) -> InodeRow {
    let row = cell.volume.store.read(move |txn| rows::inode(txn, fid)).await.unwrap();
    InodeRow::clone(&row)
}

fn hashes(manifest: &Manifest) -> Vec<ChunkHash> {
    manifest.hashes().into_iter().collect()
}

#[tokio::test]
async fn a_commit_moves_version_size_and_times_and_the_directory_above() {
    let (cell, ann, capability) = opened().await;
    let before = ann.getattr(cell.root).await.unwrap();
    cell.clock.advance(Duration::from_secs(1));
    let reply = ann.store(&capability, &[b"hello", b"world!"]).await.unwrap();
    assert_eq!((reply.attr.size, reply.attr.stored_bytes), (11, 11));
    assert_eq!((reply.attr.mtime, reply.attr.ctime), (Timestamp::new(77, 7), cell.clock.wall()));
    assert_ne!(reply.attr.data_version, capability.right.base);
    assert_eq!(reply.capability.right.base, reply.attr.data_version);
    let after = ann.getattr(cell.root).await.unwrap();
    assert_ne!(after.dir_version, before.dir_version);
    assert_eq!(after.mtime, before.mtime);
    let open = ann.open(capability.right.fid, OpenAccess::Read).await.unwrap();
    assert_eq!(open.manifest, Some(manifest(&[b"hello", b"world!"])));
    assert_eq!((open.attr, open.write), (reply.attr, None));
    check(&cell).await;
}

#[tokio::test]
async fn one_commit_follows_another_under_the_capability_of_the_reply() {
    let (cell, ann, capability) = opened().await;
    let first = ann.store(&capability, &[b"a"]).await.unwrap();
    let second = ann.store(&first.capability, &[b"b", b"c"]).await.unwrap();
    assert_eq!(second.attr.size, 2);
    check(&cell).await;
    let third = ann.store(&second.capability, &[]).await.unwrap();
    assert_eq!((third.attr.size, third.attr.stored_bytes), (0, 0));
    check(&cell).await;
}

#[tokio::test]
async fn a_commit_on_another_base_is_a_conflict_that_names_the_version() {
    let (cell, ann, capability) = opened().await;
    let first = ann.store(&capability, &[b"first"]).await.unwrap();
    let current = first.attr.data_version;
    let second = ann.store(&capability, &[b"second"]).await;
    assert_eq!(second, Err(FsError::Conflict { current }));
    let open = ann.open(capability.right.fid, OpenAccess::Read).await.unwrap();
    assert_eq!(open.manifest, Some(manifest(&[b"first"])));
    check(&cell).await;
}

#[tokio::test]
async fn an_older_token_is_fenced_even_on_the_right_base() {
    let (cell, ann, old) = opened().await;
    ann.chmod(old.right.fid, 0o666).await.unwrap();
    let grant = ann.open_to_write(old.right.fid).await.unwrap();
    assert_eq!(grant.token, old.right.token, "the lock is held already");
    ann.give_back(&grant).await;
    let bob = cell.user(2, 2000).await;
    let newer = bob.open_to_write(old.right.fid).await.unwrap();
    assert!(newer.token > old.right.token);
    assert_eq!(ann.store(&old, &[b"late"]).await, Err(FsError::Fenced));
    let request = RenewWrite { fid: old.right.fid, token: old.right.token };
    assert_eq!(cell.directory.renew_write(ann.context(), request).await, Err(FsError::Fenced));
    bob.store(&newer.capability, &[b"bob's"]).await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn chunks_must_be_stored_or_in_the_version_before() {
    let (cell, ann, capability) = opened().await;
    let wanted = manifest(&[b"new", b"newer"]);
    let change = ann.change(&capability, wanted.clone());
    let mut all = hashes(&wanted);
    all.sort();
    assert_eq!(cell.commit(change, vec![], &[ONE, TWO]).await, Err(FsError::NeedChunks(all)));
    let change = ann.change(&capability, wanted.clone());
    let part = vec![ChunkHash::of(b"newer")];
    let missing = FsError::NeedChunks(vec![ChunkHash::of(b"new")]);
    assert_eq!(cell.commit(change, part, &[ONE, TWO]).await, Err(missing));
    let first = ann.store(&capability, &[b"new", b"newer"]).await.unwrap();
    let grown = manifest(&[b"newer", b"newest", b"newer"]);
    let change = ann.change(&first.capability, grown);
    let stored = vec![ChunkHash::of(b"newest")];
    let second = cell.commit(change, stored, &[ONE, TWO]).await.unwrap();
    let change = ann.change(&second.capability, manifest(&[b"new"]));
    let gone = cell.commit(change, vec![], &[ONE, TWO]).await;
    assert_eq!(gone, Err(FsError::NeedChunks(vec![ChunkHash::of(b"new")])));
    check(&cell).await;
}

#[tokio::test]
async fn neither_a_client_nor_a_file_node_commits_what_the_other_did_not_want() {
    let (cell, ann, capability) = opened().await;
    let forged = Err(FsError::CapabilityRefused(CapabilityFault::Forged));
    let good = ann.change(&capability, manifest(&[]));
    let mut bad = vec![good.clone(); 6];
    bad[0].mac.0[0] ^= 1;
    bad[1].manifest = Manifest { extents: vec![Extent::Hole { length: 9 }] };
    bad[2].attr.mtime = Timestamp::new(1, 1);
    bad[3].attr.clear_set_id = true;
    bad[4].op.number += 1;
    bad[5].mac = MacKey([9; 32]).seal_commit(&dfs_proto::capability::CommitIntent {
        fid: capability.right.fid,
        base: capability.right.base,
        token: capability.right.token,
        op: good.op,
        manifest: good.manifest.hash(),
        attributes: ChunkHash([0; 32]),
    });
    for change in bad {
        assert_eq!(cell.commit(change, vec![], &[ONE]).await, forged);
    }
    let mut widened = capability.clone();
    widened.right.token.counter += 1;
    let change = ann.change(&widened, manifest(&[]));
    assert_eq!(cell.commit(change, vec![], &[ONE]).await, forged);
    let other = cell.user(2, 1000).await;
    let stolen = other.change(&capability, manifest(&[]));
    assert!(matches!(cell.commit(stolen, vec![], &[ONE]).await, Err(FsError::Malformed { .. })));
    let foreign = cell.commit(good.clone(), vec![], &[ONE, NodeId(7)]).await;
    assert!(matches!(foreign, Err(FsError::Malformed { .. })));
    assert_eq!(
        ann.getattr(capability.right.fid).await.unwrap().data_version,
        capability.right.base
    );
    cell.commit(good, vec![], &[ONE, TWO]).await.unwrap();
}

#[tokio::test]
async fn only_file_nodes_ask_for_commits() {
    let (cell, ann, capability) = opened().await;
    let change = ann.change(&capability, manifest(&[]));
    let request = Commit { change, lowest_unanswered: 0, stored: vec![], held_by: vec![ONE] };
    let by_user = cell.directory.commit(ann.context(), request.clone()).await;
    assert_eq!(by_user, Err(FsError::NotPermitted));
    let mut context = cell.node_context();
    context.peer = Peer::Node(NodeProof::new([Role::Lock].into(), |_| true));
    let by_lock_node = cell.directory.commit(context.clone(), request.clone()).await;
    assert_eq!(by_lock_node, Err(FsError::NotPermitted));
    context.peer = Peer::Node(NodeProof::new([Role::File].into(), |_| true));
    cell.directory.commit(context, request).await.unwrap();
}

#[tokio::test]
async fn a_capability_expires_and_is_renewed_while_the_lock_is_held() {
    let (cell, ann, capability) = opened().await;
    let steps = CAPABILITY_LIFETIME.as_secs() / 5;
    for _ in 0..steps {
        cell.clock.advance(Duration::from_secs(5));
        cell.directory.heartbeat(ann.context(), Heartbeat { yielded: vec![] }).await.unwrap();
    }
    let expired = Err(FsError::CapabilityRefused(CapabilityFault::Expired));
    assert_eq!(ann.store(&capability, &[b"x"]).await, expired);
    let request = RenewWrite { fid: capability.right.fid, token: capability.right.token };
    let renewed = cell.directory.renew_write(ann.context(), request).await.unwrap();
    assert_eq!(renewed.capability.right.base, capability.right.base);
    ann.store(&renewed.capability, &[b"x"]).await.unwrap();
}

#[tokio::test]
async fn a_commit_of_an_ended_session_is_refused() {
    let (cell, ann, capability) = opened().await;
    cell.clock.advance(SESSION_LEASE);
    assert_eq!(ann.store(&capability, &[b"x"]).await, Err(FsError::SessionUnknown));
}

#[tokio::test]
async fn a_repeated_commit_gets_the_first_answer_whatever_came_after() {
    let (cell, ann, capability) = opened().await;
    let wanted = manifest(&[b"x"]);
    let change = ann.change(&capability, wanted.clone());
    let ask = async || -> Result<CommitReply, FsError> {
        let stored = hashes(&wanted);
        let (change, held_by) = (change.clone(), vec![ONE, TWO]);
        let request = Commit { change, lowest_unanswered: 0, stored, held_by };
        cell.directory.commit(cell.node_context(), request).await
    };
    let first = ask().await.unwrap();
    assert_eq!(ask().await.unwrap(), first);
    ann.chmod(capability.right.fid, 0o600).await.unwrap();
    assert_eq!(ask().await, Err(FsError::OpSettled), "the client moved its watermark");
    check(&cell).await;
}

#[tokio::test]
async fn an_unanswered_commit_is_settled_one_way_or_the_other() {
    let (cell, ann, capability) = opened().await;
    let wanted = manifest(&[b"x"]);
    let (lost, sent) = (ann.change(&capability, wanted.clone()), ann.change(&capability, wanted));
    let ask = async |op| {
        let request = dfs_proto::directory::Outcome { volume: VOLUME, op };
        let context = ann.context_of(ann.next_number(), 0);
        cell.directory.outcome(context, request).await.unwrap()
    };
    assert_eq!(ask(lost.op).await, OutcomeReply::Refused);
    let stored = vec![ChunkHash::of(b"x")];
    let late = cell.commit(lost, stored.clone(), &[ONE, TWO]).await;
    assert_eq!(late, Err(FsError::OpSettled));
    let op = sent.op;
    let reply = cell.commit(sent, stored, &[ONE, TWO]).await.unwrap();
    assert_eq!(ask(op).await, OutcomeReply::Committed(reply.sequence));
}

#[tokio::test]
async fn a_commit_to_an_unlinked_file_is_stale() {
    let (cell, ann, capability) = opened().await;
    ann.store(&capability, &[b"x"]).await.unwrap();
    ann.unlink(cell.root, "f").await.unwrap();
    assert_eq!(ann.store(&capability, &[b"x"]).await, Err(FsError::Stale));
    check(&cell).await;
}

#[tokio::test]
async fn a_file_that_was_just_removed_opens_for_whoever_had_looked_it_up() {
    let (cell, ann, capability) = opened().await;
    ann.store(&capability, &[b"x"]).await.unwrap();
    let fid = capability.right.fid;
    ann.unlink(cell.root, "f").await.unwrap();
    let read = ann.open(fid, OpenAccess::Read).await.unwrap();
    assert_eq!((read.attr.nlink, read.attr.size), (0, 1));
    assert_eq!(read.manifest.unwrap().size(), 1);
    let write = ann.open(fid, NOW).await.unwrap();
    let grant = write.write.unwrap();
    assert_eq!(ann.store(&grant.capability, &[b"y"]).await, Err(FsError::Stale));
    assert_eq!(ann.getattr(fid).await, Err(FsError::Stale));
    let stranger = cell.user(5, 77).await;
    assert_eq!(stranger.open(fid, NOW).await.map(drop), Err(FsError::AccessDenied));
    check(&cell).await;
}

#[tokio::test]
async fn replicas_that_lack_a_chunk_are_lagging_and_no_others() {
    let (cell, ann, capability) = opened().await;
    let fid = capability.right.fid;
    let commit = async |capability: &WriteCapability, of: Manifest, stored, held_by: &[NodeId]| {
        let change = ann.change(capability, of);
        let reply = cell.commit(change, stored, held_by).await.unwrap();
        check(&cell).await;
        (reply.capability, row(&cell, fid).await.lagging)
    };
    let (a, b) = (ChunkHash::of(b"a"), ChunkHash::of(b"b"));
    let (base, lagging) = commit(&capability, manifest(&[b"a"]), vec![a], &[ONE]).await;
    assert_eq!(lagging, [TWO]);
    let (base, lagging) = commit(&base, manifest(&[b"a", b"b"]), vec![b], &[ONE, TWO]).await;
    assert_eq!(lagging, [TWO], "it lacks the older chunk still");
    let (base, lagging) = commit(&base, manifest(&[b"a"]), vec![], &[]).await;
    assert_eq!(lagging, [TWO], "nothing is new");
    let (base, lagging) = commit(&base, manifest(&[b"b"]), vec![b], &[ONE, TWO]).await;
    assert!(lagging.is_empty());
    let (base, lagging) = commit(&base, manifest(&[b"b"]), vec![], &[]).await;
    assert!(lagging.is_empty(), "nobody had to store anything");
    let (_, lagging) = commit(&base, manifest(&[]), vec![], &[]).await;
    assert!(lagging.is_empty());
}

#[tokio::test]
async fn copies_on_one_node_count_once() {
    let cell = Cell::new().await;
    let volume = cell.volume.clone();
    let twice = volume.store.write(Durability::Process, |txn| {
        let row = rows::volume(txn, VOLUME)?;
        let strict = rows::VolumeRow { min_replicas: 2, ..rows::VolumeRow::clone(&row) };
        txn.put(&rows::volume_key(VOLUME), strict);
        Ok(())
    });
    twice.await.unwrap();
    let ann = cell.user(1, 1000).await;
    let capability = ann.create(cell.root, "f", true).await.unwrap().open.write.unwrap().capability;
    let stored = vec![ChunkHash::of(b"x")];
    let change = ann.change(&capability, manifest(&[b"x"]));
    let short = cell.commit(change.clone(), stored.clone(), &[ONE, ONE]).await;
    assert!(matches!(short, Err(FsError::Unavailable { .. })), "{short:?}");
    cell.commit(change, stored, &[ONE, TWO]).await.unwrap();
}

#[tokio::test]
async fn a_manifest_or_a_time_that_cannot_be_is_refused() {
    let (cell, ann, capability) = opened().await;
    let holes = Manifest { extents: vec![Extent::Hole { length: u64::MAX }] };
    let refused = cell.commit(ann.change(&capability, holes), vec![], &[ONE]).await;
    assert!(matches!(refused, Err(FsError::Malformed { .. })));
    let mut change = ann.change(&capability, manifest(&[]));
    change.attr.atime = Some(Timestamp::new(0, 2_000_000_000));
    ann.seal(&mut change);
    let refused = cell.commit(change, vec![], &[ONE]).await;
    assert!(matches!(refused, Err(FsError::InvalidArgument { .. })));
}

#[tokio::test]
async fn what_a_stranger_writes_takes_set_id_bits_whatever_the_client_says() {
    let cell = Cell::new().await;
    let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let fid = ann.file(cell.root, "f", 0o4777).await.unwrap().attr.fid;
    let own = ann.open_to_write(fid).await.unwrap();
    assert_eq!(ann.store(&own.capability, &[b"own"]).await.unwrap().attr.mode, 0o4777);
    ann.give_back(&own).await;
    let grant = bob.open_to_write(fid).await.unwrap();
    ann.chmod(fid, 0o6777).await.unwrap();
    assert_eq!(bob.store(&grant.capability, &[b"evil"]).await.unwrap().attr.mode, 0o777);
    bob.give_back(&grant).await;
    ann.chmod(fid, 0o6777).await.unwrap();
    let own = ann.open_to_write(fid).await.unwrap();
    let reply = ann.store(&own.capability, &[b"own again"]).await.unwrap();
    assert_eq!(reply.attr.mode, 0o6777, "the owner may set them anyhow");
    let mut change = ann.change(&reply.capability, manifest(&[]));
    change.attr.clear_set_id = true;
    ann.seal(&mut change);
    assert_eq!(cell.commit(change, vec![], &[ONE]).await.unwrap().attr.mode, 0o777);
}

#[tokio::test]
async fn a_stranger_beside_the_owner_in_one_session_counts_as_one() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let fid = ann.file(cell.root, "f", 0o4777).await.unwrap().attr.fid;
    ann.open_to_write(fid).await.unwrap();
    let mut bob = ann.clone();
    bob.identity = Identity { uid: 2000, gid: 100, groups: Vec::new() };
    let context = dfs_context(&bob, &ann);
    let request = Open { fid, access: NOW, have: None };
    let open = cell.directory.open(context, request).await.unwrap();
    let grant = open.write.unwrap();
    assert_eq!(ann.store(&grant.capability, &[b"x"]).await.unwrap().attr.mode, 0o777);
}

/// As a machine's ticket has it: one account, several local users.
fn dfs_context(who: &User, account: &User) -> crate::request::Context {
    crate::request::Context { identity: who.identity.clone(), ..account.context() }
}

#[tokio::test]
async fn a_version_that_the_client_has_is_not_sent_again() {
    let (cell, ann, capability) = opened().await;
    let fid = capability.right.fid;
    let reply = ann.store(&capability, &[b"x"]).await.unwrap();
    let open = async |have| {
        let request = Open { fid, access: OpenAccess::Read, have: Some(have) };
        cell.directory.open(ann.context(), request).await.unwrap().manifest
    };
    assert_eq!(open(reply.attr.data_version).await, None);
    assert_eq!(open(capability.right.base).await, Some(manifest(&[b"x"])));
}

/// Commits `content` with what its maker has set before.
async fn store_first(
    user: &User,
    capability: &WriteCapability,
    first: FirstAttr,
) -> Result<CommitReply, FsError> {
    let manifest = manifest(&[b"x"]);
    let stored = hashes(&manifest);
    let mut change = user.change(capability, manifest);
    change.attr.first = Some(Box::new(first));
    user.seal(&mut change);
    user.cell.commit(change, stored, &[ONE, TWO]).await
}

#[tokio::test]
async fn owner_and_mode_of_a_new_file_come_with_its_first_commit() {
    let cell = Cell::new().await;
    let root = cell.user_as(1, Identity::ROOT).await;
    let made = root.create(cell.root, "f", true).await.unwrap();
    let capability = made.open.write.unwrap().capability;
    let by = Some(Identity::ROOT);
    let first = FirstAttr { by, mode: Some(0o4751), uid: Some(7), gid: Some(8) };
    let attr = store_first(&root, &capability, first).await.unwrap().attr;
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o4751, 7, 8));
    assert_eq!((attr.size, attr.nlink), (1, 1));
    check(&cell).await;
}

#[tokio::test]
async fn what_its_maker_may_not_set_does_not_keep_a_file_from_being_stored() {
    let (cell, ann, capability) = opened().await;
    let by = Some(Identity { uid: 1000, gid: 1000, groups: vec![] });
    let first = FirstAttr { by, mode: Some(0o600), uid: Some(0), gid: None };
    let attr = store_first(&ann, &capability, first).await.unwrap().attr;
    assert_eq!((attr.mode, attr.uid, attr.size), (0o644, 1000, 1), "all of it or nothing");
    check(&cell).await;
}
