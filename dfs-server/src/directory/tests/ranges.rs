//! Ranges: asked for through the directory, kept over a restart, ended with their session.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::clock::Clock;
use dfs_proto::directory::lock::{
    AskRange, AskRangeReply, BreakLocksOf, CancelWait, DropRange, FindRange, LocksOf, Reclaim,
};
use dfs_proto::id::FileId;
use dfs_proto::limits::SESSION_LEASE;
use dfs_proto::lock::{HeldRange, LockOwner, RangeAnswer, WaitNumber};
use dfs_proto::range::{Range, RangeKind};
use dfs_proto::session::SessionEvent;
use dfs_proto::version::DataVersion;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cell::{Cell, User};

const OWNER: LockOwner = LockOwner(7);

fn ask(fid: FileId, wait: Option<u64>) -> AskRange {
    AskRange {
        fid,
        owner: OWNER,
        pid: 4711,
        range: Range::WHOLE,
        kind: RangeKind::Exclusive,
        wait: wait.map(WaitNumber),
        have: None,
    }
}

fn held(fid: FileId) -> HeldRange {
    let (range, kind) = (Range::WHOLE, RangeKind::Exclusive);
    HeldRange { fid, owner: OWNER, pid: 4711, range, kind }
}

async fn lock(user: &User, request: AskRange) -> Result<AskRangeReply, FsError> {
    user.cell.directory.lock_range(user.context(), request).await
}

async fn granted(user: &User, fid: FileId) {
    assert_eq!(lock(user, ask(fid, None)).await.unwrap().answer, RangeAnswer::Granted);
}

async fn unlock(user: &User, fid: FileId) {
    let request = DropRange { fid, owner: OWNER, range: Range::WHOLE };
    user.cell.directory.unlock_range(user.context(), request).await.unwrap();
}

async fn reclaim(user: &User, fid: FileId) -> Vec<HeldRange> {
    let request = Reclaim { held: vec![held(fid)] };
    user.cell.directory.reclaim_ranges(user.context(), request).await.unwrap()
}

async fn listen(user: &User) -> mpsc::Receiver<SessionEvent> {
    user.cell.directory.events(&user.context()).await.unwrap()
}

/// Who has it, as others are told.
async fn holder(user: &User, fid: FileId) -> Option<String> {
    let request = FindRange { fid, owner: OWNER, range: Range::WHOLE, kind: RangeKind::Shared };
    let found = user.cell.directory.test_range(user.context(), request).await.unwrap();
    found.map(|claim| claim.holder)
}

struct Rivals {
    cell: Cell,
    ann: User,
    bob: User,
    fid: FileId,
}

impl Rivals {
    async fn new() -> Rivals {
        let cell = Cell::new().await;
        let (ann, bob) = (cell.user(1, 1000).await, cell.user(2, 1000).await);
        let fid = ann.file(cell.root, "f", 0o600).await.unwrap().attr.fid;
        Rivals { cell, ann, bob, fid }
    }
}

#[tokio::test]
async fn who_waits_is_told_on_its_stream_when_to_ask_again() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    let stop = CancellationToken::new();
    let passing = tokio::spawn(cell.directory.clone().run_lock_events(stop.clone()));
    let mut events = listen(&bob).await;
    granted(&ann, fid).await;
    let refused = lock(&bob, ask(fid, None)).await.unwrap().answer;
    assert!(matches!(&refused, RangeAnswer::Held(claim) if claim.pid == 4711), "{refused:?}");
    let waits = lock(&bob, ask(fid, Some(5))).await.unwrap().answer;
    assert!(matches!(waits, RangeAnswer::Queued(_)), "{waits:?}");
    unlock(&ann, fid).await;
    loop {
        match events.recv().await.unwrap() {
            SessionEvent::RangeReady { fid: of, wait } => {
                assert_eq!((of, wait), (fid, WaitNumber(5)));
                break;
            }
            _ => continue,
        }
    }
    assert_eq!(lock(&bob, ask(fid, Some(5))).await.unwrap().answer, RangeAnswer::Granted);
    assert_eq!(holder(&ann, fid).await.as_deref(), Some("host2 (user1000)"));
    stop.cancel();
    passing.await.unwrap();
}

#[tokio::test]
async fn a_grant_tells_of_a_version_that_is_newer_than_the_clients() {
    let Rivals { ann, bob, fid, .. } = Rivals::new().await;
    let grant = ann.open_to_write(fid).await.unwrap();
    let stored = ann.store(&grant.capability, &[b"new"]).await.unwrap();
    let have = Some(DataVersion::default());
    let reply = lock(&bob, AskRange { have, ..ask(fid, None) }).await.unwrap();
    let newest = reply.newest.unwrap();
    assert_eq!(newest.attr.data_version, stored.attr.data_version);
    assert_eq!(newest.manifest.unwrap().size(), 3);
    let have = Some(stored.attr.data_version);
    let reply = lock(&bob, AskRange { have, ..ask(fid, None) }).await.unwrap();
    assert_eq!(reply, AskRangeReply { answer: RangeAnswer::Granted, newest: None });
}

