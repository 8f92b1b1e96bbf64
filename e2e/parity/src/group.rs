//! Reads a group's file: YAML → rows of tables expanded → placeholders filled → [`Group`].
//!
//! - `each: [{..}, ..]` in a case makes one case of every entry; `{{word}}` stands for the entry's field, in the name too.
//! - `{{address}}`, `{{dir}}`, `{{certs}}`, `{{port.NAME}}` (a listener, an upstream, `admin`), `{{hex80.TEXT}}` are filled everywhere.
//! - A case with the fields of a client or of a request is a case with one such client, one such request.

use crate::case::Group;
use anyhow::{Context as _, bail};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

/// Fields of a client.
const CLIENT: &[&str] = &[
    "to",
    "unix",
    "from",
    "tls",
    "prelude",
    "h2",
    "requests",
    "concurrent",
    "talk",
    "frames",
    "after",
];
/// Fields of a request.
const REQUEST: &[&str] = &[
    "get",
    "method",
    "path",
    "host",
    "scheme",
    "headers",
    "body",
    "trailers",
    "grpc",
    "reset_after",
];
/// The first listener's port.
const LISTENERS: u16 = 10000;
/// The first upstream's port.
const UPSTREAMS: u16 = 20000;
/// The admin interface's port. Not Envoy's usual one: what listens there on every address would be in the way.
pub const ADMIN: u16 = 29901;

/// Where a group runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Every listener's and upstream's address.
    pub address: Ipv4Addr,
    /// The run's folder.
    pub dir: String,
    /// The folder of certificates.
    pub certs: String,
}

impl Place {
    /// The address of the admin interface.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.address.into(), ADMIN)
    }
}

/// Reads a group for a place.
///
/// # Errors
/// When the file can't be read, is not YAML, or holds something unknown.
pub fn read(file: &Path, place: &Place) -> anyhow::Result<Group> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let name = file
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    parse(&text, &name, place).with_context(|| format!("read {}", file.display()))
}

/// Reads a group from its text.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, name: &str, place: &Place) -> anyhow::Result<Group> {
    let mut value: Value = serde_saphyr::from_str(text)?;
    let words = words(&value, place)?;
    let root = value.as_object_mut().context("a group is a map")?;
    root.insert("name".to_owned(), name.into());
    if let Some(Value::Array(cases)) = root.get_mut("cases") {
        let rows = std::mem::take(cases);
        for row in rows {
            let Value::Object(row) = row else {
                bail!("a case is a map")
            };
            cases.extend(
                expand(row)?
                    .into_iter()
                    .map(|case| Value::Object(shape(case))),
            );
        }
    }
    fill(&mut value, &words);
    let group: Group =
        serde_json::from_value(value.clone()).map_err(|error| explain(&value, &error))?;
    let mut names = std::collections::BTreeSet::new();
    for case in &group.cases {
        anyhow::ensure!(
            names.insert(&case.name),
            "two cases are called {}",
            case.name
        );
        anyhow::ensure!(
            !case.name.contains("{{"),
            "{} has an unknown word",
            case.name
        );
    }
    Ok(group)
}

/// Which case it is that can't be read.
fn explain(value: &Value, error: &serde_json::Error) -> anyhow::Error {
    let cases = value["cases"].as_array().into_iter().flatten();
    for case in cases {
        if let Err(error) = serde_json::from_value::<crate::case::Case>(case.clone()) {
            return anyhow::anyhow!("case {}: {error}", case["name"]);
        }
    }
    anyhow::anyhow!("{error}")
}

/// All placeholders of a group.
fn words(value: &Value, place: &Place) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut words = BTreeMap::from([
        ("address".to_owned(), place.address.to_string().into()),
        ("dir".to_owned(), place.dir.clone().into()),
        ("certs".to_owned(), place.certs.clone().into()),
        ("port.admin".to_owned(), ADMIN.into()),
    ]);
    for (kind, first) in [("listeners", LISTENERS), ("upstreams", UPSTREAMS)] {
        let Some(named) = value.get(kind).and_then(Value::as_object) else {
            continue;
        };
        for (index, (name, item)) in named.iter().enumerate() {
            let port = match item.get("port").and_then(Value::as_u64) {
                Some(port) => u16::try_from(port)?,
                None => first + u16::try_from(index)?,
            };
            // Where both have the name, the listener's port goes by it.
            words
                .entry(format!("port.{name}"))
                .or_insert_with(|| port.into());
        }
    }
    Ok(words)
}

