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
#   ACCEPT_TREE    files for the large image, 800 MiB at most (default: /usr/bin)
#   ACCEPT_SMALL   an empty file system of 64 to 512 MiB that may be filled
#                  (default: a tmpfs when run as root, else the check is skipped)
#   ACCEPT_USER    the second user that root lends a store to (default: nobody)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
groups=(demo large one-build readers mvm hostile shared bad-input)

if [[ $# -lt 2 ]]; then
  sed -n '2,19s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi

source "$here/lib.sh"
prepare "$1" "$2"
shift 2

for group in "${@:-${groups[@]}}"; do
  echo "== $group"
  source "$here/$group.sh"
done
summary
