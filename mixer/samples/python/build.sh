#!/usr/bin/env bash
# Makes what the sample adapter needs below a folder: a Python environment with grpcio, the generated modules, and the
# descriptors of its parameters and of its templates as they stand in the kinds `adapter` and `template` (base64).
#
#   build.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../../.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
# Two may come at once.
exec {lock}>"$folder/lock"
flock "$lock"
[ -f "$folder/done" ] && [ -z "$(find "$here" -newer "$folder/done")" ] && exit 0
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check grpcio==1.85.1 grpcio-tools==1.85.1 googleapis-common-protos==1.76.0
common=$("$python" -c 'import google.rpc.status_pb2 as m, os; d = os.path.dirname; print(d(d(d(m.__file__))))')
includes=(-I "$here" -I "$repository/mixer/protos" -I "$repository/proto/protos" -I "$common")
generated=$folder/generated
mkdir -p "$generated"
(
    cd "$repository"
    "$python" -m grpc_tools.protoc "${includes[@]}" --python_out="$generated" --grpc_python_out="$generated" \
        config.proto wordcount.proto team.proto mixer/template/{extensions,metric,quota}.proto \
        istio/mixer/adapter/model/v1beta1/model.proto istio/policy/v1beta1/{type,value_type}.proto
    for name in config wordcount team; do
        "$python" -m grpc_tools.protoc "${includes[@]}" --include_imports --descriptor_set_out="$folder/$name.bin" "$name.proto"
        base64 -w0 "$folder/$name.bin" >"$folder/$name.base64"
    done
)
touch "$folder/done"
