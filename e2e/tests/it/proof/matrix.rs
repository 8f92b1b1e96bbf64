//! Server modes × clients × protocols: a table of who gets through, made by calling and compared with the expected one.

use e2e::echo::{Call, Protocol, Tls};

use super::Stage;
use crate::SETTLED;

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
    (Protocol::Http1, 8001, &["istio-http/1.1", "istio"]),
    (Protocol::Http2, 8002, &["istio-h2", "istio"]),
    (Protocol::Grpc, 8003, &["istio-h2", "istio"]),
    (Protocol::Tcp, 8004, &["istio"]),
];

/// The table is as expected, as soon as every proxy knows what it must.
pub(super) async fn holds(stage: &Stage) {
    let start = std::time::Instant::now();
    let mut seen = table(stage).await;
    while seen != EXPECTED && start.elapsed() < SETTLED {
        seen = table(stage).await;
    }
    assert_eq!(seen, EXPECTED, "\nseen:\n{seen}\nexpected:\n{EXPECTED}");
}

/// What a client speaks TLS with, by its ALPN.
type TlsOf<'a> = &'a dyn Fn(&[&str]) -> Option<Tls>;

async fn table(stage: &Stage) -> String {
    let own = stage
        .authority
        .leaf("spiffe://cluster.local/ns/outside/sa/client");
    let foreign = stage
        .authority
        .leaf("spiffe://other.domain/ns/outside/sa/client");
    let tls = |leaf: &super::authority::Leaf, alpn: &[&str]| Some(leaf.tls(&stage.authority, alpn));
    let clients: [(&str, &str, TlsOf<'_>); 6] = [
        ("sidecar, automatic", "auto", &|_| None),
        ("sidecar, mTLS", "mtls", &|_| None),
        ("sidecar, plaintext", "plain", &|_| None),
        ("no sidecar", "outside", &|_| None),
        ("another trust domain", "outside", &|alpn| {
            tls(&foreign, alpn)
        }),
        ("no sidecar, own mTLS", "outside", &|alpn| tls(&own, alpn)),
    ];
    let servers = ["disable", "permissive", "strict"];
    let mut rows = Vec::new();
    for (index, (client, namespace, tls)) in clients.iter().enumerate() {
        let call = |server: &str, (protocol, port, alpn): (Protocol, u16, &[&str])| {
            let mut call = Call::new(protocol, &format!("{server}.servers:{port}"));
            call.tls = tls(alpn);
            call
        };
        let calls: Vec<Call> = servers
            .iter()
            .flat_map(|server| PORTS.iter().map(|port| call(server, *port)))
            .collect();
        let outcomes = stage.call(namespace, &calls).await;
        for (place, (server, outcomes)) in
            servers.iter().zip(outcomes.chunks(PORTS.len())).enumerate()
        {
            let cells = outcomes
                .iter()
                .map(|outcome| if outcome.is_served() { "yes" } else { "no" });
            let cells: Vec<String> = cells.map(|cell| format!("{cell:<3}")).collect();
            let row = format!("{server:<10} {client:<22} {}", cells.join(" "));
            rows.push(((place, index), format!("{}\n", row.trim_end())));
        }
    }
    rows.sort();
    rows.into_iter().map(|(_, row)| row).collect()
}
