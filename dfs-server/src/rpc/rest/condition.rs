//! Entity tags: a file's data version, and what requests demand of it.
//!
//! A header that cannot be read is an error and never ignored: who sends one relies on it.

use dfs_proto::FsError;
use dfs_proto::version::DataVersion;
use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::target::shown;

/// Most tags of one header. Why: clients hold one version, or a few.
const TAGS_MAX: usize = 64;

/// The tag of a version.
pub fn tag(version: DataVersion) -> String {
    format!("\"{version}\"")
}

/// Tags of one header.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    Any,
    Of(Vec<String>),
}

/// What a request demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    only_if: Option<Tags>,
    only_unless: Option<Tags>,
}

impl Conditions {
    /// # Errors
    /// `InvalidArgument` for a header that cannot be read.
    pub fn of(headers: &HeaderMap) -> Result<Conditions, FsError> {
        let only_if = tags(headers, &IF_MATCH)?;
        Ok(Conditions { only_if, only_unless: tags(headers, &IF_NONE_MATCH)? })
    }

    /// Whether a change of a file at `version` (`None`: there is no file) is wanted.
    pub fn allow_change(&self, version: Option<DataVersion>) -> bool {
        let is_among = |tags: &Tags| version.is_some_and(|version| is_among(tags, version));
        self.only_if.as_ref().is_none_or(is_among)
            && !self.only_unless.as_ref().is_some_and(is_among)
    }

    /// Whether a reader has `version` already.
    pub fn has(&self, version: DataVersion) -> bool {
        self.only_unless.as_ref().is_some_and(|tags| is_among(tags, version))
    }

    /// Whether `If-Match` lets a reader have `version`.
    pub fn allow_read(&self, version: DataVersion) -> bool {
        self.only_if.as_ref().is_none_or(|tags| is_among(tags, version))
    }
}

fn is_among(tags: &Tags, version: DataVersion) -> bool {
    match tags {
        Tags::Any => true,
        Tags::Of(tags) => tags.contains(&tag(version)),
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, FsError> {
    let mut found = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().unwrap_or("(not ASCII)");
        let wrong = || {
            FsError::invalid(format!(
                "header {name} `{}` (a version in double quotes)",
                shown(text)
            ))
        };
        if text.trim() == "*" {
            return Ok(Some(Tags::Any));
        }
        for part in text.split(',').map(str::trim) {
            let inner = part.strip_prefix('"').and_then(|part| part.strip_suffix('"'));
            let is_tag = inner.is_some_and(|inner| !inner.is_empty() && !inner.contains('"'));
            if !is_tag || found.len() >= TAGS_MAX {
                return Err(wrong());
            }
            found.push(part.to_owned());
        }
    }
    Ok((!found.is_empty()).then_some(Tags::Of(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::version::Epoch;

    const ONE: DataVersion = DataVersion::new(Epoch(1), 5);
    const TWO: DataVersion = DataVersion::new(Epoch(2), 5);

    fn conditions(headers: &[(HeaderName, &str)]) -> Result<Conditions, FsError> {
        let pairs = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        Conditions::of(&pairs.collect())
    }

    #[test]
    fn a_change_meets_only_the_version_that_was_seen() {
        let seen = conditions(&[(IF_MATCH, "\"1.5\"")]).unwrap();
        assert!(seen.allow_change(Some(ONE)) && !seen.allow_change(Some(TWO)));
        assert!(!seen.allow_change(None));
        let some = conditions(&[(IF_MATCH, "\"7.7\", \"2.5\"")]).unwrap();
        assert!(some.allow_change(Some(TWO)) && !some.allow_change(Some(ONE)));
        let any = conditions(&[(IF_MATCH, "*")]).unwrap();
        assert!(any.allow_change(Some(ONE)) && !any.allow_change(None));
        let new = conditions(&[(IF_NONE_MATCH, "*")]).unwrap();
        assert!(new.allow_change(None) && !new.allow_change(Some(ONE)));
        assert!(conditions(&[]).unwrap().allow_change(Some(ONE)));
    }

    #[test]
    fn a_reader_is_spared_what_it_has() {
        let has = conditions(&[(IF_NONE_MATCH, "\"1.5\"")]).unwrap();
        assert!(has.has(ONE) && !has.has(TWO) && has.allow_read(TWO));
        assert!(!conditions(&[(IF_MATCH, "\"1.5\"")]).unwrap().allow_read(TWO));
    }

    #[test]
    fn a_condition_that_cannot_be_read_is_refused() {
        let many = vec!["\"1.1\""; TAGS_MAX + 1].join(",");
        for text in ["", "1.5", "\"1.5", "W/\"1.5\"", "\"\"", "\"1.5\" \"1.6\"", "\"1.5\",", &many]
        {
            let error = conditions(&[(IF_MATCH, text)]).unwrap_err();
            assert!(matches!(error, FsError::InvalidArgument { .. }), "{text}: {error}");
        }
    }
}
