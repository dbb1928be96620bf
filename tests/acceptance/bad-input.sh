# Each bad input: a clear message, the right exit code, nothing left behind.

use bad-input
ts init >/dev/null
build good good -- "$tools/small-image" good >/dev/null

refused() { # CODES PATTERN COMMAND...
  leaves_no_trace "$store" expect "$@"
  right good
}

small=("$tools/small-image" bad)
long=$(printf 'a%.0s' {1..64})

for id in ../../etc a/b "" "$long" _a A a.b; do
  check "template id '$id' is refused" refused 2 'template id' build "$id" bad -- "${small[@]}"
done
check "template id of 63 characters is taken" expect 0 . build "${long%a}" long -- "${small[@]}"
check "create refuses template id '../../etc' too" \
  refused 2 'template id' ts create ../../etc --flake-ref . --profile minimal --role worker --vcpus 1 --mem 128
check "nothing was made outside the store" test ! -e "$store/../../etc"

bad_role() { # OPTION VALUE
  local options=(--profile minimal --role worker)
  if [[ $1 == --role ]]; then options[3]=$2; else options[1]=$2; fi
  ts build bad --flake-lock "$(lock bad)" "${options[@]}" -- "${small[@]}"
}
check "a role with ':' is refused" refused 2 'role.*:|:.*role' bad_role --role a:b
check "an empty role is refused" refused 2 role bad_role --role ""
check "a profile with ':' is refused" refused 2 'profile.*:|:.*profile' bad_role --profile a:b

with() { # SHELL...: a build of template `bad` by small-image and then some shell commands
  build bad bad -- sh -c "\"$tools/small-image\" bad && $1"
}
{
  check "a draft with a symlink to /etc/passwd is refused" \
    refused 1 passwords with 'ln -s /etc/passwd "$OUT/passwords"'
  check "a draft whose kernel is a symlink to /etc/passwd is refused" \
    refused 1 vmlinux with 'ln -sf /etc/passwd "$OUT/vmlinux"'
  check "a draft with a symlinked directory is refused" \
    refused 1 etc with 'ln -s /etc "$OUT/etc"'
  check "a draft with a fifo is refused" refused 1 pipe with 'mkfifo "$OUT/pipe"'
  check "a draft with a name that is not UTF-8 is refused" \
    refused 1 'UTF-8' with ': >"$OUT/$(printf "\377name")"'
  check "a draft without a kernel is refused" refused 1 vmlinux with 'rm "$OUT/vmlinux"'
  check "a draft without a root file system is refused" refused 1 rootfs.ext4 with 'rm "$OUT/rootfs.ext4"'
  check "a draft without a Firecracker configuration is refused" \
    refused 1 fc-base.json with 'rm "$OUT/fc-base.json"'
  check "an empty draft is refused" refused 1 . with 'rm "$OUT"/*'
  check "a draft with a revision.json of its own is refused" \
    refused 1 revision.json with ': >"$OUT/revision.json"'
  check "a command that exits 7 is reported" refused 1 '\b7\b' with 'exit 7'
  check "a command that is killed is reported" refused 1 'signal' with 'kill -9 $$'
}
check "a command that does not exist is reported" refused 1 no-such-command build bad bad -- no-such-command
check "a template that does not exist is reported" refused 3 no-such ts show no-such
check "a revision that does not exist is reported" refused 3 no-such ts activate good no-such
lookup_bad() {
  ts lookup $(inputs never-built)
}
check "a lookup that misses says so" refused 3 . lookup_bad
check "the current revision is not removed" \
  refused 5 current ts rm "good@$(basename "$(readlink -f "$(current good)")")"

in_use() {
  local lease=0 rev
  rev=$(basename "$(readlink -f "$(current good)")")
  build good good-2 -- "$tools/small-image" good-2
  "$program" --store "$store" run "good@$rev" -- sh -c 'touch "$0"; exec sleep 30' "$work/leased" &
  lease=$!
  wait_for 10 test -e "$work/leased"
  expect 5 'use' ts rm "good@$rev"
  kill "$lease"
  wait "$lease" || true
  expect 0 . ts rm "good@$rev"
  [[ ! -e $store/templates/good/artifacts/$rev ]]
}
check "a revision in use is not removed until the command under its lease ends" in_use

bad_lock() { # CONTENTS
  printf %s "$1" >"$work/flake.lock"
  ts build bad --flake-lock "$work/flake.lock" --profile minimal --role worker -- "${small[@]}"
}
check "a flake.lock that is no JSON is refused" refused '1|2' 'flake.lock' bad_lock 'nodes: yes'
check "a flake.lock without nodes is refused" refused '1|2' nodes bad_lock '{ "version": 7 }'
check "a flake.lock that does not exist is reported" refused '1|2|3' 'flake.lock' \
  ts build bad --flake-lock "$work/none/flake.lock" --profile minimal --role worker -- "${small[@]}"

bad_toml() {
  printf 'template_id = "web"\nflake_ref = "."\n\n[[variants]]\nrole = "worker"\nvcpus = "two"\nmem_mib = 512\n' >"$work/bad.toml"
  ts apply "$work/bad.toml"
}
check "a mistake in a TOML file is shown with its line" refused '1|2' '\b6\b' bad_toml

