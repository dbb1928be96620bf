"""What was measured: groups of rows, of which the first row is ours."""

import statistics
from dataclasses import dataclass, field

# Whether the result of a command survives a power cut when it has returned.
LASTS = "yes"
LOST = "no"
# The contents last, and the name by which they are found may not.
NAME_LOST = "not its name"
LASTS_BY_SYNC = "yes, by `sync -f`"
NOTHING_TO_LAST = ""


@dataclass
class Row:
    peer: str
    shown: str
    lasts: str
    tooks: list = field(default_factory=list)
    syncs: dict | None = None
    # Why there are no numbers.
    failed: str = ""

    def median(self, what):
        """The median of one of the numbers; None if the machine does not tell it."""
        numbers = [getattr(took, what) for took in self.tooks]
        return None if not numbers or None in numbers else statistics.median(numbers)

    def beside(self, other):
        """The ratios of the rounds, sorted: a slow minute of the machine is in both times of its round."""
        return sorted(mine.wall / its.wall for mine, its in zip(self.tooks, other.tooks))


@dataclass
class Group:
    title: str
    # What was done, in a sentence or two.
    about: str
    rows: list = field(default_factory=list)

    def row(self, peer, shown, lasts):
        for row in self.rows:
            if (row.peer, row.shown, row.lasts) == (peer, shown, lasts):
                return row
        self.rows.append(Row(peer, shown, lasts))
        return self.rows[-1]
