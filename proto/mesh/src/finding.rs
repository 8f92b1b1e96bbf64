//! What a check finds: errors, which refuse an object, and warnings, which do not; each with the path of the field it is
//! about, so that whoever has the text can name the line.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is accepted, but does not do what it seems to.
    Warning,
    /// The object is refused.
    Error,
}

/// What a finding is about, where analysis has a message of its own for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Nothing in particular.
    #[default]
    General,
    /// A route that no traffic reaches.
    UnreachableRoute,
    /// A condition that an earlier one takes the traffic of.
    UnusedMatch,
}

/// One thing found in an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    #[serde(skip)]
    pub topic: Topic,
    /// How bad it is.
    pub severity: Severity,
    /// The field, from the object's `spec`: `http[0].route[1].weight`; empty for the object as a whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Everything found in an object, in the order of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// True when nothing refuses the object; there may be warnings.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.errors().next().is_none()
    }

    /// What refuses the object.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.iter()
            .filter(|finding| finding.severity == Severity::Error)
    }

    /// What is worth saying although the object is accepted.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.iter()
            .filter(|finding| finding.severity == Severity::Warning)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.0.iter()
    }

    /// Adds an error about the field at `path`.
    pub fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Finding {
            topic: Topic::General,
            severity: Severity::Error,
            path: path.into(),
            message: message.into(),
        });
    }

    /// Adds a warning about the field at `path`.
    pub fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warning_about(Topic::General, path, message);
    }

    /// Adds a warning that has a topic.
    pub fn warning_about(
        &mut self,
        topic: Topic,
        path: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.0.push(Finding {
            topic,
            severity: Severity::Warning,
            path: path.into(),
            message: message.into(),
        });
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Collects findings while a check walks down a message; knows where it is.
#[derive(Debug, Default)]
pub(crate) struct Report {
    path: String,
    findings: Findings,
}

impl Report {
    /// What was found.
    pub(crate) fn into_findings(self) -> Findings {
        self.findings
    }

    /// An error about the field the check is in.
    pub(crate) fn error(&mut self, message: impl Into<String>) {
        self.findings.error(self.path.clone(), message);
    }

    /// A warning about the field the check is in.
    pub(crate) fn warning(&mut self, message: impl Into<String>) {
        self.findings.warning(self.path.clone(), message);
    }

    /// An error about `field` of the message the check is in.
    pub(crate) fn error_at(&mut self, field: &str, message: impl Into<String>) {
        self.at(field, |report| report.error(message));
    }

    /// A warning about `field` of the message the check is in.
    pub(crate) fn warning_at(&mut self, field: &str, message: impl Into<String>) {
        self.at(field, |report| report.warning(message));
    }

    /// A warning about `field` that has a topic.
    pub(crate) fn warning_about(&mut self, topic: Topic, field: &str, message: impl Into<String>) {
        self.at(field, |report| {
            report
                .findings
                .warning_about(topic, report.path.clone(), message);
        });
    }

    /// Checks inside `field`.
    pub(crate) fn at<R>(&mut self, field: &str, check: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.path.len();
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(field);
        let result = check(self);
        self.path.truncate(length);
        result
    }

    /// Checks inside every item of the list `field`.
    pub(crate) fn each<T>(
        &mut self,
        field: &str,
        items: &[T],
        mut check: impl FnMut(&mut Self, &T),
    ) {
        for (index, item) in items.iter().enumerate() {
            self.at(&format!("{field}[{index}]"), |report| check(report, item));
        }
    }

    /// Checks inside every entry of the map `field`, sorted by key.
    pub(crate) fn entries<'m, K: Ord + fmt::Display + 'm, V: 'm>(
        &mut self,
        field: &str,
        map: impl IntoIterator<Item = (&'m K, &'m V)>,
        mut check: impl FnMut(&mut Self, &K, &V),
    ) {
        let mut entries: Vec<_> = map.into_iter().collect();
        entries.sort_by(|a, b| a.0.cmp(b.0));
        for (key, value) in entries {
            self.at(&format!("{field}.{key}"), |report| {
                check(report, key, value);
            });
        }
    }

    /// Turns a failed check of the field the check is in into an error.
    pub(crate) fn require(&mut self, result: Result<(), String>) {
        if let Err(message) = result {
            self.error(message);
        }
    }

    /// Turns a failed check of `field` into an error about it.
    pub(crate) fn require_at(&mut self, field: &str, result: Result<(), String>) {
        self.at(field, |report| report.require(result));
    }
}
