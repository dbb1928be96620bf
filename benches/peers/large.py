"""One revision with a large root file system: published, published again, used, copied out, checked."""

from dataclasses import dataclass
from pathlib import Path

import image
from measure import Failed
from peers import GROUPS, PUBLISH
from rows import LASTS_BY_SYNC, LOST, NAME_LOST

COMPARE = 'for file in vmlinux rootfs.ext4 fc-base.json; do cmp "$IN/$file" {}/"$file"; done'


@dataclass
class Inputs:
    files: Path
    # The same files by hard links: nobody knows them by their path.
    again: Path

    @staticmethod
    def make(directory, size_mib):
        inputs = Inputs(directory / "one/artifacts", directory / "two/artifacts")
        inputs.files.parent.mkdir(parents=True)
        image.make(inputs.files, size_mib, max(1, size_mib // 16))
        inputs.again.mkdir(parents=True)
        for file in inputs.files.iterdir():
            (inputs.again / file.name).hardlink_to(file)
        return inputs


class Large:
    def __init__(self, place, peers, lock):
        self.place, self.peers, self.lock = place, peers, lock
        self.store, self.out = place.root / "store", place.root / "out"
        self.names = 0
        # Ours are the first rows, whoever takes the first turn.
        for peer in peers:
            for step, lasts, _ in forms(peer):
                GROUPS[step.work].row(peer.name, step.shown, lasts)

    def measure(self, size_mib, rounds, say):
        inputs = Inputs.make(self.place.root / "inputs", size_mib)
        for number in range(rounds):

            def take(row, step, script, env, first=number == 0):
                row.tooks.append(self.place.measure(script, env, [self.store, self.out]))
                if first and step.result:
                    self.place.run(COMPARE.format(step.result), env)

            self._round(inputs, number, take, lambda name: say(f"round {number + 1} of {rounds}: {name}"))
        self.place.remove(self.place.root / "inputs")

    def count_syncs(self, size_mib, say):
        inputs = Inputs.make(self.place.root / "inputs", size_mib)

        def take(row, _, script, env):
            row.syncs = self.place.count_syncs(script, env)

        self._round(inputs, 0, take, lambda name: say(f"syncs: {name}"))
        self.place.remove(self.place.root / "inputs")

    def _round(self, inputs, number, take, say):
        # Who comes after whom changes from round to round.
        start = number % len(self.peers)
        for peer in self.peers[start:] + self.peers[:start]:
            say(peer.name)
            self._life(peer, inputs, take)
            self._clear()

    def _life(self, peer, inputs, take):
        """All that is done with one peer, from an empty place on."""
        for step, lasts, script in forms(peer):
            row = GROUPS[step.work].row(peer.name, step.shown, lasts)
            if row.failed:
                continue
            self.names += 1
            env = {key: value.format(store=self.store) for key, value in peer.env.items()}
            env |= {"IN": str(inputs.files), "AGAIN": str(inputs.again), "LOCK": str(self.lock)}
            env |= {"STORE": str(self.store), "OUT": str(self.out), "NEW": f"new{self.names}"}
            try:
                if step.work == PUBLISH:
                    self._clear()
                    self.place.run(peer.init, env)
                take(row, step, script, env)
            except Failed as failed:
                row.failed = str(failed)
                if step.work == PUBLISH:
                    return
            self.place.remove(self.out)

    def _clear(self):
        self.place.remove(self.store)
        self.place.remove(self.out)


def forms(peer):
    """Each step; twice, as it is and with a sync, if its result would not last."""
    for step in peer.steps:
        yield step, step.lasts, step.script
        if step.lasts in (LOST, NAME_LOST):
            yield step, LASTS_BY_SYNC, step.script + '\nsync -f "$STORE"'
