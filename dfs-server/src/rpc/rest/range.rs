//! The header `Range`: which bytes of a content are wanted.
//!
//! One range of bytes is served; what is not understood, and several ranges at once, get the whole
//! content. Source: RFC 9110, section 14.

use std::ops::Range;

/// What a request wants of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    All,
    /// Never empty, and inside the content.
    Part(Range<u64>),
    /// There is no such byte.
    Nothing,
}

/// Reads a header for a content of `size` bytes.
pub fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let range = header.and_then(|header| header.trim().strip_prefix("bytes="));
    let Some((first, last)) = range.and_then(|range| range.trim().split_once('-')) else {
        return Wanted::All;
    };
    if last.contains(',') {
        return Wanted::All;
    }
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Wanted::All,
        (Some(first), Some(last)) => part(first, last.saturating_add(1), size),
        (Some(first), None) if last.is_empty() => part(first, size, size),
        (None, Some(count)) if first.is_empty() => part(size.saturating_sub(count), size, size),
        _ => Wanted::All,
    }
}

fn part(start: u64, end: u64, size: u64) -> Wanted {
    let range = start..end.min(size);
    if range.is_empty() { Wanted::Nothing } else { Wanted::Part(range) }
}

/// Digits only: no sign, no space. A number too large for us is larger than every file.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_cut_to_the_content() {
        for (header, start, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=2-4", 2, 5),
            ("bytes=2-", 2, 10),
            ("bytes=2-99", 2, 10),
            ("bytes=9-18446744073709551615", 9, 10),
            ("bytes=9-99999999999999999999999", 9, 10),
            ("bytes=-3", 7, 10),
            ("bytes=-99", 0, 10),
        ] {
            assert_eq!(wanted(Some(header), 10), Wanted::Part(start..end), "{header}");
        }
    }

    #[test]
    fn bytes_that_are_not_there_cannot_be_had() {
        for (header, size) in [
            ("bytes=10-", 10),
            ("bytes=10-12", 10),
            ("bytes=-0", 10),
            ("bytes=0-0", 0),
            ("bytes=-1", 0),
            ("bytes=99999999999999999999999-", 10),
        ] {
            assert_eq!(wanted(Some(header), size), Wanted::Nothing, "{header} of {size}");
        }
    }

    #[test]
    fn what_is_not_understood_gets_everything() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "bytes=5-2",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=1 -2",
            "bytes=1--2",
            "bytes=1-2-3",
        ] {
            assert_eq!(wanted(Some(header), 10), Wanted::All, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::All);
    }
}
