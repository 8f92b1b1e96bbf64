#!/usr/bin/env bash
# Runs every check and test of the project and closes with one line of totals: "N passed, N failed".
#
#   e2e/test.sh            everything
#   e2e/test.sh STAGE ...  only these stages: prepare format lint doc test charts parity mesh h2spec, and four that run only
#                          when named: images (those of the release, none too large; 10 minutes), fuzz (every parser for a
#                          minute; 15 minutes), and two that compile Kubernetes the first time: kube (a real API server; 10
#                          minutes) and node (a whole node with pods; 20 minutes; as root)
#
# What a stage prints in full goes to the terminal; the exit code is 0 only if nothing failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
export RUST_BACKTRACE=0
passed=0
failed=0
log=$(mktemp) || exit 2
trap 'rm -f "$log"' EXIT

say() { printf '\n== %s\n' "$*"; }

# check NAME COMMAND...: one check that passes or fails as a whole.
check() {
    local name=$1
    shift
    say "$name"
    local start=$SECONDS
    if "$@"; then
        passed=$((passed + 1))
        printf '   %s: ok (%d s)\n' "$name" $((SECONDS - start))
    else
        failed=$((failed + 1))
        printf '   %s: FAILED (%d s)\n' "$name" $((SECONDS - start))
    fi
}

