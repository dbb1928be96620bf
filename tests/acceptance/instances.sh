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

revision() { echo "$store/templates/${1%@*}/artifacts/${1#*@}"; }

# make ID@REV DEST [OPTION...]: an instance; the result is in $said_out.
make() { expect 0 . ts --json instance "$@"; }

# whole DEST ID@REV [OPTION...]: it is what the revision says.
whole() { python3 "$tools/vm.py" is_instance "$1" "$(revision "$2")" "${@:3}"; }

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

publish() { # ID REVISION LABEL MIB [KIB]
  rm -rf "$work/image"
  mkdir "$work/image"
  OUT=$work/image "$tools/vm-image" "${@:3}"
  expect 0 . ts publish "$1" "$work/image" --revision "$2" --move
}

# --- one instance ----------------------------------------------------------------

check "an image with a read-only and a writable drive besides its root is published" publish web r1 "web 1" 64
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
copy_is_told() {
  if [[ $clones == yes ]]; then
    [[ -z $(python3 "$tools/vm.py" copied rootfs.ext4 <"$said_out") ]]
  else
    [[ $(python3 "$tools/vm.py" copied rootfs.ext4 <"$said_out") -ge $(python3 "$tools/vm.py" used "$(revision web@r1)/rootfs.ext4") ]]
  fi
  expect 0 'rootfs\.ext4' ts instance web@r1 "$vms/told"
}
copied_bytes() {
  make web@r1 "$vms/bytes"
  copy_is_told # of the result of the last one
}
check "the bytes that were copied are told, and people are told as well" copied_bytes
holes() { # DEST: no more blocks than the revision has
  local name have want
  sync -f "$1"
  for name in rootfs.ext4 scratch.img; do
    have=$(stat -c %b "$1/$name") want=$(stat -c %b "$(revision web@r1)/$name")
    # A block for where the extents are, at most.
    [[ $have -le $((want + 8)) ]] || die "$name has $have blocks, the revision's $want"
  done
}
check "holes stay holes" holes "$vms/bytes"
odd_names() {
  local name
  for name in 'with space' "quo'te\"s" 'percent%20\n' 'ünï' "$(printf 'line\nbreak')" '-dash' 'rm'; do
    make web@r1 "$vms/odd $name"
    whole "$vms/odd $name" web@r1
    ts --json instance list | python3 -c '
import json, sys
sys.exit(sys.argv[1] not in [one["path"] for one in json.load(sys.stdin)["instances"]])' "$vms/odd $name" ||
      die "it is not listed"
    expect 0 . ts instance rm "$vms/odd $name"
    [[ ! -e $vms/odd\ $name ]]
  done
}
check "DEST may have any name that is text" odd_names
no_text() { leaves_no_trace "$vms" expect '1|2|5' . ts instance web@r1 "$vms/$(printf 'latin\xfc')"; }
check "a name that is not UTF-8 is refused" no_text
relative() {
  cd "$vms"
  make web@r1 relative
  whole "$vms/relative" web@r1
  cd relative
  make web@r1 ../relative-too/
  whole "$vms/relative-too" web@r1
}
check "a relative DEST is below the working directory, and fc.json is absolute all the same" relative

# --- what is refused ---------------------------------------------------------------

