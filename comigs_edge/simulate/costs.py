"""What a result costs: quality under a budget, and the cost of a quality (the protocols of EdgeFlowerTune, arXiv:2605.08636).

Quality is the validation loss (nats a token, mean over devices and seeds) where each round takes it; in between it is read off a
straight line. Costs are those of the whole fleet, one seed: tokens computed (router steps count), bytes moved, seconds.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise

from comigs_edge.simulate.report import Result, by_method

SHARES = (0.5, 0.75, 1.0)  # of the tokens of the method that computes fewest: the budgets of the table


@dataclass(frozen=True)
class Point:
    """Where a method stands after a round: what was spent until then, and the loss."""

    tokens: float
    bytes: float
    seconds: float
    loss: float


def points(results: list[Result]) -> dict[str, list[Point]]:
    """Method -> a point for each round whose validation loss is known."""
    found = {}
    for method, runs in by_method(results).items():
        records = [record for run in runs for record in run["records"]]
        rounds = sorted({record["round"] for record in records if record["validation_loss"] is not None})
        found[method] = [_point([r for r in records if r["round"] <= number], number, len(runs)) for number in rounds]
    return {method: each for method, each in found.items() if each}


def target(curves: dict[str, list[Point]]) -> float:
    """The lowest loss that every method reached."""
    return max(min(point.loss for point in curve) for curve in curves.values())


def at_tokens(curve: list[Point], tokens: float) -> float | None:
    """The loss when so many tokens had been computed; None before the first round ended."""
    for before, after in pairwise(curve):
        if before.tokens <= tokens <= after.tokens:
            return _between(before, after, (tokens - before.tokens) / (after.tokens - before.tokens)).loss
    return curve[0].loss if tokens == curve[0].tokens else None


def reached(curve: list[Point], loss: float) -> Point | None:
    """What had been spent when the loss first was so low; the first round is not divided. None if it never was."""
    if curve[0].loss <= loss:
        return curve[0]
    for before, after in pairwise(curve):
        if after.loss <= loss:
            return _between(before, after, (before.loss - loss) / (before.loss - after.loss))
    return None


def markdown(results: list[Result]) -> str:
    """Both tables."""
    curves = points(results)
    if not curves:
        return ""
    goal, least = target(curves), min(curve[-1].tokens for curve in curves.values())
    budgets = [share * least for share in SHARES]
    lines = [
        "", "Validation loss (nats a token) when the fleet had computed so many tokens, and what it had spent when the loss was",
        f"{goal:.3f}, the lowest that every method reached. Between rounds a straight line is taken. Routers have learned from",
        "validation text, so the test text above is the better judge of a result; this is about its cost.", "",
        f"| method | {' | '.join(f'{budget:,.0f}' for budget in budgets)} | tokens to {goal:.3f} | moved | seconds |",
        "|---|" + "---|" * (len(budgets) + 3),
    ]  # fmt: skip
    for method, curve in curves.items():
        losses = [at_tokens(curve, budget) for budget in budgets]
        spent = reached(curve, goal)
        assert spent is not None
        cells = ["" if loss is None else f"{loss:.3f}" for loss in losses]
        cells += [f"{spent.tokens:,.0f}", f"{spent.bytes / 1e6:,.1f} MB", f"{spent.seconds:,.0f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_json(results: list[Result]) -> dict[str, list[dict[str, float]]]:
    """The points of every method as objects."""
    return {method: [asdict(point) for point in curve] for method, curve in points(results).items()}


def _point(records: list[Result], number: int, runs: int) -> Point:
    spent = [sum(record[key] for record in records) / runs for key in ("tokens", "seconds")]
    moved = sum(record["bytes_sent"] + record["bytes_received"] for record in records) / runs
    losses = [r["validation_loss"] for r in records if r["round"] == number and r["validation_loss"] is not None]
    return Point(spent[0], moved, spent[1], statistics.mean(losses))


def _between(before: Point, after: Point, share: float) -> Point:
    return Point(*(a + share * (b - a) for a, b in zip(astuple(before), astuple(after), strict=True)))
