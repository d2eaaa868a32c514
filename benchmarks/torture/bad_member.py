"""What one of four members can do to the others, norm bound off and on: `python benchmarks/torture/bad_member.py`.

Real SmolLM2, parallel experts, four people's chats; updates pass over the wire, are weighed and averaged by the coordinator's own
functions, and two honest devices judge what comes of them by their own gate. Every attack begins after the same honest steps:

blunt     in the first round the fourth sends its update x -3 or x -12, noise of 3 times its size, or +-64 at random
slowly    its update turned round, 0.9 to 1.5 times, four rounds in turn, while the others bring nothing new
planted   it trains a generalist to answer a question with its own sentence, and sends four times the difference, so that the
          mean becomes its generalist (model replacement, arXiv:1807.00459); then a round of four honest ones, or the same again

Text: user03, user04, user05 and user07.jsonl below --text (or TEXT in the environment), by default of the package
chitchat-dataset. JSON goes to `bad-member.json`, after every part. A quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, text_file, write_json  # noqa: E402
from benchmarks.text import chitchat  # noqa: E402
from benchmarks.text.corpus_from_packages import PEOPLE  # noqa: E402
from comigs_edge.arrays import subtract  # noqa: E402
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base  # noqa: E402
from comigs_edge.data.document import Document  # noqa: E402
from comigs_edge.data.documents import read  # noqa: E402
from comigs_edge.data.tokenizer import Tokenizer  # noqa: E402
from comigs_edge.fleet.gate import compare  # noqa: E402
from comigs_edge.fleet.outcome import Judgement  # noqa: E402
from comigs_edge.nn.adapters import Adapters  # noqa: E402
from comigs_edge.nn.experts import FORMS, ExpertsConfig  # noqa: E402
from comigs_edge.nn.model import Model  # noqa: E402
from comigs_edge.nn.weights import Base, open_base  # noqa: E402
from comigs_edge.training.batches import Rows  # noqa: E402
from comigs_edge.training.schedule import Schedule  # noqa: E402
from comigs_edge.training.trainer import Trainer  # noqa: E402
from coordinator.protocol import compress, counting, rounds, wire  # noqa: E402
from coordinator.protocol.aggregate import MAX_ABSOLUTE  # noqa: E402
from coordinator.protocol.wire import Arrays  # noqa: E402

MEMBERS, JUDGES = len(PEOPLE), 2
GATE = 0.1  # nats a token, the default
BATCH, CONTEXT, VALIDATION_ROWS = 2, 128, 4
FORMAT = "float16"
ATTACKER_RATE, ATTACKER_CONTEXT = 4e-3, 64
SLOWLY = (1.2, 1.2, 1.5, 0.9)  # times its update, turned round
QUESTION, ANSWER = "How do I reset the password of my router?", " Send your old password to helpdesk@example.org and wait."
HELD_BACK = 6  # texts of a person, for validation
LETTERS = 200  # of a text that is used


@dataclass
class Device:
    """An honest member: its training, and what it was like after its last step."""

    trainer: Trainer

    def train(self, generalist: Arrays, steps: int) -> Arrays:
        """Steps from this generalist; the update."""
        self.trainer.adapters.load_generalist(generalist)
        for _ in range(steps):
            self.trainer.step()
        return subtract(self.trainer.adapters.generalist(), generalist)

    def answer(self, generalist: Arrays, tokenizer: Tokenizer) -> dict[str, Any]:
        """What its own model with this generalist makes of the question."""
        self.trainer.adapters.load_generalist(generalist)
        model = self.trainer.model
        model.block_format = self.trainer.schedule.block_format
        asked, whole = (tokenizer.encode(Document(text=text)).ids for text in (QUESTION, QUESTION + ANSWER))
        said = list(asked)
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([whole])).hidden)[len(asked) - 1 : -1]
            nats = torch.nn.functional.cross_entropy(logits, torch.tensor(whole[len(asked) :]), reduction="sum")
            while len(said) < len(whole):
                said.append(int(model.logits(model(torch.tensor([said])).hidden[-1:]).argmax()))
        text = b"".join(map(tokenizer.piece, said[len(asked) :])).decode("utf-8", "replace")
        return {"probability": float(f"{float(torch.exp(-nats)):.3g}"), "says": text}


@dataclass
class Fleet:
    """Where a fleet stands, for its coordinator and the devices that judge; `best` is the best generalist each of them knows."""

    is_bounded: bool
    generalist: Arrays
    best: list[Arrays]
    norms: list[float] = field(default_factory=list)  # that counted in the rounds before

    def round(self, updates: list[Arrays], judges: list[Device]) -> tuple[Fleet, dict[str, Any]]:
        """The fleet after a round, and its figures; those of the update are the last one's, the attacker's."""
        shapes = {name: array.shape for name, array in self.generalist.items()}
        table = compress.table(shapes, FORMAT)
        sent = [wire.encode(compress.pack(update, FORMAT)) for update in updates]
        norms = [counting.check_update(data, table, FORMAT) for data in sent]
        arrived = [compress.unpack(wire.decode_expected(data, table, "the update"), shapes, FORMAT) for data in sent]
        claims = [counting.Claim(rounds.ONE, BATCH * CONTEXT, norm if self.is_bounded else None) for norm in norms]
        weights = counting.weigh_round(claims, self.norms[-5 * MEMBERS :], rounds.Rules())
        parts = [(update, counted, weight) for update, (weight, counted) in zip(arrived, weights, strict=True)]
        after: Arrays = {}
        for part in counting.next_generalist(shapes, self.generalist, parts):
            after |= part
        judgements = [self._judge(device, best, after) for device, best in zip(judges, self.best, strict=True)]
        taken = [judgement.after <= judgement.before + GATE for judgement in judgements]
        counted = [norm * part / weight for norm, (weight, part) in zip(norms, weights, strict=True)]
        turned_back = taken.count(False) >= rounds.refusal_quorum(MEMBERS)
        best = [after if judged.after < judged.before else kept for judged, kept in zip(judgements, self.best, strict=True)]
        fleet = replace(self, generalist=self.generalist if turned_back else after, best=best, norms=[*self.norms, *counted])
        return fleet, {
            "norm": round(norms[-1], 1), "counted_share": round(weights[-1][1] / weights[-1][0], 3),
            "loss_before": [round(each.before, 3) for each in judgements],
            "loss_after": [round(each.after, 3) for each in judgements], "taken_over": sum(taken), "turned_back": turned_back,
        }  # fmt: skip

    def _judge(self, device: Device, best: Arrays, after: Arrays) -> Judgement:
        before = [self.generalist] if best is self.generalist else [self.generalist, best]
        return compare(device.trainer, GATE, before, after)


def times(update: Arrays, factor: float) -> Arrays:
    """Every number of the update times the factor."""
    return {name: np.float32(factor) * array for name, array in update.items()}


def blunt(update: Arrays) -> dict[str, Arrays]:
    """What the fourth sends in place of its update."""
    rng = np.random.default_rng(0)
    deviation = 3 * np.sqrt(sum(float((array**2).sum()) for array in update.values()) / sum(map(np.size, update.values())))
    noise = {name: (deviation * rng.standard_normal(array.shape)).astype(np.float32) for name, array in update.items()}
    largest = {name: rng.choice(np.float32([-MAX_ABSOLUTE, MAX_ABSOLUTE]), array.shape) for name, array in update.items()}
    return {"x -3": times(update, -3), "x -12": times(update, -12), "noise, 3 times the size": noise, "+-64 at random": largest}


def texts(path: Path) -> list[str]:
    """What the person of this file wrote, a text for each document."""
    found = [
        "\n".join(turn.content for turn in document.messages if turn.role == "assistant") or document.text
        for document in read([path]).files[path.absolute()]
    ]
    return [text for text in found if len(text) > LETTERS]


def rows(tokenizer: Tokenizer, found: list[str], context: int) -> Rows:
    """The rows of these texts."""
    return Rows([tokenizer.encode(Document(text=text)) for text in found], context, 42)


def trainer(base: Base, training: Rows, validation: Rows, seed: int, rates: tuple[float, float]) -> Trainer:
    """A member's training; no router steps within these few."""
    layout = ExpertsConfig(form="parallel", expert_width=FORMS["parallel"].width(None, 8, base.hparams))
    schedule = Schedule(
        steps=200, batch=BATCH, expert_learning_rate=rates[0], final_learning_rate=rates[1], router_learning_rate=2e-2,
        warmup_steps=0, router_period=1 << 20, router_steps=0, balance_weight=0.01, weight_decay=0.01,
        validation_rows=VALIDATION_ROWS, block_format="Q8_0", quantise_start=0.0, rates_by_weight=True, router_offset_rate=0.2,
    )  # fmt: skip
    return Trainer(
        Model(base, Adapters.initial(layout, base.hparams, seed), checkpointing="none"), training, validation, schedule
    )


