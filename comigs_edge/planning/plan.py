"""The plan of a home: what its device, base and text call for, with the lines that settings or an earlier training have fixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from comigs_edge import files
from comigs_edge.base.hparams import HParams, read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import ChatConfig, Config, ModelConfig
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import KEPT_VERSIONS
from comigs_edge.nn.experts import FORMS, ExpertsConfig, expected_shapes, experts_per_token
from comigs_edge.planning import experience, offload
from comigs_edge.planning.fixed import BY_FILE, LINES, fixed_lines
from coordinator.protocol.settings import SettingsError, convert
from profiles import RULES, DeviceProfile
from profiles import chat as chat_planner
from profiles import detect as detection
from profiles import plan as planner
from profiles.chat import ChatPlan
from profiles.cost import Plan, Rates, Sizes
from profiles.detect import Device
from quantize.formats import block_format, fit_format
from quantize.gguf_file import GGUFFile

_CHAT = get_type_hints(ChatConfig, include_extras=True)
CHAT_LINES: dict[str, Any] = {name: _CHAT[name] for name in ("threads", "mmap", "cache", "batch", "gpu_layers")}
GPU_LINE = {"gpu_layers": CHAT_LINES["gpu_layers"]}  # of what llama.cpp does without a plan of its own


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A home's settings and its plan, in agreement: what computes takes its numbers from here."""

    settings: Config  # unset values are filled from the plan
    plan: Plan
    base: Sizes
    rates: Rates | None  # the processor's, if they were measured


def resolve(
    home: Home, settings: Config, profile: str | None = None, lines: Iterable[str] = (), *, resume: bool | None = None,
    measure: bool = False,
) -> Resolved:  # fmt: skip
    """Plans a training of the home, with `lines` (NAME=VALUE) of a command; to `measure` takes two seconds and loads torch.

    `resume` is as in `fixed_lines`. Raises `ProfileError` if nothing fits, `ComigsError` for what this device or base does
    not have, `QuantizeError` for a block format that its rows do not fit.
    """
    device, kind = detection.detect(folder=str(home.root)), settings.device(profile)
    base, flags = sizes(home.base_file, settings), parse(lines)
    context = flags.get("context", settings.train.context)
    if context and context > base.context_length:
        raise ComigsError(
            f"context = {context} is asked for and the base was trained with {base.context_length} tokens; use at most that"
        )
    fixed = fixed_lines(home, settings, flags, resume)
    check_format(settings.storage().format, settings.model, base.width, base.ff_width, base.queries)
    rates = None
    if measure:
        rates = _measure(device, base, fixed.lines.get("threads") or kind.usable_threads, fixed.lines.get("device"))
        rates = experience.with_experience(home, settings.model.expert_form, rates)
    plan = make(home, settings, profile=kind, device=device, base=base, rates=rates, fixed=fixed.lines)
    plan = replace(plan, reasons=fixed.explain(plan))
    return Resolved(settings=settings_of(settings, plan), plan=plan, base=base, rates=rates)


def sizes(path: Path, settings: Config) -> Sizes:
    """Of the base at `path` and of experts as the settings ask for them."""
    file = GGUFFile(path)
    is_tied = "output.weight" not in file.tensors
    return sizes_of(read_hparams(file), settings.model, is_tied=is_tied, file_size=path.stat().st_size)


def sizes_of(hparams: HParams, model: ModelConfig, *, is_tied: bool, file_size: int) -> Sizes:
    """Of a base with these hyper-parameters and of experts as `model` asks for them."""
    one = expected_shapes(plan_experts(replace(model, specialists=0, blocks=0), hparams), hparams)
    return Sizes(
        num_blocks=hparams.num_blocks, width=hparams.width, ff_width=hparams.ff_width, heads=hparams.num_heads,
        queries=hparams.num_heads * hparams.head_width, keys=hparams.num_kv_heads * hparams.head_width,
        vocab_size=hparams.vocab_size,
        context_length=hparams.context_length, is_tied=is_tied, file_size=file_size,
        expert_weights=sum(rows * columns for rows, columns in one.values()), is_low_rank=FORMS[model.expert_form].is_low_rank,
    )  # fmt: skip


def check_format(format_name: str, model: ModelConfig, width: int, ff_width: int, queries: int) -> None:
    """Raises `QuantizeError` where rows of what is trained are no whole blocks of the format in which it is stored."""
    rows = {"the experts' ffn_up": width}
    if FORMS[model.expert_form].is_low_rank:  # merged into matrices of the base
        rows |= {"the base's ffn_down": ff_width} | ({"the base's attn_output": queries} if model.attention else {})
    for name, length in rows.items():
        fit_format(name, length, block_format(format_name))


