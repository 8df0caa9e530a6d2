//! Chunks as files of the local file system. STORAGE.md has the layout and the crash rules.
//!
//! A chunk is written under a temporary name and renamed, so a name that exists has whole bytes
//! (after power loss without a sync perhaps not: length and hash tell). Which shard directory a
//! file's chunks are in depends on its FileId alone, so listing and syncing a file concern one
//! small directory; a shard is made when its first chunk comes, so starting a new node costs
//! nothing. (O_TMPFILE and linkat were measured and not faster, and cannot replace.)
//!
//! A chunk whose bytes are on stable storage is marked by its mode, read-only: so syncing a large
//! file again costs an open for each of its chunks, across restarts, and no memory. The mark speaks
//! of the bytes, not of the name: a hard link has its source's mark. So every sync syncs the shard
//! directory, too. The mark follows the sync, so losing it in a power cut is harmless.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::Bytes;
use nix::sys::stat::futimens;
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;

use dfs_proto::attr::Timestamp;
use dfs_proto::chunk::ChunkHash;
use dfs_proto::id::{FileId, InodeNo, VolumeId};
use dfs_proto::version::Epoch;

use super::{ChunkError, ChunkStat, ChunkStore, Space, check_hash, check_length};

/// Content of the format marker; another version of the layout has another one.
const FORMAT: &str = "dfs chunk store, version 1\n";

/// Directories that files are spread over. Why 4,096: ten million chunks make directories of some
/// 2,500 entries.
const SHARD_COUNT: u64 = 4096;

/// Mode of a chunk, and of one that survives power loss.
const MODE_WRITTEN: u32 = 0o600;
const MODE_STABLE: u32 = 0o400;

/// Threads that sync the chunks of one request. Why: the file system's journal makes syncs that
/// run at the same time share one write.
const SYNC_THREADS: usize = 8;

/// Chunks in a directory of the local file system.
#[derive(Debug)]
pub struct LocalChunkStore {
    chunks: PathBuf,
    temp: PathBuf,
    next_temp: AtomicU64,
    /// Whether the names of all shards survive power loss. Held while a shard is made or they are
    /// synced: so nobody takes for synced what another thread is only about to sync.
    are_shards_stable: Mutex<bool>,
    /// A sync has failed: the kernel may have marked pages as written that are not, so from then
    /// on a sync writes chunks anew.
    is_distrusted: AtomicBool,
}

impl LocalChunkStore {
    /// Opens the store at `directory`, which is made if it is not there. One process at a time may
    /// have it open: the caller holds the lock of the data directory.
    ///
    /// # Errors
    /// `Format` if the directory holds another version's store or something else; `Io`.
    pub fn open(directory: &Path) -> Result<LocalChunkStore, ChunkError> {
        let store = LocalChunkStore {
            chunks: directory.join("chunks"),
            temp: directory.join("tmp"),
            next_temp: AtomicU64::new(0),
            are_shards_stable: Mutex::new(false),
            is_distrusted: AtomicBool::new(false),
        };
        make_directory(directory)?;
        make_directory(&store.temp)?;
        store.clean_temp()?;
        store.check_format(directory)?;
        make_directory(&store.chunks)?;
        Ok(store)
    }

