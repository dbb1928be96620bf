# mvm 0.11 reads our store, and we read and adopt a directory that mvm 0.11 made.

use mvm
build ours mvm -- "$tools/small-image" ours >/dev/null

mvm_reads_us() {
  python3 "$tools/look.py" mvm "$store" ours >"$work/mvm"
  local lock_hash
  lock_hash=$(sha256sum <"$(lock mvm)" | cut -d' ' -f1)
  grep -q " $(printf %s "$lock_hash:minimal:worker" | sha256sum | cut -d' ' -f1)\$" "$work/mvm" ||
    die "the cache key is another: $(cat "$work/mvm")"
}
check "a reader like mvm 0.11 finds the current revision and its files, under its cache key" mvm_reads_us

use mvm-made
mkdir -p "$store"
tar -xf "$here/../fixtures/mvm-0.11-data.tar" -C "$store" --no-same-owner

lists_mvm() {
  expect 0 '"base"' ts --json list
  expect 0 '3c7f1e' ts --json show base
  expect 0 'fc-base\.json' ts --json show base@3c7f1e
  expect 0 '3c7f1e' ts show base
  expect 0 'artifacts/3c7f1e/vmlinux' ts path base vmlinux
}
check "list, show and path understand a directory that mvm 0.11 made" leaves_no_trace "$store" lists_mvm

refuses_to_build() { expect '1|5' adopt build new mvm -- "$tools/small-image" new; }
check "a build into it is refused with the advice to adopt it" leaves_no_trace "$store" refuses_to_build

adopts() {
  local before
  contents() { (cd "$store" && find . -path ./.store -prune -o -type f ! -name activations.jsonl -print0 | sort -z | xargs -0 sha256sum); }
  # A record gets new fields, and what else mvm wrote stays as it is.
  before=$(contents | grep -v revision.json)
  expect 0 'adopted 1 revision of 1 template' "$program" adopt "$store"
  contents | grep -v revision.json | diff <(echo "$before") - || die "bytes were lost"
  all_right "$store"
  expect 0 '"clean": *true' ts --json verify
  leaves_nothing "$store"
}
check "adopted, it has all its bytes, and verify is clean" adopts
