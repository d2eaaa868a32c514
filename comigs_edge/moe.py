"""The mixture of experts in place of a block's MLP (CoMiGS, Fan et al. 2025, arXiv:2409.13931).

Every expert is the frozen MLP with its own low-rank updates; a linear router chooses k experts for each token and the
weights are the softmax over the chosen logits, which is llama.cpp's rule for the llama architecture. As the weights of a
token sum to 1, the frozen MLP is computed once, whatever the number of experts E:

    y = W2 sum_e w_e h_e + s sum_e w_e B2_e A2_e h_e,   h_e = silu(W1 x + s B1_e A1_e x) * (W3 x + s B3_e A3_e x)

Shapes: N tokens, M tokens of a chunk, D width, F hidden width, E experts, K experts per token, R rank.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from comigs_edge.lora import LoRA

# Tokens worked on at once: a chunk's hidden layers (256 x 3,072 float32, 3 MB) stay in the processor's cache.
CHUNK = 256


class Expert(NamedTuple):
    """The low-rank updates of one expert in one block."""

    gate: LoRA  # (F, D)
    up: LoRA  # (F, D)
    down: LoRA  # (D, F)


class Routing(NamedTuple):
    """What the router decided."""

    weights: Tensor  # (N, E), rows sum to 1, zero where an expert is not chosen
    probabilities: Tensor  # (N, E), softmax over all experts


def route(logits: Tensor, k: int) -> Routing:  # (N, E)
    """Weights of the k experts with the largest logits, for each token."""
    probabilities = F.softmax(logits, dim=-1)
    if k == logits.shape[1]:
        return Routing(probabilities, probabilities)
    top, chosen = logits.topk(k, dim=-1)  # (N, K), (N, K)
    weights = torch.zeros_like(logits).scatter(1, chosen, F.softmax(top, dim=-1))
    return Routing(weights, probabilities)


def balance_loss(routing: Routing) -> Tensor:
    """The paper's generalist-favouring load-balance loss (eq. 10) of one block; a scalar.

    (f_0 P_0 + (E - 1) sum_j f_j P_j) / ((E - 1)^2 + 1), f = share of tokens that chose an expert, P = its mean
    probability. It is constant where every token chooses every expert and E = 2, so it teaches nothing there.
    """
    others = routing.weights.shape[1] - 1
    share = (routing.weights > 0).float().mean(0)  # (E,)
    factors = share.new_tensor([1.0] + [float(others)] * others)
    return (factors * share * routing.probabilities.mean(0)).sum() / (others**2 + 1)


class Frozen(NamedTuple):
    """The frozen weights of a block's MLP, with the norm in front of it."""

    norm: Tensor  # (D,)
    eps: float
    gate_up: Tensor  # (2F, D)
    down: Tensor  # (D, F)


def mixture(
    x: Tensor, mlp: Frozen, experts: list[Expert], routing: Routing | None, factor: float
) -> Tensor:  # (N, D) -> (N, D)
    """The mixture's output for the residual stream `x`, before its norm.

    `routing` is None for one expert alone; `factor` is the scale of every low-rank update.
    """
    weights, sparse = None, False
    if routing is not None:
        weights, sparse = routing.weights, routing.weights is not routing.probabilities
    updates = [tensor for expert in experts for update in expert for tensor in update]
    out: Tensor = _Mixture.apply(x, weights, mlp, factor, sparse, *updates)  # type: ignore[no-untyped-call]
    return out


