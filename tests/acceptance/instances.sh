# Instances: private and writable where a VM writes, shared where it reads, and
# never a way into the store.

number=$instances
use instances
vms=$dir/vms
mkdir -p "$vms"

if python3 "$tools/vm.py" can_clone "$dir" "$dir" >/dev/null 2>&1; then clones=yes; else clones=no; fi
if [[ $clones == yes ]]; then private=reflink; else private=copy; fi
note "files on this file system can be cloned: $clones"

# elsewhere: $other is a directory on another file system.
elsewhere() {
  local place
  for place in ${ACCEPT_SMALL:-} /dev/shm /tmp /var/tmp; do
    if [[ -w $place && $(stat -c %d "$place") != $(stat -c %d "$dir") ]]; then
      other=$(mktemp -d "$place/template-store-vms.XXXXXX")
      tidy "$other"
      return
    fi
  done
  other=
}
elsewhere

# make ID@REV DEST [OPTION...]: an instance; the result is in $said_out.
make() { expect 0 . ts --json instance "$@"; }

# whole DEST ID@REV [OPTION...]: it is what the revision says.
whole() { python3 "$tools/vm.py" is_instance "$1" "$(revision_of "$2")" "${@:3}"; }

# store_stays COMMAND...: the command changes no file that the store has.
store_stays() {
  local before
  before=$(python3 "$tools/vm.py" state "$store/templates" "$store/.store/objects")
  "$@"
  python3 "$tools/vm.py" state "$store/templates" "$store/.store/objects" | diff <(echo "$before") - ||
    die "files of the store changed"
}

no_siblings() { # DIR
  local left
  left=$(find "$1" -maxdepth 1 -name '.template-store-*')
  [[ -z $left ]] || die "left behind: $left"
}

# --- one instance ----------------------------------------------------------------

check "an image with a read-only and a writable drive besides its root is published" publish_vm web r1 "web 1" 64
one() {
  make web "$vms/one"
  python3 "$tools/vm.py" strategies "rootfs.ext4=$private" "scratch.img=$private" vmlinux=hard_link initrd=hard_link \
    tools.img=hard_link <"$said_out"
  [[ $(python3 "$tools/look.py" at template <"$said_out") == web ]]
  [[ $(python3 "$tools/look.py" at revision <"$said_out") == r1 ]]
  [[ $(python3 "$tools/look.py" at path <"$said_out") == "$vms/one" ]]
  whole "$vms/one" web@r1 linked
  no_siblings "$vms"
}
check "an instance has the revision's files, its own where it writes, links elsewhere; fc.json names what is there" \
  store_stays one
