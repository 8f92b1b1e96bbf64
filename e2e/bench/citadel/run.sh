#!/usr/bin/env bash
# Load on Citadel: signing requests a second, and many agents at once. Both programs are release builds on this machine.
#
#   e2e/bench/citadel/run.sh [SECONDS [AGENTS]]
set -euo pipefail
cd "$(dirname "$0")/../../.."
target="${CARGO_TARGET_DIR:-target}/release"
cargo build --release --locked
cargo build --release --locked --workspace --example citadel_load --features citadel/testing
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
ulimit -n 16384
"$target/examples/citadel_load" issuer "$folder"
"$target/istio_ca" --self-signed-ca=true --grpc-port=18060 --grpc-address=127.0.0.1 --monitoring-port=18061 \
    --data-dir="$folder/data" --root-cert-out="$folder/root.pem" --oidc-issuer=https://issuer.test \
    --oidc-jwks="$folder/jwks.json" >"$folder/log" 2>&1 &
server=$!
for _ in $(seq 100); do
    curl -sf http://127.0.0.1:18061/ready >/dev/null && break
    sleep 0.1
done
"$target/examples/citadel_load" run "$folder" --port 18060 --pid "$server" --seconds "${1:-10}" --agents "${2:-2000}"
ps -o rss=,time= -p "$server" | awk '{ printf "istio_ca: %d MiB resident, %s of CPU\n", $1 / 1024, $2 }'
