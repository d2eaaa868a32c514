"""The activations that a training keeps on disk, of its training and validation rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from comigs_edge.nn.model import Model
from comigs_edge.training.activation_cache import ActivationCache, Key
from comigs_edge.training.batches import Batch, Rows


def open_caches(
    folder: Path, model: Model, rows: tuple[Rows, Rows], batch: int, base_sha256: str
) -> tuple[ActivationCache, ActivationCache]:  # fmt: skip
    """Those of the blocks without experts, in `folder`; what is not there yet is computed when it is read."""
    base = model.base
    key: Key = (
        base_sha256, model.first_block, model.checkpointing, str(base.dtype), str(base.device), torch.get_num_threads(),
        torch.get_float32_matmul_precision(), torch.__version__,
    )  # fmt: skip

    def compute(group: Batch) -> Tensor:
        return model.below(group.tokens.to(base.device), group.documents)

    training, validation = (ActivationCache(folder, each, batch, base.hparams.width, key, compute) for each in rows)
    return training, validation