refused_dest() {
  mkdir "$vms/taken" "$vms/taken-with"
  echo mine >"$vms/taken-with/file"
  echo mine >"$vms/taken-file"
  ln -s nowhere "$vms/taken-link"
  local one
  for one in one taken taken-with taken-file taken-link; do
    leaves_no_trace "$vms" expect 5 "$one" ts instance web@r1 "$vms/$one"
  done
}
check "a DEST that is there, whatever it is, is refused (exit code 5)" leaves_no_trace "$store" refused_dest
inside() {
  expect '1|2|5' 'store' ts instance web@r1 "$store/vm"
  expect '1|2|5' 'store' ts instance web@r1 "$store/templates/web/artifacts/vm"
  expect '1|2|5' 'store' ts instance web@r1 "$store/.store/vm"
  expect '1|2|5' . ts instance web@r1 "$store"
  ln -s "$store/templates" "$work/into"
  expect '1|2|5' 'store' ts instance web@r1 "$work/into/vm"
  (cd "$store/templates" && expect '1|2|5' 'store' ts instance web@r1 vm)
}
check "a DEST inside the store is refused, by another name of it too" leaves_no_trace "$store" inside
no_parent() {
  expect '1|3|5' 'no-such' ts instance web@r1 "$vms/no-such/vm"
  expect '1|3|5' 'taken-file' ts instance web@r1 "$vms/taken-file/vm"
}
check "a DEST whose parent is missing or no directory is refused, and the parent is named" leaves_no_trace "$vms" no_parent
not_found() {
  expect 3 'r100' ts instance web@r100 "$vms/not"
  expect 3 'no-such' ts instance no-such "$vms/not"
  expect 2 . ts instance web@r1
  expect 2 . ts instance web@r1 "$vms/not" --owner me
  expect 2 . ts instance web@r1 "$vms/not" --extra-disk -1
}
check "what is not there, and what is no option, is refused" leaves_no_trace "$vms" not_found
snapshotless() { leaves_no_trace "$vms" expect '3|5' 'snapshot' ts instance web@r1 "$vms/warm" --snapshot; }
check "--snapshot of a revision without one is refused" leaves_no_trace "$store" snapshotless

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

# --- the data disk -------------------------------------------------------------------

data_disk() {
  make web@r1 "$vms/disk" --extra-disk 3000
  [[ $(stat -c %s "$vms/disk/data.img") == $((3000 << 20)) ]] || die "it has $(stat -c %s "$vms/disk/data.img") bytes"
  [[ $(stat -c %b "$vms/disk/data.img") -le 16 ]] || die "it has $(stat -c %b "$vms/disk/data.img") blocks"
  grep -q '"data"' "$vms/disk/fc.json" || die "fc.json does not have it"
  whole "$vms/disk" web@r1
  python3 "$tools/vm.py" scribble "$vms/disk/data.img"
}
check "--extra-disk makes a sparse data disk, which fc.json names" store_stays data_disk
spec_disk() {
  mkdir "$work/with-disk"
  OUT=$work/with-disk "$tools/vm-image" disk
  ts create disk --role worker --data-disk 50
  expect 0 . ts publish disk "$work/with-disk" --revision r1 --move
  make disk "$vms/spec-disk"
  [[ $(stat -c %s "$vms/spec-disk/data.img") == $((50 << 20)) ]]
  whole "$vms/spec-disk" disk@r1
  make disk "$vms/other-disk" --extra-disk 70
  [[ $(stat -c %s "$vms/other-disk/data.img") == $((70 << 20)) ]]
}
check "a template with a data disk gives one to its instances, and --extra-disk says another size" spec_disk

# --- nothing leads into the store ------------------------------------------------------

writes() {
  make web@r1 "$vms/writes"
  python3 "$tools/vm.py" scribble "$vms/writes/rootfs.ext4" "$vms/writes/scratch.img"
  python3 "$tools/vm.py" same "$vms/one" "$vms/bytes" # as they were
  whole "$vms/one" web@r1
}
check "writes to the drives of one change nothing in another, nor in the store" store_stays writes

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
replaced_names() { # the names are the instance's own
  make web@r1 "$vms/names"
  for name in vmlinux tools.img; do
    rm -f "$vms/names/$name"
    echo "another" >"$vms/names/$name"
  done
  whole "$vms/one" web@r1
}
check "names in an instance can be given other files, which the store does not see" store_stays replaced_names

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
  other_owned() {
    make web@r1 "$vms/numbers" --owner 12345:54321
    [[ $(stat -c %u:%g "$vms/numbers" "$vms/numbers/rootfs.ext4" "$vms/numbers/vmlinux" "$vms/numbers/fc.json" | sort -u) == 12345:54321 ]]
  }
  check "--owner takes numbers that have no name" store_stays other_owned
  if [[ -n $other ]]; then
    owned_elsewhere() {
      make web@r1 "$other/owned" --owner "$owner"
      [[ $(stat -c %u:%g "$other/owned" "$other/owned/rootfs.ext4" "$other/owned/vmlinux" | sort -u) == "$owner" ]]
      rm -rf "$other/owned"
    }
    check "and on another file system too" store_stays owned_elsewhere
  fi
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

