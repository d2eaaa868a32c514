"""The hyper-parameters of a llama model, read from its GGUF file without loading torch."""

from __future__ import annotations

from dataclasses import dataclass

from comigs_edge.errors import ComigsError
from quantize.gguf_file import GGUFFile

ARCHITECTURES = ("llama",)
_LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_NORMS = ("attn_norm", "ffn_norm")
MAX_BLOCKS = 1024
_BIASES = {f"{name}.bias" for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
_TOP_TENSORS = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"}


@dataclass(frozen=True)
class Shape:
    """The hyper-parameters of a llama model; counts, and widths in numbers."""

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


def read_shape(file: GGUFFile) -> Shape:
    """Hyper-parameters of the file; raises `ComigsError` naming what is not supported."""
    meta = file.metadata
    arch = str(meta.get("general.architecture", "unknown"))
    if arch not in ARCHITECTURES:
        raise ComigsError(
            f"{file.path} has the architecture {arch!r}; supported: {', '.join(ARCHITECTURES)} "
            "(SmolLM2, Llama 2 and 3, TinyLlama, Mistral); choose such a base"
        )
    if int(meta.get("llama.expert_count", 0)):
        raise ComigsError(f"{file.path} already holds a mixture of experts; choose a dense base")
    scaling = str(meta.get("llama.rope.scaling.type", "none"))
    if scaling not in ("none", "linear"):
        raise ComigsError(f"{file.path} scales RoPE by {scaling!r}; 'none' and 'linear' are supported")
    try:
        return _shape(file, scaling)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ComigsError(f"{file.path} is damaged or no llama model ({error}); get the file again") from error


def _shape(file: GGUFFile, scaling: str) -> Shape:
    meta = file.metadata
    width, num_heads = int(meta["llama.embedding_length"]), int(meta["llama.attention.head_count"])
    head_width = int(meta.get("llama.attention.key_length", width // num_heads))
    if int(meta.get("llama.attention.value_length", head_width)) != head_width:
        raise ComigsError(f"{file.path} has keys and values of different widths, which is not supported")
    return Shape(
        num_blocks=int(meta["llama.block_count"]),
        width=width,
        ff_width=int(meta["llama.feed_forward_length"]),
        num_heads=num_heads,
        num_kv_heads=int(meta.get("llama.attention.head_count_kv", num_heads)),
        head_width=head_width,
        rope_width=int(meta.get("llama.rope.dimension_count", head_width)),
        rope_base=float(meta.get("llama.rope.freq_base", 10000.0)),
        rope_scale=1 / float(meta.get("llama.rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0,
        norm_eps=float(meta["llama.attention.layer_norm_rms_epsilon"]),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=int(meta["llama.context_length"]),
    )


def check_tensors(file: GGUFFile, shape: Shape) -> None:
    """Raises `ComigsError` unless the file has every tensor that the forward pass uses, in its shape, and no other."""
    if not 1 <= shape.num_blocks <= MAX_BLOCKS:
        raise ComigsError(f"{file.path} is damaged: it claims {shape.num_blocks:,} blocks")
    needed = {"token_embd.weight": (shape.vocab_size, shape.width), "output_norm.weight": (shape.width,)}
    allowed = set(_TOP_TENSORS)
    for index in range(shape.num_blocks):
        needed |= {f"blk.{index}.{name}.weight": size for name, size in linear_shapes(shape).items()}
        needed |= {f"blk.{index}.{name}.weight": (shape.width,) for name in _NORMS}
        allowed |= {f"blk.{index}.{name}" for name in _BIASES}
    for name, size in needed.items():
        if name not in file.tensors:
            raise ComigsError(f"{file.path} lacks the tensor {name}; get the file again")
        if file.tensors[name].shape != size:
            raise ComigsError(f"{file.path}: {name} has the shape {file.tensors[name].shape} and not {size}")
    for name in sorted(file.tensors.keys() - allowed - needed.keys()):
        raise ComigsError(f"{file.path} has the tensor {name}, which a llama model does not use; choose another base")


def linear_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear map of a block, by its GGUF name."""
    queries, keys = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    d, f = shape.width, shape.ff_width
    sizes = ((queries, d), (keys, d), (keys, d), (d, queries), (f, d), (f, d), (d, f))
    return dict(zip(_LINEAR, sizes, strict=True))
