//! `proxy-status POD`: what Pilot would send a proxy now, beside what the proxy has, kind by kind. Resources are compared by
//! name, as the messages they are; of those that differ the lines that differ are shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use similar::TextDiff;

/// A kind of resource: what it is called, its section of a dump, the list in that, the message's field.
struct Kind {
    title: &'static str,
    section: &'static str,
    list: &'static str,
    message: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        title: "Clusters",
        section: "ClustersConfigDump",
        list: "dynamic_active_clusters",
        message: "cluster",
    },
    Kind {
        title: "Listeners",
        section: "ListenersConfigDump",
        list: "dynamic_listeners",
        message: "listener",
    },
    Kind {
        title: "Routes",
        section: "RoutesConfigDump",
        list: "dynamic_route_configs",
        message: "route_config",
    },
    Kind {
        title: "Endpoints",
        section: "EndpointsConfigDump",
        list: "dynamic_endpoint_configs",
        message: "endpoint_config",
    },
];

/// Lines around a difference.
const CONTEXT: usize = 3;

/// The comparison as text; true with it if everything matches.
pub(super) fn compare(pilot: &Value, proxy: &Value) -> (String, bool) {
    let mut text = String::new();
    let mut is_same = true;
    for kind in KINDS {
        let (sent, held) = (resources(pilot, kind), resources(proxy, kind));
        // Only a proxy that was asked for them shows its endpoints.
        if kind.title == "Endpoints" && (sent.is_empty() || held.is_empty()) {
            continue;
        }
        let differences = differences(&sent, &held);
        // Writing to a string cannot fail.
        if differences.is_empty() {
            let _ = writeln!(text, "{} Match", kind.title);
        } else {
            is_same = false;
            let _ = writeln!(text, "{} Don't Match", kind.title);
            text.push_str(&differences);
        }
    }
    (text, is_same)
}

/// The messages of a kind by name.
fn resources<'a>(dump: &'a Value, kind: &Kind) -> BTreeMap<&'a str, &'a Value> {
    let messages =
        super::super::proxy_config::section(dump, kind.section, &[kind.list], kind.message);
    let named = messages.into_iter().filter_map(|message| {
        let name = message["name"]
            .as_str()
            .or_else(|| message["cluster_name"].as_str());
        Some((name?, message))
    });
    named.collect()
}

fn differences(sent: &BTreeMap<&str, &Value>, held: &BTreeMap<&str, &Value>) -> String {
    let mut text = String::new();
    let mut names: Vec<&str> = sent.keys().chain(held.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        match (sent.get(name), held.get(name)) {
            (Some(_), None) => {
                let _ = writeln!(text, "- {name}: the proxy does not have it");
            }
            (None, Some(_)) => {
                let _ = writeln!(text, "+ {name}: pilot does not send it any more");
            }
            (Some(sent), Some(held)) if sent != held => {
                let (sent, held) = (pretty(sent), pretty(held));
                let diff = TextDiff::from_lines(&sent, &held);
                let mut unified = diff.unified_diff();
                let (pilot, proxy) = (format!("Pilot {name}"), format!("Proxy {name}"));
                let shown = unified.context_radius(CONTEXT).header(&pilot, &proxy);
                let _ = write!(text, "{shown}");
            }
            _ => {}
        }
    }
    text
}

fn pretty(message: &Value) -> String {
    serde_json::to_string_pretty(message).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "json! makes values")]
    fn dump(clusters: Value) -> Value {
        json!({"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": clusters}]})
    }

    #[test]
    fn equal_configurations_match_whatever_their_order() {
        let one = json!({"version_info": "1", "cluster": {"name": "a", "type": "EDS"}});
        let two = json!({"version_info": "2", "cluster": {"name": "b"}});
        let (text, is_same) = compare(&dump(json!([one, two])), &dump(json!([two, one])));
        assert!(is_same, "{text}");
        assert_eq!(text, "Clusters Match\nListeners Match\nRoutes Match\n");
    }

    #[test]
    fn differences_are_shown_by_resource_and_line() {
        let pilot = dump(
            json!([{"cluster": {"name": "a", "connect_timeout": "10s"}}, {"cluster": {"name": "new"}}]),
        );
        let proxy = dump(
            json!([{"cluster": {"name": "a", "connect_timeout": "1s"}}, {"cluster": {"name": "old"}}]),
        );
        let (text, is_same) = compare(&pilot, &proxy);
        assert!(!is_same);
        for line in [
            "Clusters Don't Match",
            "--- Pilot a",
            "+++ Proxy a",
            "-  \"connect_timeout\": \"10s\"",
            "+  \"connect_timeout\": \"1s\"",
            "- new: the proxy does not have it",
            "+ old: pilot does not send it any more",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
