"""Attention by batched products against torch's own kernel, and against numeric gradients."""

import pytest
import torch
import torch.nn.functional as F

from comigs_edge.nn.short_attention import attend
from comigs_edge.nn.tensors import Buffers

BATCH, TIME, HEADS, KV, WIDTH = 2, 7, 6, 2, 4


def parts():
    generator = torch.Generator().manual_seed(0)

    def random(heads):
        tensor = torch.randn(BATCH, TIME, heads, WIDTH, generator=generator, dtype=torch.float64)
        return tensor.requires_grad_(True)

    return random(HEADS + KV), random(KV)


def masks():
    """Every earlier token; and only those of the same document, another one in each row."""
    causal = torch.zeros(TIME, TIME, dtype=torch.float64).masked_fill_(~torch.ones(TIME, TIME).bool().tril(), -torch.inf)
    own = causal.repeat(BATCH, 1, 1, 1)
    own[0, 0, 3:, :3] = own[1, 0, 5:, :5] = -torch.inf
    return {"causal": causal, "documents": own}


@pytest.mark.parametrize("name", ["causal", "documents"])
def test_attention_and_its_gradients_equal_torchs_kernel(name):
    mask, (qk, v) = masks()[name], parts()
    q, k = torch.split(qk.transpose(1, 2), [HEADS, KV], 1)
    k, values = (each.repeat_interleave(HEADS // KV, 1) for each in (k, v.transpose(1, 2)))
    expected = F.scaled_dot_product_attention(q, k, values, attn_mask=mask).transpose(1, 2)
    out = attend(qk, v, HEADS, mask, Buffers())
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(each.square().sum(), (qk, v)) for each in (out, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_equal_numeric_differences():
    qk, v = parts()
    assert torch.autograd.gradcheck(lambda qk, v: attend(qk, v, HEADS, masks()["documents"], Buffers()), (qk, v))
