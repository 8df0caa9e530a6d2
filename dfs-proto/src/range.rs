//! Locked stretches of a file, and how those of one owner split, merge and change their kind.
//!
//! Plain data: who may have which is the lock service's to decide (`dfs-server/src/lock/range.rs`),
//! which of them a client has its own to remember. Source of the rules: fcntl(2), "Advisory record
//! locking".

use serde::{Deserialize, Serialize};

use crate::error::FsError;

/// Where the last stretch of any file ends: one beyond the largest offset. Source: OFFSET_MAX of
/// the kernel, which stands for "to the end, wherever that will be".
pub const RANGE_END_MAX: u64 = 1 << 63;

/// A stretch of a file. Units: bytes; half-open, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    pub const WHOLE: Range = Range { start: 0, end: RANGE_END_MAX };

    /// # Errors
    /// `InvalidArgument` if it is empty, or ends beyond what a file can have.
    pub fn parse(self) -> Result<Range, FsError> {
        let Range { start, end } = self;
        if start < end && end <= RANGE_END_MAX {
            return Ok(self);
        }
        Err(FsError::invalid(format!("range {start}..{end} of a lock")))
    }

    pub fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Range { start, end: RANGE_END_MAX } => write!(f, "{start}..end"),
            Range { start, end } => write!(f, "{start}..{end}"),
        }
    }
}

/// What a lock lets others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeKind {
    /// Other shared ones.
    Shared,
    Exclusive,
}

impl RangeKind {
    pub fn excludes(self, other: RangeKind) -> bool {
        self == RangeKind::Exclusive || other == RangeKind::Exclusive
    }
}

/// A stretch that is locked in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Segment {
    pub range: Range,
    pub kind: RangeKind,
}

/// What one owner has of a file. Shape: in order, without overlaps; neighbours of one kind are one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// Makes `range` locked as `kind`, or not at all, whatever it was before.
    pub fn set(&mut self, range: Range, kind: Option<RangeKind>) {
        let mut cut = Vec::with_capacity(self.0.len() + 2);
        for Segment { range: held, kind } in &self.0 {
            let before = Range { start: held.start, end: held.end.min(range.start) };
            let after = Range { start: held.start.max(range.end), end: held.end };
            let rest = [before, after].into_iter().filter(|rest| rest.start < rest.end);
            cut.extend(rest.map(|range| Segment { range, kind: *kind }));
        }
        cut.extend(kind.map(|kind| Segment { range, kind }));
        cut.sort_unstable();
        cut.dedup_by(|next, last| {
            let is_one = last.range.end == next.range.start && last.kind == next.kind;
            if is_one {
                last.range.end = next.range.end;
            }
            is_one
        });
        self.0 = cut;
    }

    /// What of it lies in `range`, cut to it.
    pub fn within(&self, range: Range) -> impl Iterator<Item = Segment> {
        let cut = move |segment: &Segment| Segment {
            range: Range {
                start: segment.range.start.max(range.start),
                end: segment.range.end.min(range.end),
            },
            kind: segment.kind,
        };
        self.0.iter().filter(move |segment| segment.range.overlaps(range)).map(cut)
    }

    /// The first segment that somebody else's lock of `range` cannot be beside.
    pub fn against(&self, range: Range, kind: RangeKind) -> Option<Segment> {
        let excludes = |held: &&Segment| held.range.overlaps(range) && held.kind.excludes(kind);
        self.0.iter().find(excludes).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = Segment> {
        self.0.iter().copied()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// Bytes of the model; the last stands for all from there on.
    const BYTES: u64 = 24;

    fn kind() -> impl Strategy<Value = Option<RangeKind>> {
        let kinds = [None, Some(RangeKind::Shared), Some(RangeKind::Exclusive)];
        prop::sample::select(kinds.to_vec())
    }

    fn range() -> impl Strategy<Value = Range> {
        (0..BYTES, 1..=BYTES).prop_map(|(start, length)| match start + length {
            end if end >= BYTES => Range { start, end: RANGE_END_MAX },
            end => Range { start, end },
        })
    }

    proptest! {
        /// Splitting, merging, upgrades and downgrades, against one kind for each byte.
        #[test]
        fn segments_are_what_was_set_last_for_each_byte(
            sets in prop::collection::vec((range(), kind()), 0..40)
        ) {
            let mut segments = Segments::default();
            let mut bytes = [None; BYTES as usize];
            for (range, kind) in sets {
                segments.set(range, kind);
                for byte in range.start..range.end.min(BYTES) {
                    bytes[byte as usize] = kind;
                }
                for (at, expected) in (0..).zip(bytes) {
                    let byte = Range { start: at, end: at + 1 };
                    let found: Vec<_> = segments.within(byte).collect();
                    prop_assert_eq!(found.first().map(|segment| segment.kind), expected);
                    prop_assert!(found.len() <= 1, "{:?}", segments);
                    let shared = segments.against(byte, RangeKind::Shared).is_some();
                    prop_assert_eq!(shared, expected == Some(RangeKind::Exclusive));
                    let exclusive = segments.against(byte, RangeKind::Exclusive).is_some();
                    prop_assert_eq!(exclusive, expected.is_some());
                }
                let all: Vec<Segment> = segments.iter().collect();
                for pair in all.windows(2) {
                    let [first, second] = pair else { unreachable!("windows of two") };
                    let is_apart = first.range.end < second.range.start;
                    let is_beside = first.range.end == second.range.start;
                    prop_assert!(is_apart || is_beside && first.kind != second.kind, "{:?}", all);
                }
            }
        }
    }

    #[test]
    fn empty_ranges_and_those_beyond_any_file_are_refused() {
        let refused = |start, end| {
            matches!(
                Range { start, end }.parse(),
                Err(FsError::InvalidArgument { what }) if what.contains(&format!("{start}..{end}"))
            )
        };
        assert!(refused(5, 5) && refused(6, 5) && refused(0, RANGE_END_MAX + 1));
        assert_eq!(Range::WHOLE.parse(), Ok(Range::WHOLE));
        assert_eq!(Range { start: 3, end: RANGE_END_MAX }.to_string(), "3..end");
    }
}
