//! The default engine: one SQLite file. The only file that names rusqlite.
//!
//! WAL mode. With `synchronous=NORMAL` a commit is in the operating system's hands when it returns
//! and survives the death of the process; a stable one runs with `synchronous=FULL`, whose fsync
//! of the log covers all commits before it, for the log is one file and checkpoints sync it before
//! they move it. One connection writes, a few read beside it.
//!
//! Whoever opens the file holds the lock of its data directory; should two write all the same,
//! SQLite's own locks keep the file whole and the epochs the spaces.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use dfs_proto::id::NodeId;
use dfs_proto::version::Epoch;
use nix::sys::statvfs::statvfs;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction};
use rusqlite::{TransactionBehavior, params};

use super::record::Ownership;
use super::{Batch, Durability, Engine, EngineError, KeyBytes, RawRow, Space, key};

/// Marks the file as ours: "DFSM".
const APPLICATION_ID: i64 = 0x4446_534d;

/// The format of the file's tables, kept as `user_version`. Rows carry versions of their own.
const FORMAT: i64 = 1;

/// How long a statement waits for another process that has the file open (a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that read. Why: loads and scans are short, and the disk has one queue.
const READER_COUNT: usize = 4;

/// `sync` gives a stable commit something to write. SQLite skips the log, and with it the fsync,
/// if a transaction leaves every page as it was, which a batch of old values would.
const SCHEMA: &str = "
    CREATE TABLE kv (k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE sync (count INTEGER NOT NULL);
    INSERT INTO sync VALUES (0);
";

const GET: &str = "SELECT v FROM kv WHERE k = ?1";
const PUT: &str = "INSERT INTO kv (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = ?2";
const DELETE: &str = "DELETE FROM kv WHERE k = ?1";
const SCAN: &str = "SELECT k, v FROM kv WHERE k >= ?1 AND k < ?2 ORDER BY k LIMIT ?3";
const COUNT_SYNC: &str = "UPDATE sync SET count = count + 1";

/// Memory for pages of each connection. Units: KiB, negative as SQLite wants it.
const WRITER_CACHE_KIB: i64 = -32 * 1024;
const READER_CACHE_KIB: i64 = -8 * 1024;

/// Pages in the log before they are moved to the file. Why 4,000 (16 MiB): a checkpoint stalls the
/// commit that runs it, and hot pages are moved once instead of many times.
const CHECKPOINT_PAGES: i64 = 4000;

const REMEDY_DAMAGED: &str = "it is damaged or not a DFS metadata file: keep it aside and restore \
                              the last backup with `dfs-server restore`";
const REMEDY_ACCESS: &str = "check that its directory exists and that the server's user may read \
                             and write there";

/// Rows in one SQLite file.
#[derive(Debug)]
pub struct SqliteEngine {
    path: PathBuf,
    writer: Mutex<Writer>,
    readers: Readers,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    level: Durability,
}

/// Free space of the disk below which nothing new is made. Units: bytes.
///
/// Why 16 MiB, half of what chunks leave: the log grows to as much before it is moved, and rows are
/// changed and taken away by writing others.
const KEPT_BYTES: u64 = 16 << 20;

/// No more than one in so many bytes is kept, however small the disk is.
const KEPT_PART_OF_SMALL_DISK: u64 = 8;

/// Idle connections; a caller that finds none waits for one.
#[derive(Debug)]
struct Readers {
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
}

impl SqliteEngine {
    /// Opens the file, or makes it (readable by its user only).
    ///
    /// # Errors
    /// `Unusable` if it is damaged, not ours or out of reach, `NewerFormat`, `Full`; all name it.
    pub fn open(path: impl Into<PathBuf>) -> Result<SqliteEngine, EngineError> {
        let path = path.into();
        create_private(&path).map_err(|error| EngineError::Unusable {
            path: path.clone(),
            remedy: REMEDY_ACCESS,
            cause: Box::new(error),
        })?;
        let writer = open_writer(&path)?;
        let readers = (0..READER_COUNT).map(|_| open_reader(&path));
        let idle =
            readers.collect::<Result<_, _>>().map_err(|error| fault(&path, "open", error))?;
        Ok(SqliteEngine {
            path,
            writer: Mutex::new(Writer { connection: writer, level: Durability::Process }),
            readers: Readers { idle: Mutex::new(idle), returned: Condvar::new() },
        })
    }

    fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, EngineError> {
        let reader = self.readers.take();
        let result = work(&reader);
        self.readers.give_back(reader);
        result.map_err(|error| fault(&self.path, doing, error))
    }

    /// Runs `work` in a transaction and commits it.
    fn write<T>(
        &self,
        doing: &'static str,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, WriteError>,
    ) -> Result<T, EngineError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let result = writer.transact(durability, work);
        result.map_err(|error| match error {
            WriteError::Refused(error) => error,
            WriteError::Sqlite(error) => fault(&self.path, doing, error),
        })
    }
}

