//! Attributes on a command line, as `mixc` of the 1.4 line took them: `name=value,name=value`, by type or (`--attributes`) by
//! what the standard manifest, or else the value itself, says.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context as _;
use clap::Args;
use proto_component::process::Usage;
use proto_mesh::attribute::{Attributes, Value, ValueType};

use crate::lang::time_text;

/// The standard manifests, which every installation has.
const STANDARD: &str = include_str!("../default/attributes.yaml");

/// Flags with attributes.
#[derive(Clone, Debug, Default, Args)]
pub struct AttributeArgs {
    /// Attributes of any type: name=value,…
    #[arg(short = 'a', long)]
    pub attributes: Option<String>,
    /// Strings: name=value,…
    #[arg(short = 's', long = "string_attributes")]
    pub strings: Option<String>,
    /// Integers: name=value,…
    #[arg(short = 'i', long = "int64_attributes")]
    pub int64s: Option<String>,
    /// Floating-point numbers: name=value,…
    #[arg(short = 'd', long = "double_attributes")]
    pub doubles: Option<String>,
    /// Booleans: name=value,…
    #[arg(short = 'b', long = "bool_attributes")]
    pub bools: Option<String>,
    /// Times in RFC 3339: name=value,…
    #[arg(long = "timestamp_attributes")]
    pub timestamps: Option<String>,
    /// Durations: name=1m30s,…
    #[arg(long = "duration_attributes")]
    pub durations: Option<String>,
    /// Bytes: name=0a:00:00:01,… (an address may be written as one)
    #[arg(long = "bytes_attributes")]
    pub bytes: Option<String>,
    /// String maps: name=key:value;key:value,…
    #[arg(long = "stringmap_attributes")]
    pub maps: Option<String>,
}

impl AttributeArgs {
    /// All of them.
    pub(crate) fn read(&self) -> anyhow::Result<Attributes> {
        let known = standard_types();
        let mut attributes = Attributes::new();
        let typed = [
            (&self.strings, ValueType::String, "--string_attributes"),
            (&self.int64s, ValueType::Int64, "--int64_attributes"),
            (&self.doubles, ValueType::Double, "--double_attributes"),
            (&self.bools, ValueType::Bool, "--bool_attributes"),
            (
                &self.timestamps,
                ValueType::Timestamp,
                "--timestamp_attributes",
            ),
            (
                &self.durations,
                ValueType::Duration,
                "--duration_attributes",
            ),
            (&self.bytes, ValueType::IpAddress, "--bytes_attributes"),
            (&self.maps, ValueType::StringMap, "--stringmap_attributes"),
        ];
        for (name, text) in pairs(self.attributes.as_deref(), "--attributes")? {
            let value = match known.get(&name) {
                Some(kind) => parse(&text, *kind),
                None => Some(guess(&text)),
            };
            let value = value.with_context(|| unreadable("--attributes", &name, &text))?;
            attributes.set(name, value);
        }
        for (list, kind, flag) in typed {
            for (name, text) in pairs(list.as_deref(), flag)? {
                let value = parse(&text, kind).with_context(|| unreadable(flag, &name, &text))?;
                attributes.set(name, value);
            }
        }
        Ok(attributes)
    }
}

fn unreadable(flag: &str, name: &str, text: &str) -> Usage {
    Usage(format!("{flag}: {name}: {text:?} is not of its type"))
}

/// `name=value,name=value`; no text and an empty one are none.
pub(crate) fn pairs(list: Option<&str>, flag: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for part in list
        .unwrap_or_default()
        .split(',')
        .filter(|part| !part.is_empty())
    {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| Usage(format!("{flag}: {part:?} is not name=value")))?;
        pairs.push((name.trim().to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

fn parse(text: &str, kind: ValueType) -> Option<Value> {
    Some(match kind {
        ValueType::String | ValueType::DnsName | ValueType::EmailAddress | ValueType::Uri => {
            Value::from(text.to_owned())
        }
        ValueType::Int64 => Value::Int64(text.parse().ok()?),
        ValueType::Double => Value::Double(text.parse().ok()?),
        ValueType::Bool => Value::Bool(text.parse().ok()?),
        ValueType::Timestamp => Value::Timestamp(time_text::parse_timestamp(text)?),
        ValueType::Duration => {
            Value::Duration(time_text::wire_duration(time_text::parse_duration(text)?))
        }
        ValueType::IpAddress => Value::Bytes(address(text).or_else(|| hex(text))?),
        ValueType::StringMap => {
            let entries = text.split(';').filter(|entry| !entry.is_empty());
            let entries = entries.map(|entry| {
                let (key, value) = entry.split_once(':')?;
                Some((Cow::Owned(key.to_owned()), value.to_owned()))
            });
            Value::StringMap(entries.collect::<Option<_>>()?)
        }
    })
}

fn address(text: &str) -> Option<Vec<u8>> {
    Some(match text.parse().ok()? {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect()
}

/// The type that a text looks like.
fn guess(text: &str) -> Value {
    let kinds = [
        ValueType::Int64,
        ValueType::Double,
        ValueType::Bool,
        ValueType::Timestamp,
        ValueType::Duration,
    ];
    let address = address(text).map(Value::Bytes);
    address
        .or_else(|| kinds.into_iter().find_map(|kind| parse(text, kind)))
        .unwrap_or_else(|| Value::from(text.to_owned()))
}

/// The type of a value as a manifest would declare it.
pub(crate) fn type_of(value: &Value) -> ValueType {
    match value {
        Value::String(_) => ValueType::String,
        Value::Int64(_) => ValueType::Int64,
        Value::Double(_) => ValueType::Double,
        Value::Bool(_) => ValueType::Bool,
        Value::Timestamp(_) => ValueType::Timestamp,
        Value::Duration(_) => ValueType::Duration,
        Value::Bytes(_) => ValueType::IpAddress,
        Value::StringMap(_) => ValueType::StringMap,
    }
}

/// The types of the standard attributes.
pub(crate) fn standard_types() -> BTreeMap<String, ValueType> {
    let documents = proto::yaml::parse_documents(STANDARD).into_iter().flatten();
    let mut types = BTreeMap::new();
    for document in documents {
        let attributes = document.value.pointer("/spec/attributes");
        let attributes = attributes.and_then(|attributes| attributes.as_object());
        for (name, info) in attributes.into_iter().flatten() {
            let kind = info["valueType"].as_str().and_then(ValueType::from_name);
            types.extend(kind.map(|kind| (name.clone(), kind)));
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_by_type() {
        let args = AttributeArgs {
            attributes: Some(
                "source.ip=10.0.0.1,response.code=200,mine=1.5,source.labels=app:web;v:2".into(),
            ),
            durations: Some("response.duration=1ms".into()),
            ..AttributeArgs::default()
        };
        let read = args.read().unwrap();
        assert_eq!(
            read.get("source.ip"),
            Some(&Value::Bytes(vec![10, 0, 0, 1]))
        );
        assert_eq!(read.get("response.code"), Some(&Value::Int64(200)));
        assert_eq!(read.get("mine"), Some(&Value::Double(1.5)));
        let labels = vec![("app".into(), "web".into()), ("v".into(), "2".into())];
        assert_eq!(read.get("source.labels"), Some(&Value::StringMap(labels)));
        for bad in ["response.code=x", "nothing"] {
            let args = AttributeArgs {
                attributes: Some(bad.into()),
                ..AttributeArgs::default()
            };
            assert!(args.read().is_err(), "{bad}");
        }
        assert!(standard_types().len() > 80);
    }
}