class _Mixture(torch.autograd.Function):
    """Forward and backward of the mixture, `CHUNK` tokens at a time.

    Only the input and the routing weights are kept; hidden layers are computed again for the backward pass. No gradient
    is ever formed for the frozen matrices, and none for the experts while only the router learns.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor | None, mlp: Frozen, factor: float, sparse: bool, *updates: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weights, *updates)
        ctx.mlp, ctx.factor, ctx.sparse = mlp, factor, sparse
        chunk = _Chunk(mlp, factor, sparse, _experts(updates))
        out = torch.empty_like(x)
        for rows in _chunks(len(x)):
            normed = x[rows] * inverse_rms(x[rows], mlp.eps) * mlp.norm
            chunk.forward(normed, _at(weights, rows), out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, *updates = ctx.saved_tensors
        mlp, chunk = ctx.mlp, _Chunk(ctx.mlp, ctx.factor, ctx.sparse, _experts(updates))
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grads: list[Tensor] = [torch.zeros_like(update) for update in updates] if any(ctx.needs_input_grad[5:]) else []
        for rows in _chunks(len(x)):
            inverse = inverse_rms(x[rows], mlp.eps)
            normed, target = x[rows] * inverse * mlp.norm, _at(grad_x, rows)
            chunk.backward(normed, _at(weights, rows), grad[rows], target, _at(grad_weights, rows), _experts(grads))
            if target is not None:
                target.copy_(rms_norm_backward(target, x[rows], mlp.norm, inverse))
        none: list[Tensor | None] = [None] * len(updates)
        return grad_x, grad_weights, None, None, None, *(grads or none)


def inverse_rms(x: Tensor, eps: float) -> Tensor:  # (N, D) -> (N, 1)
    """1 / sqrt(mean(x^2) + eps)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """The gradient (N, D) of x, from that of x * inverse * weight."""
    grad = grad * weight
    along = (grad * x).mean(-1, keepdim=True).mul_(inverse * inverse)  # (N, 1)
    return grad.sub_(x * along).mul_(inverse)


