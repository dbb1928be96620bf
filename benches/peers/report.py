"""The tables, and their place in the page."""

from rows import LASTS, LASTS_BY_SYNC, LOST

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"

HEAD = "| | | lasts | time | beside ours | CPU | memory | written | growth | syncs |\n"
RULE = "|---|---|---|--:|--:|--:|--:|--:|--:|---|\n"


def table(group):
    return HEAD + RULE + "".join(line(row, group.rows[0]) for row in group.rows)


def line(row, ours):
    if row.failed or not row.tooks:
        return f"| {row.peer} | {row.shown} | | failed: {row.failed or 'it did not run'} | | | | | | |\n"
    ratio = f"{row.beside(ours):.2f}" if ours.tooks else "–"
    cells = [
        row.peer,
        row.shown,
        lasting(row, ours),
        seconds(row.median("wall")),
        ratio,
        seconds(row.median("cpu")),
        size(row.median("memory")),
        size(row.median("written")),
        size(row.median("growth")),
        syncs(row.syncs),
    ]
    return f"| {' | '.join(cells)} |\n"


def lasting(row, ours):
    """A comparison of what lasts with what does not says so."""
    if row.lasts == LOST and ours.lasts in (LASTS, LASTS_BY_SYNC):
        return "**no**, and ours does"
    return row.lasts or "–"


def seconds(time):
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
        text += f"\n### {group.title}\n\n{group.about}\n\n{table(group)}"
    return text


def splice(page, text):
    """Puts the text between its two markers; all else of the page stays."""
    old = page.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page.name} has no {BEGIN} … {END}: nothing was written to it")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
