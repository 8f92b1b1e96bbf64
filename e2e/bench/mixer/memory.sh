#!/usr/bin/env bash
# Memory over 10 million reports with 10,000 label sets, then with ten times as many label sets as a metric keeps. Fails if it goes on
# growing after the first million, or if the second part has no end.
#
#   cargo build --release && cargo build --release --workspace --example mixer_load
#   e2e/bench/mixer/memory.sh [MILLIONS]      (10 by default; TARGET=folder of the build)
set -euo pipefail
. "$(dirname "$0")/server.sh"
millions=${1:-10}

start "${standard[@]}"
sent=0
first=
while [ "$sent" -lt $((millions * 1000000)) ]; do
    line=$(load report --label-sets 10000 --seconds 8)
    sent=$((sent + $(sed 's/^report: \([0-9]*\) .*/\1/' <<<"$line")))
    memory=$(sed 's/.*memory [0-9]* -> \([0-9]*\) MiB.*/\1/' <<<"$line")
    echo "$sent reports: $memory MiB"
    if [ -z "$first" ] && [ "$sent" -ge 1000000 ]; then first=$memory; fi
done
echo "== label values without end"
bounded=0
for _ in 1 2 3; do
    load report --label-sets 500000 --seconds 30 | sed 's/.*memory/memory/'
    last=$bounded
    bounded=$(awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$server/status")
done
[ "$memory" -le $((first + first / 10 + 8)) ] && [ "$bounded" -le $((last + last / 10 + 8)) ]