class _Chunk:
    """The arithmetic on one chunk of M tokens. `sparse`: a weight of zero means that the expert is not computed."""

    def __init__(self, mlp: Frozen, factor: float, sparse: bool, experts: list[Expert]) -> None:
        self.gate_up, self.down, self.factor, self.sparse, self.experts = mlp.gate_up, mlp.down, factor, sparse, experts
        self.ff_width, self.rank = mlp.down.shape[1], experts[0].gate.a.shape[0]
        # The small matrices of all experts side by side: one product each instead of one for every expert.
        self.gate_up_a = torch.cat([a for e in experts for a in (e.gate.a, e.up.a)])  # (E 2R, D)
        self.down_b = torch.cat([e.down.b for e in experts], dim=1)  # (D, E R)

    def forward(self, x: Tensor, weights: Tensor | None, out: Tensor) -> None:
        base = torch.mm(x, self.gate_up.T, out=_scratch("base", x, 2 * self.ff_width))  # (M, 2F)
        low = x @ self.gate_up_a.T  # (M, E 2R)
        mixed = _scratch("mixed", x, self.ff_width).zero_()
        low_down = x.new_zeros(len(x), self.down_b.shape[1])  # (M, E R)
        for index, expert in enumerate(self.experts):
            rows = self._rows(weights, index)
            gate, up = self._gate_up(base, low, index, rows)
            hidden = F.silu(gate, inplace=True).mul_(up)
            if weights is not None:
                hidden *= weights[rows, index, None]
            low_down[rows, self._ranks(index)] = hidden @ expert.down.a.T
            _add(mixed, rows, hidden)
        torch.mm(mixed, self.down.T, out=out)
        out.addmm_(low_down, self.down_b.T, alpha=self.factor)

    def backward(
        self, x: Tensor, weights: Tensor | None, grad: Tensor, grad_x: Tensor | None, grad_weights: Tensor | None,
        grads: list[Expert],
    ) -> None:  # fmt: skip
        """Writes `grad_x` (M, D) and `grad_weights` (M, E), adds to `grads`; each may be missing (None, empty)."""
        base = torch.mm(x, self.gate_up.T, out=_scratch("base", x, 2 * self.ff_width))  # (M, 2F)
        low = x @ self.gate_up_a.T  # (M, E 2R)
        grad_mixed = torch.mm(grad, self.down, out=_scratch("mixed", x, self.ff_width))  # (M, F)
        grad_low_down = (grad @ self.down_b).mul_(self.factor)  # (M, E R)
        grad_base, grad_low = _scratch("grad_base", x, 2 * self.ff_width).zero_(), torch.zeros_like(low)
        for index, expert in enumerate(self.experts):
            rows = self._rows(weights, index)
            gate, up = self._gate_up(base, low, index, rows)
            sigmoid = torch.sigmoid(gate, out=_scratch("sigmoid", gate, self.ff_width))
            silu = gate.mul_(sigmoid)
            hidden = torch.mul(silu, up, out=_scratch("hidden", gate, self.ff_width))  # (M', F)
            grad_hidden = torch.addmm(
                grad_mixed[rows], grad_low_down[rows, self._ranks(index)], expert.down.a,
                out=_scratch("grad_hidden", gate, self.ff_width),
            )  # fmt: skip
            # silu'(g) = s + g s (1 - s) = s + silu - silu s
            slope = torch.addcmul(sigmoid, silu, sigmoid, value=-1, out=sigmoid).add_(silu)
            if grad_weights is not None:
                grad_weights[rows, index] = torch.linalg.vecdot(grad_hidden, hidden)
            if weights is not None:
                weight = weights[rows, index, None]
                grad_hidden.mul_(weight)
                hidden.mul_(weight)
            if grads:
                small = hidden @ expert.down.a.T  # (M', R)
                grads[index].down.a.addmm_(grad_low_down[rows, self._ranks(index)].T, hidden)
                grads[index].down.b.addmm_(grad[rows].T, small, alpha=self.factor)
            grad_gate, grad_up = slope.mul_(up).mul_(grad_hidden), silu.mul_(grad_hidden)
            self._backward_gate_up(index, rows, low, grad_gate, grad_up, grad_base, grad_low, grads)
        if grads:
            grad_a = grad_low.T @ x  # (E 2R, D)
            for index, (gate_a, up_a) in enumerate(_pairs(torch.split(grad_a, self.rank))):
                grads[index].gate.a.add_(gate_a)
                grads[index].up.a.add_(up_a)
        if grad_x is not None:
            torch.mm(grad_base, self.gate_up, out=grad_x)
            grad_x.addmm_(grad_low, self.gate_up_a)

    def _backward_gate_up(
        self, index: int, rows: Tensor | slice, low: Tensor, grad_gate: Tensor, grad_up: Tensor,
        grad_base: Tensor, grad_low: Tensor, grads: list[Expert],
    ) -> None:  # fmt: skip
        expert, start = self.experts[index], 2 * self.rank * index
        for offset, part, update, grad in ((0, 0, expert.gate, grad_gate), (1, self.ff_width, expert.up, grad_up)):
            ranks = slice(start + offset * self.rank, start + (offset + 1) * self.rank)
            _add(grad_base[:, part : part + self.ff_width], rows, grad)
            grad_low[rows, ranks] = (grad @ update.b).mul_(self.factor)
            if grads:
                target = grads[index].up if offset else grads[index].gate
                target.b.addmm_(grad.T, low[rows, ranks], alpha=self.factor)

    def _gate_up(self, base: Tensor, low: Tensor, index: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gate and up of one expert before the activation, (M', F) each: its M' tokens."""
        expert, start = self.experts[index], 2 * self.rank * index
        result = []
        for name, part, update in (("gate", 0, expert.gate), ("up", 1, expert.up)):
            wide = base[rows, part * self.ff_width : (part + 1) * self.ff_width]
            small = low[rows, start + part * self.rank : start + (part + 1) * self.rank]
            out = _scratch(name, wide, self.ff_width)
            result.append(torch.addmm(wide, small, update.b.T, alpha=self.factor, out=out))
        return result[0], result[1]

    def _ranks(self, index: int) -> slice:
        return slice(self.rank * index, self.rank * (index + 1))

    def _rows(self, weights: Tensor | None, index: int) -> Tensor | slice:
        """The tokens that expert `index` computes: all as a slice, or their numbers."""
        if weights is None or not self.sparse:
            return slice(None)
        return weights[:, index].nonzero().squeeze(1)


@functools.cache
def _buffer(name: str, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(rows, width, dtype=dtype, device=device)


def _scratch(name: str, like: Tensor, width: int) -> Tensor:
    """A (len(like), width) tensor that is reused: fresh memory costs page faults, and tears the heap into pieces.

    One name is one buffer, so a name is in use once at a time; training runs in one thread.
    """
    return _buffer(name, CHUNK, width, like.dtype, like.device)[: len(like)]


def _add(target: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    if isinstance(rows, slice):
        target.add_(values)
    else:
        target.index_add_(0, rows, values)


def _at(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def _experts(updates: Sequence[Tensor]) -> list[Expert]:
    """Six tensors an expert: A and B of gate, up and down."""
    loras = [LoRA(a, b) for a, b in _pairs(updates)]
    return [Expert(*loras[start : start + 3]) for start in range(0, len(loras), 3)]


def _pairs(items: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(items[::2], items[1::2], strict=True))
