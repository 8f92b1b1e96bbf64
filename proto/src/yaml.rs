//! YAML with positions: a stream of documents, each as a JSON value plus the line of every field in it, so that an error
//! found later (by proto3 JSON, by validation) can still name its line.

use std::collections::HashMap;
use std::fmt;

use prost::{Message, Name};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::json::{self, JsonError};

/// One YAML document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its content.
    pub value: Value,
    /// Line of its first field, from 1, in the whole stream.
    pub line: usize,
    lines: HashMap<String, usize>,
}

/// Text that is not YAML.
#[derive(Clone, Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct YamlError {
    /// Line in the whole stream, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

/// Why a YAML text is not the wanted message.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not YAML.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// It is YAML, but not such a message.
    #[error("line {line}: {error}")]
    Message {
        /// Line of the offending field.
        line: usize,
        /// The field and what is wrong with it.
        #[source]
        error: JsonError,
    },
    /// There is not exactly one document.
    #[error("found {0} documents where one is wanted")]
    Documents(usize),
}

impl Document {
    /// The line of the field at `path` (`spec.http[0].route`), or of the nearest parent that is in the text.
    #[must_use]
    pub fn line_of(&self, path: &str) -> usize {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.line,
            }
        }
    }
}

/// Splits a stream into documents and reads each: a broken document does not hide the others. Empty documents are left out.
#[must_use]
pub fn parse_documents(text: &str) -> Vec<Result<Document, YamlError>> {
    split(text)
        .into_iter()
        .filter_map(|(first_line, part)| parse(part, first_line).transpose())
        .collect()
}

/// Reads a message from a single YAML (or JSON) document.
///
/// # Errors
/// When the text is not YAML, holds several documents, or a field does not fit the message.
pub fn from_str<T: Message + Name + Default>(text: &str) -> Result<T, ReadError> {
    let mut documents = parse_documents(text);
    match documents.len() {
        0 => Ok(T::default()),
        1 => {
            let document = documents.remove(0)?;
            json::from_value(&document.value).map_err(|error| ReadError::Message {
                line: document.line_of(error.path().unwrap_or_default()),
                error,
            })
        }
        count => Err(ReadError::Documents(count)),
    }
}

/// Writes any serializable value as one YAML document.
///
/// # Errors
/// When the value has no YAML form.
pub fn to_string<T: serde::Serialize>(value: &T) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(value)
}

/// The parts between `---` lines, each with the number of lines before it.
fn split(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut start, mut start_line, mut offset) = (Vec::new(), 0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let content = line.trim_end();
        if content == "---" || content.starts_with("--- ") {
            parts.push((start_line, &text[start..offset]));
            start = offset + 3;
            start_line = number;
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

fn parse(text: &str, lines_before: usize) -> Result<Option<Document>, YamlError> {
    let root: Spanned<Node> = serde_saphyr::from_str(text).map_err(|error| {
        let line = error
            .location()
            .map_or(1, |location| to_line(location.line()));
        YamlError {
            line: line + lines_before,
            problem: first_line(&error.to_string()),
        }
    })?;
    if matches!(root.value, Node::Scalar(Value::Null)) {
        return Ok(None);
    }
    let line = to_line(root.referenced.line()) + lines_before;
    let mut lines = HashMap::new();
    let value = root
        .value
        .into_value(&mut String::new(), lines_before, &mut lines);
    Ok(Some(Document { value, line, lines }))
}

fn to_line(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX)
}

fn first_line(text: &str) -> String {
    let text = text.lines().next().unwrap_or_default();
    text.strip_prefix("error: ").unwrap_or(text).to_owned()
}

/// A YAML node that remembers where its children stand.
enum Node {
    Scalar(Value),
    Sequence(Vec<Spanned<Node>>),
    Mapping(Vec<(Spanned<Key>, Spanned<Node>)>),
}

/// A mapping's key; numbers and booleans are taken as their text, as Kubernetes does.
struct Key(String);

impl Node {
    fn into_value(
        self,
        path: &mut String,
        before: usize,
        lines: &mut HashMap<String, usize>,
    ) -> Value {
        let end = path.len();
        match self {
            Node::Scalar(value) => value,
            Node::Sequence(items) => Value::Array(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| {
                        path.push_str(&format!("[{index}]"));
                        lines.insert(path.clone(), to_line(item.referenced.line()) + before);
                        let value = item.value.into_value(path, before, lines);
                        path.truncate(end);
                        value
                    })
                    .collect(),
            ),
            Node::Mapping(entries) => {
                let mut map = Map::new();
                for (key, item) in entries {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&key.value.0);
                    lines.insert(path.clone(), to_line(key.referenced.line()) + before);
                    let value = item.value.into_value(path, before, lines);
                    path.truncate(end);
                    map.insert(key.value.0, value);
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a YAML value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Bool(value)))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(Value::from(value)))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(Value::from(value)))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
                let number =
                    Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
                Ok(Node::Scalar(Value::Number(number)))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(Value::from(value)))
            }
            fn visit_string<E>(self, value: String) -> Result<Node, E> {
                Ok(Node::Scalar(Value::String(value)))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Node::Sequence(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Mapping(entries))
            }
        }
        deserializer.deserialize_any(NodeVisitor)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Node::deserialize(deserializer)? {
            Node::Scalar(Value::String(text)) => Ok(Key(text)),
            Node::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => Ok(Key(value.to_string())),
            _ => Err(de::Error::custom("a mapping's key must be text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_knows_its_line_in_the_whole_stream() {
        let documents = parse_documents(
            "# a comment\na: 1\n---\nkind: X\nspec:\n  http:\n  - route: \"80\"\n    8080: [x]\n",
        );
        let second = documents[1].as_ref().unwrap();
        assert_eq!(second.value["spec"]["http"][0]["route"], "80");
        assert_eq!(second.line_of("kind"), 4);
        assert_eq!(second.line_of("spec.http[0].route"), 7);
        assert_eq!(second.line_of("spec.http[0].8080[0]"), 8);
        assert_eq!(second.line_of("spec.http[0].absent.deeper"), 7);
    }

    #[test]
    fn a_broken_document_does_not_hide_the_others() {
        let documents = parse_documents("a: 1\n---\nb: [\n---\nc: 3\n");
        assert_eq!(documents.len(), 3);
        assert!(documents[1].is_err() && documents[2].as_ref().unwrap().value["c"] == 3);
    }

    #[test]
    fn a_wrong_field_is_named_with_path_and_line() {
        type Bootstrap = crate::envoy::config::bootstrap::v3::Bootstrap;
        let error = from_str::<Bootstrap>("node:\n  id: x\nadmin:\n  adress: y\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("line 4: admin.adress: "), "{error}");
    }

    #[test]
    fn json_and_any_go_both_ways() {
        type Listener = crate::envoy::config::listener::v3::Listener;
        let text = r#"{"name":"x","listenerFilters":[{"name":"f","typedConfig":{"@type":
            "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector","enableJa3Fingerprinting":true}}]}"#;
        let listener: Listener = from_str(text).unwrap();
        let value = json::to_value(&listener).unwrap();
        assert_eq!(
            value["listenerFilters"][0]["typedConfig"]["enableJa3Fingerprinting"],
            true
        );
    }
}
