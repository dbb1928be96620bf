#!/usr/bin/env bash
# Checks of the built program from outside: with coreutils, b3sum, strace and
# python3 only, nothing of the crate.
#
#   tests/acceptance/run.sh PROGRAM DIR [GROUP...]
#
# PROGRAM is the built template-store, DIR an empty directory on the file system
# to check on. GROUPs are the names in `groups` below; all of them when none is
# given. Run it as root and as an ordinary user: each sees other checks.
#
# From the environment, all optional:
#   ACCEPT_KERNEL  kernel for the large image (default: the newest in /boot)
#   ACCEPT_TREE    files for the large image (default: /usr/sbin, or /usr/bin at length)
#   ACCEPT_SMALL   an empty file system of 64 to 512 MiB that may be filled, and
#                  that nothing else uses; ext4 made with -m 0
#                  (default: a tmpfs when run as root, else the check is skipped)
#   ACCEPT_USER    the second user that root lends a store to (default: nobody)
#   ACCEPT_SCALE   quick: every command once, in a minute or two (the default); or whole: at
#                  length (the default when PROOF is set)
#   PROOF          all; or k/n: of the kills, only the k-th of n shares is made. Together the
#                  shares make all of them
# In place of the numbers that the scale sets (quick, whole):
#   ACCEPT_REVISIONS  so many in the store that is collected (200, 1000; 10000 need an
#                  ACCEPT_SMALL of 1 GiB)
#   ACCEPT_KILLS   so often a collection, an instance and an attach are killed at any moment (6, 200)
#   ACCEPT_POINTS  at so many of its system calls each command is killed (3, all)
#   ACCEPT_INSTANCES  so many of a large image (4, 40; 12 at most where files can't be cloned)
#   ACCEPT_MIB     the size of a large image in MiB (128, 1024)
#   ACCEPT_ALONE   set when nobody else writes to the file system of DIR: then df
#                  must show what is said of its blocks (default: not checked)
#   WEED           the program of SeaweedFS, a server that speaks S3 (default: `weed` in PATH;
#                  without it, remotes are not checked)
#
# When it is interrupted (Ctrl-C, SIGTERM) it ends what it has started, unmounts, and leaves no
# file outside DIR.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
groups=(demo large one-build mvm shared collect killed damage full instances snapshots interrupted remotes)

if [[ $# -lt 2 ]]; then
  sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if [[ -z ${ACCEPT_TENDED:-} ]]; then
  mkdir -p "$2"
  ACCEPT_TENDED=yes exec python3 "$here/tend.py" "$2" "${BASH_SOURCE[0]}" "$@"
fi

source "$here/lib.sh"
for group in "${@:3}"; do
  [[ " ${groups[*]} " == *" $group "* ]] || die "there is no group $group, but: ${groups[*]}"
done
group=
prepare "$1" "$2"
shift 2

took=()
for group in "${@:-${groups[@]}}"; do
  echo "== $group"
  took+=("$group $SECONDS")
  source "$here/$group.sh"
  took[-1]="$group $((SECONDS - ${took[-1]##* })) s"
done
printf -v took '%s, ' "${took[@]}"
note "${took%, }"
summary
