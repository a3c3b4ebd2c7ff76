#!/bin/bash
# local_cluster.sh - a real Slurm cluster of several nodes on one Debian or Ubuntu machine.
#
#   slurm/local_cluster.sh up [N]           install what is missing, start N nodes (default 4)
#   slurm/local_cluster.sh status           daemons, nodes, queue; 0 when all is well
#   slurm/local_cluster.sh exec NODE CMD    run CMD on a node, as ssh would
#   slurm/local_cluster.sh kill NODE        power cut: every process of the node dies at once
#   slurm/local_cluster.sh boot NODE        power back
#   slurm/local_cluster.sh rate [RATE]      limit every node's link, such as 1gbit or 100mbit; none: no limit;
#                                           without RATE: say what it is
#   slurm/local_cluster.sh down             stop everything that up started
#
# Needs root. Each node n1, n2, ... is a set of Linux namespaces: it has its own network address, host
# name, process table and /dev/shm, so MPI ranks on two nodes can only talk over TCP. Files are shared, as
# a home folder is on a cluster. Nodes reach each other and this machine (login node and controller), not
# the internet. One munged and one slurmctld; no database, no cgroups; jobs run as the user who submits.
#
# Variables for up: CPUS=4, what each node says that it has (the machine need not have them);
# RATE=1gbit, what each node can send and what it can receive (default: none, no limit); MPI_DEFAULT=pmi2,
# what a plain srun speaks (pmi2: MPICH and Intel MPI; pmix: Open MPI).
# Everything is in LOCAL_CLUSTER_DIR (/var/lib/local-slurm), logs in its log/. The one file outside it is
# the link /etc/slurm/slurm.conf, so that sbatch finds the cluster. Exit codes: 2 usage, 4 cannot work here.
set -euo pipefail
umask 022
export PATH=$PATH:/usr/sbin:/sbin

DIR=${LOCAL_CLUSTER_DIR:-/var/lib/local-slurm}
NET=10.99.0 # a /24 of our own; this machine is .254
BRIDGE=slurmbr0
PRIVILEGES="a virtual machine, or a container started with --privileged"
SELF=$(readlink -f "$0")
export SLURM_CONF=$DIR/etc/slurm.conf

say() { echo "local_cluster: $*"; }

fail() { # fail MESSAGE REMEDY
    printf 'error: %s\n  Fix: %s\n' "$1" "$2" >&2
    exit 4
}

