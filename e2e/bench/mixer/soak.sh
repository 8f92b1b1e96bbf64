#!/usr/bin/env bash
# Checks and reports together at a share of what the machine can do, for minutes, while the configuration changes twice a second
# and what the adapters talk to is killed every ten seconds. Fails if a check failed or was refused (no configuration here
# refuses any), if a report failed, or if memory went on growing.
#
#   cargo build --release && cargo build --release --workspace --example mixer_load
#   e2e/bench/mixer/soak.sh [SECONDS]       (300 by default; SHARE=60 percent; TARGET=folder of the build)
set -euo pipefail
. "$(dirname "$0")/server.sh"
seconds=${1:-300}
share=${SHARE:-60}
slice=$((seconds / 6 > 5 ? seconds / 6 : 5))

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
opa=$(free_port)
fluentd=$(free_port)

# Somebody at the other end of the adapters, for nine of ten seconds.
(
    trap 'kill "$backends" 2>/dev/null; exit 0' TERM
    while :; do
        python3 "$bench/backends.py" "$opa" "$fluentd" &
        backends=$!
        sleep 9 & wait $!
        kill -9 "$backends"
        wait "$backends" 2>/dev/null || true
        sleep 1 & wait $!
    done
) 2>/dev/null &
pids+=($!)

sed "s/OPA_PORT/$opa/; s/FLUENTD_PORT/$fluentd/" "$bench/soak.yaml" >"$folder/soak.yaml"
start "${standard[@]}" "$bench/check.yaml" "$folder/soak.yaml"
echo "== what the machine can do"
most=$(load check --label-sets 100 --seconds 5)
echo "$most"
rate=$(sed 's/.*(\([0-9]*\)\/s).*/\1/' <<<"$most")
# A fifth of the calls are reports, of ten requests each.
checks=$((rate * share / 100 * 4 / 5))
reports=$((rate * share / 100 / 5 / 10))

# A rule that comes, changes and goes, twice a second.
(
    trap 'exit 0' TERM
    number=0
    while :; do
        number=$((number + 1))
        cat >"$folder/changing" <<RULE
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: changing, namespace: istio-system}
spec: {compiledTemplate: reportnothing}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: changing, namespace: istio-system}
spec: {compiledAdapter: noop}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: changing, namespace: istio-system}
spec: {match: 'response.code == $number', actions: [{handler: changing, instances: [changing]}]}
RULE
        mv "$folder/changing" "$folder/config/changing.yaml"
        sleep 0.5
    done
) &
pids+=($!)

echo "== $seconds s of $checks checks and $reports reports a second"
for part in $(seq $((seconds / slice))); do
    load report --label-sets 1000 --batch 10 --rate "$reports" --seconds "$slice" --connections 1 >"$folder/reports" &
    reporting=$!
    load check --label-sets 100 --rate "$checks" --seconds "$slice" --connections 2 | tee -a "$folder/lines"
    wait "$reporting"
    tee -a "$folder/lines" <"$folder/reports"
done
changes=$(grep -c '"configuration in force"' "$folder/log")
echo "== $changes configurations were in force"
bad=$(grep -vc ', 0 calls failed, 0 refused;' "$folder/lines" || true)
# After the first third nothing new is to be remembered.
grown=$(sed 's/.*memory [0-9]* -> \([0-9]*\) MiB.*/\1/' "$folder/lines" |
    awk '{ a[NR] = $1 } END { first = a[int((NR + 2) / 3)]; print (a[NR] > first * 1.1 + 8) ? a[NR] - first : 0 }')
echo "== $bad lines with failures, memory grew by $grown MiB"
[ "$bad" -eq 0 ] && [ "$grown" -eq 0 ] && [ "$changes" -gt $((seconds / 2)) ]
