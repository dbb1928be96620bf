"""The states of the disk that a power cut could leave.

The cut comes after some entry of the log. All before the last flush up to there is on the disk. Of what was written
after it, anything may be: any of the writes, and of a write any of its sectors; so a later write may be there, and
an earlier one not. Of two writes to one sector the later wins when both are there; that only the earlier is there, is
one of the choices.
"""

import random
from dataclasses import dataclass

from disk import FLUSH, FUA


@dataclass(frozen=True)
class State:
    """A cut after the entry `cut`; all before the entry `flushed` lasts. Of the rest what `seed` chooses: None for
    everything, "nothing" for nothing."""

    flushed: int
    cut: int
    seed: object
    kind: str

    def chosen(self, log):
        """The parts of writes that are on the disk beside what lasts."""
        pick = Pick(self.seed)
        for number in range(self.flushed, self.cut + 1):
            sure = log.entries[number].flags & FUA
            share = pick.share_of_write()
            for unit in log.units(number):
                if sure or pick.takes(share):
                    yield unit

    def name(self):
        choice = {None: "all of it", "nothing": "nothing of it"}.get(self.seed, f"seed {self.seed}")
        return f"{self.kind}: cut after entry {self.cut}; all before {self.flushed} is flushed, of the rest {choice}"


class Pick:
    """Chooses among the writes that were not flushed."""

    def __init__(self, seed):
        self.all, self.none = seed is None, seed == "nothing"
        self.random = random.Random(seed)
        self.likely = self.random.choice((0.15, 0.5, 0.85))

    def share_of_write(self):
        """How much of the next write is there: half of them are torn, if they have several sectors."""
        if self.random.random() < 0.3:
            return self.random.random()
        return float(self.random.random() < self.likely)

    def takes(self, share):
        return self.all or not self.none and self.random.random() < share


class Choice:
    """Chooses distinct states. `phase` says what was promised by an entry of the log: two states are the same when
    they have the same bytes on the disk and the same promises."""

    def __init__(self, log, first, last, phase):
        self.log, self.first, self.last, self.phase = log, first, last, phase
        self.seen = set()
        self.states = []

    def add(self, state):
        written = {}
        for at, _, name in state.chosen(self.log):
            written[at] = name
        # A flush writes nothing: the disk is that of the last one after which something was written.
        ground = state.flushed
        while ground and not self.log.entries[ground - 1].size:
            ground -= 1
        key = (ground, frozenset(written.items()), self.phase(state.cut))
        if key in self.seen:
            return
        self.seen.add(key)
        self.states.append(state)

    def flushes(self):
        """The entries after which all before them lasts."""
        return [number for number in range(self.first, self.last + 1) if self.log.entries[number].flags & FLUSH]

    def windows(self):
        """From each flush, and from the start, to the next one: the entries between that write something."""
        ends = self.flushes() + [self.last + 1]
        begins = [self.first] + [end + 1 for end in ends]
        for begin, end in zip(begins, ends):
            if any(self.log.entries[number].size for number in range(begin, end)):
                yield begin, end - 1

    def choose(self, count, seed):
        """The states at each flush and at each promise; then random ones until there are `count`."""
        flushed = self.first
        for cut in range(self.first, self.last + 1):
            if self.log.entries[cut].flags & FLUSH:
                flushed = cut + 1
                self.add(State(flushed, cut, None, "flush"))
            elif cut == self.last or self.phase(cut) != self.phase(cut + 1):
                self.add(State(flushed, cut, "nothing", "promise"))
                self.add(State(flushed, cut, None, "promise"))
        windows = list(self.windows())
        for rounds in range(400):
            for begin, end in windows:
                if rounds and len(self.states) >= count:
                    break
                number = f"{seed}.{rounds}.{begin}"
                cut = end if rounds % 2 else random.Random(number).randint(begin, end)
                self.add(State(begin, cut, number, "subset"))
        return sorted(self.states, key=lambda state: (state.flushed, state.cut))
