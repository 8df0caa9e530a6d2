//! Op ids: what is repeated, forgotten, settled, and somebody else's.

use dfs_proto::FsError;
use dfs_proto::attr::{FileKind, SetAttr};
use dfs_proto::directory::{
    ChangeAttr, MakeDir, MakeLink, MakeNode, MakeSymlink, Outcome, OutcomeReply, RemoveDir,
    RemoveXattr, RenameRule, SetXattr, Unlink, XattrRule,
};
use dfs_proto::id::{FileId, OpId, SessionId};
use dfs_proto::version::Sequence;
use dfs_proto::xattr::XattrValue;

use super::cell::{Cell, User, VOLUME, create, name, rename, xattr};
use super::check::check;
use crate::directory::rows::ledger_key;
use crate::request::Context;

async fn mkdir(user: &User, context: Context, at: &str) -> Result<FileId, FsError> {
    let request = MakeDir { parent: user.cell.root, name: name(at), mode: 0o755 };
    user.cell.directory.mkdir(context, request).await.map(|reply| reply.attr.fid)
}

async fn outcome(user: &User, number: u64) -> Result<OutcomeReply, FsError> {
    let request = Outcome { volume: VOLUME, op: user.op(number) };
    user.cell.directory.outcome(user.context_of(number, 0), request).await
}

async fn sequence(cell: &Cell) -> Sequence {
    cell.volume.store.read(|txn| Ok(txn.sequence())).await.unwrap()
}

async fn row_bytes(user: &User) -> usize {
    let key = ledger_key(VOLUME, user.session);
    let row = user.cell.volume.store.read(|txn| txn.get(&key)).await.unwrap().unwrap();
    crate::meta::record::encode(&*row).unwrap().len()
}

/// Runs the same request twice under one op id: the answers must be equal, and nothing done by the
/// second.
macro_rules! repeat {
    ($user:ident, $method:ident, $request:expr) => {{
        let context = $user.context();
        let first = $user.cell.directory.$method(context.clone(), $request).await.unwrap();
        let before = sequence(&$user.cell).await;
        let second = $user.cell.directory.$method(context, $request).await.unwrap();
        assert_eq!(first, second, stringify!($method));
        assert_eq!(sequence(&$user.cell).await, before, stringify!($method));
        check(&$user.cell).await;
        first
    }};
}

#[tokio::test]
async fn every_mutation_repeated_gets_the_first_answer_and_does_nothing() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let parent = cell.root;
    repeat!(ann, mkdir, MakeDir { parent, name: name("d"), mode: 0o755 });
    repeat!(ann, symlink, MakeSymlink { parent, name: name("s"), target: b"t".to_vec() });
    let (kind, mode, rdev) = (FileKind::File, 0o644, 0);
    let made = repeat!(ann, mknod, MakeNode { parent, name: name("f"), kind, mode, rdev });
    let fid = made.attr.fid;
    repeat!(ann, link, MakeLink { fid, parent, name: name("g") });
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    repeat!(ann, setattr, ChangeAttr { fid, set: set.clone() });
    let (key, value) = (xattr("user.a"), XattrValue::parse(b"1").unwrap());
    // The second would find the name, had it not got the first one's answer.
    let rule = XattrRule::Create;
    repeat!(ann, set_xattr, SetXattr { fid, name: key.clone(), value: value.clone(), rule });
    repeat!(ann, remove_xattr, RemoveXattr { fid, name: key.clone() });
    repeat!(ann, rename, rename((parent, "f"), (parent, "g2"), RenameRule::Replace));
    repeat!(ann, rename, rename((parent, "g"), (parent, "s"), RenameRule::Exchange));
    repeat!(ann, unlink, Unlink { parent, name: name("s") });
    repeat!(ann, rmdir, RemoveDir { parent, name: name("d") });
    assert_eq!(ann.lookup(parent, "g2").await.unwrap().nlink, 1);
}

#[tokio::test]
async fn a_repeated_create_opens_the_file_that_the_first_made() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let (number, request) = (ann.next_number(), create(cell.root, "f", true));
    let context = ann.context_of(number, 0);
    let first = cell.directory.create(context.clone(), request.clone()).await.unwrap();
    let second = cell.directory.create(context, request).await.unwrap();
    assert!(first.created && second.created);
    assert_eq!(first.open.attr, second.open.attr);
    assert_eq!((first.before, first.after), (second.before, second.after));
    let tokens = [&first, &second].map(|reply| reply.open.write.as_ref().unwrap().token);
    assert_eq!(tokens[0], tokens[1]);
    check(&cell).await;
}

#[tokio::test]
async fn the_first_answer_survives_a_restart() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let context = ann.context();
    let fid = mkdir(&ann, context.clone(), "d").await.unwrap();
    let ann = ann.at(&cell.restart().await).await;
    assert_eq!(mkdir(&ann, context, "d").await, Ok(fid));
}

#[tokio::test]
async fn a_failed_operation_may_be_run_again() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    ann.mkdir(cell.root, "d", 0o755).await.unwrap();
    let context = ann.context();
    assert_eq!(mkdir(&ann, context.clone(), "d").await, Err(FsError::Exists));
    ann.rmdir(cell.root, "d").await.unwrap();
    mkdir(&ann, context, "d").await.unwrap_err();
    let context = ann.context_of(ann.next_number(), 0);
    ann.mkdir(cell.root, "x", 0o755).await.unwrap();
    assert_eq!(mkdir(&ann, context, "y").await, Err(FsError::OpSettled), "below the watermark");
}

