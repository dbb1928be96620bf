# What the groups share: a check, an expectation, a builder, a look at a store.

passed=0
failed=0
skipped=0

# prepare PROGRAM DIR: everything that runs is copied to DIR, so that another
# user can run it too.
prepare() {
  dir=$(cd "$2" && pwd -P)
  tools=$dir/tools
  mkdir -p "$tools" "$dir/locks"
  cp "$1" "$tools/template-store"
  cp "$here"/*.py "$here"/builders/* "$tools/"
  chmod -R a+rX "$tools"
  program=$tools/template-store
  work=$(mktemp -d "$dir/work.XXXXXX")
  tidy "$work"
  chmod 755 "$work"
  export TMPDIR=$work PYTHONDONTWRITEBYTECODE=1
  trap stopped_early EXIT
  scale
  echo "as $(id -un), on $(df --output=fstype "$dir" | tail -n 1), $scale${PROOF:+, PROOF=$PROOF}"
}

# tidy PATH...: removed in the end, however it comes (tend.py).
tidy() { printf '%s\n' "$@" >>"$dir/tidy"; }

finished=no
stopped_early() {
  if [[ $finished == no ]]; then echo "FAIL  the checks stopped early, in group ${group:-none}"; fi
}

# How much is done: what is set in the environment counts more. `points` are those of
# each command at which it is killed, `share` the part k/n of the kills that is made.
scale() {
  share=${PROOF:-all}
  if [[ $share == all ]]; then share=1/1; fi
  [[ $share =~ ^[1-9][0-9]*/[1-9][0-9]*$ && ${share%/*} -le ${share#*/} ]] || die "PROOF is all or k/n, not $PROOF"
  scale=${ACCEPT_SCALE:-$(if [[ -n ${PROOF:-} ]]; then echo whole; else echo quick; fi)}
  case $scale in
    quick) set -- 200 6 3 4 128 ;;
    whole) set -- 1000 200 all 40 1024 ;;
    *) die "ACCEPT_SCALE is quick or whole, not $scale" ;;
  esac
  revisions=${ACCEPT_REVISIONS:-$1} kills=${ACCEPT_KILLS:-$2} points=${ACCEPT_POINTS:-$3}
  instances=${ACCEPT_INSTANCES:-$4} mib=${ACCEPT_MIB:-$5}
}

