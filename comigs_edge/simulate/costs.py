"""What a result costs: quality under a budget, and the cost of a quality (the protocols of EdgeFlowerTune, arXiv:2605.08636).

Quality is the validation loss (nats a token, mean over devices and seeds) where each round takes it; in between it is read off a
straight line. Costs are those of the whole fleet, one seed: tokens computed (router steps count), bytes moved, seconds.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from itertools import pairwise

from comigs_edge.simulate.report import Result, by_method, curves

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
    runs = by_method(results)
    by_name = {
        method: [_point(runs[method], number, loss) for number, loss in losses.items()]
        for method, losses in curves(results).items()
    }
    return {method: curve for method, curve in by_name.items() if curve}


def target(by_name: dict[str, list[Point]]) -> float:
    """The lowest loss that every method reached."""
    return max(min(point.loss for point in curve) for curve in by_name.values())


def loss_at(curve: list[Point], tokens: float) -> float | None:
    """The loss when `tokens` tokens had been computed; None before the first round ended."""
    for before, after in pairwise(curve):
        if before.tokens <= tokens <= after.tokens:
            return _between(before, after, (tokens - before.tokens) / (after.tokens - before.tokens)).loss
    return curve[0].loss if tokens == curve[0].tokens else None


def cost_of(curve: list[Point], loss: float) -> Point | None:
    """What had been spent when the loss first was as low as `loss`; the first round is not divided. None if it never was."""
    if curve[0].loss <= loss:
        return curve[0]
    for before, after in pairwise(curve):
        if after.loss <= loss:
            return _between(before, after, (before.loss - loss) / (before.loss - after.loss))
    return None


def markdown(results: list[Result]) -> str:
    """Both tables."""
    by_name = points(results)
    if not by_name:
        return ""
    goal, least = target(by_name), min(curve[-1].tokens for curve in by_name.values())
    budgets = [share * least for share in SHARES]
    lines = [
        "", "Validation loss (nats a token) when the fleet had computed so many tokens, and what it had spent when the loss was",
        f"{goal:.3f}, the lowest that every method reached. Between rounds a straight line is taken. Routers have learned from",
        "validation text, so the test text above is the better judge of a result; this is about its cost.", "",
        f"| method | {' | '.join(f'{budget:,.0f}' for budget in budgets)} | tokens to {goal:.3f} | moved | seconds |",
        "|---|" + "---|" * (len(budgets) + 3),
    ]  # fmt: skip
    for method, curve in by_name.items():
        losses = [loss_at(curve, budget) for budget in budgets]
        spent = cost_of(curve, goal)
        assert spent is not None
        cells = ["" if loss is None else f"{loss:.3f}" for loss in losses]
        cells += [f"{spent.tokens:,.0f}", f"{spent.bytes / 1e6:,.1f} MB", f"{spent.seconds:,.0f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_json(results: list[Result]) -> dict[str, list[dict[str, float]]]:
    """The points of every method as objects."""
    return {method: [asdict(point) for point in curve] for method, curve in points(results).items()}


def _point(runs: list[Result], number: int, loss: float) -> Point:
    records = [record for run in runs for record in run["records"] if record["round"] <= number]
    tokens, sent, received, seconds = (
        sum(record[key] for record in records) / len(runs) for key in ("tokens", "bytes_sent", "bytes_received", "seconds")
    )
    return Point(tokens, sent + received, seconds, loss)


def _between(before: Point, after: Point, share: float) -> Point:
    return Point(*(a + share * (b - a) for a, b in zip(astuple(before), astuple(after), strict=True)))
