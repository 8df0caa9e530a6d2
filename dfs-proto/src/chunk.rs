//! Chunks: immutable pieces of a file's content, named by what they contain.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

use crate::id::{ParseIdError, parse_hex};

/// SHA-256 of a chunk's bytes (or, where a document says so, of another byte string).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    pub fn of(bytes: &[u8]) -> ChunkHash {
        ChunkHash(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "ChunkHash({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

impl FromStr for ChunkHash {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<ChunkHash, ParseIdError> {
        parse_hex(text).map(ChunkHash).ok_or_else(|| ParseIdError {
            expected: "a chunk hash (64 hexadecimal digits)",
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha_256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(ChunkHash::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(ChunkHash::of(b"")));
    }
}
