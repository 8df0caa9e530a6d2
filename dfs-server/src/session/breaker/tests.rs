//! Breaks and those who wait for them, with a clock that stands still.

use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::attr::{Attr, FileKind, Timestamp};
use dfs_proto::capability::MacKey;
use dfs_proto::clock::{Clock, ManualClock};
use dfs_proto::credential::TicketHolder;
use dfs_proto::id::OpId;
use dfs_proto::limits::SESSION_LEASE;
use dfs_proto::name::Name;
use dfs_proto::promise::{News, USED_DIRS_MAX};
use dfs_proto::session::Acknowledge;
use dfs_proto::version::{DataVersion, DirVersion, Epoch};
use tokio::sync::mpsc;

use super::*;
use crate::request::NewsCell;

const ANN: SessionId = SessionId([1; 16]);
const BOB: SessionId = SessionId([2; 16]);
const SECOND: Duration = Duration::from_secs(1);

type Stream = mpsc::Receiver<SessionEvent>;
type Hold = BoxFuture<'static, ()>;

/// Ann and Bob, of whom both listen.
struct Owner {
    sessions: Sessions,
    clock: ManualClock,
    ann: Stream,
    bob: Stream,
}

fn dir(inode: u64) -> FileId {
    FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
}

fn user(id: SessionId) -> &'static str {
    if id == ANN { "ann" } else { "bob" }
}

fn bearer(id: SessionId, act_as: ActAs) -> Peer {
    Peer::User(Arc::new(TicketHolder { user: user(id).to_owned(), act_as, is_admin: false }))
}

/// A change that leaves the directory there: its attributes are not what these tests are about.
fn change(inode: u64) -> DirChange {
    let attr = Attr {
        fid: dir(inode),
        kind: FileKind::Directory,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        size: 0,
        stored_bytes: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        rdev: 0,
        data_version: DataVersion::default(),
        dir_version: DirVersion::default(),
        xattr_bytes: 0,
    };
    let names = vec![(Name::parse(b"n").unwrap(), None)];
    let sequence = Sequence::new(Epoch(1), 5);
    DirChange { dir: dir(inode), attr: Some(attr), names, is_cut: false, is_made: false, sequence }
}

fn origin(id: SessionId, number: u64, watermark: u64) -> Origin {
    let news = NewsCell::beside(Some(first_stream(id)));
    Origin { op: OpId { session: id, number }, watermark, news }
}

/// The stream that [`Owner::new`] gives a session.
fn first_stream(id: SessionId) -> StreamNumber {
    StreamNumber(1 << 32 | if id == ANN { 1 } else { 2 })
}

fn is_over(hold: &mut Option<Hold>) -> bool {
    hold.as_mut().is_none_or(|hold| hold.now_or_never().is_some())
}

impl Owner {
    fn new() -> Owner {
        let clock = ManualClock::default();
        let sessions = Sessions::new(Arc::new(clock.clone()));
        for id in [ANN, BOB] {
            let machine = bearer(id, ActAs::Machine { squash_root: false });
            sessions.open(id, &machine, "host", MacKey([1; 32])).unwrap();
        }
        let [ann, bob] = [ANN, BOB].map(|id| sessions.listen(id, user(id), Epoch(1)).unwrap());
        let mut owner = Owner { sessions, clock, ann, bob };
        owner.ann.try_recv().unwrap();
        owner.bob.try_recv().unwrap();
        owner
    }

    fn promise(&self, id: SessionId, inodes: &[u64]) -> Option<Registered> {
        let dirs: Vec<FileId> = inodes.iter().map(|inode| dir(*inode)).collect();
        self.sessions.promise(id, user(id), &dirs)
    }

    fn tell(&self, inodes: &[u64], origin: Option<&Origin>) -> Option<Hold> {
        let changes: Vec<DirChange> = inodes.iter().map(|inode| change(*inode)).collect();
        self.sessions.break_promises(&changes, origin, &|_, _| true)
    }

    fn acknowledge(&self, number: u64, used: &[u64]) {
        let used = used.iter().map(|inode| dir(*inode)).collect();
        let request = Acknowledge { number: BreakNumber(number), used };
        self.sessions.acknowledge(BOB, "bob", &request).unwrap();
    }

    fn renew(&self, id: SessionId) -> bool {
        self.sessions.renew(id, user(id)).unwrap().is_some()
    }

    fn bobs_break(&mut self) -> Break {
        match self.bob.try_recv() {
            Ok(SessionEvent::Break(it)) => it,
            other => panic!("no break but {other:?}"),
        }
    }
}

