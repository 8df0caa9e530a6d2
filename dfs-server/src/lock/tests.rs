//! The lock service with real waiting and a clock that tests move.

use std::time::Duration;

use dfs_proto::clock::ManualClock;
use dfs_proto::id::{InodeNo, SessionId, VolumeId};

use super::*;

fn fid() -> FileId {
    FileId::new(VolumeId(1), InodeNo(9), Epoch(1))
}

fn ask(number: u8, wait: LockWait) -> Grant {
    let session = SessionId([number; 16]);
    Grant { fid: fid(), session, holder: format!("host{number}"), wait }
}

fn service() -> (LockService, ManualClock) {
    let clock = ManualClock::default();
    (LockService::new(Epoch(2), Duration::ZERO, Arc::new(clock.clone())), clock)
}

async fn next_recall(events: &mut mpsc::Receiver<LockEvent>) -> Recall {
    loop {
        if let LockEvent::Recall(recall) = events.recv().await.unwrap() {
            return recall;
        }
    }
}

const MINUTE: LockWait = LockWait::UpTo(60_000);

/// Polls until `service` has `count` waiters.
async fn until_waiting(service: &LockService, count: usize) {
    while service.state().waiting.len() != count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_waiter_is_woken_by_the_release_and_the_holder_is_recalled() {
    let (service, _clock) = service();
    let mut events = service.events();
    let token = service.grant(ask(1, MINUTE)).await.unwrap();
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { service.grant(ask(2, MINUTE)).await }
    });
    let recall = next_recall(&mut events).await;
    assert_eq!((recall.session, recall.token), (SessionId([1; 16]), token));
    service.release(&Release { fid: fid(), session: recall.session, token });
    assert!(waiting.await.unwrap().unwrap() > token);
}

#[tokio::test]
async fn a_wait_ends_at_its_deadline_and_names_the_holder() {
    let (service, clock) = service();
    service.grant(ask(1, MINUTE)).await.unwrap();
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { service.grant(ask(2, LockWait::UpTo(5_000))).await }
    });
    until_waiting(&service, 1).await;
    clock.advance(Duration::from_secs(5));
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error, FsError::LockTimeout { holder: "host1".into() });
    assert!(service.state().waiting.is_empty());
}

#[tokio::test]
async fn an_asker_that_will_not_wait_gets_an_idle_lock_but_no_busy_one() {
    let (service, clock) = service();
    let mut events = service.events();
    let token = service.grant(ask(1, MINUTE)).await.unwrap();
    let asking = tokio::spawn({
        let service = service.clone();
        async move { service.grant(ask(2, LockWait::No)).await }
    });
    next_recall(&mut events).await;
    service.release(&Release { fid: fid(), session: SessionId([1; 16]), token });
    asking.await.unwrap().unwrap();

    let asking = tokio::spawn({
        let service = service.clone();
        async move { service.grant(ask(3, LockWait::No)).await }
    });
    until_waiting(&service, 1).await;
    clock.advance(YIELD_PATIENCE);
    let busy = FsError::LockBusy { holder: "host2".into() };
    assert_eq!(asking.await.unwrap(), Err(busy.clone()));
    // The holder is known to be busy: nobody waits for it again, and no clock has to move.
    assert_eq!(service.grant(ask(4, LockWait::No)).await, Err(busy));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_queue_and_blocks_nobody() {
    let (service, _clock) = service();
    let token = service.grant(ask(1, MINUTE)).await.unwrap();
    let gone = tokio::spawn({
        let service = service.clone();
        async move { service.grant(ask(2, MINUTE)).await }
    });
    until_waiting(&service, 1).await;
    gone.abort();
    let _ = gone.await;
    until_waiting(&service, 0).await;
    service.release(&Release { fid: fid(), session: SessionId([1; 16]), token });
    service.grant(ask(3, LockWait::No)).await.unwrap();
}

#[tokio::test]
async fn a_listener_that_comes_late_hears_of_outstanding_recalls() {
    let (service, _clock) = service();
    service.grant(ask(1, MINUTE)).await.unwrap();
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { service.grant(ask(2, MINUTE)).await }
    });
    until_waiting(&service, 1).await;
    let recall = next_recall(&mut service.events()).await;
    assert_eq!(recall.session, SessionId([1; 16]));
    service.end_session(&EndSession { session: SessionId([1; 16]) });
    waiting.await.unwrap().unwrap();
}
