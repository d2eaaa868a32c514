"""The hyper-parameters of a base, read from its GGUF file without loading torch, and how its architecture is exported."""

from __future__ import annotations

from dataclasses import dataclass

from comigs_edge.errors import ComigsError
from quantize.gguf_file import GGUFFile

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")  # the matrices of a block, by their GGUF names
FFN = ("ffn_gate", "ffn_up", "ffn_down")
_NORMS = ("attn_norm", "ffn_norm")
MAX_BLOCKS = 1024
MIN_CONTEXT = 32  # tokens: a message and a few words of an answer
_REASONS = {  # by the beginning of an architecture or of a Hugging Face type, the longer one first
    "granitehybrid": "whose Mamba layers are not computed in training",
    "granitemoehybrid": "whose Mamba layers are not computed in training",
    "granitemoe": "which is a mixture of experts already",
    "granite": "whose factors on embeddings, attention, residual stream and logits are not computed in training",
}
_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_BIASES = {f"{name}.bias" for name in ATTENTION}
_TOP_TENSORS = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"}


@dataclass(frozen=True)
class Architecture:
    """How an architecture differs from llama's, and in which one of llama.cpp's its mixtures are exact."""

    turns_halves: bool  # RoPE turns number j of a head with j + width / 2 (NEOX); llama: 2j with 2j + 1
    norms_heads: bool  # RMSNorm of every query and key
    mixture: str  # of LoRA experts
    compact: str | None  # of parallel experts: has a shared expert beside the routed ones, and renormalises weights


ARCHITECTURES = {
    "llama": Architecture(False, False, "llama", "granitemoe"),
    "qwen2": Architecture(True, False, "llama", "granitemoe"),  # with the rows of queries and keys in llama's order
    "qwen3": Architecture(True, True, "qwen3moe", None),
}


@dataclass(frozen=True)
class HParams:
    """The hyper-parameters of a base; counts, and widths in numbers."""

    architecture: str
    num_blocks: int
    width: int  # D, of the residual stream
    ff_width: int  # F, of the MLP's hidden layer
    num_heads: int
    num_kv_heads: int
    head_width: int
    rope_width: int  # leading numbers of a head that are rotated
    rope_base: float
    rope_scale: float  # factor on positions (1 / the factor of linear scaling)
    norm_eps: float
    vocab_size: int
    context_length: int  # tokens, the longest that the base was trained for


def read_hparams(file: GGUFFile) -> HParams:
    """Hyper-parameters of the file; raises `ComigsError` naming what is not supported."""
    meta = file.metadata
    arch = str(meta.get("general.architecture", "unknown"))
    if kind := _no_whole_model(file, arch):
        raise ComigsError(f"{file.path} {kind}")
    is_mixture = file.count(f"{arch}.expert_count", 0) > 0
    if any(key.startswith("comigs_edge.") for key in meta) and (is_mixture or arch not in ARCHITECTURES):
        raise ComigsError(f"{file.path} is a personal model that comigs-edge made of a base; name that base")
    if arch not in ARCHITECTURES:
        raise ComigsError(f"{file.path} has the architecture {arch!r}, {why_not(arch)}")
    if is_mixture:
        raise ComigsError(f"{file.path} already holds a mixture of experts; choose a dense base")
    scaling = str(meta.get(f"{arch}.rope.scaling.type", "linear"))  # llama.cpp's default; without a factor it changes nothing
    if scaling not in ("none", "linear"):
        raise ComigsError(
            f"{file.path} scales RoPE by {scaling!r}; 'none' and 'linear' are supported: take the base as it was before its "
            "context was extended"
        )
    try:
        return _read(file, arch, scaling)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ComigsError(f"{file.path} is damaged ({error}); get the file again") from error


def why_not(kind: str) -> str:
    """Why bases of this architecture or type are not trained, and which are."""
    reason = next((why for name, why in _REASONS.items() if kind.startswith(name)), "of which llama.cpp runs no exact mixture")
    return f"{reason}; choose a base of llama (SmolLM2, Llama 2 and 3, TinyLlama, Mistral), qwen2 (Qwen 2 and 2.5) or qwen3"


def _no_whole_model(file: GGUFFile, arch: str) -> str | None:
    """What the file holds in place of a model, and what to do."""
    kind = str(file.metadata.get("general.type", "model"))
    if kind == "adapter" or any(name.endswith(".lora_a") for name in file.tensors):
        return "is a LoRA adapter and not a model; name the file of its base, or merge the two with: llama-export-lora"
    if kind == "mmproj" or arch == "clip":
        return "is the part of a model that sees pictures (mmproj); name the model's own .gguf file"
    if (parts := file.count("split.count", 1)) > 1:
        number = file.count("split.no", 0) + 1
        return f"is part {number} of {parts} of a model; join them with: llama-gguf-split --merge"
    if not file.tensors:
        return "holds a vocabulary and no weights; get the model's whole file"
    return None