/// One case of every entry of `each`.
fn expand(mut row: Map<String, Value>) -> anyhow::Result<Vec<Map<String, Value>>> {
    let Some(each) = row.remove("each") else {
        return Ok(vec![row]);
    };
    let Value::Array(entries) = each else {
        bail!("`each` is a list")
    };
    let mut cases = Vec::new();
    for entry in entries {
        let Value::Object(entry) = entry else {
            bail!("an entry of `each` is a map")
        };
        let mut case = Value::Object(row.clone());
        let words: BTreeMap<String, Value> = entry.into_iter().collect();
        fill(&mut case, &words);
        let Value::Object(mut case) = case else {
            bail!("a case is a map")
        };
        // What an entry says of the case itself wins.
        for (key, value) in words {
            if let Some(field) = key.strip_prefix('+') {
                case.insert(field.to_owned(), value);
            }
        }
        cases.push(case);
    }
    Ok(cases)
}

/// Moves a client's and a request's fields to where they belong.
fn shape(mut case: Map<String, Value>) -> Map<String, Value> {
    let mut client = take(&mut case, CLIENT);
    let request = take(&mut case, REQUEST);
    if !request.is_empty() {
        client.insert(
            "requests".to_owned(),
            Value::Array(vec![Value::Object(request)]),
        );
    }
    if let Some(Value::Array(clients)) = case.get_mut("clients") {
        for each in clients.iter_mut().filter_map(Value::as_object_mut) {
            let request = take(each, REQUEST);
            if !request.is_empty() {
                each.insert(
                    "requests".to_owned(),
                    Value::Array(vec![Value::Object(request)]),
                );
            }
            for (key, value) in &client {
                each.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    } else if !client.is_empty() {
        case.insert(
            "clients".to_owned(),
            Value::Array(vec![Value::Object(client)]),
        );
    }
    case
}

fn take(from: &mut Map<String, Value>, keys: &[&str]) -> Map<String, Value> {
    keys.iter()
        .filter_map(|key| from.remove(*key).map(|value| ((*key).to_owned(), value)))
        .collect()
}

/// Fills placeholders: a text that is nothing but one takes its type. Unknown ones stay.
fn fill(value: &mut Value, words: &BTreeMap<String, Value>) {
    match value {
        Value::String(text) => {
            if let Some(word) = text
                .strip_prefix("{{")
                .and_then(|text| text.strip_suffix("}}"))
                && let Some(filled) = words.get(word)
            {
                *value = filled.clone();
            } else if text.contains("{{") {
                *text = fill_text(text, words);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, words)),
        Value::Object(map) => {
            let keys: Vec<String> = map
                .keys()
                .filter(|key| key.contains("{{"))
                .cloned()
                .collect();
            for key in keys {
                if let Some(value) = map.remove(&key) {
                    map.insert(fill_text(&key, words), value);
                }
            }
            map.values_mut().for_each(|item| fill(item, words));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn fill_text(text: &str, words: &BTreeMap<String, Value>) -> String {
    let mut text = text.to_owned();
    for (word, value) in words {
        let place = format!("{{{{{word}}}}}");
        if text.contains(&place) {
            let filled = value
                .as_str()
                .map_or_else(|| value.to_string(), ToOwned::to_owned);
            text = text.replace(&place, &filled);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            address: Ipv4Addr::new(127, 1, 2, 3),
            dir: "/d".into(),
            certs: "/c".into(),
        }
    }

    #[test]
    fn a_row_of_a_table_is_a_case_with_one_client_and_one_request() {
        let text = "about: x\nlisteners: {a: {}}\ncases:\n- name: n/{{n}}\n  to: a\n  get: '{{path}}'\n  host: 'h:{{port.a}}'\n  each: [{n: 1, path: /x}, {n: 2, path: /y}]\n";
        let group = parse(text, "g", &place()).unwrap();
        assert_eq!(group.cases.len(), 2);
        let request = &group.cases[1].clients[0].requests[0];
        assert_eq!(
            (&*group.cases[1].name, request.get.as_deref()),
            ("n/2", Some("/y"))
        );
        assert_eq!(request.host.as_deref(), Some("h:10000"));
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_case() {
        let error = parse("about: x\ncases: [{name: one, gett: /}]", "g", &place()).unwrap_err();
        assert!(error.to_string().contains("gett"), "{error}");
        assert!(parse("about: x\ncases: [{name: a}, {name: a}]", "g", &place()).is_err());
    }
}
