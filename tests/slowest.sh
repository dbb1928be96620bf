#!/usr/bin/env bash
# Runs the tests and lists the ten slowest, with their seconds.
#
#   tests/slowest.sh [FILTER...]
#
# The filters are those of the test runner: parts of names, --skip NAME.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

printed=$(mktemp)
trap 'rm -f "$printed"' EXIT
code=0
# The test runner of a stable toolchain takes the option only with this in its environment.
for binary in $(cargo test --no-run --message-format=json |
  python3 -c 'import json, sys
for line in sys.stdin: print(json.loads(line).get("executable") or "")'); do
  # Programs that are built for the tests are listed, too.
  if [[ $binary != */deps/* ]]; then continue; fi
  RUSTC_BOOTSTRAP=1 "$binary" -Z unstable-options --report-time "$@" </dev/null >>"$printed" || code=$?
done
grep -E '^(failures:|test .* FAILED|test result)' "$printed" || true
sed -nE 's/^test ([^ ]+) .*<([0-9.]+)s>$/\2 \1/p' "$printed" | sort -rn | head -n 10 |
  awk '{ printf "%8.1f  %s\n", $1, $2 }'
exit "$code"
