"""Which bases this device can train and run, by the plans' own arithmetic: memory, disk, time, tokens a second."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from comigs_edge.base.catalogue import CATALOGUE, DEFAULT_BASE
from comigs_edge.base.hparams import HParams, read_hparams
from comigs_edge.home.config import ChatConfig, ModelConfig, TrainConfig
from comigs_edge.nn.experts import default_form
from comigs_edge.planning.plan import disk_needed, sizes_of
from comigs_edge.planning.speed import Speed
from profiles import RULES, DeviceProfile, ProfileError
from profiles import chat as chat_planner
from profiles import plan as planner
from profiles.chat import Subject
from profiles.cost import Plan, Rates, Sizes
from profiles.detect import Device
from quantize.gguf_file import GGUFFile


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A base that could be taken."""

    name: str
    shape: HParams
    size: int  # bytes of its file
    format: str  # block format of its matrices
    is_tied: bool


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a base takes of a device, predicted; None: it does not fit, or nothing was measured."""

    name: str
    size: int  # bytes of its file
    memory: int | None = None  # bytes, of a training or of a chat, whichever takes more
    disk: int | None = None  # bytes that training and export write, beside the base
    minutes: float | None = None  # of the steps before a first model: one router period
    tokens_per_second: float | None = None  # of an answer
    hindrance: str = ""  # why it cannot be trained or run here

    @property
    def is_good(self) -> bool:
        """Whether the device carries it well: it fits, learns in minutes and talks as fast as people read."""
        rules, minutes, rate = RULES["base"], self.minutes, self.tokens_per_second
        is_fast = minutes is not None and minutes <= rules["minutes"] and rate is not None and rate >= rules["tokens"]
        return not self.hindrance and is_fast


def known() -> list[Candidate]:
    """Those of the catalogue, the best talker last."""
    return [
        Candidate(name=name, shape=entry.shape, size=entry.megabytes * 10**6, format=entry.format, is_tied=entry.is_tied)
        for name, entry in CATALOGUE.items()
    ]


def read_candidate(name: str, path: Path) -> Candidate:
    """A base that is here; raises what `read_hparams` raises."""
    file = GGUFFile(path)
    block_format = file.tensors["blk.0.ffn_up.weight"].format.name if "blk.0.ffn_up.weight" in file.tensors else "F32"
    return Candidate(
        name=name, shape=read_hparams(file), size=path.stat().st_size, format=block_format,
        is_tied="output.weight" not in file.tensors,
    )  # fmt: skip


def predict(candidate: Candidate, device: Device, profile: DeviceProfile, speed: Speed | None, disk_free: int) -> Fit:
    """What the base would take of this device; without `speed` no times. `disk_free` bytes are for all but its own file."""
    shape, fit = candidate.shape, Fit(name=candidate.name, size=candidate.size)
    sizes = sizes_of(
        shape, ModelConfig(expert_form=default_form(shape.architecture)), is_tied=candidate.is_tied, file_size=candidate.size
    )
    try:
        plan, chat_memory = _train(sizes, device, profile, speed), _chat(candidate, device, profile)
    except ProfileError as error:
        return _change(fit, hindrance=str(error).partition(";")[0])
    disk = disk_needed(plan, sizes)
    lacks = f"it wants {disk / 1e6:,.0f} MB of the disk, and {max(0, disk_free) / 1e6:,.0f} are free"
    return _change(
        fit, memory=max(plan.memory, chat_memory), disk=disk, minutes=_first_minutes(plan),
        tokens_per_second=speed and _tokens_per_second(candidate, sizes, speed), hindrance=lacks if disk > disk_free else "",
    )  # fmt: skip


def recommend(fits: Iterable[Fit]) -> str | None:
    """The last of them that the device carries well; of the shipped base's own weights the file that is shipped."""
    name = ([None, *(fit.name for fit in fits if fit.is_good)])[-1]
    return DEFAULT_BASE if name is not None and name.startswith(DEFAULT_BASE) else name


def _change(fit: Fit, **values: object) -> Fit:
    return Fit(**vars(fit) | values)


def _train(sizes: Sizes, device: Device, profile: DeviceProfile, speed: Speed | None) -> Plan:
    rates = speed and Rates(products={"float32": speed.products}, threads=profile.usable_threads)
    return planner.make(
        profile, sizes, rates or None, {}, memory=profile.memory or device.memory_limit or device.memory,
        free=min(device.usable_memory, profile.memory or device.usable_memory), tokens=None,
    )  # fmt: skip


def _chat(candidate: Candidate, device: Device, profile: DeviceProfile) -> int:
    shape, copied = candidate.shape, chat_planner.repacked_formats(device.features)
    subject = Subject(
        size=candidate.size, repacked=candidate.size if candidate.format in copied else 0, num_blocks=shape.num_blocks,
        heads=shape.num_heads, keys=shape.num_kv_heads * shape.head_width, head=shape.head_width, ff_width=shape.ff_width,
        context=ChatConfig.context, context_length=shape.context_length,
    )  # fmt: skip
    return chat_planner.make(subject, cores=profile.usable_threads, busy=0, free=device.usable_memory, wanted={}).memory


def _first_minutes(plan: Plan) -> float | None:
    steps = TrainConfig.router_period + TrainConfig.router_steps * (plan.specialists > 0)
    return None if plan.step_seconds is None else steps * plan.step_seconds / 60


def _tokens_per_second(candidate: Candidate, sizes: Sizes, speed: Speed) -> float:
    """A token's weights are read once; embeddings that the output does not multiply by are only looked up."""
    looked_up = 0 if candidate.is_tied else sizes.vocab_size * sizes.width
    size = candidate.size * (1 - looked_up / sizes.weights)
    rate: float = RULES["base"]["reading"] * speed.reading / size
    return rate
