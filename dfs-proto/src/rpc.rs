//! How a request looks: the `Rpc` trait, the envelope, and the frame both travel in.
//!
//! A request is an HTTP POST to `/dfs/PATH`. Its body is one frame: the length of the head (u32,
//! little endian), the head (envelope and request, encoded together), and the payload: bytes that
//! do not pass through the codec, such as chunks. A reply has the same shape; its head is what goes
//! beside it ([`News`]) and `Result<Reply, FsError>`. A stream is a sequence of frames without
//! payload.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::credential::{Identity, Ticket};
use crate::error::FsError;
use crate::id::{OpId, SessionId};
use crate::limits::HEAD_BYTES_MAX;
use crate::promise::{News, StreamNumber};

/// Version of everything in this crate that crosses a wire.
pub const PROTOCOL_VERSION: u16 = 1;

/// Who may call an operation; checked before its handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody who reaches the server.
    Public,
    /// Bearers of a valid ticket, and nodes of the cell.
    User,
    /// Bearers of a ticket with administrator's right.
    Admin,
    /// Nodes of the cell that prove a role by their certificate.
    Node,
}

/// An operation: the request type, where it goes, and what comes back.
pub trait Rpc: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `service.operation`, unique in the protocol.
    const PATH: &'static str;
    const ACCESS: Access;
    /// Whether it carries an op id and is run once however often it is sent.
    const MUTATES: bool = false;
    /// Whether it may change what directories hold.
    const CHANGES: bool = Self::MUTATES;
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// An operation that answers with a stream of items until either side ends it.
pub trait StreamRpc: Serialize + DeserializeOwned + Send + Sync + 'static {
    const PATH: &'static str;
    const ACCESS: Access;
    type Item: Serialize + DeserializeOwned + Send + 'static;
}

/// What every request says beside itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    pub version: u16,
    pub ticket: Option<Ticket>,
    /// The local user for whom the request is made; believed from machine tickets only.
    pub caller: Option<Identity>,
    pub session: Option<SessionId>,
    /// The event stream on which the client is told of changes; what a mutation changed is told in
    /// its reply to a client that still has this stream, else by a break. A file node names the
    /// stream of the client for which it commits.
    pub stream: Option<StreamNumber>,
    /// Present exactly if the operation mutates.
    pub op: Option<OpId>,
    /// The client's lowest op number without an answer: its watermark.
    pub lowest_unanswered: u64,
    /// How long the caller waits. Units: milliseconds from the arrival of the request.
    pub deadline_ms: u32,
}

impl Default for Envelope {
    fn default() -> Envelope {
        Envelope {
            version: PROTOCOL_VERSION,
            ticket: None,
            caller: None,
            session: None,
            stream: None,
            op: None,
            lowest_unanswered: 0,
            deadline_ms: 30_000,
        }
    }
}

/// What of an envelope every version of the protocol can read: its first field.
#[derive(Deserialize)]
struct VersionOnly {
    version: u16,
}

/// Where requests go: this and the operation's path.
pub const URL_PREFIX: &str = "/dfs/";

/// Content type of every frame.
pub const CONTENT_TYPE: &str = "application/x-dfs";

/// Bytes of a frame before its head.
pub const FRAME_PREFIX_BYTES: usize = 4;

/// Builds the prefix and head of a request.
///
/// # Errors
/// [`CodecError::TooLong`] if the request does not fit a head.
pub fn encode_request<R: Serialize>(envelope: &Envelope, request: &R) -> Result<Bytes, CodecError> {
    frame(&codec::encode(&(envelope, request), HEAD_BYTES_MAX)?)
}

/// Builds the prefix and head of a reply without news, or of a stream's item.
///
/// # Errors
/// [`CodecError::TooLong`] if the reply does not fit a head.
pub fn encode_reply<T: Serialize>(reply: &Result<T, FsError>) -> Result<Bytes, CodecError> {
    encode_reply_with(&News::default(), reply)
}

/// Builds the prefix and head of a reply.
///
/// # Errors
/// [`CodecError::TooLong`] if the two do not fit a head.
pub fn encode_reply_with<T: Serialize>(
    news: &News,
    reply: &Result<T, FsError>,
) -> Result<Bytes, CodecError> {
    frame(&codec::encode(&(news, reply), HEAD_BYTES_MAX)?)
}

/// Reads the head of a reply, or of a stream's item.
///
/// # Errors
/// [`FsError::Malformed`] if the bytes are not such a reply.
pub fn decode_reply<T: DeserializeOwned>(
    head: &[u8],
) -> Result<(News, Result<T, FsError>), FsError> {
    codec::decode(head, HEAD_BYTES_MAX)
        .map_err(|error| FsError::malformed(format!("reply: {error}")))
}

fn frame(head: &[u8]) -> Result<Bytes, CodecError> {
    let too_long = CodecError::TooLong { length: head.len(), limit: HEAD_BYTES_MAX };
    let length = u32::try_from(head.len()).map_err(|_| too_long)?;
    let mut bytes = BytesMut::with_capacity(FRAME_PREFIX_BYTES + head.len());
    bytes.put_u32_le(length);
    bytes.extend_from_slice(head);
    Ok(bytes.freeze())
}

/// Splits a whole body into head and payload.
///
/// # Errors
/// [`FsError::Malformed`] if it is shorter than it says; [`FsError::TooLarge`] if its head is over
/// the limit.
pub fn split_frame(mut body: Bytes) -> Result<(Bytes, Bytes), FsError> {
    let length = head_length(&body)?.ok_or_else(|| FsError::malformed("frame has no head"))?;
    if body.len() < FRAME_PREFIX_BYTES + length {
        return Err(FsError::malformed("frame is shorter than its head"));
    }
    let payload = body.split_off(FRAME_PREFIX_BYTES + length);
    Ok((body.slice(FRAME_PREFIX_BYTES..), payload))
}

