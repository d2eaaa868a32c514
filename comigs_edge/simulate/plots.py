"""Two plots of a simulation: validation loss over rounds and tokens, and how routers weigh the generalist in every block.

matplotlib comes with the extra `bench`; without it there are no plots.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections import defaultdict
from pathlib import Path

from comigs_edge.simulate import costs
from comigs_edge.simulate.report import Result, by_method, curves

MISSING = "plots were left out: matplotlib is missing; get it with: pip install 'comigs-edge[bench]'"


def is_possible() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def generalist_scores(results: list[Result]) -> dict[str, list[list[float]]]:
    """Method -> a row for each round with scores: the generalist's mean weight in every block, over devices and seeds."""
    weights = {}
    for method, runs in by_method(results).items():
        scores: dict[int, list[list[float]]] = defaultdict(list)
        for record in (record for run in runs for record in run["records"]):
            if record["expert_scores"]:
                scores[record["round"]].append([block[0] for block in record["expert_scores"]])
        if scores:
            weights[method] = [[statistics.mean(b) for b in zip(*scores[n], strict=True)] for n in sorted(scores)]
    return weights


def draw(results: list[Result], folder: Path) -> list[Path]:
    """Writes the plots; returns their files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = [folder / "validation.png"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for method, points in curves(results).items():
        left.plot(list(points), list(points.values()), marker="o", markersize=3, label=method)
    for curve in costs.points(results).values():
        right.plot([point.tokens / 1e3 for point in curve], [point.loss for point in curve], marker="o", markersize=3)
    left.set(xlabel="round", ylabel="validation loss (nats a token)")
    right.set(xlabel="thousand tokens computed by the fleet")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize="small")
    figure.savefig(paths[0], dpi=150)
    if scores := generalist_scores(results):
        paths.append(folder / "experts.png")
        figure, several = pyplot.subplots(
            1, len(scores), figsize=(3 * len(scores), 4.5), squeeze=False, sharey=True, layout="constrained"
        )
        for axes, (method, rows) in zip(several[0], scores.items(), strict=True):
            image = axes.imshow(list(zip(*rows, strict=True)), vmin=0, vmax=1, aspect="auto", origin="lower", cmap="RdBu_r")
            axes.set(title=method, xlabel="validation")
            for axis in (axes.xaxis, axes.yaxis):
                axis.get_major_locator().set_params(integer=True)
        several[0][0].set(ylabel="block")
        figure.colorbar(image, ax=several[0].tolist(), label="weight of expert 0")
        figure.savefig(paths[1], dpi=150)
    pyplot.close("all")
    return paths
