#!/usr/bin/env bash
# Prints the path of a Helm: $HELM if it is set, the machine's own, else the engine of the PyPI package helm-python-sdk behind
# the few commands that the tests use (helm.py), which it puts into the target folder the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.2.2
if [ -n "${HELM:-}" ]; then
    [ -x "$HELM" ] || { echo "HELM=$HELM is not a program" >&2; exit 1; }
    echo "$HELM"
    exit
fi
if command -v helm; then exit; fi
command -v python3 >/dev/null || { echo "there is no helm; to have one installed with pip, install python3 and python3-pip" >&2; exit 1; }
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/helm-$version
if [ ! -d "$folder/python" ]; then
    rm -rf "$folder.new"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --target "$folder.new/python" "helm-python-sdk==$version" >&2
    rm -rf "$folder"
    mv "$folder.new" "$folder"
fi
# Written every time: the clone or the target folder may have moved.
printf '#!/bin/sh\nPYTHONPATH=%s exec python3 %s "$@"\n' "$folder/python" "$(realpath e2e/helm.py)" >"$folder/helm.$$"
chmod +x "$folder/helm.$$"
mv "$folder/helm.$$" "$folder/helm"
echo "$folder/helm"
