"""The base model: the frozen weights of a GGUF file.

Weights are dequantised once, by ggml, into float32 tensors, and the rows of queries and keys put into llama's order for
RoPE. Matrices that read the same input are joined (query, key and value; gate and up), so that each needs one product.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comigs_edge.shape import Shape, check_tensors, llama_order, read_shape
from quantize.gguf_file import GGUFFile


@dataclass(frozen=True)
class Block:
    """Frozen float32 weights of one block; matrices are (out, in)."""

    attn_norm: Tensor  # (D,)
    q_norm: Tensor | None  # (head,)
    k_norm: Tensor | None  # (head,)
    qkv: Tensor  # (Q + 2 KV, D)
    qkv_bias: Tensor | None  # (Q + 2 KV,)
    attn_output: Tensor  # (D, Q)
    attn_output_bias: Tensor | None  # (D,)
    ffn_norm: Tensor  # (D,)
    gate_up: Tensor  # (2 F, D)
    down: Tensor  # (D, F)


@dataclass(frozen=True)
class Base:
    """A base model, ready for `model.py`. `output` is the embedding itself where the file ties them."""

    shape: Shape
    blocks: list[Block]
    embedding: Tensor  # (V, D)
    output_norm: Tensor  # (D,)
    output: Tensor  # (V, D)
    rope_factors: Tensor | None  # (rope_width / 2,): divides the rotation frequencies (Llama 3.x)


def open_base(path: Path, threads: int = 2) -> Base:
    """Reads and dequantises the base at `path`, on `threads` threads.

    Raises `QuantizeError` for a file that is not readable GGUF and `ComigsError` for one that is no dense model of a known kind.
    """
    file = GGUFFile(path)
    shape = read_shape(file)
    check_tensors(file, shape)
    load = _Loader(file, shape)
    blocks = [load.block(index) for index in range(shape.num_blocks)]
    embedding = load.join("token_embd.weight")
    base = Base(
        shape,
        blocks,
        embedding,
        output_norm=load.join("output_norm.weight"),
        output=load.join("output.weight") if "output.weight" in file.tensors else embedding,
        rope_factors=load.join("rope_freqs.weight") if "rope_freqs.weight" in file.tensors else None,
    )
    load.run(threads)
    return base


class _Loader:
    """Makes the tensors first and fills them afterwards, on several threads (ggml releases Python's lock)."""

    def __init__(self, file: GGUFFile, shape: Shape) -> None:
        self.file, self.shape = file, shape
        self.jobs: list[tuple[str, Tensor]] = []

    def join(self, *names: str) -> Tensor:
        """One tensor with the rows of all `names`, one below the other."""
        shapes = [self.file.tensors[name].shape for name in names]
        joined = torch.empty(sum(shape[0] for shape in shapes), *shapes[0][1:])
        self.jobs += zip(names, torch.split(joined, [shape[0] for shape in shapes]), strict=True)
        return joined

    def block(self, index: int) -> Block:
        def at(name: str) -> str:
            return f"blk.{index}.{name}"

        def optional(*names: str) -> Tensor | None:
            return self.join(*map(at, names)) if at(names[0]) in self.file.tensors else None

        return Block(
            attn_norm=self.join(at("attn_norm.weight")),
            q_norm=optional("attn_q_norm.weight"),
            k_norm=optional("attn_k_norm.weight"),
            qkv=self.join(at("attn_q.weight"), at("attn_k.weight"), at("attn_v.weight")),
            qkv_bias=optional("attn_q.bias", "attn_k.bias", "attn_v.bias"),
            attn_output=self.join(at("attn_output.weight")),
            attn_output_bias=optional("attn_output.bias"),
            ffn_norm=self.join(at("ffn_norm.weight")),
            gate_up=self.join(at("ffn_gate.weight"), at("ffn_up.weight")),
            down=self.join(at("ffn_down.weight")),
        )

    def run(self, threads: int) -> None:
        with ThreadPoolExecutor(max(1, threads)) as pool:
            list(pool.map(self._fill, self.jobs))

    def _fill(self, job: tuple[str, Tensor]) -> None:
        name, tensor = job
        self.file.dequantize(name, tensor.numpy())
        order = llama_order(self.shape, name.split(".", 2)[-1]) if name.startswith("blk.") else None
        if order is not None:
            tensor.copy_(tensor[order])


def rope_tables(shape: Shape, factors: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation, each (length, rope_width / 2), as llama.cpp computes them.

    The angle of position p and pair j is p * rope_scale * base^(-2j / rope_width) / factor_j.
    """
    pairs = torch.arange(0, shape.rope_width, 2, dtype=torch.float64)
    frequencies = torch.exp(pairs * (-math.log(shape.rope_base) / shape.rope_width)) * shape.rope_scale
    if factors is not None:
        frequencies = frequencies / factors.double()
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def tensor_to_numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A float32 array with the tensor's values, on the CPU and without history."""
    return tensor.detach().cpu().float().numpy()
