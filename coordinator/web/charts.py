"""Two small charts as inline SVG, coloured by the page's style sheet: bars and a line, both over rounds.

A chart is as wide as a phone, so that its letters are never scaled down much; it says in words (`title`, `desc`) what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 180  # the drawing's own units; about pixels
LEFT, RIGHT, TOP = 52, 8, 12  # margins
BASELINE = HEIGHT - 24
MAX_BAR = 26.0
Number = Callable[[float], str]


class Point(NamedTuple):
    """One round: its number, its value (None if missing), and whether it is marked."""

    round: int
    value: float | None
    is_marked: bool = False  # bars: the round is still open; lines: an older generalist was published again
    refused: int = 0  # bars: by so many devices, drawn as a narrow bar


def bars(name: str, title: str, points: Sequence[Point], say: Number, is_count: bool = False) -> str:
    """One bar a round; `say` formats a value, `is_count` keeps the scale to whole numbers."""
    scale = ticks(0.0, max((max(point.value or 0.0, point.refused) for point in points), default=0.0), is_count)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points))
    width = min(MAX_BAR, step * 0.78)
    drawn = []
    for index, point in enumerate(points):
        height = max(1.0 if point.value else 0.0, BASELINE - _y(point.value or 0.0, scale))
        x, y = LEFT + (index + 0.5) * step - width / 2, BASELINE - height
        kind, note = ("bar open", ", still open") if point.is_marked else ("bar", "")
        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{min(2, width / 3):.1f}"'
        drawn.append(
            f'<rect class="{kind}" {box}><title>round {point.round}: {escape(say(point.value or 0.0))}{note}</title></rect>'
        )
        if point.refused:
            top = _y(point.refused, scale)
            box = f'x="{x + width / 3:.1f}" y="{top:.1f}" width="{width / 3:.1f}" height="{BASELINE - top:.1f}"'
            drawn.append(f'<rect class="refused" {box}><title>round {point.round}: refused by {point.refused}</title></rect>')
    refused = sum(point.refused for point in points)
    text = _describe(points, say) + (f" Refused {refused} times." if refused else "")
    return _chart(name, title, text, _axes(points, scale, say, step) + "".join(drawn))


def line(name: str, title: str, points: Sequence[Point], say: Number) -> str:
    """A line through the rounds that have a value; a dashed upright where an older generalist was published again."""
    known = [point.value for point in points if point.value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = (high - low) * 0.08 or max(abs(high) * 0.02, 0.01)
    scale = ticks(low - room, high + room)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points))
    places = [(LEFT + (index + 0.5) * step, point) for index, point in enumerate(points)]
    uprights = "".join(
        f'<line class="turn" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BASELINE}">'
        f"<title>round {point.round}: an older generalist again</title></line>"
        for x, point in places
        if point.is_marked
    )
    seen = [(x, _y(point.value, scale), point) for x, point in places if point.value is not None]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in seen)
    radius = 3.0 if len(seen) <= 30 else 2.0
    dots = "".join(
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>round {point.round}: '
        f"{escape(say(point.value or 0.0))}</title></circle>"
        for x, y, point in seen
    )
    drawn = f'{uprights}<polyline class="line" points="{path}"/>{dots}'
    return _chart(name, title, _describe(points, say), _axes(points, scale, say, step) + drawn)


def _chart(name: str, title: str, text: str, inside: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(text)}</desc>{inside}</svg>'
    )


def _describe(points: Sequence[Point], say: Number) -> str:
    """The chart in words, for screen readers."""
    known = [(point.round, point.value) for point in points if point.value is not None]
    if not known:
        return "No round has a value yet."
    values = [value for _, value in known]
    first, last = known[0], known[-1]
    return (
        f"Round {first[0]}: {say(first[1])}; round {last[0]}: {say(last[1])}; "
        f"lowest {say(min(values))}, highest {say(max(values))}."
    )


def _axes(points: Sequence[Point], scale: Sequence[float], say: Number, step: float) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(tick, scale):.1f}" y2="{_y(tick, scale):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{_y(tick, scale) + 4:.1f}" text-anchor="end">{escape(say(tick))}</text>'
        for tick in scale
    )
    every = max(1, math.ceil(len(points) / 6))
    labels = "".join(
        f'<text class="tick" x="{LEFT + (index + 0.5) * step:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{point.round}</text>'
        for index, point in enumerate(points)
        if (len(points) - 1 - index) % every == 0
    )
    return lines + labels


def ticks(low: float, high: float, is_count: bool = False) -> list[float]:
    """Three to six round numbers, the first not above `low` and the last not below `high`."""
    # Differences in the last bits do not count, and a third of the smallest number is 0.
    span = high - low if high - low > max(1e-12 * max(abs(low), abs(high)), 1e-300) else 1.0
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 4)
    if is_count:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _y(value: float, scale: Sequence[float]) -> float:
    return BASELINE - (value - scale[0]) / (scale[-1] - scale[0]) * (BASELINE - TOP)
