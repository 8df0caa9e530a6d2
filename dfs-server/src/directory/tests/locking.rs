//! Opening for writing: tokens, waiting, and locks that nobody may keep by accident.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::directory::{CreateReply, Open, OpenAccess, Yield};
use dfs_proto::id::{FileId, NodeId};
use dfs_proto::limits::SESSION_LEASE;
use dfs_proto::lock::LockEvent;
use dfs_proto::session::{Heartbeat, OpenSession, SessionEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cell::{Cell, NOW, PATIENT, User, create};
use super::check::check;
use crate::directory::rows;
use crate::request::Context;

/// Two users who may both write `fid`.
struct Rivals {
    cell: Cell,
    ann: User,
    bob: User,
    fid: FileId,
}

impl Rivals {
    async fn new() -> Rivals {
        let cell = Cell::new().await;
        let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
        let fid = ann.file(cell.root, "f", 0o666).await.unwrap().attr.fid;
        Rivals { cell, ann, bob, fid }
    }

    /// Whether the lock can be had at once.
    async fn is_free(&self, fid: FileId) -> bool {
        let probe = self.cell.user(77, 0).await;
        // The patience with an idle holder is over as soon as the clock moves.
        let open = probe.open(fid, NOW);
        tokio::pin!(open);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut open => break answer,
                () = tokio::task::yield_now() => self.cell.clock.advance(Duration::from_millis(1)),
            }
        };
        match answer {
            Ok(open) => {
                probe.give_back(&open.write.unwrap()).await;
                true
            }
            Err(FsError::LockBusy { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn next_recall(events: &mut mpsc::Receiver<SessionEvent>) -> SessionEvent {
    loop {
        if let recall @ SessionEvent::LockRecall { .. } = events.recv().await.unwrap() {
            return recall;
        }
    }
}

#[tokio::test]
async fn a_busy_file_is_refused_at_once_or_after_the_wait_with_the_holders_name() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    let grant = ann.open_to_write(fid).await.unwrap();
    let holder = || "host1 (user1000)".to_owned();
    for (access, error) in [
        (NOW, FsError::LockBusy { holder: holder() }),
        (PATIENT, FsError::LockTimeout { holder: holder() }),
    ] {
        let bob = bob.clone();
        let waiting = tokio::spawn(async move { bob.open(fid, access).await.map(drop) });
        while !waiting.is_finished() {
            cell.clock.advance(Duration::from_millis(100));
            let heartbeat = Heartbeat { yielded: vec![] };
            cell.directory.heartbeat(ann.context(), heartbeat).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting.await.unwrap(), Err(error));
    }
    ann.store(&grant.capability, &[b"still hers"]).await.unwrap();
}

#[tokio::test]
async fn the_holder_is_recalled_and_the_next_gets_a_newer_token_on_its_version() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    let stop = CancellationToken::new();
    let recalls = tokio::spawn(cell.directory.clone().run_lock_events(stop.clone()));
    let mut events = cell.directory.events(&ann.context()).await.unwrap();
    let grant = ann.open_to_write(fid).await.unwrap();
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.open(fid, PATIENT).await.unwrap() }
    });
    let token = grant.token;
    assert_eq!(next_recall(&mut events).await, SessionEvent::LockRecall { fid, token });
    let reply = ann.store(&grant.capability, &[b"x"]).await.unwrap();
    let heartbeat = Heartbeat { yielded: vec![(fid, token)] };
    cell.directory.heartbeat(ann.context(), heartbeat).await.unwrap();
    let open = waiting.await.unwrap();
    assert_eq!(open.attr.data_version, reply.attr.data_version);
    let newer = open.write.unwrap();
    assert!(newer.token > token);
    assert_eq!(newer.capability.right.base, reply.attr.data_version);
    stop.cancel();
    recalls.await.unwrap();
}

#[tokio::test]
async fn permission_is_asked_for_before_the_lock() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    ann.chmod(fid, 0o644).await.unwrap();
    let mut events = cell.locks.events();
    assert!(matches!(events.try_recv(), Ok(LockEvent::Started { .. })));
    ann.open_to_write(fid).await.unwrap();
    assert_eq!(bob.open(fid, PATIENT).await.map(drop), Err(FsError::AccessDenied));
    assert!(events.try_recv().is_err(), "nobody was disturbed");
}

