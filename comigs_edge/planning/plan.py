"""The plan of a home: what its device, base and text call for, with the lines that settings or an earlier training have fixed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from comigs_edge import files
from comigs_edge.base.hparams import Shape, read_shape
from comigs_edge.data.corpus import Corpus
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import Config, ModelConfig
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.nn.experts import FORMS, Layout, expected_shapes, experts_per_token
from profiles import DeviceProfile
from profiles import chat as chat_planner
from profiles import detect as detection
from profiles import plan as planner
from profiles.chat import ChatPlan, Subject
from profiles.cost import RULES, Plan, Rates, Sizes
from profiles.detect import Device
from quantize.gguf_file import GGUFFile

BYTES_A_TOKEN = 4  # of text: a rough mean over languages
KINDS: dict[str, type] = {
    "specialists": int, "batch": int, "context": int, "threads": int, "precision": str, "keep": bool, "checkpointing": str,
    "backend": str, "device": str, "blocks": int, "cache": bool,
}  # fmt: skip
CHAT_KINDS: dict[str, type] = {"threads": int, "mmap": bool, "cache": str, "batch": int}
CHAT_CHOICES: dict[str, tuple[str, ...]] = {"cache": ("F16", "Q8_0")}
RESULTS = (
    "specialists",
    "batch",
    "context",
    "precision",
    "blocks",
    "cache",
    "device",
)  # lines that the result depends on
CHOICES = {
    "precision": ("float32", "bfloat16"), "checkpointing": ("block", "attention", "none"), "backend": ("blas", "onednn"),
    "device": ("cpu", "cuda"),
}  # fmt: skip


def sizes(path: Path, settings: Config) -> Sizes:
    """Of the base at `path` and of experts as the settings ask for them."""
    file = GGUFFile(path)
    shape = read_shape(file)
    one = expected_shapes(plan_experts(replace(settings.model, specialists=0, blocks=0), _NO_PROFILE, shape), shape)
    return Sizes(
        shape.num_blocks, shape.width, shape.ff_width, shape.num_heads, shape.num_heads * shape.head_width,
        shape.num_kv_heads * shape.head_width, shape.vocab_size, "output.weight" not in file.tensors,
        path.stat().st_size, sum(rows * columns for rows, columns in one.values()),
    )  # fmt: skip


_NO_PROFILE = DeviceProfile("none", "", 0, 1, 1)


def make(
    home: Home, settings: Config, profile: DeviceProfile, device: Device, base: Sizes, rates: Rates | None,
    fixed: dict[str, Any],
) -> Plan:  # fmt: skip
    """The plan with its `fixed` lines. Raises `ProfileError` if nothing fits, `ComigsError` for blocks that are not there."""
    if fixed.get("blocks", 0) > base.num_blocks:
        raise ComigsError(
            f"blocks = {fixed['blocks']} and the base has {base.num_blocks}; use at most so many, or 0 for all"
        )
    if fixed.get("blocks") == base.num_blocks:
        fixed = fixed | {"blocks": 0}
    memory = profile.memory or device.memory_limit or device.memory
    free = min(device.usable_memory, profile.memory or device.usable_memory)
    disk = int(RULES["cache"]["share"] * shutil.disk_usage(home.root).free)
    if settings.train.cache_mb is not None:
        disk = settings.train.cache_mb * 10**6
    tokens, steps = training_tokens(home, settings), settings.train.steps
    return planner.make(profile, memory, free, base, tokens, rates, fixed, disk, steps)


def plan_home(
    home: Home, settings: Config, profile: str | None, lines: list[str], resume: bool | None, measure: bool
) -> tuple[Plan, Rates | None]:
    """The home's plan, and the processor's rates if they were to be measured, which takes two seconds and loads torch."""
    device, kind = detection.detect(folder=str(home.root)), settings.device(profile)
    base = sizes(home.base_file, settings)
    fixed = fixed_lines(home, settings, parse(lines), resume)
    rates = None
    if measure:
        from comigs_edge.planning import rates as measuring

        threads, widths = fixed.get("threads") or kind.usable_threads, (base.width, base.ff_width)
        if measuring.choose_device(fixed.get("device"), device.gpu is not None) == "cuda":
            rates = measuring.gpu_rates(*widths, threads)
        else:
            rates = measuring.rates(*widths, threads, bool({"bf16", "avx512_bf16"} & set(device.features)))
    return make(home, settings, kind, device, base, rates, fixed), rates


def chat_plan(
    settings: Config, profile: DeviceProfile, device: Device, base: Path, size: int, busy: float, flags: dict[str, Any]
) -> ChatPlan:
    """How to talk with a model of `size` bytes made of this base, while other programs keep `busy` cores busy.

    Raises `ProfileError` if it does not fit.
    """
    shape, chat = read_shape(GGUFFile(base)), settings.chat
    keys = shape.num_kv_heads * shape.head_width
    subject = Subject(size, shape.num_blocks, shape.num_heads, keys, shape.head_width, shape.ff_width, chat.context)
    asked = {"threads": chat.threads, "mmap": chat.mmap, "cache": chat.cache, "batch": chat.batch}
    return chat_planner.make(subject, profile.usable_threads, busy, device.usable_memory, asked | flags)


def fixed_lines(home: Home, settings: Config, flags: dict[str, Any], resume: bool | None) -> dict[str, Any]:
    """Lines about which there is no choice: a command's flags, then config.toml, then what an earlier training has left.

    Raises `ComigsError` where flags or settings contradict a training that was interrupted.
    """
    train = settings.train
    asked: dict[str, Any] = {
        "specialists": settings.model.specialists, "batch": train.batch, "context": train.context,
        "threads": train.threads, "precision": train.precision, "checkpointing": train.checkpointing,
        "keep": None if train.base is None else train.base == "dequantised", "blocks": settings.model.blocks,
    } | flags  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    plan, history = home.state / "plan.json", {}
    if resume is not False and plan.exists() and any(home.state.glob("checkpoint-*")):
        history = {name: value for name, value in json.loads(plan.read_bytes()).items() if name in KINDS}
        for name in set(RESULTS) & history.keys():
            if asked.get(name, history[name]) != history[name]:
                raise ComigsError(
                    f"the settings ask for {name} = {asked[name]} where it is {history[name]} in the interrupted training; "
                    "run it with its own settings, or start anew with: comigs-edge train --fresh"
                )
    elif resume is not False and versions(home.adapters):
        manifest = read_manifest(home.adapters, versions(home.adapters)[-1])
        if manifest["base_sha256"] == settings.base.sha256:
            layout = manifest["layout"]
            history = {"specialists": layout["num_specialists"], "blocks": layout.get("blocks", 0)}
    return history | asked


def training_tokens(home: Home, settings: Config) -> int | None:
    """About how many tokens the training text has; None without text."""
    found = Corpus(home.documents_file, settings.data.training, settings.data.validation).sizes()
    return found["training"]["bytes"] // BYTES_A_TOKEN or None


def remember(home: Home, plan: Plan) -> None:
    """Keeps the plan for as long as its training can be interrupted: it goes on with the same bits."""
    files.write_atomic(home.state / "plan.json", json.dumps(asdict(plan)).encode())


def forget(home: Home) -> None:
    """The training has finished."""
    (home.state / "plan.json").unlink(missing_ok=True)


def settings_of(settings: Config, plan: Plan) -> Config:
    """The settings with the plan's lines in the places of those that were left open."""
    return replace(
        settings, model=replace(settings.model, specialists=plan.specialists, blocks=plan.blocks),
        train=replace(settings.train, batch=plan.batch, context=plan.context),
    )  # fmt: skip


