"""One run: text and base once for each process, the same tokens for every method, a record at the end.

A method whose router takes turns on validation text computes tokens there too. All methods compute as many as `comigs-edge` does:
those without turns have more expert steps instead, the paper's method has the same turns as the product.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from benchmarks.common import WORK, open_base
from benchmarks.evidence.runs import Run, size_label
from comigs_edge import files
from comigs_edge.base.hparams import HParams
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import TrainConfig
from comigs_edge.inference.evaluate import TestText
from comigs_edge.nn.experts import FORMS
from comigs_edge.nn.weights import Base
from comigs_edge.progress import SILENT, Advance
from comigs_edge.simulate import recipe as recipes
from comigs_edge.simulate import texts
from comigs_edge.simulate.fleet import Fleet
from comigs_edge.simulate.methods.catalogue import find_method
from comigs_edge.simulate.plan import Plan
from comigs_edge.simulate.recipe import Recipe, Size
from comigs_edge.simulate.run import resume
from comigs_edge.simulate.texts import Text
from comigs_edge.training import checkpoint
from comigs_edge.training.ordinary import OrdinaryText
from comigs_edge.training.schedule import RATE_STEPS, rate_share

_sha256 = functools.cache(files.sha256_file)
TEST_CONTEXT = 256  # tokens of a window: 64 windows and more of most texts
EQUAL_TOKENS = "equal tokens: methods whose router has no turns of its own compute the router's tokens in expert steps"
CHOSEN = (
    "each device's state is chosen by validation text at the ends of rounds, from which nothing has learned; of the rest of that "
    "text routers learn, and the experts of train-valid methods"
)
SCORED = "scored after the exchange, the last state also before it"
ON_TOP = "the closing steps of a zero expert come on top"


class TimeIsOver(Exception):
    """The minutes are over; what was begun is dropped."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all runs of one list stand on."""

    text: Path
    base: Path
    size: str
    rounds: int | None = None  # in place of the size's
    test_tokens: int = 32768  # of a device, where the text has as many
    device: str = "cpu"
    precision: str = "float32"  # of `benchmarks.common.PRECISIONS`
    threads: int = 1
    commit: str = ""
    until: float = math.inf  # time.time() at which runs are broken off
    chosen_only: bool = False  # the last state is not scored where validation text chooses another
    tuned_on: tuple[str, ...] = ()  # commits and machines of the records by which the rates of what judges were chosen
    ordinary_tokens: int = TrainConfig.ordinary_tokens  # that a zero expert's router learns from
    unfinished: Path | None = None  # keeps what a run has done after each round, so that one that was cut off goes on

    @property
    def size_label(self) -> str:
        """The size in the names of records."""
        return size_label(self.size, self.rounds)


def play(run: Run, ground: Ground) -> dict[str, Any] | None:
    """The record of a run; None when the time was over before its end. One that diverges has an `error` in its record."""
    base, plan = _base(ground), _plan(run, ground)
    text, test_bytes = _texts(_text_of(run), ground)
    start = time.monotonic()
    common = {
        "run": asdict(run), "label": run.label, "size": ground.size_label, "text": texts.digest(text), "commit": ground.commit,
        "base": _sha256(ground.base), "device": _hardware(ground), "precision": ground.precision, "torch": torch.__version__,
        "terms": _terms(run), "settings": plan.record(base.hparams),
    }  # fmt: skip
    common |= {"tuned_on": list(ground.tuned_on)} if run.judged else {}

    def advance(steps: int) -> None:
        if time.time() > ground.until:
            raise TimeIsOver

    try:
        fleet = open_fleet(run, ground)
        records = _play_rounds(fleet, ground.unfinished and ground.unfinished / _unfinished_name(common, run, ground), advance)
    except TimeIsOver:
        return None
    except ComigsError as error:
        return common | {"error": str(error)}
    tests = {name: (each.test, test_bytes[name]) for name, each in text.items()}
    devices = {device.name: _device(records, device.name, *tests[device.name]) for device in fleet.devices}
    return common | {
        "training_tokens": {name: each.num_training_tokens for name, each in text.items()},
        "tokens": sum(record["tokens"] for record in records),
        "bytes_moved": sum(record["bytes_sent"] + record["bytes_received"] for record in records),
        "seconds": round(time.monotonic() - start, 1),
        "bits_per_byte": statistics.mean(each["bits_per_byte"] for each in devices.values()),
        "last_bits_per_byte": _mean_of_last(devices.values()),
        "devices": devices,
    }  # fmt: skip


