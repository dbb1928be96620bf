#!/usr/bin/env bash
# Writes the tables of `cargo bench` into docs/benchmarks.md: the store beside
# plain system calls and tools, on the file system of $TMPDIR.
#
#   TMPDIR=/some/file/system benches/floor.sh
#
# With arguments it runs those benchmarks only, and leaves the other tables as
# they are: `benches/floor.sh image store`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

page=docs/benchmarks.md
benches=("$@")
((${#benches[@]})) || benches=(image store collect instance remote)

# --- what it ran on ----------------------------------------------------------

machine() {
  PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=benches/peers python3 -c '
import os, pathlib, sys, machine
print(f"{machine.describe(pathlib.Path(sys.argv[1]).resolve())}, load {os.getloadavg()[0]:.1f}.")
' "${TMPDIR:-/tmp}"
}

# The table of a benchmark: from the first line that is none of criterion's. The
# place of the temporary directory is nobody's business.
table() {
  sed -n '/^\(The store beside\|A root file system\|Stores of small\|An image of\|[0-9][0-9]* instances of\)/,$p' |
    sed -E 's|,? in /[^ ,]+/template-store-bench-[A-Za-z0-9]+||; s/[[:space:]]+$//'
}

# replace NAME: puts standard input between the marks of that name on the page.
replace() {
  local new
  new=$(mktemp)
  {
    sed "/<!-- $1:begin -->/q" "$page"
    cat
    sed -n "/<!-- $1:end -->/,\$p" "$page"
  } >"$new"
  cat "$new" >"$page"
  rm "$new"
}

for bench in "${benches[@]}"; do
  grep -q "<!-- $bench:begin -->" "$page" || { echo "there is no benchmark $bench on $page" >&2; exit 2; }
  # A benchmark that fails leaves the page as it is.
  rows=$(cargo bench --bench "$bench" 2>/dev/null | tee /dev/stderr | table)
  printf '\n%s\n\n```text\n%s\n```\n\n' "$(machine)" "$rows" | replace "$bench"
done
