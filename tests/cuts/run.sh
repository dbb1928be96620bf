#!/usr/bin/env bash
# Power cuts on a real file system.
#
#   tests/cuts/run.sh ext4|xfs|btrfs [STATES]
#
# Runs the program on a disk that logs its writes, rebuilds STATES (default: 1000)
# of the disks that a power cut could have left, and checks in each what was
# promised by then. Then the same with a store that syncs nothing, and with single
# syncs left out, where promises must turn out to be broken. Run it as root.
#
# From the environment, all optional:
#   CUTS_PROGRAM  the built template-store (default: it is built)
#   CUTS_WORKERS  so many recordings, checked at the same time (default: one a core)
#   CUTS_SEED     another choice among the writes that were not flushed
#   PROOF         K/N: only the K-th of N shares of the states, and one of the syncs
#   CUTS_KEEP     where the disks of broken states are left
#                 (default: /var/tmp/template-store-cuts)
#   CI            set where it must run: then it fails when something is missing
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kind=${1:-}
states=${2:-1000}
workers=${CUTS_WORKERS:-$(nproc)}
share=1 shares=1 syncs=({1..6})
if [[ ${PROOF:-} == */* ]]; then
  share=${PROOF%/*} shares=${PROOF#*/} syncs=($(((${PROOF%/*} - 1) % 6 + 1)))
fi

case $kind in
  ext4 | xfs | btrfs) ;;
  *)
    sed -n '2,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac

missing() {
  echo "power cuts on $kind were not tried: $*"
  if [[ -n ${CI:-} ]]; then exit 1; fi
  exit 0
}

[[ $(id -u) == 0 ]] || missing "this mounts file systems, only root can"
for tool in qemu-storage-daemon:qemu-system-common "mkfs.$kind:e2fsprogs, xfsprogs or btrfs-progs" losetup:mount \
  python3:python3 b3sum:b3sum strace:strace; do
  command -v "${tool%%:*}" >/dev/null || missing "there is no ${tool%%:*} (Debian: ${tool#*:})"
done
python3 -c 'import hashlib; hashlib.file_digest' 2>/dev/null || missing "python3 is older than 3.11"
[[ -c /dev/fuse ]] || missing "there is no /dev/fuse: the disk that logs is a file there"
losetup --find >/dev/null || missing "there are no loop devices"

program=${CUTS_PROGRAM:-}
if [[ -z $program ]]; then
  cd "$here/../.."
  cargo build --quiet --release
  program=${CARGO_TARGET_DIR:-$PWD/target}/release/template-store
fi

# In memory: each state is written, mounted and synced.
scratch=$(mktemp -d /dev/shm/template-store-cuts.XXXXXX)
running=()

# The file systems first: they still need their disks.
finish() {
  local mount loop pid
  # A terminal, or timeout, says it twice.
  trap '' INT TERM
  for pid in "${running[@]}"; do kill "$pid" || true; done
  wait
  for mount in $(awk -v top="$scratch/" 'index($2, top) == 1 && $2 !~ /export$/ { print $2 }' /proc/mounts); do
    umount "$mount" || umount --lazy "$mount" || true
  done
  for loop in $(losetup --list --noheadings --output NAME,BACK-FILE |
    awk -v top="$scratch/" 'index($2, top) == 1 { print $1 }'); do
    losetup --detach "$loop" || true
  done
  for pid in $(cat "$scratch"/*/*/daemon.pid); do kill "$pid" || true; done
  for mount in $(awk -v top="$scratch/" 'index($2, top) == 1 { print $2 }' /proc/mounts); do
    umount --lazy "$mount" || true
  done
  rm -rf --one-file-system "$scratch"
} 2>/dev/null
trap finish EXIT
trap 'exit 130' INT TERM

# start NAME STATES WORKER [OPTION...]: a worker in the background.
start() {
  local name=$1 wanted=$2 worker=$3
  shift 3
  mkdir "$scratch/$name"
  # -B: nothing is written to the checkout.
  python3 -B "$here/cuts.py" "$kind" --program "$program" --scratch "$scratch/$name" --states "$wanted" \
    --seed "${CUTS_SEED:-1}" --worker "$worker" "$@" >"$scratch/$name.json" &
  running+=($!)
}

# Whether they came to an end is seen in what they report.
wait_for_all() {
  local pid
  for pid in "${running[@]}"; do wait "$pid" || true; done
  running=()
}

# report TITLE kept|broken STATES NAME...
report() {
  python3 -B "$here/report.py" "$kind, $1" "$2" "$3" "${@:4}"
}

# cut NAME kept|broken STATES TITLE [OPTION...]: shared out among the workers.
cut() {
  local name=$1 expected=$2 wanted=$3 title=$4 each=$((($3 + workers - 1) / workers)) number reports=()
  shift 4
  for ((number = 0; number < workers; number++)); do
    start "$name.$number" "$each" "$number" "$@"
    reports+=("$scratch/$name.$number.json")
  done
  wait_for_all
  report "$title" "$expected" $((each / shares * workers)) "${reports[@]}"
}

cut kept kept "$states" "as it is" --share "$share/$shares" --keep "${CUTS_KEEP:-/var/tmp/template-store-cuts}"

# What must be seen as broken. There is one state in which it is, or the checks are
# blind; not all of them are looked at.
cut none broken 100 "durability none" --durability none --enough 100
# The later syncs of a call are not seen to be missing on every file system: what
# they write, the next sync in the same journal writes as well.
for sync in "${syncs[@]}"; do
  start "without.$sync" 1 0 --without "$sync" --enough 1
  if ((sync % workers == 0)); then wait_for_all; fi
done
wait_for_all
for sync in "${syncs[@]}"; do
  report "the sync number $sync of each call left out" broken 1 "$scratch/without.$sync.json"
done
