# What somebody uses or has pinned is not collected, and it is said who.

use leased
for number in 1 2 3 4; do
  build web "leased-$number" --revision "r$number" -- "$tools/little-image" "leased $number" >/dev/null
done

revision() { echo "$store/templates/web/artifacts/$1"; }

# held REVISION: starts a command under `run`, and waits until it runs; $run_pid
# is of `run`, $held_pid of the command.
held() {
  rm -f "$work/held"
  "$program" --store "$store" run "web@$1" -- sh -c 'echo $$ >"$0.new"; mv "$0.new" "$0"; exec sleep 60' \
    "$work/held" >/dev/null 2>&1 &
  run_pid=$!
  wait_for 10 test -e "$work/held" || die "the command did not start"
  held_pid=$(cat "$work/held")
}

kill_and_wait() { # PID
  kill -9 "$1"
  wait "$1" 2>/dev/null || true
  wait_for 5 gone "$1"
}

# collects KEPT GONE: of these revisions
collects() {
  local one
  expect 0 . ts gc --keep-last 1
  for one in $1; do [[ -e $(revision "$one")/revision.json ]] || die "$one is gone: $(cat "$said_out")"; done
  for one in $2; do [[ ! -e $(revision "$one") ]] || die "$one is still there: $(cat "$said_out")"; done
}

names_pid() { # PID REVISION: gc and why name the process, in words and in JSON
  local word="process $1\b"
  expect 0 "kept web@$2: .*$word" ts gc --keep-last 1 --dry-run
  expect 0 "$word" ts why "web@$2" --keep-last 1
  ts --json why "web@$2" --keep-last 1 | python3 -c '
import json, sys
reasons = [reason for reason in json.load(sys.stdin)["reasons"] if reason["reason"] == "leased"]
sys.exit(int(sys.argv[1]) not in [holder["pid"] for holder in reasons[0]["holders"]])' "$1" || die "no pid $1 in JSON"
}

check "before anything is held, nothing keeps three of four" expect 0 'would remove 3 revisions' \
  ts gc --keep-last 1 --dry-run
held r3
check "a revision that run holds stays, although another is current" collects "r3 r4" "r1 r2"
both_are_named() {
  names_pid "$run_pid" r3
  names_pid "$held_pid" r3
}
check "gc and why name the processes of run and of its command" both_are_named
check "the collection itself names the process" expect 0 "kept web@r3: .*process $held_pid\b" ts gc --keep-last 1
check "rm refuses it as well" expect 5 'in use' ts rm web@r3
kill_and_wait "$run_pid"
check "run was killed, the command lives: the revision stays" collects "r3 r4" ""
check "its files are those that were published" all_right "$store"
check "gc and why name the command's process" names_pid "$held_pid" r3
kill -9 "$held_pid"
wait_for 5 gone "$held_pid" || true
check "the command was killed: the next gc removes it" collects "r4" "r3"
check "no note of the dead is left, and verify is clean" clean "$store"

# The command ends by itself, while run lives: the usual end.
build web leased-5 --revision r5 -- "$tools/little-image" "leased 5" >/dev/null
run_ends() {
  expect 0 done ts run web@r4 -- echo done
  collects "r5" "r4"
}
check "a run that has ended holds nothing" run_ends

current_is_used() {
  held r5
  trap 'kill_and_wait "$held_pid"' EXIT
  build web leased-6 --revision r6 -- "$tools/little-image" "leased 6"
  collects "r5 r6" ""
}
check "what was current when run began stays when another becomes current" current_is_used
sleep 0.2
check "and goes when its process has ended" collects "r6" "r5"

# --- pins ----------------------------------------------------------------------

for number in 7 8 9; do
  build web "leased-$number" --revision "r$number" -- "$tools/little-image" "leased $number" >/dev/null
done
in_seconds() { date -u -d "+$1 seconds" +%FT%TZ; }

pins_keep() {
  expect 0 'release' ts pin release web@r7 --reason "shipped to customers"
  collects "r7 r9" "r6 r8"
  expect 0 'pinned as release' ts why web@r7 --keep-last 1
  expect 0 'kept web@r7: pinned as release' ts gc --keep-last 1
  expect 0 'release +web@r7 +for ever +shipped to customers' ts pins
  [[ $(ts --json pins | python3 "$tools/look.py" at 0.reason) == "shipped to customers" ]]
}
check "a pinned revision stays; gc, why and pins say its name and reason" pins_keep
rm_refuses() {
  expect 5 'pinned as release' ts rm web@r7
  expect 5 'pinned as release' ts rm --force web@r7
  expect 5 'pinned as release' ts rm web
}
check "rm refuses what is pinned, with --force too, and its template" leaves_no_trace "$store" rm_refuses
bad_pins() {
  expect 5 'release.*web@r7' ts pin release web@r9
  expect 3 'r100' ts pin other web@r100
  expect 3 'no-such' ts pin other no-such@r1
  expect 3 'no pin other' ts unpin other
  expect 2 'pin' ts pin ../other web@r9
  expect 2 'until' ts pin other web@r9 --until yesterday
}
check "a pin whose name is taken, of nothing, or with a bad name is refused" leaves_no_trace "$store" bad_pins
unpinned() {
  expect 0 . ts unpin release
  expect 0 'nothing is pinned' ts pins
  collects "r9" "r7"
}
check "when it is unpinned, the next gc removes it" unpinned

expires() {
  local until
  build web leased-10 --revision r10 -- "$tools/little-image" "leased 10"
  until=$(in_seconds 4)
  expect 0 "$until" ts pin soon web@r9 --until "$until"
  expect 0 "soon +web@r9 +$until" ts pins
  collects "r9 r10" ""
  expect 0 "pinned as soon until $until" ts why web@r9 --keep-last 1
  until [[ $(date -u +%FT%TZ) > $until ]]; do sleep 0.2; done
  expect 0 'expired' ts pins
  collects "r10" "r9"
}
check "a pin with an end keeps its revision until then, and no longer" expires
expired_is_clean() {
  expect 0 . ts gc --keep-last 1
  expect 0 'nothing is pinned' ts pins
  clean "$store"
}
check "a collection removes the pin that has expired" expired_is_clean
pin_of_current() {
  expect 0 'web@r10' ts pin now web --until 30d
  build web leased-11 --revision r11 -- "$tools/little-image" "leased 11"
  collects "r10 r11" ""
}
check "pin ID keeps what is current at that moment" pin_of_current
torn_pin() {
  build web leased-12 --revision r12 -- "$tools/little-image" "leased 12"
  : >"$store/.store/pins/now.json"
  leaves_no_trace "$store" expect 4 'pins/now\.json' ts gc --keep-last 1
  expect 4 'pins/now\.json' ts verify
  rm "$store/.store/pins/now.json"
  collects "r12" "r10 r11"
}
check "a pin that cannot be read stops a collection until it is gone" torn_pin
check "after all this, verify is clean" clean "$store"