def parse(
    lines: list[str], kinds: dict[str, type] = KINDS, choices: dict[str, tuple[str, ...]] = CHOICES
) -> dict[str, Any]:
    """`NAME=VALUE` lines of a command; raises `ComigsError` for those that no plan has."""
    found: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition("=")
        if name not in kinds:
            raise ComigsError(f"a plan has no line {name!r}; its lines are {', '.join(kinds)}")
        try:
            found[name] = _value(name, value, kinds[name], choices.get(name, ()))
        except ValueError:
            possible = choices.get(name, ("true", "false") if kinds[name] is bool else ("a whole number above 0",))
            raise ComigsError(f"{name} = {value!r} is not possible; use {' or '.join(possible)}") from None
    return found


def _value(name: str, value: str, kind: type, choices: tuple[str, ...]) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[value] if value in ("true", "false") else int("")
    if kind is str:
        return value if value in choices else int("")
    number = int(value)
    return number if number >= (0 if name in ("specialists", "blocks") else 1) else int("")


def check_disk(home: Home, plan: Plan, base: Sizes) -> None:
    """Raises `ComigsError` unless checkpoints, adapters and an exported file have room."""
    trained = (1 + plan.specialists) * (base.expert_weights + base.num_blocks * base.width)
    trained = trained * (plan.blocks or base.num_blocks) // base.num_blocks
    # Two generations of the state and one that is being written, 16 bytes a weight each; four versions of the adapters.
    needed = trained * (3 * 16 + 4 * 4) + base.file_size
    free = shutil.disk_usage(home.root).free
    if free < needed:
        raise ComigsError(
            f"training writes up to {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the disk of {home.root}; make "
            "room, or name another disk with COMIGS_EDGE_HOME"
        )


def plan_experts(model: ModelConfig, profile: DeviceProfile, shape: Shape) -> Layout:
    """What the settings ask for on this device; raises `ComigsError` for a router that could not learn."""
    specialists = (profile.specialists or 0) if model.specialists is None else model.specialists
    k = experts_per_token(1 + specialists, model.experts_per_token)
    form = FORMS[model.expert_form]
    form.architecture(shape.architecture, 1 + specialists)  # raises where llama.cpp could not run it
    width = form.width(model.expert_width, model.rank, shape)
    blocks = model.blocks or shape.num_blocks
    if blocks > shape.num_blocks:
        raise ComigsError(f"blocks = {blocks} and the base has {shape.num_blocks}; use at most so many, or 0 for all")
    last = blocks % shape.num_blocks  # all of them are 0
    return Layout(specialists, model.rank, model.alpha, k, model.attention, model.expert_form, width, last)
