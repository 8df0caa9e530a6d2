//! Rows as bytes: a version byte, then the row as the codec writes it.
//!
//! A row type that changes its shape becomes a new type with the next `VERSION`; the old type stays
//! and knows how to read itself, and the new one says how it comes from the old:
//!
//! ```ignore
//! impl Record for Inode {
//!     const VERSION: u8 = 2;
//!     fn from_older(version: u8, body: &[u8]) -> Result<Inode, RecordError> {
//!         from_previous::<InodeV1, Inode>(version, body)
//!     }
//! }
//! ```
//!
//! So a row of any age is read through a chain of small steps, and written in the newest shape when
//! it is next changed. Bytes of a newer version than the program's are refused, never guessed at.

use std::any::{Any, type_name};
use std::sync::Arc;

use dfs_proto::codec::{self, CodecError};
use dfs_proto::id::NodeId;
use dfs_proto::version::{Epoch, Sequence};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{EngineError, Space, key};

/// Longest encoded row. Units: bytes.
///
/// Why 8 MiB: a manifest that came in one request (`HEAD_BYTES_MAX`) and its inode fit twice.
pub const ROW_BYTES_MAX: usize = 8 << 20;

/// A type whose values are rows.
pub trait Record: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Shape: 1 and up, one more with every change of the encoded form.
    const VERSION: u8;

    /// Reads a row that was written as `version`, which is below [`Record::VERSION`].
    fn from_older(version: u8, _body: &[u8]) -> Result<Self, RecordError> {
        Err(RecordError::UnknownVersion { row: type_name::<Self>(), version })
    }
}

/// Why bytes are not the row they should be.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{row} has no bytes")]
    Empty { row: &'static str },
    #[error("{row} has version {version}, which this program does not know")]
    UnknownVersion { row: &'static str, version: u8 },
    #[error("{row} does not encode or decode")]
    Codec {
        row: &'static str,
        #[source]
        cause: CodecError,
    },
    #[error("row is a {found}, not a {expected}")]
    WrongType { found: &'static str, expected: &'static str },
}

impl RecordError {
    fn codec<R>(cause: CodecError) -> RecordError {
        RecordError::Codec { row: type_name::<R>(), cause }
    }
}

/// The bytes of a row.
///
/// # Errors
/// `Codec` if the row does not fit [`ROW_BYTES_MAX`].
pub fn encode<R: Record>(row: &R) -> Result<Vec<u8>, RecordError> {
    // The codec writes a u8 as the byte it is, so this is the version followed by the row.
    codec::encode(&(R::VERSION, row), ROW_BYTES_MAX).map_err(RecordError::codec::<R>)
}

/// The row that `bytes` are, brought to the newest shape.
pub fn decode<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    let (version, body) =
        bytes.split_first().ok_or(RecordError::Empty { row: type_name::<R>() })?;
    decode_body(*version, body)
}

/// One step of the chain: reads the row as its previous type `P`, however old it is.
pub fn from_previous<P: Record, R: From<P>>(version: u8, body: &[u8]) -> Result<R, RecordError> {
    decode_body::<P>(version, body).map(R::from)
}

fn decode_body<R: Record>(version: u8, body: &[u8]) -> Result<R, RecordError> {
    if version == R::VERSION {
        return codec::decode(body, ROW_BYTES_MAX).map_err(RecordError::codec::<R>);
    }
    if version > R::VERSION {
        return Err(RecordError::UnknownVersion { row: type_name::<R>(), version });
    }
    R::from_older(version, body)
}

/// A row whose type only its readers know.
pub(crate) trait AnyRow: Send + Sync {
    fn encode(&self) -> Result<Vec<u8>, RecordError>;
    fn type_name(&self) -> &'static str;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<R: Record> AnyRow for R {
    fn encode(&self) -> Result<Vec<u8>, RecordError> {
        encode(self)
    }

    fn type_name(&self) -> &'static str {
        type_name::<R>()
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// How the bytes of one key become a row.
pub(crate) type Decode = fn(&[u8]) -> Result<Arc<dyn AnyRow>, RecordError>;

pub(crate) fn decode_any<R: Record>(bytes: &[u8]) -> Result<Arc<dyn AnyRow>, RecordError> {
    Ok(Arc::new(decode::<R>(bytes)?))
}

/// The row as the type that it is read as.
pub(crate) fn downcast<R: Record>(row: &Arc<dyn AnyRow>) -> Result<Arc<R>, RecordError> {
    // Through the box, or the blanket implementation would answer for the `Arc` itself.
    let found = row.as_ref().type_name();
    row.clone()
        .into_any()
        .downcast()
        .map_err(|_| RecordError::WrongType { found, expected: type_name::<R>() })
}

/// Who owns a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ownership {
    pub epoch: Epoch,
    pub holder: NodeId,
}