/// The length of the head that `bytes` begin with; `None` if the prefix is not complete yet.
///
/// # Errors
/// [`FsError::TooLarge`] if it is over the limit.
pub fn head_length(bytes: &[u8]) -> Result<Option<usize>, FsError> {
    let Some(prefix) = bytes.first_chunk::<FRAME_PREFIX_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > HEAD_BYTES_MAX {
        return Err(FsError::TooLarge {
            what: "message head".into(),
            limit: HEAD_BYTES_MAX as u64,
        });
    }
    Ok(Some(length))
}

/// Reads a request's head.
///
/// # Errors
/// [`FsError::VersionMismatch`] if the sender speaks another version, [`FsError::Malformed`] if
/// the bytes are not such a request.
pub fn decode_request<R: DeserializeOwned>(head: &[u8]) -> Result<(Envelope, R), FsError> {
    check_version(head)?;
    codec::decode(head, HEAD_BYTES_MAX).map_err(|error| FsError::malformed(error.to_string()))
}

/// The envelope of a request of which only the front has come.
///
/// # Errors
/// As [`decode_request`]; [`FsError::Malformed`] also if the envelope is not whole yet.
pub fn envelope_in_front(body: &[u8]) -> Result<Envelope, FsError> {
    let length = head_length(body)?.ok_or_else(|| FsError::malformed("frame has no head"))?;
    let head = &body[FRAME_PREFIX_BYTES..];
    let head = &head[..head.len().min(length)];
    check_version(head)?;
    codec::decode_front(head).map_err(|error| FsError::malformed(error.to_string()))
}

fn check_version(head: &[u8]) -> Result<(), FsError> {
    // The version is the first field: the shortest prefix that decodes tells it.
    for end in 1..=head.len().min(3) {
        if let Ok(VersionOnly { version }) = codec::decode(&head[..end], HEAD_BYTES_MAX) {
            if version == PROTOCOL_VERSION {
                return Ok(());
            }
            return Err(FsError::VersionMismatch { server: PROTOCOL_VERSION, client: version });
        }
    }
    Err(FsError::malformed("request has no protocol version"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{FileId, InodeNo, VolumeId};
    use crate::name::Name;
    use crate::promise::{BreakNumber, DirChange, Promise, StreamNumber};
    use crate::version::{Epoch, Sequence};

    #[test]
    fn a_request_comes_back_with_envelope_and_payload() {
        let envelope = Envelope { deadline_ms: 77, ..Envelope::default() };
        let mut body = BytesMut::from(&encode_request(&envelope, &"hello").unwrap()[..]);
        body.extend_from_slice(b"payload");
        let (head, payload) = split_frame(body.freeze()).unwrap();
        let (back, request): (Envelope, String) = decode_request(&head).unwrap();
        assert_eq!((back.deadline_ms, request.as_str()), (77, "hello"));
        assert_eq!(&payload[..], b"payload");
    }

    #[test]
    fn another_protocol_version_is_told_both_versions() {
        for version in [0, 2, 250, 251, 40_000] {
            let envelope = Envelope { version, ..Envelope::default() };
            let frame = encode_request(&envelope, &()).unwrap();
            let (head, _) = split_frame(frame).unwrap();
            let expected = FsError::VersionMismatch { server: PROTOCOL_VERSION, client: version };
            assert_eq!(decode_request::<()>(&head).unwrap_err(), expected);
        }
    }

    #[test]
    fn truncated_and_oversized_frames_are_refused() {
        let frame = encode_request(&Envelope::default(), &[7u64; 9].as_slice()).unwrap();
        for end in 0..frame.len() {
            assert!(split_frame(frame.slice(..end)).is_err(), "cut at {end}");
        }
        let oversized = Bytes::from_static(&[255, 255, 255, 255, 0]);
        assert!(matches!(split_frame(oversized), Err(FsError::TooLarge { .. })));
    }

    #[test]
    fn a_reply_has_what_goes_beside_it_in_front() {
        let bytes = encode_reply(&Ok(7u8)).unwrap();
        assert_eq!(bytes[..], [4, 0, 0, 0, 0, 0, 0, 7]);
        let dir = FileId::new(VolumeId(1), InodeNo(2), Epoch(3));
        let promise = Promise {
            stream: StreamNumber(4),
            after: BreakNumber(5),
            sequence: Sequence::new(Epoch(3), 6),
            dirs: vec![dir],
        };
        let change = DirChange {
            dir,
            attr: None,
            names: vec![(Name::parse(b"n").unwrap(), None)],
            is_cut: true,
            is_made: false,
            sequence: Sequence::new(Epoch(3), 7),
        };
        let news = News { promise: Some(promise), changes: vec![change] };
        let reply = Err::<(), _>(FsError::NotFound);
        let frame = encode_reply_with(&news, &reply).unwrap();
        let golden = [
            [1, 4, 5, 3, 6, 1, 1, 2, 3].as_slice(),
            &[1, 1, 2, 3, 0, 1, 1, b'n', 0, 1, 0, 3, 7],
            &[1, 0],
        ];
        assert_eq!(frame[FRAME_PREFIX_BYTES..], golden.concat());
        assert_eq!(decode_reply(&frame[FRAME_PREFIX_BYTES..]).unwrap(), (news, reply));
    }

    #[test]
    fn garbage_is_malformed_not_a_panic() {
        for head in [&b""[..], b"\x01", b"\xff\xff\xff\xff", &[1; 100], &[0xfb; 100]] {
            assert!(decode_request::<String>(head).is_err());
            assert!(decode_reply::<String>(head).is_err());
        }
    }
}
