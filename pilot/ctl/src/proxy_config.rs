//! `biremectl proxy-config`: what a proxy is configured with, in istioctl's columns. It is read from the proxy's own admin
//! interface, so it works for our proxy and for an Envoy alike. Each subcommand is a pure function from an admin page to
//! rows; fetching the page is [`command`]'s.

pub mod bootstrap;
pub mod cluster;
pub mod command;
pub mod endpoint;
pub mod listener;
pub(crate) mod log;
pub mod route;
pub mod secret;

use serde_json::Value;

/// The messages in a section of `/config_dump` (`ClustersConfigDump`), static ones first. `items` names the lists in it and,
/// for dynamic ones, `message` the field that holds the message.
pub(crate) fn section<'a>(
    dump: &'a Value,
    kind: &str,
    lists: &[&str],
    message: &str,
) -> Vec<&'a Value> {
    let suffix = format!(".{kind}");
    let sections = dump["configs"].as_array().into_iter().flatten();
    sections
        .filter(|section| {
            section["@type"]
                .as_str()
                .is_some_and(|name| name.ends_with(&suffix))
        })
        .flat_map(|section| {
            lists
                .iter()
                .flat_map(|list| section[*list].as_array().into_iter().flatten())
        })
        .map(|item| {
            if item["active_state"].is_object() {
                &item["active_state"][message]
            } else {
                &item[message]
            }
        })
        .filter(|item| item.is_object())
        .collect()
}

/// What of `wanted` a cell must be: nothing asked, anything goes.
fn is_wanted(wanted: Option<&str>, cell: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(cell))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// The address and port of a `socket_address`, or the path of a pipe.
fn address(value: &Value) -> (String, String) {
    let socket = &value["socket_address"];
    if socket.is_object() {
        (text(&socket["address"]), text(&socket["port_value"]))
    } else {
        (
            format!("unix://{}", text(&value["pipe"]["path"])),
            String::new(),
        )
    }
}

#[cfg(test)]
mod tests;