#[test]
fn a_directory_is_promised_to_the_one_who_made_it() {
    let mut owner = Owner::new();
    let made = DirChange { is_made: true, names: Vec::new(), ..change(4) };
    let by_bob = origin(BOB, 1, 1);
    let told =
        owner.sessions.break_promises(std::slice::from_ref(&made), Some(&by_bob), &|_, _| true);
    assert!(told.is_none());
    assert_eq!(by_bob.news.take().changes, [made]);
    let mut hold = owner.tell(&[4], Some(&origin(ANN, 1, 1)));
    assert_eq!(owner.bobs_break().changes, [change(4)]);
    assert!(!is_over(&mut hold));
    assert!(owner.ann.try_recv().is_err());
}

#[test]
fn a_change_by_a_request_from_before_the_stream_is_told_on_the_stream() {
    let mut owner = Owner::new();
    let late = origin(BOB, 1, 1);
    owner.bob = owner.sessions.listen(BOB, "bob", Epoch(1)).unwrap();
    owner.bob.try_recv().unwrap();
    owner.promise(BOB, &[1]).unwrap();
    let mut hold = owner.tell(&[1], Some(&late));
    assert_eq!(late.news.take(), News::default(), "nobody waits for its reply");
    assert_eq!(owner.bobs_break().changes, [change(1)]);
    assert!(!is_over(&mut hold));
    owner.acknowledge(1, &[]);
    assert!(is_over(&mut hold));
    let without = Origin { news: NewsCell::default(), ..origin(BOB, 2, 1) };
    owner.tell(&[1], Some(&without));
    assert_eq!(owner.bobs_break().number, BreakNumber(2), "it named no stream");
}

#[test]
fn others_are_told_and_awaited_and_the_origin_is_told_beside_its_reply() {
    let mut owner = Owner::new();
    owner.promise(ANN, &[1, 2]).unwrap();
    let promise = owner.promise(BOB, &[1, 3]).unwrap();
    let by_ann = origin(ANN, 1, 1);
    let mut hold = owner.tell(&[1, 2], Some(&by_ann));
    assert_eq!(by_ann.news.take().changes, [change(1), change(2)]);
    assert!(owner.ann.try_recv().is_err());
    let told = owner.bobs_break();
    assert_eq!((told.number, &told.changes[..]), (BreakNumber(1), &[change(1)][..]));
    assert_eq!((told.ended, promise.after), (vec![], BreakNumber(0)));
    assert!(!is_over(&mut hold));
    owner.acknowledge(1, &[]);
    assert!(is_over(&mut hold));
    assert_eq!(owner.promise(BOB, &[4]).unwrap().after, BreakNumber(1));
    assert!(owner.tell(&[2], Some(&by_ann)).is_none(), "nobody else holds it");
    assert!(owner.tell(&[9], None).is_none());
}

#[test]
fn breaks_are_numbered_in_order_and_acknowledged_up_to_a_number() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1, 2]).unwrap();
    let mut holds = [owner.tell(&[1], None), owner.tell(&[2], None), owner.tell(&[1], None)];
    let numbers = [(); 3].map(|()| owner.bobs_break().number.0);
    assert_eq!(numbers, [1, 2, 3]);
    owner.acknowledge(2, &[]);
    assert_eq!([0, 1, 2].map(|index| is_over(&mut holds[index])), [true, true, false]);
    owner.acknowledge(1, &[]);
    assert!(!is_over(&mut holds[2]), "an older one takes nothing back or further");
    owner.acknowledge(3, &[]);
    assert!(is_over(&mut holds[2]));
}

#[test]
fn a_break_without_an_answer_delays_by_what_is_left_of_the_lease_once() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    owner.clock.advance(3 * SECOND);
    assert!(owner.renew(BOB));
    let until = owner.clock.boottime() + SESSION_LEASE;
    owner.clock.advance(SECOND);
    let mut hold = owner.tell(&[1], None);
    assert!(owner.renew(BOB), "it may be about to acknowledge");
    let until = until + SECOND;
    owner.clock.advance(2 * SECOND);
    assert!(!owner.renew(BOB), "it has not acknowledged since");
    owner.clock.advance(until - owner.clock.boottime() - Duration::from_millis(1));
    assert!(!is_over(&mut hold));
    owner.clock.advance(Duration::from_millis(1));
    assert!(is_over(&mut hold));
    assert!(owner.tell(&[1], None).is_none(), "it holds nothing any more");
    assert!(!owner.renew(BOB) && owner.promise(BOB, &[1]).is_none());
    owner.bobs_break();
    assert_eq!(owner.bob.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    let stream = owner.sessions.listen(BOB, "bob", Epoch(1)).unwrap();
    assert!(owner.renew(BOB) && owner.promise(BOB, &[1]).is_some());
    drop(stream);
}

