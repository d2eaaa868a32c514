"""The table of the records that are there: methods at every rate, and each against the better of learning alone and FedAvg."""

from __future__ import annotations

import functools
import math
import statistics
import string
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from benchmarks.evidence.runs import SEED, Run, length, one_rate, with_judged
from benchmarks.evidence.work import Record, bits

DRAWS = 10_000
FEW = 10  # documents of a device's test text: of fewer the draws say too little
RIVALS = ("local", "fedavg")
EQUAL_TEXT = ("local-train-valid", "fedavg-train-valid")  # learn from the text of the mixture's router too
Floats = npt.NDArray[np.float64]


TUNING = "**Tuning text**: rates and settings were chosen on it, so it is no judgement."
JUDGING = (
    "**Judging text**, but not of every document is it true that nothing was chosen on it: docs/results.md says of which. "
    "Each method has the rate that was best on tuning text."
)


def markdown(records: dict[Run, Record], recipes: tuple[str, ...], judged: bool = False) -> str:
    """One table for each recipe, of tuning or of judging text.

    Raises `SystemExit` where records of one recipe have different text, or two rates of one method judge.
    """
    names = with_judged(recipes) if judged else recipes
    records = {run: record for run, record in records.items() if run.judged == judged and run.recipe in names}
    one_rate(records)
    if not records:
        return "no run is done\n"
    letters = _letters(records.values())
    lines = [
        f"{JUDGING if judged else TUNING} {len(records)} of {length(recipes, judged)} runs are done. " + _made_on(letters),
        "",
        "Bits per byte of test text, mean over devices, with perplexity a token in brackets; the state is chosen by validation",
        "text; beside it are the last one and the one that the last exchange found, which is what the paper scores. Rates are",
        "the experts' first; tokens are counted with the routers'. Differences are to the better of",
        f"{' and '.join(RIVALS)} and, at equal text, of {' and '.join(EQUAL_TEXT)},",
        "each in its best form at its best rate, over the seeds that both have;",
        f"the interval holds 95 % of {DRAWS:,} paired draws of test documents and seeds (*: fewer than {FEW} documents of some",
        "device, so it is too narrow).",
    ]
    for recipe in names:
        there = {run: record for run, record in records.items() if run.recipe == recipe}
        if there:
            lines += ["", *_recipe_table(recipe, there, letters)]
    return "\n".join(lines) + "\n"


def difference(ours: list[Record], theirs: list[Record]) -> tuple[float, float, float]:
    """By how many percent our bits per byte lie above theirs, and 95 % of paired draws of test documents and seeds.

    Both lists have the same seeds in the same order; windows of one document are drawn together, and so are devices' equal texts.
    """
    devices = ours[0]["devices"]
    texts = {device["test_text"]: tuple(device["window_documents"]) for device in devices.values()}
    drawn_seeds, *counts = _draw((tuple(range(len(ours))), *texts.values()))
    by_text, shares = dict(zip(texts, counts, strict=True)), drawn_seeds / len(ours)
    draws: list[list[Floats]] = [[], []]
    for name, device in devices.items():
        sizes, drawn = np.array(device["window_bytes"], float), by_text[device["test_text"]]
        for side, records in zip(draws, (ours, theirs), strict=True):
            side.append(((drawn @ _by_window(records, name)) * shares).sum(axis=1) / (drawn @ sizes))
    percent = 100 * (np.mean(draws[0], axis=0) / np.mean(draws[1], axis=0) - 1)
    low, high = np.quantile(percent[1:], (0.025, 0.975))
    return float(percent[0]), float(low), float(high)


@functools.lru_cache(maxsize=1)  # the methods of a recipe share their draws
def _draw(texts: tuple[tuple[int, ...], ...]) -> list[Floats]:  # (1 + DRAWS, windows) each
    """For texts given by the documents of their windows, how often each window counts: once each, then as documents are drawn."""
    generator, counts = np.random.default_rng(0), []
    for text in texts:
        documents, places = np.unique(text, return_inverse=True)
        number = len(documents)
        drawn = np.vstack([np.ones((1, number)), generator.multinomial(number, np.full(number, 1 / number), DRAWS)])
        counts.append(drawn[:, places])
    return counts


def _by_window(records: list[Record], name: str) -> Floats:  # (windows, records)
    """Bits of each window of a device's test text."""
    return np.array([record["devices"][name]["window_nats"] for record in records]).T / math.log(2)


