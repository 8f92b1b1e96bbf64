//! `/listeners`: names and addresses.

use super::server::{Admin, Answer, Query};
use crate::wire::AnyAddress;
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(super) fn listeners(admin: &Admin, query: &Query) -> Answer {
    let map = admin.store.listeners.map();
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = map.by_name.values()
            .map(|listener| json!({ "name": &*listener.name, "local_address": address(&listener.local_address) }))
            .collect();
        return Answer::Json(json!({ "listener_statuses": statuses }));
    }
    let mut text = String::new();
    for listener in map.by_name.values() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}::{}", listener.name, listener.local_address);
    }
    Answer::Text(text)
}

/// An address as Envoy's JSON has it.
pub(super) fn address(address: &AnyAddress) -> Value {
    match address {
        AnyAddress::Socket(address) => {
            json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
        }
        AnyAddress::Name(name, port) => {
            json!({ "socket_address": { "address": name, "port_value": port } })
        }
        AnyAddress::Pipe(path) => json!({ "pipe": { "path": path.display().to_string() } }),
    }
}
