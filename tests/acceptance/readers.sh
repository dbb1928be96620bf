# Readers run while `current` moves 2,000 times.

use readers
build moving moving-1 -- "$tools/small-image" one >/dev/null
first=$(basename "$(readlink -f "$(current moving)")")
build moving moving-2 -- "$tools/small-image" two >/dev/null
second=$(basename "$(readlink -f "$(current moving)")")

# Through a handle of the program: what one `run` sees is one revision.
run_reader() {
  until [[ -e $work/stop ]]; do
    ts run moving -- sh -c '
      read -r label <"$TEMPLATE_VMLINUX"
      directory=${TEMPLATE_VMLINUX%/*}
      echo "$(basename "$(readlink -f "$directory")") $label"'
    sleep 0.05
  done
}

two_thousand_activations() {
  local i readers=()
  rm -f "$work/stop"
  for i in 1 2; do
    python3 "$tools/reader.py" "$(current moving)" "$work/stop" "$first=one" "$second=two" \
      >"$work/reader.$i" 2>&1 &
    readers+=($!)
  done
  run_reader >"$work/run" 2>&1 &
  readers+=($!)
  for ((i = 0; i < 1000; i++)); do
    ts -q activate moving "$first" >/dev/null || die "activation failed"
    ts -q activate moving "$second" >/dev/null || die "activation failed"
  done
  touch "$work/stop"
  for i in "${readers[@]}"; do
    wait "$i" || die "a reader failed: $(tail -n 3 "$work/reader.1" "$work/reader.2" "$work/run")"
  done
  [[ $(cat "$work/reader.1") -gt 100 ]] || die "only $(cat "$work/reader.1") rounds"
  ! grep -Evx "$first one|$second two" "$work/run" || die "run mixes revisions"
  [[ -s $work/run ]]
}
start=$EPOCHREALTIME
check "no read fails or mixes revisions during 2,000 activations" two_thousand_activations
note "2,000 activations and $(cat "$work/reader.1") + $(cat "$work/reader.2") rounds of reads took" \
  "$(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms"

rolls_back() {
  expect 0 . ts rollback moving
  [[ $(basename "$(readlink -f "$(current moving)")") == "$first" ]]
}
check "rollback leads back to the revision before" rolls_back
