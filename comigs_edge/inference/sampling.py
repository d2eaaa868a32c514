"""How the tokens of an answer are drawn: as the person says, else as the model's file says, else by defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Parameters of llama.cpp's samplers, with its own defaults but for the last.

    With SmolLM2 135M and 50 questions, 92 of 100 answers end by themselves and 2 of 100 runs of four tokens are repeated; without
    a penalty it is 80 and 12 (benchmarks/figures/sampling.py).
    """

    temperature: float = 0.8  # 0: always the likeliest token
    top_p: float = 0.95
    top_k: float = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.1  # of tokens among the last 64; 1: none


# Keys of a GGUF file, with bounds.
_KEYS = {
    "temperature": ("general.sampling.temp", 0, 10), "top_p": ("general.sampling.top_p", 0, 1),
    "top_k": ("general.sampling.top_k", 0, 1 << 20), "min_p": ("general.sampling.min_p", 0, 1),
    "repeat_penalty": ("general.sampling.penalty_repeat", 1, 10),
}  # fmt: skip


def choose_sampling(metadata: Mapping[str, str], **wanted: float | None) -> Sampling:
    """The sampling of a model with this metadata (as llama.cpp gives it), with the parameters that are `wanted`.

    A model that names any parameter has been tuned to them: llama.cpp's defaults are beside them, without a penalty.
    """
    own = {name: value for name, (key, *bounds) in _KEYS.items() if (value := _number(metadata.get(key), *bounds)) is not None}
    chosen = replace(Sampling(repeat_penalty=1.0), **own) if own else Sampling()
    return replace(chosen, **{name: value for name, value in wanted.items() if value is not None})


def _number(text: str | None, low: float, high: float) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if low <= value <= high else None
