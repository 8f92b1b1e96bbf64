//! Server modes × clients × protocols: a table of who gets through, made by calling and compared with the expected one.

use e2e::echo::{Call, Protocol, Tls};

use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::authority::Leaf;

/// The namespace of the client without a sidecar.
const OUTSIDE: &str = "outside";

/// Server, client, then HTTP/1.1, HTTP/2, gRPC and TCP.
const EXPECTED: &str = "\
disable    sidecar, automatic     yes yes yes yes
disable    sidecar, mTLS          no  no  no  no
disable    sidecar, plaintext     yes yes yes yes
disable    no sidecar             yes yes yes yes
disable    another trust domain   no  no  no  no
disable    no sidecar, own mTLS   no  no  no  no
permissive sidecar, automatic     yes yes yes yes
permissive sidecar, mTLS          yes yes yes yes
permissive sidecar, plaintext     yes yes yes yes
permissive no sidecar             yes yes yes yes
permissive another trust domain   no  no  no  no
permissive no sidecar, own mTLS   yes yes yes yes
strict     sidecar, automatic     yes yes yes yes
strict     sidecar, mTLS          yes yes yes yes
strict     sidecar, plaintext     no  no  no  no
strict     no sidecar             no  no  no  no
strict     another trust domain   no  no  no  no
strict     no sidecar, own mTLS   yes yes yes yes
";
/// Their protocols, ports, and what a sidecar's TLS offers for them.
pub(super) const PORTS: [(Protocol, u16, &[&str]); 4] = [
    (Protocol::Http1, 8001, &["istio-peer-exchange", "istio"]),
    (
        Protocol::Http2,
        8002,
        &["istio-peer-exchange", "istio", "h2"],
    ),
    (
        Protocol::Grpc,
        8003,
        &["istio-peer-exchange", "istio", "h2"],
    ),
    (Protocol::Tcp, 8004, &["istio-peer-exchange", "istio"]),
];

/// The tables are as expected, as soon as every proxy knows what it must, whoever's proxies are on either side.
pub(super) async fn holds(stage: &Stage) {
    let start = std::time::Instant::now();
    let sides = ["", ENVOY].map(|server| ["", ENVOY].map(|client| (server, client)));
    let expected: String = sides
        .as_flattened()
        .iter()
        .map(|(server, client)| title(server, client) + EXPECTED)
        .collect();
    let mut seen = tables(stage).await;
    while seen != expected && start.elapsed() < SETTLED {
        seen = tables(stage).await;
    }
    // What a test prints is shown with `--nocapture`, and when it fails.
    eprintln!("{seen}");
    assert!(seen == expected, "expected:\n{expected}");
}

fn title(server: &str, client: &str) -> String {
    let name = |suffix: &str| if suffix == ENVOY { "Envoy" } else { "Bireme" };
    format!(
        "server's proxy {}, clients' {}\n",
        name(server),
        name(client)
    )
}

/// All tables, in the order of [`holds`].
async fn tables(stage: &Stage) -> String {
    let (own, envoy) = tokio::join!(rows(stage, ""), rows(stage, ENVOY));
    let mut text = String::new();
    for server in 0..2 {
        for (client, rows) in [("", &own), (ENVOY, &envoy)] {
            text += &title(["", ENVOY][server], client);
            text.extend(rows[server].iter().map(String::as_str));
        }
    }
    text
}

/// What a client speaks TLS with, by its ALPN.
type TlsOf<'a> = &'a dyn Fn(&[&str]) -> Option<Tls>;

/// The rows for our own servers and for Envoy's, if the clients' proxies are those of `suffix`.
async fn rows(stage: &Stage, suffix: &str) -> [Vec<String>; 2] {
    let own = stage
        .authority
        .leaf("spiffe://cluster.local/ns/outside/sa/client");
    let foreign = stage
        .authority
        .leaf("spiffe://other.domain/ns/outside/sa/client");
    let tls = |leaf: &Leaf, alpn: &[&str]| Some(leaf.tls(&stage.authority, alpn));
    let clients: [(&str, &str, TlsOf<'_>); 6] = [
        ("sidecar, automatic", "auto", &|_| None),
        ("sidecar, mTLS", "mtls", &|_| None),
        ("sidecar, plaintext", "plain", &|_| None),
        ("no sidecar", OUTSIDE, &|_| None),
        ("another trust domain", OUTSIDE, &|alpn| tls(&foreign, alpn)),
        ("no sidecar, own mTLS", OUTSIDE, &|alpn| tls(&own, alpn)),
    ];
    let modes = ["disable", "permissive", "strict"];
    let mut rows = [Vec::new(), Vec::new()];
    for (index, (client, namespace, tls)) in clients.iter().enumerate() {
        let namespace = match *namespace {
            OUTSIDE => OUTSIDE.to_owned(),
            namespace => format!("{namespace}{suffix}"),
        };
        let call = |server: &str, (protocol, port, alpn): (Protocol, u16, &[&str])| {
            let mut call = Call::new(protocol, &format!("{server}.servers:{port}"));
            call.tls = tls(alpn);
            call
        };
        let servers = ["", ENVOY].map(|suffix| modes.map(|mode| format!("{mode}{suffix}")));
        let calls: Vec<Call> = servers
            .as_flattened()
            .iter()
            .flat_map(|server| PORTS.iter().map(|port| call(server, *port)))
            .collect();
        let outcomes = stage.call(&namespace, &calls).await;
        for (place, outcomes) in outcomes.chunks(PORTS.len()).enumerate() {
            let cells = outcomes
                .iter()
                .map(|outcome| if outcome.is_served() { "yes" } else { "no" });
            let cells: Vec<String> = cells.map(|cell| format!("{cell:<3}")).collect();
            let (table, mode) = (place / modes.len(), place % modes.len());
            let row = format!("{:<10} {client:<22} {}", modes[mode], cells.join(" "));
            rows[table].push(((mode, index), format!("{}\n", row.trim_end())));
        }
    }
    rows.map(|mut rows: Vec<((usize, usize), String)>| {
        rows.sort();
        rows.into_iter().map(|(_, row)| row).collect()
    })
}