#[test]
fn a_session_that_keeps_up_with_changes_without_end_keeps_its_promises() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    let mut hold = owner.tell(&[1], None);
    for number in 1..100 {
        owner.clock.advance(SESSION_LEASE / 3);
        assert!(owner.renew(BOB), "break {number} is open");
        let next = owner.tell(&[1], None);
        assert!(!is_over(&mut hold), "the lease that ended the wait was renewed");
        owner.acknowledge(number, &[1]);
        assert!(is_over(&mut hold));
        assert_eq!(owner.bobs_break().ended, []);
        hold = next;
    }
}

#[test]
fn a_session_that_knows_again_is_renewed_again() {
    let owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    let mut hold = owner.tell(&[1], None);
    assert!(owner.renew(BOB) && !owner.renew(BOB));
    owner.acknowledge(1, &[]);
    assert!(is_over(&mut hold) && owner.renew(BOB));
    owner.clock.advance(SESSION_LEASE - Duration::from_millis(1));
    assert!(owner.tell(&[1], None).is_some());
}

#[test]
fn a_stream_that_takes_nothing_ends_and_its_promises_hold_till_their_lease_is_over() {
    for is_gone in [true, false] {
        let mut owner = Owner::new();
        owner.promise(BOB, &[1, 2]).unwrap();
        if is_gone {
            owner.bob.close();
        } else {
            while owner.sessions.tell(BOB, SessionEvent::Idle) == crate::session::Told::Sent {}
        }
        assert!(!owner.renew(BOB), "no stream, no promises");
        assert!(owner.promise(BOB, &[3]).is_none());
        let mut first = owner.tell(&[1], None);
        owner.clock.advance(SESSION_LEASE / 2);
        owner.renew(BOB);
        let mut second = owner.tell(&[1, 2], None);
        owner.clock.advance(SESSION_LEASE / 2 - Duration::from_millis(1));
        assert!(!is_over(&mut first) && !is_over(&mut second));
        owner.clock.advance(Duration::from_millis(1));
        assert!(is_over(&mut first) && is_over(&mut second));
        assert!(owner.tell(&[1, 2], None).is_none());
    }
}

#[test]
fn nobody_waits_for_a_session_that_listens_anew_or_is_over() {
    type Leave = fn(&mut Owner);
    let ways: [Leave; 3] = [
        |owner| owner.bob = owner.sessions.listen(BOB, "bob", Epoch(1)).unwrap(),
        |owner| assert!(owner.sessions.close(BOB, "bob")),
        |owner| {
            owner.renew(ANN);
            // The session ends without the sleepers' being woken: its lease is on the same clock.
            owner.sessions.table().sessions.get_mut(&BOB).unwrap().ends_at = Duration::ZERO;
            assert_eq!(owner.sessions.expire(), [BOB]);
        },
    ];
    for leave in ways {
        let mut owner = Owner::new();
        owner.promise(BOB, &[1]).unwrap();
        let mut hold = owner.tell(&[1], None);
        assert!(!is_over(&mut hold));
        leave(&mut owner);
        assert!(is_over(&mut hold));
        assert!(owner.tell(&[1], None).is_none(), "nothing is promised any more");
        assert!(!owner.sessions.has_promises());
    }
}

#[test]
fn promises_whose_lease_is_over_are_swept() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    drop(owner.tell(&[1], None));
    assert!(owner.renew(BOB));
    owner.clock.advance(SESSION_LEASE / 2);
    assert!(!owner.renew(BOB));
    owner.clock.advance(SESSION_LEASE / 2);
    owner.sessions.tell_idle();
    assert!(!owner.sessions.has_promises());
    owner.bobs_break();
    assert_eq!(owner.bob.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
}

#[test]
fn an_unused_promise_is_ended_and_nothing_is_sent_after_it() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    owner.tell(&[1], None);
    assert_eq!(owner.bobs_break().ended, []);
    owner.acknowledge(1, &[1]);
    owner.tell(&[1], None);
    assert_eq!(owner.bobs_break().ended, [], "it was used before the first");
    owner.acknowledge(2, &[]);
    let mut third = owner.tell(&[1], None);
    assert_eq!(owner.bobs_break().ended, [dir(1)]);
    let mut fourth = owner.tell(&[1], None);
    assert!(owner.bob.try_recv().is_err());
    assert!(!is_over(&mut fourth), "he may still go by what he had");
    owner.acknowledge(3, &[]);
    assert!(is_over(&mut third) && is_over(&mut fourth));
    assert!(owner.tell(&[1], None).is_none());
}

