//! Services outside: resolutions, names with a wildcard, who sees them; and what their addresses and names of TLS lead to.

use e2e::echo::{Call, Outcome, Protocol, Tls};

use super::row::{Row, is_by};
use super::rows::{MANY, of};
use super::servers;

pub(super) const CONFIGURATION: &str = include_str!("../../routing/entries.yaml");

/// Rows; `roots` are those of the servers that speak TLS.
pub(super) fn rows(roots: &str) -> Vec<Row> {
    let mut rows = resolutions();
    rows.extend(addresses(roots));
    rows
}

/// A request for `host` that would get to some server without any entry.
fn get(host: &str) -> Call {
    of("app").host(host)
}

/// True when the route of that entry was taken to a server.
fn is_entry(name: &str, outcome: &Outcome) -> bool {
    outcome.is_served() && outcome.text.contains(&format!("\"x-entry\": \"{name}\""))
}

fn resolutions() -> Vec<Row> {
    vec![
        Row::about(
            "no resolution",
            vec![Call::new(Protocol::Http1, "headless.servers:8001").host("none.test")],
            |seen| is_entry("none", &seen[0]),
        ),
        Row::about(
            "one of a name's addresses",
            vec![get("rotating.test")],
            |seen| is_entry("rotating", &seen[0]),
        ),
        Row::about(
            "the name that is asked for",
            vec![get("app.untold.svc.cluster.local")],
            |seen| is_entry("dynamic", &seen[0]) && is_by("untold", &seen[0]),
        ),
        Row::about(
            "a wildcard",
            vec![get("a.wild.test"), get("b.a.wild.test"), get("wild.test")],
            |seen| {
                let of_entry = |outcome| is_entry("wild", outcome) && is_by("v2", outcome);
                of_entry(&seen[0])
                    && of_entry(&seen[1])
                    && seen[2].is_served()
                    && !is_entry("wild", &seen[2])
            },
        ),
        Row::about(
            "exported and private",
            vec![get("exported.test"), get("private.test")],
            |seen| seen[0].status == Some(503) && seen[1].is_served(),
        ),
    ]
}

fn addresses(roots: &str) -> Vec<Row> {
    let line = |address: &str| Call::new(Protocol::Tcp, address);
    let secure = |name: &str| {
        let tls = Tls {
            server_name: name.to_owned(),
            roots: roots.to_owned(),
            ..Tls::default()
        };
        Call::new(Protocol::Http1, "240.240.6.1:443").tls(tls)
    };
    vec![
        Row::about(
            "destinationSubnets",
            vec![line("240.240.7.7:9008"), line("240.240.7.8:9008")],
            |seen| is_by("v1", &seen[0]) && is_by("v2", &seen[1]),
        ),
        Row::about("sniHosts", vec![secure("all.secure.test"); MANY], |seen| {
            seen.iter().all(|outcome| is_by("v2", outcome))
        }),
        Row::about(
            "weights of TLS",
            vec![secure("split.secure.test"); MANY],
            |seen| seen.iter().all(Outcome::is_served) && servers(seen).len() == 2,
        ),
    ]
}
