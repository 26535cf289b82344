#!/usr/bin/env bash
# A Ray cluster of three machines on one: a head and two nodes in network namespaces of their own, with addresses of
# their own on a virtual switch. Linux, as root, in the checkout's environment.
#
#   infra/deploy/ray/namespaces.sh run COMMAND...   starts the cluster, runs the command on its head, and ends all of it
#   infra/deploy/ray/namespaces.sh cut SECONDS      from another terminal: unplugs the second node's cable for so long
#
# For example
#   infra/deploy/ray/namespaces.sh run python -m pipelines.cli train --root "$PWD/runs/nodes" --num-workers 2 --min-workers 1
#
# The head has no CPUs and each node has one, so every worker has a machine of its own. Ended (also by Ctrl-C) it leaves
# nothing: whatever runs in its namespaces was started by it, and nothing else is touched.
set -euo pipefail

readonly SWITCH=viewdiff0 HEAD=viewdiff-head NODES=(viewdiff-node1 viewdiff-node2) SUBNET=10.77.0
readonly START_SECONDS=180

in_namespace() { # NAME COMMAND...: what is started there talks over that machine's cable only
    local name=$1
    shift
    ip netns exec "$name" env GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0 "$@"
}

plug_in() { # NAME NUMBER: a machine with one cable to the switch
    ip netns add "$1"
    ip link add "vd$2" type veth peer name eth0 netns "$1"
    ip link set "vd$2" master "$SWITCH" up
    ip -n "$1" address add "$SUBNET.$2/24" dev eth0
    ip -n "$1" link set lo up
    ip -n "$1" link set eth0 up
}

start_ray() { # NAME NUMBER OPTION...
    local name=$1 number=$2
    shift 2
    in_namespace "$name" ray start --block --disable-usage-stats --node-ip-address="$SUBNET.$number" \
        --temp-dir="$FOLDER/$number" --object-store-memory=200000000 "$@" >>"$FOLDER/$name.log" 2>&1
}

keep_ray() { # As start_ray, again and again: what systemd or Kubernetes does for a node that the head gave up
    while true; do
        start_ray "$@" || true
        sleep 1
    done
}

tear_down() {
    trap - EXIT INT TERM
    for loop in $(jobs -p); do kill "$loop" 2>/dev/null || true; done
    for name in "$HEAD" "${NODES[@]}"; do
        ip netns pids "$name" 2>/dev/null | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
        ip netns delete "$name" 2>/dev/null || true
    done
    # A namespace lives until its last process is gone; its cable must not be in the way of the next run.
    for link in vd1 vd2 vd3 "$SWITCH"; do ip link delete "$link" 2>/dev/null || true; done
    rm -rf "$FOLDER"
}

run() {
    if ip link show "$SWITCH" >/dev/null 2>&1; then
        echo "$SWITCH exists: another run is under way" >&2
        exit 1
    fi
    FOLDER=$(mktemp --directory /tmp/vd-XXXX) # short: Ray's sockets are in it
    trap tear_down EXIT
    trap 'exit 130' INT TERM
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    ip link add "$SWITCH" type bridge
    ip link set "$SWITCH" up
    plug_in "$HEAD" 1
    start_ray "$HEAD" 1 --head --port=6379 --num-cpus=0 --include-dashboard=false &
    local number=2
    for name in "${NODES[@]}"; do
        plug_in "$name" "$number"
        keep_ray "$name" "$number" --address="$SUBNET.1:6379" --num-cpus=1 &
        number=$((number + 1))
    done
    for _ in $(seq "$START_SECONDS"); do
        in_namespace "$HEAD" ray status --address="$SUBNET.1:6379" >"$FOLDER/status" 2>&1 || true
        grep -q '0.0/2.0 CPU' "$FOLDER/status" && break
        sleep 1
    done
    grep -q '0.0/2.0 CPU' "$FOLDER/status" || { cat "$FOLDER"/*.log >&2; echo "the nodes did not start" >&2; exit 1; }
    RAY_ADDRESS="$SUBNET.1:6379" in_namespace "$HEAD" "$@" &
    wait $!
}

cut() { # SECONDS
    ip link set vd3 down
    trap 'ip link set vd3 up' EXIT
    sleep "$1"
}

case "${1:-}:$#" in
    run:[2-9]* | run:1?*) "$@" ;;
    cut:2) "$@" ;;
    *)
        sed --quiet '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
        exit 2
        ;;
esac
