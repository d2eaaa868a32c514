"""The torch model computes what llama.cpp computes."""

from dataclasses import replace

import gguf
import pytest
import torch

from comigs_edge.base.hparams import check_tensors, read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.nn import attention, loss, recompute
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.nn.norm import rms_norm
from comigs_edge.nn.routing import balance_loss
from comigs_edge.nn.weights import open_base
from quantize.gguf_file import GGUFFile
from tests.conftest import converted, divergence, llama_logits
from tests.tiny import write_llama

IDS = torch.randint(3, 260, (100,), generator=torch.Generator().manual_seed(0)).tolist()

VARIANTS = {
    "tied": {},
    "untied": {"tied": False},
    "no grouped heads": {"kv_heads": 4},
    "rope factors": {"rope_factors": True},
    "linear rope scaling": {"linear_scaling": 4.0},
    "attention biases": {"bias": True},
    "qwen2": {"architecture": "qwen2", "bias": True},
    "qwen3": {"architecture": "qwen3", "head_norms": True, "head": 32},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_base_logits_equal_llama_cpp(tmp_path, options):
    path = write_llama(tmp_path / "base.gguf", **options)
    model = Model(open_base(path), None)
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([IDS])).hidden)
    expected = llama_logits(path, IDS)
    assert divergence(expected, logits) < 1e-8
    assert (expected.argmax(-1) == logits.argmax(-1)).all()


def test_rows_that_are_too_long_for_batched_products_are_computed_alike(tiny_path, tiny_base, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_ROWS", 99)
    with torch.no_grad():
        model = Model(tiny_base, None)
        logits = model.logits(model(torch.tensor([IDS])).hidden)
    assert divergence(llama_logits(tiny_path, IDS), logits) < 1e-8


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "BF16", "F16"])
def test_a_base_in_any_format_has_the_weights_that_gguf_py_reads(tmp_path, name):
    """llama.cpp's quantiser writes the base, gguf-py dequantises it."""
    source = write_llama(tmp_path / "f32.gguf", width=256, ff_width=512)
    converted(source, name, tmp_path / "base.gguf")
    base = open_base(tmp_path / "base.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "base.gguf").tensors}
    down = tensors["blk.1.ffn_down.weight"]
    assert down.tensor_type.name == name
    expected = gguf.quants.dequantize(down.data, down.tensor_type)
    torch.testing.assert_close(base.block(1).ffn_down, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_a_token_sees_nothing_of_another_document(tiny_base, make_adapters):
    model = Model(tiny_base, make_adapters())
    tokens = torch.tensor([IDS[:40]])
    documents = torch.tensor([[0] * 25 + [1] * 15])
    together = model(tokens, documents).hidden
    torch.testing.assert_close(together[25:], model(tokens[:, 25:]).hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [None, torch.rand(300)], ids=["alike", "weighted"])
@pytest.mark.parametrize("logits", [1 << 22, 1], ids=["one chunk", "several chunks"])
def test_chunked_loss_and_its_gradient_equal_cross_entropy(tiny_base, monkeypatch, logits, weights):
    monkeypatch.setattr(loss, "LOGITS", logits)
    model = Model(tiny_base, None)
    hidden = torch.randn(300, 64, requires_grad=True)
    targets, scored = torch.randint(0, 260, (300,)), torch.rand(300) > 0.3
    losses = torch.nn.functional.cross_entropy(model.logits(hidden)[scored], targets[scored], reduction="none")
    expected = (losses if weights is None else losses * weights[scored]).sum()
    (wanted,) = torch.autograd.grad(expected / 7, hidden)
    found = next_token_loss(tiny_base, hidden, targets, scored, weights)
    (gradient,) = torch.autograd.grad(found / 7, hidden)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path):
    file = GGUFFile(write_llama(tmp_path / "base.gguf"))
    hparams = replace(read_hparams(file), ff_width=100)
    with pytest.raises(ComigsError, match=r"ffn_gate.weight has the shape \(96, 64\) and not \(100, 64\)"):
        check_tensors(file, hparams)


def test_another_architecture_is_refused_by_name(tmp_path):
    path = write_llama(tmp_path / "phi.gguf", architecture="phi2")
    with pytest.raises(
        ComigsError, match=r"'phi2', of which llama.cpp runs no exact mixture; choose a base of llama .*qwen2.*qwen3"
    ):
        read_hparams(GGUFFile(path))


def test_norm_and_its_gradient_equal_torch():
    x, weight = torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x, (8,), weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, 1e-5), x)


