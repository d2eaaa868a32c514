"""What a device can carry: the plan of a training, from the device, the base and the text, with a reason for each line.

The memory model predicts the peak of the whole process; README has its error on bases and settings. Figures that were
measured or chosen stand in `rules.toml`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from profiles import DeviceProfile, ProfileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RULES: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "rules.toml").read_text())
BYTES = {"float32": 4, "bfloat16": 2}
OPTIMISER = 5  # float32 numbers for every trained weight: itself, its gradient, two moments, the best state so far
LOGITS = 1 << 22  # numbers of the logits that are there at once: 16 MB of float32
# Tokens of a checkpointed block that are computed at once: few keep the memory low, many make the products faster (bfloat16
# 3.4 s in place of 5.3 s a step with 256, float32 5.5 in place of 6.4).
PIECES = {"block": 512, "attention": 1024}
SHORT_ROWS = 512  # tokens; up to here the attention's weights (T, T) of every head are kept, see `short_rows.py`


@dataclass(frozen=True)
class Sizes:
    """What training the base takes, in numbers."""

    num_blocks: int
    width: int
    ff_width: int
    heads: int
    queries: int
    keys: int
    vocab_size: int
    is_tied: bool
    file_size: int  # bytes
    expert_weights: int  # of one expert, in all blocks

    @property
    def block_weights(self) -> int:
        """Of the matrices of one block."""
        return self.width * (2 * self.queries + 2 * self.keys + 3 * self.ff_width)

    @property
    def weights(self) -> int:
        """Of all matrices, the embeddings once more if the output has its own."""
        return self.num_blocks * self.block_weights + self.vocab_size * self.width * (1 if self.is_tied else 2)


@dataclass(frozen=True)
class Rates:
    """Measured on the device: products in FLOP/s by precision, and the threads they were measured with."""

    products: dict[str, float]
    threads: int
    backend: str = "blas"  # the faster one for float32: blas or onednn


@dataclass(frozen=True)
class Plan:
    """How to train on a device; `reasons` has a sentence for each line."""

    specialists: int
    batch: int  # rows
    context: int  # tokens
    threads: int
    precision: str  # that products are computed in: float32 or bfloat16
    keep: bool  # the base's weights dequantised ahead; otherwise block by block
    checkpointing: str  # what is computed again for the backward pass: block, attention (and the small rest), none
    memory: int  # bytes, at the peak of the process
    backend: str = "blas"  # that computes products in float32: torch's BLAS or oneDNN
    step_seconds: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def peak_memory(sizes: Sizes, plan: Plan) -> int:
    """Bytes that the training process takes at its peak."""
    rules, width, hidden = RULES["memory"], sizes.width, sizes.ff_width
    number, tokens = BYTES[plan.precision], plan.batch * plan.context
    per_block = sizes.num_blocks * tokens
    if plan.keep:
        base = sizes.weights * number
    else:
        base = sizes.block_weights * number + LOGITS // tokens * width * number + (1 << 20) * 4
    experts = (1 + plan.specialists) * sizes.expert_weights * 4 * OPTIMISER
    kept = per_block * width * 4  # the residual stream
    if plan.checkpointing != "block":
        kept += per_block * 2 * hidden * number  # what gate and up give
    if plan.checkpointing == "none":
        attention = 4 * sizes.queries  # numbers a token: queries, repeated keys and values, result
        if plan.context <= SHORT_ROWS:
            attention = sizes.queries + 2 * sizes.keys + sizes.heads * plan.context
        kept += per_block * (width * (12 + 2 * number) + 4 * attention)  # and what the attention keeps
    piece = min(tokens, max(plan.context, PIECES.get(plan.checkpointing, tokens)))
    at_once = rules["piece"] * piece * (width + hidden / 4) * (2 + number / 2) + 4 * tokens * width * 4
    own = base + experts + kept + at_once + LOGITS * 4 * (1 if number == 4 else 1.5)
    return int(rules["process"] + rules["token"] * sizes.vocab_size + rules["spare"] * own)


def step_seconds(sizes: Sizes, plan: Plan, rates: Rates) -> float:
    """Seconds of an expert step, from the device's own rate of matrix products."""
    rules, tokens = RULES["time"], plan.batch * plan.context
    again = {"block": 2 * (sizes.block_weights - sizes.width * sizes.ff_width), "none": 0}
    again["attention"] = 2 * (sizes.block_weights - 3 * sizes.width * sizes.ff_width)
    needed = 4 * (sizes.num_blocks * sizes.block_weights + sizes.vocab_size * sizes.width)
    operations = tokens * (needed + sizes.num_blocks * again[plan.checkpointing])
    seconds: float = operations / (rules["efficiency"] * rates.products[plan.precision])
    seconds += rules["pass_seconds"] * tokens * sizes.num_blocks * (sizes.ff_width + 3 * sizes.width) / plan.threads
    if not plan.keep:
        seconds += (2 * sizes.num_blocks * sizes.block_weights + sizes.vocab_size * sizes.width) / (
            rules["dequantise"] * plan.threads
        )
    return seconds


