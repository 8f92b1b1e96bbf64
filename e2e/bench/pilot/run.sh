#!/usr/bin/env bash
# Pilot under load: CPU and time of the full load, of one VirtualService change and of one endpoint change, with simulated proxies.
# usage: e2e/bench/pilot/run.sh [PROXIES ...]     (default: 30 500 1000 2000; state of the world, then increments)
set -euo pipefail
cd "$(dirname "$0")/../../.."
cargo build --release -q -p pilot --bin pilot-discovery --example pilot_load
target=${CARGO_TARGET_DIR:-target}/release
for proxies in "${@:-30 500 1000 2000}"; do
    for proxies in $proxies; do
        for form in "" --delta; do
            "$target/examples/pilot_load" --pilot "$target/pilot-discovery" --proxies "$proxies" $form
        done
    done
done
