# Two users share a store; the kernel lets neither link the other's files, nor remove what is in
# the other's directories.

user=${ACCEPT_USER:-nobody}

as_user() {
  setpriv --reuid="$(id -u "$user")" --regid="$(id -g "$user")" --clear-groups -- "$@"
}

if [[ $(id -u) != 0 ]]; then
  skip "a second user's object: needs root"
elif [[ $(cat /proc/sys/fs/protected_hardlinks) != 1 ]]; then
  skip "a second user's object: fs.protected_hardlinks is not 1"
else
  fill_shared() { # UMASK: root and the user publish three revisions each, in templates of their own and in a common one
    local number
    for number in 1 2 3; do
      (umask "$1" && build of-root "root-$number" --revision "r$number" -- "$tools/little-image" "root $number" common)
      (umask "$1" && as_user "$program" --store "$store" build of-user $(inputs "user-$number") --revision "u$number" -- \
        "$tools/little-image" "user $number" common)
      (umask "$1" && build both "both-$number" --revision "r$number" -- "$tools/little-image" "both $number" common) || true
    done
  }

  use shared-gc
  mkdir -p "$store"
  chgrp "$(id -g "$user")" "$store"
  chmod 2775 "$store"
  (umask 002 && ts init >/dev/null)
  fill_shared 002 >/dev/null
  user_collects() {
    expect 0 'removed 6 revisions' as_user "$program" --store "$store" gc --keep-last 1
    expect 0 '"clean": *true' as_user "$program" --store "$store" --json verify
    clean "$store"
    all_right "$store"
  }
  check "in a store of a group, a user collects what root has published" user_collects
  root_collects() {
    fill_more() { as_user "$program" --store "$store" build of-user $(inputs "user-more") -- "$tools/little-image" more; }
    (umask 002 && fill_more)
    expect 0 'removed 1 revision' ts gc --keep-last 1
    (umask 002 && as_user "$program" --store "$store" build of-user $(inputs "user-yet-more") -- "$tools/little-image" "yet more")
    right of-user
    clean "$store"
  }
  check "root collects what the user has published, and the user goes on" root_collects

  use shared-badly
  mkdir -p "$store"
  chown "$user" "$store"
  as_user "$program" --store "$store" init >/dev/null
  as_user "$program" --store "$store" create of-user --role worker >/dev/null
  fill_shared 022 >/dev/null 2>&1
  user_cannot_collect_all() {
    local before
    before=$(ls -d "$store"/templates/of-root/artifacts/*)
    expect '0|1' . as_user "$program" --store "$store" --json gc --keep-last 1
    python3 "$tools/look.py" at report.removed <"$said_out" >/dev/null || die "there is no report"
    [[ $(python3 "$tools/look.py" removed <"$said_out" | grep -c of-user) == 2 ]] || die "what is the user's stayed"
    [[ $(ls -d "$store"/templates/of-root/artifacts/*) == "$before" ]]
    grep -q 'denied|not permitted' -E "$said_out" || die "it is not said why root's revisions stay"
    all_right "$store"
    expect 0 '"clean": *true' ts --json verify
  }
  check "in a store of the user, what root has published stays whole, is named, and the user's own goes" user_cannot_collect_all
  root_completes() {
    expect 0 . ts gc --keep-last 1
    [[ $(ls "$store"/templates/of-root/artifacts) == r3 ]]
    clean "$store"
    as_user "$program" --store "$store" build of-user $(inputs user-after) -- "$tools/little-image" after
    right of-user
  }
  check "root's collection completes it, and the user can publish" root_completes
  user_repairs() {
    chmod u+w "$store/templates/of-root/artifacts/r3"
    expect '0|4' . as_user "$program" --store "$store" --json verify --repair
    expect 0 '"clean": *true' ts --json verify
    all_right "$store"
  }
  check "a repair by the user leaves root's revisions whole" user_repairs
fi
