//! Every kind of object that an EnvoyFilter patches, and every operation on it: each has a port of its own, at which requests or
//! lines tell that it was done. The bootstrap is patched for those who start later.

use e2e::echo::{Call, Outcome, Protocol, Tls};
use e2e::mesh::eventually;
use serde_json::json;

use super::CLIENTS;
use super::row::{Row, is_by};
use crate::SETTLED;
use crate::scene::Scene;

pub(super) const CONFIGURATION: &str = include_str!("../../routing/patches.yaml");

/// Rows; `roots` are those of the servers that speak TLS.
pub(super) fn rows(roots: &str) -> Vec<Row> {
    let mut rows = listeners();
    rows.extend(chains(roots));
    rows.extend(listener_filters());
    rows.extend(network_filters());
    rows.extend(http_filters());
    rows.extend(routes());
    rows
}

/// Who starts after the rows have been seen begins with its bootstrap patched: the same resource says so.
pub(super) async fn are_started_with(scene: &Scene, envoy: &str) {
    let mut text = String::new();
    for (namespace, proxy) in CLIENTS.into_iter().zip([None, Some(envoy)]) {
        let mut config = json!({"proxyMetadata": {"BOOTSTRAP_XDS_AGENT": "true"}});
        if let Some(path) = proxy {
            config["binaryPath"] = path.into();
        }
        let annotations = json!({"proxy.istio.io/config": config.to_string()});
        text += &include_str!("../../routing/late.yaml")
            .replace("{{namespace}}", namespace)
            .replace("{{annotations}}", &annotations.to_string());
    }
    scene.apply(&text).await;
    let echoed = [Call::new(Protocol::Tcp, "127.0.0.1:18998")];
    for client in CLIENTS {
        let started = eventually("the listener of the bootstrap", SETTLED, async || {
            let seen = scene.try_call(client, "deploy/late", &echoed).await;
            seen.is_ok_and(|seen| seen[0].text == "hello\n")
        });
        assert!(started.await.is_ok(), "{client}");
    }
}

fn line(port: u16) -> Call {
    Call::new(Protocol::Tcp, &format!("patched-lines.servers:{port}"))
}

fn get(port: u16) -> Call {
    Call::new(Protocol::Http1, &format!("patched-http.servers:{port}"))
}

/// A row of a single call.
fn one(name: &'static str, call: Call, seen: impl Fn(&Outcome) -> bool + 'static) -> Row {
    Row::about(name, vec![call], move |outcomes| seen(&outcomes[0]))
}

/// A row of a single request, which is answered with `status`.
fn answered(name: &'static str, call: Call, status: u16) -> Row {
    one(name, call, move |seen| seen.status == Some(status))
}

/// A row of a single request, which the first server gets with `line` in it.
fn told(name: &'static str, port: u16, line: &'static str) -> Row {
    one(name, get(port), move |seen| {
        is_by("v1", seen) && seen.text.contains(line)
    })
}

fn is_closed(outcome: &Outcome) -> bool {
    outcome.status.is_none() && !outcome.is_served()
}

fn listeners() -> Vec<Row> {
    let echoed = |seen: &Outcome| seen.text == "hello\n";
    vec![
        one("LISTENER MERGE", line(9110), echoed),
        one("LISTENER MERGE_AND_REPLACE_LIST", line(9111), echoed),
        // Its route would lead to the second one.
        one("LISTENER REMOVE", line(9112), |seen| is_by("v1", seen)),
    ]
}

fn chains(roots: &str) -> Vec<Row> {
    let secure = |name: &str| {
        let tls = Tls {
            server_name: name.to_owned(),
            roots: roots.to_owned(),
            ..Tls::default()
        };
        Call::new(Protocol::Http1, "240.240.6.2:443").tls(tls)
    };
    let names = ["kept", "also", "removed"].map(|name| secure(&format!("{name}.patched.test")));
    vec![Row::about(
        "FILTER_CHAIN MERGE and REMOVE",
        names.to_vec(),
        |seen| is_by("v2", &seen[0]) && is_by("v2", &seen[1]) && is_closed(&seen[2]),
    )]
}