def _terms(run: Run) -> list[str]:
    """What holds for every method, in words."""
    return [*([EQUAL_TOKENS] if run.steps is None else []), CHOSEN, SCORED, ON_TOP]


def open_fleet(run: Run, ground: Ground) -> Fleet:
    """The fleet of a run before its first round."""
    ordinary = ordinary_text(ground) if run.zero_expert else []
    return Fleet(_base(ground), _plan(run, ground), _texts(_text_of(run), ground)[0], ordinary)


def _plan(run: Run, ground: Ground) -> Plan:
    found, size = _read_recipe(run, ground)
    plan = equal_terms(run, _with_settings(found, run, size), size, _base(ground).hparams)
    return replace(plan, scores_before=True, scores_last=not ground.chosen_only)


def _play_rounds(fleet: Fleet, folder: Path | None, advance: Advance) -> list[dict[str, Any]]:
    """The records of all rounds; with a folder what was begun there is gone on with."""
    records = resume(fleet, folder) if folder else []
    while not fleet.is_done:
        records += fleet.round(advance)
        if folder and not fleet.is_done:
            folder.mkdir(parents=True, exist_ok=True)
            arrays, state = fleet.state()
            checkpoint.save(folder, arrays, {"fleet": state, "records": records})
    if folder and folder.exists():
        files.remove(folder)
    return records


def _unfinished_name(common: dict[str, Any], run: Run, ground: Ground) -> str:
    """A run of other settings, text or code does not go on with this one."""
    return f"{run.name(ground.size_label)}-{hashlib.sha256(json.dumps(common, default=str).encode()).hexdigest()[:8]}"


def settings_of(run: Run, ground: Ground) -> dict[str, Any]:
    """What the run's record would have of its settings."""
    return dict(json.loads(json.dumps(_plan(run, ground).record(_base(ground).hparams))))


def text_digest(run: Run, ground: Ground) -> str:
    """That of the text that the run would read."""
    return texts.digest(_texts(_text_of(run), ground)[0])


