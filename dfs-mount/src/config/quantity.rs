//! Sizes and times as people type them: `10G`, `60s`.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A quantity in text form that is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct QuantityError {
    pub expected: &'static str,
    pub text: String,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 5] =
    [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];

impl FromStr for ByteSize {
    type Err = QuantityError;

    /// Reads a whole number with an optional unit K, M, G or T (powers of 1024; `GiB` and `GB` mean
    /// the same as `G`).
    fn from_str(text: &str) -> Result<ByteSize, QuantityError> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let (digits, factor) = split_unit(bare, &SIZE_UNITS);
        parse_digits(digits)
            .and_then(|number| number.checked_mul(factor))
            .map(ByteSize)
            .ok_or_else(|| QuantityError { expected: "a size such as 10G", text: text.to_owned() })
    }
}

impl TryFrom<String> for ByteSize {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<ByteSize, QuantityError> {
        text.parse()
    }
}

impl fmt::Display for ByteSize {
    /// One decimal of the largest unit that is not more than the size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZE_UNITS.iter().find(|(name, factor)| !name.is_empty() && self.0 >= *factor);
        let Some((name, factor)) = unit else {
            return write!(f, "{} B", self.0);
        };
        let tenths = u128::from(self.0) * 10 / u128::from(*factor);
        write!(f, "{}.{} {name}iB", tenths / 10, tenths % 10)
    }
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("", 1000)];

impl FromStr for Span {
    type Err = QuantityError;

    /// Reads a whole number with an optional unit ms, s, m or h; without one it is seconds.
    fn from_str(text: &str) -> Result<Span, QuantityError> {
        let (digits, factor) = split_unit(text.trim(), &TIME_UNITS);
        parse_digits(digits)
            .and_then(|number| number.checked_mul(factor))
            .map(|millis| Span(Duration::from_millis(millis)))
            .ok_or_else(|| QuantityError { expected: "a time such as 60s", text: text.to_owned() })
    }
}

impl TryFrom<String> for Span {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<Span, QuantityError> {
        text.parse()
    }
}

fn split_unit<'a>(text: &'a str, units: &[(&str, u64)]) -> (&'a str, u64) {
    let found = units.iter().find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)));
    found.unwrap_or((text, 1))
}

/// Digits only: `parse` alone would take a sign.
fn parse_digits(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("1M", 1 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 gb", 10 << 30),
            ("2T", 2 << 40),
        ] {
            let parsed = text.replace(' ', "").parse::<ByteSize>();
            assert_eq!(parsed, Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_by_value() {
        for text in ["", "G", "-1", "+1", "1.5G", "10Q", "99999999T", "0x10", "1 0"] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
        for text in ["", "s", "-1s", "1d", "forever", "18446744073709551615h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_seconds_unless_they_say_otherwise() {
        for (text, millis) in [("60", 60_000), ("60s", 60_000), ("2m", 120_000), ("250ms", 250)] {
            assert_eq!(text.parse::<Span>(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        assert_eq!("1h".parse::<Span>().unwrap().0, Duration::from_secs(3600));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_fitting_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
