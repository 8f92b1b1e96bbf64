//! Takes out what changes from run to run: dates, request ids, ephemeral ports, the run's address and folder, durations.

use regex::Regex;
use serde_json::{Value, json};
use std::{io::Read as _, sync::LazyLock};

/// Longer bodies are compared by length and checksum.
const SHOWN: usize = 2000;

static RULES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "UUID",
        ),
        (
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(?:Z|[+-]\d{4})",
            "TIME",
        ),
        (
            r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
            "DATE",
        ),
        (r"(PROXY TCP4 \S+ \S+) \d+", "$1 EPHEMERAL"),
        // Ephemeral ports; a group's own are below 30000.
        (
            r"\b(127\.\d+\.\d+\.\d+|\[::1\]|ADDRESS):(3[2-9]\d{3}|[456]\d{4})\b",
            "$1:EPHEMERAL",
        ),
    ]
    .into_iter()
    .filter_map(|(rule, with)| Some((Regex::new(rule).ok()?, with)))
    .collect()
});
/// Fields whose value is a time or random.
const VOLATILE: &[&str] = &[
    "date",
    "x-request-id",
    "x-envoy-upstream-service-time",
    "x-envoy-expected-rq-timeout-ms",
];

/// Fields that carry a trace's ids.
const TRACE: &[&str] = &[
    "traceparent",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
];
/// Ids of traces that cases begin: they must come through. Others are random.
const GIVEN: &[&str] = &[
    "463ac35c9f6413ad48485a3953bb6124",
    "a2fb4a1d1a96d312",
    "0af7651916cd43dd8448eb211c80319c",
    "b7ad6b7169203331",
];
static ID: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\b([0-9a-f]{32}|[0-9a-f]{16})\b").ok());

/// Ids of traces.
fn trace(value: &str) -> String {
    let Some(id) = ID.as_ref() else {
        return value.to_owned();
    };
    let steady = |found: &regex::Captures<'_>| {
        let found = &found[0];
        let name = if GIVEN.contains(&found) { found } else { "ID" };
        name.to_owned()
    };
    id.replace_all(value, steady).into_owned()
}

/// A text.
#[must_use]
pub fn text(text: &str) -> String {
    RULES.iter().fold(text.to_owned(), |text, (rule, with)| {
        rule.replace_all(&text, *with).into_owned()
    })
}

/// Bytes: unpacked if they are gzip's (two libraries pack differently), as text where they are, shortened where they are many.
#[must_use]
pub fn bytes(bytes: &[u8]) -> Value {
    if let Some(unpacked) = unpacked(bytes) {
        return json!({"gzip": self::bytes(&unpacked)});
    }
    if bytes.len() > SHOWN {
        let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        return json!(format!("{} bytes, checksum {sum:016x}", bytes.len()));
    }
    match std::str::from_utf8(bytes) {
        Ok(plain) => json!(text(plain)),
        Err(_) => {
            json!({"hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()})
        }
    }
}

fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .read_to_end(&mut unpacked)
        .ok()?;
    (!unpacked.is_empty()).then_some(unpacked)
}

/// A header's value.
#[must_use]
pub fn field(name: &str, value: &str) -> String {
    let name = name.to_ascii_lowercase();
    if name == "x-envoy-expected-rq-timeout-ms" {
        // What is left of a timeout: a busy machine takes its part of it.
        return value.parse::<u64>().map_or_else(
            |_| value.to_owned(),
            |time| {
                let step = if time > 2000 { 1000 } else { 100 };
                format!("about {}", time.div_ceil(step) * step)
            },
        );
    }
    if TRACE.contains(&name.as_str()) {
        return trace(value);
    }
    if VOLATILE.contains(&name.as_str()) && value.len() < 64 {
        return match value.parse::<u64>() {
            Ok(_) => "NUMBER".to_owned(),
            Err(_) => text(value),
        };
    }
    text(value)
}

/// Everything in an outcome: the run's address and folders, then every text.
#[must_use]
pub fn value(value: Value, words: &[(String, &str)]) -> Value {
    match value {
        Value::String(plain) => {
            let plain = words.iter().fold(plain, |plain, (word, with)| {
                plain.replace(word.as_str(), with)
            });
            json!(text(&plain))
        }
        Value::Array(items) => items
            .into_iter()
            .map(|item| self::value(item, words))
            .collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(key, item)| {
                let key = words
                    .iter()
                    .fold(key, |key, (word, with)| key.replace(word.as_str(), with));
                (key, self::value(item, words))
            })
            .collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_taken_out() {
        for (given, want) in [
            ("127.0.0.1:45678 x", "127.0.0.1:EPHEMERAL x"),
            ("127.40.1.2:10001", "127.40.1.2:10001"),
            ("2026-11-21T07:41:55.123Z", "TIME"),
            ("2026-11-21T07:41:55.123+0530", "TIME"),
        ] {
            assert_eq!(text(given), want);
        }
        assert_eq!(field("x-envoy-upstream-service-time", "12"), "NUMBER");
        let ids = "00-0af7651916cd43dd8448eb211c80319c-0123456789abcdef-01";
        let steady = "00-0af7651916cd43dd8448eb211c80319c-ID-01";
        assert_eq!(field("traceparent", ids), steady);
    }
}