def test_two_lean_bases_in_turns_give_what_kept_bases_give(tmp_path):
    """Both have one block of the same sizes: a base that shared memory with the other would take its weights."""
    paths = [write_llama(tmp_path / f"{seed}.gguf", blocks=1, seed=seed) for seed in (1, 2)]
    tokens = torch.tensor([IDS])
    with torch.no_grad():
        kept = [Model(open_base(path), None)(tokens).hidden for path in paths]
        lean = [Model(open_base(path, keep=False), None) for path in paths]
        for number in (0, 1, 0, 1):
            torch.testing.assert_close(lean[number](tokens).hidden, kept[number], rtol=0, atol=0)
    assert (kept[0] - kept[1]).abs().max() > 0.1


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("block_format", [None, "Q4_0"])
@pytest.mark.parametrize("form", ["lora", "parallel"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_what_is_kept_in_memory_changes_no_gradient(tmp_path, make_adapters, architecture, form, block_format, blocks):
    """Dequantised ahead or block by block, whatever is computed again: with the shared attention update, whose tensors reach
    a checkpointed function without being its arguments. Three blocks: one more than memory that two take in turns."""
    source = write_llama(tmp_path / "f32.gguf", architecture=architecture, blocks=3)
    converted(source, "Q4_0", tmp_path / "base.gguf")
    bases = {keep: open_base(tmp_path / "base.gguf", keep=keep) for keep in (True, False)}
    adapters = make_adapters(specialists=2, attention=True, form=form, base=bases[True], blocks=blocks)
    grads = []
    for keep, checkpointing in ((True, "none"), (True, "attention"), (True, "block"), (False, "block")):
        for tensor in adapters.named.values():
            tensor.requires_grad_(True).grad = None
        model = Model(bases[keep], adapters, checkpointing=checkpointing)
        model.block_format = block_format
        hidden = model(torch.tensor([IDS])).hidden
        next_token_loss(bases[keep], hidden[:-1], torch.tensor(IDS[1:]), torch.ones(99, dtype=torch.bool)).backward()
        grads.append({name: tensor.grad.clone() for name, tensor in adapters.named.items()})
    for name, grad in grads[0].items():
        assert grad.abs().max() > 0, name
        for other in grads[1:]:
            torch.testing.assert_close(grad, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_computing_some_rows_at_a_time_changes_no_gradient(tiny_base, make_adapters, monkeypatch, form):
    monkeypatch.setattr(recompute, "PIECES", {"block": 40, "attention": 40})
    adapters, grads = make_adapters(specialists=2, form=form), []
    for checkpointing in ("none", "attention", "block"):
        for tensor in adapters.named.values():
            tensor.requires_grad_(True).grad = None
        hidden = Model(tiny_base, adapters, checkpointing=checkpointing)(torch.tensor(IDS).view(5, 20)).hidden
        hidden.square().sum().backward()
        grads.append([tensor.grad.clone() for tensor in adapters.named.values()])
    for whole, *others in zip(*grads, strict=True):
        for other in others:
            torch.testing.assert_close(other, whole, rtol=1e-3, atol=1e-3)


def test_the_balance_loss_of_a_model_is_the_mean_over_its_blocks(tiny_base, make_adapters):
    model, found = Model(tiny_base, make_adapters(specialists=2)), []
    model.watch = lambda block, normed, routing: found.append(balance_loss(routing))
    with torch.no_grad():
        out = model(torch.tensor([IDS]), with_balance=True)
    assert len(found) == 2
    assert found[0] != found[1]
    torch.testing.assert_close(out.balance, (found[0] + found[1]) / 2)


def test_without_the_generalist_its_attention_update_is_off(tiny_base, make_adapters):
    adapters, tokens = make_adapters(specialists=2, attention=True), torch.tensor([IDS])
    with torch.no_grad():
        found = [Model(tiny_base, adapters, only=only)(tokens).hidden for only in ((1, 2), (0, 1))]
        for name, tensor in adapters.named.items():
            if ".attn_" in name:
                tensor.zero_()
        off = [Model(tiny_base, adapters, only=only)(tokens).hidden for only in ((1, 2), (0, 1))]
    torch.testing.assert_close(found[0], off[0])
    assert (found[1] - off[1]).abs().max() > 0.01
