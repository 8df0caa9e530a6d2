//! `Failure`: how a command fails: what it wanted, why not, what to try, and the exit code.

use std::error::Error;

use dfs_proto::FsError;

use super::exit::{self, Exit};

type Cause = Box<dyn Error + Send + Sync>;

/// A command's failure. Made where the command knows what it was about, shown by `output`.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub what: String,
    pub cause: Cause,
    pub remedy: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, what: impl Into<String>, cause: impl Into<Cause>) -> Failure {
        Failure { exit, what: what.into(), cause: cause.into(), remedy: None }
    }

    pub fn usage(what: impl Into<String>, cause: impl Into<Cause>) -> Failure {
        Failure::new(Exit::Usage, what, cause)
    }

    pub fn failed(what: impl Into<String>, cause: impl Into<Cause>) -> Failure {
        Failure::new(Exit::Failed, what, cause)
    }

    /// An operation's error; exit code and remedy come with it.
    pub fn fs(what: impl Into<String>, error: FsError) -> Failure {
        let (exit, remedy) = exit::judge(&error);
        let remedy = remedy.map(str::to_owned);
        Failure { exit, what: what.into(), cause: error.into(), remedy }
    }

    /// What to try, in place of what the cause alone suggests.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Failure {
        self.remedy = Some(remedy.into());
        self
    }

    /// The causes, outermost first, as one line. A cause whose text the one before it ends with is
    /// not repeated.
    pub fn causes(&self) -> String {
        let mut text = self.cause.to_string();
        let mut next = self.cause.source();
        while let Some(cause) = next {
            let deeper = cause.to_string();
            if !text.ends_with(&deeper) {
                text = format!("{text}: {deeper}");
            }
            next = cause.source();
        }
        text
    }
}

/// Says what a result was about.
pub trait Context<T> {
    /// # Errors
    /// The result's, as a [`Failure`] to do `what`.
    fn about(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for Result<T, FsError> {
    fn about(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::fs(what(), error))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn about(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(what(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_cause_chain_is_kept_and_not_repeated() {
        let chain = Failure::failed("x", Outer(std::io::Error::other("inner")));
        assert_eq!(chain.causes(), "outer: inner");
        let error =
            crate::config::UrlError { text: "t".into(), fault: crate::config::UrlFault::NoHost };
        let once = Failure::usage("x", error).causes();
        assert_eq!(once.matches("names no host").count(), 1, "{once}");
    }

    #[test]
    fn an_operations_error_brings_its_exit_code_and_remedy() {
        let failure = Failure::fs("x", FsError::Unauthenticated);
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(failure.remedy.as_deref(), Some("log in: dfs login"));
        assert_eq!(failure.remedy("other").remedy.as_deref(), Some("other"));
    }
}
