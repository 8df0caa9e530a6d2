//! An owner that starts anew waits with changes for those who listened to the one before.

use std::time::Duration;

use dfs_proto::FsError;
use dfs_proto::limits::SESSION_LEASE;
use dfs_proto::session::SessionEvent;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cell::{Cell, User};
use crate::directory::rows::{SessionRow, sessions};

type Stream = mpsc::Receiver<SessionEvent>;

async fn listen(user: &User) -> Stream {
    user.cell.directory.events(&user.context()).await.unwrap()
}

async fn recorded(cell: &Cell) -> Vec<String> {
    let (from, to) = sessions(cell.volume.id);
    let rows = cell.volume.store.scan::<SessionRow>(from, to, usize::MAX).await.unwrap();
    rows.iter().map(|(_, row)| row.host.clone()).collect()
}

/// Ann and Bob listened; the owner was started again, and Eve, who did not, has opened her session.
struct Restarted {
    cell: Cell,
    ann: User,
    bob: User,
    eve: User,
}

impl Restarted {
    async fn new() -> Restarted {
        let before = Cell::new().await;
        let users = [1, 2, 3].map(|number| before.user(number, 1000));
        let [ann, bob, eve] = futures_util::future::join_all(users).await.try_into().ok().unwrap();
        let _streams = [listen(&ann).await, listen(&bob).await, listen(&ann).await];
        let cell = before.restart().await;
        let (ann, bob, eve) = (ann.at(&cell).await, bob.at(&cell).await, eve.at(&cell).await);
        Restarted { cell, ann, bob, eve }
    }

    fn is_over(&self) -> bool {
        self.cell.directory.grace.wait().now_or_never().is_some()
    }
}

#[tokio::test]
async fn changes_wait_until_all_who_listened_listen_again_and_reads_do_not() {
    let Restarted { cell, ann, bob, eve } = Restarted::new().await;
    assert_eq!(recorded(&cell).await, ["host1", "host2"]);
    let file = eve.create(cell.root, "f", true);
    let mut waiting = [
        eve.mkdir(cell.root, "d", 0o755).map(drop_reply).boxed(),
        eve.file(cell.root, "g", 0o644).map(drop_reply).boxed(),
        file.map(drop_reply).boxed(),
    ];
    let _ann = listen(&ann).await;
    for change in &mut waiting {
        assert!(change.now_or_never().is_none());
    }
    cell.volume.store.stable().await.unwrap();
    assert_eq!(eve.lookup(cell.root, "d").await, Err(FsError::NotFound));
    let _bob = listen(&bob).await;
    for change in waiting {
        change.await.unwrap();
    }
    eve.lookup(cell.root, "d").await.unwrap();
}

fn drop_reply<T>(reply: Result<T, FsError>) -> Result<(), FsError> {
    reply.map(drop)
}

#[tokio::test]
async fn a_commit_waits_as_well() {
    let before = Cell::new().await;
    let (ann, eve) = (before.user(1, 1000).await, before.user(3, 1000).await);
    let made = eve.create(before.root, "f", true).await.unwrap();
    let _stream = listen(&ann).await;
    let cell = before.restart().await;
    let (ann, eve) = (ann.at(&cell).await, eve.at(&cell).await);
    let grant = made.open.write.unwrap();
    let mut stored = Box::pin(eve.store(&grant.capability, &[b"x"]));
    for _ in 0..3 {
        assert!((&mut stored).now_or_never().is_none());
        cell.volume.store.stable().await.unwrap();
    }
    assert_eq!(eve.getattr(made.open.attr.fid).await.unwrap().size, 0);
    let _stream = listen(&ann).await;
    assert_eq!(stored.await.unwrap().attr.size, 1);
}

#[tokio::test]
async fn who_closes_its_session_is_not_waited_for_here_or_by_the_next_owner() {
    let restarted = Restarted::new().await;
    let Restarted { cell, ann, bob, .. } = &restarted;
    let _ann = listen(ann).await;
    assert!(!restarted.is_over());
    cell.directory.close_session(bob.context()).await.unwrap();
    assert!(restarted.is_over());
    assert_eq!(recorded(cell).await, ["host1"]);
    cell.directory.close_session(ann.context()).await.unwrap();
    assert!(recorded(cell).await.is_empty());
}

#[tokio::test]
async fn who_does_not_come_back_is_waited_for_a_lease_and_forgotten() {
    let restarted = Restarted::new().await;
    let Restarted { cell, ann, bob, .. } = &restarted;
    let stop = CancellationToken::new();
    let mut stream = listen(ann).await;
    cell.clock.advance(SESSION_LEASE - Duration::from_millis(1));
    assert!(!restarted.is_over());
    cell.directory.sessions.renew(ann.session, ann.context().user()).unwrap();
    cell.clock.advance(Duration::from_millis(1));
    assert!(restarted.is_over());
    let expiry = tokio::spawn(cell.directory.clone().run_expiry(stop.clone()));
    while recorded(cell).await != ["host1"] {
        cell.clock.advance(Duration::from_millis(100));
        cell.directory.sessions.renew(ann.session, ann.context().user()).unwrap();
        tokio::task::yield_now().await;
    }
    assert!(!cell.directory.sessions.is_live(bob.session));
    assert!(stream.try_recv().is_ok());
    stop.cancel();
    expiry.await.unwrap();
}

#[tokio::test]
async fn the_row_of_a_session_that_expires_goes_and_comes_again_with_it() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    drop(listen(&ann).await);
    assert_eq!(recorded(&cell).await, ["host1"]);
    let stop = CancellationToken::new();
    let expiry = tokio::spawn(cell.directory.clone().run_expiry(stop.clone()));
    while !recorded(&cell).await.is_empty() {
        cell.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    stop.cancel();
    expiry.await.unwrap();
    assert!(cell.directory.events(&ann.context()).await.is_err());
    ann.open_session().await.unwrap();
    drop(listen(&ann).await);
    assert_eq!(recorded(&cell).await, ["host1"]);
}
