# Each kind of damage is found and named by verify, mended or marked by
# verify --repair, and nothing outside the store is touched.

use damage-seed
seed=$store

seed_store() {
  local number
  # `web` has ids that follow from the contents, `named` has names that prove nothing.
  for number in 1 2 3; do
    build web "damage-$number" -- "$tools/little-image" "web $number"
    build named "damage-named-$number" --revision "r$number" -- "$tools/little-image" "named $number" "common"
  done
  # The same as the newest of `web`, with a file more.
  build other damage-other -- sh -c '"$0" "web 3"; echo >"$OUT/note"' "$tools/little-image"
}
check "a store of seven revisions" seed_store
newest() { basename "$(readlink -f "$store/templates/$1/current")"; }
web=$(newest web)
web_lock=3 # of which inputs it was made
web_dir=templates/web/artifacts/$web

# The other tree has the paths of a store, so that who follows a link finds what it looks for.
outside=$dir/outside-damage
rm -rf "$outside"
cp -a "$seed" "$outside"
echo "not yours" >"$outside/file"
jail=
state_of_outside() { find "$outside" -printf '%p %i %y %m %u %n %s %T@ %C@ %l\n' | sort; }
state_of_outside >"$work/outside"
outside_is_the_same() { # [AFTER WHAT]
  state_of_outside | diff "$work/outside" - || die "something outside the store was touched${1:+ by $1}"
}

again() {
  rm -rf "$store"
  cp -a "$seed" "$store"
}
use damage
again

# adds ID: publishes something.
adds() {
  rm -rf "$store.ready"
  mkdir "$store.ready"
  OUT=$store.ready "$tools/little-image" added
  if [[ -n $jail ]]; then ts publish "$1" /store.ready; else ts publish "$1" "$store.ready"; fi
  rm -rf "$store.ready"
}

# finds KIND PATH: verify names it, as something of this kind, and changes nothing.
finds() {
  leaves_no_trace "$store" expect 4 '"clean": *false' ts --json verify
  python3 "$tools/look.py" finds "$1" "$2" <"$said_out"
  leaves_no_trace "$store" expect 4 "$2" ts verify
}

intact() {
  expect 0 '"clean": *true' ts --json verify
  all_right "$store"
  outside_is_the_same
}

# mends FAULT KIND PATH: all is as before; what was replaced is in damaged/.
mends() {
  again
  (cd "$store" && $1)
  finds "$2" "$3"
  outside_is_the_same
  expect 0 "\"remaining\": *\[\]" ts --json verify --repair
  intact
  [[ $(newest web) == "$web" && $(newest named) == r3 ]] || die "another revision is current"
  expect 0 "$web_dir" ts lookup web $(inputs damage-3)
  expect 0 reused build web damage-3 -- false
  goes_on
}

# A collection and a publication work.
goes_on() {
  expect 0 . ts gc --keep-last 1
  adds later
  right later
  intact
}

# loses FAULT KIND PATH ID LOCK REVISION: no good copy exists.
loses() {
  local id=$4 revision=$6
  again
  (cd "$store" && $1)
  finds "$2" "$3"
  expect 4 "$id@$revision is damaged beyond repair" ts verify --repair
  [[ $(cd "$store" && echo .store/damaged/"$id@$revision"-*) != *'*' ]] || die "it is not in damaged/"
  [[ $(newest "$id") != "$revision" && -s $(current "$id")/vmlinux ]] || die "current leads to $(newest "$id")"
  expect 3 . ts lookup "$id" $(inputs "$5")
  intact
  # What was lost comes back when it is built again.
  build "$id" "$5" --revision "$revision" -- "$tools/little-image" "${@:7}"
  [[ $(newest "$id") == "$revision" ]]
  expect 0 "$revision" ts lookup "$id" $(inputs "$5")
  goes_on
}

flip() { # FILE: one bit, and the time is as before
  chmod u+w "$1"
  python3 -c '
import os, sys
with open(sys.argv[1], "r+b") as file:
    file.seek(50000)
    byte = file.read(1)[0]
    file.seek(50000)
    file.write(bytes([byte ^ 4]))
os.utime(sys.argv[1], (1, 1))' "$1"
  chmod 0444 "$1"
}

shorten() { # FILE BYTES
  chmod u+w "$1"
  truncate -s "$2" "$1"
  touch -d @1 "$1"
  chmod 0444 "$1"
}

# own FILE: it gets blocks of its own, so that damage to it is not damage to its object.
own() {
  cp -p --reflink=never "$1" "$1.new"
  mv -f "$1.new" "$1"
}

