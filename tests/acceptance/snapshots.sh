# Snapshots: a memory image and all that it matches, attached to a revision,
# with memory that takes only what is in it.

use snapshots
vms=$dir/warm
mkdir -p "$vms"
pages=${ACCEPT_PAGES:-2000}

snapshot_of() { echo "$(revision_of "$1")/snapshot"; }

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
  expect 0 . ts create "$1" --role worker --vcpus 2 --mem "$2"
  publish_vm "$1" r1 "snapshot of $1" 64 64
}

ts init >/dev/null
check "a revision to take snapshots of" publish web 8
small=$dir/paused/small
check "what a paused VM leaves" paused "$small" 8 100

# --- one snapshot ------------------------------------------------------------------------

host=(--vcpus 2 --mem-mib 8 --boot-args "console=ttyS0 reboot=k panic=1" --vmm firecracker --vmm-version 1.13.1
  --snapshot-version 8.0.0 --cpu-model "Model One" --cpu-template T2S --host-kernel 6.1.0 --arch x86_64
  --drive-path rootfs=/drives/rootfs --drive-path scratch=/drives/scratch)
attaches() {
  local before
  before=$(python3 "$tools/vm.py" state "$small")
  find "$(revision_of web@r1)" -maxdepth 1 -type f -not -name revision.json -printf '%f %i %m %T@ %s\n' | sort >"$work/revision"
  expect 0 . attach web@r1 small "${host[@]}" --created-at 2026-01-02T03:04:05Z
  attached web@r1 small
  python3 "$tools/vm.py" state "$small" | diff <(echo "$before") - || die "what was attached has changed"
  find "$(revision_of web@r1)" -maxdepth 1 -type f -not -name revision.json -printf '%f %i %m %T@ %s\n' | sort |
    diff "$work/revision" - || die "the revision's own files have changed"
  right web
  expect 0 '"clean": *true' ts --json verify
}
check "a snapshot is attached: every byte of it is there, and the revision is what it was" attaches
says() {
  python3 "$tools/vm.py" is_snapshot "$(revision_of web@r1)"
  python3 "$tools/look.py" mvm "$store" web >/dev/null
  python3 "$tools/vm.py" snapshot_digests "$(snapshot_of web@r1)" >"$work/digests"
  [[ $(wc -l <"$work/digests") == 4 ]]
  (cd "$(snapshot_of web@r1)" && b3sum --no-mmap --check --quiet "$work/digests")
}
check "snapshot.json has its digests, and revision.json the field that mvm 0.11 reads" says

# --- the warm start -----------------------------------------------------------------------------

warm() {
  expect 0 . ts --json instance web@r1 "$vms/one" --snapshot
  python3 "$tools/vm.py" is_warm "$vms/one" "$(revision_of web@r1)"
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
  cmp "$(revision_of web@r1)/rootfs.ext4" "$vms/cold/rootfs.ext4"
  [[ ! -e $vms/cold/mem.bin && ! -e $vms/cold/snapshot-load.json ]]
  python3 "$tools/vm.py" is_instance "$vms/cold" "$(revision_of web@r1)"
}
check "without --snapshot an instance has the drives as published, and no memory" cold

# --- a large memory ---------------------------------------------------------------------------------

size=$((mib / 2))
publish large "$size"
note "a memory of $size MiB, of which $pages pages are not zero"
check "a VMM writes it" paused "$dir/paused/large" "$size" "$pages"
used_before=$(bytes_used)
large() {
  local snapshot
  snapshot=$(revision_of large@r1)/snapshot
  expect 0 . attach large@r1 large
  cmp "$dir/paused/large/mem" "$snapshot/mem.bin"
  [[ $(stat -c %s "$snapshot/mem.bin") == $((size << 20)) ]]
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
  wait_for 120 takes_pages || die "df shows $(grew_by) bytes for $((pages * 4096)) bytes of pages"
}
grew_by() { echo $(($(bytes_used) - used_before + large_paused)); }
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
  expect 0 . ts gc
  clean "$store"
  [[ -z $(find "$store/.store/objects" -type f) ]] || die "objects are left"
}
check "a revision goes with its snapshot, and nothing is left of either" removed
rm -rf "$vms" "$store" "$dir/paused"
