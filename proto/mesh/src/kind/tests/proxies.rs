//! The kinds that say how proxies are made: Sidecar, EnvoyFilter, ProxyConfig.

use super::{check_table, findings_of};
use crate::resource::Metadata;

#[test]
fn sidecar() {
    check_table(
        "Sidecar",
        &[
            ("{egress: [{hosts: ['*/*', '~ns1/*']}]}", &[]),
            ("{}", &["error "]),
            (
                "{egress: [{hosts: [a.b]}, {port: {number: 1, protocol: HTTP}, hosts: ['./*']}]}",
                &["error egress[0].port", "error egress[0].hosts[0]"],
            ),
            ("{egress: [{}]}", &["error egress[0].hosts"]),
            (
                "{egress: [{port: {protocol: HTTP}, captureMode: IPTABLES, hosts: ['*/*a.com']}]}",
                &[
                    "error egress[0].bind",
                    "error egress[0].captureMode",
                    "error egress[0].hosts[0]",
                ],
            ),
            (
                "{egress: [{hosts: [a/b.c, a/*]}]}",
                &["warning egress[0].hosts[1]"],
            ),
            (
                "{ingress: [{port: {number: 90, protocol: HTTP, name: x}, defaultEndpoint: '127.0.0.1:80'}]}",
                &[],
            ),
            ("{ingress: [{}]}", &["error ingress[0].port"]),
            (
                "{ingress: [{port: {number: 90, protocol: HTTP}, defaultEndpoint: '1.1.1.1:80'}, {port: {number: 90, protocol: x}}]}",
                &[
                    "error ingress[0].defaultEndpoint",
                    "error ingress[1].port.protocol",
                    "error ingress[1].port.number",
                ],
            ),
            (
                "{ingress: [{port: {number: 90, protocol: HTTPS}, tls: {mode: ISTIO_MUTUAL}}]}",
                &["error ingress[0].tls.mode"],
            ),
            (
                "{outboundTrafficPolicy: {mode: REGISTRY_ONLY, egressProxy: {host: a.b}}}",
                &["error outboundTrafficPolicy.egressProxy"],
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.b}}}",
                &["error outboundTrafficPolicy.egressProxy.port"],
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}}",
                &["error outboundTrafficPolicy.mode"],
            ),
        ],
    );
}

#[test]
fn envoy_filter() {
    let with = |patch: &str| format!("{{configPatches: [{{{patch}}}]}}");
    let rows = [
        ("applyTo: CLUSTER, patch: {operation: REMOVE}", &[][..]),
        ("", &["error configPatches[0].applyTo"]),
        ("applyTo: LISTENER", &["error configPatches[0].patch"]),
        (
            "applyTo: LISTENER, patch: {operation: ADD}",
            &["error configPatches[0].patch.value"],
        ),
        (
            "applyTo: CLUSTER, match: {listener: {}}, patch: {operation: REMOVE}",
            &["error configPatches[0].match"],
        ),
        (
            "applyTo: CLUSTER, match: {proxy: {proxyVersion: '++'}}, patch: {operation: REMOVE}",
            &["error configPatches[0].match.proxy.proxyVersion"],
        ),
        (
            "applyTo: CLUSTER, patch: {operation: ADD, value: {name: a, connect_timeout: 1s, nope: 1, nor: 2}}",
            &[
                "warning configPatches[0].patch.value",
                "warning configPatches[0].patch.value",
            ],
        ),
        (
            "applyTo: CLUSTER, patch: {operation: ADD, value: {name: 1}}",
            &["error configPatches[0].patch.value"],
        ),
        (
            "applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: a, typed_config: {'@type': 'type.googleapis.com/envoy.config.filter.x.v2.Y'}}}",
            &["error configPatches[0].patch.value"],
        ),
        (
            "applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: a, typed_config: {'@type': 'type.googleapis.com/envoy.unknown.v3.Y', a: 1}}}",
            &[],
        ),
        (
            "applyTo: HTTP_FILTER, match: {listener: {filterChain: {filter: {name: x, subFilter: {name: z}}}}}, patch: {operation: REMOVE}",
            &["error configPatches[0].match.listener.filterChain.filter.name"],
        ),
    ];
    let meta = Metadata::new("bar", "foo");
    for (patch, want) in rows {
        let want: Vec<_> = std::iter::once("warning ")
            .chain(want.iter().copied())
            .collect();
        assert_eq!(
            findings_of("EnvoyFilter", &meta, &with(patch)),
            want,
            "{patch}"
        );
    }
}

#[test]
fn proxy_config() {
    check_table(
        "ProxyConfig",
        &[
            ("{concurrency: 0}", &[]),
            (
                "{concurrency: -1, selector: {}}",
                &["warning selector", "error concurrency"],
            ),
        ],
    );
}
