#!/usr/bin/env bash
# What a large configuration costs: 5,000 clusters, assignments and virtual hosts over delta ADS, then one change; our proxy and,
# where there is one, Envoy with the same bootstrap. Figures: CPU seconds and resident memory loaded, CPU of one change.
#
# usage: proxy_config.sh [ENVOY]      CLUSTERS=5000
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release -q
target=${CARGO_TARGET_DIR:-target}
test=(cargo test -q -p proxy --test it -- --ignored --nocapture --exact scale::a_large_configuration)
"${test[@]}" --list > /dev/null # built before anything is measured
for binary in "$target/release/bireme-proxy" "${1:-}"; do
  [ -n "$binary" ] || continue
  echo "== $binary"
  PROXY_BINARY=$(realpath "$binary") "${test[@]}" | grep -E "CPU|panicked"
done
