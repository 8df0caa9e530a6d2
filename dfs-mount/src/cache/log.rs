//! The cache's log: an append-only file of checksummed records, read once at start.
//!
//! Shape: a header line, then records: length of the payload (u32, little endian), the first eight
//! bytes of its SHA-256, the payload. An append is one write(2) and no fsync: the kernel keeps it
//! through a kill of this process, and what a power cut takes is noticed by checksums here and by
//! content hashes above. A record that is not right ends the log: it and what follows are cut off.
//! When most of the log is dead it is written anew beside the old one and renamed over it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::FallocateFlags;

use dfs_proto::chunk::ChunkHash;
use dfs_proto::codec::{self, CODEC_BYTES_MAX};

use super::record::Record;

/// First bytes of the file; another format gets another line.
const HEADER: &[u8] = b"dfs cache log 2\n";

const PREFIX_BYTES: usize = 4 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 8;

/// Log size below which compaction is not worth it. Units: bytes.
const COMPACT_BYTES_MIN: u64 = 1 << 20;

/// How much larger than its live records the log may be.
const DEAD_FACTOR: u64 = 4;

/// Space kept allocated behind the log's end. Units: bytes.
///
/// Why: what a full disk stops must be the writing of files, not the journal that says what became
/// of them. 1 MiB is some thousands of records.
const AHEAD_BYTES: u64 = 1 << 20;

/// The log, open for appending.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    /// Length right after the last compaction (or load): what was live then.
    live_length: u64,
    /// Up to here the file system has given space.
    allocated: u64,
}

/// What a log held.
#[derive(Debug, Default)]
pub struct Loaded {
    pub records: Vec<Record>,
    /// Bytes that were no records and are cut off. Units: bytes.
    pub cut_bytes: u64,
}

impl Log {
    /// Opens the log, made if missing, and reads it. A torn end is cut off.
    ///
    /// # Errors
    /// Those of the file system; `InvalidData` if the file is no log of this format.
    pub fn open(path: &Path) -> io::Result<(Log, Loaded)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let file_length = file.metadata()?.len();
        let (loaded, length) = load(&file, file_length)?;
        if length < HEADER.len() as u64 {
            file.set_len(0)?;
            file.write_all_at(HEADER, 0)?;
        } else if length < file_length {
            file.set_len(length)?;
        }
        let length = length.max(HEADER.len() as u64);
        let path = path.into();
        let mut log = Log { path, file, length, live_length: length, allocated: 0 };
        log.allocate_ahead();
        Ok((log, loaded))
    }

    /// Appends a record.
    ///
    /// # Errors
    /// Those of the file system; the log is then as before.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let bytes = frame(record)?;
        if let Err(error) = self.file.write_all_at(&bytes, self.length) {
            // Half a record would end the log for the next reader: what comes after it must not be
            // lost with it.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.allocate_ahead();
        Ok(())
    }

    /// Sees to it that the next appends find space, whatever fills the disk meanwhile.
    fn allocate_ahead(&mut self) {
        if self.allocated >= self.length + AHEAD_BYTES / 2 {
            return;
        }
        let (from, length) = (self.length.cast_signed(), AHEAD_BYTES.cast_signed());
        let keep_size = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(&self.file, keep_size, from, length) {
            Ok(()) => self.allocated = self.length + AHEAD_BYTES,
            // What is left of the space before still serves; without any, an append says so.
            Err(error) => tracing::debug!(%error, "no space ahead for the cache log"),
        }
    }

    pub fn is_mostly_dead(&self) -> bool {
        self.length > COMPACT_BYTES_MIN && self.length > self.live_length * DEAD_FACTOR
    }

    /// Writes the log anew with these records only.
    ///
    /// # Errors
    /// Those of the file system; the log is then as before.
    pub fn compact(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let mut writer = BufWriter::new(&file);
        writer.write_all(HEADER)?;
        let mut length = HEADER.len() as u64;
        for record in records {
            let bytes = frame(&record)?;
            writer.write_all(&bytes)?;
            length += bytes.len() as u64;
        }
        writer.flush()?;
        drop(writer);
        // Unlike an append this replaces everything, so it must be there before the rename is.
        file.sync_data()?;
        std::fs::rename(&temporary, &self.path)?;
        (self.file, self.length, self.live_length) = (file, length, length);
        self.allocated = 0;
        self.allocate_ahead();
        Ok(())
    }
}