object() { (cd "$store" && find .store/objects -samefile "$1"); }

# --- with a good copy ---------------------------------------------------------

flip_own() { own "$web_dir/vmlinux"; flip "$web_dir/vmlinux"; }
check "a bit flipped in a file whose object is good" mends flip_own corrupt "$web_dir/vmlinux"
flip_object() {
  local object
  object=$(object "$web_dir/vmlinux")
  own "$object"
  flip "$object"
  echo "$object" >"$work/object"
}
flipped_object() {
  again
  mends flip_object object_differs "$(object "$web_dir/vmlinux")"
}
check "a bit flipped in an object whose files are good" flipped_object
cut_small() { shorten "$web_dir/fc-base.json" 10; }
check "a small file truncated that another revision has" mends cut_small truncated "$web_dir/fc-base.json"
cut_large() { own "$web_dir/rootfs.ext4"; shorten "$web_dir/rootfs.ext4" 0; }
check "a large file truncated to nothing" mends cut_large truncated "$web_dir/rootfs.ext4"
lose_file() { rm -f "$web_dir/rootfs.ext4"; }
check "a file deleted" mends lose_file missing "$web_dir/rootfs.ext4"
empty_objects() { rm -rf .store/objects; }
check "objects/ deleted" mends empty_objects missing .store/objects
objects_are_back() {
  [[ $(find "$store/.store/objects" -type f -links +1 | wc -l) -ge 2 ]]
  [[ $(find "$store/.store/objects" -type f -links 1 | wc -l) == 0 ]]
}
check "and the files share their blocks again" objects_are_back
empty_keys() { rm -rf .store/keys; }
check "keys/ deleted" mends empty_keys missing .store/keys
no_current() { rm templates/web/current; }
check "current removed" mends no_current missing_current templates/web/current
strange_current() { ln -sfn ../../../etc templates/web/current; }
check "current led elsewhere" mends strange_current strange_current templates/web/current
file_to_link() { ln -sf "$outside/$web_dir/vmlinux" "$web_dir/vmlinux"; }
check "a file swapped for a symlink to the same bytes outside" mends file_to_link swapped "$web_dir/vmlinux"
file_to_passwd() { ln -sf /etc/passwd "$web_dir/fc-base.json"; }
check "a small file swapped for a symlink to /etc/passwd" mends file_to_passwd swapped "$web_dir/fc-base.json"
proven_record() { shorten "$web_dir/revision.json" 0; }
proven() {
  again
  (cd "$store" && proven_record)
  finds invalid "$web_dir/revision.json"
  expect 0 . ts verify --repair
  intact
  [[ $(newest web) == "$web" ]]
  right web
}
check "a revision.json emptied, where the id proves what the files are" proven
no_alias() { rm templates/web/revisions; }
check "the alias of artifacts/ removed" mends no_alias wrong_alias templates/web/revisions
no_definition() { shorten templates/web/template.json 0; }
check "a template.json emptied" mends no_definition invalid templates/web/template.json

# --- without one --------------------------------------------------------------

flip_all() { flip templates/named/artifacts/r3/vmlinux; }
check "a bit flipped in all that has the bytes" \
  loses flip_all corrupt templates/named/artifacts/r3/vmlinux named damage-named-3 r3 "named 3" common
cut_all() { shorten templates/named/artifacts/r3/vmlinux 69999; }
check "a large file truncated in all that has the bytes" \
  loses cut_all truncated templates/named/artifacts/r3/vmlinux named damage-named-3 r3 "named 3" common
unproven_record() { shorten templates/named/artifacts/r3/revision.json 0; }
check "a revision.json emptied, where nothing proves what the files are" \
  loses unproven_record invalid templates/named/artifacts/r3/revision.json named damage-named-3 r3 "named 3" common

all_flipped_together() {
  again
  (cd "$store" && flip "$web_dir/vmlinux")
  finds corrupt "$web_dir/vmlinux"
  finds corrupt "templates/other/artifacts/$(newest other)/vmlinux"
  finds object_differs "$(object "$web_dir/vmlinux")"
}
check "a bit flipped in a file that two templates share is found in both, and in the object" all_flipped_together

