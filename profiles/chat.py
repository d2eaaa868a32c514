"""How llama.cpp runs a model at chat on a device: threads, memory map, cache of keys and values, batch, each with its reason.

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


@dataclass(frozen=True, kw_only=True)
class ChatPlan:
    """How to run it; `reasons` has a sentence for each line."""

    threads: int
    context: int  # tokens
    mmap: bool  # the file is mapped and not read into memory
    cache: Cache  # how keys and values are kept
    batch: int
    memory: int  # bytes, beside the program's own
    reasons: dict[str, str] = field(default_factory=dict)


def repacked_formats(features: tuple[str, ...]) -> set[str]:
    """Block formats of which llama.cpp copies the weights, on a processor with these features; none with AMX, see `llamacpp`."""
    return set() if "amx" in features else {name for each in features for name in RULES["repack"].get(each, ())}


def peak_memory(subject: Subject, cache: Cache, batch: int) -> int:
    """Bytes that a conversation takes beside the program, when the context is full."""
    rules = RULES["chat"]
    kept = 2 * subject.num_blocks * subject.keys * subject.context * CACHES[cache]
    scores = rules["scores"] * subject.heads * subject.context if cache == "F16" else 0  # Q8_0 wants flash attention
    return int(subject.size + subject.repacked + kept + batch * (rules["token"] * subject.ff_width + scores) + rules["spare"])


def make(subject: Subject, *, cores: int, busy: float, free: int, wanted: dict[str, Any], slow: int = 0) -> ChatPlan:
    """The fastest way that fits in `free` bytes, with the `wanted` lines and no more context than the model was trained with.

    `cores` may be used, of which other programs keep `busy` busy, and `slow` ones beside them are left alone. Raises
    `ProfileError` saying which context would fit if nothing does.
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
        plan = replace(plan, memory=peak_memory(subject, plan.cache, plan.batch))
        if plan.memory <= budget:
            named = {name: "as asked for" for name in wanted}
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
