//! The write lock of one file as its holder sees it: a state machine without input or output.
//!
//! Owns the answer to one question: when does a recalled lock go back? Events come from opens,
//! closes, commits and the session's recalls; the answer is the token to give back, at most once
//! for each grant.
//!
//! Rules. A lock is kept after the last close (lazily: the next open for writing by this client
//! finds it granted). A recall is obeyed at once if no writer is open here, none is being opened,
//! and nothing is uncommitted; else right after the last close, when its commit is through; or
//! before, if those who have it open let it go because they have nothing to commit. Then the file
//! is shared: the first write asks for the lock again. An
//! open for writing that is under way counts: the server may have granted it the very token that
//! is being recalled, and giving that back would let somebody else write under our feet. A recall
//! may overtake the answer that brings its token, so it is remembered until the token is known;
//! one for a token older than ours is about a lock that is gone already. Giving back a lock that
//! is not ours is harmless, so a recall of an unknown one is obeyed too.

use dfs_proto::version::FencingToken;

/// What happens to a file's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An open for writing is about to be asked for.
    Opening,
    /// That open has ended, one way or the other.
    OpeningEnded,
    /// The lock was granted, or found granted.
    Granted(FencingToken),
    WriterOpened,
    WriterClosed,
    /// There is something to commit, or a commit failed for now.
    Uncommitted,
    /// Nothing is left to commit, or what is left cannot be sent under this lock anyway.
    Settled,
    /// Somebody else wants to write.
    Recalled(FencingToken),
    /// Those who have the file open for writing will ask again before they write.
    LetGo,
    /// The lock is gone: another client has it, or the server said that it is not ours.
    Lost,
}

/// The state of one file's lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    held: Option<FencingToken>,
    recalled: Option<FencingToken>,
    opening_count: u32,
    writer_count: u32,
    is_uncommitted: bool,
    is_let_go: bool,
}

impl Lock {
    /// Takes an event; answers with the token to give back now, if any. The lock then counts as
    /// gone.
    pub fn apply(&mut self, event: Event) -> Option<FencingToken> {
        match event {
            Event::Opening => self.opening_count += 1,
            Event::OpeningEnded => self.opening_count = self.opening_count.saturating_sub(1),
            Event::Granted(token) => {
                self.held = Some(token);
                self.is_let_go = false;
            }
            Event::WriterOpened => self.writer_count += 1,
            Event::WriterClosed => self.writer_count = self.writer_count.saturating_sub(1),
            Event::Uncommitted => self.is_uncommitted = true,
            Event::Settled => self.is_uncommitted = false,
            Event::Recalled(token) => self.recalled = self.recalled.max(Some(token)),
            Event::LetGo => self.is_let_go = true,
            Event::Lost => self.held = None,
        }
        self.due()
    }

    /// Gives up a lock that is merely kept.
    pub fn give_up(&mut self) -> Option<FencingToken> {
        if self.is_busy() { None } else { self.held.take() }
    }

    /// Whether there is nothing to remember.
    pub fn is_idle(&self) -> bool {
        let is_unused = self.writer_count == 0 && !self.is_busy();
        self.held.is_none() && self.recalled.is_none() && is_unused
    }

    pub fn held(&self) -> Option<FencingToken> {
        self.held
    }

    /// Whether somebody else waits for it, and only writers that are open keep it.
    pub fn is_wanted(&self) -> bool {
        let is_ours = self.held.is_none_or(|held| self.recalled >= Some(held));
        self.recalled.is_some() && is_ours && self.opening_count == 0 && !self.is_uncommitted
    }

    fn is_busy(&self) -> bool {
        let is_written = self.writer_count > 0 && !self.is_let_go;
        self.opening_count > 0 || is_written || self.is_uncommitted
    }

