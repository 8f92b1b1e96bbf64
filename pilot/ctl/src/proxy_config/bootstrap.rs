//! `proxy-config bootstrap`: what the proxy started with, as JSON.

use serde_json::Value;

/// The bootstrap of a `/config_dump`.
pub fn message(dump: &Value) -> Value {
    let sections = dump["configs"].as_array().into_iter().flatten();
    let mut bootstraps = sections.filter(|section| {
        section["@type"]
            .as_str()
            .is_some_and(|name| name.ends_with(".BootstrapConfigDump"))
    });
    bootstraps
        .next()
        .map_or(Value::Null, |section| section["bootstrap"].clone())
}