def make(
    profile: DeviceProfile, memory: int, free: int, sizes: Sizes, tokens: int | None = None, rates: Rates | None = None,
    wanted: dict[str, Any] | None = None,
) -> Plan:  # fmt: skip
    """The fastest plan that fits.

    `memory` is the device's and `free` what a program may take of it, in bytes; `tokens` are the training text's (None:
    not known); `wanted` has lines that the user or an earlier training has fixed. Raises `ProfileError` saying what would
    fit if nothing does.
    """
    wanted = {name: value for name, value in (wanted or {}).items() if value is not None}
    start, reasons = _start(profile, memory, tokens, rates, wanted)
    budget = int(free * RULES["memory"]["share"])
    for plan in _candidates(start, wanted):
        peak = peak_memory(sizes, plan)
        if peak > budget:
            continue
        plan = replace(plan, memory=peak, step_seconds=None if rates is None else step_seconds(sizes, plan, rates))
        return replace(plan, reasons=reasons | _memory_reasons(plan, start, budget, wanted))
    smallest = list(
        _candidates(start, {name: wanted[name] for name in ("specialists", "precision") if name in wanted})
    )[-1]
    least = peak_memory(sizes, smallest)
    raise ProfileError(
        f"training takes {_gb(peak)} at the least with {plan.batch} x {plan.context} tokens, and {_gb(budget)} of the "
        f"{_gb(free)} that are free may be used; "
        + (
            f"{smallest.batch} rows of {smallest.context} tokens would fit ({_gb(least)}): set batch and context in config.toml"
            if least <= budget
            else "end other programs, or take a smaller base: comigs-edge models list"
        )
    )


def neighbours(plan: Plan, sizes: Sizes, rates: Rates | None) -> list[Plan]:
    """The same with one specialist fewer and one more."""
    changed = [replace(plan, specialists=n) for n in (plan.specialists - 1, plan.specialists + 1) if n >= 0]
    return [
        replace(
            each, memory=peak_memory(sizes, each), reasons={},
            step_seconds=None if rates is None else step_seconds(sizes, each, rates),
        )
        for each in changed
    ]  # fmt: skip


def _start(
    profile: DeviceProfile, memory: int, tokens: int | None, rates: Rates | None, wanted: dict[str, Any]
) -> tuple[Plan, dict[str, str]]:
    """What the device and the text call for, before memory is looked at."""
    reasons = {name: "as asked for" for name in wanted}
    specialists, why = _specialists(profile, memory, tokens)
    precision, why_precision = _precision(rates)
    threads = profile.usable_threads if rates is None else rates.threads
    backend = "blas" if rates is None else rates.backend
    start = Plan(specialists, profile.batch, profile.context, threads, precision, True, "none", 0, backend)
    reasons = {
        "specialists": why, "precision": why_precision,
        "batch": f"profile {profile.name}", "context": f"profile {profile.name}",
        "threads": "the fastest that was measured" if rates else "all cores that this process may use",
        "backend": "the faster one for products in float32" if rates else "not measured yet",
    } | reasons  # fmt: skip
    return replace(start, **wanted), reasons


def _specialists(profile: DeviceProfile, memory: int, tokens: int | None) -> tuple[int, str]:
    if profile.specialists is not None:
        return profile.specialists, f"profile {profile.name}"
    rules = RULES["specialists"]
    for number in range(len(rules["tokens"]), 1, -1):
        if tokens is not None and tokens >= rules["tokens"][number - 1] and memory >= rules["memory"][number - 1]:
            return number, f"{tokens:,} training tokens and {_gb(memory)} of memory carry {number}"
    if tokens is None:
        return 1, "no text yet: one is right for little text"
    if len(rules["tokens"]) > 1 and tokens >= rules["tokens"][1]:
        return 1, f"{_gb(memory)} of memory: a second one wants {_gb(rules['memory'][1])}"
    return 1, f"{tokens:,} training tokens: a second one wants {rules['tokens'][1]:,}"


def _precision(rates: Rates | None) -> tuple[str, str]:
    if rates is None or "bfloat16" not in rates.products:
        return "float32", "no bfloat16 instructions" if rates else "not measured yet"
    ratio = rates.products["bfloat16"] / rates.products["float32"]
    if ratio < 1.3:
        return "float32", f"bfloat16 products were measured at {ratio:.1f} times the speed"
    return "bfloat16", f"bfloat16 products were measured at {ratio:.1f} times the speed of float32"


def _candidates(start: Plan, wanted: dict[str, Any]) -> Iterator[Plan]:
    """From the fastest to the leanest, then with fewer tokens in a step."""
    modes = [(True, "none"), (True, "attention"), (True, "block"), (False, "block")]
    modes = [m for m in modes if wanted.get("keep", m[0]) == m[0] and wanted.get("checkpointing", m[1]) == m[1]]
    batch, context = start.batch, start.context
    while True:
        for keep, checkpointing in modes:
            yield replace(start, batch=batch, context=context, keep=keep, checkpointing=checkpointing)
        if batch > 1 and batch * context > RULES["batch"]["fewest"] and "batch" not in wanted:
            batch //= 2
        elif context > 64 and "context" not in wanted and "batch" not in wanted:
            context //= 2
        else:
            return


def _memory_reasons(plan: Plan, start: Plan, budget: int, wanted: dict[str, Any]) -> dict[str, str]:
    fits = f"takes {_gb(plan.memory)} of the {_gb(budget)} that may be used"
    found = {
        "keep": "dequantised ahead: " + fits if plan.keep else "stays quantised, block by block: " + fits,
        "checkpointing": {
            "none": "nothing is computed twice: there is memory for it",
            "attention": "the MLP's products are kept, the attention is computed again: less memory",
            "block": "every block is computed again in the backward pass: least memory",
        }[plan.checkpointing],
        "memory": "predicted for the whole process",
    }
    if plan.batch < start.batch:
        found["batch"] = f"{start.batch} rows would not fit"
    if plan.context < start.context:
        found["context"] = f"{start.context} tokens would not fit"
    return {name: "as asked for" if name in wanted else reason for name, reason in found.items()}


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
