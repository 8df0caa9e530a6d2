//! What a closure sees and changes: the rows of one space at one moment.
//!
//! A [`Txn`] lays the closure's own changes over those of the batch before it over the published
//! rows; a [`ReadTxn`] sees published rows only. `Txn` derefs to `ReadTxn`, so a function that
//! takes `&mut ReadTxn` serves both.
//!
//! A closure that was told of a missing row is run again, whatever it made of that.

use std::any::type_name;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use dfs_proto::FsError;
use dfs_proto::version::Sequence;

use super::record::{AnyRow, decode_any, downcast};
use super::rows::{Changes, Published, Row, Rows, Wanted};
use super::watch::Change;
use super::{Abort, Key, KeyBytes, Record, Space, internal, key};

/// A consistent view of a space's rows.
pub struct ReadTxn<'a> {
    space: Space,
    source: Source<'a>,
    batch: Option<&'a Changes>,
    own: Changes,
    sequence: Sequence,
    wanted: Vec<Wanted>,
    is_missed: bool,
}

/// A view of a space's rows that can be changed.
pub struct Txn<'a> {
    view: ReadTxn<'a>,
    new_ranges: Vec<KeyBytes>,
}

/// What a closure did.
#[derive(Default)]
pub(crate) struct Made {
    pub changes: Changes,
    /// The same rows with those before, for a watch.
    pub told: Vec<Change>,
    /// Ranges that had no row before this.
    pub new_ranges: Vec<KeyBytes>,
}

