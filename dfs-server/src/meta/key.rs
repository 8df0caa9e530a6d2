//! Keys: space, tag, parts, so that the order of bytes is the order of meaning.
//!
//! Parts of fixed length come first, numbers as big-endian bytes; at most one part, the last, has
//! any length (a name). Then two keys never collide and all that begin with the same parts lie
//! together, to be scanned from [`prefix`] to [`prefix_end`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use super::Space;
use super::record::{Ownership, StoreState};

/// A key as the engine sees it; cheap to clone.
pub type KeyBytes = Arc<[u8]>;

/// Bytes before the parts of a key: space and tag.
const HEAD_BYTES: usize = 5;

/// Bytes of a range: a key's head and one number.
pub(crate) const RANGE_BYTES: usize = HEAD_BYTES + size_of::<u64>();

/// Tag of the layer's own rows, in every space.
const OWN_TAG: u8 = 0;

/// The key of a row of type `R`.
pub struct Key<R> {
    bytes: KeyBytes,
    row: PhantomData<fn() -> R>,
}

impl<R> Key<R> {
    /// Shape: `tag` 1 and up (0 is the layer's own); one row type for each tag.
    pub fn new(space: Space, tag: u8, parts: &[&[u8]]) -> Key<R> {
        assert_ne!(tag, OWN_TAG, "tag {OWN_TAG} is the metadata layer's own");
        Key::from_bytes(prefix(space, tag, parts))
    }

    /// A key that came out of a scan or another key.
    pub fn from_bytes(bytes: impl Into<KeyBytes>) -> Key<R> {
        Key { bytes: bytes.into(), row: PhantomData }
    }

    pub fn bytes(&self) -> &KeyBytes {
        &self.bytes
    }
}

impl<R> Clone for Key<R> {
    fn clone(&self) -> Key<R> {
        Key { bytes: self.bytes.clone(), row: PhantomData }
    }
}

impl<R> PartialEq for Key<R> {
    fn eq(&self, other: &Key<R>) -> bool {
        self.bytes == other.bytes
    }
}

impl<R> Eq for Key<R> {}

impl<R> Hash for Key<R> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl<R> fmt::Debug for Key<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", hex(&self.bytes))
    }
}

/// What all keys of `space` and `tag` that begin with `parts` begin with; the smallest of them.
pub fn prefix(space: Space, tag: u8, parts: &[&[u8]]) -> KeyBytes {
    let length = HEAD_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(space.0.to_be_bytes());
    bytes.push(tag);
    parts.iter().for_each(|part| bytes.extend(*part));
    bytes.into()
}

/// The smallest key above all that begin with `prefix`: the end of their scan.
pub fn prefix_end(prefix: &[u8]) -> KeyBytes {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff).map_or(0, |last| last + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        // Above every key: no space is numbered 0xffff_ffff with a tag of 0xff throughout.
        None => end = vec![0xff; HEAD_BYTES + prefix.len()],
    }
    end.into()
}

/// The smallest key above `key`: where a scan goes on after it.
pub fn after(key: &[u8]) -> KeyBytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend(key);
    next.push(0);
    next.into()
}

/// The tag of a key.
pub fn tag_of(key: &[u8]) -> Option<u8> {
    key.get(HEAD_BYTES - 1).copied()
}

/// The bytes of a key behind space and tag.
pub fn parts(key: &[u8]) -> &[u8] {
    key.get(HEAD_BYTES..).unwrap_or_default()
}

/// Takes a number off the front of a key's parts; `None` if they are too short.
pub fn take_u64(parts: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = parts.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), rest))
}

/// As [`take_u64`].
pub fn take_u32(parts: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = parts.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// The range that a key lies in: all keys of one space and tag that begin with the same number.
/// `None` if it has nothing behind the number.
pub(crate) fn range_of(key: &[u8]) -> Option<&[u8]> {
    key.get(..RANGE_BYTES).filter(|range| range.len() < key.len())
}

/// The space that a key belongs to; `None` if it is too short for a key.
pub(crate) fn space_of(key: &[u8]) -> Option<Space> {
    take_u32(key).map(|(number, _)| Space(number))
}

/// Who owns a space. Written by engines only.
pub(crate) fn ownership(space: Space) -> Key<Ownership> {
    Key::from_bytes(prefix(space, OWN_TAG, &[b"owner"]))
}

/// What a space's writer knows of itself. Written with every batch.
pub(crate) fn state(space: Space) -> Key<StoreState> {
    Key::from_bytes(prefix(space, OWN_TAG, &[b"state"]))
}

/// A key for people: logs and errors.
pub(crate) fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_do_not_move() {
        let key: Key<StoreState> = Key::new(Space(7), 2, &[&258u64.to_be_bytes(), b"name"]);
        let golden = [&[0, 0, 0, 7, 2, 0, 0, 0, 0, 0, 0, 1, 2][..], b"name"].concat();
        assert_eq!(key.bytes()[..], golden[..]);
        assert_eq!(ownership(Space::AUTH).bytes()[..], *b"\x80\0\0\x01\0owner");
        assert_eq!(state(Space(1)).bytes()[..], *b"\0\0\0\x01\0state");
    }

    #[test]
    fn the_order_of_numbers_is_the_order_of_keys() {
        let key = |number: u64| prefix(Space(1), 1, &[&number.to_be_bytes(), b"x"]);
        assert!(key(255) < key(256));
        assert!(key(u64::MAX - 1) < key(u64::MAX));
    }

    #[test]
    fn a_prefix_ends_behind_all_its_keys_and_before_the_next() {
        let start = prefix(Space(1), 1, &[&255u64.to_be_bytes()]);
        let end = prefix_end(&start);
        let longest = [&start[..], &[0xff; 300]].concat();
        assert!(start[..] < longest[..] && longest[..] < end[..]);
        assert!(end <= prefix(Space(1), 1, &[&256u64.to_be_bytes()]));
        assert!(prefix_end(&[0xff, 0xff])[..] > [0xff; 6][..]);
        assert!(after(&start) > start && after(&start)[..] < longest[..]);
    }

    #[test]
    fn parts_come_out_as_they_went_in() {
        let key = prefix(Space(3), 9, &[&5u32.to_be_bytes(), &6u64.to_be_bytes(), b"n"]);
        let (first, rest) = take_u32(parts(&key)).unwrap();
        let (second, rest) = take_u64(rest).unwrap();
        assert_eq!((first, second, rest, space_of(&key)), (5, 6, &b"n"[..], Some(Space(3))));
        assert_eq!(take_u64(rest), None);
        assert_eq!(parts(&[1, 2]), b"");
    }
}
