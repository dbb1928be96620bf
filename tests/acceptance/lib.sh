# What the groups share: a check, an expectation, a builder, a look at a store.

passed=0
failed=0
skipped=0

# prepare PROGRAM DIR: everything that runs is copied to DIR, so that another
# user can run it too.
prepare() {
  dir=$(mkdir -p "$2" && cd "$2" && pwd -P)
  tools=$dir/tools
  mkdir -p "$tools" "$dir/locks"
  cp "$1" "$tools/template-store"
  cp "$here"/*.py "$here"/builders/* "$tools/"
  chmod -R a+rX "$tools"
  program=$tools/template-store
  work=$(mktemp -d "$dir/work.XXXXXX")
  chmod 755 "$work"
  trap cleanup EXIT
  echo "as $(id -un), on $(df --output=fstype "$dir" | tail -n 1)"
}

finished=no
mounts=()
cleanup() {
  local mount
  if [[ $finished == no ]]; then echo "FAIL  the checks stopped early, in group ${group:-none}"; fi
  for mount in "${mounts[@]}"; do umount "$mount" || true; done
  chmod -R u+w "$work" 2>/dev/null || true
  rm -rf "$work"
}

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

summary() {
  finished=yes
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

gone() { # PID: no such process, or one that only waits to be reaped
  ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null
}

command -v b3sum >/dev/null || right() {
  echo "no b3sum: the digests were not checked" >&2
}
