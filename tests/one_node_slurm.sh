#!/usr/bin/env bash
# A SLURM cluster of one node, this one: to try the SLURM profile before a real cluster has to bear it.
#
#   apt-get install slurm-wlm munge                           once; neither systemd nor a database is needed
#   tests/one_node_slurm.sh start /tmp/slurm                  ready in a second; prints what to export
#   export SLURM_CONF=/tmp/slurm/slurm.conf PATH=/tmp/slurm/bin:$PATH
#   sinfo; srun hostname
#   tests/one_node_slurm.sh stop /tmp/slurm                   the jobs too
#
# The daemons are this user's, listen on the loopback and write below the folder alone. The node pretends to have one GPU, so that
# gpu=1 is scheduled; no job finds a device behind it. Keep the folder's name short: it holds a socket.
set -euo pipefail
export PATH=$PATH:/usr/sbin
[ $# -eq 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$2"; root=$(realpath "$2"); me=$(id -un); node=$(hostname -s)
export SLURM_CONF=$root/slurm.conf

patiently() {  # until the command succeeds, fifteen seconds at most
  for _ in {1..150}; do "$@" &>/dev/null && return; sleep 0.1; done
  echo "$* did not come true; the ends of the logs:" >&2; tail -n 5 "$root"/log/* >&2; return 1
}
idle() { sinfo --noheader --format=%t | grep -qx idle; }
dead() { ! kill -0 "$1"; }

configure() {
  read -r controller worker < <(python3 - <<<'
import socket
pair = [socket.socket() for _ in range(2)]
for s in pair: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in pair))')
  hardware=$(slurmd -C | grep -oE '\b(CPUs|Boards|SocketsPerBoard|CoresPerSocket|ThreadsPerCore|RealMemory)=[0-9]+' | xargs)
  cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$worker
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$root/munge/socket
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/slurmd.pid
SlurmctldLogFile=$root/log/slurmctld
SlurmdLogFile=$root/log/slurmd
# nothing that needs root, cgroups or a database
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
# without a default a job would take all the memory, and jobs would run one by one
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 $hardware Gres=gpu:1 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  echo "Name=gpu File=/dev/null" > "$root/gres.conf"
  # Snakemake's job step forgets SLURM_CONF, so its srun must be told again
  printf '#!/bin/sh\nSLURM_CONF=%q exec /usr/bin/srun "$@"\n' "$SLURM_CONF" > "$root/bin/srun"
  chmod +x "$root/bin/srun"
}

start() {
  mkdir -p -m 755 "$root"/{munge,state,spool,log,bin}
  [ -s "$root/munge/key" ] || (umask 077; head -c 1024 /dev/urandom > "$root/munge/key")
  configure
  local m=$root/munge
  munged --key-file="$m/key" --socket="$m/socket" --pid-file="$m/pid" --seed-file="$m/seed" --log-file="$root/log/munged"
  slurmctld; patiently scontrol ping
  slurmd;    patiently idle
  echo "export SLURM_CONF=$SLURM_CONF PATH=$root/bin:\$PATH"
}

stop() {
  [ ! -s "$root/slurmctld.pid" ] || scancel --user="$me" || true
  for file in slurmd.pid slurmctld.pid munge/pid; do
    [ -s "$root/$file" ] || continue
    pid=$(<"$root/$file")
    kill "$pid" 2>/dev/null || true
    patiently dead "$pid"
  done
}

case $1 in start|stop) "$1" ;; *) echo "start or stop, not $1" >&2; exit 2 ;; esac