impl Engine for SqliteEngine {
    fn load(&self, keys: &[KeyBytes]) -> Result<Vec<Option<Vec<u8>>>, EngineError> {
        self.read("load rows", |connection| {
            let mut get = connection.prepare_cached(GET)?;
            keys.iter().map(|key| get.query_row([&key[..]], |row| row.get(0)).optional()).collect()
        })
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<RawRow>, EngineError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read("scan rows", |connection| {
            let mut scan = connection.prepare_cached(SCAN)?;
            let rows =
                scan.query_map(params![from, to, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    fn commit(&self, batch: &Batch) -> Result<(), EngineError> {
        self.write("commit a batch", batch.durability, |transaction| {
            if owner(transaction, batch.space)?.map(|owner| owner.epoch) != Some(batch.epoch) {
                let refusal = EngineError::NotOwner { space: batch.space, epoch: batch.epoch };
                return Err(WriteError::Refused(refusal));
            }
            let mut put = transaction.prepare_cached(PUT)?;
            let mut delete = transaction.prepare_cached(DELETE)?;
            for (key, value) in &batch.rows {
                match value {
                    Some(value) => put.execute(params![&key[..], value])?,
                    None => delete.execute([&key[..]])?,
                };
            }
            Ok(())
        })
    }

    fn claim(&self, space: Space, holder: NodeId) -> Result<Epoch, EngineError> {
        self.write("claim a space", Durability::Stable, |transaction| {
            let (epoch, row) = Ownership::next(owner(transaction, space)?, holder);
            let key = key::ownership(space);
            transaction.prepare_cached(PUT)?.execute(params![&key.bytes()[..], row])?;
            Ok(epoch)
        })
    }

    fn has_room(&self) -> bool {
        let Some(space) = self.path.parent().and_then(|dir| statvfs(dir).ok()) else { return true };
        let unit = space.fragment_size();
        let (total, free) = (unit * space.blocks(), unit * space.blocks_available());
        free >= KEPT_BYTES.min(total / KEPT_PART_OF_SMALL_DISK)
    }
}

impl Writer {
    fn transact<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        if self.level != durability {
            // Not a cached statement: this pragma acts when it is compiled, not when it is run.
            self.connection.pragma_update(None, "synchronous", level(durability))?;
            self.level = durability;
        }
        // Immediate: the owner that is read here is still the owner when the batch is written.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        if durability == Durability::Stable {
            transaction.prepare_cached(COUNT_SYNC)?.execute([])?;
        }
        transaction.commit()?;
        Ok(value)
    }
}

impl Readers {
    fn take(&self) -> Connection {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reader) = idle.pop() {
                return reader;
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, reader: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        self.returned.notify_one();
    }
}

enum WriteError {
    Refused(EngineError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> WriteError {
        WriteError::Sqlite(error)
    }
}

fn level(durability: Durability) -> &'static str {
    match durability {
        Durability::Process => "NORMAL",
        Durability::Stable => "FULL",
    }
}

fn owner(connection: &Connection, space: Space) -> Result<Option<Ownership>, WriteError> {
    let key = key::ownership(space);
    let mut get = connection.prepare_cached(GET)?;
    let value: Option<Vec<u8>> = get.query_row([&key.bytes()[..]], |row| row.get(0)).optional()?;
    Ownership::on_record(space, value.as_deref()).map_err(WriteError::Refused)
}

/// Makes the file before SQLite does, which would let others read it: it holds password hashes.
/// Its log gets the same mode.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn open_writer(path: &Path) -> Result<Connection, EngineError> {
    let sqlite = |error| fault(path, "open", error);
    let mut connection = connect(path, WRITER_CACHE_KIB).map_err(sqlite)?;
    // Before the mode is changed: nothing is written to a file that is not ours.
    let is_new = check_format(&connection, path)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(sqlite)?;
    if mode != "wal" {
        let cause = format!("journal mode is {mode} and cannot be changed to wal").into();
        return Err(EngineError::Failed { doing: "open its file", cause });
    }
    connection.pragma_update(None, "synchronous", level(Durability::Process)).map_err(sqlite)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(sqlite)?;
    if is_new {
        create_tables(&mut connection).map_err(sqlite)?;
    }
    Ok(connection)
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, READER_CACHE_KIB)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn connect(path: &Path, cache_kib: i64) -> rusqlite::Result<Connection> {
    // The caller's mutex or pool gives a connection to one thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", cache_kib)?;
    Ok(connection)
}

/// Whether the file is still empty.
fn check_format(connection: &Connection, path: &Path) -> Result<bool, EngineError> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    let header = || Ok((number("application_id")?, number("user_version")?, tables(connection)?));
    let (application, format, tables): (i64, i64, i64) =
        header().map_err(|error| fault(path, "open", error))?;
    if (application, format, tables) == (0, 0, 0) {
        return Ok(true);
    }
    if application != APPLICATION_ID {
        let cause = format!("application id is {application:#x}, not {APPLICATION_ID:#x}").into();
        return Err(EngineError::Unusable { path: path.into(), remedy: REMEDY_DAMAGED, cause });
    }
    if format > FORMAT {
        return Err(EngineError::NewerFormat { path: path.into(), found: format, known: FORMAT });
    }
    Ok(false)
}

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// In one transaction: a crash leaves an empty file or a whole one.
fn create_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

fn fault(path: &Path, doing: &'static str, error: rusqlite::Error) -> EngineError {
    let path = path.to_owned();
    let code = error.sqlite_error_code();
    let cause = Box::new(error);
    match code {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            EngineError::Unusable { path, remedy: REMEDY_DAMAGED, cause }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            EngineError::Unusable { path, remedy: REMEDY_ACCESS, cause }
        }
        Some(ErrorCode::DiskFull) => EngineError::Full { path, cause },
        _ => EngineError::Failed { doing, cause },
    }
}

#[cfg(test)]
mod tests;
