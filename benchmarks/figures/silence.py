"""What a zero expert keeps of the gain and saves elsewhere, by what own text counts for the router beside ordinary text.

    python -m benchmarks.figures.silence TEXT [--texts de,user03] [--steps 50] [--judge]

TEXT is a folder with the files of `TUNING` somewhere below it. Each of its first part is the text of one home, which is trained
once, by the product's defaults; behind that the closing phase is done anew for each of its odds. The gain that is kept is that on
test text, in brackets on validation text. With --judge it is `JUDGING`, text kept for that (docs/results.md says what of it
served a choice all the same), by the product's odds alone with the settings that stand here, once all changes are committed, and
once only. Writes zero-expert.json, or zero-expert-judged.json
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import RESULTS, WORK, frozen_commit, result_file, text_file, write_json
from benchmarks.figures.quality import open_home
from benchmarks.trials.text import splits
from comigs_edge import files
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Tokenizer, encode
from comigs_edge.home.folder import corpus
from comigs_edge.inference.elsewhere import measure_elsewhere
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.simulate import origin
from comigs_edge.simulate.texts import limit
from comigs_edge.training.batches import Rows
from comigs_edge.training.closing import OWN, Closing
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.validation import batch_loss
from profiles import detect


class Ground(NamedTuple):
    """Which texts are homes', which measure what happens elsewhere, and what own text counts."""

    texts: tuple[str, ...]
    elsewhere: tuple[str, ...]
    odds: tuple[float, ...]
    judge: bool
    record: str


TUNING = Ground(
    ("de", "user03"), ("en", "nl", "encyclopedia", "code_python", "dialogue"), (1.0, OWN, 6.0), False, "zero-expert.json"
)
JUDGING = Ground(
    ("sv", "manuals", "user06"), ("people", "geography", "guides", "pt", "code_perl"), (OWN,), True, "zero-expert-judged.json"
)
LINES = ["specialists=1", "batch=8", "context=128", "threads=1", "zero_expert=true"]
FROZEN = ("steps", "texts", "precision")  # options that go with no --judge
OWN_TOKENS, OTHER_TOKENS = 8192, 2048  # of test text that are measured


class Tests(NamedTuple):
    """The rows that a model is measured on."""

    own: Rows
    others: dict[str, Rows]


def read_tests(run: TrainingRun, elsewhere: dict[str, Path], tokenizer: Tokenizer) -> Tests:
    """Test text of this home, and of the others."""
    own = limit(encode(corpus(run.home, run.settings), tokenizer, "test", []), OWN_TOKENS)
    others = {
        name: splits(file, {"test": OTHER_TOKENS}, tokenizer)["test"]
        for name, file in elsewhere.items()
    }  # fmt: skip
    context = run.plan.context
    return Tests(Rows(own, context, 0), {name: Rows(each, context, 0) for name, each in others.items()})


@torch.no_grad()
def nats(model: Model, rows: Rows) -> float:
    """Mean loss in nats a token."""
    batches = rows.first(len(rows), 8)
    return sum(float(batch_loss(model, batch)[0]) for batch in batches) / sum(batch.num_scored for batch in batches)


def measure(model: Model, tests: Tests, run: TrainingRun) -> dict[str, Any]:
    """A record of one model."""
    record: dict[str, Any] = {"own": nats(model, tests.own), "others": {k: nats(model, v) for k, v in tests.others.items()}}
    if model.adapters is not None:
        change, divergence = measure_elsewhere(model, run.ordinary[1].answers)
        record |= {"answers_change": change, "answers_divergence": divergence}
    return record


