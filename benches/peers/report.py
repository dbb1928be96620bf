"""The tables, and their place in the page."""

import statistics
import textwrap

from rows import LASTS, LOST, NAME_LOST

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"

HEAD = "| | | lasts | time | beside ours | CPU | memory | written | growth | syncs |\n"
RULE = "|---|---|---|--:|--:|--:|--:|--:|--:|---|\n"


INTRODUCTION = """\
What else could keep such files, on the same inputs in one run: a root file system of {size} MiB of which 28 % are
holes, a kernel of a sixteenth of that, and a configuration. Half of each page is noise, half is text; the seed is
fixed. Rounds: {rounds}; in each, everybody takes a turn, and somebody else begins. Each command starts with
everything synced and the inputs in the page cache; what of its store is there is what it left there.

- **lasts** says whether the result survives a power cut when the command has returned: whether files, and the
  directories that have their names, were synced. What was not is measured twice: as it is, which promises less than
  ours and says so in its row, and with a sync of the file system.
- **time** is the median; **beside ours** the median of the ratios of each round to the first row, with the least and
  the largest one.
- **CPU** and **memory** are of all processes of the command; the memory is that of the largest.
- **written** is what the block device got, with a sync after the command; of a device that others use too, also
  theirs. **growth** is what the files take on the disk afterwards (`du`).
- **syncs** were counted by strace in a run of its own, with {small} MiB or 200 entries.

An empty command takes {nothing} here: that is in each time. Some compress, and share parts of files: that costs time,
and shows in what they write. Where a file system clones, `cp`, `template-store` and OSTree copy no blocks: another one
gives other numbers.

{setting}

```sh
TMPDIR=/some/file/system benches/peers.sh
```
"""


def introduction(setting, absent, rounds, size, nothing):
    return INTRODUCTION.format(
        setting=wrapped(" ".join([setting, *absent])),
        rounds=rounds,
        size=size,
        small=max(16, size // 16),
        nothing=seconds(nothing),
    )


def wrapped(words):
    return textwrap.fill(words.strip(), 118, break_on_hyphens=False)


def table(group):
    return HEAD + RULE + "".join(line(row, group.rows[0]) for row in group.rows)


def line(row, ours):
    if row.failed or not row.tooks:
        return f"| {row.peer} | {row.shown} | | failed: {row.failed or 'it did not run'} | | | | | | |\n"
    cells = [
        row.peer,
        row.shown,
        lasting(row, ours),
        seconds(row.median("wall")),
        beside(row, ours),
        seconds(row.median("cpu"), least=0.01),
        size(row.median("memory")),
        size(row.median("written")),
        size(row.median("growth")),
        syncs(row.syncs),
    ]
    return f"| {' | '.join(cells)} |\n"


def lasting(row, ours):
    """A comparison of what lasts with what does not says so."""
    if row.lasts in (LOST, NAME_LOST) and ours.lasts == LASTS:
        return f"**{row.lasts}**; ours does"
    return row.lasts or "–"


def beside(row, ours):
    """The median of the ratios, and the least and the largest one."""
    ratios = row.beside(ours)
    if row is ours or not ratios:
        return "1" if row is ours else "–"
    least, most = ratio(ratios[0]), ratio(ratios[-1])
    return ratio(statistics.median(ratios)) + (f" ({least} – {most})" if len(ratios) > 1 else "")


def ratio(number):
    return f"{number:.2f}" if number < 10 else f"{number:.0f}"


def seconds(time, least=0.0):
    if time < least:
        return f"< {least * 1000:.0f} ms"
    if time < 0.1:
        return f"{time * 1000:.0f} ms"
    return f"{time:.2f} s" if time < 10 else f"{time:.1f} s"


def size(count):
    if count is None:
        return "–"
    for unit, least in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]:
        if abs(count) >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count:.0f}"


def syncs(counts):
    if counts is None:
        return "–"
    return ", ".join(f"{count} {call}" for call, count in sorted(counts.items())) or "0"


def section(groups, introduction, chart):
    text = introduction
    if chart:
        text += f"\n![The times of all, on a logarithmic scale]({chart})\n"
    for group in groups:
        text += f"\n### {group.title}\n\n{wrapped(group.about)}\n\n{table(group)}"
    return text


def splice(page, text):
    """Puts the text between its two markers; all else of the page stays."""
    old = page.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page.name} has no {BEGIN} … {END}: nothing was written to it")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
