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
((${#benches[@]})) || benches=(image store collect instance)

# --- what it ran on ----------------------------------------------------------

machine() {
  local cpu memory place system
  cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
  memory=$(awk '/^MemTotal:/ { print int($2 / 1048576 + 0.5) }' /proc/meminfo)
  place=${TMPDIR:-/tmp}
  system=$(df --output=fstype "$place" | tail -n 1)
  if df --output=source "$place" | grep -q /dev/loop; then system+=' on a loop device'; fi
  printf '%s × %s, %s GiB of memory, Linux %s, %s, load %s.\n' \
    "$(nproc)" "$cpu" "$memory" "$(uname -r)" "$system" "$(cut -d ' ' -f 1 /proc/loadavg)"
}

# The table of a benchmark: from the first line that is none of criterion's. The
# place of the temporary directory is nobody's business.
table() {
  sed -n '/^\(The store beside\|A root file system\|Stores of small\|[0-9][0-9]* instances of\)/,$p' |
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
