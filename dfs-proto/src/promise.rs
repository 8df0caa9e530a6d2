//! Callback promises: the owner's word to tell a session what changes in a directory, and breaks,
//! which tell it.
//!
//! A promise on a directory covers its own attributes, its entries and the attributes of what they
//! name. It lives as long as the session's event stream of that number and the lease that
//! heartbeats renew for that stream. PROTOCOL.md, "Coherence", has the argument.

use serde::{Deserialize, Serialize};

use crate::attr::Attr;
use crate::id::FileId;
use crate::name::Name;
use crate::version::Sequence;

/// Which of a session's event streams. A later one has a higher number, and none is used twice, not
/// after a restart of the owner either.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct StreamNumber(pub u64);

/// Which of a session's breaks; each is numbered one higher than the one before, through all of its
/// streams.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BreakNumber(pub u64);

/// What a reply promises.
///
/// Of the attributes that entries have, all but `dir_version` are covered: it is told of the
/// directory itself only, or every change would be one of all directories above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The stream that breaks of it will come on.
    pub stream: StreamNumber,
    /// The session's last break before the promise was registered.
    pub after: BreakNumber,
    /// The state that the reply describes, also if it is an error.
    pub sequence: Sequence,
    /// The directories. Shape: none twice.
    pub dirs: Vec<FileId>,
}

/// What one commit changed in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirChange {
    pub dir: FileId,
    /// The directory's own attributes after it; `None` if it was removed, or if that is cut.
    pub attr: Option<Attr>,
    /// The names whose inode, or that inode's attributes, changed: what they name now, `None` for
    /// those that are gone. Shape: none twice, at most `CHANGED_NAMES_MAX`.
    pub names: Vec<(Name, Option<Attr>)>,
    /// There is more to it than is said here: whoever holds entries of the directory drops them,
    /// and its attributes too if there are none here.
    pub is_cut: bool,
    /// The directory was made by this change: it has no entries, and it is promised to the one who
    /// made it.
    pub is_made: bool,
    pub sequence: Sequence,
}

/// Most names in one [`DirChange`]. Why: a rename changes two; only an inode with many names in one
/// directory has more.
pub const CHANGED_NAMES_MAX: usize = 16;

/// What goes with a reply beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    pub promise: Option<Promise>,
    /// What this very request changed in directories that are promised to its session: the one who
    /// changes is not sent breaks.
    pub changes: Vec<DirChange>,
}

/// What a session holds is changed, or not promised any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    pub number: BreakNumber,
    pub changes: Vec<DirChange>,
    /// Directories that are not promised from here on, because the session has not used them since
    /// it was last told of a change there. A promise registered after this break is not ended.
    pub ended: Vec<FileId>,
}

/// Most directories that one acknowledgement says were used; those left out count as not used.
///
/// Why: far more than change between two acknowledgements.
pub const USED_DIRS_MAX: usize = 4096;
