"""What `rivals.py` measures against each other: the published formulation, Hugging Face with peft, and comigs-edge.

Every builder takes a base and gives a `Rival`, whose step is then the same for all: loss, backward, AdamW over the experts.
Frozen weights are the base's own tensors, held once. Only bases of the architecture llama without scaled RoPE.

Shapes: B rows, T time, N = B*T tokens, D width, F hidden width of the MLP, V vocabulary, R rank, E = 2 experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comigs_edge.base.hparams import HParams
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import FORMS, ExpertsConfig
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base
from comigs_edge.training.adamw import BETAS, AdamW

RANK, SEED = 8, 42
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.01


@dataclass
class Rival:
    """Something that can be trained: mean loss of (B, T) tokens against (B, T) targets, and what an expert step changes."""

    loss: Callable[[Tensor, Tensor], Tensor]
    trainable: list[Tensor]
    model: Any

    def optimiser(self) -> Any:
        if isinstance(self.model, Model):
            return AdamW(self.trainable, LEARNING_RATE, WEIGHT_DECAY)
        return torch.optim.AdamW(self.trainable, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)


# The published formulation ------------------------------------------------------------------------------------------


def output(base: Base) -> Tensor:
    """The whole output matrix, not a copy."""
    return next(base.output_chunks(base.hparams.vocab_size))


class LoRALinear(nn.Module):
    """W x + alpha / sqrt(R) B A x, with a frozen W."""

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = weight, scale
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.scale * F.linear(F.linear(x, self.a), self.b)


class ExpertMLP(nn.Module):
    """One expert: the whole MLP, with its own low-rank updates."""

    def __init__(self, gate_up: Tensor, down: Tensor, loras: Any, scale: float) -> None:
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate, self.up, self.down = (
            LoRALinear(weight, lora.a, lora.b, scale)
            for weight, lora in zip((gate, up, down), (loras.gate, loras.up, loras.down), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then the router and every expert in place of the MLP."""

    def __init__(self, base: Base, index: int, adapters: Adapters, copies: bool) -> None:
        super().__init__()
        self.frozen, self.hparams = base.block(index), base.hparams
        self.router = adapters.routers[index]  # frozen in an expert step
        self.experts_per_token = adapters.layout.experts_per_token
        gate_up, down = self.frozen.ffn_gate_up, self.frozen.ffn_down
        self.experts = nn.ModuleList(
            ExpertMLP(*((gate_up.clone(), down.clone()) if copies and number else (gate_up, down)), loras, adapters.layout.scale)
            for number, loras in enumerate(adapters.experts[index])
        )

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = x + self.attention(F.rms_norm(x, x.shape[-1:], self.frozen.attn_norm, self.hparams.norm_eps), rope)
        normed = F.rms_norm(x, x.shape[-1:], self.frozen.ffn_norm, self.hparams.norm_eps)
        logits, chosen = F.linear(normed, self.router).topk(self.experts_per_token, dim=-1)  # (B, T, K)
        weights = logits.new_zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, F.softmax(logits, dim=-1))
        return x + sum(weights[..., number, None] * expert(normed) for number, expert in enumerate(self.experts))

    def attention(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        shape, (batch, time) = self.hparams, x.shape[:2]
        heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        parts = F.linear(x, self.frozen.attn_qkv).split([count * shape.head_width for count in heads], dim=-1)
        q, k, v = (part.view(batch, time, -1, shape.head_width).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(_turn(q, rope), _turn(k, rope), v, is_causal=True, enable_gqa=True)
        return F.linear(out.transpose(1, 2).flatten(2), self.frozen.attn_output)


def _turn(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:  # (B, H, T, head)
    cos, sin = rope
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Published(nn.Module):
    """The mixture as it is written in the paper, in plain autograd: every expert runs the MLP, all logits are held."""

    def __init__(self, base: Base, adapters: Adapters, copies: bool) -> None:
        super().__init__()
        self.base = base
        self.blocks = nn.ModuleList(Block(base, index, adapters, copies) for index in range(base.hparams.num_blocks))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        hparams = self.base.hparams
        powers = torch.arange(0, hparams.head_width, 2, dtype=torch.float64) / hparams.head_width
        angles = torch.outer(torch.arange(tokens.shape[1]), hparams.rope_base**-powers)
        rope = angles.cos().float(), angles.sin().float()
        x = self.base.embed(tokens.flatten()).view(*tokens.shape, -1)
        for block in self.blocks:
            x = block(x, rope)
        return F.linear(F.rms_norm(x, x.shape[-1:], self.base.output_norm, hparams.norm_eps), output(self.base))


def published(base: Base, copies: bool = False, adapters: Adapters | None = None) -> Rival:
    """`copies`: every expert holds the frozen MLP again, as in the authors' code for GPT-2."""
    model = Published(base, adapters or initial(base.hparams, "lora"), copies)
    return Rival(lambda tokens, targets: _mean_loss(model(tokens), targets), list(model.parameters()), model)


def _mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# Hugging Face -------------------------------------------------------------------------------------------------------


def hugging_face(base: Base) -> nn.Module:
    """The base as transformers' `LlamaForCausalLM`."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    hparams, tied = base.hparams, base.is_tied
    config = LlamaConfig(
        vocab_size=hparams.vocab_size, hidden_size=hparams.width, intermediate_size=hparams.ff_width, use_cache=False,
        num_hidden_layers=hparams.num_blocks, num_attention_heads=hparams.num_heads, head_dim=hparams.head_width,
        num_key_value_heads=hparams.num_kv_heads, max_position_embeddings=hparams.context_length,
        rms_norm_eps=hparams.norm_eps, tie_word_embeddings=tied, dtype="float32",
        rope_parameters={"rope_type": "default", "rope_theta": hparams.rope_base},
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.load_state_dict(_hugging_face_weights(base), assign=True)
    return model


def _hugging_face_weights(base: Base) -> dict[str, Tensor]:
    hparams = base.hparams
    head = output(base)
    embedding = head if base.is_tied else base.embed(torch.arange(hparams.vocab_size))
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": base.output_norm, "lm_head.weight": head}
    counts = (hparams.num_heads, hparams.num_kv_heads, hparams.num_kv_heads)
    for index in range(hparams.num_blocks):
        block = base.block(index)
        q, k, v = block.attn_qkv.split([count * hparams.head_width for count in counts])
        gate, up = block.ffn_gate_up.chunk(2)
        weights |= {
            f"model.layers.{index}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": block.attn_norm, "post_attention_layernorm": block.ffn_norm,
                "self_attn.q_proj": _halves(q, hparams.num_heads), "self_attn.k_proj": _halves(k, hparams.num_kv_heads),
                "self_attn.v_proj": v.clone(), "self_attn.o_proj": block.attn_output,
                "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block.ffn_down,
            }.items()
        }  # fmt: skip
    return weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in transformers' order: RoPE turns row j of a head with row j + head / 2, here 2j with 2j + 1."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def peft(base: Base, checkpointing: bool = False) -> Rival:
    """One LoRA of twice the rank: as many trainable weights as two experts."""
    from peft import LoraConfig, get_peft_model

    names = ["gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=2 * RANK, lora_alpha=2 * RANK, use_rslora=True, target_modules=names, task_type="CAUSAL_LM")
    model = get_peft_model(hugging_face(base), settings)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return model(input_ids=tokens, labels=targets, shift_labels=targets).loss

    return Rival(loss, [p for p in model.parameters() if p.requires_grad], model)


# comigs-edge --------------------------------------------------------------------------------------------------------


def ours(base: Base, form: str, block_format: str | None = None, adapters: Adapters | None = None, **options: Any) -> Rival:
    """comigs-edge's expert step; `options` are passed on to `Model`."""
    adapters = adapters or initial(base.hparams, form)
    model = Model(base, adapters, **options)
    model.block_format = block_format
    trainable = adapters.group(router=False)
    for tensor in trainable:
        tensor.requires_grad_(True)

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        documents = torch.zeros_like(tokens)  # as training has them, with the mask that they bring
        scored = torch.ones(tokens.numel(), dtype=torch.bool)
        hidden = model(tokens, documents).hidden
        return next_token_loss(model.base, hidden, targets.flatten(), scored) / tokens.numel()

    return Rival(loss, trainable, model)


def initial(hparams: HParams, form: str) -> Adapters:
    """A generalist and a specialist that change nothing yet."""
    width = FORMS[form].width(None, RANK, hparams)
    return Adapters.initial(ExpertsConfig(num_specialists=1, rank=RANK, form=form, expert_width=width), hparams, SEED)


# The same function --------------------------------------------------------------------------------------------------

BUILDERS: dict[str, Callable[..., Rival]] = {"published": published, "peft": peft, "ours": ours}


def check(
    base: Base, tokens: Tensor, targets: Tensor, cases: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, float]]:
    """What must be equal for every case (builder and options): losses, and how far logits and gradients are apart."""
    losses, moved_losses, errors = {}, {}, {}
    with torch.no_grad():
        model = Model(base, None)
        logits = model.logits(model(tokens).hidden)
        logits -= hugging_face(base)(input_ids=tokens).logits.flatten(0, 1)
        difference = float(logits.abs_().max())
        del logits
        for name, (builder, options) in cases.items():
            losses[name] = float(BUILDERS[builder](base, **options).loss(tokens, targets))
    # LoRA experts that differ from each other: the loss and the gradients of the published formulation.
    moved, generator = initial(base.hparams, "lora"), torch.Generator().manual_seed(SEED)
    for tensor in moved.named.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.01)
    expected = _gradient(published(base, adapters=moved), tokens, targets)[1]
    for name, (builder, options) in cases.items():
        if builder == "published" or options.get("form") == "lora":
            rival = BUILDERS[builder](base, adapters=moved, **options)
            moved_losses[name], gradient = _gradient(rival, tokens, targets)
            errors[name] = float((gradient - expected).norm() / expected.norm())
    return {
        "loss": losses, "loss, experts moved": moved_losses, "gradients, relative error": errors,
        "logits, largest difference": {"comigs-edge to transformers": difference},
    }  # fmt: skip


def _gradient(rival: Rival, tokens: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    loss = rival.loss(tokens, targets)
    loss.backward()
    gradient = torch.cat([tensor.grad.flatten() for tensor in rival.trainable])
    for tensor in rival.trainable:  # they share their memory with those of other cases, and the gradient would add up
        tensor.grad = None
    return float(loss.detach()), gradient