def equal_terms(run: Run, found: Recipe, size: Size, hparams: HParams) -> Plan:
    """The run's plan, with as many tokens as `comigs-edge` computes and as many rows to choose a state by.

    A run that names its steps has those: a mixture in whole rounds, which its router's turns end, others at most some more.
    """
    plan = Plan(found, size, find_method(run.method), run.seed, zero_expert=run.zero_expert)
    product = Plan(found, size, find_method("comigs-edge"), run.seed).schedule(hparams, 1)
    takes_turns = plan.layout(hparams, 1).num_specialists > 0 and plan.method.router in ("validation", "training")
    if takes_turns:
        rounds = size.rounds if run.steps is None else max(1, run.steps // size.local_steps)
        size = replace(size, rounds=rounds, router_period=product.router_period, router_steps=product.router_steps)
    else:
        rounds = size.rounds if run.steps is None else math.ceil(run.steps / product.router_period)
        steps = math.ceil((product.total_steps if run.steps is None else run.steps) / rounds)
        size = replace(size, rounds=rounds, local_steps=steps, router_period=steps)
    size = replace(size, validation_rows=product.validation_rows, measured_rounds=())
    return replace(plan, size=size)


def _text_of(run: Run) -> Run:
    """The run without what its text does not depend on."""
    return Run("", run.recipe, "", 0.0, judged=run.judged, devices=run.devices)


def _read_recipe(run: Run, ground: Ground) -> tuple[Recipe, Size]:
    found = recipes.read(recipes.find(run.recipe)).first(run.devices)
    size = replace(found.size(ground.size), test_tokens=ground.test_tokens)
    return found, size if ground.rounds is None else replace(size, rounds=ground.rounds)


def _with_settings(found: Recipe, run: Run, size: Size) -> Recipe:
    """The recipe with the run's rates and form of experts; by Muon long trainings learn more slowly, as an installation's do."""
    for_steps = RATE_STEPS if FORMS[run.form].optimiser == "muon" else 0
    rate = run.rate * rate_share(for_steps, size.rounds * size.local_steps)
    training = replace(found.training, expert_learning_rate=rate, final_learning_rate=None)
    if run.router_rate is not None:
        training = replace(training, router_learning_rate=run.router_rate)
    return replace(found, experts=replace(found.experts, form=run.form), training=training)


@functools.cache
def _base(ground: Ground) -> Base:
    return open_base(ground.base, ground.device, ground.precision, ground.threads)


@functools.cache
def ordinary_text(ground: Ground) -> list[Encoded]:
    """What the base answers to instructions; made by one process for all."""
    WORK.mkdir(exist_ok=True)
    with filelock.FileLock(WORK / ".ordinary.lock"):
        text = OrdinaryText(WORK, _sha256(ground.base), "learning", ground.ordinary_tokens, Tokenizer(ground.base))
        text.make(_base(ground))
    return text.answers


@functools.cache
def _texts(run: Run, ground: Ground) -> tuple[dict[str, Text], dict[str, list[int]]]:
    """Each device's text, and the bytes that the counted tokens of each of its test windows stand for."""
    found, size = _read_recipe(run, ground)
    tokenizer = Tokenizer(ground.base)
    read = texts.read(found, size, ground.text, tokenizer, SILENT, TEST_CONTEXT, run.judged)
    return read, {name: _bytes_by_window(text.test, tokenizer) for name, text in read.items()}


def _bytes_by_window(test: TestText, tokenizer: Tokenizer) -> list[int]:
    return [
        sum(tokenizer.written_bytes(token) for token, scored in zip(window.ids[1:], window.scored, strict=True) if scored)
        for window in test.windows
    ]


def _hardware(ground: Ground) -> str:
    if ground.device == "cuda":
        return torch.cuda.get_device_name()
    from profiles import detect

    cores = " and ".join(f"{each.count} x {each.kind}" for each in detect.detect().cores)
    return f"{cores}, {ground.threads} thread{'s' if ground.threads > 1 else ''} a run"


def _mean_of_last(devices: Iterable[dict[str, Any]]) -> float | None:
    """Of the devices' last states; None where one of them was not scored."""
    bits = [each["last_bits_per_byte"] for each in devices]
    return None if None in bits else statistics.mean(bits)


def _device(records: list[dict[str, Any]], name: str, test: TestText, window_bytes: list[int]) -> dict[str, Any]:
    """What the record keeps of one device."""
    own = [record for record in records if record["device"] == name]
    last = own[-1]
    return {
        "bits_per_byte": last["bits_per_byte"], "last_bits_per_byte": last.get("last_bits_per_byte"),
        "bits_per_byte_before_exchange": last.get("bits_per_byte_before_exchange"), "perplexity": last["perplexity"],
        "test_text": hashlib.sha256(repr(test.windows).encode()).hexdigest()[:16],
        "window_nats": [round(nats, 3) for nats in last["windows"]], "window_bytes": window_bytes,
        "window_documents": list(test.documents),
        "bits_per_byte_without_zero_expert": last.get("bits_per_byte_without_zero_expert"),
        "window_nats_without_zero_expert": [round(nats, 3) for nats in last.get("windows_without_zero_expert", ())],
        "validation_losses": {str(record["round"]): record["validation_loss"] for record in own},
        "expert_scores": last["expert_scores"],
    }  # fmt: skip
