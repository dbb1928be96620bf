# Snapshots: a memory image and all that it matches, attached to a revision; never
# half, never in place of another's, and refused where it would not start.

use snapshots
vms=$dir/warm
mkdir -p "$vms"
pages=${ACCEPT_PAGES:-2000}

revision() { echo "$store/templates/${1%@*}/artifacts/${1#*@}"; }
snapshot_of() { echo "$(revision "$1")/snapshot"; }

# paused LABEL MIB PAGES: what a VMM leaves of a paused VM, in $dir/paused/LABEL.
paused() {
  local place=$dir/paused/$1
  rm -rf "$place"
  mkdir -p "$place"
  head -c 40000 <(yes "vmstate $1") >"$place/vmstate"
  python3 "$tools/vm.py" memory "$place/mem" "$2" "$3" "$1"
  # The drives as of the pause: what was published, and what the VM has written since.
  cp --sparse=always "$(revision web@r1)/rootfs.ext4" "$(revision web@r1)/scratch.img" "$place/"
  chmod u+w "$place"/*
  printf 'written by %s' "$1" | dd of="$place/rootfs.ext4" bs=1 seek=5000 conv=notrunc status=none
  printf 'written by %s' "$1" | dd of="$place/scratch.img" bs=1 seek=5000 conv=notrunc status=none
}

# attach ID@REV LABEL [OPTION...]: what was paused under that label.
attach() {
  local place=$dir/paused/$2
  ts --json snapshot attach "$1" --vmstate "$place/vmstate" --mem "$place/mem" \
    --drive "rootfs=$place/rootfs.ext4" --drive "scratch=$place/scratch.img" "${@:3}"
}

# attached ID@REV LABEL: the revision has that snapshot, with every byte.
attached() {
  local place=$dir/paused/$2 snapshot
  snapshot=$(snapshot_of "$1")
  cmp "$place/vmstate" "$snapshot/vmstate.bin"
  cmp "$place/mem" "$snapshot/mem.bin"
  cmp "$place/rootfs.ext4" "$snapshot/drives/rootfs"
  cmp "$place/scratch.img" "$snapshot/drives/scratch"
}

publish() { # ID MIB: a revision whose VMs have so much memory
  rm -rf "$work/image"
  mkdir "$work/image"
  OUT=$work/image "$tools/vm-image" "snapshot of $1" 64 64
  expect 0 . ts create "$1" --role worker --vcpus 2 --mem "$2"
  expect 0 . ts publish "$1" "$work/image" --revision r1 --move
}

ts init >/dev/null
check "a revision to take snapshots of" publish web 8
check "what a paused VM leaves" paused small 8 100

# --- what is refused -------------------------------------------------------------------

none() {
  expect 3 'snapshot' ts snapshot show web@r1
  expect 3 'snapshot' ts snapshot check web@r1
  expect 3 'r100' ts snapshot show web@r100
  expect 3 'no-such' ts snapshot check no-such
}
check "of a revision that has none, show and check say so (exit code 3)" leaves_no_trace "$store" none

small=$dir/paused/small
needs_drives() {
  local both=(--vmstate "$small/vmstate" --mem "$small/mem")
  expect '1|2|5' 'scratch' ts snapshot attach web@r1 "${both[@]}" --drive "rootfs=$small/rootfs.ext4"
  expect '1|2|5' 'rootfs' ts snapshot attach web@r1 "${both[@]}" --drive "scratch=$small/scratch.img"
  expect '1|2|5' 'rootfs' ts snapshot attach web@r1 "${both[@]}"
  expect '1|2|5' 'scratch' attach web@r1 small --drive "scratch=$small/rootfs.ext4"
  expect '1|2|5' 'mem has' attach web@r1 small --mem-mib 512
}
check "a snapshot without one of its writable drives is refused; so are a drive twice, and memory of another size" \
  leaves_no_trace "$store" needs_drives
bad_files() {
  local drives=(--drive "rootfs=$small/rootfs.ext4" --drive "scratch=$small/scratch.img")
  expect '1|3' 'no-such' ts snapshot attach web@r1 --vmstate "$small/no-such" --mem "$small/mem" "${drives[@]}"
  expect '1|3' 'no-such' ts snapshot attach web@r1 --vmstate "$small/vmstate" --mem "$small/no-such" "${drives[@]}"
  expect '1|3|5' . ts snapshot attach web@r1 --vmstate "$small/vmstate" --mem "$small" "${drives[@]}"
  expect 3 'r100' attach web@r100 small
  expect 2 . ts snapshot attach web@r1 --mem "$small/mem"
}
check "files that are not there, or no files, are refused" leaves_no_trace "$store" bad_files

# --- one snapshot ------------------------------------------------------------------------

host=(--vcpus 2 --mem-mib 8 --boot-args "console=ttyS0 reboot=k panic=1" --vmm firecracker --vmm-version 1.13.1
  --snapshot-version 8.0.0 --cpu-model "Model One" --cpu-template T2S --host-kernel 6.1.0 --arch x86_64
  --drive-path rootfs=/drives/rootfs --drive-path scratch=/drives/scratch)
attaches() {
  local before
  before=$(python3 "$tools/vm.py" state "$small")
  find "$(revision web@r1)" -maxdepth 1 -type f -not -name revision.json -printf '%f %i %m %T@ %s\n' | sort >"$work/revision"
  expect 0 . attach web@r1 small "${host[@]}" --created-at 2026-01-02T03:04:05Z
  attached web@r1 small
  python3 "$tools/vm.py" state "$small" | diff <(echo "$before") - || die "what was attached has changed"
  find "$(revision web@r1)" -maxdepth 1 -type f -not -name revision.json -printf '%f %i %m %T@ %s\n' | sort |
    diff "$work/revision" - || die "the revision's own files have changed"
  right web
  expect 0 '"clean": *true' ts --json verify
}
check "a snapshot is attached: every byte of it is there, and the revision is what it was" attaches
read_only() {
  local strange
  strange=$(find "$(snapshot_of web@r1)" -type f -not -name snapshot.json -perm /222)
  [[ -z $strange ]] || die "not read-only: $strange"
}
check "its files are read-only" read_only
says() {
  python3 "$tools/vm.py" is_snapshot "$(revision web@r1)"
  python3 "$tools/look.py" mvm "$store" web >/dev/null
  python3 "$tools/vm.py" snapshot_digests "$(snapshot_of web@r1)" >"$work/digests"
  [[ $(wc -l <"$work/digests") == 4 ]]
  (cd "$(snapshot_of web@r1)" && b3sum --no-mmap --check --quiet "$work/digests")
}
check "snapshot.json has its digests, and revision.json the field that mvm 0.11 reads" says
shows() {
  local word
  for word in 2026-01-02T03:04:05Z firecracker 1.13.1 8.0.0 'Model One' T2S 6.1.0 x86_64 /drives/scratch 'reboot=k' mem; do
    expect 0 "$word" ts snapshot show web@r1
    expect 0 "$word" ts --json snapshot show web
  done
  ts --json snapshot show web@r1 | python3 -m json.tool >/dev/null
  expect 0 'snapshot' ts show web@r1
}
check "show tells all that is known of it" leaves_no_trace "$store" shows

# --- check -------------------------------------------------------------------------------------

fits() {
  expect 0 . ts snapshot check web@r1 "${host[@]}"
  expect 0 '"compatible": *true' ts --json snapshot check web@r1 "${host[@]}"
}
check "a host like the one that it was made on is compatible" leaves_no_trace "$store" fits
# reason WORD OPTION VALUE: with another value, that and nothing else is the reason.
reason() {
  local words=() word at
  for ((at = 0; at < ${#host[@]}; at += 2)); do
    if [[ ${host[at]} == "$2" && ($2 != --drive-path || ${host[at + 1]%%=*} == "${3%%=*}") ]]; then
      words+=("$2" "$3")
    else
      words+=("${host[at]}" "${host[at + 1]}")
    fi
  done
  expect 5 . ts --json snapshot check web@r1 "${words[@]}"
  python3 - "$1" "$said_out" <<'PYTHON'
import json, sys
with open(sys.argv[2]) as file:
    answer = json.load(file)
assert answer["compatible"] is False, answer
reasons = [one["reason"] for one in answer["reasons"]]
assert reasons == [sys.argv[1]], reasons
assert all(one["text"] for one in answer["reasons"]), answer
PYTHON
  expect 5 "${4:-$3}" ts snapshot check web@r1 "${words[@]}"
}
while read -r word option value text; do
  check "another value of $option is a reason by its own name, $word" \
    leaves_no_trace "$store" reason "$word" "$option" "$value" "$text"
done <<'REASONS'
vcpus --vcpus 4
mem_mib --mem-mib 1024
boot_args --boot-args quiet
vmm --vmm cloud-hypervisor
vmm_version --vmm-version 2.0.0
snapshot_version --snapshot-version 9.0.0
cpu_model --cpu-model Another
cpu_template --cpu-template C3
host_kernel --host-kernel 5.10.0
architecture --arch aarch64
drive_path --drive-path scratch=/elsewhere /elsewhere
REASONS
all_reasons() {
  expect 5 . ts --json snapshot check web@r1 --vcpus 3 --mem-mib 99 --boot-args no --vmm no --arch aarch64
  [[ $(python3 -c 'import json, sys; print(*sorted(one["reason"] for one in json.load(sys.stdin)["reasons"]))' <"$said_out") == \
    *arch*boot_args*mem_mib*vcpus*vmm* ]] || die "$(cat "$said_out")"
}
check "all reasons are told at once" leaves_no_trace "$store" all_reasons

# --- the warm start -----------------------------------------------------------------------------

warm() {
  expect 0 . ts --json instance web@r1 "$vms/one" --snapshot
  python3 "$tools/vm.py" is_warm "$vms/one" "$(revision web@r1)"
  cmp "$small/rootfs.ext4" "$vms/one/rootfs.ext4"
  cmp "$small/scratch.img" "$vms/one/scratch.img"
  python3 "$tools/vm.py" scribble "$vms/one/rootfs.ext4" "$vms/one/scratch.img"
  expect 0 . ts --json instance web@r1 "$vms/two" --snapshot
  cmp "$small/rootfs.ext4" "$vms/two/rootfs.ext4"
  attached web@r1 small
  expect 0 '"clean": *true' ts --json verify
}
check "instance --snapshot has private drives as of the pause, the memory read-only, and the body of /snapshot/load" warm
cold() {
  expect 0 . ts --json instance web@r1 "$vms/cold"
  cmp "$(revision web@r1)/rootfs.ext4" "$vms/cold/rootfs.ext4"
  [[ ! -e $vms/cold/mem.bin && ! -e $vms/cold/snapshot-load.json ]]
  python3 "$tools/vm.py" is_instance "$vms/cold" "$(revision web@r1)"
}
check "without --snapshot an instance has the drives as published, and no memory" cold
counted() {
  local before after grew
  before=$(du_of fresh apparent) after=$(du_of web apparent)
  grew=$((after - before))
  # The memory, both drives, the state.
  [[ $grew -ge $(((8 + 64 + 16) << 20)) && $grew -le $(((8 + 64 + 16 + 1) << 20)) ]] || die "du has $grew bytes more"
  grew=$(($(du_of web on_disk) - $(du_of fresh on_disk)))
  [[ $grew -ge $((100 * 4096)) && $grew -le $((12 << 20)) ]] || die "du has $grew bytes more on the disk"
}
du_of() { # TEMPLATE FIELD
  ts --json du "$1" | python3 -c '
import json, sys
print(json.load(sys.stdin)["templates"][0]["revisions"][0][sys.argv[1]])' "$2"
}
publish fresh 8
check "du counts it, holes as holes" leaves_no_trace "$store" counted

# --- replaced -----------------------------------------------------------------------------------

check "what two more paused VMs leave" paused first 8 50
check "and the other" paused second 8 60
replaces() {
  python3 "$tools/vm.py" holds "$(snapshot_of web@r1)/mem.bin" "$work/hold" >"$work/held" 2>&1 &
  local holder=$!
  wait_for 10 test -e "$work/hold.ready"
  expect 0 . attach web@r1 first
  attached web@r1 first
  cmp "$small/mem" "$vms/two/mem.bin" || die "a VM's memory was replaced"
  touch "$work/hold"
  wait "$holder" || die "$(cat "$work/held")"
  python3 "$tools/vm.py" is_snapshot "$(revision web@r1)"
  expect 0 . ts gc
  clean "$store"
}
check "a newer snapshot replaces the old one, and who has the old one mapped keeps it" replaces
under_readers() {
  local round reader readers=() warm
  rm -f "$work/stop"
  for reader in 1 2; do
    python3 "$tools/vm.py" reads_snapshots "$(revision web@r1)" first second "$work/stop" >"$work/reader.$reader" 2>&1 &
    readers+=($!)
  done
  for ((round = 1; round <= 12; round++)); do
    if [[ $((round % 2)) == 0 ]]; then expect 0 . attach web@r1 first; else expect 0 . attach web@r1 second; fi
    # Whatever it takes, it takes one of the two as a whole.
    expect 0 . ts instance web@r1 "$vms/round-$round" --snapshot
    python3 "$tools/vm.py" is_warm "$vms/round-$round" "$(revision web@r1)" "$dir/paused/first" "$dir/paused/second"
    rm -rf "${vms:?}/round-$round"
  done &
  local writer=$!
  while kill -0 "$writer" 2>/dev/null; do
    expect 0 . ts --json snapshot show web@r1
    expect 0 . ts instance web@r1 "$vms/meanwhile" --snapshot
    python3 "$tools/vm.py" is_warm "$vms/meanwhile" "$(revision web@r1)" "$dir/paused/first" "$dir/paused/second"
    rm -rf "$vms/meanwhile"
  done
  wait "$writer" || die "the attaching failed"
  touch "$work/stop"
  for reader in "${readers[@]}"; do wait "$reader" || die "$(cat "$work"/reader.*)"; done
  cat "$work"/reader.*
  expect 0 . ts gc
  clean "$store"
}
check "while it is replaced again and again, a reader sees one whole snapshot or the other" under_readers

# --- damage -------------------------------------------------------------------------------------

flip() { # FILE: one byte, which no time or mode tells of
  local time
  time=$(stat -c %Y "$1")
  chmod u+w "$1"
  printf '\377' | dd of="$1" bs=1 seek=3000 conv=notrunc status=none
  chmod 0444 "$1"
  touch -d "@$time" "$1"
}
found_damage() { # FILE
  expect 0 . attach web@r1 first
  expect 0 '"clean": *true' ts --json verify
  flip "$(snapshot_of web@r1)/$1"
  expect 4 "snapshot/$1" ts --json verify
  expect 4 "snapshot/$1" ts verify
}
for name in mem.bin vmstate.bin drives/rootfs drives/scratch; do
  check "a flipped bit in $name is found by verify (exit code 4)" found_damage "$name"
done
lost_file() {
  expect 0 . attach web@r1 first
  chmod u+w "$(snapshot_of web@r1)"
  rm -f "$(snapshot_of web@r1)/mem.bin"
  expect 4 'mem\.bin' ts verify
  expect '1|4|5' . ts instance web@r1 "$vms/lost" --snapshot
  [[ ! -e $vms/lost ]]
}
check "a lost mem.bin is found, and nothing is started from what is left" lost_file
repaired() {
  # What is damaged is offered no more; the revision itself is whole.
  expect '0|4' . ts verify --repair
  expect '0' . ts --json verify
  right web
  expect 0 . ts instance web@r1 "$vms/after-repair"
  expect 0 . attach web@r1 second
  attached web@r1 second
  expect 0 . ts gc
  clean "$store"
}
check "a repair puts the damaged snapshot aside, and the revision is as good as new" repaired
field_repaired() {
  python3 "$tools/vm.py" drop_field "$(revision web@r1)/revision.json"
  expect '0|4' . ts verify --repair
  python3 "$tools/vm.py" is_snapshot "$(revision web@r1)"
  attached web@r1 second
  expect 0 . ts gc
  clean "$store"
}
check "a repair writes the field in revision.json again, of which snapshot.json is the truth" field_repaired

# --- a large memory ---------------------------------------------------------------------------------

used_here() {
  sync -f "$dir"
  echo $(($(stat -f -c '(%b - %f) * %S' "$dir")))
}
publish large 512
note "a memory of 512 MiB, of which $pages pages are not zero"
check "a VMM writes it" paused large 512 "$pages"
used_before=$(used_here)
large() {
  local snapshot
  snapshot=$(revision large@r1)/snapshot
  expect 0 . attach large@r1 large
  cmp "$dir/paused/large/mem" "$snapshot/mem.bin"
  [[ $(stat -c %s "$snapshot/mem.bin") == $((512 << 20)) ]]
  sync -f "$snapshot"
  local taken=$(($(stat -c %b "$snapshot/mem.bin") * 512)) limit=$((pages * 4096 + pages * 32 + 65536))
  [[ $taken -le $limit ]] || die "mem.bin takes $taken bytes; its pages are $((pages * 4096))"
}
check "it takes only its pages that are not zero" large
warm_large() {
  expect 0 . ts --json instance large@r1 "$vms/large-1" --snapshot
  expect 0 . ts --json instance large@r1 "$vms/large-2" --snapshot
  cmp "$vms/large-1/mem.bin" "$dir/paused/large/mem"
  sync -f "$vms"
  [[ $(($(stat -c %b "$vms/large-1/mem.bin") * 512)) -le $((pages * 4128 + 65536)) ]]
}
check "so does that of an instance" warm_large
gives_back() { # what the VMM left goes, in its own time; what the snapshot takes is what df shows
  rm -rf "$dir/paused/large" "$vms/large-1" "$vms/large-2"
  wait_for 30 takes_pages || die "df shows $(grew_by) bytes for $((pages * 4096)) bytes of pages"
}
grew_by() { echo $(($(used_here) - used_before + large_paused)); }
takes_pages() { [[ $(grew_by) -le $((pages * 4096 * 2 + 33554432)) ]]; }
large_paused=$(du -s -B1 "$dir/paused/large" | cut -f1)
if [[ -n ${ACCEPT_ALONE:-} ]]; then
  check "and df shows no more, when what the VMM left has gone" gives_back
else
  skip "what df shows of it: needs ACCEPT_ALONE"
fi
removed() {
  rm -rf "$vms" "$dir/paused"
  expect 0 . ts rm large
  expect 0 . ts gc
  clean "$store"
  [[ ! -e $store/templates/large ]]
  expect 0 . ts rm web
  expect 0 . ts rm fresh
  expect 0 . ts gc
  clean "$store"
  [[ -z $(find "$store/.store/objects" -type f) ]] || die "objects are left"
}
check "a revision goes with its snapshot, and nothing is left of either" removed
rm -rf "$vms" "$store" "$dir/paused"
