# Commands are killed at any moment: what is seen is all or nothing, and the next one
# clears away the rest.

use interrupted

kill_rounds() { # KIND KILLS POINTS [CALL...]
  python3 "$tools/interrupt.py" "$1" "$program" "$store" "$dir/${store##*/}" "$share" "${@:2}" \
    >"$work/interrupted" 2>&1 || die "$(cat "$work/interrupted")"
}
tells() { killed "$work/interrupted"; }
if ! command -v strace >/dev/null; then
  skip "no strace: kills at each system call"
  points=0
fi

mkdir -p "$dir/interrupted"
published() {
  ts init
  mkdir "$work/image"
  OUT=$work/image "$tools/vm-image" interrupted 32 64
  expect 0 . ts create web --role worker --mem 4
  expect 0 . ts publish other "$work/image" --revision r1 # the same inodes
  expect 0 . ts publish web "$work/image" --revision r1 --move
  cp -a "$store" "$store.seed"
}
check "a store with a revision" published
check "instance, killed at any moment: DEST is whole or not there, the next one sweeps, verify and gc are clean" \
  kill_rounds instance "$kills" 0
tells
if [[ $points != 0 ]]; then
  check "instance, killed at its system calls one after the other: the same" kill_rounds instance 0 "$points"
  tells
  # Who lives is not swept: it is stopped at its first sync, and goes on when the others have ended.
  lives() {
    local slow vms=$dir/interrupted/vms
    mkdir -p "$vms"
    strace -f -qq -o "$work/stopped" -e trace=fsync -e inject=fsync:signal=STOP:when=1 \
      "$program" --store "$store" --quiet instance web@r1 "$vms/slow" &
    slow=$!
    wait_for 60 grep -q "stopped by SIGSTOP" "$work/stopped" || die "it does not come to a sync"
    ls -d "$vms"/.template-store-slow.* >"$work/siblings"
    expect 0 . ts instance web@r1 "$vms/quick"
    expect 0 . ts gc
    ls -d "$vms"/.template-store-slow.* | diff "$work/siblings" - || die "what a living process makes was swept"
    until gone "$slow"; do # each thread stops at a first sync of its own
      kill -CONT "$(child_of "$slow")" 2>/dev/null || true
      sleep 0.02
    done
    wait "$slow" || die "the slow one failed"
    python3 "$tools/vm.py" is_instance "$vms/slow" "$store/templates/web/artifacts/r1"
    expect 0 . ts instance rm "$vms/slow"
    expect 0 . ts instance rm "$vms/quick"
    [[ -z $(ls -A "$vms") ]] || die "left behind: $(ls -A "$vms")"
  }
  child_of() { cut -d' ' -f1 "/proc/$1/task/$1/children"; }
  check "the next one sweeps nothing that a living process makes" lives
fi
two_paused() {
  paused "$dir/interrupted/paused/first" 4 80
  paused "$dir/interrupted/paused/second" 4 80
}
check "what two paused VMs leave" two_paused
check "snapshot attach, killed at any moment: there is the old one, the new one or none, verify and gc are clean" \
  kill_rounds attach "$kills" 0
tells
if [[ $points != 0 ]]; then
  check "snapshot attach, killed at its system calls one after the other: the same" kill_rounds attach 0 "$points"
  tells
fi
chmod -R u+w "$store" "$store.seed" "$dir/interrupted" 2>/dev/null || true
rm -rf "$store" "$store.seed" "$dir/interrupted"

# --- what is done to the store itself --------------------------------------------

if [[ $points != 0 ]]; then
  use killed-at
  mkdir -p "$dir/killed-at/image"
  four_revisions() {
    local number
    ts init
    expect 0 . ts create db --role worker
    for number in 1 2 3 4; do
      # Each has a kernel of its own, and a root file system with every other one.
      build web "killed-at-$number" --revision "r$number" -- \
        "$tools/little-image" "killed at $number" "killed at $((number % 2))"
    done
    OUT=$dir/killed-at/image "$tools/little-image" "killed at 5" "killed at 1"
    cp "$(lock killed-at-4)" "$dir/killed-at/flake.lock"
    cp -a "$store" "$store.seed"
  }
  check "a store of four revisions" four_revisions
  for kind in publish move reuse activate rollback rm rm-current rm-template pin unpin gc repair adopt; do
    check "$kind, killed at its system calls one after the other: what is seen is the old or the new, done again it is done" \
      kill_rounds "$kind" 0 "$points"
    tells
  done
  # A program that swaps `current` by removing it first.
  in_two_steps() {
    printf '#!/bin/sh\nset -e\ncase "$*" in *"activate web r1") cd "$2/templates/web"; rm current; ln -s revisions/r1 current ;;\n*) exec "%s" "$@" ;; esac\n' \
      "$program" >"$work/in-two-steps"
    chmod +x "$work/in-two-steps"
    program=$work/in-two-steps
    if (share=1/1 kill_rounds activate 0 all symlink symlinkat) >"$work/noticed"; then die "it was not noticed"; fi
    grep -q "('web', 'current') is None" "$work/noticed" || die "something else was noticed: $(cat "$work/noticed")"
  }
  check "an activation that takes two steps is noticed" in_two_steps
  chmod -R u+w "$store" "$store.seed" 2>/dev/null || true
  rm -rf "$store" "$store.seed" "$dir/killed-at"
fi