# tests NAME COMMAND...: a run of cargo test, whose own counts are added up.
tests() {
    local name=$1
    shift
    say "$name"
    local start=$SECONDS status before=$failed
    "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    local counts
    counts=$(awk '/^test result:/ { for (i = 1; i <= NF; i++) { if ($i == "passed;") p += $(i-1); if ($i == "failed;") f += $(i-1) } }
        END { printf "%d %d", p, f }' "$log")
    passed=$((passed + ${counts% *}))
    failed=$((failed + ${counts#* }))
    # A run that failed without a failed test (it did not compile, it was killed) counts as one failure.
    if [ "$status" -ne 0 ] && [ "$failed" -eq "$before" ]; then failed=$((failed + 1)); fi
    printf '   %s: %s passed, %s failed (%d s)\n' "$name" "${counts% *}" "${counts#* }" $((SECONDS - start))
}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }

prepare() {
    local packages=()
    command -v iptables-restore >/dev/null || [ -x /usr/sbin/iptables-restore ] || packages+=(iptables)
    command -v nft >/dev/null || [ -x /usr/sbin/nft ] || packages+=(nftables)
    command -v ip >/dev/null || [ -x /usr/sbin/ip ] || packages+=(iproute2)
    command -v newuidmap >/dev/null || packages+=(uidmap)
    command -v setpriv >/dev/null || packages+=(util-linux)
    command -v ps >/dev/null || packages+=(procps)
    [ -x /usr/lib/cni/ptp ] || [ -x /opt/cni/bin/ptp ] || packages+=(containernetworking-plugins)
    command -v curl >/dev/null || packages+=(curl)
    command -v h2load >/dev/null || packages+=(nghttp2-client)
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null || packages+=(redis-server)
    if named kube || named node; then
        command -v openssl >/dev/null || packages+=(openssl)
        command -v kubectl >/dev/null || packages+=(kubernetes-client)
    fi
    if named node; then
        command -v containerd >/dev/null || packages+=(containerd)
        command -v runc >/dev/null || packages+=(runc)
        command -v conntrack >/dev/null || packages+=(conntrack)
    fi
    python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    if [ ${#packages[@]} -gt 0 ]; then
        command -v apt-get >/dev/null || { echo "install these packages first: ${packages[*]}"; return 1; }
        echo "installing ${packages[*]}"
        as_root apt-get update -qq && as_root apt-get install -y -qq "${packages[@]}" >/dev/null || return 1
    fi
    rustup component list --installed 2>/dev/null | grep -q clippy || rustup component add clippy rustfmt || return 1
    ENVOY=$(e2e/envoy.sh) && export ENVOY || return 1
    GRPCIO=$(e2e/grpcio.sh) && export GRPCIO
}

# Tests that run only when named are targets that `--all-targets` leaves out.
lint() {
    cargo clippy --workspace --all-targets --locked -- -D warnings &&
        cargo clippy --workspace --test helm --test kube --test mesh --locked -- -D warnings
}

# Licences, sources, versions (.deny.toml); known vulnerabilities where their database is (`cargo deny fetch` brings it).
dependencies() {
    local deny checks=(licenses bans sources)
    deny=$(e2e/deny.sh) || return 1
    if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/*/.git" >/dev/null; then
        checks+=(advisories)
    else
        echo "   advisories are not checked: there is no database of them here"
    fi
    # It asks about the packages of every platform; a build has brought only this one's.
    cargo fetch --locked --quiet && "$deny" --offline --locked check "${checks[@]}"
}

documentation() { RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items --locked --quiet; }

# As they are published: of the release binaries, none larger than the limit.
images() { cargo build --release --workspace --bins --locked && helm/images/build; }

stages=("$@")
named() { [[ " ${stages[*]} " == *" $1 "* ]]; }
wanted() { [ ${#stages[@]} -eq 0 ] || named "$1"; }

# The tests that ask for a real Envoy find it in $ENVOY, those that ask for gRPC's own xDS client in $GRPCIO.
check "prepare" prepare
wanted format && check "format" cargo fmt --all --check
wanted lint && check "lint" lint
wanted lint && check "dependencies" dependencies
wanted doc && check "documentation" documentation
# Every run of cargo below selects the whole workspace, so that features are the same in each and nothing is built twice.
if wanted test || wanted charts || wanted parity || wanted mesh || wanted h2spec || named fuzz || named kube || named node; then
    check "build" cargo build --workspace --all-targets --locked
fi
if wanted test; then
    tests "unit and integration tests" cargo test --workspace --locked --no-fail-fast
    # `scale` is a measurement, see e2e/bench/proxy load; `kubernetes` needs a cluster in $KUBECONFIG.
    tests "tests that need root, curl, h2load, Redis, grpcio or a real Envoy" \
        cargo test --workspace --locked --no-fail-fast --lib --bins --test it -- --ignored --skip scale --skip kubernetes --test-threads=1
fi
if wanted charts; then
    if HELM=$(e2e/helm.sh); then
        export HELM
        tests "charts" cargo test --workspace --locked --test helm
    else
        say "charts: skipped, there is no Helm to render them"
    fi
fi
if wanted h2spec; then
    if command -v go >/dev/null; then
        check "h2spec" e2e/h2spec.sh
    else
        say "h2spec: skipped, there is no Go to build it"
    fi
fi
named images && check "images" images
# Each target for so long, two at a time.
named fuzz && FUZZ_SECONDS=${FUZZ_SECONDS:-60} tests "fuzzing" \
    cargo test --workspace --locked --no-fail-fast --lib fuzz_ -- --test-threads=2
# Only when named: Kubernetes is compiled the first time.
if named kube; then
    HELM=$(e2e/helm.sh) && export HELM
    tests "charts and components with a real API server" \
        e2e/kube/run cargo test --workspace --locked --test kube -- --test-threads=1
    tests "controllers with a real API server" \
        e2e/kube/run cargo test --workspace --locked --no-fail-fast --test it -- --ignored kubernetes --test-threads=1
fi
if named node; then
    HELM=$(e2e/helm.sh) && export HELM
    tests "the mesh in pods of a real node" \
        e2e/kube/node/run cargo test --workspace --locked --test mesh -- --ignored node:: --test-threads=1
fi
if wanted parity; then
    tests "the proxy beside Envoy" cargo test --workspace --locked --test parity
fi
if wanted mesh; then
    tests "end-to-end tests" cargo test --workspace --locked --test mesh -- --include-ignored --skip node:: --test-threads=1
fi

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