# --- list and rm -------------------------------------------------------------------------

listed() {
  ts --json instance list >"$work/list"
  python3 - "$vms" "$work/list" <<'PYTHON'
import json, os, sys
top, path = sys.argv[1:]
with open(path) as file:
    listed = {one["path"]: one for one in json.load(file)["instances"]}
there = {os.path.join(top, name) for name in os.listdir(top) if os.path.exists(os.path.join(top, name, "instance.json"))}
assert set(listed) == there, (sorted(set(listed) ^ there))
for path, one in listed.items():
    with open(os.path.join(path, "instance.json")) as file:
        record = json.load(file)
    for field in ("template", "revision", "created_at"):
        assert one[field] == record[field], (path, field)
PYTHON
  expect 0 "$vms/one" ts instance list
}
# Its documents were wrecked above.
rm -rf "$vms/owned" "$vms/names"
check "list has the instances that are there, with what instance.json says, and none that is gone" listed
removes() {
  local before
  before=$(ls "$vms" | wc -l)
  expect 0 . ts instance rm "$vms/told"
  [[ ! -e $vms/told && $(ls -A "$vms" | wc -l) == $((before - 1)) ]]
  if ts --json instance list | grep -q '/told"'; then die "it is still listed"; fi
  no_siblings "$vms"
}
check "instance rm removes one, and it is listed no more" store_stays removes
no_instance() {
  mkdir "$vms/mine"
  echo precious >"$vms/mine/file"
  echo '{}' >"$vms/mine/fc.json"
  expect '3|5' 'no-such' ts instance rm "$vms/no-such"
  expect '1|3|5' mine ts instance rm "$vms/mine"
  expect '1|3|5' mine ts instance rm "$vms/mine" --force
  expect '1|3|5' . ts instance rm "$vms"
  expect '1|3|5' . ts instance rm "$vms" --force
  expect '1|3|5' . ts instance rm "$(revision web@r1)"
  expect '1|3|5' . ts instance rm "$(revision web@r1)" --force
  expect '1|3|5' . ts instance rm "$store" --force
  [[ $(cat "$vms/mine/file") == precious ]]
  whole "$vms/one" web@r1
}
check "instance rm removes no directory that is no instance, by force neither" leaves_no_trace "$store" no_instance
through_link() {
  make web@r1 "$vms/links"
  mkdir "$vms/outside"
  echo precious >"$vms/outside/file"
  ln -s "$vms/outside" "$vms/links/socket-dir"
  ln -s "$vms/one" "$vms/alias"
  expect '0|5' . ts instance rm "$vms/links" --force
  [[ $(cat "$vms/outside/file") == precious ]] || die "it followed a link"
  whole "$vms/one" web@r1
  rm -f "$vms/alias"
}
check "instance rm follows no link to elsewhere" through_link

# --- the store knows what instances hold ----------------------------------------------------