#[tokio::test]
async fn below_the_watermark_nothing_is_run() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    mkdir(&ann, ann.context_of(100, 100), "a").await.unwrap();
    for number in [1, 99] {
        let late = mkdir(&ann, ann.context_of(number, 1), "late").await;
        assert_eq!(late, Err(FsError::OpSettled));
        assert_eq!(outcome(&ann, number).await, Err(FsError::OpSettled));
    }
    let lying = mkdir(&ann, ann.context_of(105, 106), "b").await;
    assert_eq!(lying, Err(FsError::OpSettled), "the request itself says it is settled");
    mkdir(&ann, ann.context_of(105, 101), "b").await.unwrap();
    mkdir(&ann, ann.context_of(103, 101), "c").await.unwrap();
    assert_eq!(ann.lookup(cell.root, "late").await, Err(FsError::NotFound));
}

#[tokio::test]
async fn an_op_whose_outcome_was_asked_for_never_runs() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    assert_eq!(outcome(&ann, 50).await, Ok(OutcomeReply::Refused));
    assert_eq!(outcome(&ann, 50).await, Ok(OutcomeReply::Refused));
    assert_eq!(mkdir(&ann, ann.context_of(50, 1), "d").await, Err(FsError::OpSettled));
    let ann = ann.at(&cell.restart().await).await;
    assert_eq!(mkdir(&ann, ann.context_of(50, 1), "d").await, Err(FsError::OpSettled));
    assert_eq!(ann.lookup(cell.root, "d").await, Err(FsError::NotFound));
}

#[tokio::test]
async fn the_outcome_of_a_committed_op_names_its_commit() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let context = ann.context_of(50, 1);
    mkdir(&ann, context.clone(), "d").await.unwrap();
    let committed = sequence(&cell).await;
    ann.next_op.store(60, std::sync::atomic::Ordering::Relaxed);
    mkdir(&ann, ann.context_of(51, 50), "e").await.unwrap();
    assert_eq!(outcome(&ann, 50).await, Ok(OutcomeReply::Committed(committed)));
    mkdir(&ann, context, "d").await.unwrap();
}

#[tokio::test]
async fn one_slow_op_makes_nothing_fail_and_the_row_grow_a_little() {
    let cell = Cell::new().await;
    let ann = cell.user(1, 1000).await;
    let fid = ann.file(cell.root, "f", 0o644).await.unwrap().attr.fid;
    let slow = 10;
    let mut largest = 0;
    let touch = async |number| {
        let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        let context = ann.context_of(number, slow);
        cell.directory.setattr(context, ChangeAttr { fid, set }).await
    };
    for number in slow + 1..slow + 2001 {
        // Every third fails, and leaves a gap.
        if number % 3 == 0 {
            mkdir(&ann, ann.context_of(number, slow), "f").await.unwrap_err();
        } else {
            touch(number).await.unwrap();
        }
        largest = largest.max(row_bytes(&ann).await);
    }
    assert!(largest < 40_000, "{largest} bytes");
    let (oldest, middle, failed) = (slow + 1, slow + 1000, slow + 2);
    touch(oldest).await.unwrap();
    assert_eq!(touch(middle).await.map(drop), Err(FsError::OpSettled), "its answer is dropped");
    let no_commit = Sequence::default();
    assert_eq!(outcome(&ann, middle).await, Ok(OutcomeReply::Committed(no_commit)));
    assert_eq!(failed % 3, 0);
    assert_eq!(outcome(&ann, failed).await, Ok(OutcomeReply::Refused));
    mkdir(&ann, ann.context_of(slow, slow), "slow").await.unwrap();
    mkdir(&ann, ann.context_of(3000, 3000), "next").await.unwrap();
    assert!(row_bytes(&ann).await < 1000, "what is below the watermark goes");
}

#[tokio::test]
async fn invented_numbers_do_not_grow_the_row_without_bound() {
    let cell = Cell::new().await;
    let eve = cell.user(1, 1000).await;
    let mut refused = None;
    for number in 0..3000 {
        if let Err(error) = outcome(&eve, 1_000_000 + number * 7).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(FsError::Unavailable { .. })), "{refused:?}");
    assert!(row_bytes(&eve).await < 40_000);
    mkdir(&eve, eve.context_of(2_000_000, 2_000_000), "d").await.unwrap();
}

#[tokio::test]
async fn nobody_settles_or_uses_another_sessions_op_ids() {
    let cell = Cell::new().await;
    let (ann, eve) = (cell.user(1, 1000).await, cell.user(2, 2000).await);
    let number = ann.next_number();
    mkdir(&ann, ann.context_of(number, 1), "anns").await.unwrap();
    let ask = async |context: Context, op: OpId| {
        let request = Outcome { volume: VOLUME, op };
        cell.directory.outcome(context, request).await
    };
    let not_hers = Err(FsError::NotPermitted);
    assert_eq!(ask(eve.context(), ann.op(number)).await, not_hers);
    let stolen = Context { session: Some(ann.session), ..eve.context() };
    assert_eq!(ask(stolen, ann.op(number)).await, not_hers);
    let stolen = Context { op: Some(ann.op(number)), ..eve.context() };
    assert_eq!(mkdir(&eve, stolen, "anns").await, Err(FsError::NotPermitted));
    let last = Some(ann.op(u64::MAX));
    let poison = Context { session: None, op: last, lowest_unanswered: u64::MAX, ..eve.context() };
    assert_eq!(mkdir(&eve, poison.clone(), "x").await, Err(FsError::NotPermitted));
    let made = cell.directory.create(poison, create(cell.root, "x", true)).await;
    assert!(made.is_err());
    ann.mkdir(cell.root, "more", 0o755).await.unwrap();
    let nobody = Context { session: None, ..eve.context() };
    let unknown = OpId { session: SessionId([9; 16]), number: 1 };
    assert_eq!(ask(nobody, unknown).await, Err(FsError::SessionUnknown));
}
