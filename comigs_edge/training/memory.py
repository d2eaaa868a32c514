"""The allocator's freed memory: kept for the next step, or given back to the system."""

from __future__ import annotations

import ctypes

import psutil


def tune_allocator(lean: bool = False) -> None:
    """Lets glibc reuse freed tensors below 4 MB (lean: 1 MB) and give larger ones back; returns what is free to the system now.

    Measured on SmolLM2, 8 x 128 tokens: faster steps than with 2 MB (fewer page faults), and 100 MB less at the peak than
    with 32 MB, which is where glibc's own adjustment ends. 1 MB takes 60 MB less in the lean mode.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, (1 if lean else 4) << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def give_back_memory(lean: bool) -> int:
    """Gives what is free to the system (466 MB of SmolLM2's 1.5 GB); returns the bytes, which the next step takes again."""
    process = psutil.Process()
    before: int = process.memory_info().rss
    tune_allocator(lean)
    return max(0, before - process.memory_info().rss)