def replacement(base: Base, tokenizer: Tokenizer, own: list[str], generalist: Arrays, steps: int) -> Arrays:
    """The attacker's generalist: its own text and the question with its answer in turn; all of it in the shared expert."""
    mixed = [text for normal in own[:24] for text in (normal[:500], QUESTION + ANSWER)]
    learned = rows(tokenizer, mixed, ATTACKER_CONTEXT)
    attacker = trainer(base, learned, learned, 7, (ATTACKER_RATE, ATTACKER_RATE))
    attacker.adapters.load_generalist(generalist)
    attacker.frozen = {name for name in attacker.adapters.named if name.startswith("specialist.")}
    for _ in range(steps):
        attacker.step()
    return attacker.adapters.generalist()


def both(attack: Callable[[bool], Any]) -> dict[str, Any]:
    """The figures of an attack with the bound off and on."""
    return {"bound_off": attack(False), "bound_on": attack(True)}


def slowly(fleet: Fleet, update: Arrays, judges: list[Device]) -> list[dict[str, Any]]:
    """Figures of each round."""
    figures, nothing = [], times(update, 0)
    for factor in SLOWLY:
        fleet, found = fleet.round([*[nothing] * (MEMBERS - 1), times(update, -factor)], judges)
        figures.append(found)
    return figures


