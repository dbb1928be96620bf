# A real kernel and a large root file system: built once, and once on the disk.

use large

kernel=${ACCEPT_KERNEL:-}
if [[ -z $kernel ]]; then
  for kernel in $(ls -t /boot/vmlinuz-* 2>/dev/null) "$(readlink -f /bin/bash)"; do
    if [[ -r $kernel ]]; then break; fi
  done
  note "ACCEPT_KERNEL is not set: the kernel is $kernel"
fi
tree=${ACCEPT_TREE:-$(if [[ $scale == quick ]]; then echo /usr/sbin; else echo /usr/bin; fi)}

large_build() { # ID [ARGUMENT...]
  local id=$1
  shift
  build "$id" large "$@" -- "$tools/large-image" "$kernel" "$tree" "$mib" "$work/blocks"
}

holes_are_kept() {
  local name built kept
  while read -r name built; do
    name=${name##*/}
    kept=$(stat -L -c %b "$(current large-a)/$name")
    [[ $kept -le $((built + built / 100 + 64)) ]] || die "$name: built $built blocks, kept $kept"
  done <"$work/blocks"
  [[ $(stat -L -c %s "$(current large-a)/rootfs.ext4") == $((mib << 20)) ]]
  [[ $kept -lt $(((mib << 11) * 95 / 100)) ]] || die "$kept blocks of $((mib << 11)) leave no holes"
}

disk_use() {
  sync -f "$store"
  echo $(($(stat -f -c '(%b - %f) * %S' "$store")))
}

reads_no_image_data() { # TRACE: of strace -y
  local calls='^[0-9]+ +[a-z0-9_]+\([^"]*<[^>]*/(vmlinux|rootfs\.ext4|objects/[^>]*)>'
  [[ -s $1 ]] || die "strace recorded nothing"
  if grep -E "$calls|io_uring" "$1"; then die "image data was read"; fi
}

check "an image of $tree, of $mib MiB, is published" expect 0 . large_build large-a
check "the holes of the image are kept" holes_are_kept
check "the digests of the large files are those that b3sum computes" right large-a

du_before=$(du -s --block-size=1 "$store" | cut -f1)
df_before=$(disk_use)
start=$EPOCHREALTIME
if command -v strace >/dev/null; then
  reuse=(strace -f -y -o "$work/trace" -e
    "trace=read,readv,pread64,preadv,preadv2,copy_file_range,sendfile,splice,mmap,ioctl,io_uring_setup")
else
  reuse=()
fi
large_reuse() {
  "${reuse[@]}" "$program" --store "$store" build large-b $(inputs large) --vcpus 4 --mem 1024 \
    -- "$tools/large-image" "$kernel" "$tree" "$mib" "$work/never"
}
check "another template with the same inputs reuses the revision" expect 0 reused large_reuse
note "that took $(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms"
du_grew=$(($(du -s --block-size=1 "$store" | cut -f1) - du_before))
df_grew=$(($(disk_use) - df_before))

if [[ ${#reuse[@]} -gt 0 ]]; then
  check "reuse reads no data of the kernel and the image" reads_no_image_data "$work/trace"
else
  skip "no strace: what a reuse reads was not checked"
fi

no_new_blocks() {
  [[ $du_grew -lt 262144 ]] || die "du grew by $du_grew bytes"
  [[ $df_grew -lt 4194304 ]] || die "the file system grew by $df_grew bytes"
}
check "reuse takes no new blocks for them" no_new_blocks

one_inode() {
  local name
  for name in vmlinux rootfs.ext4; do
    [[ $(stat -L -c %i "$(current large-a)/$name") == $(stat -L -c %i "$(current large-b)/$name") ]] ||
      die "$name has two inodes"
    [[ $(find "$store/.store/objects" -samefile "$(current large-a)/$name" | wc -l) == 1 ]] ||
      die "$name is no object"
  done
}
check "both templates have the files as one inode, which is an object" one_inode

builder_did_not_run() { [[ ! -e $work/never ]]; }
check "the builder did not run for it" builder_did_not_run

own_machine_config() {
  field vcpu_count <"$(current large-b)/fc-base.json" | grep -qx 4
  field mem_size_mib <"$(current large-b)/fc-base.json" | grep -qx 1024
  field vcpu_count <"$(current large-a)/fc-base.json" | grep -qx 2
  right large-b
}
check "its fc-base.json has its own machine-config" own_machine_config

rm -rf "$store"
