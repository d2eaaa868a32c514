"""What may leave a device: the generalist's tensors, by an allow-list of names. Everything that is sent passes here."""

from __future__ import annotations

import re

_MAY_LEAVE = re.compile(
    r"generalist\.blk\.[0-9]{1,4}\."
    r"(?:(?:ffn_(?:gate|up|down)|attn_(?:q|k|v|output))\.lora_[ab]|ffn_(?:gate|up|down)\.weight)"
)


def may_leave(name: str) -> bool:
    """Whether a tensor may leave its device. Specialists, router, optimiser state and anything unknown may not."""
    return _MAY_LEAVE.fullmatch(name) is not None
