//! YAML text: every document of it judged, with the line of each problem.

use super::object::{Outcome, check};
use proto::yaml::{self, Document};
use proto_mesh::Severity;
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// The judgement of one document.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// The file's name, as given.
    pub file: String,
    /// Line of the document's first field.
    pub line: usize,
    /// Kind, as written; empty if it cannot be read.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether there are no errors.
    pub valid: bool,
    /// What refuses the object.
    pub errors: Vec<Problem>,
    /// What is suspicious about it.
    pub warnings: Vec<Problem>,
}

/// One thing found in a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The field, from the object's top.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// Line of the field, or of the nearest one around it.
    pub line: usize,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A document with the outcome of its check.
pub struct Read {
    /// The judgement.
    pub verdict: Verdict,
    /// The object, if it is good.
    pub outcome: Outcome,
    /// The object's content (nothing if it is no YAML).
    pub value: Value,
}

/// Judges each document of a text; `file` is only named in the verdicts. `List` objects are taken apart.
pub fn validate_documents(text: &str, file: &str) -> Vec<Verdict> {
    read_documents(text, file)
        .into_iter()
        .map(|read| read.verdict)
        .collect()
}

/// As [`validate_documents`], with the objects.
pub fn read_documents(text: &str, file: &str) -> Vec<Read> {
    let mut all = Vec::new();
    for document in yaml::parse_documents(text) {
        match document {
            Ok(document) => read_document(&document, file, &mut all),
            Err(error) => all.push(broken(error.line, error.problem, file)),
        }
    }
    all
}

/// Judges an object that stands in no text, such as one of a cluster; `origin` is only named.
pub fn read_value(value: &Value, origin: &str) -> Read {
    read_one(check(value), value, origin, |_| 0)
}

fn read_document(document: &Document, file: &str, into: &mut Vec<Read>) {
    let value = &document.value;
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List");
    let Some(items) = value
        .get("items")
        .and_then(Value::as_array)
        .filter(|_| is_list)
    else {
        let outcome = check(value);
        into.push(read_one(outcome, value, file, |path| {
            document.line_of(path)
        }));
        return;
    };
    for (index, item) in items.iter().enumerate() {
        let outcome = check(item);
        let line = |path: &str| match path {
            "" => document.line_of(&format!("items[{index}]")),
            path => document.line_of(&format!("items[{index}].{path}")),
        };
        into.push(read_one(outcome, item, file, line));
    }
}

fn read_one(outcome: Outcome, value: &Value, file: &str, line: impl Fn(&str) -> usize) -> Read {
    let problems = |severity: Severity| {
        let of = outcome
            .issues
            .iter()
            .filter(|issue| issue.severity == severity);
        of.map(|issue| Problem {
            path: issue.path.clone(),
            message: issue.message.clone(),
            line: line(&issue.path),
            hint: issue.hint.clone(),
        })
        .collect()
    };
    let verdict = Verdict {
        file: file.to_owned(),
        line: line(""),
        kind: outcome.kind.clone(),
        namespace: outcome.namespace.clone(),
        name: outcome.name.clone(),
        valid: outcome.is_valid(),
        errors: problems(Severity::Error),
        warnings: problems(Severity::Warning),
    };
    Read {
        verdict,
        outcome,
        value: value.clone(),
    }
}

fn broken(line: usize, problem: String, file: &str) -> Read {
    let verdict = Verdict {
        file: file.to_owned(),
        line,
        errors: vec![Problem {
            path: String::new(),
            message: problem,
            line,
            hint: None,
        }],
        ..Verdict::default()
    };
    Read {
        verdict,
        outcome: Outcome::default(),
        value: Value::Null,
    }
}

impl Verdict {
    /// `VirtualService bookinfo/reviews`, as far as it is known.
    pub fn subject(&self) -> String {
        let name = match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => String::new(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        match (self.kind.as_str(), name.as_str()) {
            ("", "") => "document".to_owned(),
            ("", name) => name.to_owned(),
            (kind, "") => kind.to_owned(),
            (kind, name) => format!("{kind} {name}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}
