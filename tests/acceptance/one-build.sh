# Sixteen processes ask for one key at once.

use one-build
asks=$work/asks
ts --json init >/dev/null

# ask: sixteen builds of $key at once, until one builds and the others wait for it; their output
# and exit codes land in $asks.
ask() {
  local i options
  options=$(inputs "$key")
  rm -rf "$asks" "$work/count" "$work/count.go"
  mkdir "$asks"
  pids=()
  for i in {0..15}; do
    "$program" --store "$store" --json build "$key" $options -- "$tools/counted-image" "$work/count" "$key" \
      >"$asks/$i.out" 2>"$asks/$i.err" &
    pids+=($!)
  done
  wait_for 60 grep -q started "$work/count" || die "no build started"
  command=$(awk '{ print $2 }' "$work/count")
  builder=$(builder_of "$command")
  wait_for 60 wait_for_it || die "not all wait for process $builder: $(cat "$asks"/*.err)"
}

wait_for_it() { [[ $(grep -l "process $builder\b" "$asks"/*.err | wc -l) == 15 ]]; }

# The process among those of `ask` that the command descends from.
builder_of() {
  local pid=$1
  until [[ " ${pids[*]} " == *" $pid "* ]]; do
    pid=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")
    [[ $pid -gt 1 ]] || die "the command is no child of a build"
  done
  echo "$pid"
}

all_get_one() { # HOW MANY: succeed; the command may go on now
  local i
  touch "$work/count.go"
  : >"$work/revisions"
  for i in "${!pids[@]}"; do
    if wait "${pids[i]}"; then field revision <"$asks/$i.out" >>"$work/revisions"; fi
  done
  [[ $(wc -l <"$work/revisions") == "$1" ]] || die "not $1 succeed: $(cat "$asks"/*.err | sort | uniq -c)"
  [[ $(sort -u "$work/revisions" | wc -l) == 1 ]] || die "revisions: $(sort "$work/revisions" | uniq -c)"
  right "$key"
}

ran() { [[ $(grep -c started "$work/count") == "$1" ]] || die "the command ran other than $1 times: $(cat "$work/count")"; }

sixteen_ask() {
  key=sixteen
  ask
  all_get_one 16
  ran 1
}
check "sixteen processes ask for one key: the command runs once, all get one revision" sixteen_ask

first_builder_dies() {
  key=dies
  ask
  kill -9 "$builder"
  wait_for 60 gone "$command" || die "the command of the killed builder lives"
  all_get_one 15
  ran 2
  ! grep -q "finished $command\$" "$work/count" || die "the first command went on"
}
check "the first builder is killed: its command dies, another takes over, fifteen succeed" first_builder_dies