still_in_use() {
  local pid
  again
  "$program" --store "$store" run named -- sh -c 'touch "$0"; exec sleep 60' "$work/damage-held" &
  pid=$!
  trap 'kill "$pid"' EXIT
  wait_for 10 test -e "$work/damage-held"
  (cd "$store" && flip_all)
  expect 4 'beyond repair' ts verify --repair
  [[ -e $store/templates/named/artifacts/r3/revision.json ]] || die "it was taken from who uses it"
  [[ $(newest named) == r2 ]]
  expect 3 . ts lookup named $(inputs damage-named-3)
  expect '4|5' 'damaged' ts activate named r3
  expect 4 'r3' ts verify --quick
  kill "$pid"
  wait "$pid" || true
  trap - EXIT
  expect 4 . ts verify --repair
  [[ ! -e $store/templates/named/artifacts/r3 ]]
  intact
}
check "a damaged revision in use stays where it is, is not offered, and goes aside later" still_in_use

# --- directories swapped for links --------------------------------------------

# swapped PATH TARGET OUTCOME: TARGET is what the link leads to, OUTCOME how a repair ends.
swapped() {
  local path=$1 target=$2 outcome=$3
  swap() {
    again
    mkdir -p "$work/swapped"
    rm -rf "$work/swapped"
    mv "$store/$path" "$work/swapped"
    ln -s "$target" "$store/$path"
  }
  state_of_outside >"$work/outside"
  swap
  finds swapped "$path"
  outside_is_the_same
  # Whatever a collection and removals make of it, they stay inside.
  expect '0|1|4|5' . ts gc --keep-last 1
  outside_is_the_same
  expect '0|1|3|4|5' . ts rm "web@$web" --force
  expect '0|1|3|4|5' . ts rm named@r1
  expect '0|1|3|4|5' . ts rm web --force
  expect '0|1|4|5' . ts gc --keep-last 0
  outside_is_the_same "gc or rm"
  swap
  expect '0|1|4|5' . adds web
  outside_is_the_same "a publication"
  swap
  expect "$outcome" . ts verify --repair
  outside_is_the_same "a repair"
  [[ ! -L $store/$path ]] || die "the link is still there"
  # What is left to be done by people is at most a template without a revision.
  if [[ $outcome == 0 ]]; then intact; fi
  adds web
  right web
  intact
  goes_on
}

shard() { (cd "$store" && find ".store/$1" -mindepth 1 -maxdepth 1 | sort | head -n 1); }

swapped_directories() { # TARGET NAME: TARGET is /, or a tree with the paths of a store
  local path target=$1 name=$2
  towards() { if [[ $target == / ]]; then echo /; else echo "$target/$1"; fi; }
  for path in "$web_dir" templates/web/artifacts templates/web; do
    check "$path swapped for a link to $name" swapped "$path" "$(towards "$path")" 4
  done
  for path in .store/objects .store/keys .store/trash .store/drafts .store/pins .store/leases .store/locks \
    "$(shard objects)" "$(shard keys)"; do
    check "$path swapped for a link to $name" swapped "$path" "$(towards "$path")" 0
  done
}
again
swapped_directories "$outside" "its like in another store"

# A link to / itself. As root, only in a root directory of its own, which looks like
# each directory of a store at once, so that who follows the link finds what it looks for.
make_jail() {
  local library
  jail=$dir/jail
  rm -rf "$jail"
  cp -a "$seed/$web_dir" "$jail"
  cp -a "$seed/templates/web/." "$seed/.store/objects/." "$seed/.store/keys/." "$jail/"
  cp -a "$seed/$web_dir" "$jail/artifacts/$web" 2>/dev/null || true
  mkdir "$jail/dead" "$jail/etc"
  echo "not yours" >"$jail/etc/passwd"
  cp "$program" "$jail/template-store"
  for library in $(ldd "$program" | grep -o '/[^ ]*'); do
    mkdir -p "$jail${library%/*}"
    cp -L "$library" "$jail$library"
  done
  chroot "$jail" /template-store --version || return 1
  outside=$jail
  store=$jail/store
  ts() { chroot "$jail" /template-store --store /store "$@"; }
}
if [[ $(id -u) != 0 ]]; then
  swapped_directories / /
elif make_jail >/dev/null 2>&1; then
  again
  # The directory itself has another time when the store is put there.
  state_of_outside() {
    find "$outside" -mindepth 1 -path "$store" -prune -o -path "$store.ready" -prune -o \
      -printf '%p %i %y %m %u %n %s %T@ %C@ %l\n' | sort
  }
  state_of_outside >"$work/outside"
  swapped_directories / /
  ts() { "$program" --store "$store" "$@"; }
else
  skip "directories swapped for links to /: the program does not run in a chroot"
fi
jail=
chmod -R u+w "$dir/jail" 2>/dev/null || true
rm -rf "$dir/jail" "$dir/outside-damage"
