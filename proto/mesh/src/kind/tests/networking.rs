//! The networking kinds but VirtualService and those of proxies.

use super::{check_table, findings_of};
use crate::resource::Metadata;

#[test]
fn destination_rule() {
    let with = |policy: &str| format!("{{host: a, trafficPolicy: {{{policy}}}}}");
    check_table(
        "DestinationRule",
        &[
            (
                "{host: a, subsets: [{name: v1, labels: {version: v1}}]}",
                &[],
            ),
            ("{}", &["error host"]),
            (
                "{host: a, subsets: [{name: v1}, {name: v1}, {}]}",
                &["error subsets[1].name", "error subsets[2].name"],
            ),
            (
                "{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['.']}",
                &[],
            ),
            (
                "{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']}",
                &["error exportTo"],
            ),
            (&with(""), &["error trafficPolicy"]),
            (
                &with("connectionPool: {}"),
                &["error trafficPolicy.connectionPool"],
            ),
            (
                &with(
                    "connectionPool: {http: {maxRetries: -1, h2UpgradePolicy: UPGRADE, useClientProtocol: true}, tcp: {connectTimeout: 0s}}",
                ),
                &[
                    "error trafficPolicy.connectionPool.http.maxRetries",
                    "error trafficPolicy.connectionPool.http.useClientProtocol",
                    "error trafficPolicy.connectionPool.tcp.connectTimeout",
                ],
            ),
            (
                &with(
                    "outlierDetection: {maxEjectionPercent: 101, consecutiveErrors: 1, consecutiveLocalOriginFailures: 1}",
                ),
                &[
                    "warning trafficPolicy.outlierDetection.consecutiveErrors",
                    "error trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
                    "error trafficPolicy.outlierDetection.maxEjectionPercent",
                ],
            ),
            (
                &with("tls: {mode: MUTUAL}"),
                &[
                    "error trafficPolicy.tls.clientCertificate",
                    "error trafficPolicy.tls.privateKey",
                ],
            ),
            (
                &with("tls: {mode: SIMPLE, credentialName: a, caCertificates: b}"),
                &["error trafficPolicy.tls.caCertificates"],
            ),
            (
                &with("tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}"),
                &["error trafficPolicy.tls.insecureSkipVerify"],
            ),
            (
                &with("portLevelSettings: [{}]"),
                &[
                    "error trafficPolicy.portLevelSettings[0].port",
                    "error trafficPolicy.portLevelSettings[0]",
                ],
            ),
            (
                &with("tunnel: {protocol: X, targetHost: 'a_', targetPort: 0}, proxyProtocol: {}"),
                &[
                    "error trafficPolicy",
                    "error trafficPolicy.tunnel.protocol",
                    "error trafficPolicy.tunnel.targetHost",
                    "error trafficPolicy.tunnel.targetPort",
                ],
            ),
        ],
    );
}

