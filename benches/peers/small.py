"""Many small entries of three files, to be collected: none of them, and half of them."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import fill
from measure import Failed
from peers import GIT, NIX_ENV
from rows import NOTHING_TO_LAST, Group


@dataclass
class Small:
    name: str
    shown: str
    # Makes a store of so many entries, all of which are kept. Gets the place, the environment, the store, the number.
    make: Callable
    # Collects; finds in its environment the number of entries (COUNT), and half of those of one template (KEEP).
    collect: str
    # How many entries are there.
    entries: Callable
    # Takes from every second entry what keeps it.
    let_go: str = ""
    # What collects nothing, if it is another command; None if there is none.
    nothing: str | None = ""
    env: dict = field(default_factory=dict)
    # Whether each entry takes a process to make.
    slow: bool = False


def shell(script):
    return lambda place, env, _store, _count: place.run(script, env)


def named(pattern, *path, depth=None):
    """Counts what has such a name below the store."""

    def count(store):
        limit = [] if depth is None else ["-mindepth", str(depth), "-maxdepth", str(depth)]
        command = ["find", Path(store, *path), *limit, "-name", pattern]
        return len(subprocess.run(command, check=True, capture_output=True).stdout.splitlines())

    return count


def commits(store):
    command = ["git", f"--git-dir={store}", "cat-file", "--batch-all-objects", "--batch-check"]
    return subprocess.run(command, check=True, capture_output=True).stdout.count(b" commit ")


def cached(store):
    listed = subprocess.run(["cacache-peer", "list", store], check=True, capture_output=True, text=True)
    return int(listed.stdout) // 3


STORES = [
    Small(
        name="template-store",
        shown="gc",
        make=fill.store,
        nothing='template-store gc --store "$STORE/store" --keep-last 1000000000',
        collect='template-store gc --store "$STORE/store" --keep-last "$KEEP"',
        entries=named("revision.json", "store", "templates", depth=4),
    ),
    Small(
        name="rm",
        shown="rm -rf of directories",
        make=fill.directories,
        nothing=None,
        collect='find "$STORE" -name "entry-*[02468]" -prune -exec rm -rf {} +',
        entries=named("entry-*", depth=1),
    ),
    Small(
        name="cacache",
        shown="list, or remove each",
        make=shell('cacache-peer fill "$STORE" "$COUNT"'),
        nothing='cacache-peer list "$STORE"',
        collect='cacache-peer remove "$STORE" "$COUNT"',
        entries=cached,
    ),
    Small(
        name="Nix",
        shown="nix-store --gc, a root for each",
        make=fill.nix_roots,
        let_go='find "$STORE/var/gcroots" -name "entry-*[02468]" -delete',
        collect="nix-store --gc",
        entries=named("*-entry", "store", depth=1),
        env=NIX_ENV,
    ),
    Small(
        name="Nix",
        shown="nix-store --gc, one root for all",
        make=fill.nix_one_root,
        let_go='rm "$STORE/var/gcroots/all"',
        collect="nix-store --gc",
        entries=named("*-entry", "store", depth=1),
        env=NIX_ENV,
    ),
    Small(
        name="git",
        shown="gc --prune=now",
        make=fill.git,
        let_go='git --git-dir="$STORE" for-each-ref --format="delete %(refname)" "refs/heads/entry-*[02468]"'
        ' | git --git-dir="$STORE" update-ref --stdin',
        collect=f'{GIT} --git-dir="$STORE" gc --quiet --prune=now',
        entries=commits,
    ),
    Small(
        name="OSTree",
        shown="prune --refs-only",
        make=fill.ostree,
        let_go='find "$STORE/refs/heads" -name "entry-*[02468]" -delete',
        collect='ostree --repo="$STORE" prune --refs-only',
        entries=named("*.commit", "objects"),
        slow=True,
    ),
    Small(
        name="casync",
        shown="gc",
        make=fill.casync,
        let_go='find "$STORE" -name "entry-*[02468].caidx" -delete',
        collect='casync gc --store="$STORE/a.castr" "$STORE"/*.caidx',
        entries=named("*.cacnk", "a.castr"),
        slow=True,
    ),
]

ABOUT = """
Each entry has a kernel, a root file system and a configuration of a few bytes or KiB. What a power cut brings back of
what went is garbage again, with all of them; the syncs say who writes what before it returns."""
LEFT_OUT = """
Left out: restic and borg, to which each entry would be a process that takes a second."""


class Collections:
    """Stores of the same number of entries."""

    def __init__(self, place, names, count, slow):
        self.place, self.count = place, count
        self.stores = [one for one in STORES if (one.slow == slow or one is STORES[0]) and one.name in names]
        self.path = place.root / "store"
        about = ABOUT + ("" if slow else LEFT_OUT)
        self.nothing = Group(f"Collect {count:,} small entries, of which none goes", about)
        self.half = Group(f"Collect {count:,} small entries, of which half go", "The same entries.")
        for one in self.stores:
            if one.nothing is not None:
                self.nothing.row(one.name, one.shown, NOTHING_TO_LAST)
            self.half.row(one.name, one.shown, NOTHING_TO_LAST)

    def groups(self):
        return [self.nothing, self.half]

    def measure(self, rounds, say):
        def take(row, script, env):
            row.tooks.append(self.place.measure(script, env, [self.path]))

        masters = [self._made(one, self.count, say) for one in self.stores]
        for number in range(rounds):
            start = number % len(self.stores)
            for at in [*range(start, len(self.stores)), *range(start)]:
                one, master = self.stores[at], masters[at]
                if master:
                    say(f"round {number + 1} of {rounds}: {one.name}, {self.count} entries")
                    # A copy in the place where it was made: some stores know where they are.
                    self.place.run('cp -a "$FROM" "$TO"', {"FROM": str(master), "TO": str(self.path)})
                    self._turn(one, self.count, take)
        for master in masters:
            if master:
                self.place.remove(master)

    def count_syncs(self, count, say):
        def take(row, script, env):
            row.syncs = self.place.count_syncs(script, env)

        for one in self.stores:
            say(f"syncs: {one.name}, {count} entries")
            master = self._made(one, count, say)
            if master:
                master.rename(self.path)
                self._turn(one, count, take)

    def _env(self, one, count):
        env = {key: value.format(store=self.path) for key, value in one.env.items()}
        # There are 100 templates in our store.
        return env | {"STORE": str(self.path), "COUNT": str(count), "KEEP": str(count // 200)}

    def _made(self, one, count, say):
        """The store, at a place of its own; None if it could not be made."""
        rows = self._rows(one)
        if any(row.failed for row in rows):
            return None
        say(f"making {count} entries: {one.name}, {one.shown}")
        master = self.place.root / f"made-{self.stores.index(one)}"
        try:
            one.make(self.place, self._env(one, count), self.path, count)
            self._expect(one, count)
            self.path.rename(master)
            return master
        except (Failed, OSError, subprocess.CalledProcessError) as failed:
            for row in rows:
                row.failed = str(failed)
            self.place.remove(self.path)
            return None

    def _rows(self, one):
        rows = [self.half.row(one.name, one.shown, NOTHING_TO_LAST)]
        return rows if one.nothing is None else [self.nothing.row(one.name, one.shown, NOTHING_TO_LAST), *rows]

    def _turn(self, one, count, take):
        env = self._env(one, count)
        *nothing, half = self._rows(one)
        try:
            for row in nothing:
                take(row, one.nothing or one.collect, env)
                self._expect(one, count)
            if one.let_go:
                self.place.run(one.let_go, env)
            take(half, one.collect, env)
            self._expect(one, count // 2)
        except (Failed, subprocess.CalledProcessError) as failed:
            for row in [*nothing, half]:
                row.failed = str(failed)
        self.place.remove(self.path)

    def _expect(self, one, count):
        there = one.entries(self.path)
        if there != count:
            raise Failed(f"{there} entries are there, not {count}")
