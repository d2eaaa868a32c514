"""How fast llama.cpp reads prompts and generates here: the base and models with experts, side by side.

Measured is llama.cpp alone, as its own llama-bench does: the prompt is made of token numbers and nothing is sampled from
the answers. Experts are freshly initialised, for what they hold does not change the work. The models are measured in
turn, round after round, so that what slows the device down meets all of them and the ratios stay right.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from comigs_edge import llamacpp
from comigs_edge.base.hparams import read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.export import hot
from comigs_edge.export.current import HOT_PARTS
from comigs_edge.export.merged import export, planned_size
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.progress import SILENT, Advance, Progress, count_up
from quantize.gguf_file import GGUFFile

CONTEXT_MEMORY = 150_000_000  # bytes beside its weights that a loaded model takes, at most
PARTS = ("prompt", "generation")


class Work(NamedTuple):
    """What a round measures, and how many there are."""

    prompt: int  # tokens that are read together
    generated: int  # tokens, one by one
    rounds: int
    gpu_layers: int = 0


FULL, QUICK = Work(256, 48, 5), Work(64, 16, 3)


@dataclass(frozen=True)
class Plan:
    """A model that can be written: its experts, and how the file holds them."""

    kind: str
    adapters: Adapters
    layout: str  # merged or hot
    format: str
    size: int  # bytes, of all its files


@dataclass(frozen=True)
class Candidate:
    """A model to measure."""

    kind: str
    path: Path
    adapters: tuple[Path, ...] = ()
    cache: str = "F16"  # one of `llamacpp.CACHES`
    may_be_refused: bool = False  # by llama.cpp; it is then left out

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in (self.path, *self.adapters))


class Sample(NamedTuple):
    """One measurement: the tokens that llama.cpp counted, and seconds."""

    tokens: tuple[int, int]  # in the order of PARTS
    seconds: tuple[float, float]


class Rate(NamedTuple):
    """Tokens a second over the rounds."""

    tokens: int  # in each round
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    kind: str
    size: int  # bytes, of its files
    resident: int | None  # bytes by which this process grew; None where the system does not tell
    peak: int | None
    samples: dict[int, list[Sample]] = field(default_factory=dict)  # by number of threads

    def rate(self, threads: int, part: str) -> Rate:
        """Tokens a second with `threads` threads in `part`, one of PARTS."""
        index, samples = PARTS.index(part), self.samples[threads]
        rates = [sample.tokens[index] / sample.seconds[index] for sample in samples]
        return Rate(samples[0].tokens[index], statistics.median(rates), min(rates), max(rates))

    def ratio(self, base: Measured, threads: int, part: str) -> float:
        """How many times as fast as `base`."""
        return self.rate(threads, part).median / base.rate(threads, part).median

    @property
    def fastest_threads(self) -> int:
        """With how many threads answers come fastest."""
        return max(self.samples, key=lambda threads: self.rate(threads, "generation").median)


def plan(base: GGUFFile, kind: str, experts: ExpertsConfig, layout: str, format_name: str) -> Plan:
    """A model with new experts beside the base; raises what `export` raises if there can be no such file."""
    adapters = Adapters.initial(experts, read_hparams(base), seed=0)
    size = (hot.planned_size if layout == "hot" else planned_size)(base, adapters, format_name)
    metadata = base.path.stat().st_size - sum(tensor.size for tensor in base.tensors.values())
    return Plan(kind, adapters, layout, format_name, size + metadata)


def check_space(plans: Sequence[Plan], folder: Path, free: int) -> None:
    """Raises `ComigsError` unless the files of these plans fit into the free bytes of the disk that holds `folder`."""
    needed = sum(each.size for each in plans)
    if needed > free:
        raise ComigsError(
            f"the models to measure take {needed / 1e6:,.0f} MB for a while and {folder} has {free / 1e6:,.0f} MB free; "
            f"make room for {(needed - free) / 1e6:,.0f} MB, or name another disk with "
            "COMIGS_EDGE_HOME (where there is no home yet: TMPDIR)"
        )


def write(base: GGUFFile, plans: Sequence[Plan], folder: Path, threads: int = 1, progress: Progress = SILENT) -> list[Candidate]:
    """Writes the models into `folder`; `progress` receives bytes."""
    total, before, written = sum(each.size for each in plans), 0, []

    def advance(count: int, _: int) -> None:
        progress(before + count, total)

    for each in plans:
        target = folder / f"{each.kind}.gguf"
        if each.layout == "hot":
            written.append(_write_hot(base, each, target, advance))
        else:
            export(base, each.adapters, each.format, target, progress=advance, threads=threads)
            written.append(Candidate(each.kind, target))
        before += each.size
    return written


def _write_hot(base: GGUFFile, each: Plan, target: Path, progress: Progress) -> Candidate:
    hot.write_base(base, each.adapters, each.format, target, progress=progress)
    parts = tuple(target.with_stem(f"{each.kind}-{part}") for part in HOT_PARTS)
    for part, path in zip(HOT_PARTS, parts, strict=True):
        hot.write_adapter(base, each.adapters, part, each.format, path, "")
    return Candidate(each.kind, target, parts)


def fits_together(candidates: Sequence[Candidate], memory: int) -> bool:
    """Whether `memory` free bytes hold all models at once; llama.cpp repacks some formats, which takes their size again."""
    return sum(2 * each.size + CONTEXT_MEMORY for each in candidates) <= memory


def measure(
    candidates: Sequence[Candidate], work: Work, threads: Sequence[int], together: bool, progress: Progress = SILENT
) -> tuple[list[Measured], dict[str, str]]:
    """Speeds of all candidates, and why others were left out; `together`: all are loaded and take turns."""
    results: list[Measured] = []
    left_out: dict[str, str] = {}
    turns = work.rounds * len(threads)
    advance = count_up(progress, len(candidates) * (1 + turns))
    for group in [list(candidates)] if together else [[each] for each in candidates]:
        with contextlib.ExitStack() as stack:
            running = []
            for each in group:
                try:
                    running.append(stack.enter_context(_load(each, work, max(threads))))
                except ComigsError as error:
                    if not each.may_be_refused:
                        raise
                    left_out[each.kind] = str(error)
                    advance(turns)
                advance(1)
            _take_turns(running, work, threads, advance)
            results += [each.measured for each in running]
    return results, left_out


class _Running(NamedTuple):
    llama: Any
    measured: Measured


@contextlib.contextmanager
def _load(candidate: Candidate, work: Work, threads: int) -> Iterator[_Running]:
    """The model in llama.cpp, warm."""
    before = _forget_peak()
    llama = llamacpp.load(
        candidate.path, n_ctx=work.prompt + work.generated, n_threads=threads, n_threads_batch=threads,
        **llamacpp.CACHES[candidate.cache], **llamacpp.gpu_options(work.gpu_layers),
    )  # fmt: skip
    try:
        if candidate.adapters:
            llamacpp.LoadedAdapters(llama).use(candidate.adapters)
        pace(llama, work.prompt, 1)
        yield _Running(llama, Measured(candidate.kind, candidate.size, _grown("RSS", before), _grown("HWM", before)))
    finally:
        llama.close()


def _take_turns(running: list[_Running], work: Work, threads: Sequence[int], advance: Advance) -> None:
    for number in range(work.rounds):
        first = number % max(1, len(running))  # no model always follows the same one
        for count in threads:
            for llama, measured in [*running[first:], *running[:first]]:
                llamacpp.use_threads(llama, count)
                measured.samples.setdefault(count, []).append(pace(llama, work.prompt, work.generated))
                advance(1)


def pace(llama: Any, prompt: int, generated: int) -> Sample:
    """Reads `prompt` tokens together and then `generated` one by one, as many as the prompt at most."""
    tokens = [(31 * index + 7) % llama.n_vocab() for index in range(prompt)]
    llama.reset()
    llamacpp.reset_counts(llama)
    start = time.perf_counter()
    llama.eval(tokens)
    llamacpp.wait(llama)
    read = time.perf_counter()
    for token in tokens[:generated]:
        llama.eval([token])
        llamacpp.wait(llama)
    end = time.perf_counter()
    return Sample(llamacpp.counts(llama), (read - start, end - read))


def _forget_peak() -> int | None:
    """Resets the peak of this process's memory; returns what it holds now.

    What it has freed goes back to the system first: a model that took it over would seem smaller than it is.
    """
    with contextlib.suppress(AttributeError):  # not every C library is glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("RSS")


def _grown(what: str, before: int | None) -> int | None:
    now = _memory(what)
    return None if now is None or before is None else now - before


def _memory(what: str) -> int | None:
    """Bytes that this process holds: RSS now, HWM at its peak; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"Vm{what}:")), None)