linked=$((262144 + 131072 + 196608)) # vmlinux, initrd, tools.img
# is_linked WHO BYTES: what an instance has links to, with small files and inodes.
is_linked() { [[ $2 -ge $linked && $2 -le $((linked + 40000)) ]] || die "$1: $2 bytes are held, not $linked"; }
held_bytes() {
  publish gone r1 "gone" 64
  make gone@r1 "$vms/held-1"
  make gone@r1 "$vms/held-2"
  cp -r --sparse=always "$(revision gone@r1)" "$work/as-published"
  publish gone r2 "its successor" 64
  expect 0 'instance' ts du
  is_linked du "$(du_of gone held_by_instances)"
}
du_of() { # TEMPLATE FIELD: of its revision r1
  ts --json du "$1" | python3 -c '
import json, sys
print(*(revision[sys.argv[1]] for template in json.load(sys.stdin)["templates"]
        for revision in template["revisions"] if revision["revision"] == "r1"))' "$2"
}
check "du says what instances hold" held_bytes
check "why says that instances hold some of it" expect 0 'instance' ts why gone@r1 --keep-last 1
object=$(find "$store/.store/objects" -samefile "$(revision gone@r1)/vmlinux")
not_freed() {
  [[ -n $object ]] || die "vmlinux is no object"
  ts --json gc --keep-last 1 --dry-run >"$work/dry"
  ts --json gc --keep-last 1 >"$work/real"
  [[ ! -e $(revision gone@r1) ]] || die "the revision is still there"
  is_linked "the dry run" "$(python3 "$tools/look.py" at plan.held_by_instances <"$work/dry")"
  is_linked "the report" "$(python3 "$tools/look.py" at report.held_by_instances <"$work/real")"
  [[ $(python3 "$tools/look.py" at report.freed <"$work/real") == $(python3 "$tools/look.py" at plan.frees <"$work/dry") ]]
  expect 0 . ts gc
  [[ $(stat -c %h "$object") == 3 ]] || die "the object has $(stat -c %h "$object") links"
  expect 0 '"clean": *true' ts --json verify
}
check "an object whose only other links are instances is not freed with its revision, and gc says so" not_freed
keeps_bytes() {
  local name
  for name in vmlinux initrd tools.img rootfs.ext4 scratch.img share/notes; do
    cmp "$work/as-published/$name" "$vms/held-1/$name"
    cmp "$work/as-published/$name" "$vms/held-2/$name"
  done
}
check "with its revision removed and collected, an instance has every byte" keeps_bytes
freed_after() {
  expect 0 . ts instance rm "$vms/held-1"
  expect 0 . ts gc
  [[ -e $object ]] || die "the object has gone although an instance has it"
  expect 0 . ts instance rm "$vms/held-2"
  expect 0 . ts gc
  [[ ! -e $object ]] || die "the object is still there"
  clean "$store"
}
check "gc frees it when the last instance is removed" freed_after
by_hand() {
  publish gone r3 "gone again" 64
  make gone "$vms/held-3"
  object=$(find "$store/.store/objects" -samefile "$(revision gone@r3)/vmlinux")
  expect 0 . ts rm gone
  [[ -e $object ]] || die "rm has removed an object that an instance has"
  rm -rf "$vms/held-3" # as people do
  expect 0 . ts gc
  [[ ! -e $object ]] || die "the object is still there"
  expect 0 . ts instance list
  if grep -q held-3 "$said_out"; then die "it is still listed"; fi
  clean "$store"
}
check "an instance that was removed by hand is noticed" by_hand
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
again_same() {
  # The same bytes published again are the object that the instances have.
  publish again r1 "web 1" 64
  [[ $(stat -c %i "$(revision again@r1)/vmlinux") == $(stat -c %i "$vms/one/vmlinux") ]]
  right again
}
check "what is published again finds the object that only instances have or others too" again_same

