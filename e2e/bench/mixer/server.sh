# For run.sh and soak.sh: a Mixer as a process, and the load on it. Sourced, not run.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
bench=$repository/e2e/bench/mixer
target=${TARGET:-${CARGO_TARGET_DIR:-$repository/target}}/release
folder=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$folder"' EXIT
server=

# The attributes that there are; with the rules, the standard configuration.
attributes=$repository/mixer/default/attributes.yaml
standard=("$attributes" "$repository"/mixer/default/{kubernetesenv,prometheus}.yaml)

# start CONFIG...: a server with these files (and no other); its address is in $address.
start() {
    if [ -n "$server" ]; then kill "$server"; wait "$server" 2>/dev/null || true; fi
    rm -rf "$folder/config" "$folder/log"
    mkdir "$folder/config"
    cp "$@" "$folder/config/"
    "$target/mixs" server --address=tcp://127.0.0.1:0 --monitoringPort=0 --prometheusPort=0 --log_as_json \
        --configStoreURL="fs://$folder/config" >"$folder/log" 2>&1 &
    server=$!
    pids+=("$server")
    for _ in $(seq 100); do
        if grep -q '"configuration in force"' "$folder/log" && grep -q '"serving"' "$folder/log"; then break; fi
        sleep 0.1
    done
    address=127.0.0.1:$(grep -o '"grpc_port":"Some([0-9]*)"' "$folder/log" | grep -o '[0-9]*' | head -1)
}

# load MODE FLAG...: a line of what was done and what it cost.
load() { "$target/examples/mixer_load" "$@" --mixer "$address" --pid "$server"; }
