# Builders, disks and neighbours that do what they should not.

use hostile
ts init >/dev/null

late_writer() { # HOW
  local id=late-$1 done=$work/late-$1
  build "$id" "$id" -- "$tools/late-writer" "$1" "$id" "$done"
  [[ ! -e $done ]] || die "the late write came before the publish"
  wait_for 10 test -e "$done" || die "the late writer did not write"
  right "$id"
  [[ $(head -n 1 "$(current "$id")/rootfs.ext4") == "$id" ]] || die "the late write is in the revision"
}
check "a process that still has rootfs.ext4 open for writing changes nothing later" late_writer descriptor
check "a process that still has rootfs.ext4 mapped changes nothing later" late_writer map

outside=$dir/outside
state_of() { stat -c '%n %a %u %Y %h %s %i' "$@"; sha256sum "$@"; }

make_outside() {
  rm -rf "$outside"
  mkdir -p "$outside"
  head -c 300000 /dev/urandom >"$outside/big"
  head -c 3000 /dev/urandom >"$outside/small"
  chmod 0640 "$outside"/*
  touch -d 2001-09-09T01:46:40Z "$outside"/*
  state_of "$outside"/* >"$work/outside"
}

outside_is_the_same() {
  state_of "$outside"/* | diff "$work/outside" - || die "a file outside the draft changed"
}

link_outside() { # ID DRAFT
  OUT=$2 "$tools/small-image" "$1"
  ln -f "$outside/big" "$2/rootfs.ext4"
  ln -f "$outside/small" "$2/notes"
}

hard_linked_draft() {
  make_outside
  export -f link_outside
  export outside tools
  build linked linked -- bash -c 'link_outside linked "$OUT"'
  outside_is_the_same
  right linked
  cmp "$outside/big" "$(current linked)/rootfs.ext4"
  printf LATE | dd of="$outside/big" conv=notrunc status=none
  right linked
}
check "a draft file that is a hard link to a file elsewhere leaves that file alone" hard_linked_draft

publish_hard_links() { # [--move]
  make_outside
  local ready=$dir/ready
  rm -rf "$ready"
  mkdir "$ready"
  link_outside "publish$1" "$ready"
  rm -rf "$work/ready"
  if [[ -z $1 ]]; then
    state_of "$ready"/vmlinux "$ready"/fc-base.json >"$work/ready"
    state_of "$outside"/* >"$work/outside"
  fi
  ts publish "publish$1" "$ready" $1
  if [[ -z $1 ]]; then
    state_of "$ready"/vmlinux "$ready"/fc-base.json | diff "$work/ready" - || die "the source changed"
  fi
  outside_is_the_same
  right "publish$1"
}
check "publish of a directory leaves the directory and its hard links alone" publish_hard_links ""
check "publish --move leaves the other name of a hard link alone" publish_hard_links --move

# flip FILE [MTIME]: changes one byte of a read-only file in place.
flip() {
  chmod u+w "$1"
  printf '\377' | dd of="$1" bs=1 seek=70000 conv=notrunc status=none
  chmod 0444 "$1"
  if [[ -n ${2:-} ]]; then touch -d "@$2" "$1"; fi
  sync "$1"
}

object_of() { # ID
  find "$store/.store/objects" -samefile "$(current "$1")/rootfs.ext4"
}

flipped_object() { # LABEL [MTIME]
  local label=$1
  build "$label-a" "$label-a" -- "$tools/small-image" "$label"
  local object
  object=$(object_of "$label-a")
  [[ -n $object ]] || die "rootfs.ext4 is no object"
  flip "$object" "${2:-}"
  build "$label-b" "$label-b" -- "$tools/small-image" "$label"
  right "$label-b"
}
check "an object flipped on disk is not linked when the same content is published" flipped_object flip
check "nor with its mtime put back" flipped_object flip-mtime 1

heals() { # LABEL ARGUMENT
  build "$1" "$1" -- "$tools/small-image" "$1"
  flip "$(object_of "$1")" 1
  build "$1" "$1" --force -- "$tools/small-image" "$1"
  right "$1"
}
check "build --force heals a revision whose object has rotted" heals heal

heals_by_publish() {
  local ready=$dir/ready-again
  rm -rf "$ready"
  mkdir "$ready"
  OUT=$ready "$tools/small-image" again
  ts publish again "$ready" --revision r1
  flip "$(object_of again)" 1
  expect 0 . ts publish again "$ready" --revision r1
  right again
}
check "the same content published under the same id heals an object that has rotted" heals_by_publish

other_contents() {
  local ready=$dir/ready-other
  rm -rf "$ready"
  mkdir "$ready"
  OUT=$ready "$tools/small-image" other-1
  ts publish other "$ready" --revision r1
  OUT=$ready "$tools/small-image" other-2
  leaves_no_trace "$store" expect 5 'rootfs\.ext4|vmlinux' ts publish other "$ready" --revision r1
  right other
}
check "other contents under the same id are refused, and the differing file is named" other_contents

sealed() { # ID: modes, times and attributes are those of a published revision
  [[ $(stat -L -c %a-%Y "$(current "$1")"/{vmlinux,rootfs.ext4,fc-base.json} | sort -u) == 444-1 ]]
  python3 -c 'import os, sys; assert not os.listxattr(sys.argv[1])' "$(current "$1")/vmlinux"
  right "$1"
}

odd_attributes() {
  build odd odd -- sh -c '
    "$0" odd
    python3 -c "import os; os.setxattr(os.environ[\"OUT\"] + \"/vmlinux\", \"user.note\", b\"1\")"
    chmod 4755 "$OUT/vmlinux"' "$tools/small-image"
  sealed odd
}
check "artifacts lose setuid bits and extended attributes" odd_attributes

odd_modes() {
  build modes modes -- sh -c '
    "$0" modes
    mkdir "$OUT/closed"
    echo file >"$OUT/closed/file"
    chmod 0200 "$OUT/vmlinux"
    chmod 0555 "$OUT/closed"' "$tools/small-image"
  sealed modes
}
check "a builder may leave files that cannot be read and directories that cannot be written" odd_modes

lost_objects() {
  rm -rf "$store/.store/objects" "$store/.store/keys"
  build lost lost -- "$tools/small-image" lost
  expect 0 reused build lost lost -- "$tools/small-image" never
  right lost
  right linked
}
check "a store that lost its objects and keys goes on" lost_objects