# --- a full disk --------------------------------------------------------------

full_disk() {
  local ready=$dir/ready-full
  rm -rf "$ready"
  mkdir "$ready"
  OUT=$ready "$tools/small-image" full 40
  check "with 10 MiB left, a publish of 40 MiB is refused before it starts" \
    refused 1 'space' ts publish full "$ready"
  check "with 10 MiB left, a build of 40 MiB fails" \
    refused 1 . build full full -- "$tools/small-image" full 40
  check "the disk has its 10 MiB again" has_left 9
  check "a builder that fills the disk to the last byte publishes all or nothing" fills_the_disk
  check "the store still works afterwards: a small build" expect 0 . build little little -- "$tools/small-image" little
  check "its digests are right" right little
}

has_left() { # MIB
  local left
  left=$(($(stat -f -c '%a * %S' "$store") >> 20))
  [[ $left -ge $1 ]] || die "$left MiB left"
}

fills_the_disk() {
  local code=0
  listing "$store" >"$work/before"
  build brim brim -- sh -c '"$0" brim; cat /dev/zero >>"$OUT/rootfs.ext4"; exit 0' \
    "$tools/small-image" || code=$?
  if [[ $code == 0 ]]; then
    right brim
    ts rm brim || die "cannot be removed"
  else
    [[ $code == 1 ]] || die "exit code $code"
    listing "$store" | diff "$work/before" - || die "something was left behind"
  fi
}

if own_disk 64; then
  store=$disk/store
  ts init >/dev/null
  build good good -- "$tools/small-image" good >/dev/null
  left=$(($(stat -f -c '%a * %S' "$store")))
  fallocate -l $((left - 10 * 1048576)) "$disk/ballast"
  full_disk
  rm -rf "$disk/ballast"
else
  skip "a disk with 10 MiB left: needs root or ACCEPT_SMALL"
fi

# --- a store that cannot be written -------------------------------------------

use read-only
build good good -- "$tools/small-image" good >/dev/null
build good good-2 -- "$tools/small-image" good-2 >/dev/null
rev=$(ts --json history good | field revision)
if [[ $(id -u) == 0 ]]; then
  mount --bind "$store" "$store"
  mount -o remount,ro,bind "$store"
else
  chmod -R a-w "$store"
fi
cannot_write='read-only|permission denied|not writable'
check "a build into a read-only store is refused" refused 1 "$cannot_write" build bad bad -- "${small[@]}"
check "an activation in a read-only store is refused" refused 1 "$cannot_write" ts activate good "$rev"
check "a rollback in a read-only store is refused" refused 1 "$cannot_write" ts rollback good
check "a removal from a read-only store is refused" refused '1|5' "$cannot_write" ts rm "good@$rev"
reads_work() {
  expect 0 good ts list
  expect 0 good ts show good
  expect 0 rootfs.ext4 ts path good rootfs.ext4
  expect 0 good ts lookup $(inputs good)
  expect 0 leased ts run good -- echo leased
}
check "a read-only store can be read, and run from" leaves_no_trace "$store" reads_work

# --- a store of another time, and damage ---------------------------------------

use newer
ts init >/dev/null
build good good -- "$tools/small-image" good >/dev/null
sed -i -E 's/("(format_)?version": *)([0-9]+)/\199/' "$store/.store/format.json"
grep -q 99 "$store/.store/format.json" || note "no version in format.json: $(cat "$store/.store/format.json")"
check "a store of a newer format is refused, and both versions are named" refused 1 '99.*\b1\b|\b1\b.*99' ts list
check "nor is it built into" refused 1 '99' build bad bad -- "${small[@]}"

use damaged
build cut cut -- "$tools/small-image" cut >/dev/null
cut=$(readlink -f "$(current cut)")/revision.json
chmod u+w "$(dirname "$cut")" "$cut"
truncate -s 100 "$cut"
check "a truncated revision.json is damage, and named" \
  leaves_no_trace "$store" expect 4 'revision\.json' ts show cut
lookup_cut() {
  ts lookup $(inputs cut)
}
check "a revision without its record is not offered" leaves_no_trace "$store" expect '3|4' . lookup_cut
list_goes_on() {
  build other other -- "$tools/small-image" other >/dev/null
  expect '0|4' other ts list
}
check "the other templates are still listed" list_goes_on
builds_again() {
  expect 0 . build "$1" "$1" -- "$tools/small-image" "$1"
  right "$1"
}
check "the same inputs build again" builds_again cut

build dangle dangle -- "$tools/small-image" dangle >/dev/null
chmod -R u+w "$(readlink -f "$(current dangle)")"
rm -rf "$(readlink -f "$(current dangle)")"
check "a current that dangles is damage, and named" leaves_no_trace "$store" expect 4 'current' ts show dangle
check "a path through it is not given" leaves_no_trace "$store" expect 4 'current' ts path dangle
check "the same inputs build again, and current resolves" builds_again dangle
