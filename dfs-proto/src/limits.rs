//! Every limit of the protocol, with its unit and its reason.

use std::time::Duration;

/// Longest name of a directory entry. Units: bytes. Source: POSIX NAME_MAX on Linux.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symbolic link. Units: bytes. Source: PATH_MAX less the NUL.
pub const SYMLINK_BYTES_MAX: usize = 4095;

/// Longest name of an extended attribute, with its namespace. Units: bytes. Source: XATTR_NAME_MAX.
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Longest value of an extended attribute. Units: bytes. Source: XATTR_SIZE_MAX.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;

/// Most bytes of the names of an inode's extended attributes, with a NUL behind each.
///
/// Why: listxattr(2) can give no more (XATTR_LIST_MAX), so every list there is can be read.
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;

/// Most bytes of all extended attributes of an inode, names and values.
///
/// Why 256 KiB: some values of the largest size, as Samba's alternate data streams are; and what is
/// kept in one row, written whole with each change, stays as small as a chunk.
pub const XATTR_INODE_BYTES_MAX: usize = 256 << 10;

/// Most names of one inode. Why: the inode's row keeps the list of (parent, name).
pub const LINK_COUNT_MAX: u32 = 1024;

/// Longest wire head (envelope and request, or reply). Units: bytes.
///
/// Why 4 MiB: holds a directory page of 4,096 entries and a manifest of 100 GiB at 4 MiB a chunk.
pub const HEAD_BYTES_MAX: usize = 4 << 20;

/// Longest payload of a request or a unary reply. Units: bytes.
///
/// Why 8 MiB: several chunks travel together, and a server buffers at most one such body for each
/// request in flight.
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;

/// Longest chunk. Units: bytes. Why: FastCDC cuts no later than this.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;

/// Average and smallest chunk. Units: bytes. Why 256 KiB: ENGINES.md measured 0.3 MB to resend for
/// a small edit of 256 MiB.
pub const CHUNK_BYTES_AVERAGE: u32 = 256 << 10;
pub const CHUNK_BYTES_MIN: u32 = 64 << 10;

/// Most extents of one manifest in one message.
///
/// Why: 48 bytes each must fit a head beside the rest; files above about 16 GiB need manifests
/// that are stored as chunks.
pub const MANIFEST_EXTENTS_MAX: usize = 64 << 10;

/// Most entries of a directory page.
pub const DIR_PAGE_ENTRIES_MAX: u32 = 4096;

/// Most chunks named by one request.
pub const CHUNKS_PER_REQUEST_MAX: usize = 4096;

/// Longest user, host, volume and role names. Units: bytes.
pub const WORD_BYTES_MAX: usize = 64;

/// Longest password accepted. Units: bytes. Why: Argon2 hashes all of it.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Shortest password accepted for an account. Units: bytes.
pub const PASSWORD_BYTES_MIN: usize = 8;

/// Most accounts of one page of their list. Why: with all their groups they fill less than a
/// quarter of a head.
pub const USER_PAGE_ENTRIES_MAX: usize = 1024;

/// Longest ticket in text form. Units: bytes.
pub const TICKET_BYTES_MAX: usize = 4096;

/// Most supplementary groups of a caller. Source: NGROUPS_MAX is 65536; larger sets are cut by NFS
/// at 16, here nothing is cut but an absurd list refused.
pub const GROUP_COUNT_MAX: usize = 1024;

/// How long a server keeps a session without a heartbeat.
///
/// Why 10 s: a dead client delays one commit by at most this; three heartbeats may be lost.
/// Source: DESIGN.md section 7.
pub const SESSION_LEASE: Duration = Duration::from_secs(10);

/// Part of a lease that a client may use: the rest covers clock drift. Units: per cent.
pub const LEASE_USE_PERCENT: u32 = 90;

/// Most sessions, and most mutations in flight for one session.
pub const SESSION_COUNT_MAX: usize = 100_000;
pub const OPS_IN_FLIGHT_MAX: usize = 256;

/// Longest wait that a request may ask of a server.
pub const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// How long a ticket lives before it must be renewed. Why: bounds what a revoked login can do
/// where revocation does not reach.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(3600);

/// How long a capability for a file node lives.
pub const CAPABILITY_LIFETIME: Duration = Duration::from_secs(600);

/// Most replicas of a file.
pub const REPLICA_COUNT_MAX: usize = 8;

/// Most ranges that one session has locked of one file.
///
/// Why 4,096: databases lock some bytes, record files some dozen; each lock is compared with all
/// of the file's.
pub const FILE_RANGES_MAX: usize = 4096;

/// Most ranges that one session has locked of all files, and most in one request that takes them
/// up again. Why: 60 bytes each, they fill less than a quarter of a head.
pub const RECLAIM_RANGES_MAX: usize = 16_384;

/// Most who wait for ranges of one file.
pub const RANGE_WAITS_MAX: usize = 4096;

/// How long a wait for a range, or a grant that its asker has not heard of, lives without being
/// asked about. Why: as a session does without a heartbeat; several of `RANGE_ASK_INTERVAL`.
pub const RANGE_WAIT_LEASE: Duration = SESSION_LEASE;

/// How often a client asks about a wait of which it hears nothing. Why: what a lost event costs at
/// most; a request every three seconds for each program that waits weighs nothing.
pub const RANGE_ASK_INTERVAL: Duration = Duration::from_secs(3);

/// Most files of one page of locks.
pub const LOCK_PAGE_FILES_MAX: usize = 256;
