"""What a simulation has shown, as a Markdown table: bits per byte of every device, base included, mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

Result = dict[str, Any]  # a run's result.json
REFERENCE = "comigs-1g1s"
Scores = dict[str, dict[str, float]]  # device -> bits_per_byte, perplexity


def last_scores(result: Result, key: str) -> dict[str, Any]:
    """A figure of every device after the last round."""
    last = max(record["round"] for record in result["records"])
    return {record["device"]: record[key] for record in result["records"] if record["round"] == last}


def hardware(results: list[Result]) -> str:
    """What the runs were made on, each once; a run may be older than this figure."""
    return "; ".join(dict.fromkeys(result.get("hardware") or "unknown hardware" for result in results))


def commits(results: list[Result]) -> str:
    """Of the code that made the runs, each once."""
    return ", ".join(dict.fromkeys(result.get("commit") or "unknown" for result in results))


def origin(results: list[Result]) -> dict[str, Any]:
    """Which text the results are of, whether it judges, and by which code with which settings they were made."""
    keys = ("text", "judged", "version", "commit")  # of runs that are older than these figures nothing is known
    each: dict[str, Any] = {key: list(dict.fromkeys(result.get(key) for result in results)) for key in keys}
    return each | {"settings": {result["method"]: result.get("settings") for result in results}}


def windows(results: list[Result]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Method -> seed -> device -> nats of every window of its test text, in the state that is reported."""
    return {
        method: {str(run["seed"]): last_scores(run, "windows") for run in runs if "windows" in run["records"][-1]}
        for method, runs in by_method(results).items()
    }


def by_method(results: list[Result]) -> dict[str, list[Result]]:
    """The results of each method, in the order in which the methods came."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["method"], []).append(result)
    return groups


def curves(results: list[Result]) -> dict[str, dict[int, float]]:
    """Method -> round -> validation loss, nats a token, mean over devices and seeds."""
    by_round = {}
    for method, runs in by_method(results).items():
        losses: dict[int, list[float]] = defaultdict(list)
        for record in (record for run in runs for record in run["records"]):
            if record["validation_loss"] is not None:
                losses[record["round"]].append(record["validation_loss"])
        by_round[method] = {number: statistics.mean(each) for number, each in sorted(losses.items())}
    return by_round


def summary(results: list[Result], base: Scores) -> list[dict[str, Any]]:
    """One row a method, the base first: mean figures over seeds, and the spread of the mean over devices."""
    rows = [_base_row(base)]
    for method, runs in by_method(results).items():
        bits = [last_scores(run, "bits_per_byte") for run in runs]
        means = [statistics.mean(each.values()) for each in bits]
        perplexities = [last_scores(run, "perplexity") for run in runs]
        records = [record for run in runs for record in run["records"]]
        rows.append({
            "method": method, "seeds": len(runs),
            "devices": {name: statistics.mean(each[name] for each in bits) for name in bits[0]},
            "bits_per_byte": statistics.mean(means), "spread": statistics.stdev(means) if len(means) > 1 else None,
            "by_seed": {str(run["seed"]): mean for run, mean in zip(runs, means, strict=True)},
            "perplexities": {name: statistics.mean(each[name] for each in perplexities) for name in bits[0]},
            "perplexity": statistics.mean(value for each in perplexities for value in each.values()),
            "bytes": sum(record["bytes_sent"] + record["bytes_received"] for record in records) / len(runs),
            "tokens": sum(record["tokens"] for record in records) / len(runs),
            "seconds": sum(record["seconds"] for record in records) / len(runs),
        })  # fmt: skip
    return rows


def compare(rows: list[dict[str, Any]], reference: str) -> dict[str, tuple[float, float | None, int]]:
    """Method -> by how many percent its bits per byte lie above those of `reference`: mean, spread, number of common seeds.

    Seeds are compared one by one: what a seed does to both methods drops out. Empty without the reference.
    """
    differences: dict[str, tuple[float, float | None, int]] = {}
    own: dict[str, float] = next((row["by_seed"] for row in rows if row["method"] == reference), {})
    for row in rows:
        percents = [100 * (row["by_seed"][seed] / own[seed] - 1) for seed in own if seed in row["by_seed"]]
        if percents and row["method"] != reference:
            spread = statistics.stdev(percents) if percents[1:] else None
            differences[row["method"]] = (statistics.mean(percents), spread, len(percents))
    return differences


def markdown(rows: list[dict[str, Any]], notes: list[str]) -> str:
    """The report; `notes` say what was simulated, one sentence each."""
    devices = list(rows[0]["devices"])
    lines = [
        "# Simulation", "", *(f"- {note}" for note in notes), "",
        "Bits per byte of test text that nothing was trained on, in the state with the lowest validation loss at the end of a",
        "round; lower is better. The spread is the standard deviation of the mean over seeds; bytes, tokens and seconds are",
        "those of the whole fleet, one seed.", "",
        f"| method | {' | '.join(devices)} | mean | spread | moved | tokens | seconds | seeds |",
        "|---|" + "---|" * (len(devices) + 6),
    ]  # fmt: skip
    for row in rows:
        figures = [f"{row['devices'][name]:.4f}" for name in devices]
        spread = "" if row["spread"] is None else f"{row['spread']:.4f}"
        moved = f"{row['bytes'] / 1e6:,.1f} MB" if row["seeds"] else ""
        tokens, seconds = (f"{row[key]:,.0f}" if row["seeds"] else "" for key in ("tokens", "seconds"))
        cells = [row["method"], *figures, f"{row['bits_per_byte']:.4f}", spread, moved, tokens, seconds, str(row["seeds"] or "")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Perplexity of the same text, a token.", "", f"| method | {' | '.join(devices)} | mean |"]
    lines.append("|---|" + "---|" * (len(devices) + 1))
    for row in rows:
        figures = [f"{row['perplexities'][name]:.2f}" for name in devices]
        lines.append(f"| {row['method']} | {' | '.join(figures)} | {row['perplexity']:.2f} |")
    if differences := compare(rows, REFERENCE):
        lines += ["", f"Bits per byte above {REFERENCE}'s, seed by seed; the spread is over seeds.", ""]
        lines += ["| method | difference | spread | seeds |", "|---|---|---|---|"]
    for method, (percent, deviation, seeds) in differences.items():
        lines.append(f"| {method} | {percent:+.2f} % | {'' if deviation is None else f'{deviation:.2f} %'} | {seeds} |")
    return "\n".join(lines) + "\n"


def _base_row(base: Scores) -> dict[str, Any]:
    devices = {name: score["bits_per_byte"] for name, score in base.items()}
    return {
        "method": "base", "seeds": 0, "devices": devices, "bits_per_byte": statistics.mean(devices.values()),
        "spread": None, "by_seed": {}, "perplexities": {name: score["perplexity"] for name, score in base.items()},
        "perplexity": statistics.mean(score["perplexity"] for score in base.values()),
        "bytes": 0, "tokens": 0, "seconds": 0.0,
    }  # fmt: skip
