"""How llama.cpp runs a model at chat: threads, memory map, cache of keys and values, batch, layers on a GPU, with reasons.

Figures stand in `rules.toml`; `comigs-edge bench` measures what they rest on, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from profiles import RULES, ProfileError

Cache = Literal["F16", "Q8_0"]
CACHES: dict[Cache, float] = {"F16": 2.0, "Q8_0": 34 / 32}  # bytes a number; Q8_0: 32 numbers with one scale of two bytes
BATCHES = (512, 128)  # tokens of a prompt that are computed together
NO_GPU = "no GPU that llama.cpp can use"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is run, in numbers."""

    size: int  # bytes of its files
    repacked: int = 0  # bytes of them that llama.cpp copies, see `repacked_formats`
    num_blocks: int
    heads: int
    keys: int  # width of a token's keys, and of its values
    head: int  # width of a head
    ff_width: int
    context: int  # tokens that are wanted
    context_length: int  # tokens, the longest that it was trained for

    @property
    def layers(self) -> int:
        """As llama.cpp counts what a GPU can take: the blocks, and the output."""
        return self.num_blocks + 1


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What llama.cpp can compute on beside the processor; several count as one."""

    name: str
    free: int  # bytes of its memory
    is_shared: bool  # its memory is the device's own, as on a Jetson


@dataclass(frozen=True, kw_only=True)
class ChatPlan:
    """How to run it; `reasons` has a sentence for each line."""

    threads: int
    context: int  # tokens
    mmap: bool  # the file is mapped and not read into memory
    cache: Cache  # how keys and values are kept
    batch: int
    memory: int  # bytes of the device's, beside the program's own
    gpu_layers: int = 0  # that a GPU computes
    reasons: dict[str, str] = field(default_factory=dict)


def repacked_formats(features: tuple[str, ...]) -> set[str]:
    """Block formats of which llama.cpp copies the weights, on a processor with these features; none with AMX, see `llamacpp`."""
    return set() if "amx" in features else {name for each in features for name in RULES["repack"].get(each, ())}


def peak_memory(subject: Subject, cache: Cache, batch: int, elsewhere: float = 0.0) -> int:
    """Bytes that a conversation takes beside the program, when the context is full.

    `elsewhere` is the share of the layers that lie in a GPU's own memory.
    """
    layers = subject.size + subject.repacked + _kept(subject, cache)
    return int((1 - elsewhere) * layers + _work(subject, cache, batch))


def _kept(subject: Subject, cache: Cache) -> float:
    """Bytes of keys and values."""
    return 2 * subject.num_blocks * subject.keys * subject.context * CACHES[cache]


def _work(subject: Subject, cache: Cache, batch: int) -> float:
    """Bytes that computing a batch takes."""
    rules = RULES["chat"]
    scores = rules["scores"] * subject.heads * subject.context if cache == "F16" else 0  # Q8_0 wants flash attention
    return float(batch * (rules["token"] * subject.ff_width + scores) + rules["spare"])


def choose_layers(
    subject: Subject, cache: Cache, batch: int, gpu: GPU | None, *, wanted: int | None = None, lacking: str = NO_GPU
) -> tuple[int, str]:
    """How many layers the GPU computes, and why; `lacking` says why there is none.

    Raises `ProfileError` for layers that are `wanted` where there is none.
    """
    if gpu is None:
        if wanted:
            raise ProfileError(
                f"gpu_layers = {wanted} is asked for and there is {lacking}; go on with: --plan gpu_layers=0, or delete "
                "gpu_layers from [chat] in config.toml"
            )
        return 0, "as asked for" if wanted == 0 else lacking
    if wanted is not None:
        return min(wanted, subject.layers), "as asked for"
    if gpu.is_shared:
        return subject.layers, f"all: the memory of {gpu.name} is the device's own"
    budget = int(gpu.free * RULES["gpu"]["share"])
    layer = (subject.size + _kept(subject, cache)) / subject.layers
    fitting = max(0, min(subject.layers, int((budget - _work(subject, cache, batch)) / layer)))
    what = "all" if fitting == subject.layers else f"no more of {subject.layers}"
    return fitting, f"{what} fit in the {budget / 1e6:,.0f} MB of {gpu.name} that may be used"


def make(
    subject: Subject, *, cores: int, busy: float, free: int, wanted: dict[str, Any], slow: int = 0, gpu: GPU | None = None,
    lacking: str = NO_GPU,
) -> ChatPlan:  # fmt: skip
    """The fastest way that fits in `free` bytes, with the `wanted` lines and no more context than the model was trained with.

    `cores` may be used, of which other programs keep `busy` busy, and `slow` ones beside them are left alone; `gpu` and `lacking`
    are as in `choose_layers`. Raises `ProfileError` saying which context would fit if nothing does.
    """
    wanted = {name: value for name, value in wanted.items() if value is not None}
    threads = max(1, cores - round(busy))
    context = min(subject.context, subject.context_length)
    is_capped, subject = context < subject.context, replace(subject, context=context)
    start = ChatPlan(threads=threads, context=context, mmap=True, cache="F16", batch=BATCHES[0], memory=0)
    reasons = {
        "context": "the base was trained with no more" if is_capped else "as config.toml says",
        "threads": _threads_reason(threads, cores, busy, slow),
        "mmap": _mmap_reason(subject),
    }
    budget = int(free * RULES["memory"]["share"])
    for plan in _candidates(replace(start, **wanted), subject, wanted):
        layers, why = choose_layers(subject, plan.cache, plan.batch, gpu, wanted=wanted.get("gpu_layers"), lacking=lacking)
        elsewhere = 0.0 if gpu is None or gpu.is_shared else layers / subject.layers
        plan = replace(plan, gpu_layers=layers, memory=peak_memory(subject, plan.cache, plan.batch, elsewhere))
        if plan.memory <= budget:
            named = {name: "as asked for" for name in wanted} | {"gpu_layers": why}
            on_gpu = {"mmap": "what the GPU computes is copied to it, and the pages leave memory when it is short"}
            reasons |= on_gpu if layers == subject.layers else {}
            return replace(plan, reasons=reasons | _memory_reasons(plan, start, budget) | named)
    raise ProfileError(
        f"a chat with a context of {subject.context:,} tokens takes {plan.memory / 1e6:,.0f} MB, and {budget / 1e6:,.0f} of the "
        f"{free / 1e6:,.0f} MB that are free may be used; " + _would_fit(subject, plan, budget)
    )


def _threads_reason(threads: int, cores: int, busy: float, slow: int) -> str:
    if threads < cores:
        return f"other programs keep {busy:.1f} of {cores} cores busy"
    return f"the fast cores; {slow} slow ones would hold them up" if slow else "every core"


def _mmap_reason(subject: Subject) -> str:
    copied = "nothing is copied"
    if subject.repacked:
        copied = f"{subject.repacked / 1e6:,.0f} MB are copied into the order that this processor multiplies fastest"
    return f"{copied}, and pages that are not used leave memory when it is short"


def _candidates(start: ChatPlan, subject: Subject, wanted: dict[str, Any]) -> Iterator[ChatPlan]:
    """From the fastest to the smallest. Blocks of 32 numbers must fit into a head."""
    caches = [wanted["cache"]] if "cache" in wanted else [name for name in CACHES if name == "F16" or not subject.head % 32]
    for cache in caches:
        for batch in [wanted["batch"]] if "batch" in wanted else BATCHES:
            yield replace(start, cache=cache, batch=batch)


def _memory_reasons(plan: ChatPlan, start: ChatPlan, budget: int) -> dict[str, str]:
    fits = f"takes {plan.memory / 1e6:,.0f} of the {budget / 1e6:,.0f} MB that may be used"
    return {
        "cache": "the fastest" if plan.cache == start.cache else "half the memory and a little slower: F16 would not fit",
        "batch": "llama.cpp's own" if plan.batch == start.batch else "less memory: 512 would not fit",
        "memory": fits,
    }


def _would_fit(subject: Subject, plan: ChatPlan, budget: int) -> str:
    context = subject.context
    while context > 64 and peak_memory(replace(subject, context=context), plan.cache, plan.batch) > budget:
        context //= 2
    if context <= 64:
        return "end other programs, or take a smaller base: comigs-edge bases list"
    return f"set context = {context} in [chat] of config.toml, or end other programs"
