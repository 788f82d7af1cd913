#!/bin/sh
# A SLURM cluster of one node, this machine, for trying `clmeta sweep --launcher slurm`.
#
#   one_node.sh install     Debian packages slurm-wlm and munge (as root)
#   one_node.sh start DIR   munged, slurmctld and slurmd with all of their files in DIR (as root)
#   one_node.sh stop DIR    end the daemons started in DIR, and no others
#
# After `start`: export SLURM_CONF=DIR/slurm.conf
set -eu

wait_for() { # seconds, command...
    left=$1
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        if [ "$left" -le 0 ]; then
            echo "gave up waiting for: $*" >&2
            return 1
        fi
        sleep 1
    done
}

up() { sinfo --noheader --format=%t | grep -q -e idle -e mix -e alloc; }

start() {
    dir=$1
    mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
    host=$(hostname -s)
    # munged insists on folders that nobody else can write to, and on a key of its own.
    dd if=/dev/urandom of="$dir/munge/key" bs=1 count=1024 2>/dev/null
    chmod 400 "$dir/munge/key"
    chmod 755 "$dir/munge"
    cat >"$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
    export SLURM_CONF="$dir/slurm.conf"
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    slurmctld -i
    slurmd -N "$host"
    if ! wait_for 30 up; then
        tail -n 20 "$dir/slurmctld.log" "$dir/slurmd.log" >&2
        exit 1
    fi
    sinfo
}

stop() {
    dir=$1
    for file in slurmd.pid slurmctld.pid munge/pid; do
        if [ -s "$dir/$file" ]; then
            kill "$(cat "$dir/$file")" 2>/dev/null || true
        fi
    done
}

case "${1:-}" in
install)
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge
    ;;
start) start "$2" ;;
stop) stop "$2" ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
