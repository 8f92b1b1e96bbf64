#!/usr/bin/env bash
# Prints a folder with the Python package grpcio (gRPC's own xDS client), for PYTHONPATH: $GRPCIO if it is set, else one in the
# target folder, into which it is installed the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.85.1
if [ -n "${GRPCIO:-}" ]; then
    [ -d "$GRPCIO/grpc" ] || { echo "GRPCIO=$GRPCIO has no package grpc" >&2; exit 1; }
    echo "$GRPCIO"
    exit
fi
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/grpcio-$version
if [ ! -d "$folder/grpc" ]; then
    command -v python3 >/dev/null || { echo "gRPC's xDS client is installed with pip: install python3 and python3-pip" >&2; exit 1; }
    rm -rf "$folder.new" "$folder"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$folder.new" "grpcio==$version" >&2
    mv "$folder.new" "$folder"
fi
echo "$folder"