while_removed() {
  local round code made=0
  for round in {1..12}; do
    publish flux r1 "flux" 16
    (sleep "0.0$((RANDOM % 40))"; ts --quiet rm flux --force >/dev/null 2>&1; ts --quiet gc >/dev/null 2>&1) &
    code=0
    ts --json instance flux@r1 "$vms/flux-$round" >"$work/flux" 2>"$work/flux.err" || code=$?
    wait
    case $code in
      0)
        made=$((made + 1))
        cmp "$vms/flux-$round/rootfs.ext4" "$work/flux-rootfs" 2>/dev/null ||
          { [[ $made == 1 ]] && cp "$vms/flux-$round/rootfs.ext4" "$work/flux-rootfs"; } ||
          die "round $round: it has other bytes"
        [[ $(ls "$vms/flux-$round" | wc -l) -ge 9 ]] || die "round $round: $(ls "$vms/flux-$round")"
        ;;
      # By force it is removed even while it is read.
      1 | 3) [[ ! -e $vms/flux-$round ]] || die "round $round: not found, but there: $(cat "$work/flux.err")" ;;
      *) die "round $round: exit code $code: $(cat "$work/flux.err")" ;;
    esac
    ts --quiet rm flux --force >/dev/null 2>&1 || true
  done
  no_siblings "$vms"
  rm -rf "$vms"/flux-*
  expect 0 . ts gc
  clean "$store"
}
check "made while its revision is removed, an instance is whole or not there" while_removed

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
check "an image of $mib MiB is published" publish large r1 "large" "$mib" 16
used_here() {
  sync -f "$dir"
  echo $(($(stat -f -c '(%b - %f) * %S' "$dir")))
}
all_instances() {
  local one
  for ((one = 1; one <= number; one++)); do
    ts --quiet instance large@r1 "$vms/$one" >/dev/null || die "instance $one failed"
  done
}
used_before=$(used_here)
start=$EPOCHREALTIME
check "$number instances of it are made" all_instances
note "that took $(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms"
grew=$(($(used_here) - used_before))
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
    want=$(stat -c %b "$(revision large@r1)/rootfs.ext4")
    for ((one = 1; one <= number; one++)); do
      [[ $(stat -c %b "$vms/$one/rootfs.ext4") -le $((want + 8)) ]] ||
        die "$one has $(stat -c %b "$vms/$one/rootfs.ext4") blocks, the revision $want"
    done
  }
  check "the copies keep the holes: as many blocks are allocated" equal_blocks
fi
one_differs() {
  python3 "$tools/vm.py" contents "$vms"/*/rootfs.ext4 "$vms"/*/scratch.img "$(revision large@r1)"/*.{ext4,img} >"$work/before"
  [[ $(awk '/rootfs/ { print $1 }' "$work/before" | sort -u | wc -l) == 1 ]]
  python3 "$tools/vm.py" scribble "$vms/$((number / 2))/rootfs.ext4" "$vms/$((number / 2))/scratch.img"
  python3 "$tools/vm.py" contents "$vms"/*/rootfs.ext4 "$vms"/*/scratch.img "$(revision large@r1)"/*.{ext4,img} >"$work/after"
  diff "$work/before" "$work/after" >"$work/changed" || true
  [[ $(grep -c '^>' "$work/changed") == 2 && $(grep -c "^> .*/$((number / 2))/" "$work/changed") == 2 ]] ||
    die "others have changed: $(cat "$work/changed")"
  rm -rf "${vms:?}/$((number / 2))"
}
check "writing into one changes none of the others, and not the template" store_stays one_differs
check "the digests of the template are those that b3sum computes" right large
b3sum_of() { b3sum --no-mmap <"$1" | cut -d' ' -f1; }
want=$(b3sum_of "$(revision large@r1)/rootfs.ext4")
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
  wait_for 30 all_free || die "$(($(used_here) - used_before)) bytes are still taken"
}
all_free() { [[ $(($(used_here) - used_before)) -le 2097152 ]]; }
if [[ -n ${ACCEPT_ALONE:-} && $(stat -f -c %T "$dir") != btrfs ]]; then
  check "and the disk has its blocks again" given_back
fi
rm -rf "$vms" "$store" "$other"