fn frame(record: &Record) -> io::Result<Vec<u8>> {
    let payload = codec::encode(record, CODEC_BYTES_MAX)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&payload));
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, e, f, g, h, ..] = ChunkHash::of(payload).0;
    [a, b, c, d, e, f, g, h]
}

/// The records of a log, and the length of the part that is right.
fn load(file: &File, file_length: u64) -> io::Result<(Loaded, u64)> {
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut header = Vec::new();
    (&mut reader).take(HEADER.len() as u64).read_to_end(&mut header)?;
    if !HEADER.starts_with(&header) {
        let what = "cache log has another format; empty the cache directory or choose another";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if header.len() < HEADER.len() {
        return Ok((Loaded::default(), 0));
    }
    let mut loaded = Loaded::default();
    let mut length = HEADER.len() as u64;
    while let Some((record, bytes)) = next(&mut reader)? {
        loaded.records.push(record);
        length += bytes;
    }
    loaded.cut_bytes = file_length - length;
    Ok((loaded, length))
}

/// The next record and its length in the file; `None` at the end, or where it is torn.
fn next(reader: &mut impl Read) -> io::Result<Option<(Record, u64)>> {
    let mut prefix = Vec::new();
    reader.take(PREFIX_BYTES as u64).read_to_end(&mut prefix)?;
    let Some((length, sum)) = prefix.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if sum.len() < CHECKSUM_BYTES || length > CODEC_BYTES_MAX {
        return Ok(None);
    }
    let mut payload = Vec::new();
    reader.take(length as u64).read_to_end(&mut payload)?;
    if payload.len() < length || checksum(&payload) != sum {
        return Ok(None);
    }
    let record = codec::decode(&payload, CODEC_BYTES_MAX).ok();
    Ok(record.map(|record| (record, (PREFIX_BYTES + length) as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::record::EntryId;

    fn end(id: u64) -> Record {
        Record { id: EntryId(id), entry: None }
    }

    fn written(path: &Path, count: u64) -> u64 {
        let (mut log, _) = Log::open(path).unwrap();
        (0..count).for_each(|id| log.append(&end(id)).unwrap());
        log.length
    }

    #[test]
    fn what_was_appended_is_loaded_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        written(&path, 3);
        let (_, loaded) = Log::open(&path).unwrap();
        assert_eq!(loaded.records, [end(0), end(1), end(2)]);
        assert_eq!(loaded.cut_bytes, 0);
    }

    #[test]
    fn a_log_cut_anywhere_keeps_every_whole_record_before_the_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let length = written(&path, 3);
        let record_bytes = (length - HEADER.len() as u64) / 3;
        for cut in 0..length {
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let (mut log, loaded) = Log::open(&path).unwrap();
            let whole = cut.saturating_sub(HEADER.len() as u64) / record_bytes;
            assert_eq!(loaded.records.len() as u64, whole, "cut at {cut}");
            log.append(&end(9)).unwrap();
            drop(log);
            let (_, loaded) = Log::open(&path).unwrap();
            assert_eq!(loaded.records.last(), Some(&end(9)), "cut at {cut}");
            std::fs::remove_file(&path).unwrap();
            written(&path, 3);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_log_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let length = written(&path, 3);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[length as usize - 1] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (_, loaded) = Log::open(&path).unwrap();
        assert_eq!(loaded.records, [end(0), end(1)]);
        assert!(loaded.cut_bytes > 0);
    }

    #[test]
    fn compaction_keeps_what_it_is_given_and_goes_on_appending() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        written(&path, 100);
        let (mut log, _) = Log::open(&path).unwrap();
        log.compact([end(7)].into_iter()).unwrap();
        log.append(&end(8)).unwrap();
        drop(log);
        assert_eq!(Log::open(&path).unwrap().1.records, [end(7), end(8)]);
    }

    #[test]
    fn another_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, b"dfs cache log 3\nwhatever").unwrap();
        assert_eq!(Log::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read(&path).unwrap(), b"dfs cache log 3\nwhatever");
    }
}