impl Record for Ownership {
    const VERSION: u8 = 1;
}

impl Ownership {
    /// The owner that an engine has on record, if the space was ever owned.
    pub fn on_record(space: Space, value: Option<&[u8]>) -> Result<Option<Ownership>, EngineError> {
        value.map(decode::<Ownership>).transpose().map_err(|cause| {
            let key = key::hex(key::ownership(space).bytes());
            EngineError::Record { key, cause }
        })
    }

    /// The epoch that follows the one on record, and the row that says who holds it.
    pub fn next(last: Option<Ownership>, holder: NodeId) -> (Epoch, Vec<u8>) {
        let epoch = last.map_or(Epoch(0), |owner| owner.epoch).next();
        let row = encode(&Ownership { epoch, holder }).expect("a small row encodes");
        (epoch, row)
    }
}

/// What a space's writer knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreState {
    /// Of the last commit that changed something.
    pub sequence: Sequence,
}

impl Record for StoreState {
    const VERSION: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct First(u8);
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Second(String);
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Third {
        text: String,
        length: u32,
    }

    impl Record for First {
        const VERSION: u8 = 1;
    }

    impl From<First> for Second {
        fn from(row: First) -> Second {
            Second(row.0.to_string())
        }
    }

    impl Record for Second {
        const VERSION: u8 = 2;
        fn from_older(version: u8, body: &[u8]) -> Result<Second, RecordError> {
            from_previous::<First, Second>(version, body)
        }
    }

    impl From<Second> for Third {
        fn from(row: Second) -> Third {
            Third { length: u32::try_from(row.0.len()).unwrap(), text: row.0 }
        }
    }

    impl Record for Third {
        const VERSION: u8 = 3;
        fn from_older(version: u8, body: &[u8]) -> Result<Third, RecordError> {
            from_previous::<Second, Third>(version, body)
        }
    }

    #[test]
    fn golden_bytes_do_not_move() {
        let owner = Ownership { epoch: Epoch(300), holder: NodeId(3) };
        assert_eq!(encode(&owner).unwrap(), [1, 251, 44, 1, 3]);
        let state = StoreState { sequence: Sequence::new(Epoch(2), 9) };
        assert_eq!(encode(&state).unwrap(), [1, 2, 9]);
    }

    #[test]
    fn a_row_of_any_age_is_read_in_the_newest_shape() {
        let newest = Third { text: "42".into(), length: 2 };
        for old in [
            encode(&First(42)).unwrap(),
            encode(&Second("42".into())).unwrap(),
            encode(&newest).unwrap(),
        ] {
            assert_eq!(decode::<Third>(&old).unwrap(), newest);
        }
    }

    #[test]
    fn a_newer_unknown_or_empty_row_is_refused() {
        let newer = encode(&Third { text: String::new(), length: 0 }).unwrap();
        let error = decode::<Second>(&newer).unwrap_err();
        assert!(matches!(error, RecordError::UnknownVersion { version: 3, .. }), "{error}");
        let older = decode::<First>(&[0, 1]).unwrap_err();
        assert!(matches!(older, RecordError::UnknownVersion { version: 0, .. }), "{older}");
        assert!(matches!(decode::<First>(&[]), Err(RecordError::Empty { .. })));
        assert!(matches!(decode::<First>(&[1, 2, 3]), Err(RecordError::Codec { .. })));
    }

    #[test]
    fn a_row_read_as_another_type_is_an_error_that_names_both() {
        let row: Arc<dyn AnyRow> = Arc::new(First(1));
        assert_eq!(*downcast::<First>(&row).unwrap(), First(1));
        let error = downcast::<Second>(&row).unwrap_err().to_string();
        assert!(error.contains("First") && error.contains("Second"), "{error}");
    }

    #[test]
    fn a_row_over_the_limit_does_not_encode() {
        assert!(encode(&Second("x".repeat(ROW_BYTES_MAX))).is_err());
    }
}
