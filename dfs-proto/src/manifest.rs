//! Manifests: the content of one version of a file, as chunks and holes in order.

use serde::{Deserialize, Serialize};
use std::collections::HashSet;

use crate::chunk::ChunkHash;
use crate::codec;
use crate::error::FsError;
use crate::limits::{CHUNK_BYTES_MAX, HEAD_BYTES_MAX, MANIFEST_EXTENTS_MAX};

/// One stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// `length` bytes (1..=[`CHUNK_BYTES_MAX`]) with this hash.
    Chunk { hash: ChunkHash, length: u32 },
    /// `length` zero bytes (1 and up) that are stored nowhere.
    Hole { length: u64 },
}

impl Extent {
    /// Units: bytes.
    pub fn length(&self) -> u64 {
        match *self {
            Extent::Chunk { length, .. } => u64::from(length),
            Extent::Hole { length } => length,
        }
    }
}

/// The whole content of a file version.
///
/// Shape: at most [`MANIFEST_EXTENTS_MAX`] extents, none empty; their lengths add up without
/// overflow. [`Manifest::parse`] proves it; a manifest from the wire is not to be used before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub extents: Vec<Extent>,
}

impl Manifest {
    /// Checks what outside bytes may break.
    ///
    /// # Errors
    /// [`FsError::Malformed`] names the first extent that is not possible.
    pub fn parse(self) -> Result<Manifest, FsError> {
        if self.extents.len() > MANIFEST_EXTENTS_MAX {
            let limit_bytes = MANIFEST_EXTENTS_MAX as u64;
            return Err(FsError::TooLarge { what: "manifest extents".into(), limit: limit_bytes });
        }
        let mut size: u64 = 0;
        for (index, extent) in self.extents.iter().enumerate() {
            let impossible = match *extent {
                Extent::Chunk { length, .. } => length == 0 || length > CHUNK_BYTES_MAX,
                Extent::Hole { length } => length == 0,
            };
            let sum = size.checked_add(extent.length()).filter(|sum| *sum <= i64::MAX as u64);
            match (impossible, sum) {
                (false, Some(sum)) => size = sum,
                _ => return Err(FsError::malformed(format!("manifest extent {index}"))),
            }
        }
        Ok(self)
    }

    /// Size of the file. Units: bytes.
    pub fn size(&self) -> u64 {
        self.extents.iter().map(Extent::length).sum()
    }

    /// Bytes in chunks. Units: bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks().map(|chunk| u64::from(chunk.length)).sum()
    }

    /// The chunks with their places, in file order (a chunk may come more than once).
    pub fn chunks(&self) -> impl Iterator<Item = ChunkAt> + '_ {
        let mut offset = 0;
        self.extents.iter().filter_map(move |extent| {
            let start = offset;
            offset += extent.length();
            match *extent {
                Extent::Chunk { hash, length } => Some(ChunkAt { offset: start, hash, length }),
                Extent::Hole { .. } => None,
            }
        })
    }

    /// The distinct chunk hashes.
    pub fn hashes(&self) -> HashSet<ChunkHash> {
        self.chunks().map(|chunk| chunk.hash).collect()
    }

    /// Names the whole content: SHA-256 of the encoded manifest.
    pub fn hash(&self) -> ChunkHash {
        let bytes = codec::encode(self, HEAD_BYTES_MAX).expect("a parsed manifest fits a head");
        ChunkHash::of(&bytes)
    }
}

/// A chunk at its place in a file.
///
/// Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAt {
    pub offset: u64,
    pub hash: ChunkHash,
    pub length: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(length: u32) -> Extent {
        Extent::Chunk { hash: ChunkHash::of(&length.to_le_bytes()), length }
    }

    #[test]
    fn chunks_carry_their_offsets_across_holes() {
        let extents = vec![chunk(5), Extent::Hole { length: 1 << 40 }, chunk(7)];
        let manifest = Manifest { extents }.parse().unwrap();
        let offsets: Vec<u64> = manifest.chunks().map(|chunk| chunk.offset).collect();
        assert_eq!(offsets, [0, 5 + (1 << 40)]);
        assert_eq!(manifest.size(), 12 + (1 << 40));
        assert_eq!(manifest.stored_bytes(), 12);
    }

    #[test]
    fn impossible_manifests_are_refused() {
        for extents in [
            vec![chunk(0)],
            vec![chunk(CHUNK_BYTES_MAX + 1)],
            vec![Extent::Hole { length: 0 }],
            vec![Extent::Hole { length: u64::MAX }, Extent::Hole { length: 2 }],
            vec![Extent::Hole { length: i64::MAX as u64 }, chunk(1)],
            vec![chunk(1); MANIFEST_EXTENTS_MAX + 1],
        ] {
            assert!(Manifest { extents }.parse().is_err());
        }
    }

    #[test]
    fn the_largest_manifest_fits_a_message() {
        let manifest = Manifest { extents: vec![chunk(CHUNK_BYTES_MAX); MANIFEST_EXTENTS_MAX] };
        let bytes = codec::encode(&manifest.parse().unwrap(), HEAD_BYTES_MAX).unwrap();
        assert!(bytes.len() < HEAD_BYTES_MAX * 3 / 4, "{} bytes", bytes.len());
    }
}