#[tokio::test]
async fn a_cancelled_wait_is_nobodys_turn() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    granted(&ann, fid).await;
    lock(&bob, ask(fid, Some(5))).await.unwrap();
    let request = CancelWait { fid, wait: WaitNumber(5) };
    cell.directory.cancel_range(bob.context(), request).await.unwrap();
    unlock(&ann, fid).await;
    assert_eq!(holder(&ann, fid).await, None);
}

#[tokio::test]
async fn ranges_end_with_the_lease_of_their_session_or_its_close() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    let stop = CancellationToken::new();
    let expiring = tokio::spawn(cell.directory.clone().run_expiry(stop.clone()));
    granted(&ann, fid).await;
    assert_eq!(holder(&bob, fid).await.as_deref(), Some("host1 (user1000)"));
    cell.directory.close_session(ann.context()).await.unwrap();
    assert_eq!(holder(&bob, fid).await, None);
    granted(&bob, fid).await;
    let carl = cell.user(3, 1000).await;
    while holder(&carl, fid).await.is_some() {
        cell.clock.advance(Duration::from_secs(1));
        let beat = dfs_proto::session::Heartbeat { yielded: vec![] };
        cell.directory.heartbeat(carl.context(), beat).await.unwrap();
        tokio::task::yield_now().await;
    }
    stop.cancel();
    expiring.await.unwrap();
}

#[tokio::test]
async fn after_a_restart_those_of_before_take_their_ranges_up_and_nobody_else_gets_them() {
    let Rivals { cell: before, ann, bob, fid } = Rivals::new().await;
    let _streams = [listen(&ann).await, listen(&bob).await];
    granted(&ann, fid).await;
    let cell = before.restart().await;
    let (ann, bob) = (ann.at(&cell).await, bob.at(&cell).await);
    let _bob = listen(&bob).await;
    let mut asking = Box::pin(lock(&bob, ask(fid, None)));
    for _ in 0..3 {
        assert!((&mut asking).now_or_never().is_none(), "ann may still come");
        cell.volume.store.stable().await.unwrap();
    }
    assert_eq!(reclaim(&ann, fid).await, []);
    let _ann = listen(&ann).await;
    let answer = asking.await.unwrap().answer;
    assert!(matches!(answer, RangeAnswer::Held(_)), "{answer:?}");
}

#[tokio::test]
async fn who_comes_back_too_late_has_lost_its_ranges() {
    let Rivals { cell: before, ann, bob, fid } = Rivals::new().await;
    let _streams = [listen(&ann).await, listen(&bob).await];
    granted(&ann, fid).await;
    let cell = before.restart().await;
    cell.clock.advance(SESSION_LEASE);
    let (ann, bob) = (ann.at(&cell).await, bob.at(&cell).await);
    assert_eq!(reclaim(&ann, fid).await, [held(fid)], "the grace is over");
    granted(&bob, fid).await;
    assert_eq!(reclaim(&bob, fid).await, [held(fid)], "nor does one who never left");
}

#[tokio::test]
async fn only_who_may_open_a_file_may_lock_it_or_see_its_locks() {
    let Rivals { cell, ann, fid, .. } = Rivals::new().await;
    let eve = cell.user(9, 2000).await;
    assert_eq!(lock(&eve, ask(fid, None)).await, Err(FsError::AccessDenied));
    let seen = cell.directory.locks_of(eve.context(), LocksOf { fid }).await;
    assert_eq!(seen, Err(FsError::AccessDenied));
    ann.chmod(fid, 0o000).await.unwrap();
    granted(&ann, fid).await;
}

#[tokio::test]
async fn locks_are_shown_with_who_waits_and_broken_for_all() {
    let Rivals { cell, ann, bob, fid } = Rivals::new().await;
    let stop = CancellationToken::new();
    let passing = tokio::spawn(cell.directory.clone().run_lock_events(stop.clone()));
    let mut events = listen(&ann).await;
    granted(&ann, fid).await;
    let grant = ann.open_to_write(fid).await.unwrap();
    lock(&bob, ask(fid, Some(5))).await.unwrap();
    let page = cell.directory.locks_of(bob.context(), LocksOf { fid }).await.unwrap();
    let [locks] = page.files.try_into().unwrap();
    assert_eq!(locks.writer.unwrap().token, Some(grant.token));
    let [range] = locks.ranges.try_into().unwrap();
    assert_eq!((range.claim.session, range.since), (ann.session, cell.clock.wall()));
    let [waiting] = locks.waiting_ranges.try_into().unwrap();
    assert_eq!(waiting.claim.session, bob.session);

    let broken = cell.directory.break_locks(ann.context(), BreakLocksOf { fid }).await;
    assert_eq!(broken, Ok(2));
    loop {
        if let SessionEvent::RangesLost { fid: of } = events.recv().await.unwrap() {
            break assert_eq!(of, fid);
        }
    }
    assert_eq!(holder(&ann, fid).await.as_deref(), Some("host2 (user1000)"), "he waited for it");
    stop.cancel();
    passing.await.unwrap();
}
