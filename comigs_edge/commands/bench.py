"""`comigs-edge bench`: how fast llama.cpp runs the base and each form of expert on this device, before any training."""

from __future__ import annotations

import contextlib
import json as json_text
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import profiles
from comigs_edge import __version__, files
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.base.hparams import check_tensors, read_hparams
from comigs_edge.commands.console import bar, next_command, notes, out, place_for, print_json, warn
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.config import BaseConfig, Config
from comigs_edge.nn.experts import Form
from profiles.detect import Device, detect
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile

if TYPE_CHECKING:
    from rich.table import Table

    from comigs_edge.inference.throughput import Measured, Plan, Work
    from comigs_edge.planning.doctor import Conditions

MODELS: dict[str, tuple[Form, str]] = {  # form and layout
    "parallel": ("parallel", "merged"), "lora": ("lora", "merged"), "hot": ("lora", "hot"),
}  # fmt: skip
CACHES = {"flash": "F16 flash", "flash_q8_0": "Q8_0"}  # of the base alone
LABELS = {
    "base": "base", "parallel": "parallel experts", "lora": "LoRA experts, merged", "hot": "LoRA experts, hot",
    "flash": "base, flash, F16 cache", "flash_q8_0": "base, flash, Q8_0 cache",
}  # fmt: skip
BUSY = 0.5  # processes that wanted to run in the last minute
PREFIX = "comigs-edge-bench-"  # of the temporary folder
DEAD_SECONDS = 86_400  # its age when a kill has left it behind


