#!/usr/bin/env bash
# A collection beside those of Nix and OSTree: as many small entries of three
# files, on the same file system, by turns. Run it as root, on Debian:
#
#   TMPDIR=/some/file/system benches/peers.sh
#
# It installs nix-bin and ostree when they are missing. COUNT entries are
# compared with Nix (100,000), and OSTREE_COUNT with OSTree (10,000: each
# commit is a process there), both ROUNDS times (3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

count=${COUNT:-100000}
ostree_count=${OSTREE_COUNT:-10000}
rounds=${ROUNDS:-3}

if [[ $(id -u) != 0 ]]; then
  echo "this installs packages: run it as root" >&2
  exit 1
fi
for package in nix-bin:nix-store ostree:ostree; do
  command -v "${package#*:}" > /dev/null || apt-get install -qq -y "${package%:*}" > /dev/null
done

scratch=$(mktemp -d "${TMPDIR:-/tmp}/template-store-peers.XXXXXX")
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

cargo build --release --quiet
program=$(cargo metadata --format-version 1 --no-deps | grep -o '"target_directory":"[^"]*"' | cut -d '"' -f 4)/release/template-store

# --- stores ------------------------------------------------------------------

# Each NAME has three functions. make_NAME DIR COUNT: a store in which all is kept.
# gc_NAME DIR: a collection with nothing to do. half_NAME DIR COUNT: one that removes half.

make_store() { cargo bench --quiet --bench collect -- --make "$1/store" "$2" > /dev/null; }
gc_store() { "$program" --store "$1/store" gc --keep-last "$((1 << 30))" > /dev/null; }
half_store() { "$program" --store "$1/store" gc --keep-last "$(($2 / 200))" > /dev/null; }
prepare_store() { :; }

# Nix works where NIX_STORE_DIR is written in its database: each round uses the same directory.
nix() {
  NIX_STORE_DIR=$1/store NIX_STATE_DIR=$1/var NIX_LOG_DIR=$1/log NIX_CONF_DIR=$1/conf NIX_REMOTE='' "${@:2}"
}

make_nix() {
  mkdir -p "$1"/{store,conf,var/gcroots}
  printf 'build-users-group =\nsandbox = false\n' > "$1/conf/nix.conf"
  # Each path has a root of its own, as what `nix build` makes has.
  perl -e '
    my ($dir, $roots, $count) = @ARGV;
    sub file { my ($path, $text) = @_; open(my $file, ">", $path) or die "$path: $!"; print $file $text; close $file }
    for my $number (1 .. $count) {
      my $path = sprintf("%s/%032d-entry", $dir, $number);
      mkdir $path or die "$path: $!";
      file("$path/vmlinux", "vmlinux $number" x ($number % 200));
      file("$path/rootfs.ext4", "rootfs $number" x ($number % 300));
      file("$path/fc-base.json", "{}");
      symlink($path, "$roots/entry-$number") or die "$roots: $!";
      print join("\n", $path, "0" x 64, 4096, "", 0), "\n";
    }
  ' "$1/store" "$1/var/gcroots" "$2" > "$1/registration"
  nix "$1" nix-store --register-validity --hash-given < "$1/registration"
  rm "$1/registration"
}
gc_nix() { nix "$1" nix-store --gc > /dev/null 2>&1; }
prepare_nix() { find "$1/var/gcroots" -name 'entry-*[02468]' -delete; }
half_nix() { gc_nix "$1"; }

make_ostree() {
  ostree --repo="$1/repo" init --mode=bare-user-only
  ostree --repo="$1/repo" config set core.fsync false
  mkdir "$1/entry"
  local number
  for ((number = 1; number <= $2; number++)); do
    printf 'vmlinux %s' "$number" > "$1/entry/vmlinux"
    printf 'rootfs %s' "$number" > "$1/entry/rootfs.ext4"
    printf '{"entry":%s}' "$number" > "$1/entry/fc-base.json"
    ostree --repo="$1/repo" commit --branch="entry-$number" --subject=entry "$1/entry" > /dev/null
  done
  ostree --repo="$1/repo" config set core.fsync true
}
gc_ostree() { ostree --repo="$1/repo" prune --refs-only > /dev/null; }
prepare_ostree() { find "$1/repo/refs/heads" -name '*[02468]' -delete; }
half_ostree() { gc_ostree "$1"; }

# --- measurement -------------------------------------------------------------

# Milliseconds of a command.
measure() {
  local start=$EPOCHREALTIME end
  "$@"
  end=$EPOCHREALTIME
  echo "$(((${end/./} - ${start/./}) / 1000))"
}

# A copy of what was made, in the place where it was made, on a disk that has nothing else to do.
fresh() {
  chmod -R u+w "$scratch/work" 2> /dev/null || true
  rm -rf "$scratch/work"
  cp -a "$scratch/$1" "$scratch/work"
  sync -f "$scratch"
}

entries() {
  case $1 in
    store) find "$scratch/work/store/templates" -mindepth 3 -maxdepth 3 -path '*/artifacts/*' | wc -l ;;
    nix) find "$scratch/work/store" -maxdepth 1 -name '*-entry' | wc -l ;;
    ostree) find "$scratch/work/repo/objects" -name '*.commit' | wc -l ;;
  esac
}

median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

# compare COUNT NAME...: each round, each of them collects nothing, then half.
compare() {
  local count=$1 round name what
  shift
  for name in "$@"; do
    rm -rf "${scratch:?}/work"
    mkdir "$scratch/work"
    "make_$name" "$scratch/work" "$count"
    mv "$scratch/work" "$scratch/$name"
  done
  for ((round = 0; round < rounds; round++)); do
    for name in "$@"; do
      fresh "$name"
      measure "gc_$name" "$scratch/work" >> "$scratch/$count-$name-nothing"
      [[ $(entries "$name") == "$count" ]] || { echo "$name: what is kept went" >&2; exit 1; }
      "prepare_$name" "$scratch/work"
      sync -f "$scratch"
      measure "half_$name" "$scratch/work" "$count" >> "$scratch/$count-$name-half"
      [[ $(entries "$name") == "$((count / 2))" ]] || { echo "$name: not half went" >&2; exit 1; }
    done
  done
  for what in nothing half; do
    local own
    own=$(median < "$scratch/$count-store-$what")
    for name in "$@"; do
      local took
      took=$(median < "$scratch/$count-$name-$what")
      printf '%9d  %-8s  %-8s %9d ms  %6s\n' "$count" "$what" "$name" "$took" "$(awk "BEGIN { printf \"%.1f\", $took / $own }")"
    done
  done
  rm -rf "${scratch:?}"/{store,nix,ostree}
}

echo "A collection of small entries in $scratch on $(stat -f -c %T "$scratch"), medians of $rounds:"
echo
printf '%9s  %-8s  %-8s %12s  %6s\n' entries "to go" "" time "beside the store"
compare "$count" store nix
compare "$ostree_count" store ostree
