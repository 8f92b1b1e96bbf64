#!/usr/bin/env bash
# What Mixer costs: reports with the standard rules and with one counter, checks with a quota and a list, memory with 10,000
# label sets. Every line is of `mixer_load`: what was done, the server's CPU time, how long calls took.
#
#   cargo build --release && cargo build --release --workspace --example mixer_load
#   e2e/bench/mixer/run.sh [SECONDS]        (of each of eight measurements, 8 by default; TARGET=folder of the build)
set -euo pipefail
. "$(dirname "$0")/server.sh"
seconds=${1:-8}

measure() { echo "== $1"; shift; load "$@" --seconds "$seconds"; }

start "${standard[@]}"
measure "reports, the standard rules, 100 label sets" report --label-sets 100
measure "reports, the standard rules, 10,000 label sets (memory)" report --label-sets 10000
measure "the same again" report --label-sets 10000
measure "calls alone: reports of nothing" empty --streams 32
start "$attributes" "$bench/one_counter.yaml"
measure "reports, one counter" report --label-sets 100
start "$attributes" "$bench/check.yaml"
measure "checks with a quota and a list, fewer at once" check --label-sets 100
measure "checks with a quota and a list" check --label-sets 100 --streams 32
measure "the same at half of the aim, 20,000 a second: p99" check --label-sets 100 --rate 20000