    /// The marker comes first, so chunks without one are never an interrupted first start.
    fn check_format(&self, directory: &Path) -> Result<(), ChunkError> {
        let path = directory.join("format");
        let refuse = |why: String| Err(ChunkError::Format { path: path.clone(), why });
        match fs::read(&path) {
            Ok(found) if found == FORMAT.as_bytes() => Ok(()),
            Ok(found) => refuse(format!(
                "its format marker is `{}`, this program knows `{}`",
                String::from_utf8_lossy(&found[..found.len().min(FORMAT_SHOWN)]).trim_end(),
                FORMAT.trim_end()
            )),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(ChunkError::io("read", &path, error))
            }
            Err(_) if self.chunks.exists() => refuse("there are chunks but no marker".into()),
            Err(_) => {
                let temp = self.write_temp(FORMAT.as_bytes())?;
                sync_file(&temp)?;
                rename(&temp, &path)?;
                sync_file(directory).map(drop)
            }
        }
    }

    fn make_shard(&self, fid: FileId) -> Result<(), ChunkError> {
        let mut are_shards_stable = self.lock_shards();
        *are_shards_stable = false;
        make_directory(&self.shard(fid))
    }

    fn sync_shards(&self) -> Result<(), ChunkError> {
        let mut are_shards_stable = self.lock_shards();
        if !*are_shards_stable {
            sync_file(&self.chunks)?;
            // The directory that holds `chunks`, for the first sync after the first start.
            sync_file(self.chunks.parent().unwrap_or(&self.chunks))?;
            *are_shards_stable = true;
        }
        Ok(())
    }

    fn lock_shards(&self) -> MutexGuard<'_, bool> {
        self.are_shards_stable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clean_temp(&self) -> Result<(), ChunkError> {
        let failed = |error| ChunkError::io("clean", &self.temp, error);
        for entry in fs::read_dir(&self.temp).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    fn shard(&self, fid: FileId) -> PathBuf {
        self.chunks.join(shard_name(shard_of(fid)))
    }

    fn path(&self, fid: FileId, hash: ChunkHash) -> PathBuf {
        self.shard(fid).join(file_name(fid, hash))
    }

    /// Whether the file at `path` has exactly these bytes. One that cannot be read has not.
    fn has_bytes(&self, path: &Path, bytes: &[u8]) -> bool {
        let read = || -> io::Result<bool> {
            let mut file = File::open(path)?;
            if file.metadata()?.len() != bytes.len() as u64 {
                return Ok(false);
            }
            let mut kept = vec![0; bytes.len()];
            file.read_exact(&mut kept)?;
            if kept != bytes {
                return Ok(false);
            }
            touch_file(&file)?;
            Ok(true)
        };
        read().unwrap_or(false)
    }

    fn write_temp(&self, bytes: &[u8]) -> Result<PathBuf, ChunkError> {
        let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let path = self.temp.join(number.to_string());
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(MODE_WRITTEN).open(&path)?;
            file.write_all(bytes)
        };
        match write() {
            Ok(()) => Ok(path),
            Err(error) => {
                drop_temp(&path);
                Err(ChunkError::io("write", &path, error))
            }
        }
    }

    /// Makes one chunk's bytes stable. The mark goes to the inode that was synced, not to a name
    /// that a concurrent `put` may have given to another.
    fn sync_chunk(&self, path: &Path, hash: ChunkHash) -> Result<(), ChunkError> {
        let file = File::open(path).map_err(|error| missing_or_io(path, hash, error))?;
        let metadata = file.metadata().map_err(|error| ChunkError::io("stat", path, error))?;
        if metadata.len() == 0 {
            return Err(ChunkError::Missing(hash));
        }
        if metadata.mode() & 0o777 == MODE_STABLE {
            return Ok(());
        }
        if !self.is_distrusted.load(Ordering::SeqCst) {
            match file.sync_data() {
                Ok(()) => return mark_stable(&file, path),
                Err(error) => self.distrust(path, &error),
            }
        }
        self.rewrite(path, hash)
    }

    fn distrust(&self, path: &Path, error: &io::Error) {
        if !self.is_distrusted.swap(true, Ordering::SeqCst) {
            let path = path.display();
            tracing::error!(%path, %error, "sync failed; chunks are written anew from now on");
        }
    }

    /// Writes a chunk again into pages that the kernel has not given up on, and syncs those.
    fn rewrite(&self, path: &Path, hash: ChunkHash) -> Result<(), ChunkError> {
        let bytes = fs::read(path).map_err(|error| missing_or_io(path, hash, error))?;
        check_hash(hash, &bytes)?;
        let temp = self.write_temp(&bytes)?;
        let sync = || mark_stable(&sync_file(&temp)?, &temp);
        sync().inspect_err(|_| drop_temp(&temp))?;
        rename(&temp, path)
    }
}

