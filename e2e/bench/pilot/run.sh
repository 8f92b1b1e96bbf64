#!/usr/bin/env bash
# Pilot under load: CPU and time of the full load, of one VirtualService change and of one endpoint change, with simulated proxies;
# then the same with ever more services, and a plot of both.
# usage: e2e/bench/pilot/run.sh [-o FOLDER] [PROXIES ...]     (default: 30 500 1000 2000; state of the world, then increments)
set -euo pipefail
cd "$(dirname "$0")/../../.."
folder=
if [ "${1:-}" = -o ]; then folder=${2:?a folder after -o}; shift 2; fi
cargo build --release -q
cargo build --release -q --workspace --example pilot_load
target=${CARGO_TARGET_DIR:-target}/release
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
load() { "$target/examples/pilot_load" --pilot "$target/pilot-discovery" "$@" | tee -a "$lines"; }
for proxies in ${@:-30 500 1000 2000}; do
    for form in "" --delta; do
        # shellcheck disable=SC2086  # no form is no argument
        load --proxies "$proxies" $form
    done
done
if [ -n "$folder" ]; then
    for services in 250 500 1000 2000 4000; do
        load --proxies 100 --delta --services "$services" --virtual-services $((services / 2)) --destination-rules $((services / 2))
    done
    mkdir -p "$folder"
    cp "$lines" "$folder/pilot.jsonl"
    e2e/bench/pilot/plot.py < "$lines" > "$folder/pilot.svg"
    echo "$folder/pilot.svg"
fi