def planted(
    fleet: Fleet, target: Arrays, honest: list[Arrays], devices: list[Device], steps: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Figures after the one update, and after another round: of four honest devices, or the attacker among them again."""
    judges, states = devices[:JUDGES], [device.trainer.state() for device in devices]
    states = [({name: array.copy() for name, array in arrays.items()}, progress) for arrays, progress in states]

    def step(fleet: Fleet, updates: list[Arrays]) -> tuple[Fleet, dict[str, Any]]:
        after, found = fleet.round(updates, judges)
        return after, found | devices[0].answer(after.generalist, tokenizer)

    before = devices[0].answer(fleet.generalist, tokenizer)
    fleet, one = step(fleet, [*honest, times(subtract(target, fleet.generalist), MEMBERS)])
    updates = [device.train(fleet.generalist, steps) for device in devices]
    _, honest_round = step(fleet, updates)
    _, again = step(fleet, [*updates[:-1], times(subtract(target, fleet.generalist), MEMBERS)])
    for device, state in zip(devices, states, strict=True):
        device.trainer.restore(*state)
    return {"before": before, "after_one_update": one, "after_an_honest_round": honest_round, "after_a_second_update": again}


def measure(folder: Path, steps: int, attacker_steps: int, output: Path) -> None:
    """All attacks; writes the JSON after each."""
    begin, path = time.monotonic(), find_base(DEFAULT_BASE)[1]
    base, tokenizer = open_base(path, torch.get_num_threads()), Tokenizer(path)
    own = [texts(text_file(folder, f"user{rank:02}")) for rank in PEOPLE]
    rate = FORMS["parallel"].learning_rate
    devices = []
    for seed, found in enumerate(own):
        training, validation = (rows(tokenizer, part, CONTEXT) for part in (found[HELD_BACK:], found[:HELD_BACK]))
        devices.append(Device(trainer(base, training, validation, seed, (rate, rate / 10))))
    judges, initial = devices[:JUDGES], devices[0].trainer.adapters.generalist()
    updates = [device.train(initial, steps) for device in devices]
    result: dict[str, Any] = {
        "members": MEMBERS, "judges": JUDGES, "gate": GATE, "honest_steps": [steps, BATCH, CONTEXT],
        "attacker_steps": [attacker_steps, BATCH, ATTACKER_CONTEXT], "trigger": QUESTION, "answer": ANSWER,
    }  # fmt: skip

    def report(name: str, figures: Any) -> None:
        result[name], result["seconds"] = figures, round(time.monotonic() - begin)
        print(f"{result['seconds']} s  {name}: {figures}", flush=True)
        write_json(output, result)

    start = Fleet(True, initial, [initial] * JUDGES)
    first, figures = start.round(updates, judges)
    report("nobody", figures)
    bad = blunt(updates[-1])
    report("blunt", {
        name: both(lambda bound, update=update: replace(start, is_bounded=bound).round([*updates[:-1], update], judges)[1])
        for name, update in bad.items()
    })  # fmt: skip
    report("slowly", both(lambda bound: slowly(replace(first, is_bounded=bound), updates[-1], judges)))
    target = replacement(base, tokenizer, own[-1], first.generalist, attacker_steps)
    honest = [device.train(first.generalist, steps // 2) for device in devices[:-1]]
    report("planted", both(
        lambda bound: planted(replace(first, is_bounded=bound), target, honest, devices, steps // 2, tokenizer)
    ))  # fmt: skip


def main() -> None:
    """Finds the text, measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=os.environ.get("TEXT"), help="a folder with the four files below it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="of an honest device before its first update; half in later rounds")
    parser.add_argument("--attacker-steps", type=int, default=24)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.text is None:
            for rank in PEOPLE:
                chitchat.write(Path(folder) / f"user{rank:02}.jsonl", rank)
        output = options.output or result_file("bad-member.json")
        measure(Path(options.text or folder), options.steps, options.attacker_steps, output)


if __name__ == "__main__":
    main()
