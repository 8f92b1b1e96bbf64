#!/usr/bin/env bash
# What Mixer costs beside an application: CPU of a sidecar's process for a request with Mixer off, with telemetry, and with
# policy and telemetry (checks answered from the cache), turn and turn about; and CPU of Mixer for 1,000 requests a second.
#
#   cargo build --release && e2e/bench/mixer/sidecar.sh [ROUNDS] [REQUESTS]      (TARGET=folder of the build)
set -euo pipefail
. "$(dirname "$0")/server.sh"
rounds=${1:-5}
requests=${2:-40000}
command -v h2load >/dev/null || apt-get install -y -qq nghttp2-client >/dev/null
hertz=$(getconf CLK_TCK)
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
micros() { awk -v ticks="$1" -v hertz="$hertz" -v requests="$2" 'BEGIN { printf "%.2f", ticks * 1e6 / hertz / requests }'; }

start "${standard[@]}" "$bench/check.yaml"
"$target/bookinfo" --port 19500 ratings & pids+=($!)
declare -A process port total
sidecar() { # NAME NUMBER DISABLE_CHECK DISABLE_REPORT
    port[$1]=$((19510 + $2))
    local lines=p
    [ "$1" = off ] && lines='/#MIXER$/!p'
    sed -n "$lines" "$bench/sidecar.yaml" | sed -e "s/ADMIN_PORT/$((19520 + $2))/; s/LISTEN_PORT/${port[$1]}/; s/UPSTREAM_PORT/19500/" \
        -e "s#ACCESS_LOG#$folder/$1.log#; s/MIXER_PORT/${address#*:}/; s/CHECK,/$3,/; s/ REPORT}/ $4}/" >"$folder/$1.yaml"
    "$target/bireme-proxy" -c "$folder/$1.yaml" --concurrency 1 -l error &
    process[$1]=$!
    pids+=($!)
    total[$1]=0
    timeout 20 bash -c "until curl -sf -o /dev/null http://127.0.0.1:${port[$1]}/ratings/0; do :; done"
}
sidecar off 0 true true
sidecar telemetry 1 true false
sidecar both 2 false false

served=0
mixer=0
for _ in $(seq "$rounds"); do
    for name in off telemetry both; do
        before=$(ticks "${process[$name]}")
        server_before=$(ticks "$server")
        h2load --h1 -n "$requests" -c 16 "http://127.0.0.1:${port[$name]}/ratings/0" >"$folder/load" 2>&1
        # The last reports are on their way for a second.
        sleep 1.5
        total[$name]=$((total[$name] + $(ticks "${process[$name]}") - before))
        grep -q " $requests 2xx" "$folder/load" || { cat "$folder/load"; exit 1; }
        if [ "$name" = telemetry ]; then
            mixer=$((mixer + $(ticks "$server") - server_before))
            served=$((served + requests))
        fi
    done
done
all=$((rounds * requests))
for name in off telemetry both; do echo "$name: $(micros "${total[$name]}" "$all") µs of CPU a request in the sidecar"; done
awk -v off="${total[off]}" -v telemetry="${total[telemetry]}" -v both="${total[both]}" -v hertz="$hertz" -v all="$all" 'BEGIN {
    printf "both / off: %.2f; a cached check: %.2f µs\n", both / off, (both - telemetry) * 1e6 / hertz / all }'
echo "mixer: $(awk -v ticks="$mixer" -v hertz="$hertz" -v served="$served" 'BEGIN { printf "%.4f", ticks / hertz * 1000 / served }') vCPU for 1,000 requests a second"
curl -s "http://127.0.0.1:19522/stats" | grep -E 'http_mixer_filter.total_(check_calls|check_cache_hits|remote_check_calls|report_calls|remote_report_calls):' || true
