//! Where chunks end: the one rule that all who store content share, so that a file written by one
//! and edited by another keeps its chunks.

use fastcdc::v2020::FastCDC;

use crate::limits::{CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

/// Cuts off the chunks whose ends are certain, and says how many bytes they take.
///
/// `window` begins where a chunk does; `is_last` says that the data ends with it.
pub fn cut_window(window: &[u8], is_last: bool, take: &mut impl FnMut(&[u8])) -> usize {
    let [min, average, max] = [CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX];
    let chunker = FastCDC::new(window, min as usize, average as usize, max as usize);
    let mut used = 0;
    // Where a chunk ends depends on up to `max` bytes: fewer are decided only at the data's end.
    while used < window.len() && (is_last || window.len() - used >= max as usize) {
        let (_, end) = chunker.cut(used, window.len() - used);
        take(&window[used..end]);
        used = end;
    }
    used
}