#[test]
fn load_balancers() {
    let with = |balancer: &str| {
        format!(
            "{{host: a, trafficPolicy: {{outlierDetection: {{}}, loadBalancer: {{{balancer}}}}}}}"
        )
    };
    let field = "trafficPolicy.loadBalancer";
    let meta = Metadata::new("bar", "foo");
    for (balancer, want) in [
        ("simple: RANDOM", &[][..]),
        (
            "consistentHash: {httpCookie: {ttl: 1s}}",
            &["error .consistentHash.httpCookie.name"],
        ),
        (
            "consistentHash: {maglev: {tableSize: 4}}",
            &["error .consistentHash.maglev.tableSize"],
        ),
        (
            "warmup: {minimumPercent: 105, aggression: 0}",
            &[
                "error .warmup.duration",
                "error .warmup.minimumPercent",
                "error .warmup.aggression",
            ],
        ),
        ("localityLbSetting: {}, zoneAwareLbSetting: {}", &["error "]),
        ("zoneAwareLbSetting: {minClusterSize: 3}", &[]),
        (
            "zoneAwareLbSetting: {failoverPriority: [a, topology.kubernetes.io/zone]}",
            &["error .zoneAwareLbSetting.failoverPriority"],
        ),
        (
            "zoneAwareLbSetting: {failover: [{from: a, to: a}]}",
            &["error .zoneAwareLbSetting.failover[0]"],
        ),
        (
            "localityLbSetting: {distribute: [{from: a, to: {b: 100}}], failover: [{from: a, to: b}]}",
            &["error .localityLbSetting"],
        ),
        (
            "localityLbSetting: {distribute: [{from: a/*, to: {b: 99}}]}",
            &["error .localityLbSetting.distribute[0].to"],
        ),
        (
            "localityLbSetting: {distribute: [{from: a, to: {b: 100}}, {from: a/x, to: {b: 100}}]}",
            &["error .localityLbSetting.distribute"],
        ),
        (
            "localityLbSetting: {failover: [{from: a, to: a}, {from: a/b, to: '*'}]}",
            &[
                "error .localityLbSetting.failover[0]",
                "error .localityLbSetting.failover[1].from",
                "error .localityLbSetting.failover[1].to",
            ],
        ),
    ] {
        let want: Vec<_> = want
            .iter()
            .map(|line| line.replacen(' ', &format!(" {field}"), 1))
            .collect();
        assert_eq!(
            findings_of("DestinationRule", &meta, &with(balancer)),
            want,
            "{balancer}"
        );
    }
}

#[test]
fn gateway() {
    let with = |server: &str| format!("{{servers: [{{hosts: ['*'], {server}}}]}}");
    check_table(
        "Gateway",
        &[
            (&with("port: {number: 80, name: http, protocol: HTTP}"), &[]),
            ("{}", &["error servers"]),
            (
                "{servers: [{}]}",
                &["error servers[0].hosts", "error servers[0].port"],
            ),
            (
                "{servers: [{hosts: ['~/a.b', short, '*a.b', 1.1.1.1, './*.a'], port: {number: 80, name: http, protocol: HTTP}}]}",
                &[
                    "error servers[0].hosts[0]",
                    "error servers[0].hosts[1]",
                    "error servers[0].hosts[2]",
                ],
            ),
            (
                &with("port: {number: 66000, protocol: kafka}"),
                &[
                    "error servers[0].port.protocol",
                    "error servers[0].port.number",
                    "error servers[0].port.name",
                ],
            ),
            (
                &with("bind: 'unix:///run/a', port: {name: http, protocol: HTTP}"),
                &[],
            ),
            (
                &with("bind: 'unix:///run/a', port: {number: 1, name: http, protocol: HTTP}"),
                &["error servers[0].port.number"],
            ),
            (
                &with("bind: x, port: {number: 1, name: http, protocol: HTTP}"),
                &["error servers[0].bind"],
            ),
            (
                &with("port: {number: 443, name: https, protocol: HTTPS}"),
                &["error servers[0].tls"],
            ),
            (
                &with("port: {number: 80, name: http, protocol: HTTP}, tls: {httpsRedirect: true}"),
                &[],
            ),
            (
                &with(
                    "port: {number: 80, name: http, protocol: HTTP}, tls: {mode: SIMPLE, credentialName: a}",
                ),
                &["error servers[0].tls"],
            ),
            (
                &with("port: {number: 80, name: tcp, protocol: TCP}, tls: {}"),
                &["error servers[0].tls"],
            ),
            (
                &with("port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: MUTUAL}"),
                &[
                    "error servers[0].tls.serverCertificate",
                    "error servers[0].tls.privateKey",
                    "error servers[0].tls.caCertificates",
                ],
            ),
            (
                &with(
                    "port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: ISTIO_MUTUAL, credentialName: a}",
                ),
                &["error servers[0].tls.credentialName"],
            ),
            (
                &with(
                    "port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: a, serverCertificate: b}",
                ),
                &["error servers[0].tls"],
            ),
            (
                &with(
                    "port: {number: 443, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH, privateKey: a, serverCertificate: b}",
                ),
                &["warning servers[0].tls"],
            ),
            (
                &with(
                    "port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_0, cipherSuites: [x, AES128-SHA, AES128-SHA, -ALL]}",
                ),
                &[
                    "warning servers[0].tls.cipherSuites[0]",
                    "warning servers[0].tls.cipherSuites[2]",
                ],
            ),
        ],
    );
}

