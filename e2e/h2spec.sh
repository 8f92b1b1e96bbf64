#!/usr/bin/env bash
# Plays h2spec (a Go program, installed into the target folder the first time) against bireme-proxy and against a real Envoy with
# the same bootstrap. Fails if the proxy fails a check that Envoy passes.
#
#   e2e/h2spec.sh [SECTION ...]     SECTION as h2spec names them (http2/5.1, hpack, generic/3 …); all if none is given
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
spec=$target/h2spec-2.2.1
proxy=${PROXY:-$target/debug/bireme-proxy}
[ -x "$proxy" ] || { echo "build it first: cargo build -p proxy" >&2; exit 2; }
envoy=$(e2e/envoy.sh)
if [ ! -x "$spec/h2spec" ]; then
    command -v go >/dev/null || { echo "h2spec is a Go program: install go" >&2; exit 2; }
    GOFLAGS=-mod=mod GOBIN=$spec timeout 300 go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible >&2
fi

work=$(mktemp -d)
pid=
finish() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT

cat >"$work/bootstrap.yaml" <<'YAML'
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: h2
    address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h2
          codec_type: HTTP2
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello world}}}]
          http_filters:
          - name: envoy.filters.http.buffer
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 1048576}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
YAML

# play NAME PROGRAM SECTION...: the checks that failed go to NAME.failed.
play() {
    local name=$1 program=$2 port
    shift 2
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    sed "s/PORT/$port/" "$work/bootstrap.yaml" >"$work/$name.yaml"
    "$program" -c "$work/$name.yaml" --concurrency 1 --use-dynamic-base-id --log-level error >"$work/$name.log" 2>&1 &
    pid=$!
    for _ in $(seq 400); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
        kill -0 "$pid" 2>/dev/null || { cat "$work/$name.log" >&2; exit 2; }
        sleep 0.05
    done
    # It exits with 1 when a check fails, which is what the report is for.
    timeout 500 "$spec/h2spec" "$@" -h 127.0.0.1 -p "$port" -o 2 -j "$work/$name.xml" >"$work/$name.out" || true
    kill "$pid"
    wait "$pid" 2>/dev/null || true
    pid=
    python3 - "$work/$name.xml" "$work/$name" <<'PYTHON'
import re
import sys

report, name = sys.argv[1:]
ran, failed = [], []
# The report escapes nothing, so that it is no XML where a check talks of bytes.
for case in open(report, errors="replace").read().split("<testcase ")[1:]:
    check = ": ".join(re.search(f'{field}="([^"]*)"', case)[1] for field in ("package", "classname"))
    ran.append(check)
    if "<failure" in case or "<error" in case:
        failed.append(check)
open(f"{name}.failed", "w").write("".join(f"{check}\n" for check in sorted(failed)))
print(f"{name.rsplit('/', 1)[-1]}: {len(ran)} checks, {len(failed)} failed")
sys.exit(0 if ran else 1)
PYTHON
}

play envoy "$envoy" "$@"
play proxy "$proxy" "$@"
echo "fails in Envoy too:"
comm -12 "$work/envoy.failed" "$work/proxy.failed" | sed 's/^/    /'
ours=$(comm -13 "$work/envoy.failed" "$work/proxy.failed")
[ -z "$ours" ] || { echo "fails in the proxy alone:"; echo "${ours//$'\n'/$'\n'    }" | sed '1s/^/    /'; exit 1; }
echo "nothing fails in the proxy alone"