impl ChunkStore for LocalChunkStore {
    fn put(&self, fid: FileId, hash: ChunkHash, bytes: &[u8]) -> Result<(), ChunkError> {
        check_length(bytes)?;
        let path = self.path(fid, hash);
        if self.has_bytes(&path, bytes) {
            return Ok(());
        }
        check_hash(hash, bytes)?;
        let temp = self.write_temp(bytes)?;
        match fs::rename(&temp, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_shard(fid).inspect_err(|_| drop_temp(&temp))?;
                rename(&temp, &path)
            }
            renamed => renamed_or_dropped(&temp, &path, renamed),
        }
    }

    fn get(&self, fid: FileId, hash: ChunkHash, length: u32) -> Result<Bytes, ChunkError> {
        let path = self.path(fid, hash);
        let mut file = File::open(&path).map_err(|error| missing_or_io(&path, hash, error))?;
        let failed = |error| ChunkError::io("read", &path, error);
        // The length first: it bounds what is read, whatever lies there.
        if file.metadata().map_err(failed)?.len() != u64::from(length) {
            return Err(ChunkError::Corrupt(hash));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact(&mut bytes).map_err(failed)?;
        check_hash(hash, &bytes)?;
        Ok(bytes.into())
    }

    fn stat(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        let path = self.path(fid, hash);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(chunk_stat(&metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ChunkError::io("stat", &path, error)),
        }
    }

    fn touch(&self, fid: FileId, hash: ChunkHash) -> Result<Option<ChunkStat>, ChunkError> {
        let path = self.path(fid, hash);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ChunkError::io("open", &path, error)),
        };
        let touched = touch_file(&file).and_then(|()| file.metadata());
        touched
            .map(|metadata| chunk_stat(&metadata))
            .map_err(|error| ChunkError::io("touch", &path, error))
    }

    fn link(&self, from: FileId, to: FileId, hash: ChunkHash) -> Result<(), ChunkError> {
        let source = self.path(from, hash);
        let kept = self.stat(from, hash)?.ok_or(ChunkError::Missing(hash))?;
        self.make_shard(to)?;
        match fs::hard_link(&source, self.path(to, hash)) {
            Err(error) if !is_no_link(error.kind()) => {
                return Err(missing_or_io(&source, hash, error));
            }
            _ => {}
        }
        if self.touch(to, hash)?.is_some() {
            return Ok(());
        }
        // The source has as many links as it can have, or a power cut left an empty target.
        self.put(to, hash, &self.get(from, hash, kept.length)?)
    }

    fn delete(&self, fid: FileId, hash: ChunkHash) -> Result<bool, ChunkError> {
        let path = self.path(fid, hash);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ChunkError::io("delete", &path, error)),
        }
    }

    fn list(&self, fid: FileId) -> Result<Vec<(ChunkHash, u32)>, ChunkError> {
        let shard = self.shard(fid);
        let failed = |error| ChunkError::io("list", &shard, error);
        let entries = match fs::read_dir(&shard) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut chunks = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some((owner, hash)) = name.to_str().and_then(parse_file_name) else { continue };
            if owner != fid {
                continue;
            }
            // One that was deleted since is left out.
            if let Some(stat) = self.stat(fid, hash)? {
                chunks.push((hash, stat.length));
            }
        }
        Ok(chunks)
    }

    fn sync(&self, fid: FileId, hashes: &[ChunkHash]) -> Result<(), ChunkError> {
        if hashes.is_empty() {
            return Ok(());
        }
        let sync_part = |part: &[ChunkHash]| {
            part.iter().try_for_each(|&hash| self.sync_chunk(&self.path(fid, hash), hash))
        };
        let part_length = hashes.len().div_ceil(SYNC_THREADS);
        thread::scope(|scope| {
            let spawn = |part| scope.spawn(move || sync_part(part));
            let threads: Vec<_> = hashes.chunks(part_length).map(spawn).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().expect("syncing a chunk does not panic")
            };
            threads.into_iter().try_for_each(join)
        })?;
        sync_file(&self.shard(fid))?;
        self.sync_shards()
    }

    fn space(&self) -> Result<Space, ChunkError> {
        let stat = statvfs(&self.chunks)
            .map_err(|errno| ChunkError::io("measure", &self.chunks, errno.into()))?;
        let block_bytes = stat.fragment_size();
        Ok(Space {
            total_bytes: stat.blocks() * block_bytes,
            free_bytes: stat.blocks_available() * block_bytes,
            // File systems that make inodes as they go say 0 of 0.
            free_files: if stat.files() == 0 { u64::MAX } else { stat.files_available() },
        })
    }
}