def _read(file: GGUFFile, arch: str, scaling: str) -> HParams:
    meta = {key.removeprefix(f"{arch}."): file.metadata[key] for key in file.metadata if key.startswith(f"{arch}.")}
    width, num_heads = int(meta["embedding_length"]), int(meta["attention.head_count"])
    if min(width, num_heads) < 1:
        raise ComigsError(f"{file.path} is damaged: it claims a width of {width:,} in {num_heads:,} heads; get the file again")
    head_width = int(meta.get("attention.key_length", width // num_heads))
    if int(meta.get("attention.value_length", head_width)) != head_width:
        raise ComigsError(f"{file.path} has keys and values of different widths, which is not supported")
    factor = float(meta.get("rope.scaling.factor", meta.get("rope.scale_linear", 1.0)))  # the second: the key of older files
    return HParams(
        architecture=arch,
        num_blocks=int(meta["block_count"]),
        width=width,
        ff_width=int(meta["feed_forward_length"]),
        num_heads=num_heads,
        num_kv_heads=int(meta.get("attention.head_count_kv", num_heads)),
        head_width=head_width,
        rope_width=int(meta.get("rope.dimension_count", head_width)),
        rope_base=float(meta.get("rope.freq_base", 10000.0)),
        rope_scale=1 / factor if scaling == "linear" and factor else 1.0,
        norm_eps=float(meta["attention.layer_norm_rms_epsilon"]),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=int(meta["context_length"]),
    )


def check_tensors(file: GGUFFile, hparams: HParams) -> None:
    """Raises `ComigsError` unless the file has every tensor that the forward pass uses, in its shape, and no other."""
    if not 1 <= hparams.num_blocks <= MAX_BLOCKS:
        raise ComigsError(f"{file.path} is damaged: it claims {hparams.num_blocks:,} blocks")
    if hparams.context_length < MIN_CONTEXT:
        raise ComigsError(
            f"{file.path} says that it reads {hparams.context_length} tokens at once, and at least {MIN_CONTEXT} are needed; "
            "choose another base"
        )
    needed = {"token_embd.weight": (hparams.vocab_size, hparams.width), "output_norm.weight": (hparams.width,)}
    allowed = set(_TOP_TENSORS)
    for index in range(hparams.num_blocks):
        needed |= {f"blk.{index}.{name}.weight": size for name, size in linear_shapes(hparams).items()}
        needed |= {f"blk.{index}.{name}.weight": (hparams.width,) for name in _NORMS}
        if ARCHITECTURES[hparams.architecture].norms_heads:
            needed |= {f"blk.{index}.{name}.weight": (hparams.head_width,) for name in _HEAD_NORMS}
        else:
            allowed |= {f"blk.{index}.{name}" for name in _BIASES}
    for name, size in needed.items():
        if name not in file.tensors:
            raise ComigsError(f"{file.path} lacks the tensor {name}; get the file again")
        if file.tensors[name].shape != size:
            raise ComigsError(f"{file.path}: {name} has the shape {file.tensors[name].shape} and not {size}")
    for name in sorted(file.tensors.keys() - allowed - needed.keys()):
        raise ComigsError(f"{file.path} has the tensor {name}, which {hparams.architecture} does not use; choose another base")


def linear_shapes(hparams: HParams) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear map of a block, by its GGUF name."""
    queries, keys = hparams.num_heads * hparams.head_width, hparams.num_kv_heads * hparams.head_width
    d, f = hparams.width, hparams.ff_width
    sizes = ((queries, d), (keys, d), (keys, d), (d, queries), (f, d), (f, d), (d, f))
    return dict(zip((*ATTENTION, *FFN), sizes, strict=True))


def llama_order(hparams: HParams, name: str) -> list[int] | None:
    """The order of an attention tensor's rows for RoPE as llama has it; None: unchanged.

    `name` is GGUF's without the block, like `attn_q.weight`. Only rows that RoPE turns move, inside their head: row j and
    row j + rope_width / 2 become neighbours. Scores of queries and keys are the same in either order.
    """
    heads = {"attn_q": hparams.num_heads, "attn_k": hparams.num_kv_heads, "attn_q_norm": 1, "attn_k_norm": 1}
    count = heads.get(name.partition(".")[0])
    if count is None or not ARCHITECTURES[hparams.architecture].turns_halves:
        return None
    half = hparams.rope_width // 2
    head = [row for j in range(half) for row in (j, j + half)] + list(range(2 * half, hparams.head_width))
    return [start * hparams.head_width + row for start in range(count) for row in head]
