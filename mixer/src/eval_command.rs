//! `mixs eval`: evaluates an expression against attributes from the command line, or, with `--jsonl`, expressions from
//! standard input, for comparing the language with other engines.
//!
//! A line of the latter is an object with `id`, `expr`, `attribute_types` and `input`; the answer has `id`, then `type` and `value` or
//! `error` and `error_at`, and `referenced`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};

use anyhow::Context;
use proto_mesh::attribute::{Value, ValueType};
use serde_json::{Map, Value as Json, json};

use crate::args::EvalArgs;
use crate::attribute_args;
use crate::attributes::{Bag, Tracker, Vocabulary};
use crate::lang::{self, Val, time_text};

#[derive(serde::Deserialize)]
struct Case {
    id: String,
    expr: String,
    attribute_types: BTreeMap<String, String>,
    #[serde(default)]
    input: BTreeMap<String, Typed>,
}

#[derive(serde::Deserialize)]
struct Typed {
    t: String,
    v: Json,
}

/// Evaluates one expression; what comes out is its value, then the attributes that it looked at.
///
/// Attributes that are not given may still be named: the standard ones are known.
///
/// # Errors
/// When an attribute cannot be read, the expression does not compile or has no value, or writing fails.
pub fn evaluate(args: &EvalArgs, mut output: impl Write) -> anyhow::Result<()> {
    let text = args.expression.as_deref().unwrap_or_default();
    let attributes = args.attributes.read()?;
    let mut declared = attribute_args::standard_types();
    for (name, value) in attributes.iter() {
        declared
            .entry(name.to_owned())
            .or_insert_with(|| attribute_args::type_of(value));
    }
    let vocabulary = Vocabulary::new(&declared);
    let expression = lang::compile(text, &vocabulary)?;
    let mut bag = Bag::new(&vocabulary);
    for (name, value) in attributes.iter() {
        if let Some(attribute) = vocabulary.find(name) {
            bag.set(attribute.slot, value.as_ref());
        }
    }
    let mut tracker = Tracker::default();
    let outcome = expression.eval(&bag, &mut tracker);
    if let Ok(value) = &outcome {
        writeln!(output, "{} {}", expression.value_type(), value.to_text())?;
    }
    let referenced = tracker.to_text(&vocabulary);
    if !referenced.is_empty() {
        writeln!(output, "referenced: {}", referenced.join(", "))?;
    }
    outcome.map(|_| ()).map_err(anyhow::Error::from)
}

/// Reads cases from `input` and writes an answer a line.
///
/// # Errors
/// When a line is not a case, or reading or writing fails.
pub fn run(input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    for line in input.lines() {
        let line = line.context("read a case")?;
        if line.trim().is_empty() {
            continue;
        }
        let case: Case = serde_json::from_str(&line).context("read a case")?;
        let mut answer = answer(&case);
        answer.insert("id".into(), json!(case.id));
        writeln!(output, "{}", Json::Object(answer)).context("write an answer")?;
    }
    Ok(())
}

fn answer(case: &Case) -> Map<String, Json> {
    let declared = case
        .attribute_types
        .iter()
        .filter_map(|(name, kind)| Some((name.clone(), ValueType::from_name(kind)?)))
        .collect();
    let vocabulary = Vocabulary::new(&declared);
    let mut answer = Map::new();
    let expression = match lang::compile(&case.expr, &vocabulary) {
        Ok(expression) => expression,
        Err(error) => {
            answer.insert("error".into(), json!(error.to_string()));
            answer.insert("error_at".into(), json!("compile"));
            return answer;
        }
    };
    let values: Vec<_> = case
        .input
        .iter()
        .filter_map(|(name, typed)| Some((vocabulary.find(name)?.slot, input_value(typed))))
        .collect();
    let mut bag = Bag::new(&vocabulary);
    for (slot, value) in &values {
        bag.set(*slot, value.as_ref());
    }
    let mut tracker = Tracker::default();
    match expression.eval(&bag, &mut tracker) {
        Ok(value) => {
            answer.insert("type".into(), json!(expression.value_type().name()));
            answer.insert("value".into(), value_json(&value));
        }
        Err(error) => {
            answer.insert("error".into(), json!(error.to_string()));
            answer.insert("error_at".into(), json!("evaluate"));
        }
    }
    answer.insert("referenced".into(), json!(tracker.to_text(&vocabulary)));
    answer
}

/// What has no attribute type (another engine's plain integer) becomes a value of a type that fits nothing.
fn input_value(typed: &Typed) -> Value {
    let text = || typed.v.as_str().unwrap_or_default().to_owned();
    match typed.t.as_str() {
        "STRING" | "DNS_NAME" | "EMAIL_ADDRESS" | "URI" => Value::from(text()),
        "INT64" => Value::Int64(typed.v.as_i64().unwrap_or_default()),
        "DOUBLE" => Value::Double(typed.v.as_f64().unwrap_or_default()),
        "BOOL" => Value::Bool(typed.v.as_bool().unwrap_or_default()),
        "TIMESTAMP" => Value::Timestamp(time_text::parse_timestamp(&text()).unwrap_or_default()),
        "DURATION" => Value::Duration(time_text::wire_duration(
            time_text::parse_duration(&text()).unwrap_or_default(),
        )),
        "IP_ADDRESS" => match text().parse() {
            Ok(std::net::IpAddr::V4(address)) => Value::Bytes(address.octets().to_vec()),
            Ok(std::net::IpAddr::V6(address)) => Value::Bytes(address.octets().to_vec()),
            Err(_) => Value::Bytes(Vec::new()),
        },
        "STRING_MAP" => Value::StringMap(
            typed
                .v
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| {
                    let value = value.as_str().unwrap_or_default().to_owned();
                    (Cow::Owned(key.clone()), value)
                })
                .collect(),
        ),
        _ => Value::Bytes(vec![0]),
    }
}

fn value_json(value: &Val<'_>) -> Json {
    let (kind, json) = match value {
        Val::String(text) => ("STRING", json!(text)),
        Val::Int64(number) => ("INT64", json!(number)),
        Val::Double(number) => ("DOUBLE", json!(number)),
        Val::Bool(flag) => ("BOOL", json!(flag)),
        Val::Timestamp(time) => ("TIMESTAMP", json!(time_text::format_timestamp(*time))),
        Val::Duration(nanos) => ("DURATION", json!(time_text::format_duration(*nanos))),
        Val::Ip(address) => ("IP_ADDRESS", json!(address.to_string())),
        Val::StringMap(map) => (
            "STRING_MAP",
            Json::Object(map.iter().map(|(k, v)| (k.to_owned(), json!(v))).collect()),
        ),
    };
    json!({"t": kind, "v": json})
}
