# A data directory of mvm becomes a store in place, with all its bytes.

# mvm_revision DIR LABEL [MODE]: as mvm 0.11 writes one.
mvm_revision() {
  local id=${1##*/} place=$1
  mkdir -p "$place"
  OUT=$place "$tools/little-image" "$2" "mvm rootfs ${2##* }"
  echo "initrd $2" >"$place/initrd"
  echo '{ "checksums": "of mvm" }' >"$place/checksums.json"
  chmod 0600 "$place/checksums.json"
  cat >"$place/revision.json" <<JSON
{
  "schema_version": 1, "revision_hash": "$id", "flake_ref": ".", "flake_lock_hash": "lock-$2",
  "artifact_paths": { "vmlinux": "vmlinux", "rootfs": "rootfs.ext4", "fc_base_config": "fc-base.json", "initrd": "initrd" },
  "built_at": "2026-01-0${2##* }T00:00:00Z", "profile": "minimal", "role": "worker",
  "vcpus": 1, "mem_mib": 128, "data_disk_mib": 0, "snapshot": null, "of_tomorrow": [1]
}
JSON
}

mvm_template() { # ID CURRENT
  mkdir -p "$store/templates/$1/artifacts/revisions"
  cat >"$store/templates/$1/template.json" <<JSON
{
  "schema_version": 1, "template_id": "$1", "flake_ref": ".", "profile": "minimal", "role": "worker",
  "vcpus": 1, "mem_mib": 128, "data_disk_mib": 0,
  "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"
}
JSON
  ln -s "$2" "$store/templates/$1/current"
}

# One template for each spelling of `current`, three revisions each, and what mvm and
# people leave beside them.
mvm_directory() {
  local id number
  mvm_template plain revisions/p3
  mvm_template bare b3
  mvm_template below artifacts/l3
  mvm_template deep artifacts/revisions/d3
  for number in 1 2 3; do
    for id in plain bare deep; do
      mvm_revision "$store/templates/$id/artifacts/${id:0:1}$number" "$id $number"
    done
    mvm_revision "$store/templates/below/artifacts/l$number" "below $number"
  done
  mkdir -p "$store/templates/plain/artifacts/p3/snapshot" "$store/templates/plain/artifacts/half" \
    "$store/runtime/vm-1" "$store/cache"
  head -c 300000 /dev/urandom >"$store/templates/plain/artifacts/p3/snapshot/mem"
  echo state >"$store/templates/plain/artifacts/p3/snapshot/vmstate"
  echo "no revision yet" >"$store/templates/plain/artifacts/half/rootfs.ext4"
  echo "a log" >"$store/runtime/vm-1/console.log"
  mkfifo "$store/runtime/vm-1/socket"
  echo notes >"$store/templates/README"
  echo notes >"$store/config.yaml"
  # A name of another file, which is not to change.
  mkdir -p "$outside"
  cp "$store/templates/bare/artifacts/b2/rootfs.ext4" "$outside/linked"
  ln -f "$outside/linked" "$store/templates/bare/artifacts/b2/rootfs.ext4"
  chmod 0640 "$outside/linked"
  touch -d 2001-09-09T01:46:40Z "$outside/linked"
}

use adopt-seed
seed=$store
outside=$dir/outside-adopt
rm -rf "$outside"
mvm_directory

contents() { # DIR: the bytes of all files; the documents that adoption writes to are compared by themselves
  (cd "$1" && find . -path ./.store -prune -o -type f ! -name revision.json -print0 | sort -z | xargs -0 sha256sum)
}
contents "$seed" >"$work/mvm-contents"
keeps_bytes() { # [WHEN]: what was there is there; a log may be new, and the note that a swap is under way
  contents "$store" | grep -v -e '/activations\.jsonl$' -e '/\.activating$' | diff "$work/mvm-contents" - || die "${1:-}bytes were lost"
}
state_of_linked() { stat -c '%n %a %u %Y %i %s' "$outside/linked"; sha256sum "$outside/linked"; }
state_of_linked >"$work/mvm-linked"

use adopt
again() { # a fresh copy, with the hard link outside
  rm -rf "$store"
  cp -a "$seed" "$store"
  ln -f "$outside/linked" "$store/templates/bare/artifacts/b2/rootfs.ext4"
}

# What mvm had begun and not finished, and that nothing is known of its snapshots, is all that a verification may find.
finds_only_half() {
  expect '0|4' '"clean"' ts --json verify
  python3 "$tools/look.py" at findings <"$said_out" | python3 -c '
import json, sys
def of_mvm(one):
    return "/plain/artifacts/half" in one["path"] or one["kind"] == "unlisted" and one["path"].endswith("/snapshot")
others = [one for one in json.load(sys.stdin) if not of_mvm(one)]
sys.exit(json.dumps(others, indent=1) if others else 0)'
}

adopted() { # that all of it is, and nothing is lost
  local one
  keeps_bytes
  state_of_linked | diff "$work/mvm-linked" - || die "a file outside changed"
  all_right "$store"
  [[ $(grep -l adopted_at "$store"/templates/*/artifacts/*/revision.json | wc -l) == 12 ]] || die "not all are adopted"
  [[ $(grep -c of_tomorrow "$store"/templates/*/artifacts/*/revision.json | grep -c ':1$') == 12 ]] ||
    die "a field of mvm is gone"
  for one in plain:p3 bare:b3 below:l3 deep:d3; do
    [[ $(readlink "$store/templates/${one%:*}/current") == "revisions/${one#*:}" ]]
    [[ -s $store/templates/${one%:*}/current/vmlinux ]] || die "current of ${one%:*} does not resolve"
    python3 "$tools/look.py" mvm "$store" "${one%:*}"
  done
  [[ -p $store/runtime/vm-1/socket && $(cat "$store/config.yaml") == notes ]]
  # What all templates have is one inode.
  [[ $(stat -c %i "$store"/templates/{plain/artifacts/p1,bare/artifacts/b1,deep/artifacts/d1}/rootfs.ext4 | sort -u | wc -l) == 1 ]] ||
    die "what is the same is not shared"
  finds_only_half
  [[ ! -e $store/.store/adopting ]]
  leaves_nothing "$store"
}

looks_at_it() {
  expect 0 'plain' ts list
  expect 0 'b2' ts show bare
  expect 0 'blake3' ts show plain@p2
  expect 0 'b3/vmlinux' ts path bare vmlinux
  expect 0 'vmlinux' ts run deep -- sh -c 'ls "$TEMPLATE_DIR"'
}

adopts() {
  again
  expect 0 'adopted 12 revisions of 4 templates' "$program" adopt "$store"
  adopted
  looks_at_it
  expect 0 'adopted 0 revisions' "$program" adopt "$store"
  adopted
}
check "a directory of mvm with four spellings of current is adopted, with all its bytes" adopts

# lookup finds what was built from a flake.lock under the key of mvm.
finds_by_key() {
  again
  local lock_hash
  lock_hash=$(sha256sum <"$(lock adopt)")
  sed -i "s/lock-plain 2/${lock_hash%% *}/" "$store/templates/plain/artifacts/p2/revision.json"
  expect 0 . "$program" adopt "$store"
  expect 0 'artifacts/p2$' ts lookup plain $(inputs adopt)
  expect 0 reused build new adopt -- false
  right new
}
check "lookup finds an adopted revision, and a build reuses it" finds_by_key

goes_on() {
  local before
  before=$(ls -d "$store"/templates/*/artifacts/*)
  expect 0 'removed 0 revisions' ts gc --keep-last 1
  [[ $(ls -d "$store"/templates/*/artifacts/*) == "$before" ]] || die "a collection took an adopted revision"
  expect 0 'adopted' ts why plain@p1 --keep-last 1
  expect 0 'p1' ts activate plain p1
  expect 0 'p3' ts rollback plain
  build plain adopt-more -- "$tools/little-image" more
  expect 0 . ts --json gc --keep-last 1 --include-adopted
  [[ $(python3 "$tools/look.py" removed <"$said_out") == "bare@b1
bare@b2
below@l1
below@l2
deep@d1
deep@d2
plain@p1
plain@p2
plain@p3" ]] || die "other revisions went: $(cat "$said_out")"
  # What is no revision stays.
  [[ -e $store/templates/plain/artifacts/half/rootfs.ext4 && -e $store/templates/README ]]
  state_of_linked | diff "$work/mvm-linked" -
  finds_only_half
  leaves_nothing "$store"
}
adopted_goes_on() {
  again
  expect 0 . "$program" adopt "$store"
  goes_on
}
check "a collection takes adopted revisions with --include-adopted only, and never what is no revision" adopted_goes_on

fixture() {
  rm -rf "$store"
  mkdir -p "$store"
  tar -xf "$here/../fixtures/mvm-0.11-data.tar" -C "$store" --no-same-owner
  contents "$store" >"$work/fixture"
  expect 0 'adopted 1 revision of 1 template' "$program" adopt "$store"
  # The log begins with the adoption.
  contents "$store" | grep -v '/activations\.jsonl$' | diff "$work/fixture" -
  expect 0 '3c7f1e' ts show base
  (cd "$store/templates/base/current" && [[ $(cat vmlinux | wc -c) == 7 ]])
  all_right "$store"
  expect 0 '"clean": *true' ts --json verify
}
check "the directory that mvm 0.11 made is adopted" fixture

open_for_writing() {
  local writer
  again
  # A VM of mvm that has its root file system open.
  sh -c 'exec 3<>"$0"; touch "$1"; exec sleep 60' "$store/templates/deep/artifacts/d2/rootfs.ext4" "$work/vm-runs" &
  writer=$!
  trap 'kill "$writer" 2>/dev/null || true' EXIT
  wait_for 10 test -e "$work/vm-runs"
  listing "$store/templates/deep/artifacts/d2" >"$work/d2"
  expect 0 'd2.*open for writing' "$program" adopt "$store"
  ts --json list >/dev/null
  listing "$store/templates/deep/artifacts/d2" | diff "$work/d2" - || die "it was changed under the VM"
  [[ $(grep -l adopted_at "$store"/templates/*/artifacts/*/revision.json | wc -l) == 11 ]]
  expect 0 '"path": ".*deep/artifacts/d2"' "$program" --json adopt "$store"
  # Nor does a collection take it.
  expect 0 . ts gc --keep-last 1 --include-adopted --dry-run
  if grep -q 'deep +d2' "$said_out"; then die "a collection would take it"; fi
  kill "$writer"
  wait "$writer" || true
  trap - EXIT
  expect 0 'adopted 1 revision of 1 template' "$program" adopt "$store"
  adopted
}
check "a revision that a VM writes to is left as it is, named, and adopted by the next run" open_for_writing

not_mvm() {
  mkdir -p "$work/not-mvm/things"
  echo thing >"$work/not-mvm/things/one"
  leaves_no_trace "$work/not-mvm" expect '1|2|5' 'not a data directory of mvm' "$program" adopt "$work/not-mvm"
}
check "a directory that mvm did not make is refused" not_mvm

adopt_kills=$((kills / 5 + 1))
killed_adopt() {
  local round pid micros hit=0 code whole start
  again
  start=${EPOCHREALTIME/./}
  "$program" adopt "$store" >/dev/null 2>&1
  whole=$((${EPOCHREALTIME/./} - start))
  # On until a third met it at work: how long it takes differs from one time to the next.
  for ((round = 0; round < adopt_kills || (hit * 3 < adopt_kills && round < adopt_kills * 10); round++)); do
    again
    # Killed once or twice on the way.
    for _ in 1 2; do
      "$program" adopt "$store" >/dev/null 2>&1 &
      pid=$!
      micros=$(((RANDOM * 32768 + RANDOM) % whole))
      sleep "$(printf '%d.%06d' $((micros / 1000000)) $((micros % 1000000)))"
      kill -9 "$pid" 2>/dev/null || true
      code=0
      wait "$pid" || code=$?
      # It had ended: it takes less time than was thought.
      if [[ $code == 137 ]]; then hit=$((hit + 1)); else whole=$((whole * 9 / 10 + 1)); fi
      keeps_bytes "round $round, killed after $micros us: "
      for one in plain bare below deep; do [[ -L $store/templates/$one/current ]]; done
      if [[ $((RANDOM % 2)) == 0 ]]; then break; fi
    done
    expect 0 'is a store' "$program" adopt "$store"
    adopted
    state_of_tree "$store" | diff "$work/mvm-whole" - || die "round $round: it came out otherwise"
  done
  [[ $((hit * 3)) -ge $adopt_kills ]] || die "only $hit of $adopt_kills kills met an adoption at work"
}
# Names, modes, sizes and link counts; but not of what holds times.
state_of_tree() {
  (cd "$1" && find . -path ./.store/keys -prune -o -printf '%p %y %m %n %l\n' | sort)
}
again
"$program" adopt "$store" >/dev/null
state_of_tree "$store" >"$work/mvm-whole"
check "killed $adopt_kills times and run again: the same comes out each time" killed_adopt
rm -rf "$seed" "$store" "$outside"
