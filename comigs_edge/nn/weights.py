"""The base model: the frozen weights of a GGUF file.

ggml dequantises, and the rows of queries and keys are put into llama's order for RoPE. Matrices that read the same input
are joined (query, key and value; gate and up), so that each needs one product. The weights are either kept dequantised, or
they stay in the file as they are and one block at a time is dequantised into memory that is reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comigs_edge.base.hparams import check_tensors, llama_order, read_hparams
from comigs_edge.nn.tensors import Buffers
from quantize.gguf_file import GGUFFile

JOB = 1 << 18  # weights that a thread dequantises at once: 1 MB stays in the processor's cache


@dataclass(frozen=True)
class Block:
    """Frozen weights of one block, under their GGUF names.

    Matrices are (out, in), in the type that products are computed in; vectors are float32.
    """

    attn_norm: Tensor  # (D,)
    attn_q_norm: Tensor | None  # (head,)
    attn_k_norm: Tensor | None  # (head,)
    attn_qkv: Tensor  # (Q + 2 KV, D)
    attn_qkv_bias: Tensor | None  # (Q + 2 KV,)
    attn_output: Tensor  # (D, Q)
    attn_output_bias: Tensor | None  # (D,)
    ffn_norm: Tensor  # (D,)
    ffn_gate_up: Tensor  # (2 F, D)
    ffn_down: Tensor  # (D, F)


class Base:
    """A base model, ready for `model.py`; `open_base` makes one.

    With `keep` all weights are dequantised once. Without it a block's matrices are valid until another block is asked for. One
    thread at a time may use a base and the models made of it: they share `buffers`.
    """

    def __init__(self, file: GGUFFile, threads: int, keep: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.hparams, self.keep, self.dtype, self.device = read_hparams(file), keep, dtype, device
        check_tensors(file, self.hparams)
        self.buffers = Buffers()
        self._file, self._pool = file, ThreadPoolExecutor(max(1, threads))
        self._output_name = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
        # A vector is float32 and small: always kept.
        self._vectors = {name: self._read_vector(name) for name in file.tensors if self._is_vector(name)}
        file.metadata.data.clear()  # the vocabulary takes tens of megabytes, and as many of mapped pages
        file.let_go()
        self.output_norm = self._vectors["output_norm.weight"].to(device)
        self.rope_factors = self._vectors.get("rope_freqs.weight")
        self._matrices: dict[str, Tensor] = {}
        self._current: tuple[int, Block] | None = None
        self._blocks: list[Block] = []
        if keep:
            self._keep_all()

    def block(self, index: int) -> Block:
        """The weights of one block."""
        if self.keep:
            return self._blocks[index]
        if self._current is None or self._current[0] != index:
            self._current = None  # its memory is written to now
            jobs: list[Callable[[], None]] = []
            block = self._make_block(index, jobs)
            self._run(jobs)
            self._current = index, self._to_device(block)
        return self._current[1]

    def embed(self, ids: Tensor) -> Tensor:  # (N,) -> (N, D)
        """The embeddings of tokens, float32."""
        return self._gather("token_embd.weight", ids)

    def output_rows(self, ids: Tensor) -> Tensor:  # (N,) -> (N, D)
        """The output matrix's rows of these tokens, float32."""
        return self._gather(self._output_name, ids)

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embeddings."""
        return self._output_name == "token_embd.weight"

    def output_chunks(self, size: int) -> Iterator[Tensor]:
        """The output matrix, at most `size` rows at a time, each (rows, D); valid until the next is asked for."""
        memory = None if self.keep else torch.empty(size * self.hparams.width, dtype=self.dtype)
        for start in range(0, self.hparams.vocab_size, size):
            rows = slice(start, min(start + size, self.hparams.vocab_size))
            if memory is None:
                yield self._matrices[self._output_name][rows]
                continue
            chunk = memory[: (rows.stop - start) * self.hparams.width].view(-1, self.hparams.width)
            jobs: list[Callable[[], None]] = []
            self._add_jobs(self._output_name, chunk, rows, jobs)
            self._run(jobs)
            yield chunk.to(self.device)

    @staticmethod
    def _is_vector(name: str) -> bool:
        return "norm" in name or name.endswith(".bias") or name == "rope_freqs.weight"

    def _read_vector(self, name: str) -> Tensor:
        vector, order = torch.from_numpy(self._file.dequantize(name)), self._order(name)
        return vector if order is None else vector[order]

    def _order(self, name: str) -> list[int] | None:
        return llama_order(self.hparams, name.split(".", 2)[-1]) if name.startswith("blk.") else None

    def _keep_all(self) -> None:
        jobs: list[Callable[[], None]] = []
        blocks = [self._make_block(index, jobs) for index in range(self.hparams.num_blocks)]
        for name in {"token_embd.weight", self._output_name}:
            self._matrices[name] = torch.empty(self._file.tensors[name].shape, dtype=self.dtype)
            self._add_jobs(name, self._matrices[name], slice(0, self.hparams.vocab_size), jobs)
        self._run(jobs)
        self._blocks = [self._to_device(block) for block in blocks]
        self._matrices = {name: matrix.to(self.device) for name, matrix in self._matrices.items()}

    def _to_device(self, block: Block) -> Block:
        tensors: dict[str, Any] = {k: None if v is None else v.to(self.device) for k, v in vars(block).items()}
        return Block(**tensors)

    def _make_block(self, index: int, jobs: list[Callable[[], None]]) -> Block:
        """A block whose matrices are filled by `jobs`, which are added to the list."""

        def vector(*names: str) -> Tensor | None:
            there = [f"blk.{index}.{name}" for name in names if f"blk.{index}.{name}" in self._vectors]
            return torch.cat([self._vectors[name] for name in there]) if there else None

        def norm(name: str) -> Tensor:
            return self._vectors[f"blk.{index}.{name}.weight"]

        def matrix(*names: str) -> Tensor:
            return self._make_matrix([f"blk.{index}.{name}.weight" for name in names], "/".join(names), jobs)

        return Block(
            attn_norm=norm("attn_norm"),
            attn_q_norm=vector("attn_q_norm.weight"),
            attn_k_norm=vector("attn_k_norm.weight"),
            attn_qkv=matrix("attn_q", "attn_k", "attn_v"),
            attn_qkv_bias=vector("attn_q.bias", "attn_k.bias", "attn_v.bias"),
            attn_output=matrix("attn_output"),
            attn_output_bias=vector("attn_output.bias"),
            ffn_norm=norm("ffn_norm"),
            ffn_gate_up=matrix("ffn_gate", "ffn_up"),
            ffn_down=matrix("ffn_down"),
        )

    def _make_matrix(self, names: list[str], label: str, jobs: list[Callable[[], None]]) -> Tensor:
        """One matrix with the rows of all `names`, one below the other."""
        shapes = [self._file.tensors[name].shape for name in names]
        size = (sum(shape[0] for shape in shapes), shapes[0][1])
        like = torch.empty(0, dtype=self.dtype)
        joined = torch.empty(size, dtype=self.dtype) if self.keep else self.buffers.take(f"base {label}", size, like)
        for name, part in zip(names, torch.split(joined, [shape[0] for shape in shapes]), strict=True):
            self._add_jobs(name, part, slice(0, len(part)), jobs)
        return joined

    def _add_jobs(self, name: str, target: Tensor, rows: slice, jobs: list[Callable[[], None]]) -> None:
        """Adds the jobs that write these rows of a matrix to `target`."""
        order = self._order(name)
        places = None if order is None else torch.argsort(torch.tensor(order))
        step = max(1, JOB // target.shape[1])
        for start in range(rows.start, rows.stop, step):
            part = slice(start, min(start + step, rows.stop))
            where = slice(part.start - rows.start, part.stop - rows.start)
            jobs.append(partial(self._dequantize, name, part, target, where if places is None else places[part]))

    def _dequantize(self, name: str, rows: slice, target: Tensor, places: slice | Tensor) -> None:
        if isinstance(places, slice) and target.dtype == torch.float32:
            self._file.dequantize(name, target[places].numpy(), rows)
        else:
            target[places] = torch.from_numpy(self._file.dequantize(name, rows=rows)).to(target.dtype)

    def _run(self, jobs: list[Callable[[], None]]) -> None:
        list(self._pool.map(lambda job: job(), jobs))  # ggml releases Python's lock
        self._file.let_go()

    def _gather(self, name: str, ids: Tensor) -> Tensor:
        if self.keep:
            return self._matrices[name][ids].float()
        return torch.from_numpy(self._file.gather(name, ids.cpu().numpy())).to(self.device)


def open_base(path: Path, threads: int = 2, keep: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Base:
    """The base at `path`; `threads` dequantise, products are computed in `dtype`.

    `keep` False leaves the weights in the file and dequantises each block before it computes. Raises `QuantizeError` for a
    file that is not readable GGUF and `ComigsError` for one that is not a dense model of a known architecture.
    """
    return Base(GGUFFile(path), threads, keep, dtype, torch.device(device))
