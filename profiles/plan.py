"""What a device can carry: the plan of a training, from the device, the base and the text, with a reason for each line.

Figures that were measured or chosen stand in `rules.toml`; `cost.py` has the memory and the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from profiles import RULES, DeviceProfile, ProfileError
from profiles.cost import Checkpointing, Plan, Precision, Rates, Sizes, cache_bytes, peak_memory, step_seconds


def make(
    profile: DeviceProfile, sizes: Sizes, rates: Rates | None, wanted: dict[str, Any], *, memory: int, free: int,
    tokens: int | None, disk: int = 0, steps: int = 0,
) -> Plan:  # fmt: skip
    """The fastest plan that fits.

    `memory` is the device's and `free` what a program may take of it, in bytes; `tokens` are the training text's (None:
    not known); `wanted` has lines that the user or an earlier training has fixed; `disk` bytes may hold outputs of blocks
    without experts; `steps` are the expert steps. Raises `ProfileError` saying what would fit if nothing does.
    """
    wanted = {name: value for name, value in wanted.items() if value is not None}
    start, reasons = _start(profile, sizes, memory, tokens, rates, wanted)
    budget = int(free * RULES["memory"]["share"])
    if rates is not None and rates.gpu_memory is not None:
        budget = int(rates.gpu_memory * RULES["gpu"]["share"])
    for plan in _candidates(start, wanted):
        peak = peak_memory(sizes, plan)
        if peak > budget:
            continue
        plan, why = _with_cache(plan, sizes, tokens, disk, steps, wanted)
        plan = replace(plan, memory=peak, step_seconds=None if rates is None else step_seconds(sizes, plan, rates))
        reasons |= {"cache": why} | _memory_reasons(plan, start, budget, wanted)
        if plan.cuda_graph and rates is not None and plan.mode not in rates.slower:
            reasons["step_seconds"] = "by their products alone: steps as a CUDA graph were not measured here yet"
        return replace(plan, reasons=reasons)
    smallest = list(_candidates(start, {name: wanted[name] for name in ("specialists", "precision") if name in wanted}))[-1]
    least = peak_memory(sizes, smallest)
    raise ProfileError(
        f"training takes {_gb(peak)} at the least with {plan.batch} x {plan.context} tokens, and {_gb(budget)} of the "
        f"{_gb(free)} that are free may be used; "
        + (
            f"{smallest.batch} rows of {smallest.context} tokens would fit ({_gb(least)}): set batch and context in config.toml"
            if least <= budget
            else "end other programs, or take a smaller base: comigs-edge bases list"
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
    profile: DeviceProfile, sizes: Sizes, memory: int, tokens: int | None, rates: Rates | None, wanted: dict[str, Any]
) -> tuple[Plan, dict[str, str]]:
    """What the device and the text call for, before memory is looked at."""
    reasons = {name: "as asked for" for name in wanted}
    specialists, why = _specialists(profile, memory, tokens)
    precision, why_precision = _precision(rates)
    device = "cpu" if rates is None else rates.device
    start = Plan(
        specialists=specialists, batch=profile.batch, context=min(profile.context, sizes.context_length),
        threads=profile.usable_threads if rates is None else rates.threads, precision=precision, keep=True,
        checkpointing="none", memory=0, backend="blas" if rates is None else rates.backend, device=device,
    )  # fmt: skip
    reasons = {
        "specialists": why, "precision": why_precision,
        "batch": f"profile {profile.name}",
        "context": f"profile {profile.name}" if start.context == profile.context else "the base was trained with no more",
        "threads": "the fastest that was measured" if rates else "all cores that this process may use",
        "device": "a GPU that torch can use" if device == "cuda" else "no GPU that torch can use",
        "backend": "the faster one for products in float32" if rates else "not measured yet", "blocks": "in every block",
        "cuda_graph": "never tried on a GPU; to try it there: --plan cuda_graph=true",
    } | reasons  # fmt: skip
    return replace(start, **wanted), reasons


def _with_cache(plan: Plan, sizes: Sizes, tokens: int | None, disk: int, steps: int, wanted: dict[str, Any]) -> tuple[Plan, str]:
    """The plan with or without the outputs of the blocks without experts on disk, and why."""
    if not plan.blocks:
        return replace(plan, cache=False), "every block learns"
    tokens = int(RULES["cache"]["spare"] * (tokens or 0))
    size = cache_bytes(sizes, tokens)
    takes = f"the outputs of the other {sizes.num_blocks - plan.blocks} blocks take {_gb(size)} of the disk"
    cache = wanted.get("cache", size <= disk)
    if not cache:
        return plan, "as asked for" if "cache" in wanted else f"{takes}, and {_gb(disk)} are for it"
    cached = max(0.0, 1 - tokens / max(1, steps * plan.batch * plan.context))
    return replace(plan, cache=True, cached=cached), "as asked for" if "cache" in wanted else takes


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
    return 1, f"{tokens:,} training tokens: a second one wants {rules['tokens'][1]:,} (a guess)"


def _precision(rates: Rates | None) -> tuple[Precision, str]:
    if rates is None or "bfloat16" not in rates.products:
        return "float32", "no bfloat16 instructions" if rates else "not measured yet"
    ratio = rates.products["bfloat16"] / rates.products["float32"]
    if ratio < 1.3:
        return "float32", f"bfloat16 products were measured at {ratio:.1f} times the speed"
    return "bfloat16", f"bfloat16 products were measured at {ratio:.1f} times the speed of float32"


def _candidates(start: Plan, wanted: dict[str, Any]) -> Iterator[Plan]:
    """From the fastest to the leanest, then with fewer tokens in a step."""
    modes: list[tuple[bool, Checkpointing]] = [(True, "none"), (True, "attention"), (True, "block"), (False, "block")]
    modes = [m for m in modes if wanted.get("keep", m[0]) == m[0] and wanted.get("checkpointing", m[1]) == m[1]]
    modes = [m for m in modes if m[0] or not start.cuda_graph]
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
    reasons = {
        "keep": "dequantised ahead: " + fits if plan.keep else "stays quantised, block by block: " + fits,
        "checkpointing": {
            "none": "nothing is computed twice: there is memory for it",
            "attention": "the MLP's products are kept, the attention is computed again: less memory",
            "block": "every block is computed again in the backward pass: least memory",
        }[plan.checkpointing],
        "memory": "predicted for the whole process",
    }
    if plan.batch < start.batch:
        reasons["batch"] = f"{start.batch} rows would not fit"
    if plan.context < start.context:
        reasons["context"] = f"{start.context} tokens would not fit"
    return {name: "as asked for" if name in wanted else reason for name, reason in reasons.items()}


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
