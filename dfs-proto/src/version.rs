//! Versions: (epoch, counter) pairs of one volume, compared for equality by clients and for order
//! only by the owner that makes them.
//!
//! The epoch is raised and made durable at every start of the volume's owner, before anything is
//! handed out. So a pair handed out before a crash is never handed out again with another meaning,
//! and handing one out costs no disk sync.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How often a volume's owner has started (or the volume has changed hands).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of the next owner.
    pub fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("fewer than 2^32 starts of one owner"))
    }
}

macro_rules! versions {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        pub struct $name {
            pub epoch: Epoch,
            pub counter: u64,
        }

        impl $name {
            pub const fn new(epoch: Epoch, counter: u64) -> $name {
                $name { epoch, counter }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}.{}", self.epoch.0, self.counter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}

versions! {
    /// Position of a commit in its volume's history. Replies carry the one they describe.
    Sequence;
    /// The content of a file: the sequence of the commit that made it.
    DataVersion;
    /// The entries of a directory and the attributes and content of its children.
    DirVersion;
    /// Grows with every grant of a file's write lock; a commit with an older one is refused.
    FencingToken;
}

impl From<Sequence> for DataVersion {
    fn from(sequence: Sequence) -> DataVersion {
        DataVersion::new(sequence.epoch, sequence.counter)
    }
}

impl From<Sequence> for DirVersion {
    fn from(sequence: Sequence) -> DirVersion {
        DirVersion::new(sequence.epoch, sequence.counter)
    }
}

impl Sequence {
    /// The sequence of the next commit of the same owner.
    pub fn next(self) -> Sequence {
        Sequence::new(self.epoch, self.counter + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_epoch_is_newer_than_any_counter_of_an_older_one() {
        assert!(FencingToken::new(Epoch(2), 0) > FencingToken::new(Epoch(1), u64::MAX));
    }
}
