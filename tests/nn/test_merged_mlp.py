"""Training in the weights that the file holds, against autograd through the reference."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from comigs_edge.nn import reference, tensors
from comigs_edge.nn.lora_mixture import mixture
from comigs_edge.nn.merged_mlp import frozen_mlp, quantised_mixture
from comigs_edge.nn.routing import route
from tests.nn.parts import assert_near, fresh_pass, random_parts, value_and_gradients

SIZES = {"width": 32, "ff_width": 64, "tokens": 11}


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32"])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 2), (4, 2)])
def test_rounded_mixture_and_its_gradients_equal_the_reference(monkeypatch, experts, k, name):
    monkeypatch.setattr(tensors, "CHUNK", 4)
    x, router, mlp, each = random_parts(experts, dtype=torch.float32, **SIZES)
    leaves = [x, router, *(tensor for expert in each for lora in expert for tensor in lora)]

    def fast():
        return quantised_mixture(x, mlp, each, None if experts == 1 else route(x @ router.T, k), 1.7, fresh_pass(name))

    def slow():
        weights = torch.ones(len(x), 1) if experts == 1 else route(x @ router.T, k).weights
        return reference.mix_lora(x, mlp, each, weights, 1.7, name)

    results = [value_and_gradients(function, leaves) for function in (fast, slow)]
    assert (results[0][2] is None) == (experts == 1)  # the router's
    assert_near(*results, 2e-5)


def test_without_rounding_it_is_the_mixture_that_shares_the_bases_products():
    x, router, mlp, each = random_parts(3, **SIZES)
    routing = route(x @ router.T, 2)
    torch.testing.assert_close(
        quantised_mixture(x, mlp, each, routing, 1.7, fresh_pass("F32")), mixture(x, mlp, each, routing, 1.7, fresh_pass())
    )


class _Matrices(TorchDispatchMode):
    """Counts the products whose result has the shape of a weight matrix."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "mm" in function.__name__ and tuple(out.shape) in self.shapes:
            self.count += 1
        return out


def test_the_backward_pass_forms_no_gradient_of_a_matrix():
    x, _, mlp, each = random_parts(1, dtype=torch.float32, width=32, ff_width=64, tokens=11)
    for lora in each[0]:
        lora.a.requires_grad_(True)
        lora.b.requires_grad_(True)
    out = quantised_mixture(x.requires_grad_(True), mlp, each, None, 1.0, fresh_pass("Q4_0")).sum()
    with _Matrices({(64, 32), (32, 64), (128, 32)}) as seen:
        out.backward()
    assert seen.count == 3  # the merges of gate, up and down, which are made again
    assert each[0].down.a.grad.abs().max() > 0


def test_the_frozen_mlp_and_its_gradient_equal_torch():
    x, _, mlp, _ = random_parts(1)
    x.requires_grad_(True)
    gate, up = (x @ mlp.gate_up.T).chunk(2, dim=1)
    torch.testing.assert_close(frozen_mlp(x, mlp, fresh_pass()), (F.silu(gate) * up) @ mlp.down.T)
    assert torch.autograd.gradcheck(lambda x: frozen_mlp(x, mlp, fresh_pass()), x)
