#!/usr/bin/env bash
# CPU that one HTTP/1.1 request costs in bireme-proxy beside Envoy: the same bootstrap, the same upstream, the same load,
# turn and turn about, each round a fixed number of requests. Prints µs of CPU a request for each, and the ratio.
#
#   cargo build --release && e2e/bench/proxy_cpu.sh [ROUNDS] [REQUESTS]
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-5}
requests=${2:-40000}
target=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
pids=()
cleanup() { kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT

command -v h2load >/dev/null || apt-get install -y -qq nghttp2-client >/dev/null
ENVOY=$(e2e/envoy.sh)

bootstrap() { # NAME ADMIN LISTEN
    sed -e "s/ADMIN_PORT/$2/; s/LISTEN_PORT/$3/; s/UPSTREAM_PORT/19500/; s#ACCESS_LOG#$work/$1.log#" \
        e2e/bench/bootstrap.yaml >"$work/$1.yaml"
}
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

"$target/bookinfo" --port 19500 ratings & pids+=($!)
bootstrap envoy 19501 19502
"$ENVOY" -c "$work/envoy.yaml" --concurrency 1 -l error --base-id 971 & envoy=$!; pids+=($envoy)
bootstrap bireme 19503 19504
"$target/bireme-proxy" -c "$work/bireme.yaml" --concurrency 1 -l error & bireme=$!; pids+=($bireme)
for port in 19502 19504; do
    timeout 20 bash -c "until curl -sf -o /dev/null http://127.0.0.1:$port/ratings/0; do :; done"
done

hertz=$(getconf CLK_TCK)
declare -A total=([envoy]=0 [bireme]=0)
for round in $(seq "$rounds"); do
    for name in envoy bireme; do
        [ "$name" = envoy ] && { pid=$envoy; port=19502; } || { pid=$bireme; port=19504; }
        before=$(ticks "$pid")
        h2load --h1 -n "$requests" -c 16 "http://127.0.0.1:$port/ratings/0" >"$work/load" 2>&1
        after=$(ticks "$pid")
        grep -q " $requests succeeded" "$work/load" || { cat "$work/load"; exit 1; }
        total[$name]=$((total[$name] + after - before))
        printf 'round %d  %-7s %6.1f µs a request\n' "$round" "$name" \
            "$(echo "($after - $before) * 1000000 / $hertz / $requests" | bc -l)"
    done
done
printf 'ratio bireme / envoy: %.2f   resident: envoy %s MiB, bireme %s MiB\n' \
    "$(echo "${total[bireme]} / ${total[envoy]}" | bc -l)" \
    "$(awk '/VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$envoy/status")" \
    "$(awk '/VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$bireme/status")"
