//! How messages are printed: lines for people, JSON, YAML, and SARIF for editors and code hosts.

use super::message::{CODES, Level, Message};
use serde_json::{Value, json};
use std::{fmt::Write as _, str::FromStr};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A line for each message.
    #[default]
    Log,
    /// A JSON array.
    Json,
    /// The same as YAML.
    Yaml,
    /// SARIF 2.1.0.
    Sarif,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "log" | "text" | "table" => Ok(Self::Log),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            "sarif" => Ok(Self::Sarif),
            _ => Err("use log, json, yaml or sarif".to_owned()),
        }
    }
}

/// The messages in that form, with a newline at the end.
pub fn render(messages: &[Message], format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Log => lines(messages),
        Format::Json => serde_json::to_string_pretty(&rows(messages))? + "\n",
        Format::Yaml => proto::yaml::to_string(&rows(messages))?,
        Format::Sarif => serde_json::to_string_pretty(&sarif(messages))? + "\n",
    })
}

fn lines(messages: &[Message]) -> String {
    if messages.is_empty() {
        return "✔ No validation issues found.\n".to_owned();
    }
    let mut text = String::new();
    for message in messages {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{message}");
    }
    let count = |level: Level| messages.iter().filter(|m| m.level == level).count();
    let _ = writeln!(
        text,
        "{} errors, {} warnings, {} notes",
        count(Level::Error),
        count(Level::Warning),
        count(Level::Info)
    );
    text
}

/// The messages as rows of JSON.
pub(super) fn rows(messages: &[Message]) -> Vec<Value> {
    let row = |message: &Message| {
        let info = message.code.info();
        json!({
            "code": info.id,
            "name": info.name,
            "level": message.level,
            "resource": message.resource,
            "message": message.text,
            "file": message.file,
            "line": message.line,
            "documentation": info.about,
        })
    };
    messages.iter().map(row).collect()
}

fn sarif(messages: &[Message]) -> Value {
    let level = |level: Level| match level {
        Level::Info => "note",
        Level::Warning => "warning",
        Level::Error => "error",
    };
    let rules: Vec<Value> = CODES
        .iter()
        .filter(|code| {
            messages
                .iter()
                .any(|message| message.code.info().id == code.id)
        })
        .map(|code| {
            json!({
                "id": code.id,
                "name": code.name,
                "shortDescription": {"text": code.about},
                "defaultConfiguration": {"level": level(code.level)},
            })
        })
        .collect();
    let results: Vec<Value> = messages
        .iter()
        .map(|message| {
            let mut result = json!({
                "ruleId": message.code.info().id,
                "level": level(message.level),
                "message": {"text": format!("{}: {}", message.resource, message.text)},
            });
            let logical = json!([{"fullyQualifiedName": message.resource, "kind": "resource"}]);
            let mut location = json!({"logicalLocations": logical});
            if !message.file.is_empty() {
                location["physicalLocation"] = json!({
                    "artifactLocation": {"uri": message.file},
                    "region": {"startLine": message.line.max(1)},
                });
            }
            result["locations"] = json!([location]);
            result
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "galley",
                "version": proto_component::version::version().version,
                "rules": rules,
            }},
            "results": results,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::{super::message::Code, *};

    #[test]
    fn json_tells_what_a_message_means() {
        let message = Message {
            code: Code::UnknownDestinationRuleHost,
            level: Level::Warning,
            resource: "DestinationRule web.default".to_owned(),
            kind: "DestinationRule".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            text: "Nobody serves the host \"web\"".to_owned(),
            file: "web.yaml".to_owned(),
            line: 4,
        };
        let text = render(&[message], Format::Json).unwrap();
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            told,
            json!([{
                "code": "IST0174",
                "name": "UnknownDestinationRuleHost",
                "level": "Warning",
                "resource": "DestinationRule web.default",
                "message": "Nobody serves the host \"web\"",
                "file": "web.yaml",
                "line": 4,
                "documentation": "Nobody serves the destination rule's host.",
            }])
        );
    }

    #[test]
    fn every_code_has_documentation() {
        for code in CODES {
            assert!(code.about.ends_with('.'), "{}: {:?}", code.id, code.about);
        }
    }
}