#[tokio::test]
async fn an_open_without_a_session_or_with_an_ended_one_gets_no_lock() {
    let Rivals { cell, ann, fid, .. } = Rivals::new().await;
    let request = Open { fid, access: NOW, have: None };
    let context = Context { session: None, ..ann.context() };
    let none = cell.directory.open(context, request.clone()).await;
    assert_eq!(none.map(drop), Err(FsError::SessionUnknown));
    cell.clock.advance(SESSION_LEASE);
    let ended = cell.directory.open(ann.context(), request).await;
    assert_eq!(ended.map(drop), Err(FsError::SessionUnknown));
    ann.open(fid, OpenAccess::Read).await.unwrap();
}

#[tokio::test]
async fn nobody_gives_back_the_lock_of_another() {
    let rivals = Rivals::new().await;
    let Rivals { cell, ann, bob, fid } = &rivals;
    let grant = ann.open_to_write(*fid).await.unwrap();
    let request = Yield { fid: *fid, token: grant.token };
    cell.directory.yield_lock(bob.context(), request.clone()).await.unwrap();
    let stolen = Context { session: Some(ann.session), ..bob.context() };
    let refused = cell.directory.yield_lock(stolen, request).await;
    assert_eq!(refused, Err(FsError::SessionUnknown));
    assert!(!rivals.is_free(*fid).await);
    ann.give_back(&grant).await;
    assert!(rivals.is_free(*fid).await);
}

