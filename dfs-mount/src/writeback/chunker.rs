//! From a file to a manifest: content-defined chunks, hashed, holes left out.
//!
//! Reads each byte once, into the very memory that is sent if the chunk is new: so hash and bytes
//! agree even while somebody writes to the file. Blocking. What is a hole is the file system's
//! word (SEEK_DATA): a run of zeros that was written is data.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::client::cut_window;
use dfs_proto::file::ChunkRef;
use dfs_proto::manifest::{Extent, Manifest};

use crate::cache::next_data;

/// Bytes read at a time. Why: several of the largest chunks, so that little is moved in memory.
const WINDOW_BYTES: usize = 4 << 20;

/// A chunk that the base version does not have.
#[derive(Clone, Debug)]
pub struct NewChunk {
    pub chunk: ChunkRef,
    pub bytes: Bytes,
}

/// Cuts and hashes a file. Chunks that are not in `known` go to `take`, each once.
///
/// # Errors
/// Those of reading; `UnexpectedEof` if the file shrank meanwhile.
pub fn scan(
    file: &File,
    mut known: HashSet<ChunkHash>,
    mut take: impl FnMut(NewChunk),
) -> io::Result<Manifest> {
    let size = file.metadata()?.len();
    let mut extents = Vec::new();
    let mut offset = 0;
    while let Some((start, end)) = next_data(file, offset)?.filter(|(start, _)| *start < size) {
        push_hole(&mut extents, start - offset);
        scan_data(file, start, end.min(size), |bytes| {
            let chunk = chunk_ref(bytes);
            extents.push(Extent::Chunk { hash: chunk.hash, length: chunk.length });
            if known.insert(chunk.hash) {
                take(NewChunk { chunk, bytes: Bytes::copy_from_slice(bytes) });
            }
        })?;
        offset = end.min(size);
    }
    push_hole(&mut extents, size - offset);
    Ok(Manifest { extents })
}

fn chunk_ref(bytes: &[u8]) -> ChunkRef {
    let length = u32::try_from(bytes.len()).expect("a chunk is no longer than CHUNK_BYTES_MAX");
    ChunkRef { hash: ChunkHash::of(bytes), length }
}

fn push_hole(extents: &mut Vec<Extent>, length: u64) {
    if length > 0 {
        extents.push(Extent::Hole { length });
    }
}

/// Cuts a stretch of data into chunks.
fn scan_data(file: &File, start: u64, end: u64, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let room = usize::try_from(end - start).map_or(WINDOW_BYTES, |bytes| bytes.min(WINDOW_BYTES));
    let mut window = vec![0; room];
    let (mut kept, mut offset) = (0, start);
    while offset < end || kept > 0 {
        let length = usize::try_from(end - offset).map_or(room, |left| left.min(room - kept));
        let filled = kept + length;
        file.read_exact_at(&mut window[kept..filled], offset)?;
        offset += length as u64;
        let used = cut_window(&window[..filled], offset == end, &mut take);
        window.copy_within(used..filled, 0);
        kept = filled - used;
    }
    Ok(())
}

/// The bytes of one chunk of a file, if they are still what the manifest says.
pub fn reread(file: &File, manifest: &Manifest, hash: ChunkHash) -> Option<NewChunk> {
    let at = manifest.chunks().find(|chunk| chunk.hash == hash)?;
    let mut bytes = vec![0; at.length as usize];
    file.read_exact_at(&mut bytes, at.offset).ok()?;
    let chunk = ChunkRef { hash, length: at.length };
    (ChunkHash::of(&bytes) == hash).then(|| NewChunk { chunk, bytes: bytes.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::limits::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};
    use fastcdc::v2020::FastCDC;

    fn file_with(pieces: &[(u64, &[u8])], size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        pieces.iter().for_each(|(offset, bytes)| file.write_all_at(bytes, *offset).unwrap());
        file.set_len(size).unwrap();
        file
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn scan_new(file: &File, known: &Manifest) -> (Manifest, Vec<NewChunk>) {
        let mut new = Vec::new();
        let manifest = scan(file, known.hashes(), |chunk| new.push(chunk)).unwrap();
        (manifest.parse().unwrap(), new)
    }

    #[test]
    fn an_empty_file_has_no_extents_and_a_small_one_is_one_chunk() {
        assert_eq!(scan_new(&file_with(&[], 0), &Manifest::default()).0, Manifest::default());
        let (manifest, new) = scan_new(&file_with(&[(0, b"hello")], 5), &Manifest::default());
        let hello = Extent::Chunk { hash: ChunkHash::of(b"hello"), length: 5 };
        assert_eq!(manifest.extents, [hello]);
        assert_eq!(&new[0].bytes[..], b"hello");
    }

    #[test]
    fn holes_stay_holes_and_written_zeros_are_data() {
        let zeros = [0; 8192];
        let file = file_with(&[(1 << 20, &zeros)], 3 << 20);
        let (manifest, new) = scan_new(&file, &Manifest::default());
        let data = Extent::Chunk { hash: ChunkHash::of(&zeros), length: 8192 };
        let tail = Extent::Hole { length: (2 << 20) - 8192 };
        assert_eq!(manifest.extents, [Extent::Hole { length: 1 << 20 }, data, tail]);
        assert_eq!(new.len(), 1);
    }

    #[test]
    fn windows_do_not_show_in_the_cuts() {
        let bytes = noise(11 << 20, 1);
        let (manifest, new) =
            scan_new(&file_with(&[(0, &bytes)], bytes.len() as u64), &Manifest::default());
        let whole: Vec<u8> = new.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
        assert!(whole == bytes);
        let [min, average, max] = [CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX];
        let direct: Vec<u64> = FastCDC::new(&bytes, min as usize, average as usize, max as usize)
            .map(|chunk| chunk.offset as u64)
            .collect();
        let ours: Vec<u64> = manifest.chunks().map(|chunk| chunk.offset).collect();
        assert_eq!(ours, direct);
    }

    #[test]
    fn a_small_edit_of_a_large_file_makes_few_new_chunks() {
        let mut bytes = noise(32 << 20, 2);
        let size = bytes.len() as u64;
        let (base, _) = scan_new(&file_with(&[(0, &bytes)], size), &Manifest::default());
        bytes[10 << 20..(10 << 20) + 4096].fill(7);
        let (_, new) = scan_new(&file_with(&[(0, &bytes)], size), &base);
        let sent: usize = new.iter().map(|chunk| chunk.bytes.len()).sum();
        assert!(sent <= 1 << 20, "{sent} bytes");
        bytes.splice(0..0, [9; 100]);
        let (_, new) = scan_new(&file_with(&[(0, &bytes)], size + 100), &base);
        let sent: usize = new.iter().map(|chunk| chunk.bytes.len()).sum();
        assert!(sent <= 2 << 20, "{sent} bytes");
    }

    #[test]
    fn a_repeated_chunk_is_sent_once() {
        let file = file_with(&[(0, &vec![7; 4 << 20])], 4 << 20);
        let (manifest, new) = scan_new(&file, &Manifest::default());
        assert!(manifest.extents.len() > new.len());
        assert_eq!(manifest.size(), 4 << 20);
    }

    #[test]
    fn a_chunk_that_changed_is_not_read_again_as_the_old_one() {
        let file = file_with(&[(0, b"hello")], 5);
        let (manifest, new) = scan_new(&file, &Manifest::default());
        let hash = new[0].chunk.hash;
        assert_eq!(reread(&file, &manifest, hash).unwrap().bytes, new[0].bytes);
        file.write_all_at(b"J", 0).unwrap();
        assert!(reread(&file, &manifest, hash).is_none());
    }
}
