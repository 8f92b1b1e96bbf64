//! `/listeners`: names and addresses.

use super::server::{Admin, Answer, Query};
use crate::wire::AnyAddress;
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(super) fn listeners(admin: &Admin, query: &Query) -> Answer {
    let map = admin.store.listeners.map();
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = map
            .by_name
            .values()
            .map(|listener| {
                let mut addresses = listener.local_addresses.iter().map(address);
                let mut status =
                    json!({ "name": &*listener.name, "local_address": addresses.next() });
                let more: Vec<Value> = addresses.collect();
                if !more.is_empty() {
                    status["additional_local_addresses"] = more.into();
                }
                status
            })
            .collect();
        return Answer::Json(json!({ "listener_statuses": statuses }));
    }
    let mut text = String::new();
    for listener in map.by_name.values() {
        for address in &listener.local_addresses {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}::{address}", listener.name);
        }
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
