//! How the kernel reaches an open file's bytes: one mode for each inode at a time.
//!
//! The kernel refuses (EIO) to mix ways on one inode while a handle is open (FUSE.md section 9), so
//! the way is chosen at the first open and kept until the last handle is gone:
//! - *passthrough*: handles that only read go to the cache file directly; handles that may write
//!   name the same cache file but are served by the daemon, which so knows what was written;
//! - *served*: every handle is served by the daemon through the kernel's page cache.
//!
//! A mount on which the kernel refused to register a cache file serves everything from then on.
//! The page cache of a nodeid survives the opens of one version in served mode only: passthrough
//! reads never fill it, and reads that bypass it would let it grow stale.

use dfs_proto::version::DataVersion;

/// What the reply to an open tells the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel reads the cache file itself.
    Passthrough,
    /// The daemon serves the handle, over the cache file that the inode's other handles pass
    /// through to.
    Beside,
    /// The daemon serves the handle through the page cache, which holds this version already or
    /// not.
    Served { keep_cache: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Passthrough,
    Served,
}

/// The mode of one inode, and what its page cache holds. Without I/O.
#[derive(Debug, Default)]
pub(crate) struct ModeRule {
    mode: Option<Mode>,
    handle_count: u32,
    /// The version whose pages the kernel may hold for this nodeid.
    cached: Option<DataVersion>,
}

impl ModeRule {
    /// Counts a handle and says how it is served. `may_pass` is the mount's state.
    pub(crate) fn open(&mut self, version: DataVersion, may_write: bool, may_pass: bool) -> Way {
        let fresh_mode = if may_pass { Mode::Passthrough } else { Mode::Served };
        let mode = *self.mode.get_or_insert(fresh_mode);
        self.handle_count += 1;
        match mode {
            Mode::Passthrough => {
                self.cached = None;
                if may_write { Way::Beside } else { Way::Passthrough }
            }
            Mode::Served => self.serve(version),
        }
    }

    fn serve(&mut self, version: DataVersion) -> Way {
        let keep_cache = self.cached == Some(version);
        self.cached = Some(version);
        Way::Served { keep_cache }
    }

    /// The kernel refused to register the cache file: what a counted handle gets instead.
    ///
    /// Every handle of the inode was refused then, since the first that is accepted shares its
    /// registration with the others.
    pub(crate) fn refuse_passthrough(&mut self, version: DataVersion) -> Way {
        self.mode = Some(Mode::Served);
        self.serve(version)
    }

    /// Uncounts a handle; the last one ends the mode. Whether it was the last.
    pub(crate) fn close(&mut self) -> bool {
        self.handle_count = self.handle_count.saturating_sub(1);
        if self.handle_count == 0 {
            self.mode = None;
        }
        self.handle_count == 0
    }

    /// A commit made `after` out of `before`; the page cache saw every write.
    pub(crate) fn committed(&mut self, before: DataVersion, after: DataVersion) {
        if self.cached == Some(before) {
            self.cached = Some(after);
        }
    }

    /// The file was changed past the kernel.
    pub(crate) fn forget_pages(&mut self) {
        self.cached = None;
    }

    pub(crate) fn handle_count(&self) -> u32 {
        self.handle_count
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::version::Epoch;

    use super::*;

    const V1: DataVersion = DataVersion::new(Epoch(1), 1);
    const V2: DataVersion = DataVersion::new(Epoch(1), 2);

    #[test]
    fn in_passthrough_mode_readers_pass_and_whoever_may_write_is_served_beside() {
        let mut rule = ModeRule::default();
        assert_eq!(rule.open(V1, true, true), Way::Beside, "also when nobody else is there");
        assert_eq!(rule.open(V1, false, true), Way::Passthrough);
        assert_eq!(rule.open(V1, true, true), Way::Beside);
    }

    #[test]
    fn a_mode_stays_until_the_last_handle_is_gone() {
        let mut rule = ModeRule::default();
        rule.open(V1, false, true);
        assert_eq!(rule.open(V1, false, false), Way::Passthrough);
        assert!(!rule.close() && rule.close());
        assert_eq!(rule.open(V1, false, false), Way::Served { keep_cache: false });
        assert_eq!(rule.open(V1, true, true), Way::Served { keep_cache: true });
    }

    #[test]
    fn pages_are_kept_only_for_the_version_they_are_of() {
        let mut rule = ModeRule::default();
        rule.open(V1, false, false);
        rule.close();
        assert_eq!(rule.open(V1, false, false), Way::Served { keep_cache: true });
        rule.close();
        assert_eq!(rule.open(V2, false, false), Way::Served { keep_cache: false });
    }

    #[test]
    fn a_commit_through_this_inode_takes_its_pages_along() {
        let mut rule = ModeRule::default();
        rule.open(V1, true, false);
        rule.committed(V1, V2);
        rule.close();
        assert_eq!(rule.open(V2, false, false), Way::Served { keep_cache: true });
    }

    #[test]
    fn passthrough_forgets_what_the_page_cache_holds() {
        let mut rule = ModeRule::default();
        rule.open(V1, false, false);
        rule.close();
        rule.open(V1, true, true);
        rule.close();
        assert_eq!(rule.open(V1, false, false), Way::Served { keep_cache: false });
    }

    #[test]
    fn pages_of_a_file_that_was_changed_past_the_kernel_are_not_kept() {
        let mut rule = ModeRule::default();
        rule.open(V1, true, false);
        rule.forget_pages();
        assert_eq!(rule.open(V1, false, false), Way::Served { keep_cache: false });
    }

    #[test]
    fn a_refused_registration_turns_the_inode_to_served() {
        let mut rule = ModeRule::default();
        rule.open(V1, false, true);
        assert_eq!(rule.refuse_passthrough(V1), Way::Served { keep_cache: false });
        assert_eq!(rule.open(V1, false, true), Way::Served { keep_cache: true });
    }
}