enum Source<'a> {
    /// One state, held by its reader.
    Published(&'a Published),
    /// The writer's: nobody else publishes, so it needs no lock between two rows.
    Cache(&'a Rows),
}

/// How a closure ended.
pub(crate) enum Ended<T> {
    Done(T),
    Failed(FsError),
    /// Shape: at least one row.
    Missed(Vec<Wanted>),
}

#[derive(Debug, thiserror::Error)]
enum Misuse {
    #[error("a closure ended with a miss and names no row")]
    EmptyMiss,
    #[error("key {key} is not one of {space}")]
    ForeignKey { key: String, space: Space },
}

impl<'a> ReadTxn<'a> {
    pub(crate) fn published(
        space: Space,
        published: &'a Published,
        sequence: Sequence,
    ) -> ReadTxn<'a> {
        ReadTxn::new(space, Source::Published(published), sequence)
    }

    fn new(space: Space, source: Source<'a>, sequence: Sequence) -> ReadTxn<'a> {
        ReadTxn {
            space,
            source,
            batch: None,
            own: Changes::new(),
            sequence,
            wanted: Vec::new(),
            is_missed: false,
        }
    }

    /// The row of `key`, or `None` if there is none.
    ///
    /// # Errors
    /// `Miss` if it is not in memory; `Fail` if it is another type's row or another space's.
    pub fn get<R: Record>(&mut self, key: &Key<R>) -> Result<Option<Arc<R>>, Abort> {
        self.check(key)?;
        let Some(row) = self.find(key.bytes()) else {
            self.is_missed = true;
            self.miss(key);
            return Err(Abort::Miss);
        };
        row.as_ref().map(|row| typed(key, row)).transpose()
    }

    /// The rows of several keys, in their order; one miss loads all that are absent.
    pub fn get_all<R: Record>(&mut self, keys: &[Key<R>]) -> Result<Vec<Option<Arc<R>>>, Abort> {
        keys.iter().for_each(|key| self.want(key));
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Says that the closure will get `key`: if it ends with a miss, this row is loaded too.
    pub fn want<R: Record>(&mut self, key: &Key<R>) {
        if self.find(key.bytes()).is_none() {
            self.miss(key);
        }
    }

    /// The row that `key` had before it was removed, if that was lately and it was in memory. For
    /// those who learned of it before. Nothing may rest on it being there or not.
    ///
    /// # Errors
    /// `Fail` as [`ReadTxn::get`].
    pub fn get_removed<R: Record>(&mut self, key: &Key<R>) -> Result<Option<Arc<R>>, Abort> {
        self.check(key)?;
        let row = match self.source {
            Source::Published(published) => published.find_removed(key.bytes()),
            Source::Cache(rows) => rows.find_removed(key.bytes()),
        };
        row.as_ref().map(|row| typed(key, row)).transpose()
    }

    /// In a write, the sequence of this mutation if it changes anything; in a read, that of the
    /// last commit in the state it sees.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    pub fn space(&self) -> Space {
        self.space
    }

    fn check<R>(&self, key: &Key<R>) -> Result<(), Abort> {
        if key::space_of(key.bytes()) == Some(self.space) {
            return Ok(());
        }
        let fault = Misuse::ForeignKey { key: key::hex(key.bytes()), space: self.space };
        Err(Abort::Fail(internal("read a row", &fault)))
    }

    fn find(&self, key: &[u8]) -> Option<Row> {
        let changed = self.own.get(key).or_else(|| self.batch.and_then(|batch| batch.get(key)));
        if let Some(row) = changed {
            return Some(row.clone());
        }
        match self.source {
            Source::Published(published) => published.find(key),
            Source::Cache(rows) => rows.find(key),
        }
    }

    fn miss<R: Record>(&mut self, key: &Key<R>) {
        if self.wanted.iter().any(|want| want.key == *key.bytes()) {
            return;
        }
        self.wanted.push(Wanted { key: key.bytes().clone(), decode: decode_any::<R> });
    }

    /// What became of the closure that had this view and ended with `result`.
    pub(crate) fn end<T>(self, result: Result<T, Abort>) -> Ended<T> {
        match result {
            // A result built without the missing row, say by `if let Ok(..)`, is worth nothing.
            _ if self.is_missed => Ended::Missed(self.wanted),
            Err(Abort::Miss) if self.wanted.is_empty() => {
                Ended::Failed(internal("run a closure", &Misuse::EmptyMiss))
            }
            Err(Abort::Miss) => Ended::Missed(self.wanted),
            Err(Abort::Fail(error)) => Ended::Failed(error),
            Ok(value) => Ended::Done(value),
        }
    }
}

fn typed<R: Record>(key: &Key<R>, row: &Arc<dyn AnyRow>) -> Result<Arc<R>, Abort> {
    downcast(row).map_err(|fault| {
        let doing = format!("read row {} as {}", key::hex(key.bytes()), type_name::<R>());
        Abort::Fail(internal(&doing, &fault))
    })
}

impl<'a> Txn<'a> {
    pub(crate) fn new(
        space: Space,
        rows: &'a Rows,
        batch: &'a Changes,
        sequence: Sequence,
    ) -> Txn<'a> {
        let view = ReadTxn::new(space, Source::Cache(rows), sequence);
        Txn { view: ReadTxn { batch: Some(batch), ..view }, new_ranges: Vec::new() }
    }

    /// Makes `row` the row of `key`.
    ///
    /// # Panics
    /// If the key is not of this space: the operation then fails with `Internal`.
    pub fn put<R: Record>(&mut self, key: &Key<R>, row: R) {
        self.change(key, Some(Arc::new(row)));
    }

    /// Removes the row of `key`, if there is one. Panics as [`Txn::put`].
    pub fn delete<R: Record>(&mut self, key: &Key<R>) {
        self.change(key, None);
    }

    /// Says that no row's key begins with `range`, nor ever did: from this commit on, rows that are
    /// not in memory need not be looked for, as long as all that come are.
    ///
    /// # Panics
    /// If it is no prefix of a space, a tag and one number: the operation then fails with
    /// `Internal`.
    pub fn begin_range(&mut self, range: KeyBytes) {
        let space = key::space_of(&range);
        assert_eq!((space, range.len()), (Some(self.view.space), key::RANGE_BYTES));
        self.new_ranges.push(range);
    }

    fn change<R: Record>(&mut self, key: &Key<R>, row: Option<Arc<R>>) {
        let space = key::space_of(key.bytes());
        assert_eq!(space, Some(self.view.space), "{key:?} is changed by its own space only");
        self.view.own.insert(key.bytes().clone(), row.map(|row| row as Arc<dyn AnyRow>));
    }

    /// How the closure ended, and with what changes.
    pub(crate) fn end(mut self, result: Result<(), Abort>) -> (Ended<()>, Made) {
        let changes = std::mem::take(&mut self.view.own);
        let tell = |(key, row): (&KeyBytes, &Row)| {
            Change::new(key.clone(), self.view.find(key), row.clone())
        };
        let told = changes.iter().map(tell).collect();
        (self.view.end(result), Made { changes, told, new_ranges: self.new_ranges })
    }
}

impl<'a> Deref for Txn<'a> {
    type Target = ReadTxn<'a>;

    fn deref(&self) -> &ReadTxn<'a> {
        &self.view
    }
}

impl<'a> DerefMut for Txn<'a> {
    fn deref_mut(&mut self) -> &mut ReadTxn<'a> {
        &mut self.view
    }
}

impl<T> Ended<T> {
    /// The result of a closure that reads no row.
    pub(crate) fn done(self) -> Result<T, FsError> {
        match self {
            Ended::Done(value) => Ok(value),
            Ended::Failed(error) => Err(error),
            Ended::Missed(_) => Err(internal("run a closure", &Misuse::EmptyMiss)),
        }
    }
}
