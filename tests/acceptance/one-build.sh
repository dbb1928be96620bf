# Sixteen processes ask for one key at once.

use one-build
asks=$work/asks
ts --json init >/dev/null

# ask N ID BUILDER...: N builds at once; their output and exit codes land in $asks.
ask() {
  local n=$1 id=$2 i options
  shift 2
  options=$(inputs "$id")
  rm -rf "$asks"
  mkdir "$asks"
  pids=()
  for ((i = 0; i < n; i++)); do
    "$program" --store "$store" --json build "$id" $options -- "$@" \
      >"$asks/$i.out" 2>"$asks/$i.err" &
    pids+=($!)
  done
}

finish() {
  local i code
  for i in "${!pids[@]}"; do
    code=0
    wait "${pids[$i]}" || code=$?
    echo "$code" >"$asks/$i.code"
  done
}

count() { grep -c "$1" "$work/count" || true; }
codes() { cat "$asks"/*.code | sort | uniq -c | tr -s ' \n' ' '; }

all_the_same_revision() { # HOW MANY
  local i revisions
  for i in "${!pids[@]}"; do
    if [[ $(cat "$asks/$i.code") == 0 ]]; then field revision <"$asks/$i.out"; fi
  done >"$work/revisions"
  revisions=$(sort "$work/revisions" | uniq -c)
  [[ $(wc -l <"$work/revisions") == "$1" ]] || die "exit codes:$(codes) $(cat "$asks"/*.err | sort | uniq -c)"
  [[ $(sort -u "$work/revisions" | wc -l) == 1 ]] || die "revisions: $revisions"
}

sixteen_ask() {
  rm -f "$work/count"
  ask 16 sixteen "$tools/counted-image" "$work/count" sixteen
  finish
  all_the_same_revision 16
  [[ $(count started) == 1 ]] || die "the command ran $(count started) times"
  right sixteen
}
check "sixteen processes ask for one key: the command runs once, all get one revision" sixteen_ask

# The process among those of `ask` that the command descends from.
builder_of() {
  local pid=$1
  until [[ " ${pids[*]} " == *" $pid "* ]]; do
    pid=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")
    [[ $pid -gt 1 ]] || die "the command is no child of a build"
  done
  echo "$pid"
}

first_builder_dies() {
  local command killed
  rm -f "$work/count"
  ask 16 dies "$tools/counted-image" "$work/count" dies
  wait_for 10 grep -q started "$work/count" || die "no build started"
  sleep 0.5
  command=$(awk '{ print $2 }' "$work/count")
  killed=$(builder_of "$command")
  kill -9 "$killed"
  wait_for 1 gone "$command" || die "the command of the killed builder lives"
  finish
  all_the_same_revision 15
  [[ $(count started) == 2 ]] || die "the command ran $(count started) times"
  ! grep -q "finished $command\$" "$work/count" || die "the first command went on"
  right dies
}
check "the first builder is killed: its command dies, another takes over, fifteen succeed" first_builder_dies

failing_command() {
  local i
  rm -f "$work/count"
  ask 16 fails "$tools/counted-failure" "$work/count"
  finish
  for i in "${!pids[@]}"; do
    [[ $(cat "$asks/$i.code") == 1 ]] || die "exit codes:$(codes)"
    grep -Eq '\b7\b' "$asks/$i.err" "$asks/$i.out" || die "no word of exit code 7: $(cat "$asks/$i.err")"
  done
  [[ $(count started) == 1 ]] || die "the command ran $(count started) times"
  [[ ! -e $store/templates/fails/current ]]
}
check "the command fails: it ran once, and all sixteen fail with its error" failing_command

build_succeeds_after_failure() {
  expect 0 . build fails fails -- "$tools/small-image" fails
  right fails
}
check "the key of a failed build can be built afterwards" build_succeeds_after_failure

several_templates() {
  local i options
  options=$(inputs several)
  rm -f "$work/count"
  rm -rf "$asks"
  mkdir "$asks"
  pids=()
  for i in 0 1 2 3 4 5 6 7; do
    "$program" --store "$store" --json build "several-$i" $options -- \
      "$tools/counted-image" "$work/count" several >"$asks/$i.out" 2>"$asks/$i.err" &
    pids+=($!)
  done
  finish
  [[ $(codes) == " 8 0 " ]] || die "exit codes:$(codes) $(cat "$asks"/*.err)"
  [[ $(count started) == 1 ]] || die "the command ran $(count started) times"
  for i in 0 1 2 3 4 5 6 7; do right "several-$i"; done
  [[ $(stat -c %i "$store"/templates/several-*/current/rootfs.ext4 | sort -u | wc -l) == 1 ]] ||
    die "they have several inodes"
}
check "eight templates ask for one key: the command runs once, all share its files" several_templates