def bench(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tokens and rounds: sooner, and less sure.")] = False,
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="Measure 1 and this number of threads; default: 1 and all usable ones.")
    ] = None,
    lines: Annotated[
        Optional[list[str]], typer.Option("--plan", metavar="NAME=VALUE", help="gpu_layers=0: llama.cpp leaves the GPU alone.")
    ] = None,
    output: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Write the JSON to this file as well.")] = None,
) -> None:
    """Measure llama.cpp's tokens a second here: the base against each form of expert. No training needed."""
    home = homes.locate()
    settings, base = _subject(home)
    gpu_layers = _gpu_layers(settings, lines or [])
    counts, target = _thread_counts(threads, settings), place_for(output)
    with notes.status("loading"):
        from comigs_edge.inference.throughput import FULL, QUICK
        from comigs_edge.planning.doctor import conditions

        device, here = detect(), conditions(base.parent)
    if here.load > BUSY:
        warn(
            f"the load of the last minute is {here.load:.1f}: another program runs or ran beside this one, so the figures may "
            "be too low (ratios less so); find it with: top"
        )
    work = QUICK if quick else FULL
    with _workplace(home.root if home.exists else Path(tempfile.gettempdir())) as folder:
        results, facts = _measure(settings, base, folder, work, counts, gpu_layers)
    record = _record(settings, base, device, here, work, results) | facts
    if json:
        print_json(record)
    else:
        _show(results, facts["left_out"], settings)
        if facts["gpu_layers"]:
            out.print(f"{facts['gpu_layers']} layers were computed by the GPU; without it: comigs-edge bench --plan gpu_layers=0")
    if target:
        files.write_atomic(target, (json_text.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    if not json:
        next_command("comigs-edge status" if home.exists else "comigs-edge init")


def _subject(home: homes.Home) -> tuple[Config, Path]:
    """The home's settings and base; without a home the default ones."""
    if home.exists:
        return settings_of(home), home.base_file
    name, path = find_base(DEFAULT_BASE)
    return Config(base=BaseConfig(name, "", path.stat().st_size)), path


def _thread_counts(wanted: int | None, settings: Config) -> list[int]:
    cores = profiles.available_cores()
    if wanted is not None and wanted > cores:
        raise ComigsError(f"--threads {wanted} is more than the {cores} cores that this process may use; name 1 to {cores}")
    return sorted({1, wanted or settings.threads("chat")})


def _gpu_layers(settings: Config, lines: list[str]) -> int | None:
    """As many as are asked for; None: as many as fit."""
    from comigs_edge.planning import plan as planning

    wanted: int | None = planning.parse(lines, planning.GPU_LINE).get("gpu_layers", settings.chat.gpu_layers)
    return wanted


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, also after Ctrl-C and SIGTERM; one that SIGKILL left behind goes a day later."""
    for path in parent.glob(f"{PREFIX}*"):
        if time.time() - path.stat().st_mtime > DEAD_SECONDS:
            shutil.rmtree(path, ignore_errors=True)

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with _temporary(parent) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def _temporary(parent: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent)
    except OSError as error:
        raise ComigsError(
            f"{parent} cannot hold the models to measure ({error.strerror or error}); make it writable, or name another "
            "folder with COMIGS_EDGE_HOME (where there is no home yet: TMPDIR)"
        ) from error


def _measure(
    settings: Config, base: Path, folder: Path, work: Work, counts: list[int], gpu_layers: int | None
) -> tuple[list[Measured], dict[str, Any]]:
    """Writes the models, measures them, and says how that was done."""
    from comigs_edge.inference import throughput as speed
    from comigs_edge.inference.throughput import Candidate
    from comigs_edge.planning import offload

    plans, left_out = _plans(settings, GGUFFile(base))
    speed.check_space(plans, folder.parent, shutil.disk_usage(folder).free)
    with bar("writing the models") as progress:
        written = speed.write(GGUFFile(base), plans, folder, settings.threads("chat"), progress)
    variants = [Candidate(kind, base, (), cache, may_be_refused=True) for kind, cache in CACHES.items()]
    candidates = [Candidate("base", base), *written, *variants]
    together = speed.fits_together(candidates, detect().usable_memory)
    largest = max(each.size for each in candidates)
    layers = offload.gpu_layers(base, work.prompt + work.generated, size=largest, wanted=gpu_layers)
    with bar("measuring") as progress:
        results, refused = speed.measure(candidates, work._replace(gpu_layers=layers), counts, together, progress)
    experts = {each.kind: asdict(each.adapters.layout) | {"format": each.format} for each in plans}
    return results, {"experts": experts, "in_turn": together, "gpu_layers": layers, "left_out": left_out | refused}


def _plans(settings: Config, base: GGUFFile) -> tuple[list[Plan], dict[str, str]]:
    """A model of each kind with 1 generalist + 1 specialist as the settings have them, and why others cannot be."""
    from comigs_edge.export import hot
    from comigs_edge.inference import throughput as speed
    from comigs_edge.planning.plan import plan_experts

    hparams = read_hparams(base)
    check_tensors(base, hparams)
    plans, left_out = [], {}
    for kind, (form, layout) in MODELS.items():
        stored = settings.storage(layout).format
        if layout == "hot" and stored not in hot.FORMATS:
            stored = hot.FORMATS[0]
        try:
            model = replace(settings.model, specialists=1, experts_per_token=2, expert_form=form)
            experts = plan_experts(model, hparams)
            plans.append(speed.plan(base, kind, experts, layout, stored))
        except (ComigsError, QuantizeError) as error:
            left_out[kind] = str(error)
    return plans, left_out


def _record(
    settings: Config, base: Path, device: Device, here: Conditions, work: Work, results: list[Measured]
) -> dict[str, Any]:
    from comigs_edge.planning.doctor import versions

    return {
        "device": {"model": device.model, "cores": [asdict(each) for each in device.cores], "features": device.features},
        "versions": {"comigs-edge": __version__} | versions(),
        "base": {"name": settings.base.name, "megabytes": _megabytes(base.stat().st_size)},
        "load_before": round(here.load, 2), "is_busy": here.load > BUSY, "rounds": work.rounds,
        "models": {each.kind: _figures(each, results[0]) for each in results},
    }  # fmt: skip


def _figures(each: Measured, base: Measured) -> dict[str, Any]:
    from comigs_edge.inference.throughput import PARTS

    speeds: dict[str, Any] = {}
    for threads in each.samples:
        row = speeds[str(threads)] = {}
        for part in PARTS:
            rate = each.rate(threads, part)
            row[part] = {
                "tokens": rate.tokens, "tokens_per_second": round(rate.median, 3), "lowest": round(rate.low, 3),
                "highest": round(rate.high, 3), "ratio_to_base": round(each.ratio(base, threads, part), 4),
            }  # fmt: skip
    return {
        "megabytes": _megabytes(each.size), "megabytes_ratio_to_base": round(each.size / base.size, 4),
        "resident_megabytes": _megabytes(each.resident), "peak_resident_megabytes": _megabytes(each.peak),
        "threads": speeds, "fastest_threads_for_chat": each.fastest_threads,
    }  # fmt: skip


def _megabytes(count: int | None) -> float | None:
    return None if count is None else round(count / 1e6, 3)


def _show(results: list[Measured], left_out: dict[str, str], settings: Config) -> None:
    counts = list(results[0].samples)
    for threads in counts:
        out.print(_table(results, threads))
    for kind, reason in left_out.items():
        out.print(f"left out: {LABELS[kind]}: {reason}", soft_wrap=True)
    mine = next(each for kind in (settings.model.expert_form, "lora", "base") for each in results if each.kind == kind)
    if len(counts) > 1:
        rates = ", ".join(f"{_short(mine.rate(n, 'generation').median)} with {_count(n)}" for n in counts)
        out.print(
            f"Chat is fastest with {_count(mine.fastest_threads)} ({LABELS[mine.kind]}: {rates} tokens/s); "
            f"it takes {_count(settings.threads('chat'))} (profile {settings.profile}).",
            soft_wrap=True,
        )


def _table(results: list[Measured], threads: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    from comigs_edge.inference.throughput import PARTS

    table = Table("model", "file MB", "memory MB", *PARTS, title=f"tokens a second with {_count(threads)}")
    base = results[0]
    for each in results:
        cells: list[Text | str] = [f"{each.size / 1e6:.1f} ({each.size / base.size:.2f})"]
        cells.append("" if each.peak is None else f"{each.peak / 1e6:.0f}")
        for part in PARTS:
            rate = each.rate(threads, part)
            ratio = each.ratio(base, threads, part)
            spread = f"{_short(rate.low)} to {_short(rate.high)}"
            cells.append(Text.assemble(f"{_short(rate.median)} ({ratio:.2f})\n", (spread, "dim")))
        table.add_row(LABELS[each.kind], *cells)
    table.caption = "medians, in brackets against the base; below them lowest and highest"
    return table


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _count(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"