#[tokio::test]
async fn an_ended_session_leaves_no_locks() {
    let rivals = Rivals::new().await;
    let Rivals { cell, ann, bob, fid } = &rivals;
    ann.open_to_write(*fid).await.unwrap();
    cell.directory.close_session(ann.context()).await.unwrap();
    assert!(rivals.is_free(*fid).await);
    let grant = bob.open_to_write(*fid).await.unwrap();
    let stop = CancellationToken::new();
    let expiry = tokio::spawn(cell.directory.clone().run_expiry(stop.clone()));
    while cell.directory.sessions.count() > 0 {
        cell.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    while !rivals.is_free(*fid).await {
        tokio::task::yield_now().await;
    }
    assert_eq!(bob.store(&grant.capability, &[b"x"]).await, Err(FsError::SessionUnknown));
    stop.cancel();
    expiry.await.unwrap();
}

#[tokio::test]
async fn an_open_that_fails_after_the_lock_gives_it_back_unless_another_open_has_it() {
    let rivals = Rivals::new().await;
    let Rivals { cell, ann, bob, fid } = &rivals;
    let lost = *fid;
    let put_on = move |replicas: Vec<NodeId>| {
        cell.volume.store.write(crate::meta::Durability::Process, move |txn| {
            let row = rows::inode(txn, lost)?;
            let replicas = Vec::clone(&replicas);
            rows::put_inode(txn, lost, rows::InodeRow { replicas, ..rows::InodeRow::clone(&row) });
            Ok(())
        })
    };
    let replicas = ann.open(*fid, OpenAccess::Read).await.unwrap().placement.replicas;
    let replicas = replicas.iter().map(|address| address.node).collect::<Vec<_>>();
    put_on(vec![NodeId(50)]).await.unwrap();
    let nowhere = bob.open(*fid, NOW).await;
    assert!(matches!(nowhere, Err(FsError::Unavailable { .. })));
    put_on(replicas).await.unwrap();
    assert!(rivals.is_free(*fid).await);
    ann.open_to_write(*fid).await.unwrap();
    put_on(vec![NodeId(50)]).await.unwrap();
    ann.open(*fid, NOW).await.unwrap_err();
    put_on(vec![NodeId(1)]).await.unwrap();
    assert!(!rivals.is_free(*fid).await, "the first open still has it");
}

#[tokio::test]
async fn a_create_that_makes_nothing_keeps_no_lock() {
    let rivals = Rivals::new().await;
    let Rivals { cell, ann, bob, fid } = &rivals;
    assert_eq!(ann.create(cell.root, "f", true).await.map(drop), Err(FsError::Exists));
    assert_eq!(cell.locks.held_count(), 0);
    let CreateReply { created, open, before, after } =
        bob.create(cell.root, "f", false).await.unwrap();
    assert_eq!((created, open.attr.fid, before), (false, *fid, after));
    assert_eq!(cell.locks.held_count(), 1, "that of the file alone");
    bob.give_back(&open.write.unwrap()).await;
    ann.chmod(*fid, 0o600).await.unwrap();
    let denied = bob.create(cell.root, "f", false).await;
    assert_eq!(denied.map(drop), Err(FsError::AccessDenied));
    ann.mkdir(cell.root, "d", 0o755).await.unwrap();
    let directory = bob.create(cell.root, "d", false).await;
    assert_eq!(directory.map(drop), Err(FsError::IsDirectory));
    assert_eq!(cell.locks.held_count(), 0);
    let access = OpenAccess::Read;
    let request = dfs_proto::directory::Create { access, ..create(cell.root, "f", false) };
    let read = cell.directory.create(ann.context(), request).await.unwrap();
    assert_eq!((read.created, read.open.write), (false, None));
    check(cell).await;
}

#[tokio::test]
async fn a_repeated_create_of_a_file_that_is_gone_is_answered_with_it_and_its_lock() {
    let Rivals { cell, ann, .. } = Rivals::new().await;
    let context = ann.context_of(1000, 1);
    let request = create(cell.root, "g", true);
    let made = cell.directory.create(context.clone(), request.clone()).await.unwrap();
    ann.give_back(&made.open.write.unwrap()).await;
    cell.user(5, 0).await.unlink(cell.root, "g").await.unwrap();
    let repeated = cell.directory.create(context, request).await.unwrap();
    assert_eq!((repeated.open.attr.fid, repeated.open.attr.nlink), (made.open.attr.fid, 0));
    ann.give_back(&repeated.open.write.unwrap()).await;
    assert_eq!(cell.locks.held_count(), 0);
}

#[tokio::test]
async fn a_file_is_made_with_its_lock_whatever_its_mode() {
    let Rivals { cell, ann, .. } = Rivals::new().await;
    let request = dfs_proto::directory::Create { mode: 0o400, ..create(cell.root, "g", true) };
    let made = cell.directory.create(ann.context(), request).await.unwrap();
    assert_eq!(made.open.attr.mode, 0o400);
    assert_eq!(made.open.placement.replicas.len(), 2);
    let grant = made.open.write.unwrap();
    ann.store(&grant.capability, &[b"x"]).await.unwrap();
    assert_eq!(cell.locks.held_count(), 1);
}

#[tokio::test]
async fn after_a_restart_old_tokens_hold_until_somebody_gets_a_newer_one() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    let grant = ann.open_to_write(fid).await.unwrap();
    let cell = cell.restart().await;
    let (ann, bob) = (ann.at(&cell).await, bob.at(&cell).await);
    let reply = ann.store(&grant.capability, &[b"before"]).await.unwrap();
    assert_eq!(reply.attr.size, 6);
    let newer = bob.open_to_write(fid).await.unwrap();
    assert!(newer.token > grant.token);
    assert_eq!(ann.store(&reply.capability, &[b"late"]).await, Err(FsError::Fenced));
    bob.store(&newer.capability, &[b"after"]).await.unwrap();
    check(&cell).await;
}

#[tokio::test]
async fn an_owner_that_was_replaced_changes_nothing_any_more() {
    let Rivals { cell, ann, fid, .. } = Rivals::new().await;
    let newer = cell.restart().await;
    let late = ann.chmod(fid, 0o600).await;
    assert!(matches!(late, Err(FsError::Unavailable { .. })), "{late:?}");
    assert_eq!(ann.at(&newer).await.getattr(fid).await.unwrap().mode, 0o666);
    check(&newer).await;
}

#[tokio::test]
async fn sessions_are_opened_for_volumes_that_exist_by_hosts_with_names() {
    let Rivals { cell, ann, .. } = Rivals::new().await;
    let open = async |volume: &str, host: &str| {
        let request = OpenSession { volume: volume.into(), host: host.into() };
        cell.directory.open_session(ann.context(), request).await
    };
    let reply = open("main", "laptop").await.unwrap();
    assert_eq!(reply.volume.root.fid, cell.root);
    assert_eq!(reply.epoch, cell.volume.store.epoch());
    assert!(matches!(open("other", "laptop").await, Err(FsError::UnknownVolume { .. })));
    for host in ["", "\u{1b}[2J", "two\nlines", &"x".repeat(65)] {
        assert!(matches!(open("main", host).await, Err(FsError::InvalidArgument { .. })));
    }
}
