//! What rules of destinations say beside how requests are balanced.

use e2e::echo::{Call, Outcome, Protocol};

use super::CLIENTS;
use super::row::{Row, is_by};
use super::rows::{MANY, of};

pub(super) fn configuration() -> String {
    let selected = include_str!("../../routing/selected.yaml");
    let selected = CLIENTS.map(|name| selected.replace("{{namespace}}", name));
    include_str!("../../routing/rules.yaml").to_owned() + &selected.concat()
}

pub(super) fn rows() -> Vec<Row> {
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
