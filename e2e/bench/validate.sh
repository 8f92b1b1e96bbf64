#!/usr/bin/env bash
# How long `galley validate` takes for 1,000 resources in 1,000 files, of five runs: VirtualServices, DestinationRules,
# AuthorizationPolicies and ServiceEntries, all of them good.
# usage: e2e/bench/validate.sh [RESOURCES]
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release -q
galley=${CARGO_TARGET_DIR:-target}/release/galley
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/files"
python3 - "$work/files" "${1:-1000}" <<'PYTHON'
import pathlib, sys

folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
KINDS = [
    ("networking.istio.io/v1", "VirtualService", """
  hosts: [s%d]
  http:
  - match: [{uri: {regex: '/api/v[0-9]+/.*'}, headers: {x-user: {exact: jason}}}]
    timeout: 5s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx,connect-failure'}
    route: [{destination: {host: s%d, subset: v1}, weight: 90}, {destination: {host: s%d, subset: v2}, weight: 10}]
"""),
    ("networking.istio.io/v1", "DestinationRule", """
  host: s%d
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 100, connectTimeout: 1s}, http: {http2MaxRequests: 1000}}
    outlierDetection: {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 60s}
  subsets: [{name: v1, labels: {version: v%d}}, {name: v2, labels: {version: v%d}}]
"""),
    ("security.istio.io/v1", "AuthorizationPolicy", """
  selector: {matchLabels: {app: s%d}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ['cluster.local/ns/shop/sa/s%d'], ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {methods: [GET], paths: ['/info/s%d/*']}}]
"""),
    ("networking.istio.io/v1", "ServiceEntry", """
  hosts: [s%d.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: https, protocol: TLS}]
  endpoints: [{address: s%d.a.example.com}, {address: s%d.b.example.com}]
"""),
]
for n in range(count):
    version, kind, spec = KINDS[n % len(KINDS)]
    head = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: s{n}, namespace: shop}}\nspec:"
    (folder / f"{n:05}.yaml").write_text(head + spec % (n, n, n))
PYTHON
TIMEFORMAT='%3R s, %3U + %3S CPU-seconds'
for _ in 1 2 3 4 5; do
    time "$galley" validate -f "$work/files" > "$work/problems" || { head "$work/problems" >&2; exit 1; }
done