/// Some of them tell what the chains choose by; so does a chain that is added.
fn listener_filters() -> Vec<Row> {
    let http =
        |host: &str, port: u16| Call::new(Protocol::Http1, &format!("{host}.servers:{port}"));
    let led = |name, port| one(name, http("patched-lines", port), |seen| is_by("v2", seen));
    let sniffed = |name, port, is_sniffed: bool| {
        one(name, http("patched-unnamed", port), move |seen| {
            seen.is_served() && seen.text.contains("header x-sniffed: http\n") == is_sniffed
        })
    };
    vec![
        led("FILTER_CHAIN ADD, LISTENER_FILTER ADD", 9301),
        led("FILTER_CHAIN ADD, LISTENER_FILTER INSERT_FIRST", 9302),
        sniffed("LISTENER_FILTER INSERT_BEFORE", 9303, true),
        sniffed("LISTENER_FILTER INSERT_AFTER", 9304, true),
        sniffed("LISTENER_FILTER REMOVE", 9305, false),
        sniffed("LISTENER_FILTER REPLACE", 9306, false),
        Row::about(
            "LISTENER_FILTER MERGE",
            vec![line(9113), line(9114)],
            |seen| is_closed(&seen[0]) && is_by("v1", &seen[1]),
        ),
    ]
}

fn network_filters() -> Vec<Row> {
    let refused = |name, port| one(name, line(port), is_closed);
    vec![
        one("lines without a patch", line(9100), |seen| {
            is_by("v1", seen)
        }),
        refused("NETWORK_FILTER INSERT_FIRST", 9101),
        refused("NETWORK_FILTER INSERT_BEFORE", 9102),
        refused("NETWORK_FILTER ADD", 9103),
        refused("NETWORK_FILTER INSERT_AFTER", 9104),
        one("NETWORK_FILTER REMOVE", line(9105), |seen| {
            is_by("v1", seen)
        }),
        one("NETWORK_FILTER MERGE", line(9106), |seen| is_by("v2", seen)),
    ]
}

fn http_filters() -> Vec<Row> {
    let in_order = |seen: &Outcome| {
        let places = ["first", "after", "before"].map(|word| seen.text.find(word));
        places.iter().all(Option::is_some) && places.is_sorted()
    };
    vec![
        answered("a fault without a patch", get(9200), 418),
        told("HTTP_FILTER ADD", 9201, "header x-order: added\n"),
        one(
            "HTTP_FILTER INSERT_FIRST, INSERT_AFTER and INSERT_BEFORE",
            get(9202),
            in_order,
        ),
        one("HTTP_FILTER REMOVE", get(9203), |seen| is_by("v1", seen)),
        told("HTTP_FILTER REPLACE", 9204, "header x-order: replaced\n"),
        answered("HTTP_FILTER MERGE", get(9205), 418),
        told("EXTENSION_CONFIG ADD", 9206, "header x-order: discovered\n"),
    ]
}

fn routes() -> Vec<Row> {
    let at = |target: &str| get(9405).target(target);
    vec![
        told("ROUTE_CONFIGURATION MERGE", 9401, "\"x-whole\": \"merged\""),
        answered(
            "VIRTUAL_HOST ADD",
            get(9402).host("added.patched.test"),
            418,
        ),
        // Who knows no host sends the request where it was going.
        one("VIRTUAL_HOST REMOVE", get(9403), |seen| {
            is_by("v1", seen) && !seen.text.contains("x-host")
        }),
        answered("VIRTUAL_HOST REPLACE", get(9404), 418),
        answered("HTTP_ROUTE INSERT_FIRST", at("/middle/first"), 451),
        answered("HTTP_ROUTE INSERT_BEFORE", at("/before"), 452),
        answered("HTTP_ROUTE INSERT_AFTER", at("/mine"), 453),
        one(
            "HTTP_ROUTE INSERT_AFTER, not before",
            at("/middle"),
            |seen| is_by("v1", seen),
        ),
        one("HTTP_ROUTE REMOVE", at("/gone"), |seen| is_by("v1", seen)),
        answered("HTTP_ROUTE ADD", get(9406).target("/other"), 454),
        one(
            "HTTP_ROUTE ADD, at the end",
            get(9406).target("/known"),
            |seen| is_by("v1", seen),
        ),
        told("CLUSTER MERGE", 9501, "version: HTTP/2.0\n"),
        answered("CLUSTER REMOVE", get(9502), 503),
    ]
}
