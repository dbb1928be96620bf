# Collections of a store with many revisions: what goes is what the dry run says,
# and its bytes are those that df shows.

# A store as large as a site's, on a file system of its own where there is one.
templates=$((revisions < 1000 ? (revisions + 9) / 10 : 100))
each=$((revisions / templates))
[[ $each -ge 8 ]] || die "ACCEPT_REVISIONS must be 80 or more"
if own_disk 1024; then
  store=$disk/store
else
  disk=
  use collect
fi

fill() {
  local number worker pids=()
  for ((number = 1; number <= each; number += 2)); do lock "fill-$number" >/dev/null; done
  ts init --durability none
  for worker in 0 1 2 3; do
    python3 "$tools/fill.py" "$program" "$store" "$dir/locks" "$templates" "$each" "$worker" 4 &
    pids+=($!)
  done
  for worker in "${pids[@]}"; do wait "$worker" || die "a publication failed"; done
  [[ $(find "$store"/templates/*/artifacts -mindepth 1 -maxdepth 1 | wc -l) == $((each * templates)) ]]
}

names() { # FROM TO: the revisions of those numbers in all templates
  local number template
  for ((template = 0; template < templates; template++)); do
    for ((number = $1; number <= $2; number++)); do printf 't%02d@r%04d\n' "$template" "$number"; done
  done | sort
}

# What a revision that stays looks like; the link counts of its files may change.
survivors() { # FROM
  local number
  for ((number = $1; number <= each; number++)); do
    find "$store"/templates/*/artifacts/"$(printf 'r%04d' "$number")" -printf '%p %i %m %u %s %T@\n'
  done | sort
}

used() {
  sync -f "$store"
  df -B1 --output=used "$store" | tail -n 1
}

dry_run() { # KEEP FIRST LAST
  ts --json gc --keep-last "$1" --dry-run >"$work/dry"
  diff <(names "$2" "$3") <(python3 "$tools/look.py" going <"$work/dry") || die "another list goes"
}

bytes_are_those_of_df() {
  local freed planned shown=$((used_before - used_after)) difference bound=exact
  freed=$(python3 "$tools/look.py" at report.freed <"$work/real")
  planned=$(python3 "$tools/look.py" at plan.frees <"$work/dry")
  # Files may share blocks there, and df counts whole trees.
  if [[ $(stat -f -c %T "$store") == btrfs ]]; then bound=at_most; fi
  [[ $(python3 "$tools/look.py" at report.bound <"$work/real") == "$bound" ]] || die "the bytes are not $bound"
  [[ $freed == "$planned" ]] || die "the dry run said $planned bytes, the report $freed, df $shown"
  difference=$((freed > shown ? freed - shown : shown - freed))
  case $(stat -f -c %T "$store") in
    ext2/ext3 | tmpfs) [[ $difference == 0 ]] || die "the report says $freed bytes, df $shown" ;;
    btrfs) ;;
    *) [[ $((difference * 20)) -le $shown ]] || die "the report says $freed bytes, df $shown" ;;
  esac
  [[ $shown -gt 0 ]]
}

goes() { # FIRST LAST: those have gone; of the others, only those before are not there
  diff <(names "$1" "$2") <(python3 "$tools/look.py" removed <"$work/real") || die "the report has another list"
  [[ $(python3 "$tools/look.py" at report.skipped <"$work/real") == "[]" ]]
  diff <(names $(($2 + 1)) "$each") \
    <(cd "$store/templates" && find ./*/artifacts -mindepth 1 -maxdepth 1 | sed 's,^\./\(.*\)/artifacts/,\1@,' | sort) ||
    die "other revisions are there"
}

finds_nothing() { # KEEP
  ts --json gc --keep-last "$1" >"$work/second"
  [[ $(python3 "$tools/look.py" at report <"$work/second" | tr -d ' \n') == *'"removed":[],"skipped":[],"swept":[],"failed":[],"freed":0,'* ]] ||
    die "it found $(python3 "$tools/look.py" at report <"$work/second")"
}

start=$SECONDS
check "$((each * templates)) revisions in $templates templates are published" fill
note "that took $((SECONDS - start)) s"
half=$((each / 2))
# A file that is written back may take a block more than it was thought to.
sync -f "$store"
check "the dry run lets the older half go, and changes nothing" leaves_no_trace "$store" dry_run $((each - half)) 1 "$half"
survivors $((half + 1)) >"$work/survivors"
used_before=$(used)
start=$EPOCHREALTIME
ts --json gc --keep-last $((each - half)) >"$work/real" || note "gc ended with exit code $?"
note "the collection took $(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms"
used_after=$(used)
check "the collection removes exactly that half" goes 1 "$half"
if [[ -n $disk ]]; then
  check "the bytes are those of the dry run, and those that df shows" bytes_are_those_of_df
else
  skip "the bytes against df: needs root or ACCEPT_SMALL"
fi
check "what stays was not touched" diff "$work/survivors" <(survivors $((half + 1)))
check "a second run finds nothing" leaves_no_trace "$store" finds_nothing $((each - half))
check "nothing of the collected is left in objects, keys and trash" leaves_nothing "$store"
check "verify is clean" clean "$store"
check "the digests of what stays are those that b3sum computes" all_right "$store"

rm -rf "$store"
