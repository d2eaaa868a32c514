"""The gated activation against torch's own."""

import torch
import torch.nn.functional as F

from comigs_edge.nn.mlp import swiglu, swiglu_backward
from comigs_edge.nn.tensors import Buffers


def random(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 6, generator=generator, dtype=torch.float64) for _ in sizes]


def test_activation_and_gradients_equal_torch():
    gate, up, grad = random(1, 2, 3)
    leaves = [gate.clone().requires_grad_(True), up.clone().requires_grad_(True)]
    expected = F.silu(leaves[0]) * leaves[1]
    torch.testing.assert_close(swiglu(gate, up, Buffers()), expected.detach())
    grads = torch.autograd.grad(expected, leaves, grad)
    torch.testing.assert_close(swiglu_backward(gate, up, grad.clone(), Buffers()), torch.cat(grads, dim=1))


def test_the_next_call_writes_into_the_same_memory():
    gate, up = random(1, 2)
    buffers = Buffers()
    first = swiglu(gate, up, buffers)
    assert swiglu(gate[:2], up[:2], buffers).data_ptr() == first.data_ptr()
    assert swiglu(gate, up, Buffers()).data_ptr() != first.data_ptr()