def _measure(device: Device, base: Sizes, threads: int, wanted: str | None) -> Rates:
    from comigs_edge.planning import rates

    if rates.choose_device(wanted, device.gpu is not None) == "cuda":
        return rates.gpu_rates(base.width, base.ff_width, threads)
    return rates.rates(base.width, base.ff_width, threads, device.has_bfloat16)


def make(
    home: Home, settings: Config, *, profile: DeviceProfile, device: Device, base: Sizes, rates: Rates | None,
    fixed: dict[str, Any],
) -> Plan:  # fmt: skip
    """The plan with its `fixed` lines. Raises `ProfileError` if nothing fits, `ComigsError` for what is not there."""
    if fixed.get("blocks", 0) > base.num_blocks:
        raise _too_many_blocks(fixed["blocks"], base.num_blocks)
    if fixed.get("blocks") == base.num_blocks:
        fixed = fixed | {"blocks": 0}
    if fixed.get("precision") == "bfloat16":
        _check_bfloat16(device, rates, fixed.get("device"))
    if fixed.get("cuda_graph"):
        _check_graph(rates, fixed)
    disk = int(RULES["cache"]["share"] * shutil.disk_usage(home.root).free)
    if settings.train.cache_mb is not None:
        disk = settings.train.cache_mb * 10**6
    plan = planner.make(
        profile, base, rates, fixed, memory=profile.memory or device.memory_limit or device.memory,
        free=min(device.usable_memory, profile.memory or device.usable_memory), tokens=training_tokens(home, settings),
        disk=disk, steps=settings.train.steps,
    )  # fmt: skip
    if "zero_expert" in fixed:
        return plan
    reason = "beside small experts it costs next to nothing"
    if not settings.has_zero_expert:
        reason = "it takes the base's MLP once more; if it is wanted: --plan zero_expert=true"
    return replace(plan, zero_expert=settings.has_zero_expert, reasons={"zero_expert": reason} | plan.reasons)


def _check_bfloat16(device: Device, rates: Rates | None, wanted: str | None) -> None:
    """Raises `ComigsError` where products in bfloat16 were not measured, or the processor has no instructions for them."""
    if rates is not None:
        has_bfloat16 = "bfloat16" in rates.products
    else:
        has_bfloat16 = device.has_bfloat16 or (device.gpu is not None and wanted != "cpu")
    if not has_bfloat16:
        where = "GPU" if rates is not None and rates.device == "cuda" else "processor"
        raise ComigsError(
            f"precision = bfloat16 is asked for and this {where} has no instructions for it; train with: "
            "--plan precision=float32, or delete precision from [train] in config.toml"
        )


def _check_graph(rates: Rates | None, fixed: dict[str, Any]) -> None:
    """Raises `ComigsError` where no steps can be captured: on a processor, or where a block is dequantised for its turn."""
    device = rates.device if rates is not None else fixed.get("device", "cpu")
    if device == "cpu" or fixed.get("keep") is False:
        where = "training computes on the processor" if device == "cpu" else "keep = false leaves the weights in their file"
        raise ComigsError(f"cuda_graph = true is asked for and {where}; leave it out: --plan cuda_graph=false")


def chat_plan(
    settings: Config, base: Path, *, profile: DeviceProfile, device: Device, size: int, busy: float = 0,
    flags: dict[str, Any] | None = None, model: Path | None = None,
) -> ChatPlan:  # fmt: skip
    """How to talk with a `model` (default: the base) of `size` bytes, while other programs keep `busy` cores busy.

    Raises `ProfileError` if it does not fit.
    """
    file, chat = GGUFFile(base), settings.chat
    copied = chat_planner.repacked_formats(device.features)
    repacked = repacked_bytes(GGUFFile(model) if model else file, copied)
    subject = offload.subject_of(read_hparams(file), chat.context, size=size, repacked=repacked)
    written = {name: value for name in CHAT_LINES if (value := getattr(chat, name)) is not None}
    asked = written | (flags or {})
    gpu, lacking = offload.find(device)
    cores = profile.usable_threads
    fast = sum(each.count for each in device.cores) - device.slow_cores
    slow = max(0, cores - fast) if device.slow_cores else 0
    plan = chat_planner.make(
        subject, cores=cores - slow, slow=slow, busy=busy, free=device.usable_memory, wanted=asked, gpu=gpu, lacking=lacking
    )
    return replace(plan, reasons=plan.reasons | dict.fromkeys(written.keys() - (flags or {}).keys(), BY_FILE))


