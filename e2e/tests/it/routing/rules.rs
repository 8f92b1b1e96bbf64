//! What rules of destinations say beside how requests are balanced.

use e2e::echo::{Call, Outcome, Protocol};

use super::CLIENTS;
use super::row::{Row, is_by};
use super::rows::{MANY, of};

/// Names with a rule and routes, the namespaces that these are exported to, and whether the clients are in them.
const EXPORTS: [(&str, &str, bool); 4] = [
    ("shown-to-some", "[open, open-envoy]", true),
    ("shown-to-all", "['*']", true),
    ("shown-to-others", "[elsewhere]", false),
    ("shown-to-nobody", "[.]", false),
];

pub(super) fn configuration() -> String {
    let selected = include_str!("../../routing/selected.yaml");
    let selected = CLIENTS.map(|name| selected.replace("{{namespace}}", name));
    let exported = EXPORTS.map(|(name, namespaces, _)| {
        include_str!("../../routing/exported.yaml")
            .replace("{{name}}", name)
            .replace("{{namespaces}}", namespaces)
    });
    let own = include_str!("../../routing/rules.yaml");
    [own, &selected.concat(), &exported.concat()].concat()
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = destinations();
    rows.extend(EXPORTS.map(exported));
    rows
}

/// A rule and routes count for those who see them.
fn exported((name, _, is_seen): (&'static str, &str, bool)) -> Row {
    let calls = vec![of(name), of("app").host(&format!("{name}.test"))];
    Row::about(name, calls, move |seen| {
        if is_seen {
            seen[0].status == Some(503) && seen[1].status == Some(418)
        } else {
            seen.iter().all(Outcome::is_served)
        }
    })
}

fn destinations() -> Vec<Row> {
    let line = |address: &str| Call::new(Protocol::Tcp, address);
    let all_by_second = |seen: &[Outcome]| seen.iter().all(|outcome| is_by("v2", outcome));
    vec![
        // The second server is asked for a tunnel to the first.
        Row::about("a tunnel", vec![line("connect.servers:3128")], |seen| {
            is_by("v1", &seen[0])
        }),
        Row::about(
            "the proxy protocol",
            vec![line("announced.servers:9012")],
            |seen| is_by("v1", &seen[0]) && seen[0].text.contains("PROXY TCP4 "),
        ),
        Row::about(
            "the proxy protocol in binary",
            vec![line("announced-in-binary.servers:9013")],
            |seen| is_by("v1", &seen[0]) && seen[0].text.contains("PROXY2 "),
        ),
        Row::about(
            "a rule for some workloads",
            vec![of("selected"); MANY],
            all_by_second,
        ),
        Row::about(
            "preferred by label",
            vec![of("app").host("preferred.test"); MANY],
            all_by_second,
        ),
    ]
}
