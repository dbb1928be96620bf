"""The store beside its peers: `benches/peers.sh` installs what this needs, and runs it."""

import os
import shutil
import signal
import statistics
import sys
import tempfile
from pathlib import Path

import chart
import machine
import report
from large import Large
from measure import Place
from peers import GROUPS, PEERS
from small import Collections

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs/benchmarks.md"
CHART = REPOSITORY / "docs/benchmarks.svg"
LOCK = REPOSITORY / "examples/demo/flake.lock"


def number(name, default):
    return int(os.environ.get(name, default))


def say(words):
    print(words, file=sys.stderr, flush=True)


def wanted():
    """The peers that are asked for and there, and what is to be said of the others."""
    names = os.environ.get("PEERS", "").split()
    asked = [peer for peer in PEERS if not names or peer.name in names or peer is PEERS[0]]
    there = [peer for peer in asked if shutil.which(peer.program)]
    absent = [f"{peer.name} could not be installed." for peer in asked if peer not in there]
    return there, absent


def measure(place, peers, rounds, size):
    """The groups of all rows."""
    works = os.environ.get("WORKS", "large small").split()
    groups = []
    if "large" in works:
        large = Large(place, peers, LOCK)
        large.measure(size, rounds, say)
        large.count_syncs(max(16, size // 16), say)
        groups += GROUPS.values()
    if "small" in works:
        names = [peer.name for peer in peers] + ["rm"]
        for count, slow in [(number("COUNT", 10_000), False), (number("OSTREE_COUNT", 2_000), True)]:
            collections = Collections(place, names, count, slow)
            collections.measure(rounds, say)
            collections.count_syncs(200, say)
            groups += collections.groups()
    return groups


def main():
    # An end by a signal cleans up too.
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, lambda number, _: sys.exit(128 + number))
    rounds, size = number("ROUNDS", 3), number("SIZE_MIB", 1024)
    peers, absent = wanted()
    place = Place(Path(tempfile.mkdtemp(prefix="template-store-peers.")).resolve())
    try:
        place.env = environment(place.root)
        load = machine.Load()
        groups = measure(place, peers, rounds, size)
        versions = ", ".join(machine.version(peer, place.env) for peer in peers)
        described = machine.describe(place.root)
        setting = f"{described}. The load of the machine, ours included, was {load.range()}. {versions}."
        nothing = statistics.median(place.measure(":", {}, []).wall for _ in range(11))
    finally:
        place.remove(place.root)
    CHART.write_text(chart.draw(groups, f"template-store and its peers: medians of {rounds} rounds"))
    text = report.section(groups, report.introduction(setting, absent, rounds, size, nothing), CHART.name)
    print(text)
    report.splice(PAGE, text)


def environment(root):
    """What commands see: nothing of the user's configuration."""
    home = root / "home"
    home.mkdir()
    names = ["PATH", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_HOME"]
    keep = {name: os.environ[name] for name in names if name in os.environ}
    return {**keep, "HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(root), "LC_ALL": "C.UTF-8"}


main()
