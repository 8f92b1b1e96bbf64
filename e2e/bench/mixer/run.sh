#!/usr/bin/env bash
# What Mixer costs: reports with the standard rules and with one counter, checks with a quota and a list, memory with 10,000
# label sets. Every line is of `mixer_load`: what was done, the server's CPU time, how long calls took.
#
#   cargo build --release -p mixer --bin mixs --example mixer_load
#   e2e/bench/mixer/run.sh [SECONDS]        (of each measurement, 8 by default; TARGET=folder of the build)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../../.." && pwd)
target=${TARGET:-${CARGO_TARGET_DIR:-$repository/target}}/release
seconds=${1:-8}
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$folder"' EXIT

# start CONFIG...: a server with these files; its address in $address.
start() {
    if [ -n "$server" ]; then kill "$server"; wait "$server" 2>/dev/null || true; fi
    rm -rf "$folder"/*
    mkdir "$folder/config"
    cp "$@" "$folder/config/"
    "$target/mixs" server --address=tcp://127.0.0.1:0 --monitoringPort=0 --prometheusPort=0 --log_as_json \
        --configStoreURL="fs://$folder/config" >"$folder/log" 2>&1 &
    server=$!
    for _ in $(seq 100); do
        if grep -q '"configuration in force"' "$folder/log" && grep -q '"serving"' "$folder/log"; then break; fi
        sleep 0.1
    done
    address=127.0.0.1:$(grep -o '"grpc_port":"Some([0-9]*)"' "$folder/log" | grep -o '[0-9]*' | head -1)
}

load() { "$target/examples/mixer_load" "$@" --mixer "$address" --pid "$server" --seconds "$seconds"; }

echo "== reports, the standard rules, 100 label sets"
start "$repository/mixer/default/config.yaml"
load report --label-sets 100
echo "== reports, the standard rules, 10,000 label sets (memory)"
load report --label-sets 10000
load report --label-sets 10000
echo "== reports, one counter"
start "$here/one_counter.yaml"
load report --label-sets 100
echo "== checks with a quota and a list"
start "$here/check.yaml"
load check --label-sets 100
echo "== the same at 20,000 a second"
load check --label-sets 100 --rate 20000