# mine NUMBER: whether this share has the kill of that number; they begin with 0.
mine() { [[ $(($1 % ${share#*/})) == $((${share%/*} - 1)) ]]; }

# check SENTENCE COMMAND...: the sentence holds when the command succeeds. The
# command runs with `set -e`, in a subshell.
check() {
  local sentence=$1 code
  shift
  set +e
  (set -e; "$@") >"$work/details" 2>&1 </dev/null
  code=$?
  set -e
  if [[ $code == 0 ]]; then
    echo "ok    $sentence"
    passed=$((passed + 1))
  else
    echo "FAIL  $sentence: $(tail -n 20 "$work/details")"
    failed=$((failed + 1))
  fi
}

skip() {
  echo "skip  $*"
  skipped=$((skipped + 1))
}

note() { echo "      $*"; }

# killed FILE: says what was killed, and counts the kills: "...: N kills ...".
kills_made=0
killed() {
  local line
  while read -r line; do
    note "$line"
    if [[ $line =~ ^[^:]*:\ ([0-9]+)\ kills ]]; then kills_made=$((kills_made + BASH_REMATCH[1])); fi
  done <"$1"
  : >"$1"
}

summary() {
  finished=yes
  if [[ $kills_made -gt 0 ]]; then note "$kills_made kills in all"; fi
  echo "$passed passed, $failed failed, $skipped skipped"
  [[ $failed == 0 ]]
}

die() {
  echo "$*"
  exit 1
}

# use NAME: the store that `ts` talks to from here on.
use() {
  store=$dir/stores/$1
  mkdir -p "$dir/stores"
}

ts() { "$program" --store "$store" "$@"; }

# expect CODES PATTERN COMMAND...: the command ends with one of the codes (a
# regular expression) and says something that matches the pattern. What it
# printed is left in $said_out and $said_err.
expect() {
  local codes=$1 pattern=$2 code=0
  shift 2
  said_out=$(mktemp "$work/out.XXXXXX")
  said_err=$(mktemp "$work/err.XXXXXX")
  "$@" >"$said_out" 2>"$said_err" || code=$?
  [[ $code =~ ^($codes)$ ]] ||
    die "exit code $code, not $codes, from: $* -- it said: $(head -c 2000 "$said_out" "$said_err")"
  grep -Eqi -e "$pattern" "$said_out" "$said_err" ||
    die "nothing like /$pattern/ from: $* -- it said: $(head -c 2000 "$said_out" "$said_err")"
}

# lock NAME: the path of a valid flake.lock that differs for each name.
lock() {
  local path=$dir/locks/$1/flake.lock revision
  echo "$path"
  if [[ -e $path ]]; then return; fi
  mkdir -p "${path%/*}"
  revision=$(printf %s "$1" | sha1sum | cut -d' ' -f1)
  cat >"$path" <<LOCK
{
  "nodes": {
    "nixpkgs": {
      "locked": { "owner": "NixOS", "repo": "nixpkgs", "rev": "$revision", "type": "github" },
      "original": { "owner": "NixOS", "repo": "nixpkgs", "type": "github" }
    },
    "root": { "inputs": { "nixpkgs": "nixpkgs" } }
  },
  "root": "root",
  "version": 7
}
LOCK
}

# inputs NAME: the options of `build` and `lookup` for the lock of that name.
inputs() { echo --flake-lock "$(lock "$1")" --profile minimal --role worker; }

# build ID LOCK [ARGUMENT...] -- COMMAND...
build() {
  local id=$1 lock=$2
  shift 2
  ts build "$id" $(inputs "$lock") "$@"
}

current() { echo "$store/templates/$1/current"; }

# right ID: each file of the current revision has the digest that revision.json
# records, as b3sum computes it (reading: a memory map of a tmpfs fills its holes).
right() {
  local revision name digests
  revision=$(readlink -f "$(current "$1")")
  digests=$(python3 "$tools/look.py" digests "$revision")
  for name in vmlinux rootfs.ext4 fc-base.json; do
    grep -q "  $name\$" <<<"$digests" || die "revision.json has no digest of $name"
  done
  (cd "$revision" && b3sum --no-mmap --check --quiet <<<"$digests")
}

field() { python3 "$tools/look.py" field "$1"; }

# listing DIR: everything in it that a failed command must not change.
listing() {
  (cd "$1" && find . -path ./.store/locks -prune -o -printf '%p %y %m %n %s %l\n' | sort)
}

# leaves_no_trace DIR COMMAND...: as `listing` sees it.
leaves_no_trace() {
  local place=$1 before
  shift
  before=$(listing "$place")
  "$@"
  listing "$place" | diff <(echo "$before") - || die "something was left behind or changed"
}

# wait_for SECONDS COMMAND...: polls until the command succeeds.
wait_for() {
  local tries=$(($1 * 50))
  shift
  until "$@" 2>/dev/null; do
    tries=$((tries - 1))
    [[ $tries -gt 0 ]] || return 1
    sleep 0.02
  done
}

# own_disk MIB: $disk is an empty file system that nothing else uses, and that may
# be filled; fails when there is none.
own_disk() {
  disk=${ACCEPT_SMALL:-}
  if [[ -n $disk ]]; then
    chmod -R u+w "$disk"/* 2>/dev/null || true
    rm -rf "$disk"/*
    tidy "$disk/store" "$disk/ballast"
  elif [[ $(id -u) == 0 ]]; then
    disk=$(mktemp -d "$work/disk.XXXXXX")
    mount -t tmpfs -o "size=$1m" template-store-small "$disk"
  else
    return 1
  fi
}

# clean STORE: a verification finds nothing, not even a leftover, but that a user has
# lent something to another; nothing of a dead process is there, and no object without
# a revision.
clean() {
  expect 0 '"clean": *true' "$program" --store "$1" --json verify
  [[ -z $(notes_but other_owner <"$said_out") ]] || die "there are notes: $(cat "$said_out")"
  leaves_nothing "$1"
}

# The paths of what a verification has found, but of this kind; without notes, with `damage_but`.
notes_but() { found_but "$1" note warning error; }
damage_but() { found_but "$1" warning error; }
found_but() { # KIND SEVERITY...
  python3 -c '
import json, sys
kind, *severities = sys.argv[1:]
for finding in json.load(sys.stdin)["findings"]:
    if finding["kind"] != kind and finding["severity"] in severities: print(finding["path"])' "$@"
}

leaves_nothing() { # STORE
  local left
  left=$(cd "$1/.store" && find drafts trash locks leases -mindepth 1; find objects -type f -links 1)
  [[ -z $left ]] || die "left behind: $left"
  left=$(python3 "$tools/look.py" dangling_keys "$1")
  [[ -z $left ]] || die "keys of revisions that are gone: $left"
}

# all_right STORE: each file of each revision has the digest that its record has.
all_right() {
  python3 "$tools/look.py" all_digests "$1" >"$work/digests"
  (cd "$1" && b3sum --no-mmap --check --quiet "$work/digests")
}

# revision_of ID@REV: the directory of a revision.
revision_of() { echo "$store/templates/${1%@*}/artifacts/${1#*@}"; }

# publish_vm ID REVISION LABEL MIB [KIB]: the image of a VM (builders/vm-image).
publish_vm() {
  rm -rf "$work/image"
  mkdir "$work/image"
  OUT=$work/image "$tools/vm-image" "${@:3}"
  expect 0 . ts publish "$1" "$work/image" --revision "$2" --move
}

# paused PLACE MIB PAGES: what a VMM leaves of a paused VM of web@r1, with so much memory of which
# so many pages are not zero.
paused() {
  local place=$1 label=${1##*/} name
  mkdir -p "$place"
  head -c 40000 <(yes "vmstate $label") >"$place/vmstate"
  python3 "$tools/vm.py" memory "$place/mem" "$2" "$3" "$label"
  # The drives as of the pause: what was published, and what the VM has written since.
  for name in rootfs.ext4 scratch.img; do
    cp --sparse=always "$(revision_of web@r1)/$name" "$place/"
    chmod u+w "$place/$name"
    printf 'written by %s' "$label" | dd of="$place/$name" bs=1 seek=5000 conv=notrunc status=none
  done
}

# bytes_used: of the file system of DIR.
bytes_used() {
  sync -f "$dir"
  echo $(($(stat -f -c '(%b - %f) * %S' "$dir")))
}

gone() { # PID: no such process, or one that only waits to be reaped
  ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null
}

if ! command -v b3sum >/dev/null; then
  right() { echo "no b3sum: the digests were not checked" >&2; }
  all_right() { right; }
fi