def _recipe_table(recipe: str, records: dict[Run, Record], letters: dict[str, str]) -> list[str]:
    if len({record["text"] for record in records.values()}) > 1:
        raise SystemExit(f"the records of {recipe} are of different texts; keep those of one text in a folder")
    any_record = next((record for record in records.values() if "devices" in record), None)
    devices = list(any_record["devices"].values()) if any_record else []
    documents = ", ".join(f"{len(set(each['window_documents']))} ({len(each['window_bytes'])})" for each in devices)
    digest = next(iter(records.values()))["text"][:16]
    by_label: dict[str, list[Run]] = {}
    for run in sorted(records, key=lambda run: (run.label, run.rate)):
        by_label.setdefault(run.label, []).append(run)
    best = {label: found for label, runs in by_label.items() if (found := best_run(records, runs))}
    rivals = [_better(best.values(), methods, bits(records)) for methods in (RIVALS, EQUAL_TEXT)]
    against, equal_text = (rival.label if rival else "the better rival" for rival in rivals)
    lines = [
        f"**{recipe}**, test documents (windows) of the devices: {documents}; text {digest}", "",
        f"| method | at each rate, seed {SEED} | best | last state | before the exchange | against {against} "
        f"| at equal text, against {equal_text} "
        "| seeds | tokens | made on |", "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    order = sorted(by_label, key=lambda label: records[best[label]]["bits_per_byte"] if label in best else math.inf)
    for label in order:
        own = {run: records[run] for run in by_label[label]}
        letter = ", ".join(sorted({letters[made_on(record)] for record in own.values()}))
        cells = [label, _at_rates(own), *_at_best(records, best.get(label), rivals), letter]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _better(best: Collection[Run], methods: tuple[str, ...], found: dict[Run, float]) -> Run | None:
    """The best run of these methods in any form; None where one of them is missing."""
    runs = [run for run in best if run.method in methods]
    return min(runs, key=found.__getitem__) if {run.method for run in runs} == set(methods) else None


def best_run(records: dict[Run, Record], runs: list[Run]) -> Run | None:
    """The run of the first seed with the fewest bits."""
    there = [run for run in runs if run.seed == SEED and "devices" in records[run]]
    return min(there, key=bits(records).__getitem__, default=None)


def _at_rates(records: dict[Run, Record]) -> str:
    return ", ".join(
        f"{run.rate:g}: " + (f"{record['bits_per_byte']:.4f}" if "devices" in record else "diverged")
        for run, record in records.items() if run.seed == SEED
    )  # fmt: skip


def _at_best(records: dict[Run, Record], best: Run | None, rivals: list[Run | None]) -> list[str]:
    """A method at its best rate: result, last state, before the exchange, against the rivals, seeds, tokens."""
    if best is None:
        return [""] * (5 + len(rivals))
    own = seeds(records, best)
    result = f"{statistics.mean(record['bits_per_byte'] for record in own.values()):.4f} ({_perplexity(own.values()):.2f})"
    others = [_mean([record["last_bits_per_byte"] for record in own.values()]), _mean(map(before_exchange, own.values()))]
    against = ["" if rival is None or rival == best else _against(own, seeds(records, rival)) for rival in rivals]
    return [result, *others, *against, str(len(own)), f"{records[best]['tokens']:,}"]


def before_exchange(record: Record) -> float | None:
    """Bits per byte of the models that the last exchange found, mean over devices; None where they were not scored."""
    each = [device["bits_per_byte_before_exchange"] for device in record["devices"].values()]
    return None if None in each else statistics.mean(each)


def _mean(values: Iterable[float | None]) -> str:
    """Of values that are all known."""
    each = list(values)
    return "" if None in each else f"{statistics.mean(each):.4f}"


def _against(own: dict[int, Record], other: dict[int, Record]) -> str:
    common = sorted(own.keys() & other.keys())
    percent, low, high = difference([own[seed] for seed in common], [other[seed] for seed in common])
    devices = next(iter(own.values()))["devices"].values()
    is_few = min(len(set(device["window_documents"])) for device in devices) < FEW
    return f"{percent:+.2f} % [{low:+.2f}, {high:+.2f}]{'*' if is_few else ''}"


def _perplexity(records: Iterable[Record]) -> float:
    """Mean over devices and seeds."""
    return statistics.mean(device["perplexity"] for record in records for device in record["devices"].values())


def seeds(records: dict[Run, Record], best: Run) -> dict[int, Record]:
    """Seed -> record, of this method at this rate."""
    return {
        run.seed: record for run, record in records.items()
        if (run.label, run.rate) == (best.label, best.rate) and "devices" in record
    }  # fmt: skip


def _letters(records: Iterable[Record]) -> dict[str, str]:
    """What records were made on -> its letter."""
    kinds = sorted({made_on(record) for record in records})
    names = [*string.ascii_letters, *map(str, range(len(kinds)))]  # behind the 52 letters numbers
    return dict(zip(kinds, names, strict=False))


def made_on(record: Record) -> str:
    """Machine, precision and commit."""
    return f"{record['device']} in {record['precision']}, commit {record['commit'] or 'unknown'}"


def _made_on(letters: dict[str, str]) -> str:
    """Machines and commits, with their letters."""
    said = f"Made on {'; '.join(f'({letter}) {kind}' for kind, letter in letters.items())}."
    return said if len(letters) == 1 else f"{said} What differs between letters may be the code's or the machine's doing."
