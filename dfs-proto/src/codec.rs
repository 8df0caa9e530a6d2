//! Bytes to values and back: the only file that names bincode.
//!
//! bincode 2.0.1 is pinned (version 3 is an intentional compile error, the crate is unmaintained:
//! RUSTSEC-2025-0141). What it leaves open is closed here: every decode has a limit, left-over
//! bytes are an error, and the limit holds for encoding as well. No type of ours contains a vector
//! of zero-sized values, whose length a decoder would believe.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::HEAD_BYTES_MAX;

/// Why bytes and value do not meet.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("value does not encode")]
    Encode(#[source] bincode::error::EncodeError),
    #[error("bytes do not decode")]
    Decode(#[source] bincode::error::DecodeError),
    #[error("message has {length} bytes, more than {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("{0} bytes are left over after the message")]
    LeftOver(usize),
}

/// Largest `limit` that the functions below take: decoding never claims more memory.
pub const CODEC_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(HEAD_BYTES_MAX <= CODEC_BYTES_MAX);

fn config() -> Configuration<LittleEndian, Varint, Limit<CODEC_BYTES_MAX>> {
    bincode::config::standard().with_limit::<CODEC_BYTES_MAX>()
}

/// Encodes a value.
///
/// # Errors
/// `TooLong` if it needs more than `limit` bytes; `Encode` if the value cannot be encoded.
pub fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, config()).map_err(CodecError::Encode)?;
    if bytes.len() > limit {
        return Err(CodecError::TooLong { length: bytes.len(), limit });
    }
    Ok(bytes)
}

/// Decodes a value from all of `bytes`.
///
/// # Errors
/// `TooLong` if there are more than `limit` bytes (nothing is read), `Decode` if they are not a
/// `T`, `LeftOver` if they are a `T` and something else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    if bytes.len() > limit {
        return Err(CodecError::TooLong { length: bytes.len(), limit });
    }
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(CodecError::Decode)?;
    match bytes.len() - used {
        0 => Ok(value),
        rest => Err(CodecError::LeftOver(rest)),
    }
}

/// Decodes a value from the beginning of `bytes`, whatever follows.
///
/// # Errors
/// `Decode` if they do not begin with a `T`.
pub fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, _) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(CodecError::Decode)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkHash;
    use crate::error::FsError;
    use crate::id::{FileId, InodeNo, VolumeId};
    use crate::manifest::{Extent, Manifest};
    use crate::name::Name;
    use crate::version::Epoch;

    #[test]
    fn golden_bytes_do_not_move() {
        let fid = FileId::new(VolumeId(1), InodeNo(300), Epoch(2));
        assert_eq!(encode(&fid, 64).unwrap(), [1, 251, 44, 1, 2]);
        let name = Name::parse(b"a\xff").unwrap();
        assert_eq!(encode(&name, 64).unwrap(), [2, b'a', 255]);
        let extents =
            vec![Extent::Chunk { hash: ChunkHash([7; 32]), length: 4 }, Extent::Hole { length: 9 }];
        let mut golden = vec![2, 0];
        golden.extend([7; 32]);
        golden.extend([4, 1, 9]);
        assert_eq!(encode(&Manifest { extents }, 64).unwrap(), golden);
        assert_eq!(encode(&Err::<(), _>(FsError::NotFound), 64).unwrap(), [1, 0]);
    }

    #[test]
    fn a_message_that_claims_a_huge_vector_is_refused_without_allocating_it() {
        let mut bytes = vec![253];
        bytes.extend((1u64 << 43).to_le_bytes());
        bytes.extend([0; 64]);
        assert!(matches!(decode::<Vec<u64>>(&bytes, 4096), Err(CodecError::Decode(_))));
    }

    #[test]
    fn left_over_bytes_and_long_messages_are_errors() {
        assert!(matches!(decode::<u8>(&[1, 2], 64), Err(CodecError::LeftOver(1))));
        assert!(matches!(decode::<u8>(&[1, 2], 1), Err(CodecError::TooLong { .. })));
        assert!(matches!(encode(&[9u8; 100].as_slice(), 10), Err(CodecError::TooLong { .. })));
    }

    #[test]
    fn a_name_from_the_wire_is_checked() {
        assert!(decode::<Name>(&[3, b'a', b'/', b'b'], 64).is_err());
        assert!(decode::<Name>(&[2, b'.', b'.'], 64).is_err());
    }
}
