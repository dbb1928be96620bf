"""Horizontal bars of all times, as SVG."""

import math
from html import escape

from report import seconds
from rows import LASTS_BY_SYNC, LOST, NAME_LOST

OURS = "template-store"
WIDTH, LABELS, RIGHT = 900, 330, 80
BAR, GAP, HEADING, TOP, BOTTOM = 14, 5, 30, 64, 44

ABOUT = "Blue: template-store. Where a result has to survive a power cut, all of these do. Shorter is better."

STYLE = """
  .page { fill: #ffffff } .text { fill: #24292f } .faint { fill: #57606a } .grid { stroke: #d0d7de }
  .ours { fill: #0969da } .peer { fill: #8c959f }
  text { font: 12px system-ui, sans-serif } .title { font-size: 16px; font-weight: 600 } .group { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .faint { fill: #9198a1 } .grid { stroke: #3d444d }
    .ours { fill: #4493f8 } .peer { fill: #768390 }
  }
"""


def draw(groups, title):
    groups = [(group, [row for row in group.rows if row.tooks and drawn(row)]) for group in groups]
    groups = [(group, rows) for group, rows in groups if rows]
    axis = Axis([row.median("wall") for _, rows in groups for row in rows])
    y, body = TOP, []
    for group, rows in groups:
        body.append(text(12, y + 19, group.title, "text group"))
        y += HEADING
        for row in rows:
            body += bar(axis, y, row, row.peer == OURS)
            y += BAR + GAP
    height = y + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        text(12, 26, title, "text title"),
        text(12, 46, ABOUT, "faint"),
        *axis.lines(TOP, y + 4),
        *body,
        text((LABELS + WIDTH - RIGHT) / 2, y + 38, "time, logarithmic", "faint", "middle"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def drawn(row):
    """Only what has the same promise is beside each other."""
    return not row.failed and row.lasts not in (LOST, NAME_LOST)


class Axis:
    """From the power of ten below the least time to the one above the most."""

    def __init__(self, times):
        self.low = math.floor(math.log10(max(min(times), 1e-4)))
        self.high = max(math.ceil(math.log10(max(times))), self.low + 1)

    def at(self, time):
        share = (math.log10(max(time, 1e-4)) - self.low) / (self.high - self.low)
        return LABELS + share * (WIDTH - LABELS - RIGHT)

    def lines(self, top, bottom):
        for power in range(self.low, self.high + 1):
            x = self.at(10**power)
            yield f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>'
            yield text(x, bottom + 15, label(power), "faint", "middle")


def label(power):
    return f"{10**power} s" if power >= 0 else f"{10 ** (power + 3):g} ms"


def bar(axis, y, row, ours):
    time = row.median("wall")
    kind = "ours" if ours else "peer"
    name = f"{row.peer}: {row.shown}" + (" + sync" if row.lasts == LASTS_BY_SYNC else "")
    return [
        text(LABELS - 8, y + 11, name, "text", "end"),
        f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{axis.at(time) - LABELS:.1f}" height="{BAR}" rx="2"/>',
        text(axis.at(time) + 6, y + 11, seconds(time), "text"),
    ]


def text(x, y, words, kind, anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
