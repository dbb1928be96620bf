# Eight processes publish, build, lease, activate, pin and remove in fifty
# templates, while collections and verifications run all the time.

seconds=${STRESS:-$(if [[ $scale == quick ]]; then echo 4; else echo 15; fi)}
use stress
ts init >/dev/null
for number in {0..7}; do lock "stress-$number" >/dev/null; done
export STRESS_LOCKS=$dir/locks
rm -f "$work/stop"

stressed=()
stress() { # NAME ARGUMENT...: in the background; what it says lands in $work/stress.NAME
  local name=$1
  shift
  python3 "$tools/stress.py" "$@" >"$work/stress.$name" 2>&1 &
  stressed+=("$name:$!")
}

for number in {1..8}; do stress "work-$number" work "$program" "$store" "$work" "$number" 50 "$work/stop"; done
stress gc gc "$program" "$store" "$work/stop"
stress verify verify "$program" "$store" "$work/stop"
stress watch watch "$store" "$work/stop"
sleep "$seconds"
touch "$work/stop"
for one in "${stressed[@]}"; do
  code=0
  wait "${one#*:}" || code=$?
  echo "$code" >"$work/stress.${one%%:*}.code"
done

went_well() { # NAME
  [[ $(cat "$work/stress.$1.code") == 0 ]] || die "$(tail -n 20 "$work/stress.$1")"
  [[ -s $work/stress.$1 ]]
}
for number in {1..8}; do
  check "process $number of eight: each command succeeds, or fails for a reason of its own, and what it holds is whole" \
    went_well "work-$number"
done
note "$(cat "$work"/stress.work-1)"
check "each collection succeeds, and skips only what came into use meanwhile" went_well gc
note "$(cat "$work/stress.gc")"
check "no verification finds anything while they work" went_well verify
note "$(cat "$work/stress.verify")"
check "what is current is whole at every moment" went_well watch
note "$(cat "$work/stress.watch")"

one_is_left() {
  local template name
  for name in $(ts --json pins | python3 -c 'import json, sys; print(*(pin["name"] for pin in json.load(sys.stdin)))'); do
    ts unpin "$name"
  done
  expect 0 . ts gc --keep-last 1
  # The newest, and what is current if it is another.
  for template in "$store"/templates/*; do
    [[ $(ls "$template/artifacts" | wc -l) -le 2 ]] || die "${template##*/} has $(ls "$template/artifacts" | wc -l) revisions"
  done
}
check "the last collection leaves each template what is current and what is newest" one_is_left
check "no draft, trash, lock, note or unused object is left, and verify is clean" clean "$store"
check "the digests are those that b3sum computes" all_right "$store"
