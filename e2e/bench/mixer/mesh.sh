#!/usr/bin/env bash
# What Mixer costs in a mesh: CPU of the two sidecars that a request passes (out of productpage's pod, into that of ratings, mutual
# TLS between them, as Pilot configures them), without Mixer and with policy and telemetry, turn and turn about.
#
#   cargo build --release && e2e/bench/mixer/mesh.sh [ROUNDS] [REQUESTS]      (as root; TARGET=folder of the build)
set -euo pipefail
repository=$(cd "$(dirname "$0")/../../.." && pwd)
ctl=${TARGET:-${CARGO_TARGET_DIR:-$repository/target}}/release/biremectl
rounds=${1:-5}
requests=${2:-20000}
command -v h2load >/dev/null || apt-get install -y -qq nghttp2-client >/dev/null
hertz=$(getconf CLK_TCK)
folder=$(mktemp -d)
trap 'for name in off on; do "$ctl" local down --name "mixer-$name" >/dev/null 2>&1 || true; done; rm -rf "$folder"' EXIT
ports=local.hostPorts.http=0,local.hostPorts.https=0,local.hostPorts.tcp=0,local.hostPorts.pilot=0,local.hostPorts.metrics=0
declare -A sidecars total

mesh() { # NAME [VALUES]
    "$ctl" local up --name "mixer-$1" --set "$ports${2:+,$2}" >"$folder/$1.log" 2>&1 &
    load "$1" 200 30
    sidecars[$1]=$("$ctl" local status --name "mixer-$1" -o json | python3 -c '
import json, sys
processes = [p for row in json.load(sys.stdin) if row["name"] in ("productpage-v1", "ratings-v1") for p in row["processes"]]
print(*(p["pid"] for p in processes if p["container"] == "istio-proxy"))')
    total[$1]=0
}

# load NAME REQUESTS [ATTEMPTS]: all of them are answered, at the latest in the last attempt.
load() {
    for _ in $(seq "${3:-1}"); do
        "$ctl" local exec --name "mixer-$1" productpage-v1 -c productpage -- \
            h2load --h1 -n "$2" -c 8 http://ratings:9080/ratings/0 >"$folder/load" 2>&1 || true
        grep -q "$2 succeeded" "$folder/load" && return
        sleep 1
    done
    cat "$folder/load" >&2
    return 1
}

ticks() { for pid in ${sidecars[$1]}; do cat "/proc/$pid/stat"; done | awk '{ sum += $14 + $15 } END { print sum }'; }

mesh off mixer.policy.enabled=false,mixer.telemetry.enabled=false
mesh on
for _ in $(seq "$rounds"); do
    for name in off on; do
        before=$(ticks "$name")
        load "$name" "$requests"
        total[$name]=$((total[$name] + $(ticks "$name") - before))
    done
done
for name in off on; do
    awk -v name="$name" -v ticks="${total[$name]}" -v hertz="$hertz" -v requests=$((rounds * requests)) \
        'BEGIN { printf "%s: %.2f µs of CPU a request in both sidecars\n", name, ticks * 1e6 / hertz / requests }'
done
awk -v on="${total[on]}" -v off="${total[off]}" 'BEGIN { printf "on / off: %.2f\n", on / off }'
