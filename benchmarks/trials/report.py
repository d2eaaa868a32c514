"""Tables of the records: what a zero expert costs and saves, and what small steps reach."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.trials.text import KINDS, LANGUAGES, OTHERS

Record = dict[str, Any]


def report(folder: Path) -> None:
    """Prints both tables, means over persons."""
    records: dict[str, Record] = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    base = records.get("base", {}).get("nats", {})
    zero: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    small: defaultdict[str, list[Record]] = defaultdict(list)
    for name, record in records.items():
        if record["kind"] in ("person", "zero"):
            person, label = record["person"], name.split("-", 2)[2] if record["kind"] == "zero" else "without"
            if record["kind"] == "person" and not record["specialists"]:
                label = "without, generalist alone"
            alone = records.get(f"person-{person}", {}).get("nats", {})
            if alone and base:
                zero[label].append(_gains(record, person, base, alone))
        elif record["kind"] == "small":
            small[name.split("-", 2)[2]].append(record)
    print(f"{'zero expert':44} people  gain kept  English  languages    kinds  instr. KL  same  s")
    for label, rows in zero.items():
        kept, english, languages, kinds, kl, same, seconds = (mean(column) for column in zip(*rows, strict=True))
        print(
            f"{label:44} {len(rows):6} {kept:9.1%} {english:+8.2%} {languages:+9.2%} {kinds:+8.2%} {kl:10.3f} {same:5.0%}"
            f" {seconds:.0f}"
        )
    print(f"\n{'small steps':44} people  best validation    test  best of the curve")
    for label, rows in sorted(small.items(), key=lambda item: (-len(item[1]), mean(row["best"] for row in item[1]))):
        lowest = mean(min(point[2] for point in row["curve"]) for row in rows)
        test = mean(value for row in rows for value in row["nats"].values())
        print(f"{label:44} {len(rows):6} {mean(row['best'] for row in rows):16.4f} {test:7.4f} {lowest:18.4f}")


def _gains(record: Record, person: str, base: dict[str, float], alone: dict[str, float]) -> tuple[float, ...]:
    """Share of the gain without a zero expert; nats a token more than the base elsewhere, as shares; instructions.

    Elsewhere is neither the person's own text nor, where ordinary text is that of others, theirs.
    """
    nats = record["nats"]
    seen = {person, *(OTHERS if record.get("source") == "others" else ())}

    def harm(names: tuple[str, ...]) -> float:
        return mean(nats[name] / base[name] - 1 for name in names if name not in seen)

    return (
        (base[person] - nats[person]) / (base[person] - alone[person]), harm(("en",)),
        harm(tuple(name for name in LANGUAGES if name != "en")), harm(KINDS), record["instructions_kl"],
        record["instructions_same"], record["seconds"],
    )  # fmt: skip
