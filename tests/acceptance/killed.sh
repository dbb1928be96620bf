# A collection is killed at any moment: the next one completes it.

use killed-seed
seed=$store

seed_store() {
  local number template
  ts init
  for number in {1..8}; do lock "killed-$number" >/dev/null; done
  for template in {1..6}; do
    for number in {1..8}; do
      # The templates share files and keys; every other revision has a file of its own.
      rm -rf "$work/ready"
      mkdir "$work/ready"
      OUT=$work/ready "$tools/little-image" "killed $number"
      if [[ $((number % 2)) == 0 ]]; then head -c 100000 <(yes "$template $number") >"$work/ready/own"; fi
      ts --quiet publish "t$template" "$work/ready" --revision "r$number" $(inputs "killed-$number")
    done
  done
}
check "a store of 48 revisions with shared files and keys" seed_store
use killed
again() {
  rm -rf "$store"
  cp -a "$seed" "$store"
}
again
start=$EPOCHREALTIME
ts --quiet --json gc --keep-last 1 >/dev/null
whole=$((${EPOCHREALTIME/./} - ${start/./}))
note "a collection takes $((whole / 1000)) ms"

killed_gc() {
  local pid code number round hit=0 part=0 micros left numbers=()
  for ((number = 0; number < kills; number++)); do if mine "$number"; then numbers+=("$number"); fi; done
  # On until a third met it at work: how long it takes differs from one time to the next.
  for ((round = 0; round < ${#numbers[@]} || (hit * 3 < ${#numbers[@]} && round < ${#numbers[@]} * 10); round++)); do
    again
    "$program" --store "$store" --json gc --keep-last 1 >"$work/gc" 2>&1 &
    pid=$!
    # Each in another part of the time that it takes.
    micros=$((whole * (1000 * numbers[round % ${#numbers[@]}] + RANDOM % 1000) / kills / 1000))
    sleep "$(printf '%d.%06d' $((micros / 1000000)) $((micros % 1000000)))"
    kill -9 "$pid" 2>/dev/null || true
    code=0
    wait "$pid" || code=$?
    # It had ended: it takes less time than was thought.
    if [[ $code == 137 ]]; then hit=$((hit + 1)); else whole=$((whole * 9 / 10 + 1)); fi
    left=$(find "$store"/templates/*/artifacts -mindepth 1 -maxdepth 1 | wc -l)
    if [[ $left -gt 6 && $left -lt 48 ]]; then part=$((part + 1)); fi
    whole_revisions || die "killed after $micros us: a revision is not whole"
    expect 0 '"clean": *true' ts --json verify
    expect 0 . ts --json gc --keep-last 1
    [[ $(ls -d "$store"/templates/*/artifacts/*) == "$(echo "$store"/templates/t{1..6}/artifacts/r8 | tr ' ' '\n')" ]] ||
      die "killed after $micros us: other revisions are there"
    clean "$store"
  done
  echo "gc: $hit kills met it at work, of $round; $part with some of the revisions gone" >"$work/killed"
  [[ $((hit * 3)) -ge ${#numbers[@]} ]] || die "less than a third: $(cat "$work/killed")"
}

# What has its name has all its files.
whole_revisions() {
  python3 "$tools/look.py" all_digests "$store" >/dev/null
}
check "killed at any moment: what is there is whole, the next gc removes the rest, and verify is clean" killed_gc
if [[ -e $work/killed ]]; then killed "$work/killed"; fi
check "the digests of what stays are those that b3sum computes" all_right "$store"

# Killed again and again on the way: no collection begins from the start.
killed_on_the_way() {
  local tries pid
  again
  for tries in {1..20}; do
    "$program" --store "$store" gc --keep-last 1 >/dev/null 2>&1 &
    pid=$!
    sleep "0.0$((RANDOM % 90 + 10))"
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" || true
  done
  expect 0 . ts gc --keep-last 1
  clean "$store"
}
check "twenty kills of one store, then a collection: verify is clean" killed_on_the_way

rm -rf "$seed" "$store"

# A builder is killed, and its command with it; what the command had started lives on and
# writes into the draft, by a descriptor and by names.
use orphan
orphan_lives() { [[ -s $work/orphan ]] && ! gone "$(cat "$work/orphan")"; }
builder_dies() {
  local builder
  cat >"$work/left-alone" <<'SH'
#!/bin/sh
"$1/little-image" half
OUT=$OUT setsid sh -c 'exec 9>>"$OUT/rootfs.ext4"; echo $$ >"$1"
  while :; do echo late >&9; for n in 1 2 3; do true >"$OUT/late.$n"; mkdir "$OUT/dir.$n"; done; done' - "$2" >/dev/null 2>&1 &
sleep 60
SH
  chmod +x "$work/left-alone"
  "$program" --store "$store" build web $(inputs orphan) -- "$work/left-alone" "$tools" "$work/orphan" >/dev/null 2>&1 &
  builder=$!
  wait_for 60 orphan_lives || die "the orphan has not begun"
  kill -9 "$builder"
  wait "$builder" 2>/dev/null || true
  orphan_lives || die "nothing lives on"
}
check "a builder is killed, and what its command has started lives on" builder_dies
builds_beside() {
  expect 0 . ts build web $(inputs orphan) -- "$tools/little-image" "orphan"
  expect 0 . ts build other $(inputs orphan-2) -- "$tools/little-image" "orphan 2"
  right web
  right other
}
check "the same key is built at once, and so is another one" builds_beside
collects_beside() {
  # Where the orphan makes files as fast as they are deleted, its draft stays for another time.
  expect '0|1' . ts gc --keep-last 1
  expect 0 '"clean": *true' ts --json verify
  all_right "$store"
  orphan_lives || die "it has ended"
}
check "a collection takes nothing of what was built since, and comes to an end" collects_beside
kill -9 "$(cat "$work/orphan")" 2>/dev/null || true
orphan_gone() {
  wait_for 60 gone "$(cat "$work/orphan")"
  expect 0 . ts gc --keep-last 1
  clean "$store"
}
check "when it has ended, a collection takes the rest" orphan_gone
rm -rf "$store"
