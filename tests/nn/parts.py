"""Random inputs for the kernels of the mixture, and how one is compared with the reference."""

import torch

from comigs_edge.nn.lora import LoRA, LoRAExpert
from comigs_edge.nn.mlp import Frozen, Pass
from comigs_edge.nn.parallel import ParallelExpert
from comigs_edge.nn.tensors import Buffers


def fresh_pass(block_format=None):
    """A pass that shares no memory with another."""
    return Pass(Buffers(), block_format)


def random_parts(experts, tokens=9, width=8, ff_width=12, rank=2, dtype=torch.float64):
    """x (N, D), a router (E, D), a frozen MLP and LoRA experts."""
    random = _source(dtype)
    mlp = Frozen(random(2 * ff_width, width), random(width, ff_width))

    def lora(out_width, in_width):
        return LoRA(random(rank, in_width), random(out_width, rank))

    each = [LoRAExpert(lora(ff_width, width), lora(ff_width, width), lora(width, ff_width)) for _ in range(experts)]
    return random(tokens, width), random(experts, width), mlp, each


def parallel_experts(experts, width, hidden, dtype=torch.float64):
    """Small experts, W = `hidden` wide."""
    random = _source(dtype)
    return [ParallelExpert(random(hidden, width), random(hidden, width), random(width, hidden)) for _ in range(experts)]


def value_and_gradients(function, leaves):
    """The result and the gradients of its squared sum; None where a leaf has no part in it."""
    for leaf in leaves:
        leaf.requires_grad_(True)
    out = function()
    return [out, *torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)]


def assert_near(ours, expected, tolerance):
    """Each tensor of a list within `tolerance` of the largest number of the other."""
    for one, other in zip(ours, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max() <= tolerance * other.abs().max()


def _source(dtype):
    generator = torch.Generator().manual_seed(0)
    return lambda *size: torch.randn(*size, generator=generator, dtype=dtype) * 0.5
