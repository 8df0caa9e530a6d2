//! The lock machine, event by event.

use super::*;
use dfs_proto::id::{InodeNo, VolumeId};

fn fid(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn asker(waiter: u64, number: u8) -> Asker {
    let (waiter, session, since) = (WaiterId(waiter), session(number), Timestamp::default());
    Asker { waiter, session, name: format!("host{number}"), since }
}

fn token(counter: u64) -> FencingToken {
    FencingToken::new(Epoch(3), counter)
}

/// A table in which session 1 holds file 1 under token 1.
fn held() -> LockTable {
    let mut table = LockTable::new(Epoch(3));
    let asked = table.ask(fid(1), asker(1, 1));
    assert_eq!(asked, (Asked::Granted(token(1)), vec![]));
    table.taken(fid(1), WaiterId(1));
    table
}

#[test]
fn a_holder_that_asks_again_gets_the_same_token() {
    let mut table = held();
    assert_eq!(table.ask(fid(1), asker(2, 1)).0, Asked::Granted(token(1)));
}

#[test]
fn waiters_are_served_in_order_with_growing_tokens_and_one_recall_each() {
    let mut table = held();
    let recall = Action::Recall { fid: fid(1), session: session(1), token: token(1) };
    let queued = Asked::Queued { is_busy: false };
    assert_eq!(table.ask(fid(1), asker(2, 2)), (queued.clone(), vec![recall]));
    assert_eq!(table.ask(fid(1), asker(3, 3)), (queued, vec![]));
    let actions = table.release(fid(1), session(1), token(1));
    let recall = Action::Recall { fid: fid(1), session: session(2), token: token(2) };
    assert_eq!(actions, [Action::Grant { waiter: WaiterId(2), token: token(2) }, recall]);
    let actions = table.release(fid(1), session(2), token(2));
    assert_eq!(actions, [Action::Grant { waiter: WaiterId(3), token: token(3) }]);
    assert_eq!(table.release(fid(1), session(3), token(3)), []);
    assert_eq!(table.holder_name(fid(1)), None);
}

#[test]
fn an_old_token_releases_nothing() {
    let mut table = held();
    table.ask(fid(1), asker(2, 2));
    table.release(fid(1), session(1), token(1));
    assert_eq!(table.release(fid(1), session(1), token(1)), []);
    assert_eq!(table.release(fid(1), session(2), token(1)), []);
    assert_eq!(table.holder_name(fid(1)), Some("host2"));
}

#[test]
fn waiters_of_one_session_share_its_grant() {
    let mut table = held();
    table.ask(fid(1), asker(2, 2));
    table.ask(fid(1), asker(3, 2));
    let actions = table.release(fid(1), session(1), token(1));
    let grant = |waiter| Action::Grant { waiter: WaiterId(waiter), token: token(2) };
    assert_eq!(actions, [grant(2), grant(3)]);
}

#[test]
fn a_grant_nobody_took_goes_to_the_next_and_a_waiter_that_left_gets_none() {
    let mut table = held();
    table.ask(fid(1), asker(2, 2));
    table.ask(fid(1), asker(3, 3));
    table.ask(fid(1), asker(4, 4));
    assert_eq!(table.abandon(fid(1), WaiterId(3)), []);
    table.release(fid(1), session(1), token(1));
    let actions = table.abandon(fid(1), WaiterId(2));
    assert_eq!(actions, [Action::Grant { waiter: WaiterId(4), token: token(3) }]);
    table.taken(fid(1), WaiterId(4));
    assert_eq!(table.abandon(fid(1), WaiterId(4)), []);
    assert_eq!(table.holder_name(fid(1)), Some("host4"));
}

#[test]
fn a_grant_shared_by_two_askers_stays_as_long_as_one_wants_it() {
    let mut table = held();
    table.ask(fid(1), asker(2, 2));
    table.ask(fid(1), asker(3, 2));
    table.release(fid(1), session(1), token(1));
    assert_eq!(table.abandon(fid(1), WaiterId(2)), []);
    table.taken(fid(1), WaiterId(3));
    assert_eq!(table.ask(fid(1), asker(4, 2)).0, Asked::Granted(token(2)));
    assert_eq!(table.abandon(fid(1), WaiterId(4)), []);
    assert_eq!(table.holder_name(fid(1)), Some("host2"));
}

#[test]
fn the_end_of_a_session_frees_what_it_held_and_forgets_what_it_waited_for() {
    let mut table = held();
    table.ask(fid(2), asker(2, 2));
    table.ask(fid(2), asker(3, 1));
    table.ask(fid(1), asker(4, 2));
    let actions = table.end_session(session(1));
    assert_eq!(actions, [Action::Grant { waiter: WaiterId(4), token: token(3) }]);
    assert_eq!(table.release(fid(2), session(2), token(2)), []);
    assert_eq!(table.holder_name(fid(2)), None);
}

#[test]
fn a_busy_holder_is_remembered_until_it_lets_go() {
    let mut table = held();
    table.ask(fid(1), asker(2, 2));
    table.mark_busy(fid(1));
    table.abandon(fid(1), WaiterId(2));
    assert_eq!(table.ask(fid(1), asker(3, 3)).0, Asked::Queued { is_busy: true });
    table.release(fid(1), session(1), token(1));
    assert_eq!(table.ask(fid(1), asker(4, 4)).0, Asked::Queued { is_busy: false });
}

#[test]
fn nothing_is_left_in_the_table_after_everybody_has_gone() {
    let mut table = held();
    table.ask(fid(1), asker(2, 2));
    table.ask(fid(1), asker(3, 3));
    table.abandon(fid(1), WaiterId(3));
    table.end_session(session(2));
    table.release(fid(1), session(1), token(1));
    assert!(table.locks.is_empty() && table.by_session.is_empty());
}
