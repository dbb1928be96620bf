"""The store beside its peers: `benches/peers.sh` installs what this needs, and runs it."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import chart
import machine
import report
from large import Large
from measure import Place
from peers import GROUPS, PEERS

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


def main():
    # An end by a signal cleans up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds, size = number("ROUNDS", 3), number("SIZE_MIB", 1024)
    peers, absent = wanted()
    root = Path(tempfile.mkdtemp(prefix="template-store-peers."))
    place = Place(root, environment(root))
    loads = [machine.load()]
    try:
        large = Large(place, peers, LOCK)
        large.measure(size, rounds, say)
        loads.append(machine.load())
        large.count_syncs(max(16, size // 16), say)
        groups = list(GROUPS.values())
        words = introduction(place, peers, absent, rounds, size, loads)
    finally:
        place.remove(root)
    CHART.write_text(chart.draw(groups, f"A root file system of {size} MiB: medians of {rounds} rounds"))
    text = report.section(groups, words, CHART.name)
    print(text)
    report.splice(PAGE, text)


def environment(root):
    """What commands see: nothing of the user's configuration."""
    home = root / "home"
    home.mkdir()
    keep = {key: os.environ[key] for key in ("PATH", "CARGO_HOME", "RUSTUP_HOME") if key in os.environ}
    return {**keep, "HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(root), "LC_ALL": "C.UTF-8"}


def introduction(place, peers, absent, rounds, size, loads):
    versions = ", ".join(machine.version(peer, place.env) for peer in peers)
    return " ".join([f"On {machine.describe(place.root)}; load {min(loads):.1f} to {max(loads):.1f}.", versions + ".", *absent]) + "\n"


main()
