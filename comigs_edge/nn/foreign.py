"""A LoRA that somebody else trained, as the start of a specialist: a folder as PEFT saves it, or a GGUF adapter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from comigs_edge.base.hparams import FFN, HParams, linear_shapes
from comigs_edge.errors import ComigsError
from coordinator.protocol.wire import Arrays
from quantize.gguf_file import GGUFFile

_PEFT = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.lora_([AB])\.weight")
_GGUF = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.weight\.lora_([ab])")
# What a PEFT folder may say of itself beside rank and alpha, and what of it is understood here.
_PLAIN = {
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (False,), "fan_in_fan_out": (False,), "lora_bias": (False,),
    "modules_to_save": (None, []), "rank_pattern": (None, {}), "alpha_pattern": (None, {}), "layer_replication": (None,),
}  # fmt: skip


class Foreign(NamedTuple):
    """The updates in a file: (block, matrix) -> A (R, in) and B (out, R), with alpha / R or what it is scaled by in B."""

    pairs: dict[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]
    base: str  # as the file names it; empty: it does not


def read_foreign(path: Path) -> Foreign:
    """Reads the updates; raises `ComigsError` with the reason where they are none of an MLP alone."""
    if not path.exists():
        raise ComigsError(f"{path} does not exist; name a folder as PEFT saves it, or a GGUF adapter")
    return _read_peft(path) if path.is_dir() else _read_gguf(path)


def start_with(foreign: Foreign, initial: Arrays, hparams: HParams, scale: float) -> Arrays:
    """The tensors of an expert that does what the updates do; `initial` are its own, named `blk.0.ffn_up.lora_a`.

    `scale` is the factor on its own updates. Ranks that are left over start as in `initial`. Raises `ComigsError` with the
    reason where the updates do not fit.
    """
    started = {name: array.copy() for name, array in initial.items()}
    for (block, matrix), (a, b) in foreign.pairs.items():
        name = f"blk.{block}.{matrix}"
        rows, columns = linear_shapes(hparams)[matrix]
        if a.shape[1:] != (columns,) or b.shape[:1] != (rows,) or a.shape[0] != b.shape[1]:
            raise ComigsError(
                f"the LoRA's {name} changes a matrix of {b.shape[0]} x {a.shape[1]} and this base's has {rows} x {columns}: it "
                f"belongs to another base{f', {foreign.base}' if foreign.base else ''}"
            )
        if f"{name}.lora_a" not in started:
            raise ComigsError(
                f"the LoRA changes block {block}, where this home has no experts; set blocks = 0 in [model] and train anew"
            )
        rank = started[f"{name}.lora_a"].shape[0]
        if len(a) > rank:
            raise ComigsError(
                f"the LoRA has rank {len(a)} and this home's experts {rank}; put rank = {len(a)} into [model] of config.toml "
                "before the first training"
            )
        started[f"{name}.lora_a"][: len(a)] = a
        started[f"{name}.lora_b"][:] = 0
        started[f"{name}.lora_b"][:, : len(a)] = b / np.float32(scale)
    return started


def _read_gguf(path: Path) -> Foreign:
    file = GGUFFile(path)
    if file.metadata.get("general.type") != "adapter" or file.metadata.get("adapter.type", "lora") != "lora":
        raise ComigsError(f"{path} is no LoRA adapter; a whole model is taken with: comigs-edge init --base FILE")
    alpha = float(file.metadata.get("adapter.lora.alpha", 0.0))
    halves = {name: file.dequantize(name) for name in file.tensors}
    return Foreign(
        _pair(path, halves, _GGUF, lambda rank: alpha / rank if alpha else 1.0),
        str(file.metadata.get("general.base_model.0.name", "")),
    )


def _read_peft(path: Path) -> Foreign:
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        odd = [name for name, plain in _PLAIN.items() if config.get(name, plain[0]) not in plain]
        if odd:
            raise ComigsError(f"{path} is no plain LoRA ({odd[0]} = {config[odd[0]]}), and only those are understood")
        alpha, is_stabilised = float(config["lora_alpha"]), bool(config.get("use_rslora", False))
        if not (weights := path / "adapter_model.safetensors").exists():
            raise ComigsError(
                f"{path} has no adapter_model.safetensors; save it anew with safe_serialization=True (pickles are not read)"
            )
        with safe_open(weights, "pt") as file:
            halves = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ComigsError(f"{path} is no LoRA that PEFT saved ({type(error).__name__}: {error}); get the folder again") from error
    factor = (lambda rank: alpha / math.sqrt(rank)) if is_stabilised else (lambda rank: alpha / rank)
    return Foreign(_pair(path, halves, _PEFT, factor), str(config.get("base_model_name_or_path") or ""))


def _pair(
    path: Path, halves: Arrays, pattern: re.Pattern[str], factor: Callable[[int], float]
) -> dict[tuple[int, str], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """A and B by block and matrix, B with the `factor` for its rank."""
    found: dict[tuple[int, str], dict[str, NDArray[np.float32]]] = {}
    for name, array in halves.items():
        if (match := pattern.fullmatch(name)) is None or array.ndim != 2:
            raise ComigsError(
                f"{path} changes {name}, and an expert here changes the MLP alone ({', '.join(FFN)}); it cannot be one"
            )
        found.setdefault((int(match[1]), f"ffn_{match[2]}"), {})[match[3].lower()] = np.asarray(array, np.float32)
    for place, pair in found.items():
        if set(pair) != {"a", "b"}:
            raise ComigsError(f"{path} has one half of the update of {place[1]} in block {place[0]}; get it again")
    if not found:
        raise ComigsError(f"{path} holds no update; get it again")
    return {place: (pair["a"], pair["b"] * np.float32(factor(len(pair["a"])))) for place, pair in found.items()}