holes() { # DEST: no more blocks than the revision has
  local name have want
  sync -f "$1"
  for name in rootfs.ext4 scratch.img; do
    have=$(stat -c %b "$1/$name") want=$(stat -c %b "$(revision_of web@r1)/$name")
    # A block for where the extents are, at most.
    [[ $have -le $((want + 8)) ]] || die "$name has $have blocks, the revision's $want"
  done
}
check "holes stay holes" holes "$vms/one"
odd_names() {
  local name
  cd "$vms"
  for name in 'with space' "quo'te\"s" 'percent%20\n' 'ünï' "$(printf 'line\nbreak')" ./-dash 'rm'; do
    make web@r1 "$name" # relative, and the paths in fc.json are absolute all the same
    whole "$vms/${name#./}" web@r1
    ts --json instance list | python3 -c '
import json, sys
sys.exit(sys.argv[1] not in [one["path"] for one in json.load(sys.stdin)["instances"]])' "$vms/${name#./}" ||
      die "it is not listed"
    expect 0 . ts instance rm "$name"
    [[ ! -e $vms/${name#./} ]]
  done
  leaves_no_trace "$vms" expect '1|2|5' . ts instance web@r1 "$vms/$(printf 'latin\xfc')"
}
check "DEST may have any name that is text, below the working directory too" odd_names
moved() {
  make web@r1 "$vms/moves"
  mv "$vms/moves" "$vms/moved"
  make web@r1 "$vms/moves"
  whole "$vms/moves" web@r1
  expect 0 . ts instance list
  expect 0 . ts gc
  expect 0 '"clean": *true' ts --json verify
}
check "an instance that was moved by hand disturbs nobody" moved
must_clone() {
  if [[ $clones == yes ]]; then
    make web@r1 "$vms/must" --require-reflink
    python3 "$tools/vm.py" strategies rootfs.ext4=reflink scratch.img=reflink <"$said_out"
    whole "$vms/must" web@r1
  else
    leaves_no_trace "$vms" expect '1|5' 'reflink|clone|support' ts instance web@r1 "$vms/must" --require-reflink
  fi
}
if [[ $clones == yes ]]; then
  check "--require-reflink makes clones" must_clone
else
  check "--require-reflink is refused here: the file system does not support it" leaves_no_trace "$store" must_clone
fi
if [[ -n $other ]]; then
  must_clone_elsewhere() {
    leaves_no_trace "$other" expect '1|5' 'file ?system|device' ts instance web@r1 "$other/must" --require-reflink
  }
  check "--require-reflink is refused on another file system, which is said" leaves_no_trace "$store" must_clone_elsewhere
  on_another() {
    make web@r1 "$other/vm"
    python3 "$tools/vm.py" strategies rootfs.ext4=copy vmlinux=copy tools.img=copy <"$said_out"
    whole "$other/vm" web@r1 own
    no_siblings "$other"
    ts --json instance list | grep -q "$other" && die "it is listed, but is on another file system"
    expect 0 . ts instance rm "$other/vm"
    [[ ! -e $other/vm ]]
  }
  check "on another file system everything is copied, and it can be removed" store_stays on_another
else
  skip "a DEST on another file system: there is none to write to"
fi

one_wins() {
  local pids=() pid codes=()
  for pid in 1 2 3 4 5 6 7 8; do
    ts --quiet instance web@r1 "$vms/race" >/dev/null 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    codes+=("$code")
  done
  [[ $(printf '%s\n' "${codes[@]}" | sort | tr '\n' ' ') == "0 5 5 5 5 5 5 5 " ]] || die "exit codes: ${codes[*]}"
  whole "$vms/race" web@r1
  no_siblings "$vms"
}
check "of eight that make the same DEST at once, one does, and seven are told that it is there" one_wins

# --- nothing leads into the store ------------------------------------------------------

# as_stranger COMMAND...: as who has no rights to the store beyond those of everybody.
as_stranger() {
  if [[ $(id -u) == 0 ]]; then
    # In root's PATH may be what only root can run.
    setpriv --reuid="${ACCEPT_USER:-nobody}" --regid="$(id -g "${ACCEPT_USER:-nobody}")" --clear-groups -- \
      env PATH=/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 "$@"
  else
    "$@"
  fi
}
tampers() {
  find "$vms/one" -type d -exec chmod 755 {} +
  as_stranger python3 "$tools/vm.py" tamper "$vms/one" >"$work/tampered"
  for name in vmlinux initrd tools.img share/notes; do
    grep -qx "$name" "$work/tampered" || die "$name was not tried: it is not read-only, or not seen"
  done
}
check "a read-only file of an instance is not opened for writing, truncated or mapped to write" store_stays tampers
if [[ $(id -u) == 0 ]]; then
  user=${ACCEPT_USER:-nobody}
  owner=$(id -u "$user"):$(id -g "$user")
  owned() {
    local strange
    make web@r1 "$vms/owned" --owner "$owner"
    python3 "$tools/vm.py" strategies "rootfs.ext4=$private" "vmlinux=$private" "tools.img=$private" <"$said_out"
    whole "$vms/owned" web@r1 own
    strange=$(find "$vms/owned" \( -not -uid "${owner%:*}" -o -not -gid "${owner#*:}" \) -print)
    [[ -z $strange ]] || die "not the owner's: $strange"
  }
  check "--owner gives all of the instance to another user, and none of the store's files" store_stays owned
  uses_owned() {
    as_stranger cat "$vms/owned/fc.json" "$vms/owned/vmlinux" >/dev/null
    as_stranger python3 "$tools/vm.py" scribble "$vms/owned/rootfs.ext4"
    as_stranger python3 "$tools/vm.py" wreck "$vms/owned"
  }
  check "that user boots from it, and whatever it does to its files, those of the store stay" store_stays uses_owned
  reads_only() {
    mkdir "$vms/of-user"
    chown "$user" "$vms/of-user"
    expect '0|1' . as_stranger "$program" --store "$store" --json instance web@r1 "$vms/of-user/vm"
    if grep -qi 'permission denied' "$said_err"; then
      grep -q 'give this user access' "$said_err" || die "it does not say what to do: $(cat "$said_err")"
      [[ -z $(ls -A "$vms/of-user") ]] || die "left behind: $(ls -A "$vms/of-user")"
      return
    fi
    cp "$said_out" "$work/result"
    # The kernel lets nobody link the files of another.
    if [[ $(cat /proc/sys/fs/protected_hardlinks) == 1 ]]; then
      python3 "$tools/vm.py" strategies "vmlinux=$private" "tools.img=$private" <"$work/result"
    fi
    whole "$vms/of-user/vm" web@r1
    [[ $(stat -c %U "$vms/of-user/vm/rootfs.ext4" "$vms/of-user/vm" | sort -u) == "$user" ]]
    no_siblings "$vms/of-user"
    as_stranger "$program" --store "$store" instance rm "$vms/of-user/vm"
    [[ ! -e $vms/of-user/vm ]]
  }
  check "who may only read the store makes an instance of it and removes it, or is told why not" store_stays reads_only
else
  not_owner() { leaves_no_trace "$vms" expect 1 'permitted|permission|owner' ts instance web@r1 "$vms/owned" --owner 0:0; }
  check "--owner of another user needs root, which is said" leaves_no_trace "$store" not_owner
  own_owner() {
    make web@r1 "$vms/owned" --owner "$(id -u):$(id -g)"
    whole "$vms/owned" web@r1 own
    python3 "$tools/vm.py" wreck "$vms/owned"
  }
  check "--owner of oneself makes files of its own, and whatever is done to them, the store's stay" store_stays own_owner
fi

remove_all() {
  rm -rf "$vms"
  expect 0 . ts gc
  clean "$store"
  all_right "$store"
}
check "with all instances gone, verify is clean and the digests are those that b3sum computes" remove_all

# --- many instances of a large image -----------------------------------------------------------

use many
mkdir -p "$vms"
if [[ $clones == no && $number -gt 12 ]]; then number=12; fi # each is a copy
check "an image of $mib MiB is published" publish_vm large r1 "large" "$mib" 16
all_instances() {
  local one
  for ((one = 1; one <= number; one++)); do
    ts --quiet instance large@r1 "$vms/$one" >/dev/null || die "instance $one failed"
  done
}
used_before=$(bytes_used)
start=$EPOCHREALTIME
check "$number instances of it are made" all_instances
note "that took $(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms"
grew=$(($(bytes_used) - used_before))
if [[ $clones == yes ]]; then
  # Three inodes, two small documents, where the extents are; everything twice on btrfs.
  only_metadata() { [[ $grew -le $((number * 65536 + 8388608)) ]] || die "df grew by $grew bytes"; }
  if [[ -n ${ACCEPT_ALONE:-} ]]; then
    check "they take no blocks beyond metadata" only_metadata
    note "df grew by $((grew / number)) bytes for each"
  else
    skip "the blocks that they take: needs ACCEPT_ALONE"
  fi
else
  equal_blocks() {
    local one want
    sync -f "$vms"
    want=$(stat -c %b "$(revision_of large@r1)/rootfs.ext4")
    for ((one = 1; one <= number; one++)); do
      [[ $(stat -c %b "$vms/$one/rootfs.ext4") -le $((want + 8)) ]] ||
        die "$one has $(stat -c %b "$vms/$one/rootfs.ext4") blocks, the revision $want"
    done
  }
  check "the copies keep the holes: as many blocks are allocated" equal_blocks
fi
one_differs() {
  python3 "$tools/vm.py" contents "$vms"/*/rootfs.ext4 "$vms"/*/scratch.img "$(revision_of large@r1)"/*.{ext4,img} >"$work/before"
  [[ $(awk '/rootfs/ { print $1 }' "$work/before" | sort -u | wc -l) == 1 ]]
  python3 "$tools/vm.py" scribble "$vms/$((number / 2))/rootfs.ext4" "$vms/$((number / 2))/scratch.img"
  python3 "$tools/vm.py" contents "$vms"/*/rootfs.ext4 "$vms"/*/scratch.img "$(revision_of large@r1)"/*.{ext4,img} >"$work/after"
  diff "$work/before" "$work/after" >"$work/changed" || true
  [[ $(grep -c '^>' "$work/changed") == 2 && $(grep -c "^> .*/$((number / 2))/" "$work/changed") == 2 ]] ||
    die "others have changed: $(cat "$work/changed")"
  rm -rf "${vms:?}/$((number / 2))"
}
check "writing into one changes none of the others, and not the template" store_stays one_differs
check "the digests of the template are those that b3sum computes" right large
b3sum_of() { b3sum --no-mmap <"$1" | cut -d' ' -f1; }
want=$(b3sum_of "$(revision_of large@r1)/rootfs.ext4")
all_survive() {
  python3 "$tools/vm.py" contents "$vms"/*/{rootfs.ext4,scratch.img,vmlinux,initrd,tools.img,share/notes} >"$work/before"
  expect 0 . ts rm large
  expect 0 . ts gc
  [[ ! -e $store/templates/large ]]
  python3 "$tools/vm.py" contents "$vms"/*/{rootfs.ext4,scratch.img,vmlinux,initrd,tools.img,share/notes} |
    diff "$work/before" - || die "an instance has other bytes"
  [[ $(wc -l <"$work/before") == $(((number - 1) * 6)) ]]
  for one in 1 $number; do [[ $(b3sum_of "$vms/$one/rootfs.ext4") == "$want" ]] || die "$one has another digest"; done
}
check "with the revision removed and collected, all $((number - 1)) instances have every byte" all_survive
all_removed() {
  local one
  [[ $(ts --json instance list | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["instances"]))') == $((number - 1)) ]]
  for ((one = 1; one <= number; one++)); do
    if [[ $one == $((number / 2)) ]]; then continue; fi
    ts --quiet instance rm "$vms/$one" >/dev/null || die "instance $one is not removed"
  done
  [[ -z $(ls -A "$vms") ]] || die "left behind: $(ls -A "$vms")"
  expect 0 . ts gc
  clean "$store"
  [[ $(python3 "$tools/vm.py" instances "$store" | wc -l) == 0 ]] || die "records are left"
}
check "all are removed, gc frees what only they had, and verify is clean" all_removed
given_back() { # in its own time
  wait_for 120 all_free || die "$(($(bytes_used) - used_before)) bytes are still taken"
}
all_free() { [[ $(($(bytes_used) - used_before)) -le 2097152 ]]; }
if [[ -n ${ACCEPT_ALONE:-} && $(stat -f -c %T "$dir") != btrfs ]]; then
  check "and the disk has its blocks again" given_back
fi
rm -rf "$vms" "$store" "$other"