wait_for() { # wait_for SECONDS CMD...: until CMD succeeds; 1 when it has not by then
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

usage() {
    sed -n '3,11p' "$SELF" | sed 's/^# \{0,1\}//' >&2
    exit 2
}

# ---- Processes. Each has DIR/run/NAME.pid, believed only while that process's command line names DIR.

is_ours() { grep -qsF "$DIR" "/proc/$1/cmdline"; }
is_gone() { ! is_ours "$1"; }

pid_of() {
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [ -n "$pid" ] && is_ours "$pid" && echo "$pid"
}

await_start() { # a daemon writes its pid file a moment after its command has returned
    wait_for 10 pid_of "$1" >/dev/null || fail_with_logs "$1 did not start"
}

stop() { # stop NAME [SIGNAL]: SIGKILL when it is still there 5 s later
    local pid
    if pid=$(pid_of "$1"); then
        kill -"${2:-TERM}" "$pid" 2>/dev/null || true
        wait_for 5 is_gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$DIR/run/$1.pid"
}

fail_with_logs() { # fail_with_logs MESSAGE
    find "$DIR/log" -name '*.log' -size +0 -exec tail -v -n 6 {} + >&2
    fail "$1" "see the ends of the logs above; the whole is in $DIR/log"
}

# ---- The machine: what must be there before anything is started.

need_root() {
    [ "$(id -u)" = 0 ] || fail "expected root. Got: $(id -un)" "sudo slurm/local_cluster.sh $*"
}

check_machine() {
    if [ -e /etc/slurm/slurm.conf ] && [ "$(readlink /etc/slurm/slurm.conf)" != "$SLURM_CONF" ]; then
        fail "expected a machine without Slurm. Got: /etc/slurm/slurm.conf of another cluster" \
            "use that cluster (sbatch slurm/mpi_4nodes.sh), or another machine"
    fi
    install_packages
    unshare --net --uts --ipc --mount --pid --fork true 2>/dev/null ||
        fail "expected the right to make namespaces (CAP_SYS_ADMIN)" "$PRIVILEGES"
}

install_packages() {
    # Debian's mpi/pmix plugin opens libpmix.so, a link that only the -dev package has.
    local package status policy=/usr/sbin/policy-rc.d our_policy='' missing=() failed=''
    for package in slurm-wlm munge iproute2 util-linux libpmix-dev; do
        status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) || true
        [ "$status" = 'install ok installed' ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "expected apt-get, for ${missing[*]}" "a Debian or Ubuntu machine"
    say "apt-get install ${missing[*]}"
    if [ ! -e $policy ]; then
        # The packages would start services of their own, without a configuration.
        our_policy=1
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    (apt-get update && apt-get install -y --no-install-recommends "${missing[@]}") >"$DIR/log/apt.log" 2>&1 ||
        failed=1
    if [ -n "$our_policy" ]; then rm -f $policy; fi
    if [ -n "$failed" ]; then
        tail -n 5 "$DIR/log/apt.log" >&2
        fail "apt-get could not install ${missing[*]}" "apt-get update && apt-get install ${missing[*]}"
    fi
}

# ---- Configuration.

write_config() { # write_config N
    local i memory_mib
    memory_mib=$(awk -v n="$1" '/MemTotal/ { print int($2 / 1024 / n) }' /proc/meminfo)
    {
        sed "s|@DIR@|$DIR|" "${SELF%.sh}.conf"
        echo "SlurmctldHost=$(hostname -s)($NET.254)"
        echo "MpiDefault=${MPI_DEFAULT:-pmi2}"
    } >"$SLURM_CONF"
    # slurmd looks for cgroups even when no plugin uses them, and stops where it finds none; it does not
    # look when the plugin is named.
    echo CgroupPlugin=cgroup/v1 >"$DIR/etc/cgroup.conf"
    printf '127.0.0.1 localhost\n%s.254 %s\n' "$NET" "$(hostname -s)" >"$DIR/etc/hosts"
    for ((i = 1; i <= $1; i++)); do
        echo "NodeName=n$i NodeAddr=$NET.$i CPUs=${CPUS:-4} RealMemory=$memory_mib" >>"$SLURM_CONF"
        echo "$NET.$i n$i" >>"$DIR/etc/hosts"
    done
    seq -f 'n%.0f' "$1" >"$DIR/run/nodes"
    echo "${RATE:-none}" >"$DIR/run/rate"
    [ -s "$DIR/etc/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$DIR/etc/munge.key")
}

# ---- Nodes.

nodes() { cat "$DIR/run/nodes" 2>/dev/null || true; }

start_node() { # start_node NAME
    local name=$1 veth=slurmv${1#n} pid
    mkdir -p "$DIR/spool/$name" "$DIR/tmp/$name"
    chmod 1777 "$DIR/tmp/$name"
    # The shell writes its pid, then becomes unshare; when unshare dies, so does the node's process 1,
    # and with it every process of the node.
    # shellcheck disable=SC2016  # $$, $1 and $@ are the inner shell's
    setsid sh -c 'echo $$ >"$1"; shift; exec "$@"' sh "$DIR/run/node-$name.pid" \
        unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc \
        env LOCAL_CLUSTER_DIR="$DIR" bash "$SELF" _node "$name" </dev/null >"$DIR/log/node-$name.log" 2>&1 &
    disown # or this shell would report every node that down kills
    wait_for 10 has_own_network "$name" || fail_with_logs "node $name did not start"
    pid=$(pid_of "node-$name")
    ip link add "$veth" type veth peer name eth0 netns "$pid"
    limit "$name"
    ip link set "$veth" master $BRIDGE up
}

has_own_network() {
    local pid
    pid=$(pid_of "node-$1") && [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]
}

# What a node does, as process 1 of its namespaces.
node_main() {
    hostname "$1"
    mount -t sysfs sysfs /sys # where MPI looks for network interfaces
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount --bind "$DIR/etc/hosts" /etc/hosts
    ip link set lo up
    wait_for 10 ip link show eth0 >/dev/null 2>&1
    ip addr add "$NET.${1#n}/24" dev eth0
    ip link set eth0 up
    slurmd -f "$SLURM_CONF" -N "$1" # goes to the background
    while :; do # and bash reaps what it leaves behind
        sleep 3600 &
        wait $! || true
    done
}

pid_of_node() {
    pid_of "node-$1" || fail "expected a node that is up. Got: '$1'" "slurm/local_cluster.sh status"
}

# ---- What the nodes' links let through.

check_rate() { # check_rate RATE
    [[ $1 = none || $1 =~ ^[1-9][0-9]{0,4}[mg]bit$ ]] && return
    printf "error: expected a rate. Got: '%s'\n  Fix: 10gbit, 1gbit, 100mbit or the like, or none\n" "$1" >&2
    exit 2
}

limit() { # limit NODE: its end of the link to what it may send, this machine's end to what it may receive
    limit_device "slurmv${1#n}"
    limit_device eth0 nsenter -t "$(pid_of_node "$1")" -n
}

limit_device() { # limit_device DEVICE [PREFIX...]: to run/rate; PREFIX leads to where the device is
    local rate burst
    rate=$(<"$DIR/run/rate")
    if [ "$rate" = none ]; then
        "${@:2}" tc qdisc del dev "$1" root 2>/dev/null || true # there may be none
        return
    fi
    # What passes at full speed after a pause. Less than a message, or short ones would not be limited; more
    # than the timer is late by, and as much as TCP hands down at once, or the rate would not be reached. Half
    # a millisecond, but 64 to 256 kB.
    burst=$(awk -v rate="$rate" 'BEGIN {
        bytes = rate * (rate ~ /gbit/ ? 1e9 : 1e6) / 8 * 0.0005
        print int(bytes < 64000 ? 64000 : bytes > 256000 ? 256000 : bytes)
    }')
    "${@:2}" tc qdisc replace dev "$1" root tbf rate "$rate" burst "$burst" latency 100ms ||
        fail "expected a kernel that limits rates (the module sch_tbf)" "$PRIVILEGES; or no RATE"
}

set_rate() { # set_rate RATE: of all nodes that are up; the others get it when they boot
    local name
    echo "$1" >"$DIR/run/rate"
    for name in $(nodes); do
        if pid_of "node-$name" >/dev/null; then limit "$name"; fi
    done
    say "what a node can send, and what it can receive: $(rate_in_words)"
}

rate_in_words() { sed 's/^none$/no limit/' "$DIR/run/rate"; }

# ---- The cluster.

is_healthy() { # every daemon alive, every node answering
    local name
    for name in munged slurmctld $(nodes | sed 's/^/node-/'); do
        pid_of "$name" >/dev/null || return 1
    done
    # sinfo puts a star behind the state of a node that does not answer.
    [ "$(timeout 5 sinfo -h -N -o %T 2>/dev/null | grep -cE '^(idle|mixed|allocated|completing)$')" = \
        "$(nodes | wc -l)" ]
}

up() {
    local count=${1:-4} name started=$SECONDS
    [[ $# -le 1 && $count =~ ^[1-9][0-9]?$ ]] || usage
    check_rate "${RATE:-none}"
    if [ "$(nodes | wc -l)" = "$count" ] && is_healthy; then
        say "already up: $count nodes"
        if [ -n "${RATE:-}" ]; then set_rate "$RATE"; fi
        return
    fi
    mkdir -p "$DIR"/{etc,run,log}
    check_machine
    take_down
    rm -rf "${DIR:?}"/{state,spool,tmp,log}
    mkdir -p "$DIR"/{state,spool,tmp,log}
    # Whatever goes wrong from here on, an interrupt included, leaves nothing but the logs.
    trap take_down EXIT
    trap 'exit 130' INT TERM
    write_config "$count"
    munged --key-file="$DIR/etc/munge.key" --socket="$DIR/run/munge.socket" --pid-file="$DIR/run/munged.pid" \
        --seed-file="$DIR/run/munge.seed" --log-file="$DIR/log/munged.log" || true
    await_start munged
    ip link add $BRIDGE type bridge || fail "expected the right to make a network bridge" "$PRIVILEGES"
    ip addr add "$NET.254/24" dev $BRIDGE
    ip link set $BRIDGE up
    slurmctld -f "$SLURM_CONF" || true
    await_start slurmctld
    for name in $(nodes); do start_node "$name"; done
    wait_for 60 is_healthy || fail_with_logs "$count nodes did not come up in 60 s"
    mkdir -p /etc/slurm
    ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
    trap - EXIT
    say "up: $count nodes in $((SECONDS - started)) s, logs in $DIR/log"
}

queue_is_empty() { [ -z "$(timeout 5 squeue -h 2>/dev/null)" ]; }

take_down() {
    local name
    if pid_of slurmctld >/dev/null; then # jobs end as jobs do, not by a vanished node
        timeout 5 squeue -h -o %A 2>/dev/null | xargs -r timeout 5 scancel 2>/dev/null || true
        wait_for 6 queue_is_empty || true
    fi
    for name in $(nodes); do
        stop "node-$name" KILL
        ip link del "slurmv${name#n}" 2>/dev/null || true
    done
    stop slurmctld
    stop munged
    ip link del $BRIDGE 2>/dev/null || true
    if [ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ]; then rm -f /etc/slurm/slurm.conf; fi
    rm -f "$DIR"/run/{nodes,rate} "$DIR"/run/slurmd-*.pid
}

status() {
    local name
    [ -n "$(nodes)" ] || { say "down" && return 4; }
    for name in munged slurmctld $(nodes | sed 's/^/node-/'); do
        printf '%-10s %s\n' "$name" "$(pid_of "$name" || echo dead)"
    done
    printf '%-10s %s\n' rate "$(rate_in_words)"
    timeout 5 sinfo -N -l && timeout 5 squeue
    is_healthy
}

is_down() { sinfo -h -N -n "$1" -o %T | grep -q down; }

boot() {
    if ! nodes | grep -qx "$1" || pid_of "node-$1" >/dev/null; then
        fail "expected a node without power. Got: '$1'" "slurm/local_cluster.sh status"
    fi
    ip link del "slurmv${1#n}" 2>/dev/null || true
    # A real machine boots slower than Slurm notices; one that came back sooner would keep its lost job.
    wait_for 60 is_down "$1" || true
    start_node "$1"
}

case ${1:-}:$# in
    up:* | down:1 | kill:2 | boot:2 | rate:2 | exec:[3-9] | exec:??) need_root "$@" ;;
    status:1 | rate:1 | _node:2) ;;
    *) usage ;;
esac
case $1 in
    up) up "${@:2}" ;;
    down) take_down && say "down" ;;
    status) status ;;
    boot) boot "$2" ;;
    rate)
        check_rate "${2:-none}"
        [ -n "$(nodes)" ] || fail "expected a cluster that is up. Got: none" "slurm/local_cluster.sh up"
        if [ $# = 2 ]; then set_rate "$2"; else cat "$DIR/run/rate"; fi
        ;;
    kill)
        pid=$(pid_of_node "$2")
        kill -KILL "$pid"
        say "$2 has no power"
        ;;
    exec)
        pid=$(pid_of_node "$2")
        exec nsenter -t "$pid" -n -u -i -m --pid="/proc/$pid/ns/pid_for_children" -- "${@:3}"
        ;;
    _node) node_main "$2" ;;
esac