def of_text(run: TrainingRun, tests: Tests, steps: int, all_odds: tuple[float, ...]) -> list[dict[str, Any]]:
    """The records of the base, of the training without a closing phase, and of one for each of the odds."""
    trainer = run.begin(steps, False)
    run.make_ordinary()
    records = [{"odds": "base"} | measure(Model(run.base, None), tests, run)]
    for _ in trainer.run():
        pass
    trainer.adapters.load_arrays(trainer.best)
    trainer.model.block_format = trainer.schedule.block_format
    records[0]["validation"] = trainer.first_loss
    records.append({"odds": "no zero expert", "validation": trainer.best_loss} | measure(trainer.model, tests, run))
    ordinary = Rows(run.ordinary[0].answers, run.plan.context, run.settings.train.seed)

    def make_model(adapters: Adapters) -> Model:
        return Model(run.base, adapters, checkpointing=run.plan.checkpointing)

    for odds in all_odds:
        phase = Closing(trainer, ordinary, run.settings.train.seed, make_model, odds)
        for _ in phase.run():
            pass
        records.append({"odds": odds, "validation": phase.loss} | measure(phase.model, tests, run))
        print(records[-1], flush=True)
    return records


def markdown(texts: dict[str, list[dict[str, Any]]], elsewhere: tuple[str, ...] = TUNING.elsewhere) -> str:
    """The table, changes of the loss elsewhere in percent."""
    lines = [f"| text | own text counts | gain kept | {' | '.join(elsewhere)} | the base's answers, KL |"]
    lines.append("|---|---|---|" + "---|" * (1 + len(elsewhere)))
    for text, (base, alone, *others) in texts.items():
        for record in (alone, *others):
            kept = [(base[key] - record[key]) / (base[key] - alone[key]) for key in ("own", "validation")]
            changes = [
                record["others"][name] / base["others"][name] - 1 if name in base["others"] else None for name in elsewhere
            ]
            cells = ["" if change is None else f"{change:+.1%}" for change in changes]
            answers = f"{record['answers_change']:+.1%}, {record['answers_divergence']:.3f}"
            odds = record["odds"] if isinstance(record["odds"], str) else f"{record['odds']:g} times"
            lines.append(f"| {text} | {odds} | {kept[0]:.1%} ({kept[1]:.1%}) | {' | '.join(cells)} | {answers} |")
    return "\n".join(lines)


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--texts", help=f"default: {','.join(TUNING.texts)}; to judge {','.join(JUDGING.texts)}")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--judge", action="store_true", help="on judging text; wants all changes to be committed")
    parser.add_argument("--work", type=Path, default=WORK / "silence")
    options = parser.parse_args()
    ground, commit = TUNING, origin.commit()
    if options.judge:
        if changed := [f"--{name}" for name in FROZEN if getattr(options, name) != parser.get_default(name)]:
            parser.error(f"--judge is with the settings that were chosen before; leave {', '.join(changed)} out")
        ground, commit = JUDGING, frozen_commit(os.environ.get("COMMIT", ""))
        for path in (folder / ground.record for folder in (RESULTS, WORK / "results")):
            if path.exists():
                raise SystemExit(f"{path} has judged already, and nothing is judged twice; delete it if it is not to count")
    names = options.texts.split(",") if options.texts else ground.texts
    paths = {name: text_file(options.text, name, ground.judge) for name in (*names, *ground.elsewhere)}
    options.work.mkdir(parents=True, exist_ok=True)
    texts = {}
    tokenizer = Tokenizer(find_base(DEFAULT_BASE)[1])
    for name in names:
        run = open_home(options.work, paths[name], [*LINES, f"precision={options.precision}"])
        elsewhere = {other: paths[other] for other in ground.elsewhere if other != name}
        print(name, flush=True)
        texts[name] = of_text(run, read_tests(run, elsewhere, tokenizer), options.steps, ground.odds)
    print(markdown(texts, ground.elsewhere))
    facts: dict[str, Any] = {"lines": LINES, "precision": options.precision, "steps": options.steps, "commit": commit}
    facts["made_on"] = " and ".join(f"{each.count} x {each.kind}" for each in detect.detect().cores)
    facts |= {"judged": ground.judge, "digests": {name: files.sha256_file(path) for name, path in paths.items()}}
    write_json(result_file(ground.record), facts | {"texts": texts})


if __name__ == "__main__":
    main()