    fn due(&mut self) -> Option<FencingToken> {
        if self.is_busy() {
            return None;
        }
        let recalled = self.recalled.take()?;
        if self.held.is_some_and(|held| held > recalled) {
            return None;
        }
        // Also a lock that we do not know of (its grant's answer was lost): the owner believes
        // that we have it, and others wait.
        self.held = None;
        Some(recalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::version::Epoch;

    fn token(counter: u64) -> FencingToken {
        FencingToken::new(Epoch(1), counter)
    }

    fn held(counter: u64) -> Lock {
        let mut lock = Lock::default();
        assert_eq!(lock.apply(Event::Granted(token(counter))), None);
        lock
    }

    #[test]
    fn an_idle_lock_is_kept_until_it_is_recalled_and_then_given_back_once() {
        let mut lock = held(5);
        assert_eq!(lock.apply(Event::WriterOpened), None);
        assert_eq!(lock.apply(Event::WriterClosed), None);
        assert_eq!(lock.held(), Some(token(5)));
        assert_eq!(lock.apply(Event::Recalled(token(5))), Some(token(5)));
        assert!(lock.is_idle());
        assert_eq!(lock.apply(Event::Settled), None);
    }

    #[test]
    fn a_recall_of_a_lock_we_do_not_know_of_is_obeyed() {
        assert_eq!(Lock::default().apply(Event::Recalled(token(5))), Some(token(5)));
    }

    #[test]
    fn a_lock_is_given_up_only_while_nobody_needs_it() {
        let mut lock = held(5);
        lock.apply(Event::WriterOpened);
        assert_eq!(lock.give_up(), None);
        lock.apply(Event::WriterClosed);
        assert_eq!(lock.give_up(), Some(token(5)));
        assert!(lock.is_idle());
    }

    #[test]
    fn a_recall_while_a_writer_is_open_waits_for_the_last_close_and_its_commit() {
        let mut lock = held(5);
        lock.apply(Event::WriterOpened);
        lock.apply(Event::WriterOpened);
        assert_eq!(lock.apply(Event::Recalled(token(5))), None);
        assert_eq!(lock.apply(Event::Uncommitted), None);
        assert_eq!(lock.apply(Event::WriterClosed), None);
        assert_eq!(lock.apply(Event::WriterClosed), None);
        assert_eq!(lock.apply(Event::Settled), Some(token(5)));
    }

    #[test]
    fn a_recall_that_overtakes_the_answer_of_the_open_is_remembered() {
        let mut lock = Lock::default();
        lock.apply(Event::Opening);
        assert_eq!(lock.apply(Event::Recalled(token(6))), None);
        lock.apply(Event::Granted(token(6)));
        lock.apply(Event::WriterOpened);
        assert_eq!(lock.apply(Event::OpeningEnded), None);
        assert_eq!(lock.apply(Event::WriterClosed), Some(token(6)));
    }

    #[test]
    fn an_open_under_way_protects_a_lock_that_is_held_lazily() {
        let mut lock = held(5);
        lock.apply(Event::Opening);
        assert_eq!(lock.apply(Event::Recalled(token(5))), None);
        assert_eq!(lock.apply(Event::OpeningEnded), Some(token(5)));
    }

    #[test]
    fn a_recall_of_an_older_grant_does_not_take_the_newer_one() {
        let mut lock = held(7);
        assert_eq!(lock.apply(Event::Recalled(token(6))), None);
        assert_eq!(lock.held(), Some(token(7)));
    }

    #[test]
    fn writers_may_let_a_wanted_lock_go_and_have_it_again_with_the_next_grant() {
        let mut lock = held(5);
        lock.apply(Event::WriterOpened);
        assert!(!lock.is_wanted());
        assert_eq!(lock.apply(Event::Recalled(token(5))), None);
        assert!(lock.is_wanted());
        assert_eq!(lock.apply(Event::LetGo), Some(token(5)));
        assert!(!lock.is_wanted() && !lock.is_idle(), "its writers are remembered");
        lock.apply(Event::Opening);
        lock.apply(Event::Granted(token(7)));
        lock.apply(Event::OpeningEnded);
        assert_eq!(lock.apply(Event::Recalled(token(7))), None, "it is written to again");
        assert_eq!(lock.apply(Event::WriterClosed), Some(token(7)));
    }

    #[test]
    fn what_is_opened_or_not_committed_is_not_let_go() {
        let mut lock = held(5);
        lock.apply(Event::WriterOpened);
        lock.apply(Event::Recalled(token(5)));
        lock.apply(Event::Opening);
        assert!(!lock.is_wanted());
        assert_eq!(lock.apply(Event::LetGo), None);
        lock.apply(Event::Granted(token(5)));
        assert_eq!(lock.apply(Event::OpeningEnded), None, "its grant took it back");
        lock.apply(Event::Uncommitted);
        assert!(!lock.is_wanted());
        lock.apply(Event::Settled);
        assert!(lock.is_wanted());
    }

    #[test]
    fn a_lost_lock_is_not_held() {
        let mut lock = held(5);
        lock.apply(Event::WriterOpened);
        lock.apply(Event::Lost);
        assert_eq!(lock.apply(Event::WriterClosed), None);
        assert!(lock.is_idle());
    }
}
