"""A step's forward and backward pass as a CUDA graph: its thousands of small kernels are started by one call.

A graph does again what was done while it was captured, with the same memory and the numbers that Python had then. So a batch is
copied to a place that stays, where nobody looks at it: its shapes are those of any other batch (`batches.py`). What changes from
step to step in Python, rates and counts, belongs to the optimisers, which stay outside. There is a graph for each kind of step:
which tensors learn, in which block format, on which shapes. The first steps of a kind are computed as they come, because
libraries take memory when they are first used.

What is captured is tested on the processor (`tests/training/test_captured.py`); no graph was ever captured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from comigs_edge.nn.model import Model, Watch
from comigs_edge.nn.routing_stats import BlockMeans
from comigs_edge.nn.tensors import to_device
from comigs_edge.training.batches import Batch

WARM_UP = 3  # steps of a kind before it is captured

Compute = Callable[[Batch], Tensor]  # forward and backward pass; its loss


class Graphs(Protocol):
    """What captures."""

    def warm_up(self, compute: Compute, batch: Batch) -> Tensor:
        """Computes it once."""

    def capture(self, compute: Compute, batch: Batch) -> tuple[Tensor, Callable[[], None]]:
        """Where the loss will be, and what computes it anew. Raises `RuntimeError` if it cannot be captured."""


class _Graph(NamedTuple):
    loss: Tensor
    replay: Callable[[], None]
    gradients: list[tuple[Tensor, Tensor]]
    watch: Watch | None  # what has watched it
    memory: list[Tensor]  # that it reads and writes, and that must not go to others


@dataclass
class _Kind:
    """One kind of step."""

    batch: Batch  # the place from which the pass reads
    steps: int = 0  # that were computed to warm up
    graph: _Graph | None = None


class Captured:
    """Computes the passes of `model`, whose base is on a GPU and kept dequantised, by graphs."""

    def __init__(self, model: Model, graphs: Graphs) -> None:
        assert model.adapters is not None
        self._model, self._graphs, self._tensors = model, graphs, list(model.adapters.named.values())
        self._kinds: dict[object, _Kind] = {}
        self._problem: str | None = None
        self._gave_up = False

    def __call__(self, batch: Batch, compute: Compute) -> Tensor:
        """`compute` of the batch, with gradients that were cleared before."""
        if self._gave_up:
            return compute(batch)
        kind = self._kind(batch)
        if kind.steps < WARM_UP:
            kind.steps += 1
            return self._graphs.warm_up(compute, kind.batch)
        try:
            graph = kind.graph = kind.graph or self._capture(compute, kind.batch)
        except RuntimeError as error:
            self._give_up(error)
            return compute(batch)
        graph.replay()
        for tensor, gradient in graph.gradients:
            tensor.grad = gradient
        if isinstance(self._model.watch, BlockMeans) and isinstance(graph.watch, BlockMeans):
            self._model.watch.take(graph.watch)
        return graph.loss.clone()  # it is read when the next step has begun

    def take_problem(self) -> str | None:
        """A sentence on why it captures no more, once."""
        problem, self._problem = self._problem, None
        return problem

    def forget(self) -> None:
        """Gives the graphs' memory back; what comes is captured anew."""
        self._kinds.clear()

    def _kind(self, batch: Batch) -> _Kind:
        """The kind of the step that comes, with this batch in its place."""
        tensors = batch.tensors()
        key = (
            self._model.block_format, tuple(tensor.requires_grad for tensor in self._tensors),
            tuple((name, tensor.shape) for name, tensor in tensors.items()),
        )  # fmt: skip
        device = self._model.base.device
        if key not in self._kinds:
            places: dict[str, Any] = {name: torch.empty_like(tensor, device=device) for name, tensor in tensors.items()}
            self._kinds[key] = _Kind(replace(batch, **places))
        for place, tensor in zip(self._kinds[key].batch.tensors().values(), tensors.values(), strict=True):
            place.copy_(to_device(tensor, device))
        return self._kinds[key]

    def _capture(self, compute: Compute, batch: Batch) -> _Graph:
        loss, replay = self._graphs.capture(compute, batch)
        gradients = [(tensor, tensor.grad) for tensor in self._tensors if tensor.grad is not None]
        return _Graph(loss, replay, gradients, self._model.watch, self._model.memory())

    def _give_up(self, error: RuntimeError) -> None:
        self._gave_up = True
        self._problem = (
            f"steps could not be captured as a CUDA graph ({str(error).splitlines()[0]}): the training goes on without one; "
            "leave it out of the next one: --plan cuda_graph=false"
        )
        self.forget()
        for tensor in self._tensors:
            tensor.grad = None


class CudaGraphs:
    """Captures on the current CUDA device. All graphs share memory: what one leaves is used before another is replayed."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, compute: Compute, batch: Batch) -> Tensor:
        """On the stream on which it will be captured."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = compute(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def capture(self, compute: Compute, batch: Batch) -> tuple[Tensor, Callable[[], None]]:
        """Nothing is computed while it is captured."""
        graph = torch.cuda.CUDAGraph()
        # Back to the present stream also where the end of a capture raises.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = compute(batch)
        return loss, graph.replay
