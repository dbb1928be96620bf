#!/bin/sh
# The demo's builder: leaves a kernel, a root file system and a Firecracker
# configuration in $OUT, made from files that this machine has. It needs no
# network and no root, and gives the same bytes again for the same machine.
set -eu
: "${OUT:?is set by template-store build}"
PATH=$PATH:/sbin:/usr/sbin
export SOURCE_DATE_EPOCH=1 E2FSPROGS_FAKE_TIME=1 LC_ALL=C TZ=UTC
umask 022

say() { echo "build-image: $*" >&2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree

# --- vmlinux: the newest kernel that may be read, else a stand-in -----------
kernel=
for candidate in $(ls -t /boot/vmlinux-* /boot/vmlinuz-* \
    /usr/lib/modules/*/vmlinuz /lib/modules/*/vmlinuz 2>/dev/null); do
  if [ -r "$candidate" ]; then kernel=$candidate; break; fi
done
if [ -n "$kernel" ]; then
  say "kernel: $kernel"
else
  kernel=$(readlink -f "$(command -v sh)")
  say "NO KERNEL: none that may be read in /boot or /lib/modules;" \
    "vmlinux is a STAND-IN, a copy of $kernel, and does not boot"
fi
cp -L "$kernel" "$OUT/vmlinux"

# --- rootfs.ext4: a shell, its libraries, an init ---------------------------
for dir in bin dev etc proc sys tmp; do mkdir -p "$tree/$dir"; done

add_program() { # copies a program and the libraries it names, at their paths
  cp -L "$1" "$tree/bin/${1##*/}"
  { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$tree${library%/*}"
    cp -L "$library" "$tree$library"
  done
}

if command -v busybox >/dev/null; then
  add_program "$(command -v busybox)"
  for name in sh mount uname; do ln -s busybox "$tree/bin/$name"; done
else
  for name in sh mount uname; do add_program "$(command -v "$name")"; done
fi
if [ -r /etc/os-release ]; then cp -L /etc/os-release "$tree/etc/os-release"; fi
cat >"$tree/init" <<'INIT'
#!/bin/sh
mount -t proc proc /proc
uname -a
exec sh
INIT
chmod 755 "$tree/init"
find "$tree" -exec touch -h -d @1 {} +

if command -v mke2fs >/dev/null; then
  truncate -s 64M "$OUT/rootfs.ext4"
  seed=6d766d74-656d-706c-6174-6573746f7265
  mke2fs -q -t ext4 -U "$seed" -E "hash_seed=$seed,root_owner=0:0" \
    -d "$tree" "$OUT/rootfs.ext4"
  # mke2fs records who copied the files, and when; set that too.
  find "$tree" | sort | while read -r path; do
    inode=${path#"$tree"}
    for value in 'atime @1' 'ctime @1' 'mtime @1' 'crtime @1' 'uid 0' 'gid 0'; do
      echo "set_inode_field ${inode:-/} $value"
    done
  done | debugfs -w -f - "$OUT/rootfs.ext4" >"$work/log" 2>&1 || cat "$work/log" >&2
else
  say "NO mke2fs (package e2fsprogs): rootfs.ext4 is a STAND-IN, a tar file, and does not boot"
  tar -C "$tree" -cf "$OUT/rootfs.ext4" .
fi

# --- fc-base.json: paths relative to the revision ---------------------------
cat >"$OUT/fc-base.json" <<'JSON'
{
  "boot-source": {
    "kernel_image_path": "vmlinux",
    "boot_args": "console=ttyS0 reboot=k panic=1 root=/dev/vda ro init=/init"
  },
  "drives": [
    {
      "drive_id": "rootfs",
      "path_on_host": "rootfs.ext4",
      "is_root_device": true,
      "is_read_only": true
    }
  ],
  "machine-config": {
    "vcpu_count": 2,
    "mem_size_mib": 512
  }
}
JSON
