# A file system without a free block: publications fail cleanly, a collection
# frees, and all goes on.

if ! own_disk 128; then
  disk=
  skip "a full disk: needs root or ACCEPT_SMALL"
elif [[ $(id -u) == 0 && $(findmnt -no FSTYPE -T "$disk") == ext4 ]] &&
  ! tune2fs -l "$(findmnt -no SOURCE -T "$disk")" | grep -q '^Reserved block count: *0$'; then
  # Root would fill those as well, and others see less than nothing.
  disk=
  skip "a full disk: this one keeps blocks for root (mkfs.ext4 -m 0 makes one that does not)"
else
  store=$disk/store
fi

free() { stat -f -c '%a' "$disk"; }

# fill_disk SPARE: to the last block, but for as many; files of one block each take what a large one leaves.
ballast=$disk/ballast
fill_disk() {
  local number
  mkdir -p "$ballast"
  fallocate -l $(($(stat -f -c '%a * %S' "$disk") * 9 / 10)) "$ballast/large" 2>/dev/null || true
  cat /dev/zero >>"$ballast/large" 2>/dev/null || true
  sync -f "$disk"
  # The names need room as well, which is made before.
  for ((number = 0; number < 200; number++)); do : >"$ballast/crumb.$number" || break; done 2>/dev/null
  for ((number = 0; number < 200; number++)); do
    echo crumb >"$ballast/crumb.$number" || break
  done 2>/dev/null
  cat /dev/zero >>"$ballast/large" 2>/dev/null || true
  sync -f "$disk"
  [[ $(free) -le $1 ]] || die "$(free) blocks are free"
}

empty_disk() { rm -rf "$ballast"; }

image() { # NAME: in $dir/full/NAME
  rm -rf "$dir/full/$1"
  mkdir -p "$dir/full/$1"
  OUT=$dir/full/$1 "$tools/little-image" "full $1"
}

reserved() { stat -c %b "$store/.store/reserve" 2>/dev/null || echo 0; }

no_room() { # COMMAND...: it fails for want of space, says so, and leaves nothing behind
  leaves_no_trace "$store" expect 1 'space' "$@"
  right web
}

if [[ -n $disk ]]; then
  ts init >/dev/null
  for number in 1 2 3 4 5 6; do
    image "$number"
    ts --quiet publish web "$dir/full/$number" --revision "r$number" >/dev/null
    ts --quiet publish also "$dir/full/$number" --revision "r$number" >/dev/null
  done
  reserve=$(reserved)
  check "a store sets blocks aside for a full disk" test "$reserve" -gt 0
  # A few blocks on XFS can be had by nobody.
  case $(stat -f -c %T "$disk") in xfs) spare=64 ;; *) spare=0 ;; esac
  image new
  image later
  check "the disk is filled to the last block" fill_disk "$spare"
  no_publication() { no_room ts publish web "$dir/full/new" --revision new; }
  check "a publication fails, says that there is no space, and leaves nothing behind" no_publication
  no_build() { no_room build web full-new -- "$tools/little-image" "full new"; }
  check "so does a build" no_build
  no_template() { leaves_no_trace "$store" expect 1 'space' ts create new --role worker; }
  check "so does a new template" no_template
  looks() {
    expect 0 r6 ts show web
    expect 0 held ts run web -- echo held
    expect 0 '"clean": *true' ts --json verify
    expect 0 'would remove' ts gc --keep-last 1 --dry-run
  }
  check "looking, run and verify work all the same" leaves_no_trace "$store" looks
  check "it is still full" fill_disk "$spare"
  frees() {
    expect 0 'removed 8 revisions' ts gc --keep-last 2
    [[ $(free) -gt 100 ]] || die "only $(free) blocks are free"
    [[ $(find "$store"/templates/*/artifacts -mindepth 1 -maxdepth 1 | wc -l) == 4 ]]
  }
  check "a collection frees where not a single block is free" frees
  check "the blocks for a full disk are set aside again" test "$(reserved)" -gt 0
  publishes() {
    expect 0 published ts publish web "$dir/full/new" --revision new
    right web
    clean "$store"
  }
  check "the publication succeeds now, and verify is clean" publishes

  # rm, too, and pins and activations, which need a block or two.
  ts activate web r6 >/dev/null
  check "the disk is filled to the last block again" fill_disk "$spare"
  rm_frees() {
    expect 0 'removed' ts rm web@r5
    [[ ! -e $store/templates/web/artifacts/r5 ]]
  }
  check "rm removes where not a single block is free" rm_frees
  empty_disk
  works_on() {
    expect 0 . ts gc --keep-last 1
    expect 0 . ts publish web "$dir/full/later"
    clean "$store"
    all_right "$store"
  }
  check "with free blocks all works, and verify is clean" works_on

  chmod -R u+w "$store"
  rm -rf "$store" "$dir/full"
fi