def repacked_bytes(file: GGUFFile, formats: set[str]) -> int:
    """Bytes of the matrices that llama.cpp copies when it loads the file, of those in these block formats."""
    looked_up = {"token_embd.weight"} if "output.weight" in file.tensors else set()  # tied, it is multiplied by too
    matrices = (info for info in file.tensors.values() if len(info.shape) > 1 and info.name not in looked_up)
    return sum(info.size for info in matrices if info.format.name in formats and info.shape[-2] % 8 == 0)


def training_tokens(home: Home, settings: Config, local: bool = False) -> int | None:
    """About how many tokens the training text has, of shared or of local text; None without text."""
    splits = corpus(home, settings).sizes(local=local)
    return round(splits["training"]["bytes"] / experience.bytes_a_token(home)) or None


def new_tokens(home: Home, settings: Config, known: Collection[int]) -> int:
    """About how many tokens the shared training text has in documents whose `Corpus.hashes` are not `known`."""
    hashes = corpus(home, settings).hashes("training", local=False)
    return round(sum(size for number, size in hashes.items() if number not in known) / experience.bytes_a_token(home))


def remember(home: Home, plan: Plan) -> None:
    """Keeps the plan for as long as its training can be interrupted: it resumes with the same bits."""
    files.write_atomic(home.state / "plan.json", json.dumps(asdict(plan)).encode())


def forget(home: Home) -> None:
    """The training has finished."""
    (home.state / "plan.json").unlink(missing_ok=True)


def settings_of(settings: Config, plan: Plan) -> Config:
    """The settings, with unset values filled from the plan."""
    train = replace(
        settings.train, batch=plan.batch, context=plan.context, threads=plan.threads, precision=plan.precision,
        base="dequantised" if plan.keep else "quantised", checkpointing=plan.checkpointing,
    )  # fmt: skip
    model = replace(settings.model, specialists=plan.specialists, blocks=plan.blocks, zero_expert=plan.zero_expert)
    return replace(settings, model=model, train=train)


def parse(lines: Iterable[str], known: dict[str, Any] = LINES) -> dict[str, Any]:
    """`NAME=VALUE` lines of a command; raises `ComigsError` for those that no plan has."""
    values: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition("=")
        if name not in known:
            raise ComigsError(f"a plan has no line {name!r}; its lines are {', '.join(known)}")
        try:
            values[name] = convert(value, known[name], name, strict=False)
        except SettingsError as error:
            raise ComigsError(f"{error}, as in --plan NAME=VALUE") from None
    return values


def _too_many_blocks(blocks: int, there: int) -> ComigsError:
    return ComigsError(f"blocks = {blocks} and the base has {there}; use at most {there}, or 0 for all")


def check_disk(home: Home, settings: Config, plan: Plan, base: Sizes) -> None:
    """Raises `ComigsError` unless checkpoints, adapters and an exported file have room."""
    has_local = bool(corpus(home, settings).sizes(local=True)["training"]["documents"])
    needed, free = disk_needed(plan, base, has_local), shutil.disk_usage(home.root).free
    if free < needed:
        raise ComigsError(
            f"training writes up to {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the disk of {home.root}; make "
            "room, or name another disk with COMIGS_EDGE_HOME"
        )


def disk_needed(plan: Plan, base: Sizes, has_local: bool = False) -> int:
    """Bytes that checkpoints, adapters and an exported file take of the disk."""
    trained = (1 + plan.specialists) * (base.expert_weights + base.num_blocks * base.width)
    trained = trained * (plan.blocks or base.num_blocks) // base.num_blocks
    # Two generations of the state and one that is being written, 16 bytes a weight each; the versions of the adapters.
    # With local text both hold everything twice: with and without what it has shaped.
    return trained * (3 * 16 + (1 + KEPT_VERSIONS) * 4) * (1 + has_local) + base.file_size


def plan_experts(model: ModelConfig, hparams: HParams) -> ExpertsConfig:
    """What settings ask for after planning; raises `ComigsError` for a router that could not learn."""
    specialists = model.specialists or 0
    k = experts_per_token(1 + specialists, model.experts_per_token)
    form = FORMS[model.expert_form]
    form.architecture(hparams.architecture, 1 + specialists)  # raises where llama.cpp could not run it
    width = form.width(model.expert_width, model.rank, hparams)
    blocks = model.blocks or hparams.num_blocks
    if blocks > hparams.num_blocks:
        raise _too_many_blocks(blocks, hparams.num_blocks)
    last = blocks % hparams.num_blocks  # all of them are 0
    return ExpertsConfig(specialists, model.rank, model.alpha, k, model.attention, model.expert_form, width, last)