/// How much of a foreign format marker an error message shows. Units: bytes.
const FORMAT_SHOWN: usize = 60;

/// Inodes in a row that share a shard, as a power of two. Why 256 of them: files made one after
/// another then write to one directory, and its making costs one in 256 files something.
const SHARD_RUN_BITS: u32 = 8;

/// Where a file's chunks are. Part of the layout: never to be changed within a version.
///
/// Runs of inodes are spread by Fibonacci hashing: the top bits of the product.
fn shard_of(fid: FileId) -> u64 {
    let run = fid.inode.0 >> SHARD_RUN_BITS;
    let mixed = run ^ (u64::from(fid.volume.0) << 40) ^ (u64::from(fid.generation.0) << 24);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SHARD_COUNT.ilog2())
}

fn shard_name(shard: u64) -> String {
    format!("{shard:03x}")
}

fn file_name(fid: FileId, hash: ChunkHash) -> String {
    let FileId { volume, inode, generation } = fid;
    format!("{:x}-{:x}-{:x}-{hash}", volume.0, inode.0, generation.0)
}

/// What a file in a shard is named for; `None` for what is no chunk of ours.
fn parse_file_name(name: &str) -> Option<(FileId, ChunkHash)> {
    let mut parts = name.split('-');
    let volume = VolumeId(u32::from_str_radix(parts.next()?, 16).ok()?);
    let inode = InodeNo(u64::from_str_radix(parts.next()?, 16).ok()?);
    let generation = Epoch(u32::from_str_radix(parts.next()?, 16).ok()?);
    let fid = FileId::new(volume, inode, generation);
    let hash = parts.next()?.parse().ok()?;
    // Only the one spelling that `file_name` makes: no signs, capitals or leading zeros.
    (file_name(fid, hash) == name).then_some((fid, hash))
}

fn make_directory(path: &Path) -> Result<(), ChunkError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(ChunkError::io("make directory", path, error))
        }
        _ => Ok(()),
    }
}

fn missing_or_io(path: &Path, hash: ChunkHash, error: io::Error) -> ChunkError {
    match error.kind() {
        ErrorKind::NotFound => ChunkError::Missing(hash),
        _ => ChunkError::io("open", path, error),
    }
}

/// `None` for an empty file: it is what a power cut may leave of a chunk, not a chunk.
fn chunk_stat(metadata: &fs::Metadata) -> Option<ChunkStat> {
    let length = u32::try_from(metadata.len()).ok().filter(|length| *length > 0)?;
    let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    Some(ChunkStat { length, touched: Timestamp::new(metadata.mtime(), nanos) })
}

fn touch_file(file: &File) -> io::Result<()> {
    Ok(futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?)
}

/// Whether a hard link was not made because there is one or there are too many.
fn is_no_link(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::AlreadyExists | ErrorKind::TooManyLinks)
}

fn mark_stable(file: &File, path: &Path) -> Result<(), ChunkError> {
    let mode = Permissions::from_mode(MODE_STABLE);
    file.set_permissions(mode).map_err(|error| ChunkError::io("mark", path, error))
}

/// Syncs a file or a directory, and returns it open.
fn sync_file(path: &Path) -> Result<File, ChunkError> {
    let sync = || {
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(file)
    };
    sync().map_err(|error| ChunkError::io("sync", path, error))
}

/// Moves a temporary file to its name, or removes it.
fn rename(temp: &Path, path: &Path) -> Result<(), ChunkError> {
    renamed_or_dropped(temp, path, fs::rename(temp, path))
}

fn renamed_or_dropped(temp: &Path, path: &Path, renamed: io::Result<()>) -> Result<(), ChunkError> {
    renamed.map_err(|error| {
        drop_temp(temp);
        ChunkError::io("rename to", path, error)
    })
}

fn drop_temp(path: &Path) {
    // What cannot be removed is removed at the next start.
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests;
