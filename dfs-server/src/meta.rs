//! Metadata: an ordered key-value space behind a seam, and the one writer of each of its parts.
//!
//! The services keep their rows here. A [`Space`] is the part of the keys that one [`Store`] owns;
//! a mutation is a plain closure over a [`Txn`], run by the space's single writer together with
//! the others that wait, and handed to the [`Engine`] as one batch: a group commit. A closure works
//! on rows in memory; a row that is not there ends it with [`Abort::Miss`], is loaded, and the
//! closure runs again. So closures read no clock, draw no random numbers and do no I/O: what they
//! need of these comes in from outside.
//!
//! Promised: a batch is seen by readers whole or not at all, and only after the engine took it;
//! readers do not queue behind the writer; a failed closure changes nothing; nothing is written by
//! a store whose space has a newer owner. Not known here: what the rows mean, and when an owner
//! must stop because its lease ran out.
//!
//! Keys begin with the space (four bytes, big endian) and a tag; tag 0 of every space is the
//! layer's own: who owns it, and the sequence of its last commit.

use std::fmt;
use std::path::PathBuf;

use dfs_proto::FsError;
pub use dfs_proto::directory::Durability;
use dfs_proto::id::{NodeId, VolumeId};
use dfs_proto::version::Epoch;

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
pub mod faulty;
pub mod key;
pub mod memory;
pub mod record;
mod rows;
pub mod sqlite;
mod store;
#[cfg(test)]
mod tests;
mod txn;
pub mod watch;
pub mod writer;

pub use key::{Key, KeyBytes};
pub use record::{Record, RecordError};
pub use rows::CacheBound;
pub use store::{Scanned, Store};
pub use txn::{ReadTxn, Txn};

/// The keys that one writer owns: a volume's rows, or a service's own.
///
/// Shape: its number is the first four bytes, big endian, of each of its keys. Volumes have their
/// id, which is below `0x8000_0000`; 0 is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(pub u32);

impl Space {
    pub const AUTH: Space = Space(0x8000_0001);
    pub const LOCK: Space = Space(0x8000_0002);
    pub const CELL: Space = Space(0x8000_0003);
}

impl From<VolumeId> for Space {
    fn from(volume: VolumeId) -> Space {
        Space(volume.0)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Space::AUTH => f.write_str("auth"),
            Space::LOCK => f.write_str("lock"),
            Space::CELL => f.write_str("cell"),
            Space(number) => write!(f, "volume-{number}"),
        }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Space({self})")
    }
}

/// What one group commit changes.
#[derive(Clone, Debug)]
pub struct Batch {
    pub space: Space,
    /// The epoch in which the sender owns the space.
    pub epoch: Epoch,
    /// New values by key; `None` deletes. Shape: in the order of keys, none twice, all of `space`.
    pub rows: Vec<(KeyBytes, Option<Vec<u8>>)>,
    pub durability: Durability,
}

/// An ordered key-value store that keeps the rows: the seam between DFS and databases.
///
/// Called from writers' threads and from threads that may block. One conformance suite
/// (`meta::conformance`) runs against every implementation.
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// The values of `keys`, in their order; `None` for those that do not exist.
    fn load(&self, keys: &[KeyBytes]) -> Result<Vec<Option<Vec<u8>>>, EngineError>;

    /// Up to `limit` rows with `from <= key < to`, in the order of keys, all as of one moment.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<RawRow>, EngineError>;

    /// Applies the batch, whole or not at all, if its space is still owned in its epoch.
    ///
    /// It survives the death of the process; with [`Durability::Stable`] it and all batches before
    /// it survive power loss, even if it has no rows.
    ///
    /// # Errors
    /// `NotOwner`: nothing was applied, and this epoch will never apply anything again. Any other:
    /// the batch may or may not have been applied, but whichever it was when this returned is
    /// final; the caller reads back what it needs to know.
    fn commit(&self, batch: &Batch) -> Result<(), EngineError>;

    /// Makes `holder` the owner of `space` in the next epoch, which is returned.
    ///
    /// The epoch, and all batches before it, survive power loss before this returns.
    fn claim(&self, space: Space, holder: NodeId) -> Result<Epoch, EngineError>;

    /// Whether there is space for more rows, beside what taking rows away and changing them needs.
    fn has_room(&self) -> bool {
        true
    }
}

/// A key and its encoded row.
pub type RawRow = (Vec<u8>, Vec<u8>);

/// The cause of an engine's failure, whatever library it comes from.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Somebody else took the space over.
    #[error("{space} is not owned in epoch {} any more", epoch.0)]
    NotOwner { space: Space, epoch: Epoch },
    /// The file is damaged, not ours, or not accessible.
    #[error("metadata file {} cannot be used; {remedy}", path.display())]
    Unusable {
        path: PathBuf,
        remedy: &'static str,
        #[source]
        cause: Cause,
    },
    #[error(
        "metadata file {} has format {found}, this program knows formats up to {known}; \
         run the newer dfs-server that wrote it",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: i64, known: i64 },
    #[error("no space left for metadata file {}; free some on that disk", path.display())]
    Full {
        path: PathBuf,
        #[source]
        cause: Cause,
    },
    #[error("metadata engine failed to {doing}")]
    Failed {
        doing: &'static str,
        #[source]
        cause: Cause,
    },
    /// A row of the layer's own does not decode.
    #[error("row {key} of the metadata engine is damaged")]
    Record {
        key: String,
        #[source]
        cause: RecordError,
    },
}

impl EngineError {
    /// What the caller of an operation learns; the log has the rest under the same incident.
    pub(crate) fn report(&self, doing: &str) -> FsError {
        if let EngineError::NotOwner { space, .. } = self {
            tracing::warn!(doing, error = %Chain(self), "space was taken over");
            return moved(*space);
        }
        let incident = incident(doing, self);
        match self {
            EngineError::Full { .. } => {
                FsError::NoSpace { what: format!("the metadata disk is full ({incident})") }
            }
            _ => FsError::Internal { incident },
        }
    }
}

/// Why a closure ended without a result.
#[derive(Debug)]
pub enum Abort {
    /// A row is not in memory; it is loaded and the closure run again.
    Miss,
    /// The operation failed: none of its changes is made.
    Fail(FsError),
}

impl From<FsError> for Abort {
    fn from(error: FsError) -> Abort {
        Abort::Fail(error)
    }
}

fn moved(space: Space) -> FsError {
    FsError::unavailable(format!("this server does not own {space} any more"))
}

/// Logs what broke, and returns the id by which the log and the caller speak of it.
fn incident(doing: &str, error: &(dyn std::error::Error + 'static)) -> String {
    // Not part of any state: a simulation that replays a seed may see other ids here.
    let incident = format!("{:016x}", getrandom::u64().unwrap_or_default());
    tracing::error!(%incident, doing, error = %Chain(error), "metadata failed");
    incident
}

fn internal(doing: &str, error: &(dyn std::error::Error + 'static)) -> FsError {
    FsError::Internal { incident: incident(doing, error) }
}

/// An error with all its causes on one line.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
