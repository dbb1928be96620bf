#!/usr/bin/env bash
# The store beside what else could keep such files, on the same inputs, by turns. As root, on Debian 12:
#
#   TMPDIR=/some/file/system benches/peers.sh
#
# It installs what is missing, prints tables, and writes them to docs/benchmarks.md, with a chart beside it. A peer
# that can't be installed is left out. It takes about twenty minutes and 5 GiB. These variables change it:
#
#   ROUNDS=3            how often everybody takes a turn
#   SIZE_MIB=1024       the root file system
#   COUNT=10000         small entries to collect, a multiple of 200
#   OSTREE_COUNT=2000   the same for those that are a process each to make
#   PEERS="cp restic"   only these beside ours, by their names in the table
#   WORKS=large         or small: the collections
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $(id -u) != 0 ]]; then
  echo "this installs packages: run it as root" >&2
  exit 1
fi

missing() { ! command -v "$1" > /dev/null; }

install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" > /dev/null
}

updated=false
# package:program
for pair in nix-bin:nix-store ostree:ostree casync:casync restic:restic borgbackup:borg git:git strace:strace \
  time:/usr/bin/time python3:python3; do
  missing "${pair#*:}" || continue
  if ! $updated; then
    apt-get update -qq || echo "the list of packages could not be updated" >&2
    updated=true
  fi
  install "${pair%:*}" || echo "${pair%:*} could not be installed" >&2
done
for needed in strace /usr/bin/time python3; do
  if missing "$needed"; then
    echo "nothing can be measured without $needed" >&2
    exit 1
  fi
done

target_of() {
  cargo metadata --format-version 1 --no-deps "$@" | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4
}

cargo build --release --quiet
# It makes the stores of small entries.
cargo bench --no-run --quiet --bench collect
programs=$(target_of)/release

driver=benches/peers/cacache/Cargo.toml
if cargo build --release --quiet --locked --manifest-path "$driver"; then
  programs=$programs:$(target_of --manifest-path "$driver")/release
else
  echo "the driver for cacache could not be built" >&2
fi

# The distribution's programs, not others of the same name that are before them.
export PATH="$programs:/usr/sbin:/usr/bin:/sbin:/bin:$PATH"
export PYTHONDONTWRITEBYTECODE=1
exec python3 benches/peers
