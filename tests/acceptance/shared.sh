# Two users share a store; the kernel lets neither link the other's files.

use shared
user=${ACCEPT_USER:-nobody}

as_user() {
  setpriv --reuid="$(id -u "$user")" --regid="$(id -g "$user")" --clear-groups -- "$@"
}

# by WHO ID LOCK LABEL: a build as root or as the user, in a group-writable store.
by() {
  local run=()
  if [[ $1 == user ]]; then run=(as_user); fi
  (umask 002 && "${run[@]}" "$program" --store "$store" build "$2" $(inputs "$3") -- \
    "$tools/small-image" "$4")
}

state_of_file() { stat -c '%a %u %g %Y %s %i' "$1"; sha256sum <"$1"; }

second_users_object() { # FIRST SECOND
  local first=$1 second=$2 before file
  by "$first" "of-$first" "of-$first" "by-$first"
  file=$(readlink -f "$(current "of-$first")")/rootfs.ext4
  before=$(state_of_file "$file")
  by "$second" "after-$first" "after-$first" "by-$first"
  right "of-$first"
  right "after-$first"
  [[ $(state_of_file "$file") == "$before" ]] || die "the file of $first changed"
}

if [[ $(id -u) != 0 ]]; then
  skip "a second user's object: needs root"
elif [[ $(cat /proc/sys/fs/protected_hardlinks) != 1 ]]; then
  skip "a second user's object: fs.protected_hardlinks is not 1"
else
  mkdir -p "$store"
  chgrp "$(id -g "$user")" "$store"
  chmod 2775 "$store"
  (umask 002 && ts init >/dev/null)
  find "$store" -exec chgrp "$(id -g "$user")" {} +
  find "$store" -type d -exec chmod g+rwxs {} +
  check "a user publishes what root has published" second_users_object root user
  check "root publishes what a user has published" second_users_object user root
fi
