"""What a GPU can do for llama.cpp here: the plan's line `gpu_layers` for work that has no other plan."""

from __future__ import annotations

from pathlib import Path

from comigs_edge.base.hparams import HParams, read_hparams
from profiles.chat import BATCHES, GPU, NO_GPU, Subject, choose_layers
from profiles.detect import Device, detect
from quantize.gguf_file import GGUFFile

NO_CUDA = "a llama.cpp that was built without CUDA, see: comigs-edge doctor"


def find(device: Device) -> tuple[GPU | None, str]:
    """The GPU that llama.cpp can compute on; or why there is none."""
    from comigs_edge import llamacpp  # half a second, which only work with llama.cpp should take

    gpu = llamacpp.find_gpu()
    return gpu, NO_CUDA if device.gpu and not llamacpp.has_cuda() else NO_GPU


def subject_of(hparams: HParams, context: int, *, size: int, repacked: int = 0) -> Subject:
    """A model of `size` bytes that llama.cpp runs with so many tokens of context."""
    return Subject(
        size=size, repacked=repacked, num_blocks=hparams.num_blocks, heads=hparams.num_heads,
        keys=hparams.num_kv_heads * hparams.head_width, head=hparams.head_width, ff_width=hparams.ff_width, context=context,
        context_length=hparams.context_length,
    )  # fmt: skip


def gpu_layers(base: Path, context: int, *, size: int, wanted: int | None) -> int:
    """Layers of a model of `size` bytes with the shape of `base` that the GPU computes.

    Raises `ProfileError` for `wanted` ones without a GPU.
    """
    gpu, lacking = find(detect())
    subject = subject_of(read_hparams(GGUFFile(base)), context, size=size)
    return choose_layers(subject, "F16", BATCHES[0], gpu, wanted=wanted, lacking=lacking)[0]
