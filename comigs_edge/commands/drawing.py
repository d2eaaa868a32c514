"""Charts of a report as inline SVG, coloured by the page's style sheet: curves, bars and shares.

A chart is as wide as a phone, so that its letters are never scaled down much; it says in words (`title`, `desc`) what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from comigs_edge.commands.page import say
from coordinator.web.charts import ticks

WIDTH, HEIGHT = 360, 200  # the drawing's own units; about pixels
LEFT, RIGHT, TOP = 46, 10, 10  # margins
BASELINE = HEIGHT - 26
ROW = 34  # units that a bar takes
LABELS = 8  # below an axis

Points = Sequence[tuple[int, float]]


class Bar(NamedTuple):
    """A number as a bar: of the base, or of the personal model."""

    name: str
    value: float
    said: str
    is_base: bool = False


def curves(title: str, training: Points, validation: Points) -> str:
    """Losses over expert steps: those of training pale, validation with dots."""
    values = [loss for _, loss in (*training, *validation)]
    last = max(1, *(step for step, _ in (*training, *validation)))
    scale = ticks(min(values), max(values))

    def across(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def up(loss: float) -> float:
        return BASELINE - (loss - scale[0]) / (scale[-1] - scale[0]) * (BASELINE - TOP)

    drawn = "".join(_grid(up(tick)) + _beside(up(tick), f"{tick:.4g}") for tick in scale)
    drawn += "".join(_below(across(step), step) for step in ticks(0, last, is_count=True) if step <= last)
    for kind, points in (("line training", training), ("line", validation)):
        path = " ".join(f"{across(step):.1f},{up(loss):.1f}" for step, loss in points)
        drawn += f'<polyline class="{kind}" points="{path}"/>'
    for step, loss in validation:
        said = f"<title>validation, step {step}: {loss:.4f}</title>"
        drawn += f'<circle class="dot" cx="{across(step):.1f}" cy="{up(loss):.1f}" r="3">{said}</circle>'
    (first, before), (end, after) = validation[0], validation[-1]
    return _chart(title, f"Validation loss {before:.4f} at step {first}, {after:.4f} at step {end}.", HEIGHT, drawn)


def bars(title: str, rows: Sequence[Bar]) -> str:
    """One bar below the other, each with its name and what it says above it."""
    most = max((row.value for row in rows), default=0) or 1.0
    drawn = ""
    for number, row in enumerate(rows):
        y, width = number * ROW, max(1.0, row.value / most * WIDTH)
        kind = "bar of-base" if row.is_base else "bar"
        drawn += (
            f'<text class="name" x="0" y="{y + 13}">{say(row.name)}</text>'
            f'<text class="name" x="{WIDTH}" y="{y + 13}" text-anchor="end">{say(row.said)}</text>'
            f'<rect class="{kind}" x="0" y="{y + 18}" width="{width:.1f}" height="9" rx="2"/>'
        )
    return _chart(title, ", ".join(f"{row.name} {row.said}" for row in rows) + ".", ROW * len(rows), drawn)


def stacks(
    title: str, blocks: Sequence[int], shares: Sequence[Sequence[float]], names: Sequence[str], kinds: Sequence[str]
) -> str:
    """A column for each block, its parts the shares of the experts, which have these names and classes."""
    step = (WIDTH - LEFT - RIGHT) / len(blocks)
    drawn = "".join(_beside(BASELINE - share * (BASELINE - TOP), f"{share:.0%}") for share in (0, 0.5, 1))
    every = math.ceil(len(blocks) / LABELS)
    for number, (block, row) in enumerate(zip(blocks, shares, strict=True)):
        x, y = LEFT + number * step, float(BASELINE)
        for name, kind, share in zip(names, kinds, row, strict=True):
            height = share * (BASELINE - TOP)
            y -= height
            box = f'x="{x:.1f}" y="{y:.1f}" width="{step * 0.86:.1f}" height="{height:.1f}"'
            drawn += f'<rect class="{kind}" {box}><title>block {block}, {say(name)}: {share:.1%}</title></rect>'
        if number % every == 0:
            drawn += _below(x + step * 0.43, block)
    means = [sum(column) / len(blocks) for column in zip(*shares, strict=True)]
    words = "Mean of all blocks: " + ", ".join(f"{name}: {mean:.1%}" for name, mean in zip(names, means, strict=True)) + "."
    return _chart(title, words, HEIGHT, drawn)


def _grid(y: float) -> str:
    return f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _beside(y: float, text: str) -> str:
    return f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _below(x: float, number: float) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number:.0f}</text>'


def _chart(title: str, words: str, height: int, inside: str) -> str:
    name = "".join(each for each in title.lower() if each.isalpha())
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{say(title)}</title><desc id="{name}-desc">{say(words)}</desc>{inside}</svg>'
    )
