//! Identifiers: newtypes, so that two numbers that mean different things cannot be exchanged.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::version::Epoch;

/// A tree with one root, one quota and one policy; the unit that has an owner.
///
/// Bounds: 1 and up. 0 is never a volume: it names a service's own rows in the metadata engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub u32);

/// An inode's number inside its volume, never handed out twice within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InodeNo(pub u64);

/// The root directory of every volume.
pub const ROOT_INODE: InodeNo = InodeNo(1);

/// Names one file for ever: volume, inode number, and the epoch in which the inode was made.
///
/// An inode number grows within an epoch and may be handed out again after a power cut took back
/// its creation; the epoch (its generation) tells the two apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    pub volume: VolumeId,
    pub inode: InodeNo,
    pub generation: Epoch,
}

impl FileId {
    pub const fn new(volume: VolumeId, inode: InodeNo, generation: Epoch) -> FileId {
        FileId { volume, inode, generation }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", self.volume.0, self.inode.0, self.generation.0)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({self})")
    }
}

/// An identifier in text form that is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not {expected}: `{text}`")]
pub struct ParseIdError {
    pub expected: &'static str,
    pub text: String,
}

fn parse_error(expected: &'static str, text: &str) -> ParseIdError {
    ParseIdError { expected, text: text.to_owned() }
}

impl FromStr for FileId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<FileId, ParseIdError> {
        let parts = || {
            let (volume, rest) = text.split_once(':')?;
            let (inode, generation) = rest.split_once('.')?;
            Some(FileId {
                volume: VolumeId(volume.parse().ok()?),
                inode: InodeNo(inode.parse().ok()?),
                generation: Epoch(generation.parse().ok()?),
            })
        };
        parts().ok_or_else(|| parse_error("a file id (VOLUME:INODE.GENERATION)", text))
    }
}

/// One server process, or one of the file nodes that live in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}", self.0)
    }
}

/// One start of a client (a mount, or one run of a command), chosen at random by the client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl FromStr for SessionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<SessionId, ParseIdError> {
        parse_hex(text).map(SessionId).ok_or_else(|| parse_error("a session id", text))
    }
}

/// Names one mutation of one client, so that a repeated request gets the first answer.
///
/// Shape: `number` starts at 1 and grows by 1 within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    pub session: SessionId,
    pub number: u64,
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.number)
    }
}

/// Reads exactly `N` bytes from lower or upper case hexadecimal digits.
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16);
        *byte = u8::try_from(nibble(pair[0])? * 16 + nibble(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_id_text_form_round_trips() {
        let fid = FileId::new(VolumeId(7), InodeNo(1 << 40), Epoch(3));
        assert_eq!(fid.to_string().parse(), Ok(fid));
    }

    #[test]
    fn broken_file_id_text_is_refused_with_the_text_in_the_message() {
        for text in ["", "1", "1:2", "1:2.", "x:2.3", "1:2.3.4", "-1:2.3"] {
            let error = text.parse::<FileId>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn hexadecimal_of_wrong_length_or_alphabet_is_refused() {
        assert_eq!(parse_hex::<2>("0aFF"), Some([0x0a, 0xff]));
        assert_eq!(parse_hex::<2>("0aF"), None);
        assert_eq!(parse_hex::<2>("0aFg"), None);
        assert_eq!(parse_hex::<1>("\u{e9}"), None);
    }
}
