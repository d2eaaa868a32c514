"""What a training takes: the memory model, which predicts the peak of the whole process, and the time model.

docs/measurements.md has the errors of both on bases and settings. Figures that were measured stand in `rules.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from profiles import RULES

BYTES = {"float32": 4, "bfloat16": 2}
# float32 numbers for every trained weight: itself, its gradient, two moments (with Muon one, and what its step has at once), the
# best state so far
OPTIMISER = 5
LOGITS = 1 << 22  # numbers of the logits that are there at once: 16 MB of float32
# Tokens of a checkpointed block that are computed at once: few keep the memory low, many make the products faster (bfloat16
# 3.4 s in place of 5.3 s a step with 256, float32 5.5 in place of 6.4).
PIECES = {"block": 512, "attention": 1024}
Precision = Literal["float32", "bfloat16"]
# What is computed again for the backward pass: whole blocks (least memory); all but the MLP's gate and up; nothing.
Checkpointing = Literal["block", "attention", "none"]
Backend = Literal["blas", "onednn"]
Processor = Literal["cpu", "cuda"]
SHORT_ROWS = 512  # tokens; up to here the attention's weights (T, T) of every head are kept, see `nn/short_attention.py`


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What training the base takes, in numbers."""

    num_blocks: int
    width: int
    ff_width: int
    heads: int
    queries: int
    keys: int
    vocab_size: int
    context_length: int  # tokens, the longest that it was trained for
    is_tied: bool
    file_size: int  # bytes
    expert_weights: int  # of one expert, in all blocks
    is_low_rank: bool = False  # experts are updates of the base's own matrices

    @property
    def block_weights(self) -> int:
        """Of the matrices of one block."""
        return self.width * (2 * self.queries + 2 * self.keys + 3 * self.ff_width)

    @property
    def weights(self) -> int:
        """Of all matrices, the embeddings once more if the output has its own."""
        return self.num_blocks * self.block_weights + self.vocab_size * self.width * (1 if self.is_tied else 2)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured on the device: products in FLOP/s by precision, and the threads they were measured with."""

    products: dict[Precision, float]
    threads: int
    backend: Backend = "blas"  # the faster one for float32
    device: Processor = "cpu"
    gpu_memory: int | None = None  # bytes that are free on the GPU
    slower: dict[str, float] = field(
        default_factory=dict
    )  # by a plan's mode: factors on a step's time, of trainings on this device


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train on a device; `reasons` has a sentence for each line."""

    specialists: int
    batch: int  # rows
    context: int  # tokens
    threads: int
    precision: Precision  # that products are computed in
    keep: bool  # the base's weights dequantised ahead; otherwise block by block
    checkpointing: Checkpointing
    memory: int  # bytes, at the peak of the process
    backend: Backend = "blas"  # that computes products in float32: torch's BLAS or oneDNN
    step_seconds: float | None = None  # the mean over a training
    device: Processor = "cpu"  # that computes
    blocks: int = 0  # number of final blocks that have experts; 0: all
    cache: bool = False  # the outputs of the blocks without experts stay on disk
    zero_expert: bool = False  # the training ends with an expert that adds nothing
    cuda_graph: bool = False  # a step's kernels are started by one call
    cached: float = 0.0  # share of the tokens whose outputs are in that cache
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        """How a step is computed; what its time is wrong by in one mode says nothing of another."""
        return f"{self.precision} {'kept' if self.keep else 'lean'} {self.checkpointing}{' graph' * self.cuda_graph}"


def peak_memory(sizes: Sizes, plan: Plan) -> int:
    """Bytes that the training process takes at its peak."""
    rules, width, hidden = RULES["memory"], sizes.width, sizes.ff_width
    number, tokens = BYTES[plan.precision], plan.batch * plan.context
    trained = plan.blocks or sizes.num_blocks
    per_block = trained * tokens
    if plan.keep:
        base = sizes.weights * number
    else:
        base = sizes.block_weights * number + LOGITS // tokens * width * number + (1 << 20) * 4
    experts = (1 + plan.specialists) * sizes.expert_weights * trained // sizes.num_blocks * 4 * OPTIMISER
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
    trained = plan.blocks or sizes.num_blocks
    below = (sizes.num_blocks - trained) * (1 - plan.cached)  # blocks that are only computed forward
    again = {"block": 2 * (sizes.block_weights - sizes.width * sizes.ff_width), "none": 0}
    again["attention"] = rules["attention"] * 2 * (sizes.block_weights - 3 * sizes.width * sizes.ff_width)
    needed = (4 * trained + 2 * rules["forward"] * below) * sizes.block_weights + 4 * sizes.vocab_size * sizes.width
    operations = tokens * (needed + trained * again[plan.checkpointing])
    seconds: float = operations / (_efficiency(plan, rates) * rates.products[plan.precision])
    passes = trained + RULES["cache"]["forward"] * below
    seconds += rules["pass_seconds"] * tokens * passes * (sizes.ff_width + 3 * sizes.width) / plan.threads
    if sizes.is_low_rank:
        seconds *= rules["low_rank"]
    if not plan.keep:
        weights = (2 * trained + below) * sizes.block_weights + sizes.vocab_size * sizes.width
        seconds += weights / (rules["dequantise"] * plan.threads)
    if rates.device == "cuda" and not plan.cuda_graph:  # kernels are started while earlier ones run
        seconds = max(seconds, RULES["gpu"]["start"] * trained)
    return seconds * rates.slower.get(plan.mode, 1.0)


def _efficiency(plan: Plan, rates: Rates) -> float:
    rules = RULES["time"]
    is_half = plan.precision == "bfloat16" and rates.device == "cpu"
    return float(rules["efficiency"] * (rules["alone"] if plan.threads == 1 else 1.0) * (rules["half"] if is_half else 1.0))


def cache_bytes(sizes: Sizes, tokens: int) -> int:
    """On the disk, for these tokens' outputs of the blocks without experts: float16, and a factor."""
    return tokens * (2 * sizes.width + 4)