#[test]
fn service_entry() {
    let http = "ports: [{number: 80, name: http, protocol: HTTP}]";
    check_table(
        "ServiceEntry",
        &[
            (&format!("{{hosts: [a.b], {http}, resolution: DNS}}"), &[]),
            (&format!("{{hosts: ['*'], {http}}}"), &["error hosts[0]"]),
            (
                &format!("{{hosts: ['*a.b'], {http}}}"),
                &["warning hosts[0]"],
            ),
            (
                &format!("{{hosts: [a.b], {http}, endpoints: [{{address: 1.1.1.1}}]}}"),
                &["error endpoints"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], {http}, resolution: STATIC, endpoints: [{{address: a.b}}, {{address: 1.1.1.1, ports: {{x: 1}}}}]}}"
                ),
                &["error endpoints[0].address", "error endpoints[1].ports.x"],
            ),
            (
                &format!("{{hosts: ['*.b'], {http}, resolution: DNS}}"),
                &["error hosts[0]"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], {http}, resolution: DNS_ROUND_ROBIN, endpoints: [{{address: a}}, {{address: b}}]}}"
                ),
                &["error endpoints"],
            ),
            (
                &format!("{{hosts: [a.b], {http}, resolution: DYNAMIC_DNS, addresses: [1.1.1.1]}}"),
                &["error hosts[0]", "error addresses"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], {http}, resolution: DNS, addresses: [10.0.0.0/8, 1.1.A.1]}}"
                ),
                &["error addresses[0]", "error addresses[1]"],
            ),
            (
                "{hosts: [a.b], ports: [{number: 1, name: a, protocol: HTTP}, {number: 1, name: a, protocol: x}]}",
                &[
                    "error ports[1].name",
                    "error ports[1].number",
                    "error ports[1].protocol",
                ],
            ),
            (
                "{hosts: [a.b, c.d], resolution: STATIC, addresses: [1.1.1.1], ports: [{number: 1, name: a, protocol: TCP}]}",
                &["error hosts"],
            ),
            (
                "{hosts: [a.b], ports: [{number: 1, name: a, protocol: TCP}]}",
                &["warning ports[0]"],
            ),
            (
                &format!("{{hosts: [a.b], {http}, exportTo: ['~', x]}}"),
                &["error exportTo"],
            ),
            (
                &format!("{{hosts: [a.b], {http}, workloadSelector: {{}}, resolution: STATIC}}"),
                &["warning workloadSelector"],
            ),
            (
                &format!(
                    "{{hosts: [a.b], {http}, workloadSelector: {{labels: {{a: '*'}}}}, resolution: STATIC}}"
                ),
                &["error workloadSelector.labels.a"],
            ),
        ],
    );
}

#[test]
fn workloads() {
    check_table(
        "WorkloadEntry",
        &[
            ("{address: 1.1.1.1, ports: {http: 80}}", &[]),
            ("{address: a.b}", &[]),
            ("{}", &["error address"]),
            ("{network: net}", &["warning address"]),
            (
                "{address: 'unix:///a', ports: {http: 1}}",
                &["error address"],
            ),
            (
                "{address: 'a.b:1', ports: {'@': 0}}",
                &["error address", "error ports.@", "error ports.@"],
            ),
        ],
    );
    check_table(
        "WorkloadGroup",
        &[
            ("{template: {}}", &[]),
            ("{}", &["error template"]),
            ("{template: {}, probe: {}}", &["error probe"]),
            (
                "{template: {}, probe: {timeoutSeconds: -1, httpGet: {scheme: x}}}",
                &[
                    "error probe.timeoutSeconds",
                    "error probe.httpGet.port",
                    "error probe.httpGet.scheme",
                ],
            ),
            (
                "{template: {}, probe: {exec: {}}, metadata: {labels: {'.': '~'}}}",
                &[
                    "error metadata.labels..",
                    "error metadata.labels..",
                    "error probe.exec.command",
                ],
            ),
        ],
    );
}
