"""How many rows the closing phase of a training with small batches needs, after a whole fleet of the evidence's list.

    python -m benchmarks.figures.closing_rows FOLDER [--recipe multilingual] [--devices nl,de]

`comigs-edge` as installed, size `brief` (steps of 2 rows). After its last round each device's best state gets a zero expert
anew, in closing phases of other lengths and batches. Own test text, and the base's own answers that no router has read (the last
third of those at hand). The rounds are kept in benchmark-work/, so that it can be gone on with. Writes closing-rows.json
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import PRECISIONS, WORK, result_file, write_json
from benchmarks.evidence.play import Ground, open_fleet, ordinary_text, text_digest
from benchmarks.evidence.runs import Run
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.inference.elsewhere import measure_elsewhere
from comigs_edge.inference.evaluate import in_torch
from comigs_edge.nn.model import Model
from comigs_edge.simulate import origin
from comigs_edge.simulate.device import Device, new_model
from comigs_edge.simulate.fleet import Fleet
from comigs_edge.simulate.run import resume
from comigs_edge.training import checkpoint
from comigs_edge.training.batches import Rows
from comigs_edge.training.closing import Closing

RATE, TEST_TOKENS = 0.012, 8192
PHASES = ((2, 10), (2, 20), (2, 40), (8, 10))  # rows of a step, steps


def play_rounds(fleet: Fleet, folder: Path) -> None:
    """All rounds but the scores of the last, going on with what is in the folder."""
    resume(fleet, folder)
    fleet.plan = replace(fleet.plan, size=replace(fleet.plan.size, rounds=fleet.plan.size.rounds + 1))  # none is the last
    while fleet.number < fleet.plan.size.rounds - 1:
        fleet.round(lambda steps: None)
        folder.mkdir(parents=True, exist_ok=True)
        arrays, state = fleet.state()
        checkpoint.save(folder, arrays, {"fleet": state, "records": []})
        print(f"round {fleet.number}", flush=True)


def of_device(device: Device, ordinary: Rows, seed: int, held_out: list[Encoded]) -> list[dict[str, Any]]:
    """The records of the base, of the state without a zero expert, and of one for each phase."""
    trainer = device.trainer
    base, schedule, test = trainer.model.base, trainer.schedule, device.tests[device.name]
    records = [{"phase": "base", "own": in_torch(Model(base, None), test).bits_per_byte, "validation": trainer.first_loss}]
    alone = device.measure_best()[device.name].bits_per_byte
    trainer.adapters.load_arrays(trainer.best)
    change, divergence = measure_elsewhere(trainer.model, held_out)
    records.append({
        "phase": "no zero expert", "own": alone, "validation": trainer.best_loss, "answers_change": change,
        "answers_divergence": divergence,
    })  # fmt: skip
    for rows, steps in PHASES:
        # A tenth of the experts' steps are just these.
        trainer.schedule = replace(schedule, batch=rows, closing_rows=0, closing_steps=steps, steps=10 * steps)
        begin, tokens = time.process_time(), rows * trainer.training.context
        phase = Closing(trainer, ordinary, seed, lambda adapters, tokens=tokens: new_model(base, adapters, tokens))  # type: ignore[misc]
        done = sum(1 for _ in phase.run())
        seconds, (change, divergence) = time.process_time() - begin, measure_elsewhere(phase.model, held_out)
        records.append({
            "phase": f"{done} steps of {rows} rows", "own": in_torch(phase.model, test).bits_per_byte, "validation": phase.loss,
            "answers_change": change, "answers_divergence": divergence, "seconds": round(seconds, 1),
        })  # fmt: skip
        print(device.name, records[-1], flush=True)
    trainer.schedule = schedule
    return records


def markdown(table: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table's lines without the header."""
    lines = []
    for device, (base, alone, *phases) in table.items():
        for each in (alone, *phases):
            kept = [(base[key] - each[key]) / (base[key] - alone[key]) for key in ("own", "validation")]
            gain = f"{kept[0]:.1%} ({kept[1]:.1%})".replace("%", " %")
            change = f"{each['answers_change']:+.1%}".replace("%", " %")
            seconds = f"{each['seconds']:.0f} s" if "seconds" in each else ""
            lines.append(f"| {device} | {each['phase']} | {gain} | {change}, {each['answers_divergence']:.3f} | {seconds} |")
    return lines


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--recipe", default="multilingual")
    parser.add_argument("--devices", default="nl,de")
    parser.add_argument("--precision", default="bfloat16", choices=PRECISIONS)
    options = parser.parse_args()
    ground = Ground(
        text=options.text.absolute(), base=find_base(DEFAULT_BASE)[1], size="brief", test_tokens=TEST_TOKENS,
        precision=options.precision,
    )  # fmt: skip
    run = Run("", options.recipe, "comigs-edge", RATE, "parallel", zero_expert=True)
    fleet = open_fleet(run, ground)
    state = hashlib.sha256(f"{text_digest(run, ground)} {ground.precision} {origin.commit()}".encode()).hexdigest()[:8]
    play_rounds(fleet, WORK / f"closing-rows-{options.recipe}-{state}")
    answers = ordinary_text(ground)
    cut = 2 * len(answers) // 3
    ordinary = Rows(answers[:cut], fleet.plan.size.context, run.seed)
    wanted = options.devices.split(",")
    table = {each.name: of_device(each, ordinary, run.seed, answers[cut:]) for each in fleet.devices if each.name in wanted}
    write_json(result_file("closing-rows.json"), {
        "command": f"python -m benchmarks.figures.closing_rows FOLDER --recipe {options.recipe} --devices {options.devices}",
        "precision": options.precision, "devices": table,
    })  # fmt: skip


if __name__ == "__main__":
    main()
