//! Patches of what Pilot makes.

use e2e::echo::{Call, Protocol};

use super::row::{Row, is_by};
use super::rows::of;

pub(super) const CONFIGURATION: &str = include_str!("../../routing/filters.yaml");

pub(super) fn rows() -> Vec<Row> {
    // What is said to a filter that echoes comes back as it was.
    let echoed = |name, address: &str| {
        Row::about(name, vec![Call::new(Protocol::Tcp, address)], |seen| {
            seen[0].text == "hello\n"
        })
    };
    let patched = |target: &str| of("app").host("patched.test").target(target);
    vec![
        Row::about(
            "a route patched, and a cluster added",
            vec![patched("/patched"), patched("/")],
            |seen| is_by("v2", &seen[0]) && is_by("v1", &seen[1]),
        ),
        echoed("a network filter replaced", "lines.servers:9014"),
        echoed("a listener added", "127.0.0.1:18999"),
    ]
}