#[test]
fn what_is_promised_anew_is_not_ended_by_a_break_before() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    let gone = DirChange { attr: None, names: Vec::new(), ..change(1) };
    owner.sessions.break_promises(&[gone], None, &|_, _| true);
    assert_eq!(owner.bobs_break().ended, [dir(1)]);
    assert_eq!(owner.promise(BOB, &[1]).unwrap().after, BreakNumber(1));
    owner.acknowledge(1, &[]);
    owner.tell(&[1], None);
    assert_eq!(owner.bobs_break().changes, [change(1)]);
}

#[test]
fn a_repeated_request_is_told_the_same_and_waits_for_what_is_open() {
    let owner = Owner::new();
    owner.promise(ANN, &[1]).unwrap();
    owner.promise(BOB, &[1]).unwrap();
    let mut first = owner.tell(&[1], Some(&origin(ANN, 7, 7)));
    let again = origin(ANN, 7, 7);
    let mut second = owner.sessions.answer_again(&again);
    assert_eq!(again.news.take().changes, [change(1)]);
    assert!(!is_over(&mut second));
    owner.acknowledge(1, &[]);
    assert!(is_over(&mut first) && is_over(&mut second));
    let other = origin(ANN, 8, 8);
    assert!(owner.sessions.answer_again(&other).is_none());
    assert_eq!(other.news.take().changes, []);
}

#[test]
fn one_who_cannot_be_told_again_what_it_changed_holds_nothing_after_the_answer() {
    let owner = Owner::new();
    owner.promise(ANN, &[1]).unwrap();
    for number in 0..=OPS_IN_FLIGHT_MAX as u64 {
        owner.tell(&[1], Some(&origin(ANN, number, 0)));
    }
    assert_eq!(owner.sessions.table().sessions[&ANN].recent.changes.len(), OPS_IN_FLIGHT_MAX);
    let forgotten = origin(ANN, 0, 0);
    let mut hold = owner.sessions.answer_again(&forgotten);
    assert!(!is_over(&mut hold) && !owner.renew(ANN));
    let _stream = owner.sessions.listen(ANN, "ann", Epoch(1)).unwrap();
    assert!(is_over(&mut hold));
}

#[test]
fn the_watermark_says_which_changes_nobody_asks_for_again() {
    let owner = Owner::new();
    owner.promise(ANN, &[1]).unwrap();
    for number in 0..1000 {
        owner.tell(&[1], Some(&origin(ANN, number, number)));
    }
    let table = owner.sessions.table();
    let recent = &table.sessions[&ANN].recent;
    assert_eq!((recent.changes.len(), recent.forgotten), (1, 0));
}

#[test]
fn a_person_is_not_told_names_that_are_not_to_be_seen_and_a_machine_is() {
    let mut owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    let refuse = |_: FileId, _: &Identity| false;
    owner.sessions.break_promises(&[change(1)], None, &refuse);
    assert_eq!(owner.bobs_break().changes, [change(1)]);
    let identity = Identity { uid: 7, gid: 7, groups: Vec::new() };
    let person = bearer(BOB, ActAs::Personal { identity });
    owner.sessions.open(BOB, &person, "host", MacKey([1; 32])).unwrap();
    owner.sessions.break_promises(&[change(1)], None, &refuse);
    let cut = DirChange { names: Vec::new(), is_cut: true, ..change(1) };
    assert_eq!(owner.bobs_break().changes, [cut]);
    owner.sessions.break_promises(&[change(1)], None, &|_, who| who.uid == 7);
    assert_eq!(owner.bobs_break().changes, [change(1)]);
}

#[test]
fn nothing_is_promised_to_strangers_or_acknowledged_by_them() {
    let owner = Owner::new();
    owner.promise(BOB, &[1]).unwrap();
    let mut hold = owner.tell(&[1], None);
    let request = Acknowledge { number: BreakNumber(1), used: Vec::new() };
    let foreign = owner.sessions.acknowledge(BOB, "ann", &request);
    assert_eq!(foreign, Err(FsError::SessionUnknown));
    let early = Acknowledge { number: BreakNumber(2), used: Vec::new() };
    let refused = owner.sessions.acknowledge(BOB, "bob", &early);
    assert!(matches!(refused, Err(FsError::InvalidArgument { .. })), "{refused:?}");
    let long = Acknowledge { used: vec![dir(1); USED_DIRS_MAX + 1], ..request };
    let refused = owner.sessions.acknowledge(BOB, "bob", &long);
    assert!(matches!(refused, Err(FsError::TooLarge { .. })), "{refused:?}");
    assert!(!is_over(&mut hold));
    assert!(owner.sessions.promise(BOB, "ann", &[dir(1)]).is_none());
    assert!(owner.sessions.promise(SessionId([9; 16]), "ann", &[dir(1)]).is_none());
}
