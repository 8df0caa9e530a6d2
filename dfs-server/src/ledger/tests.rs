//! Rows of the ledger by themselves; what is done with them is tested where it is done, by the
//! services.

use std::collections::BTreeMap;

use super::*;
use crate::meta::record::{decode, encode};
use dfs_proto::version::Epoch;

fn row() -> LedgerRow {
    let done = LedgerEntry::Done { sequence: Sequence::new(Epoch(1), 2), answer: vec![9, 8] };
    LedgerRow {
        watermark: 5,
        entries: BTreeMap::from([(6, done), (7, LedgerEntry::Refused)]),
        forgotten: BTreeMap::from([(0, [0, 2, 0, 0, 0, 0, 0, 0])]),
        changed: 3,
        is_closed: true,
    }
}

const GOLDEN_V1: [u8; 22] = [1, 5, 2, 6, 0, 1, 2, 2, 9, 8, 7, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0];

#[test]
fn golden_bytes_do_not_move() {
    let newer = [&[2][..], &GOLDEN_V1[1..], &[6, 1]].concat();
    assert_eq!(encode(&row()).unwrap(), newer);
    assert_eq!(decode::<LedgerRow>(&newer).unwrap(), row());
}

#[test]
fn a_row_of_version_1_has_no_age_and_is_open() {
    let older = decode::<LedgerRow>(&GOLDEN_V1).unwrap();
    assert_eq!(older, LedgerRow { changed: 0, is_closed: false, ..row() });
}

#[test]
fn a_row_is_settled_below_what_is_above_all_its_ops() {
    let row = row();
    assert!(row.is_forgotten(65));
    for (watermark, is_settled) in [(0, false), (7, false), (8, false), (65, false), (66, true)] {
        assert_eq!(row.is_settled_below(watermark), is_settled, "{watermark}");
    }
    let answered = LedgerRow { forgotten: BTreeMap::new(), ..row };
    assert!(!answered.is_settled_below(7) && answered.is_settled_below(8));
    let mut last = LedgerRow::default();
    last.forget(u64::MAX - 1);
    assert!(!last.is_settled_below(u64::MAX - 1) && last.is_settled_below(u64::MAX));
}
