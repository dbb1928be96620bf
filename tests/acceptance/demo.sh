# The README's main job: the demo builds a revision, and the second time reuses it.

demo=$(cd "$here/../../examples/demo" && pwd)
use demo

demo_build() {
  ts build demo --flake-lock "$demo/flake.lock" --profile minimal --role worker \
    -- "$demo/build-image.sh"
}

starts_with() { # FILE OFFSET HEX
  local bytes
  bytes=$(od -An -tx1 -j "$2" -N $((${#3} / 2)) "$1" | tr -d ' \n')
  [[ $bytes == "$3" ]] || { echo "$1 has $bytes at $2"; return 1; }
}

demo_files_are_real() {
  local current
  current=$(current demo)
  [[ -s $current/vmlinux && -s $current/rootfs.ext4 && -s $current/fc-base.json ]]
  starts_with "$current/rootfs.ext4" 1080 53ef
  # A Linux kernel: an EFI or bzImage header, or ELF.
  starts_with "$current/vmlinux" 0 4d5a || starts_with "$current/vmlinux" 514 48647253 ||
    starts_with "$current/vmlinux" 0 7f454c46
}

check "the demo publishes a revision" expect 0 demo demo_build
check "current resolves to a kernel and an ext4 file system" demo_files_are_real
check "the digests are those that b3sum computes" right demo
check "run again, the demo says that it reused the revision" expect 0 reused demo_build
check "a builder that runs again makes the same bytes (--check)" \
  expect 0 . ts build demo --check --flake-lock "$demo/flake.lock" --profile minimal --role worker \
  -- "$demo/build-image.sh"
