# A directory of a store that was swapped for a link: verify names it, a repair puts it right, and
# nothing behind it is touched, by whatever command.

use damage-seed
seed=$store
seed_store() {
  local number
  for number in 1 2 3; do
    build web "damage-$number" -- "$tools/little-image" "web $number"
    build named "damage-named-$number" --revision "r$number" -- "$tools/little-image" "named $number" "common"
  done
}
check "a store of six revisions" seed_store
web=$(basename "$(readlink -f "$(current web)")")

# The other tree has the paths of a store, so that who follows a link finds what it looks for.
outside=$dir/outside-damage
rm -rf "$outside"
cp -a "$seed" "$outside"
echo "not yours" >"$outside/file"
state_of_outside() { find "$outside" -printf '%p %i %y %m %u %n %s %T@ %C@ %l\n' | sort; }
state_of_outside >"$work/outside"
outside_is_the_same() { # AFTER WHAT
  state_of_outside | diff "$work/outside" - || die "something outside the store was touched by $1"
}

use damage
adds() { # ID
  rm -rf "$store.ready"
  mkdir "$store.ready"
  OUT=$store.ready "$tools/little-image" added
  ts publish "$1" "$store.ready"
}

swapped() { # PATH
  swap() {
    rm -rf "$store" "$work/swapped"
    cp -a "$seed" "$store"
    mv "$store/$1" "$work/swapped"
    ln -s "$outside/$1" "$store/$1"
  }
  swap "$1"
  leaves_no_trace "$store" expect 4 '"clean": *false' ts --json verify
  python3 "$tools/look.py" finds swapped "$1" <"$said_out"
  outside_is_the_same verify
  # Whatever a collection and removals make of it, they stay inside.
  expect '0|1|4|5' . ts gc --keep-last 1
  expect '0|1|3|4|5' . ts rm "web@$web" --force
  expect '0|1|3|4|5' . ts rm named@r1
  expect '0|1|3|4|5' . ts rm web --force
  expect '0|1|4|5' . ts gc --keep-last 0
  outside_is_the_same "gc or rm"
  swap "$1"
  expect '0|1|4|5' . adds web
  outside_is_the_same "a publication"
  swap "$1"
  # What is left to be done by people is at most a template without a revision.
  expect "$2" . ts verify --repair
  outside_is_the_same "a repair"
  [[ ! -L $store/$1 ]] || die "the link is still there"
  adds web
  expect 0 . ts gc --keep-last 1
  expect 0 '"clean": *true' ts --json verify
  all_right "$store"
  outside_is_the_same "a collection"
}

for path in "templates/web/artifacts/$web" templates/web/artifacts templates/web; do
  check "$path swapped for a link to its like in another store" swapped "$path" 4
done
shard() { (cd "$seed" && find ".store/$1" -mindepth 1 -maxdepth 1 | sort | head -n 1); }
for path in .store/{objects,keys,trash,drafts,pins,leases,locks} "$(shard objects)" "$(shard keys)"; do
  check "$path swapped for a link to its like in another store" swapped "$path" 0
done
chmod -R u+w "$store" "$seed" "$outside"
rm -rf "$store" "$store.ready" "$seed" "$outside"
