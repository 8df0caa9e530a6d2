//! Capabilities: rights on one file that the directory gives a client to show to file nodes.
//!
//! A file node knows no names and no permissions: it believes a MAC made with the key that it
//! shares with the directory. A store carries two: the directory's over the write capability
//! (FileId, base, fencing token, expiry), and the client's, with its session key, over what is to
//! be committed. The directory checks both at commit, so neither a client nor a file node can
//! commit what the other did not want.

use hmac::{Hmac, KeyInit, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;

use crate::chunk::ChunkHash;
use crate::codec;
use crate::id::{FileId, NodeId, OpId, SessionId};
use crate::limits::HEAD_BYTES_MAX;
use crate::version::{DataVersion, FencingToken};

/// HMAC-SHA-256 over the canonical encoding of what it protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub [u8; 32]);

/// A MAC key: the cell's capability key, or a session's key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacKey(pub [u8; 32]);

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// What a MAC is about: the same bytes under another purpose have another MAC.
#[derive(Serialize)]
enum Purpose<'a> {
    Read(&'a ReadRight),
    Write(&'a WriteRight),
    Commit(&'a CommitIntent),
}

impl MacKey {
    fn mac(&self, purpose: &Purpose<'_>) -> Hmac<Sha256> {
        let bytes = codec::encode(purpose, HEAD_BYTES_MAX).expect("rights have a small fixed size");
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&bytes);
        mac
    }

    fn seal(&self, purpose: &Purpose<'_>) -> Mac {
        Mac(self.mac(purpose).finalize().into_bytes().into())
    }

    fn is_sealed(&self, purpose: &Purpose<'_>, mac: &Mac) -> bool {
        self.mac(purpose).verify_slice(&mac.0).is_ok()
    }

    pub fn seal_read(&self, right: ReadRight) -> ReadCapability {
        let mac = self.seal(&Purpose::Read(&right));
        ReadCapability { right, mac }
    }

    pub fn seal_write(&self, right: WriteRight) -> WriteCapability {
        let mac = self.seal(&Purpose::Write(&right));
        WriteCapability { right, mac }
    }

    pub fn seal_commit(&self, intent: &CommitIntent) -> Mac {
        self.seal(&Purpose::Commit(intent))
    }

    /// The right that `capability` proves, if its MAC is right and it has not expired.
    ///
    /// Units: `now_secs` in seconds of the checking server's wall clock.
    pub fn verify_read<'a>(
        &self,
        capability: &'a ReadCapability,
        now_secs: i64,
    ) -> Result<&'a ReadRight, CapabilityFault> {
        let right = &capability.right;
        self.judge(&Purpose::Read(right), &capability.mac, now_secs, right.expires_secs)?;
        Ok(right)
    }

    /// As [`MacKey::verify_read`], for writing.
    pub fn verify_write<'a>(
        &self,
        capability: &'a WriteCapability,
        now_secs: i64,
    ) -> Result<&'a WriteRight, CapabilityFault> {
        let right = &capability.right;
        self.judge(&Purpose::Write(right), &capability.mac, now_secs, right.expires_secs)?;
        Ok(right)
    }

    pub fn is_sealed_commit(&self, intent: &CommitIntent, mac: &Mac) -> bool {
        self.is_sealed(&Purpose::Commit(intent), mac)
    }

    fn judge(
        &self,
        purpose: &Purpose<'_>,
        mac: &Mac,
        now_secs: i64,
        expires_secs: i64,
    ) -> Result<(), CapabilityFault> {
        if !self.is_sealed(purpose, mac) {
            return Err(CapabilityFault::Forged);
        }
        if now_secs >= expires_secs {
            return Err(CapabilityFault::Expired);
        }
        Ok(())
    }
}

/// Why a capability is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum CapabilityFault {
    #[error("capability was not made by this cell's directory")]
    Forged,
    #[error("capability has expired")]
    Expired,
    #[error("capability is for another file")]
    OtherFile,
}

/// The right to read every chunk of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRight {
    pub fid: FileId,
    /// Wall-clock second of the directory at which it ends.
    pub expires_secs: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCapability {
    pub right: ReadRight,
    pub mac: Mac,
}

/// The right to store chunks of one file and to ask for commits on top of `base`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRight {
    pub fid: FileId,
    pub base: DataVersion,
    pub token: FencingToken,
    pub session: SessionId,
    /// The nodes that must hold the file's chunks, the primary first: so a file node feeds nobody
    /// whom the directory did not choose.
    pub replicas: Vec<NodeId>,
    /// Wall-clock second of the directory at which it ends.
    pub expires_secs: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteCapability {
    pub right: WriteRight,
    pub mac: Mac,
}

/// What a client wants committed; its MAC with the session key proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitIntent {
    pub fid: FileId,
    pub base: DataVersion,
    pub token: FencingToken,
    pub op: OpId,
    pub manifest: ChunkHash,
    /// Hash of the encoded attributes that travel with the commit.
    pub attributes: ChunkHash,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{InodeNo, VolumeId};
    use crate::version::Epoch;

    fn fid(inode: u64) -> FileId {
        FileId::new(VolumeId(1), InodeNo(inode), Epoch(1))
    }

    #[test]
    fn a_capability_proves_its_right_until_it_expires() {
        let key = MacKey([1; 32]);
        let capability = key.seal_read(ReadRight { fid: fid(5), expires_secs: 100 });
        assert_eq!(key.verify_read(&capability, 99).unwrap().fid, fid(5));
        assert_eq!(key.verify_read(&capability, 100), Err(CapabilityFault::Expired));
    }

    #[test]
    fn a_changed_or_foreign_capability_is_forged() {
        let key = MacKey([1; 32]);
        let mut capability = key.seal_read(ReadRight { fid: fid(5), expires_secs: 100 });
        capability.right.fid = fid(6);
        assert_eq!(key.verify_read(&capability, 0), Err(CapabilityFault::Forged));
        let foreign = MacKey([2; 32]).seal_read(ReadRight { fid: fid(5), expires_secs: 100 });
        assert_eq!(key.verify_read(&foreign, 0), Err(CapabilityFault::Forged));
    }

    #[test]
    fn a_commit_mac_covers_every_field() {
        let key = MacKey([3; 32]);
        let intent = CommitIntent {
            fid: fid(1),
            base: DataVersion::new(Epoch(1), 1),
            token: FencingToken::new(Epoch(1), 1),
            op: OpId { session: SessionId([0; 16]), number: 1 },
            manifest: ChunkHash([0; 32]),
            attributes: ChunkHash([0; 32]),
        };
        let mac = key.seal_commit(&intent);
        assert!(key.is_sealed_commit(&intent, &mac));
        let mut others = vec![intent.clone(); 6];
        others[0].fid = fid(2);
        others[1].base.counter = 2;
        others[2].token.counter = 2;
        others[3].op.number = 2;
        others[4].manifest = ChunkHash([1; 32]);
        others[5].attributes = ChunkHash([1; 32]);
        assert!(others.iter().all(|other| !key.is_sealed_commit(other, &mac)));
    }
}
